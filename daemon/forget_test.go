package daemon_test

import (
	"testing"
	"time"

	"github.com/waypointd/waypoint/daemon"
	"github.com/waypointd/waypoint/daemon/daemontest"
	"github.com/waypointd/waypoint/mux/client"
	"github.com/waypointd/waypoint/mux/wire"
)

func forget(t *testing.T, c *client.Client, id string) {
	t.Helper()
	if got, err := c.Forget(t.Context(), id); err != nil || got.ID != id {
		t.Fatalf("forget %s: %+v, %v", id, got, err)
	}
	_, err := c.Runner(t.Context(), id)
	wantKind(t, err, wire.NotFound)
}

// Row: forget, from any state: the record goes with its key, the session ends,
// and its token decides what comes next.
func TestForget(t *testing.T) {
	s := daemontest.Start(t, slowly)
	c := s.Client(t)
	for _, tt := range []struct {
		id     string
		runner *daemontest.Runner
		next   wire.RunnerState
	}{
		{"pending", connected(t, s, "pending", nil), wire.Pending},
		{"preadopted", connected(t, s, "preadopted", nil, s.Token(t, wire.RunnerTokenRequest{})), wire.Preadopted},
		{"adopted", s.Adopted(t, "adopted", nil), wire.Preadopted},
		{"rejected", connected(t, s, "rejected", nil, s.Token(t, wire.RunnerTokenRequest{})), wire.Preadopted},
		{"rejected-pending", connected(t, s, "rejected-pending", nil), wire.Pending},
	} {
		r := tt.runner
		if tt.id == "rejected" || tt.id == "rejected-pending" {
			reject(t, c, tt.id)
		}
		session := r.Session
		forget(t, c, tt.id)
		<-session.Done()
		r.MustConnect()
		r.MustBegin()
		if r.Standing.State != tt.next || r.Standing.Admitted != (tt.next == wire.Preadopted) {
			t.Errorf("%s: comes back as %+v", tt.id, r.Standing)
		}
		r.Disconnect()
		forget(t, c, tt.id)
		// The id is free for another key.
		other := connected(t, s, tt.id, nil)
		if other.Standing.State != wire.Pending {
			t.Errorf("%s: another key comes as %+v", tt.id, other.Standing)
		}
	}
	_, err := c.Forget(t.Context(), "nobody")
	wantKind(t, err, wire.NotFound)
}

// started is a runner with a running job that is forgotten.
func forgottenAtWork(t *testing.T, s *daemontest.Server, c *client.Client) (r *daemontest.Runner, job string, held wire.Held) {
	t.Helper()
	r = connected(t, s, "r1", nil, s.Token(t, wire.RunnerTokenRequest{}))
	job = submit(t, c, run(func(j *wire.JobSpec) { j.Target = wire.Target{ID: "r1"} }))[0].ID
	a := r.MustStart()
	s.AwaitJob(t, job, running)
	session := r.Session
	forget(t, c, "r1")
	<-session.Done()
	return r, job, wire.Held{JobRef: a.JobRef, Started: true}
}

// A job that a forgotten runner runs is picked up again if it is readmitted at
// once by its token.
func TestForgottenAndReadmitted(t *testing.T) {
	s := daemontest.Start(t, slowly)
	c := s.Client(t)
	r, job, held := forgottenAtWork(t, s, c)
	other := s.Runner(t, "r1", nil) // who asks under its id meanwhile, in vain, inherits nothing
	other.MustConnect()
	forget(t, c, "r1")
	r.MustConnect()
	if b := r.MustBegin(held); len(b.Keep) != 1 || len(b.Drop) != 0 {
		t.Fatalf("begun %+v", b)
	}
	r.MustFinish(held.JobRef, "", daemontest.Succeeded())
	if j := s.AwaitJob(t, job, ended); j.State != wire.Success || j.Attempt != 1 {
		t.Errorf("job ended as %+v", j)
	}
}

// One that comes back pending keeps its job until it is adopted again, or the
// lease is over; its work stream begins anew then. The server may be restarted
// meanwhile.
func TestForgottenAndPending(t *testing.T) {
	for _, restart := range []bool{false, true} {
		s := daemontest.Start(t, slowly)
		c := s.Client(t)
		r, job, held := forgottenAtWork(t, s, c)
		r.Show()
		r.MustConnect()
		if b := r.MustBegin(held); len(b.Keep) != 1 || r.Standing.State != wire.Pending {
			t.Fatalf("begun %+v as %+v", b, r.Standing)
		}
		if restart {
			s.Restart()
			c = s.Client(t)
			r.MustConnect()
			r.MustBegin(held)
		}
		_, _, err := r.Report(held.JobRef)
		wantKind(t, err, wire.Unavailable)
		r.Say(wire.WorkEvent{Holds: &wire.WorkHolds{}})
		r.Say(wire.WorkEvent{Nack: &wire.Nack{JobRef: held.JobRef, Error: "no"}})
		r.Say(wire.WorkEvent{Ack: &held.JobRef})
		if o, ok := r.Order(20 * time.Millisecond); ok {
			t.Errorf("told %+v", o)
		}
		if j, err := c.Job(t.Context(), job); err != nil || j.State != wire.Running || j.Attempt != 1 {
			t.Fatalf("job is %+v, %v", j, err)
		}
		if _, err := c.Adopt(t.Context(), "r1", ""); err != nil {
			t.Fatal(err)
		}
		token := r.AwaitGrant()
		r.Show(token)
		if st := r.MustAuthenticate(true); !st.Admitted {
			t.Errorf("standing %+v", st)
		}
		wantKind(t, r.AwaitEnd(), wire.Unavailable)
		if b := r.MustBegin(held); len(b.Keep) != 1 {
			t.Fatalf("begun %+v", b)
		}
		r.MustFinish(held.JobRef, "", daemontest.Succeeded())
		if j := s.AwaitJob(t, job, ended); j.State != wire.Success || j.Attempt != 1 {
			t.Errorf("job ended as %+v", j)
		}
	}
}

// Another key under the forgotten id has no part in the job, whatever it says,
// and does not keep its lease alive.
func TestForgottenAndTakenByAnother(t *testing.T) {
	t.Parallel()
	const lease = 3 * time.Second // two sessions have to come within
	s := daemontest.Start(t, daemon.Config{Lease: lease, Heartbeat: time.Hour})
	c := s.Client(t)
	_, job, held := forgottenAtWork(t, s, c)
	other := connected(t, s, "r1", nil)
	for _, h := range [][]wire.Held{nil, {held}} {
		back(t, other, h...)
		_, _, err := other.Report(held.JobRef)
		wantKind(t, err, wire.Unavailable)
		other.Say(wire.WorkEvent{Holds: &wire.WorkHolds{}})
		if j, err := c.Job(t.Context(), job); err != nil || j.State != wire.Running {
			t.Fatalf("job is %+v, %v", j, err)
		}
	}
	if j := s.AwaitJob(t, job, ended); j.Reason != wire.ReasonRunnerLost {
		t.Errorf("job ended as %+v", j)
	}
	if ran := time.Since(inspect(t, c, "r1").FirstSeen); ran < lease/2 {
		t.Errorf("lost after %s", ran)
	}
}

// Rejected while it waits there, it has no part in the job either.
func TestForgottenAndRejected(t *testing.T) {
	s := daemontest.Start(t, slowly)
	c := s.Client(t)
	r, job, held := forgottenAtWork(t, s, c)
	r.Show()
	r.MustConnect()
	r.MustBegin(held)
	reject(t, c, "r1")
	wantKind(t, r.AwaitEnd(), wire.Denied)
	refused(t, r)
	s.Restart()
	refused(t, r)
	if j, err := s.Client(t).Job(t.Context(), job); err != nil || j.State != wire.Running {
		t.Fatalf("job is %+v, %v", j, err)
	}
}

// What a forgotten runner had been given and had not started goes to another.
func TestForgottenBeforeTheStart(t *testing.T) {
	s := daemontest.Start(t, slowly)
	c := s.Client(t)
	r := connected(t, s, "r1", nil, s.Token(t, wire.RunnerTokenRequest{}))
	job := submit(t, c, run())[0]
	a := r.MustAssign()
	forget(t, c, "r1")
	other := s.Adopted(t, "r2", nil)
	if b := other.MustStart(); b.Job != job.ID || b.Attempt != 2 {
		t.Errorf("started %+v", b.JobRef)
	}
	r.MustConnect()
	if b := r.MustBegin(wire.Held{JobRef: a.JobRef}); len(b.Drop) != 1 {
		t.Errorf("begun %+v", b)
	}
}

// Forgotten between its hello and its work stream, its session ends as well.
func TestForgottenBeforeItBegins(t *testing.T) {
	s := daemontest.Start(t, slowly)
	c := s.Client(t)
	r := s.Adopted(t, "r1", nil)
	r.Disconnect()
	r.MustConnect()
	session := r.Session
	forget(t, c, "r1")
	<-session.Done()
	r.MustConnect()
	r.MustBegin()
	if r.Standing.State != wire.Preadopted {
		t.Errorf("standing %+v", r.Standing)
	}
}
