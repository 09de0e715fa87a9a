package daemon_test

import (
	"context"
	"testing"
	"time"

	"github.com/waypointd/waypoint/daemon/daemontest"
	"github.com/waypointd/waypoint/mux/client"
	"github.com/waypointd/waypoint/mux/wire"
)

func drain(t *testing.T, c *client.Client, id string, on bool) wire.Runner {
	t.Helper()
	r, err := c.Drain(t.Context(), id, on)
	if err != nil {
		t.Fatalf("drain %s %v: %v", id, on, err)
	}
	return r
}

// The operator's drain survives sessions and restarts; what runs goes on.
func TestDrainByAnOperator(t *testing.T) {
	s := daemontest.Start(t, slowly)
	c := s.Client(t)
	r := s.Adopted(t, "r1", nil)
	r.Hello.Concurrency = 2
	back(t, r)
	submit(t, c, run())
	a := r.MustStart()
	if got := drain(t, c, "r1", true); !got.Draining {
		t.Errorf("%+v", got)
	}
	r.AwaitStanding(func(st wire.Standing) bool { return st.Draining && st.Admitted })
	getsNothing(t, c, r, "runners_draining")
	held := wire.Held{JobRef: a.JobRef, Started: true}
	back(t, r, held)
	s.Restart()
	c = s.Client(t)
	if got := inspect(t, c, "r1"); !got.Draining || got.RunningJobs != 1 {
		t.Errorf("after a restart: %+v", got)
	}
	r.MustConnect()
	r.MustBegin(held)
	if !r.Standing.Draining || !r.Standing.Admitted {
		t.Errorf("standing %+v", r.Standing)
	}
	getsNothing(t, c, r, "runners_draining")
	r.MustFinish(a.JobRef, "", daemontest.Succeeded())
	if got := drain(t, c, "r1", false); got.Draining {
		t.Errorf("%+v", got)
	}
	gets(t, c, r)
	for _, on := range []bool{true, false} {
		_, err := c.Drain(t.Context(), "nobody", on)
		wantKind(t, err, wire.NotFound)
	}
	_, err := c.Drain(t.Context(), "", true)
	wantKind(t, err, wire.BadUsage)
}

// The drain of the host and the operator's do not overwrite each other: each is
// taken back where it was made.
func TestTwoDrains(t *testing.T) {
	s := daemontest.Start(t, slowly)
	c := s.Client(t)
	r := s.Adopted(t, "r1", nil)
	yes, no := true, false
	r.Say(wire.WorkEvent{Drain: &yes})
	for !inspect(t, c, "r1").Draining {
	}
	_, err := c.Drain(t.Context(), "r1", false)
	wantKind(t, err, wire.Conflict)
	drain(t, c, "r1", true)
	_, err = c.Drain(t.Context(), "r1", false)
	wantKind(t, err, wire.Conflict)
	if !inspect(t, c, "r1").Draining {
		t.Error("the operator's resume took the host's drain back")
	}
	r.AwaitStanding(func(st wire.Standing) bool { return st.Draining })
	r.AwaitStanding(func(st wire.Standing) bool { return !st.Draining }) // the operator's is over
	drain(t, c, "r1", true)
	r.Say(wire.WorkEvent{Drain: &no})
	r.Say(wire.WorkEvent{Ack: &wire.JobRef{Job: "nobodys"}}) // answered behind it
	r.AwaitOrder(func(o wire.WorkOrder) bool { return o.Drop != nil })
	if !inspect(t, c, "r1").Draining {
		t.Error("the host's resume took the operator's drain back")
	}
	drain(t, c, "r1", false)
	gets(t, c, r)
}

// Waiting for a runner ends with its last job.
func TestWaitForARunner(t *testing.T) {
	s := daemontest.Start(t, slowly)
	c := s.Client(t)
	_, err := c.WaitIdle(t.Context(), "nobody")
	wantKind(t, err, wire.NotFound)
	r := s.Adopted(t, "r1", nil)
	if got, err := c.WaitIdle(t.Context(), "r1"); err != nil || got.ID != "r1" || got.RunningJobs != 0 {
		t.Errorf("idle: %+v, %v", got, err)
	}
	submit(t, c, run())
	a := r.MustStart()
	drain(t, c, "r1", true)
	soon, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if got, err := c.WaitIdle(soon, "r1"); err == nil {
		t.Errorf("it has a job: %+v", got)
	}
	waited := make(chan error, 1)
	go func() {
		_, err := c.WaitIdle(t.Context(), "r1")
		waited <- err
	}()
	began := time.Now()
	r.MustFinish(a.JobRef, "", daemontest.Succeeded())
	if err := <-waited; err != nil {
		t.Error(err)
	}
	if took := time.Since(began); took > 4*time.Second {
		t.Errorf("it was found out after %s", took)
	}
}
