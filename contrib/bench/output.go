package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"time"
)

// checksum is of bytes as they come.
type checksum struct {
	n   int64
	sum uint32
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func newChecksum() *checksum { return new(checksum) }

func (c *checksum) add(b []byte) {
	c.n += int64(len(b))
	c.sum = crc32.Update(c.sum, castagnoli, b)
}

// makeOutput writes a file of lines of text, of the length of usual ones.
func (b *bench) makeOutput(bytes int64) (string, *checksum, error) {
	path := b.path("output.txt")
	f, err := os.Create(path)
	if err != nil {
		return "", nil, fmt.Errorf("make output: %w", err)
	}
	defer f.Close()
	w, sum := bufio.NewWriterSize(f, 1<<20), newChecksum()
	random := rand.New(rand.NewPCG(1, 2))
	for line := []byte(nil); sum.n < bytes; {
		line = fmt.Appendf(line[:0], "%08d compiling unit %016x of package %x/%x\n",
			sum.n, random.Uint64(), random.Uint64()>>(random.Uint32()%64), random.Uint64())
		if _, err := w.Write(line); err != nil {
			return "", nil, fmt.Errorf("make output: %w", err)
		}
		sum.add(line)
	}
	if err := w.Flush(); err != nil {
		return "", nil, fmt.Errorf("make output: %w", err)
	}
	return path, sum, nil
}

// measureLog times a job that writes much, from its submit until a client that
// follows it has the last byte.
func measureLog(ctx context.Context, b *bench) error {
	amount := int64(200e6)
	if b.quick {
		amount = 50e6
	}
	path, want, err := b.makeOutput(amount)
	if err != nil {
		return err
	}
	defer os.Remove(path)
	c, err := b.client(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	times := map[string]time.Duration{}
	if _, err := b.processorTimes(times); err != nil {
		return err
	}
	measured, floor, err := turns(b.rounds(),
		func() (float64, error) { return b.pipeRate(path) },
		func() (float64, error) {
			began := time.Now()
			j, err := submit(ctx, c, command(onWide, "cat", path))
			if err != nil {
				return 0, err
			}
			got := newChecksum()
			if j, err = follow(ctx, c, j.ID, func(b []byte) error { got.add(b); return nil }); err != nil {
				return 0, err
			}
			took := time.Since(began)
			if err := succeeded(j); err != nil {
				return 0, err
			}
			if *got != *want || j.LogBytes != want.n {
				return 0, fmt.Errorf("follow job: %d bytes with checksum %08x came, and %d with %08x were written",
					got.n, got.sum, want.n, want.sum)
			}
			return float64(got.n) / 1e6 / took.Seconds(), nil
		})
	if err != nil {
		return err
	}
	b.report.rate(fmt.Sprintf("output of a job of %s, followed", megabytes(amount)), measured, floor,
		" MB/s", "pipe, file, reader", "≥ 200 MB/s")
	used, err := b.processorTimes(times)
	if err != nil {
		return err
	}
	var text strings.Builder
	for _, p := range b.residents() {
		each := float64(used[p.name]) * 100e6 / (float64(amount) * float64(b.rounds()))
		fmt.Fprintf(&text, "%s %s  ", p.name, ms(time.Duration(each)))
	}
	b.report.plain("   processor time for 100 MB", "", text.String())
	return b.reportMemory("after it", map[string]string{
		"server": "not grown", "agent": "not grown", "supervisor": "not grown",
	})
}

// tickCommand makes this program one that prints the time, see tick.
const tickCommand = "tick"

// tickEvery is the time between two lines of it.
const tickEvery = 2 * time.Millisecond

// tick prints so many lines, each the time in nanoseconds at which it is
// written.
func tick(lines string) {
	n, err := strconv.Atoi(lines)
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench: tick:", err)
		os.Exit(2)
	}
	t := time.NewTicker(tickEvery)
	for range n {
		<-t.C
		fmt.Println(time.Now().UnixNano())
	}
}

// lateness is how long after their writing lines of a tick were read.
type lateness struct {
	samples samples
	rest    []byte // of a line whose end has not come
}

func (l *lateness) add(b []byte) error {
	now := time.Now()
	l.rest = append(l.rest, b...)
	for {
		line, rest, whole := bytes.Cut(l.rest, []byte("\n"))
		if !whole {
			return nil
		}
		at, err := strconv.ParseInt(string(line), 10, 64)
		if err != nil {
			return fmt.Errorf("read line: %w", err)
		}
		l.samples = append(l.samples, now.Sub(time.Unix(0, at)))
		l.rest = rest
	}
}

// measureLag has a job print the time every two milliseconds and compares it
// with the time at which a client that follows it gets the line.
func measureLag(ctx context.Context, b *bench) error {
	ticker, err := b.ticker()
	if err != nil {
		return err
	}
	lines := int(b.span(3*time.Second) / tickEvery)
	floor, err := b.pipeLag(ticker, lines)
	if err != nil {
		return err
	}
	c, err := b.client(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	j, err := submit(ctx, c, command(onWide, ticker, tickCommand, strconv.Itoa(lines)))
	if err != nil {
		return err
	}
	var late lateness
	if j, err = follow(ctx, c, j.ID, late.add); err != nil {
		return err
	}
	if err := succeeded(j); err != nil {
		return err
	}
	if len(late.samples) != lines || len(floor) != lines {
		return fmt.Errorf("follow job: %d of %d lines came, %d through a pipe", len(late.samples), lines, len(floor))
	}
	const name = "a line every 2 ms, lag of a follower"
	b.report.took(name+", p50", late.samples.p50(), floor.p50(), "a pipe", "")
	b.report.took(name+", p99", late.samples.p99(), floor.p99(), "a pipe", "< 50 ms")
	return nil
}

// ticker is a copy of this program where a job can run it.
func (b *bench) ticker() (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("find this program: %w", err)
	}
	from, err := os.Open(self)
	if err != nil {
		return "", fmt.Errorf("copy this program: %w", err)
	}
	defer from.Close()
	path := b.path("ticker")
	to, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		return "", fmt.Errorf("copy this program: %w", err)
	}
	if _, err := io.Copy(to, from); err != nil {
		to.Close()
		return "", fmt.Errorf("copy this program: %w", err)
	}
	return path, to.Close()
}

func makeDir(path string) error {
	if err := os.MkdirAll(path, 0o755); err != nil {
		return fmt.Errorf("make directory: %w", err)
	}
	return nil
}
