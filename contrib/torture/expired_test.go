package torture

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/waypointd/waypoint/mux/wire"
)

// idleWindow is for how long a runner is watched that has nothing to do.
const idleWindow = 6 * time.Second

// cpuTime is what a process has used so far.
func cpuTime(t testing.TB, pid int) time.Duration {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	// The fields behind the name, which may hold anything: utime and stime are
	// the 14th and 15th of all, in hundredths of a second.
	_, rest, ok := strings.Cut(string(b), ") ")
	f := strings.Fields(rest)
	if !ok || len(f) < 13 {
		t.Fatalf("read /proc/%d/stat: %q", pid, b)
	}
	user, err1 := strconv.ParseInt(f[11], 10, 64)
	system, err2 := strconv.ParseInt(f[12], 10, 64)
	if err1 != nil || err2 != nil {
		t.Fatalf("read /proc/%d/stat: %q", pid, b)
	}
	return time.Duration(user+system) * 10 * time.Millisecond
}

// lines counts the lines of a log.
func lines(t testing.TB, path string) int { t.Helper(); return counted(t, path, "\n") }

// checkIdle watches a runner that waits for a token: it needs next to no time
// and does not bother the server. The server's log has a line for each
// connection, each refusal and each change of a runner's standing.
func (s *site) checkIdle(ctx context.Context, how string) {
	t := s.t
	t.Helper()
	const attempts = 4 // at 0, 1, 3 and 7 s, with jitter
	agent, server := cpuTime(t, s.agent.pid()), cpuTime(t, s.server.pid())
	said, logged := lines(t, s.agent.log), lines(t, s.server.log)
	begin := time.Now()
	select {
	case <-time.After(idleWindow): // what is measured is this time
	case <-ctx.Done():
		t.Fatal(context.Cause(ctx))
	case <-s.agent.done:
		t.Fatalf("%s: the agent has ended: %v", how, s.agent.err)
	}
	took := time.Since(begin)
	share := func(d time.Duration) float64 { return 100 * d.Seconds() / took.Seconds() }
	agentShare, serverShare := share(cpuTime(t, s.agent.pid())-agent), share(cpuTime(t, s.server.pid())-server)
	said, logged = lines(t, s.agent.log)-said, lines(t, s.server.log)-logged
	t.Logf("%s: in %s the agent takes %.1f %% of a processor, the server %.1f %%; they say %d and %d lines",
		how, took.Round(time.Millisecond), agentShare, serverShare, said, logged)
	if agentShare >= 5 || serverShare >= 5 {
		t.Errorf("%s: they are not idle", how)
	}
	if logged > attempts || said > 2*attempts {
		t.Errorf("%s: the runner does not leave the server alone:\n%s", how, tail(s.server.log, 3000))
	}
}

// TestExpiredToken lets a runner's token expire, while it runs and before it
// starts: it stays up, idle, and is back at once when there is a new one.
func TestExpiredToken(t *testing.T) {
	t.Parallel()
	ctx := bounded(t, 3*time.Minute)
	s := newSite(t)
	s.startServer()
	s.awaitServer(ctx)
	c := s.client(ctx)
	expired := s.token(ctx, "--id", runnerID, "--expires-in", "3s")
	s.putToken(expired)
	s.startAgent()
	s.awaitRunner(ctx, c)
	s.findCgroup(ctx, c)
	pid := s.agent.pid()

	awaitProblem := func(want wire.Problem) {
		t.Helper()
		await(ctx, t, "the problem of the runner to be "+string(want), func() error {
			if err := s.agent.hopeless(); err != nil {
				return err
			}
			r, err := c.Runner(ctx, runnerID)
			if err == nil && (r.Problem != want || !r.Online) {
				err = fmt.Errorf("it is %q, online %v", r.Problem, r.Online)
			}
			return err
		})
	}
	// heal puts a good token there and holds that it is taken up.
	heal := func(n int) {
		t.Helper()
		job := submitOne(ctx, t, c, wire.JobSpec{Operation: wire.OpRun, Command: []string{"true"}, Target: wire.Target{ID: runnerID}})
		if ok, err := c.Match(ctx, wire.Target{ID: runnerID}); ok || err != nil {
			t.Errorf("a runner with an expired token gets jobs: %v", err)
		}
		s.checkIdle(ctx, fmt.Sprintf("expired (%d)", n))
		if j, err := c.Job(ctx, job.ID); err != nil || j.State != wire.Queued {
			t.Errorf("a job has gone to a runner with an expired token: %s, %v", j.State, err)
		}
		if s.agent.pid() != pid || !s.agent.alive() {
			t.Error("the agent has been started again")
		}
		s.replace(ctx, ways[n], n, s.token(ctx, "--expires-in", "1h"))
		begin := time.Now()
		err := pollFor(ctx, 2*noticed, func() error {
			j, err := c.Job(ctx, job.ID)
			if err == nil && j.State != wire.Success {
				err = fmt.Errorf("the job is %s", j.State)
			}
			return err
		})
		took := time.Since(begin)
		if err != nil || took > noticed {
			t.Fatalf("with a new token there is no job done after %s: %v", took, err)
		}
		t.Logf("a new token, and the waiting job was done after %s", took.Round(time.Millisecond))
		if r := s.inspect(ctx, runnerID); r.Problem != "" || r.State != wire.Preadopted {
			t.Errorf("the runner is %s with the problem %q", r.State, r.Problem)
		}
	}

	awaitProblem(wire.TokenExpired) // while it is connected
	r := s.inspect(ctx, runnerID)
	if when := expiryOf(t, expired).UTC().Format(time.RFC3339); r.State != wire.Preadopted || !strings.Contains(r.Detail, when[:len("2006-01-02T15:04")]) {
		t.Errorf("the runner is %s, detail %q; its token expired at %s", r.State, r.Detail, when)
	}
	heal(0)

	s.agent.kill()
	s.putToken(expired)
	s.startAgent()
	pid = s.agent.pid()
	awaitProblem(wire.TokenExpired) // from the start
	heal(1)
	s.checkNothingLeft(ctx)
}
