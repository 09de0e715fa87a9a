package torture

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/waypointd/waypoint/mux/client"
	"github.com/waypointd/waypoint/mux/wire"
)

// TestCutLongerThanLease cuts the runner off until its jobs are lost, by every
// direction: each is lost once and by rule, what had arrived stays, and the
// runner that comes back ends what still runs and hands in the rest: all the
// output, and how it went, which changes nothing else.
func TestCutLongerThanLease(t *testing.T) {
	t.Parallel()
	ctx := bounded(t, 2*time.Minute)
	s := newRemote(ctx, t, time.Second, 200*time.Millisecond)
	for i, f := range []breach{{name: "both", rule: cutBoth}, {name: "up", rule: cutUp}, {name: "down", rule: cutDown}} {
		a := s.startAbsence(ctx, fmt.Sprintf("cut%d", i))
		s.n.damage(f.rule, atRunner)
		a.lost(ctx)
		s.n.heal()
		a.back(ctx, f.name)
	}
	if n := counted(t, s.server.log, "job lost"); n != 6 {
		t.Errorf("the server lost 6 jobs and says so %d times", n)
	}
	s.checkNothingLeft(ctx)
}

// absence is two jobs whose runner stays away for longer than the lease: one
// runs on, the other ends meanwhile.
type absence struct {
	s              *remote
	tr             traces
	endless, ended *wanderer
}

// wanderer is a job that prints until its file is there.
type wanderer struct {
	script
	id    string
	stop  string
	heard chan *heard // by one who follows from the start
	now   wire.Job    // as it was lost
}

func (s *remote) startAbsence(ctx context.Context, tag string) *absence {
	a := &absence{s: s, tr: tracesIn(s.dir)}
	a.endless, a.ended = a.start(ctx, tag+"a"), a.start(ctx, tag+"b")
	return a
}

// start starts one and waits until some of its output is with the server.
func (a *absence) start(ctx context.Context, tag string) *wanderer {
	t, c := a.s.t, a.s.operator
	t.Helper()
	w := &wanderer{script: script{tag: tag}, stop: filepath.Join(a.s.dir, tag+".stop"), heard: make(chan *heard, 1)}
	text := a.tr.begin(tag) + fmt.Sprintf(`trap 'echo "%[1]s last $i"; exit 0' TERM
i=0; while [ ! -e %[2]s ]; do i=$((i+1)); echo "%[1]s $i"; sleep 0.02; done
echo "%[1]s last $i"
`, tag, w.stop) + a.tr.end(tag)
	w.id = submitOne(ctx, t, c, wire.JobSpec{Operation: wire.OpRun, Command: []string{"sh", "-c", text}, Target: wire.Target{Any: true}}).ID
	go func() { w.heard <- listen(ctx, c, wire.StreamRequest{ID: w.id, Follow: true}) }()
	await(ctx, t, "output of "+tag, func() error {
		j, err := c.Job(ctx, w.id)
		if err == nil && (j.State != wire.Running || j.LogBytes == 0) {
			err = fmt.Errorf("it is %s with %d bytes of output", j.State, j.LogBytes)
		}
		return err
	})
	return w
}

