package daemon_test

import (
	"strings"
	"testing"
	"time"

	"github.com/waypointd/waypoint/daemon"
	"github.com/waypointd/waypoint/daemon/daemontest"
	"github.com/waypointd/waypoint/mux/wire"
)

func TestRefusedAssignmentGoesBack(t *testing.T) {
	s := daemontest.Start(t, slowly)
	c := s.Client(t)
	r := s.Adopted(t, "r1", nil)
	job := submit(t, c, run())[0]
	a := r.MustAssign()
	r.Say(wire.WorkEvent{Nack: &wire.Nack{JobRef: a.JobRef, Error: "no room"}})
	j := s.AwaitJob(t, job.ID, queued(1))
	if j.RunnerID != "" || !j.AssignedAt.IsZero() {
		t.Errorf("a job given back is %+v", j)
	}
	other := s.Adopted(t, "r2", nil) // r1 rests after its refusal
	if a := other.MustStart(); a.Job != job.ID || a.Attempt != 2 {
		t.Fatalf("assigned %+v, want attempt 2", a)
	}
}

func TestUnacknowledgedAssignmentGoesBack(t *testing.T) {
	t.Parallel()
	const timeout = 500 * time.Millisecond // the second attempt is acknowledged in time, on any machine
	s := daemontest.Start(t, daemon.Config{AckTimeout: timeout, Lease: time.Hour})
	c := s.Client(t)
	r := s.Adopted(t, "r1", nil)
	job := submit(t, c, run())[0]
	first := r.MustAssign()
	if o := r.MustOrder(); o.Drop == nil || *o.Drop != first.JobRef {
		t.Fatalf("order %+v, want to drop the first attempt", o)
	}
	second := r.MustAssign()
	if second.Job != job.ID || second.Attempt != 2 {
		t.Fatalf("assigned %+v, want attempt 2", second)
	}
	// Too late for the first: it must not start.
	r.Say(wire.WorkEvent{Ack: &first.JobRef})
	r.Say(wire.WorkEvent{Ack: &second.JobRef})
	if o := r.MustOrder(); o.Drop == nil || *o.Drop != first.JobRef {
		t.Fatalf("order %+v for a late acknowledgement, want drop", o)
	}
	if o := r.MustOrder(); o.Start == nil || *o.Start != second.JobRef {
		t.Fatalf("order %+v, want start of attempt 2", o)
	}
	// No timer of the first attempt touches the second.
	if o, ok := r.Order(2 * timeout); ok {
		t.Fatalf("order %+v while the job runs", o)
	}
	wantKind(t, r.Finish(first.JobRef, "", daemontest.Succeeded()), wire.Conflict)
	r.MustFinish(second.JobRef, "", daemontest.Succeeded())
}

// Whoever looks for a runner that is away is told when it left, not when it
// came, also once the server was stopped in between.
func TestLastSeenIsWhenItLeft(t *testing.T) {
	s := daemontest.Start(t, slowly)
	one, _ := s.Adopted(t, "one", nil), s.Adopted(t, "two", nil)
	came := time.Now()
	seen := func(id string) {
		t.Helper()
		c := s.Client(t)
		for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
			r, err := c.Runner(t.Context(), id)
			if err == nil && !r.Online && r.LastSeen.After(came) {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("runner %+v, %v; want it away and last seen after %v", r, err, came)
			}
		}
	}
	one.Disconnect()
	seen("one")
	s.Restart()
	seen("two")
}

func TestRunnerBackWithinTheLease(t *testing.T) {
	s := daemontest.Start(t, slowly)
	c := s.Client(t)
	r := s.Adopted(t, "r1", nil)
	job := submit(t, c, run())[0]
	a := r.MustStart()
	s.AwaitJob(t, job.ID, running)
	r.Disconnect()
	r.MustConnect()
	if b := r.MustBegin(wire.Held{JobRef: a.JobRef, Started: true}); len(b.Keep) != 1 {
		t.Fatalf("begun %+v", b)
	}
	r.MustFinish(a.JobRef, "", daemontest.Succeeded())
	if j := s.AwaitJob(t, job.ID, ended); j.State != wire.Success || j.Attempt != 1 {
		t.Fatalf("job ended as %+v", j)
	}
}

