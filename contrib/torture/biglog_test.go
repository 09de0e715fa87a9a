package torture

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/waypointd/waypoint/mux/client"
	"github.com/waypointd/waypoint/mux/wire"
)

// memoryLimit is what server and agent may take, however long a log is.
const memoryLimit = 100 << 20

// TestBigLog sends a large output of random bytes to readers of every kind.
func TestBigLog(t *testing.T) {
	usual := 200
	if testing.Short() {
		usual = 20
	}
	size := int64(number(t, "TORTURE_LOG_MB", usual)) << 20
	ctx := bounded(t, 5*time.Minute)
	s := newSite(t)
	s.open(ctx)
	c := s.client(ctx)
	file, sum := randomFile(t, s.dir, size)
	spec := wire.JobSpec{Operation: wire.OpRun, Command: []string{"cat", file}, Target: wire.Target{Any: true}}

	memory := watchMemory(ctx, map[string]func() int{
		"server": s.server.pid, "agent": s.agent.pid,
		"supervisor": func() int { return append(s.supervisors(), 0)[0] },
	})
	alone := wallOf(ctx, t, c, spec)

	job := submitOne(ctx, t, c, spec)
	ended := make(chan struct{})
	var readers sync.WaitGroup
	results := make(map[string]*sumOf)
	read := func(name string, conn *client.Client, pace func(n int64)) {
		r := &sumOf{pace: pace, hash: sha256.New()}
		results[name] = r
		readers.Go(func() { r.read(ctx, conn, job.ID) })
	}
	var behind int64
	read("attached from the start", c, nil)
	read("another, on a connection of its own", s.client(ctx), nil)
	read("slow, on the same connection as the first", c, slowUntil(ctx, ended))
	slow := results["slow, on the same connection as the first"]
	end, err := c.Wait(ctx, job.ID)
	if err != nil {
		t.Fatal(err)
	}
	behind = size - slow.bytes()
	close(ended)
	for n := range 3 {
		read(fmt.Sprintf("late %d", n+1), s.client(ctx), nil)
	}
	readers.Wait()

	for _, name := range slices.Sorted(maps.Keys(results)) {
		r := results[name]
		t.Logf("%s: %s in %s, %.0f MB/s", name, mib(r.n), r.took.Round(time.Millisecond), float64(r.n)/1e6/r.took.Seconds())
		if got := hex.EncodeToString(r.hash.Sum(nil)); r.err != nil || got != sum {
			t.Errorf("%s: sha256 %s of %d bytes, want %s of %d (%v)", name, got, r.n, sum, size, r.err)
		}
	}
	wall := end.FinishedAt.Sub(end.StartedAt)
	t.Logf("the job took %s with no reader, %s with two fast and a slow one, which was %s behind when it ended", alone, wall, mib(behind))
	if end.State != wire.Success || end.LogBytes != size {
		t.Errorf("the job ended as %s %s with %d bytes", end.State, end.Error, end.LogBytes)
	}
	if wall > 4*alone+3*time.Second {
		t.Errorf("readers hold the job up: %s, alone %s", wall, alone)
	}
	if behind < size/4 {
		t.Errorf("the slow reader was only %d bytes behind: it may have held the job up", behind)
	}
	for name, m := range memory() {
		t.Logf("%s: peak of %s, mean %s", name, mib(m.peak), mib(m.mean))
		if m.peak == 0 {
			t.Errorf("the memory of %s was not seen", name)
		}
		if m.peak > memoryLimit && !raceBuild() {
			t.Errorf("%s took %s, may take %s", name, mib(m.peak), mib(memoryLimit))
		}
	}
}

// randomFile makes a file of random bytes and returns its sum.
func randomFile(t testing.TB, dir string, size int64) (path, sum string) {
	t.Helper()
	path = filepath.Join(dir, "random")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.CopyN(io.MultiWriter(f, h), rand.NewChaCha8([32]byte{1}), size); err != nil {
		t.Fatal(err)
	}
	return path, hex.EncodeToString(h.Sum(nil))
}

func submitOne(ctx context.Context, t testing.TB, c *client.Client, spec wire.JobSpec) wire.Job {
	t.Helper()
	jobs, err := c.Submit(ctx, spec)
	if err != nil {
		t.Fatalf("submit: %v", err)
	}
	return jobs[0]
}

// wallOf runs a job with nobody looking.
func wallOf(ctx context.Context, t testing.TB, c *client.Client, spec wire.JobSpec) time.Duration {
	t.Helper()
	job, err := c.Wait(ctx, submitOne(ctx, t, c, spec).ID)
	if err != nil || job.State != wire.Success {
		t.Fatalf("wait: %s %s, %v", job.State, job.Error, err)
	}
	return job.FinishedAt.Sub(job.StartedAt)
}

// sumOf is a reader that keeps a checksum.
type sumOf struct {
	pace func(n int64) // called with the bytes of each chunk; nil: as fast as can be
	hash hash.Hash
	took time.Duration

	mu  sync.Mutex
	n   int64 // guarded by mu while it reads
	err error
}

func (r *sumOf) bytes() int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.n
}

func (r *sumOf) read(ctx context.Context, c *client.Client, job string) {
	begin := time.Now()
	defer func() { r.took = time.Since(begin) }()
	last := false
	for item, err := range c.Stream(ctx, wire.StreamRequest{ID: job, Follow: true}) {
		if err != nil {
			r.err = err
			return
		}
		if item.Event != nil {
			last = item.Event.Last
			continue
		}
		if item.Data.Offset != r.n || item.Data.Stream != wire.Stdout {
			r.err = fmt.Errorf("chunk of stream %d at %d behind %d", item.Data.Stream, item.Data.Offset, r.n)
			return
		}
		r.hash.Write(item.Data.Bytes)
		r.mu.Lock()
		r.n += int64(len(item.Data.Bytes))
		r.mu.Unlock()
		if r.pace != nil {
			r.pace(int64(len(item.Data.Bytes)))
		}
	}
	if !last {
		r.err = fmt.Errorf("the stream has no end")
	}
}

// slowUntil reads about one MB a second until done, and then as fast as it can.
func slowUntil(ctx context.Context, done <-chan struct{}) func(int64) {
	begin, n := time.Now(), int64(0)
	return func(more int64) {
		n += more
		due := begin.Add(time.Duration(float64(n) / 1e6 * float64(time.Second)))
		select {
		case <-done:
		case <-ctx.Done():
		case <-time.After(time.Until(due)):
		}
	}
}

// usage is the memory of one process over some time.
type usage struct{ peak, mean int64 }

// watchMemory samples processes until the function it returns is called.
func watchMemory(ctx context.Context, pids map[string]func() int) func() map[string]usage {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	type total struct{ peak, sum, n int64 }
	totals := map[string]*total{}
	for name := range pids {
		totals[name] = &total{}
	}
	go func() {
		defer close(done)
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		found := map[string]int{}
		for {
			for name, pid := range pids {
				if found[name] == 0 {
					found[name] = pid()
				}
				if rss, peak, err := memory(found[name]); err == nil {
					tt := totals[name]
					tt.peak, tt.sum, tt.n = max(tt.peak, peak), tt.sum+rss, tt.n+1
				}
			}
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
		}
	}()
	return func() map[string]usage {
		cancel()
		<-done
		m := map[string]usage{}
		for name, tt := range totals {
			m[name] = usage{peak: tt.peak, mean: tt.sum / max(tt.n, 1)}
		}
		return m
	}
}