// lost waits until the server has given both up, and has one of them end at
// last: nobody hears of it yet.
func (a *absence) lost(ctx context.Context) {
	t, c := a.s.t, a.s.operator
	t.Helper()
	for _, w := range []*wanderer{a.endless, a.ended} {
		j, err := c.Wait(ctx, w.id)
		if err != nil {
			t.Fatalf("wait for %s: %v", w.tag, err)
		}
		if j.State != wire.Failed || j.Reason != wire.ReasonRunnerLost || !strings.Contains(j.Error, "out of contact") {
			t.Errorf("%s ended as %s %q (%s), want %s %q by rule", w.tag, j.State, j.Reason, j.Error, wire.Failed, wire.ReasonRunnerLost)
		}
		w.now = j
	}
	if err := os.WriteFile(a.ended.stop, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	await(ctx, t, "the late end of "+a.ended.tag, func() error { return a.endTraced(a.ended) })
}

func (a *absence) endTraced(w *wanderer) error {
	traced, err := a.tr.read()
	if err == nil && !has(traced[w.tag], "end") {
		err = fmt.Errorf("it runs")
	}
	return err
}

// back waits for the runner and holds what is left of its jobs.
func (a *absence) back(ctx context.Context, after string) {
	t, s, c := a.s.t, a.s, a.s.operator
	t.Helper()
	s.awaitOnline(ctx, true)
	traced, err := a.tr.read()
	if err != nil {
		t.Fatal(err)
	}
	if err := checkTraces(traced[a.endless.tag], a.endless.now.Attempt, true); err != nil || len(traced[a.endless.tag]) == 0 {
		t.Fatalf("%s: %v: %v", a.endless.tag, err, traced[a.endless.tag])
	}
	if err := checkTraces(traced[a.ended.tag], a.ended.now.Attempt, false); err != nil {
		t.Errorf("%s: %v", a.ended.tag, err)
	}
	pid := traced[a.endless.tag][0].pid
	await(ctx, t, "the end of a lost job's process", func() error {
		if err := syscall.Kill(pid, 0); err != syscall.ESRCH {
			return fmt.Errorf("process %d: %v", pid, err)
		}
		return nil
	})
	if a.endTraced(a.endless) == nil {
		t.Errorf("%s came to its own end", a.endless.tag)
	}
	// It is given jobs again, which may end before it has said all of the lost.
	done := script{tag: a.endless.tag + "z", lines: 3}
	spec := done.spec(a.tr)
	h := listen(ctx, c, wire.StreamRequest{ID: submitOne(ctx, t, c, spec).ID, Follow: true})
	if err := h.check(done); err != nil {
		t.Errorf("after %s, a job of the runner that is back: %v", after, err)
	}
	await(ctx, t, "the runner to hold nothing", func() error {
		entries, err := os.ReadDir(filepath.Join(s.agentState, "jobs"))
		for _, e := range entries {
			if e.IsDir() && !strings.HasPrefix(e.Name(), ".") {
				return fmt.Errorf("%s is left", e.Name())
			}
		}
		return err
	})
	for _, w := range []*wanderer{a.endless, a.ended} {
		await(ctx, t, "the late result of "+w.tag, func() error {
			j, err := c.Job(ctx, w.id)
			if err == nil && j.LateResult == nil {
				err = fmt.Errorf("it is %s with %d bytes of output", j.State, j.LogBytes)
			}
			return err
		})
		a.checkLost(ctx, c, w, after)
	}
}

// checkLost holds that a lost job is as it was when it was lost, but for its late
// result and the rest of its output, which is whole.
func (a *absence) checkLost(ctx context.Context, c *client.Client, w *wanderer, after string) {
	t := a.s.t
	t.Helper()
	j, err := c.Job(ctx, w.id)
	if err != nil {
		t.Fatal(err)
	}
	if j.State != w.now.State || j.Reason != w.now.Reason || j.Error != w.now.Error || j.Attempt != w.now.Attempt ||
		!j.FinishedAt.Equal(w.now.FinishedAt) || j.ExitCode != nil {
		t.Errorf("after %s, lost job %s is %+v, and was %+v", after, w.tag, j, w.now)
	}
	says, state := "had ended by itself with exit code 0", wire.Success
	if w == a.endless {
		says, state = "had been stopped", wire.Canceled
	}
	if l := j.LateResult; l == nil || l.State != state || l.Attempt != j.Attempt || l.LogBytes != j.LogBytes ||
		l.FinishedAt.IsZero() || l.ReportedAt.Before(j.FinishedAt) {
		t.Errorf("after %s, late result of %s: %+v, want %s", after, w.tag, l, state)
	}
	why, err := c.Why(ctx, w.id)
	if err != nil || why.Code != "ended" || !strings.Contains(why.Sentence, "out of contact") || !strings.Contains(why.Sentence, says) {
		t.Errorf("after %s, job why of %s: %q %q, %v", after, w.tag, why.Code, why.Sentence, err)
	}
	live, afterwards := <-w.heard, listen(ctx, c, wire.StreamRequest{ID: w.id, Follow: true})
	for how, h := range map[string]*heard{"live": live, "afterwards": afterwards} {
		length := j.LogBytes
		if h == live {
			length = w.now.LogBytes
		}
		if h.problem != nil || h.last == nil {
			t.Errorf("after %s, %s %s: %v", after, w.tag, how, h.problem)
		} else if h.offset != length || length == 0 || h.last.Reason != wire.ReasonRunnerLost {
			t.Errorf("after %s, %s %s: %d bytes of %d, ended as %q", after, w.tag, how, h.offset, length, h.last.Reason)
		}
	}
	got := afterwards.output[wire.Stdout]
	n := strings.Count(string(got), "\n") - 1
	all := append(numbered(w.tag+" %d\n", n), fmt.Sprintf("%s last %d\n", w.tag, n)...)
	if err := difference(got, all); err != nil {
		t.Errorf("after %s, the output of %s: %v", after, w.tag, err)
	}
	if heard := live.output[wire.Stdout]; !bytes.HasPrefix(got, heard) {
		t.Errorf("after %s, what was heard of %s live (%d bytes) is not the beginning of it", after, w.tag, len(heard))
	}
}