func TestRunnerAwayPastTheLease(t *testing.T) {
	s := daemontest.Start(t, daemon.Config{Lease: 50 * time.Millisecond})
	c := s.Client(t)
	r := s.Adopted(t, "r1", nil)
	job := submit(t, c, run())[0]
	a := r.MustStart()
	s.AwaitJob(t, job.ID, running)
	r.Disconnect()
	if j := s.AwaitJob(t, job.ID, ended); j.State != wire.Failed || j.Reason != wire.ReasonRunnerLost || j.Error == "" {
		t.Fatalf("job ended as %+v", j)
	}
	r.MustConnect()
	// Those who wait for a job hear of its end before the fleet does: the drop
	// may come behind the answer.
	if b := r.MustBegin(wire.Held{JobRef: a.JobRef, Started: true}); len(b.Keep) != 0 {
		r.AwaitOrder(func(o wire.WorkOrder) bool { return o.Drop != nil && *o.Drop == a.JobRef })
	} else if len(b.Drop) != 1 {
		t.Fatalf("begun %+v, want to drop the lost job", b)
	}
}

// An attempt that its runner never confirmed goes back at once when the
// runner goes away: there is nothing to wait for.
func TestUnstartedJobOfARunnerThatLeft(t *testing.T) {
	s := daemontest.Start(t, slowly)
	c := s.Client(t)
	r := s.Adopted(t, "r1", nil)
	job := submit(t, c, run())[0]
	r.MustAssign()
	r.Disconnect()
	s.AwaitJob(t, job.ID, queued(1))
	if a := s.Adopted(t, "r2", nil).MustStart(); a.Attempt != 2 {
		t.Fatalf("attempt %d, want 2", a.Attempt)
	}
}

func TestRunnerThatLostItsJobs(t *testing.T) {
	s := daemontest.Start(t, slowly)
	c := s.Client(t)
	r := s.Adopted(t, "r1", nil)
	job := submit(t, c, run())[0]
	r.MustStart()
	s.AwaitJob(t, job.ID, running)
	r.Disconnect()
	r.MustConnect()
	r.MustBegin() // holds nothing
	if j := s.AwaitJob(t, job.ID, ended); j.Reason != wire.ReasonRunnerLost {
		t.Fatalf("job ended as %+v, want it lost at once", j)
	}
}

// After a restart the server does not know whether an assigned job was
// started; its runner does.
func TestServerRestartWhileAssigned(t *testing.T) {
	for _, tt := range []struct {
		name    string
		held    bool
		started bool
	}{
		{"not held", false, false},
		{"held, not started", true, false},
		{"held and started", true, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := daemontest.Start(t, slowly)
			c := s.Client(t)
			r := s.Adopted(t, "r1", nil)
			job := submit(t, c, run())[0]
			a := r.MustAssign()
			s.Restart()
			r.MustConnect()
			var held []wire.Held
			if tt.held {
				held = append(held, wire.Held{JobRef: a.JobRef, Started: tt.started})
			}
			b := r.MustBegin(held...)
			switch {
			case !tt.held:
				if a = r.MustStart(); a.Job != job.ID || a.Attempt != 2 {
					t.Fatalf("assigned %+v, want attempt 2", a)
				}
			case len(b.Keep) != 1:
				t.Fatalf("begun %+v, want to keep", b)
			case !tt.started:
				r.Say(wire.WorkEvent{Ack: &a.JobRef})
				if o := r.MustOrder(); o.Start == nil {
					t.Fatalf("order %+v, want start", o)
				}
			}
			r.MustFinish(a.JobRef, "", daemontest.Succeeded())
			if j := s.AwaitJob(t, job.ID, ended); j.State != wire.Success || j.StartedAt.IsZero() {
				t.Fatalf("job ended as %+v", j)
			}
		})
	}
}

// A runner that has lost its records does not know whether it had started what
// the server before gave it: that is not started again. One that has them, and
// does not have the job, was never given it; of one of a release that does not say, nobody knows better.
func TestServerRestartWhileAssignedAndRecordsLost(t *testing.T) {
	for _, tt := range []struct {
		name        string
		before, now string
		kind        wire.RunnerKind
		lost        bool
	}{
		{"same records", "a", "a", wire.KindRemote, false},
		{"other records", "a", "b", wire.KindRemote, true},
		{"not said before", "", "b", wire.KindRemote, false},
		{"not said now", "a", "", wire.KindRemote, false},
		{"a command line's own", "", "", wire.KindLocal, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := daemontest.Start(t, slowly)
			r := s.Runner(t, "r1", nil)
			r.Spool, r.Hello.Kind = tt.before, tt.kind
			if tt.kind == wire.KindRemote {
				r.Show(s.Token(t, wire.RunnerTokenRequest{}))
			} else {
				r.Hello.ID = ""
			}
			r.MustConnect()
			r.MustBegin()
			job := submit(t, s.Client(t), run(func(j *wire.JobSpec) { j.Target = wire.Target{ID: r.Session.Welcome().RunnerID} }))[0]
			r.MustAssign()
			s.Restart()
			r.Spool = tt.now
			r.MustConnect()
			r.MustBegin()
			if !tt.lost {
				a := r.MustStart()
				if a.Job != job.ID || a.Attempt != 2 {
					t.Fatalf("assigned %+v, want attempt 2", a)
				}
				r.MustFinish(a.JobRef, "", daemontest.Succeeded())
			}
			j := s.AwaitJob(t, job.ID, ended)
			if tt.lost && (j.Reason != wire.ReasonRunnerLost || j.Attempt != 1 || !strings.Contains(j.Error, "lost its records")) {
				t.Errorf("job ended as %+v, want it lost with the records", j)
			}
			if !tt.lost && j.State != wire.Success {
				t.Errorf("job ended as %+v", j)
			}
			// What this server has not confirmed was not started, whatever the runner has lost since.
			r.Spool = ""
			r.Disconnect()
			r.MustConnect()
			r.MustBegin()
			r.Spool = "c"
			r.Disconnect()
			r.MustConnect()
			r.MustBegin()
			next := submit(t, s.Client(t), run(func(j *wire.JobSpec) { j.Target = wire.Target{ID: r.Session.Welcome().RunnerID} }))[0]
			r.MustAssign()
			r.Spool = "d"
			r.Disconnect()
			r.MustConnect()
			r.MustBegin()
			if a := r.MustStart(); a.Job != next.ID || a.Attempt != 2 {
				t.Fatalf("assigned %+v, want attempt 2 of the next job", a)
			}
		})
	}
}

// A name without end is not kept with each job.
func TestSpoolNameTooLong(t *testing.T) {
	s := daemontest.Start(t, slowly)
	r := s.Runner(t, "r1", nil)
	r.Spool = strings.Repeat("x", wire.MaxSpool+1)
	r.MustConnect()
	_, err := r.Begin()
	wantKind(t, err, wire.BadUsage)
	r.Spool = r.Spool[1:]
	r.MustConnect()
	r.MustBegin()
}

// A job that may be running is never given to a second runner.
func TestServerRestartAndTheRunnerStaysAway(t *testing.T) {
	s := daemontest.Start(t, daemon.Config{Lease: 100 * time.Millisecond})
	c := s.Client(t)
	r := s.Adopted(t, "r1", nil)
	job := submit(t, c, run())[0]
	r.MustAssign()
	s.Restart()
	other := s.Adopted(t, "r2", nil)
	if j := s.AwaitJob(t, job.ID, ended); j.Reason != wire.ReasonRunnerLost || j.Attempt != 1 {
		t.Fatalf("job ended as %+v", j)
	}
	if o, ok := other.Order(20 * time.Millisecond); ok {
		t.Fatalf("order %+v", o)
	}
}

// A cancel asked for while the runner was away reaches it when it is back.
func TestCancelWhileTheRunnerIsAway(t *testing.T) {
	s := daemontest.Start(t, slowly)
	c := s.Client(t)
	r := s.Adopted(t, "r1", nil)
	job := submit(t, c, run())[0]
	a := r.MustStart()
	s.AwaitJob(t, job.ID, running)
	r.Disconnect()
	if _, err := c.Cancel(t.Context(), job.ID, false); err != nil {
		t.Fatal(err)
	}
	s.Restart()
	r.MustConnect()
	r.MustBegin(wire.Held{JobRef: a.JobRef, Started: true})
	if o := r.MustOrder(); o.Cancel == nil || o.Cancel.JobRef != a.JobRef {
		t.Fatalf("order %+v, want cancel", o)
	}
}

// A silent session is given up; the job has its lease from then on.
func TestSilentRunner(t *testing.T) {
	s := daemontest.Start(t, daemon.Config{Heartbeat: 100 * time.Millisecond, Lease: 50 * time.Millisecond})
	c := s.Client(t)
	r := s.Runner(t, "r1", nil)
	r.Show(s.Token(t, wire.RunnerTokenRequest{}))
	r.MustConnect()
	job := submit(t, c, run())[0]
	r.MustBegin() // its silence counts from here on
	r.MustStart()
	if j := s.AwaitJob(t, job.ID, ended); j.Reason != wire.ReasonRunnerLost {
		t.Fatalf("job ended as %+v", j)
	}
}

