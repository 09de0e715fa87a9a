package torture

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// patience bounds every wait for something that a healthy program does at once.
const patience = 30 * time.Second

// await asks again and again until f has no complaint or ctx ends: the one
// place that polls, for what other processes do.
func await(ctx context.Context, t testing.TB, what string, f func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := poll(ctx, f); err != nil {
		t.Fatalf("await %s: %v", what, err)
	}
}

// errHopeless ends a poll: what is waited for cannot come any more.
var errHopeless = errors.New("no use waiting")

func poll(ctx context.Context, f func() error) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := f()
		if err == nil || errors.Is(err, errHopeless) {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", context.Cause(ctx), err)
		case <-tick.C:
		}
	}
}

// process is a long-lived process of the program: a server or an agent.
type process struct {
	t    testing.TB
	name string
	log  string // its stderr, one incarnation after the other
	cmd  *exec.Cmd
	done chan struct{} // closed when it has been waited for
	err  error         // of Wait; read after done
}

// launch starts the program. Its stderr is appended to dir/name.log, of which
// a failed test shows the end.
func launch(t testing.TB, dir, name string, attr *syscall.SysProcAttr, args ...string) *process {
	t.Helper()
	p := &process{t: t, name: name, log: filepath.Join(dir, name+".log"), done: make(chan struct{})}
	f, err := os.OpenFile(p.log, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fmt.Fprintf(f, "-- started %s: %s\n", time.Now().UTC().Format(time.RFC3339Nano), strings.Join(args, " "))
	p.cmd = exec.Command(program, args...)
	p.cmd.Env = cleanEnv()
	p.cmd.Stdout, p.cmd.Stderr = f, f
	p.cmd.SysProcAttr = attr
	if err := p.cmd.Start(); err != nil {
		t.Fatalf("start %s: %v", name, err)
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	return p
}

// cleanEnv is the environment of every process: nothing that names a server.
func cleanEnv() []string {
	env := []string{"PATH=" + os.Getenv("PATH"), "HOME=" + base, "GORACE=halt_on_error=1 exitcode=66"}
	return env
}

func (p *process) pid() int { return p.cmd.Process.Pid }

// alive reports whether the process has not ended.
func (p *process) alive() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// hopeless is an error once the process has ended.
func (p *process) hopeless() error {
	if p.alive() {
		return nil
	}
	return fmt.Errorf("%w: %s has ended: %v", errHopeless, p.name, p.err)
}

// kill is kill -9, and waits until the kernel has taken it away.
func (p *process) kill() {
	p.cmd.Process.Kill()
	<-p.done
}

// stop asks it to end and returns its exit code.
func (p *process) stop(sig os.Signal) int {
	p.t.Helper()
	p.cmd.Process.Signal(sig)
	return p.ended()
}

// ended waits for the end of one that was asked for it, and returns its exit code.
func (p *process) ended() int {
	p.t.Helper()
	select {
	case <-p.done:
	case <-time.After(patience):
		p.t.Errorf("%s does not end within %s", p.name, patience)
		p.signal(syscall.SIGQUIT) // for where it stands
		p.kill()
	}
	return p.cmd.ProcessState.ExitCode()
}

// signal sends a signal to the process.
func (p *process) signal(sig syscall.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(sig); err != nil {
		p.t.Fatalf("%s %s: %v", sig, p.name, err)
	}
}

// tail is the end of the log.
func tail(path string, n int) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	return string(b[max(0, len(b)-n):])
}

// memory is the present and the peak resident size of a process, in bytes.
func memory(pid int) (rss, peak int64, err error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, 0, err
	}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) != 3 || f[2] != "kB" {
			continue
		}
		n, _ := strconv.ParseInt(f[1], 10, 64)
		switch f[0] {
		case "VmRSS:":
			rss = n << 10
		case "VmHWM:":
			peak = n << 10
		}
	}
	return rss, peak, nil
}

// openSockets counts the sockets that a process has open; none for who is not
// root, to whom a server shows nothing of itself.
func openSockets(t testing.TB, pid int) int {
	t.Helper()
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	switch {
	case errors.Is(err, os.ErrPermission) && os.Getuid() != 0:
		t.Log("only root can count a server's sockets: that is not looked at")
	case err != nil:
		t.Errorf("count sockets: %v", err)
	}
	n := 0
	for _, e := range entries {
		if to, err := os.Readlink(filepath.Join(dir, e.Name())); err == nil && strings.HasPrefix(to, "socket:") {
			n++
		}
	}
	return n
}

// answer is what a command said and how it ended.
type answer struct {
	stdout, stderr string
	code           int
}

func (a answer) String() string {
	return fmt.Sprintf("exit %d\nstdout: %.400s\nstderr: %.1200s", a.code, a.stdout, a.stderr)
}

// command runs the program to its end. One that does not end is a failure.
func command(ctx context.Context, t testing.TB, attr *syscall.SysProcAttr, args ...string) answer {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, 2*patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = cleanEnv()
	cmd.SysProcAttr = attr
	cmd.WaitDelay = time.Second
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if _, exited := errors.AsType[*exec.ExitError](err); err != nil && !exited {
		t.Fatalf("waypoint %s: %v", strings.Join(args, " "), err)
	}
	if ctx.Err() != nil {
		t.Fatalf("waypoint %s does not end: %v", strings.Join(args, " "), context.Cause(ctx))
	}
	return answer{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// mib is for figures.
func mib(n int64) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }
