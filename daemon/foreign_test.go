package daemon_test

import (
	"testing"
	"time"

	"github.com/waypointd/waypoint/daemon"
	"github.com/waypointd/waypoint/daemon/daemontest"
	"github.com/waypointd/waypoint/mux/wire"
)

// What a runner says of another's job changes nothing.
func TestForeignJob(t *testing.T) {
	s := daemontest.Start(t, slowly)
	c := s.Client(t)
	r := s.Adopted(t, "r1", nil)
	job := submit(t, c, run())[0]
	a := r.MustStart()
	s.AwaitJob(t, job.ID, running)
	for _, other := range []*daemontest.Runner{s.Adopted(t, "r2", nil), s.Runner(t, "pending", nil)} {
		if other.Session == nil {
			other.MustConnect()
			other.MustBegin()
		}
		other.Say(wire.WorkEvent{Nack: &wire.Nack{JobRef: a.JobRef, Error: "not today"}})
		other.Say(wire.WorkEvent{Holds: &wire.WorkHolds{}})
		other.Say(wire.WorkEvent{Ack: &a.JobRef})
		if o := other.MustOrder(); o.Drop == nil {
			t.Errorf("order %+v, want drop", o)
		}
		_, _, err := other.Report(a.JobRef)
		wantKind(t, err, wire.Conflict)
		other.Disconnect()
	}
	if j, err := c.Job(t.Context(), job.ID); err != nil || j.State != wire.Running || j.Attempt != 1 {
		t.Fatalf("job is %+v, %v", j, err)
	}
	r.MustFinish(a.JobRef, "mine\n", daemontest.Succeeded())
	if j := s.AwaitJob(t, job.ID, ended); j.State != wire.Success {
		t.Fatalf("job ended as %+v", j)
	}
}

// A job that the runner has started is shown as running after a restart of the
// server, also where it says nothing for hours.
func TestRestartRecordsTheStart(t *testing.T) {
	s := daemontest.Start(t, slowly)
	r := s.Adopted(t, "r1", nil)
	job := submit(t, s.Client(t), run())[0]
	a := r.MustAssign()
	s.Restart()
	r.MustConnect()
	r.MustBegin(wire.Held{JobRef: a.JobRef, Started: true})
	s.AwaitJob(t, job.ID, running)
}

// A command line that dies between its submit and its first word as a runner
// leaves no job behind that waits for ever.
func TestLocalRunnerThatNeverWorks(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes as long as such a runner has to begin")
	}
	t.Parallel()
	s := daemontest.Start(t, daemon.Config{Lease: 50 * time.Millisecond})
	r := s.Runner(t, "", nil)
	r.Hello.Kind = wire.KindLocal
	r.MustConnect()
	job := submit(t, s.Client(t), run(func(j *wire.JobSpec) { j.Target = wire.Target{ID: r.Session.Welcome().RunnerID} }))[0]
	r.Disconnect()
	if j := s.AwaitJob(t, job.ID, ended); j.Reason != wire.ReasonRunnerLost {
		t.Fatalf("job ended as %+v", j)
	}
}

// A runner that sends without end and reads nothing is given up.
func TestRunnerThatDoesNotRead(t *testing.T) {
	s := daemontest.Start(t, slowly)
	r := s.Runner(t, "r1", nil)
	r.MustConnect()
	st, err := r.Session.Open(t.Context(), wire.MethodWork, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	if err := st.Send(wire.WorkEvent{Begin: &wire.WorkBegin{}}); err != nil {
		t.Fatal(err)
	}
	for range 1_000_000 {
		if err := st.Send(wire.WorkEvent{Ack: &wire.JobRef{Job: "nobodys", Attempt: 1}}); err != nil {
			return
		}
	}
	t.Error("a million answers were kept for it")
}