// Whatever made the two sides differ, the next heartbeat tells.
func TestHeartbeatWithoutTheJob(t *testing.T) {
	s := daemontest.Start(t, slowly)
	c := s.Client(t)
	r := s.Adopted(t, "r1", nil)
	r.Hello.Concurrency = 2
	r.Disconnect()
	r.MustConnect()
	r.MustBegin()
	jobs := submit(t, c, run(), run())
	kept, other := r.MustAssign(), r.MustAssign()
	r.Say(wire.WorkEvent{Ack: &kept.JobRef})
	r.Say(wire.WorkEvent{Ack: &other.JobRef})
	r.Say(wire.WorkEvent{Holds: &wire.WorkHolds{Jobs: []wire.JobRef{kept.JobRef}}})
	if j := s.AwaitJob(t, other.Job, ended); j.Reason != wire.ReasonRunnerLost {
		t.Fatalf("job ended as %+v", j)
	}
	r.MustFinish(kept.JobRef, "", daemontest.Succeeded())
	if j := s.AwaitJob(t, jobs[0].ID, ended); j.State != wire.Success {
		t.Fatalf("job ended as %+v", j)
	}
}

// The queue of a command line that died with the server is not kept for ever.
func TestLocalRunnerGoneWhileTheServerIsAway(t *testing.T) {
	s := daemontest.Start(t, daemon.Config{Lease: 50 * time.Millisecond})
	r := s.Runner(t, "", nil)
	r.Hello.Kind = wire.KindLocal
	r.MustConnect() // never begins to work
	job := submit(t, s.Client(t), run(func(j *wire.JobSpec) { j.Target = wire.Target{ID: r.Session.Welcome().RunnerID} }))[0]
	s.Restart()
	if j := s.AwaitJob(t, job.ID, ended); j.Reason != wire.ReasonRunnerLost || j.Attempt != 0 {
		t.Fatalf("job ended as %+v", j)
	}
}

// A runner that has acknowledged an assignment may give it back as long as its
// start is not on record, and is told to drop it. When it is, the job stays the
// runner's while that holds it, and can be started after all.
func TestAcknowledgedAndGivenBack(t *testing.T) {
	s := daemontest.Start(t, slowly)
	c := s.Client(t)
	r := s.Adopted(t, "r1", nil)
	job := submit(t, c, run())[0]
	a := r.MustStart()
	s.AwaitJob(t, job.ID, func(j wire.Job) bool { return j.State == wire.Running })
	r.Say(wire.WorkEvent{Nack: &wire.Nack{JobRef: a.JobRef, Error: "stopping"}})
	r.Say(wire.WorkEvent{Holds: &wire.WorkHolds{Jobs: []wire.JobRef{a.JobRef}}})
	r.Say(wire.WorkEvent{Ack: &a.JobRef})
	if o := r.MustOrder(); o.Start == nil || *o.Start != a.JobRef {
		t.Fatalf("order %+v, want to start it", o)
	}
	r.MustFinish(a.JobRef, "", daemontest.Succeeded())
	if j := s.AwaitJob(t, job.ID, ended); j.State != wire.Success || j.Attempt != 1 {
		t.Errorf("job ended as %+v", j)
	}

	for range 20 {
		job = submit(t, c, run())[0]
		a = r.MustAssign()
		r.Say(wire.WorkEvent{Ack: &a.JobRef})
		r.Say(wire.WorkEvent{Nack: &wire.Nack{JobRef: a.JobRef, Error: "stopping"}})
		r.Say(wire.WorkEvent{Ack: &a.JobRef})
		if o := r.MustOrder(); o.Start == nil {
			t.Fatalf("order %+v, want to start it", o)
		}
		o := r.MustOrder()
		if o.Drop != nil && *o.Drop == a.JobRef {
			s.AwaitJob(t, job.ID, queued(1))
			return
		}
		if o.Start == nil { // its start is on record already
			t.Fatalf("order %+v, want to drop it", o)
		}
		r.MustFinish(a.JobRef, "", daemontest.Succeeded())
	}
	t.Error("none was given back")
}
