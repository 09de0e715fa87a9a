package daemon_test

import (
	"strings"
	"testing"
	"time"

	"github.com/waypointd/waypoint/daemon"
	"github.com/waypointd/waypoint/daemon/daemontest"
	"github.com/waypointd/waypoint/mux/wire"
)

// loseJob has a runner's job lost after some output, and the runner come back.
func loseJob(t *testing.T, s *daemontest.Server, r *daemontest.Runner, output string) *wire.Assignment {
	t.Helper()
	job := submit(t, s.Client(t), run())[0]
	a := r.MustStart()
	st, _, err := r.Report(a.JobRef)
	if err != nil {
		t.Fatal(err)
	}
	if err := st.SendData(wire.Data{Bytes: []byte(output), Stream: wire.Stdout}); err != nil {
		t.Fatal(err)
	}
	if err := st.Flush(); err != nil {
		t.Fatal(err)
	}
	s.AwaitJob(t, job.ID, func(j wire.Job) bool { return j.LogBytes == int64(len(output)) })
	r.Disconnect()
	if j := s.AwaitJob(t, job.ID, ended); j.Reason != wire.ReasonRunnerLost {
		t.Fatalf("job ended as %+v", j)
	}
	r.MustConnect()
	return a
}

var briefly = daemon.Config{Lease: 50 * time.Millisecond}

func TestLateResult(t *testing.T) {
	s := daemontest.Start(t, briefly)
	c := s.Client(t)
	r := s.Adopted(t, "r1", nil)
	const output = "one\ntwo\nthree\n"
	a := loseJob(t, s, r, output[:5])
	was, err := c.Job(t.Context(), a.Job)
	if err != nil {
		t.Fatal(err)
	}
	_, _, err = r.ReportLate(a.JobRef)
	wantKind(t, err, wire.Unavailable) // not before its work stream
	s.Restart()
	r.MustConnect()
	if b := r.MustBegin(wire.Held{JobRef: a.JobRef, Started: true}); len(b.Drop) != 1 {
		t.Fatalf("begun %+v, want to drop the lost job", b)
	}
	wantKind(t, r.Finish(a.JobRef, output, daemontest.Succeeded()), wire.Conflict)
	wantKind(t, r.FinishLate(wire.JobRef{Job: a.Job, Attempt: 2}, output, daemontest.Succeeded()), wire.Conflict)
	wantKind(t, r.FinishLate(wire.JobRef{Job: "01NONE", Attempt: 1}, output, daemontest.Succeeded()), wire.NotFound)
	wantKind(t, s.Adopted(t, "r2", nil).FinishLate(a.JobRef, output, daemontest.Succeeded()), wire.Conflict)
	wantKind(t, r.FinishLate(a.JobRef, output, wire.Result{State: wire.Success, Reason: wire.ReasonOOM}), wire.BadUsage)

	if err := r.FinishLate(a.JobRef, output, wire.Result{State: wire.Success, ExitCode: new(0), FinishedAt: time.Unix(1_763_000_000, 0)}); err != nil {
		t.Fatal(err)
	}
	j, err := c.Job(t.Context(), a.Job)
	if err != nil || j.LateResult == nil || j.LateResult.State != wire.Success || *j.LateResult.ExitCode != 0 || j.LogBytes != int64(len(output)) {
		t.Fatalf("job %+v, %v", j, err)
	}
	if j.State != was.State || j.Reason != was.Reason || j.Error != was.Error || !j.FinishedAt.Equal(was.FinishedAt) || j.ExitCode != nil {
		t.Errorf("job is %+v, and was %+v", j, was)
	}
	if why, err := c.Why(t.Context(), a.Job); err != nil || !strings.Contains(why.Sentence, "out of contact") ||
		!strings.Contains(why.Sentence, "that it had ended by itself with exit code 0 at 2025-11-13T02:13:20Z") {
		t.Errorf("why: %q, %v", why.Sentence, err)
	}
	if got := read(t.Context(), t, c, wire.StreamRequest{ID: a.Job}); got != output {
		t.Errorf("output %q", got)
	}
	wantKind(t, r.FinishLate(a.JobRef, output, daemontest.Succeeded()), wire.Conflict)
}

// An id is not enough: who has it now may be somebody else, or unknown.
func TestLateResultOfAForgottenRunner(t *testing.T) {
	s := daemontest.Start(t, briefly)
	c := s.Client(t)
	r := s.Adopted(t, "r1", nil)
	a := loseJob(t, s, r, "on\n")
	if _, err := c.Forget(t.Context(), "r1"); err != nil {
		t.Fatal(err)
	}
	other := s.Adopted(t, "r1", nil)
	wantKind(t, other.FinishLate(a.JobRef, "on\noff\n", daemontest.Succeeded()), wire.Conflict)
	other.Disconnect()
	if _, err := c.Forget(t.Context(), "r1"); err != nil {
		t.Fatal(err)
	}
	r.Offers = nil
	r.MustConnect()
	r.MustBegin(wire.Held{JobRef: a.JobRef, Started: true})
	wantKind(t, r.FinishLate(a.JobRef, "on\noff\n", daemontest.Succeeded()), wire.Conflict)
	r.MustAdopt()
	if err := r.FinishLate(a.JobRef, "on\noff\n", daemontest.Succeeded()); err != nil {
		t.Error(err)
	}
}

// What was canceled by force is nobody's any more.
func TestNoLateResultOfACanceledJob(t *testing.T) {
	s := daemontest.Start(t, slowly)
	c := s.Client(t)
	r := s.Adopted(t, "r1", nil)
	job := submit(t, c, run())[0]
	a := r.MustStart()
	if _, err := c.Cancel(t.Context(), job.ID, true); err != nil {
		t.Fatal(err)
	}
	if o := r.MustOrder(); o.Drop == nil {
		t.Fatalf("order %+v, want drop", o)
	}
	wantKind(t, r.FinishLate(a.JobRef, "x", daemontest.Succeeded()), wire.Conflict)
}
