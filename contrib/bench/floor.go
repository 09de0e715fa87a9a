package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// forkExec starts a program that does nothing and waits for its end.
func forkExec() error {
	if err := exec.Command("/bin/true").Run(); err != nil {
		return fmt.Errorf("run /bin/true: %w", err)
	}
	return nil
}

// appender appends to a file and waits for the disk: the least that "durable"
// costs.
type appender struct {
	f     *os.File
	block [4096]byte
}

func (b *bench) newAppender() (*appender, error) {
	f, err := os.CreateTemp(b.dir, "floor-")
	if err != nil {
		return nil, fmt.Errorf("make file: %w", err)
	}
	return &appender{f: f}, nil
}

func (a *appender) append() error {
	if _, err := a.f.Write(a.block[:]); err != nil {
		return fmt.Errorf("append: %w", err)
	}
	if err := syscall.Fdatasync(int(a.f.Fd())); err != nil {
		return fmt.Errorf("sync: %w", err)
	}
	return nil
}

func (a *appender) close() {
	a.f.Close()
	os.Remove(a.f.Name())
}

// forkRate is how many programs in a second can be started and waited for.
func (b *bench) forkRate(ctx context.Context, ways int) (float64, error) {
	workers := make([]func() error, ways)
	for i := range workers {
		workers[i] = forkExec
	}
	return rateOf(ctx, b.span(500*time.Millisecond), workers)
}

// syncRate is how many durable appends in a second there can be.
func (b *bench) syncRate(ctx context.Context, writers int) (float64, error) {
	workers := make([]func() error, writers)
	for i := range workers {
		a, err := b.newAppender()
		if err != nil {
			return 0, err
		}
		defer a.close()
		workers[i] = a.append
	}
	return rateOf(ctx, b.span(500*time.Millisecond), workers)
}

// pipeRate is megabytes in a second from a program's output through a file to
// a reader of it, all in one process.
func (b *bench) pipeRate(source string) (float64, error) {
	began := time.Now()
	cmd := exec.Command("cat", source)
	out, err := cmd.StdoutPipe()
	if err != nil {
		return 0, fmt.Errorf("make pipe: %w", err)
	}
	f, err := os.CreateTemp(b.dir, "floor-")
	if err != nil {
		return 0, fmt.Errorf("make file: %w", err)
	}
	defer os.Remove(f.Name())
	defer f.Close()
	if err := cmd.Start(); err != nil {
		return 0, fmt.Errorf("run cat: %w", err)
	}
	sum := newChecksum()
	in, back := make([]byte, 64<<10), make([]byte, 64<<10)
	for {
		n, err := out.Read(in)
		if err == io.EOF {
			break
		}
		if err != nil {
			return 0, fmt.Errorf("read pipe: %w", err)
		}
		if _, err := f.WriteAt(in[:n], sum.n); err != nil {
			return 0, fmt.Errorf("write file: %w", err)
		}
		if _, err := f.ReadAt(back[:n], sum.n); err != nil {
			return 0, fmt.Errorf("read file: %w", err)
		}
		sum.add(back[:n])
	}
	if err := cmd.Wait(); err != nil {
		return 0, fmt.Errorf("run cat: %w", err)
	}
	return float64(sum.n) / 1e6 / time.Since(began).Seconds(), nil
}

// pipeLag is how late the lines of a ticking program are read from its pipe.
func (b *bench) pipeLag(ticker string, lines int) (samples, error) {
	cmd := exec.Command(ticker, tickCommand, fmt.Sprint(lines))
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("make pipe: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("run %s: %w", ticker, err)
	}
	var late lateness
	buf := make([]byte, 64<<10)
	for {
		n, err := out.Read(buf)
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("read pipe: %w", err)
		}
		if err := late.add(buf[:n]); err != nil {
			return nil, err
		}
	}
	if err := cmd.Wait(); err != nil {
		return nil, fmt.Errorf("run %s: %w", ticker, err)
	}
	return late.samples, nil
}

// systemdRun is the command that has the system's manager run a program, nil
// where there is none.
func systemdRun() []string {
	if _, err := os.Stat("/run/systemd/system"); err != nil {
		return nil
	}
	path, err := exec.LookPath("systemd-run")
	if err != nil {
		return nil
	}
	words := strings.Fields("--quiet --wait --pipe --collect true")
	if os.Getuid() != 0 {
		words = append([]string{"--user"}, words...)
	}
	return append([]string{path}, words...)
}
