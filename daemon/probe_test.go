package daemon

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/waypointd/waypoint/daemon/store"
	"github.com/waypointd/waypoint/mux/wire"
)

// The probe passes while committer and clock answer, and not while one of them
// does not.
func TestProbe(t *testing.T) {
	s := newSite(t, Config{})
	probe := func() error {
		ctx, cancel := context.WithTimeoutCause(t.Context(), 20*time.Millisecond, errors.New("too late"))
		defer cancel()
		return s.Probe(ctx)
	}
	passes := func(when string) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		if err := s.Probe(ctx); err != nil {
			t.Fatalf("%s: %v", when, err)
		}
	}
	passes("at first")

	held, release := make(chan bool), make(chan bool)
	done := make(chan error, 1)
	go func() {
		done <- s.store.Update(context.Background(), func(*store.Tx) error { close(held); <-release; return nil })
	}()
	<-held
	if err := probe(); err == nil || err.Error() != "commit: wait for the store: too late" {
		t.Errorf("with a committer that hangs: %v", err)
	}
	close(release)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	passes("when the committer goes on")

	// The clock hangs where the fleet does.
	s.fleet.mu.Lock()
	for range 2 { // when there is room for the second it has taken the first, and is on its way to the lock
		s.alarm <- struct{}{}
	}
	err := probe()
	s.fleet.mu.Unlock()
	if err == nil || err.Error() != "ask the clock: too late" {
		t.Errorf("with a clock that hangs: %v", err)
	}
	passes("when the clock goes on")
}

// Whatever the summary says, somebody is told when it says something else.
func TestSummary(t *testing.T) {
	s := newSite(t, Config{})
	await := func(want Summary) {
		t.Helper()
		for {
			got, err := s.Summary(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if got == want {
				return
			}
			select {
			case <-s.News():
			case <-time.After(patience):
				t.Fatalf("%+v, want %+v", got, want)
			}
		}
	}
	await(Summary{Listeners: 3})
	c := s.mustHello(t, "unix", operator(""))
	spec := wire.JobSpec{Operation: wire.OpRun, Command: []string{"true"}, Target: wire.Target{Any: true}}
	if err := c.Call(t.Context(), wire.MethodJobSubmit, wire.SubmitRequest{Jobs: []wire.JobSpec{spec}}, nil); err != nil {
		t.Fatal(err)
	}
	await(Summary{Listeners: 3, Queued: 1})
	session := s.mustHello(t, "runners", remote("r1", s.runnerToken(t, time.Hour)))
	st, err := session.Open(t.Context(), wire.MethodWork, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := st.Send(wire.WorkEvent{Begin: &wire.WorkBegin{Concurrency: 1}}); err != nil {
		t.Fatal(err)
	}
	await(Summary{Listeners: 3, Online: 1, Running: 1})
	session.Close()
	await(Summary{Listeners: 3, Queued: 1}) // it was never confirmed
}
