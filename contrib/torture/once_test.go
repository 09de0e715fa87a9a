package torture

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/waypointd/waypoint/mux/wire"
)

// TestEachJobOnce queues very many jobs from many clients to one runner: each
// runs once, none is forgotten.
func TestEachJobOnce(t *testing.T) {
	usual := 10_000
	if testing.Short() {
		usual = 1_000
	}
	const clients = 64
	jobs := number(t, "TORTURE_JOBS", usual)
	ctx := bounded(t, 2*time.Minute+time.Duration(jobs)*20*time.Millisecond)
	s := newSite(t)
	s.concurrency = 16
	s.open(ctx)
	before := s.mustAnswer(ctx, "start").Jobs[string(wire.Success)]
	file := filepath.Join(s.dir, "starts")

	var wg sync.WaitGroup
	var queued atomic.Int64
	allQueued := make(chan time.Duration, 1)
	begin := time.Now()
	for n := range clients {
		c := s.client(ctx)
		wg.Go(func() {
			var ids []string
			for i := n; i < jobs; i += clients {
				made, err := c.Submit(ctx, wire.JobSpec{
					Operation: wire.OpRun, Target: wire.Target{Any: true},
					Command: []string{"sh", "-c", fmt.Sprintf("echo j%d >>%s", i, file)},
				})
				if err != nil {
					t.Errorf("submit: %v", err)
					return
				}
				ids = append(ids, made[0].ID)
				if queued.Add(1) == int64(jobs) {
					allQueued <- time.Since(begin)
				}
			}
			for _, id := range ids {
				j, err := c.Wait(ctx, id)
				if err != nil {
					t.Errorf("wait: %v", err)
					return
				}
				if j.State != wire.Success || j.Attempt != 1 {
					t.Errorf("job %s ended as %s %s in attempt %d: %s", j.ID, j.State, j.Reason, j.Attempt, j.Error)
				}
			}
		})
	}
	wg.Wait()
	took := time.Since(begin)
	if t.Failed() {
		return
	}
	queuedIn := <-allQueued
	t.Logf("%d jobs of %d clients: queued in %s (%.0f/s), all ended in %s: %.0f jobs/s",
		jobs, clients, queuedIn.Round(time.Millisecond), float64(jobs)/queuedIn.Seconds(),
		took.Round(time.Millisecond), float64(jobs)/took.Seconds())
	checkOnce(ctx, t, s, file, jobs, before)
}

// checkOnce counts the starts, and what the server counts.
func checkOnce(ctx context.Context, t *testing.T, s *site, file string, jobs, before int) {
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	starts := map[string]int{}
	for line := range strings.Lines(string(b)) {
		starts[strings.TrimSpace(line)]++
	}
	for i := range jobs {
		if n := starts[fmt.Sprintf("j%d", i)]; n != 1 {
			t.Errorf("job j%d ran %d times", i, n)
		}
	}
	if len(starts) != jobs {
		t.Errorf("%d different jobs ran, want %d", len(starts), jobs)
	}
	st := s.mustAnswer(ctx, "all jobs")
	if st.Jobs[string(wire.Success)] != before+jobs || st.QueueDepth != 0 {
		t.Errorf("the server counts %v, queue depth %d; want %d successes", st.Jobs, st.QueueDepth, before+jobs)
	}
	for name, pid := range map[string]int{"server": s.server.pid(), "agent": s.agent.pid()} {
		rss, peak, err := memory(pid)
		t.Logf("%s: %s resident, %s at the peak (%v)", name, mib(rss), mib(peak), err)
	}
}
