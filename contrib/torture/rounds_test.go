package torture

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/waypointd/waypoint/mux/client"
)

// Of TestRounds: there are always more jobs than can run, and so many of them
// run, for so long, that it is still 50 when a fault strikes while nothing new can begin.
// Where many faults have let too many end, the next round waits for more.
const (
	roundsConcurrency = 90
	roundsUnderWay    = 120
	roundsRunning     = 50 // at each fault
	roundsBegin       = 55 // at the first of a round, as some end until the last
)

// TestRounds is the promise as a whole: server, agent and network break in every
// way, alone and together, for less than the lease, while 50 jobs and more run
// and are followed; and nothing has happened to any of them.
func TestRounds(t *testing.T) {
	rounds, during, seed := number(t, "TORTURE_ROUNDS", 10), given(t), seed(t)
	ctx := bounded(t, 6*time.Minute+during*3/2+time.Duration(rounds)*5*time.Second)
	s, a := newBreakable(ctx, t, roundsConcurrency, seed)
	l := newLoad(ctx, s.site, roundsUnderWay, longScript, a)
	l.launch = func(start func() error) error { return s.inside(atClient, start) }
	stop := l.start(ctx, seed)
	l.awaitRunning(ctx, s.operator, roundsRunning)
	waited := 0
	a.before = func(ctx context.Context) {
		if s.runningJobs() < roundsBegin {
			waited++
			l.awaitRunning(ctx, s.operator, roundsBegin)
		}
	}
	begin := time.Now()
	a.run(ctx, a.faults(), rounds, during, func(round int) {
		l.checkOverdue(ctx, s.operator)
		if round%10 == 0 { // let it come to itself: progress is promised too
			s.awaitServer(ctx)
			s.awaitRunner(ctx, s.operator)
			l.awaitRunning(ctx, s.operator, roundsRunning)
		}
		if round%50 == 0 {
			l.progress(a, time.Since(begin))
		}
		if t.Failed() {
			t.FailNow()
		}
	})
	took := time.Since(begin)
	stop()
	l.awaitDrained(ctx, s.operator)
	s.awaitServer(ctx)
	s.awaitRunner(ctx, s.operator)
	l.checkAll(ctx, s.operator)
	t.Logf("%s; in %s (TORTURE_SEED=%d)", a.figures(), took.Round(time.Second), seed)
	slices.Sort(a.running)
	t.Logf("at each of %d faults at least %d jobs were running, at half of them %d or more; %d of %d rounds waited for that, and a round took %s",
		len(a.running), a.running[0], a.running[len(a.running)/2], waited, a.rounds, (took / time.Duration(a.rounds)).Round(time.Millisecond))
	if a.running[0] < roundsRunning {
		t.Errorf("a fault struck while %d jobs were running, which is fewer than %d", a.running[0], roundsRunning)
	}
	s.checkNothingLeft(ctx)
}

// forever is a lease that no fault of a round outlasts.
const forever = 10 * time.Minute

// newBreakable is a site of which everything can break, and who breaks it: over a
// network where there can be one, with the supervisor beside the agent.
func newBreakable(ctx context.Context, t testing.TB, concurrency int, seed uint64) (*remote, *adversary) {
	t.Helper()
	s := &remote{site: newSite(t), heartbeat: 300 * time.Millisecond, managed: true}
	s.concurrency = concurrency
	if why := noNetwork(); why != "" {
		t.Logf("SKIPPED: the faults of the network, since %s", why)
	} else {
		s.n = newNetwork(t)
	}
	s.open(ctx, forever)
	s.overNetwork()
	a := newAdversary(s.site, seed)
	a.n, a.managed = s.n, true
	a.startServer, a.startAgent = func() { s.startServer(atServer) }, s.startAgent
	return s, a
}

// awaitRunning waits until so many jobs run.
func (l *load) awaitRunning(ctx context.Context, c *client.Client, n int) {
	t := l.s.t
	t.Helper()
	bound, cancel := context.WithTimeout(ctx, slack(t))
	defer cancel()
	if err := poll(bound, func() error {
		r, err := c.Runner(ctx, runnerID)
		if err != nil {
			return err
		}
		// The server knows later that one has ended.
		if run := min(r.RunningJobs, l.s.runningJobs()); run < n {
			return fmt.Errorf("%d jobs run", run)
		}
		return nil
	}); err != nil {
		t.Fatalf("await %d jobs to run: %v", n, err)
	}
}

// progress is a line for who watches.
func (l *load) progress(a *adversary, took time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	server, _, _ := memory(l.s.server.pid())
	agent, _, _ := memory(l.s.agent.pid())
	l.s.t.Logf("%d rounds in %s: %d jobs and %d lines checked, %d jobs under way, %d of them running; server %s, agent %s",
		a.rounds, took.Round(time.Second), len(l.kept), l.figures.lines, len(l.open), a.running[len(a.running)-1], mib(server), mib(agent))
}
