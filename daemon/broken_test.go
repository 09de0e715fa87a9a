package daemon

import (
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/waypointd/waypoint/daemon/store"
	"github.com/waypointd/waypoint/mux/wire"
)

// TestStoreThatBreaks: where nobody knows what came of a commit, nobody is told that his
// call has failed: neither who asked for it, nor who only reads.
func TestStoreThatBreaks(t *testing.T) {
	t.Parallel()
	var broken atomic.Bool
	s := newSite(t, Config{faults: &store.Faults{
		Gather: func() {},
		Begin:  func(int) error { return nil },
		Commit: func() error {
			if broken.Load() {
				return errors.New("no word of it")
			}
			return nil
		},
	}})
	session := s.mustHello(t, "memory", operator(""))
	spec := wire.JobSpec{Operation: wire.OpRun, Command: []string{"true"}, Target: wire.Target{Any: true}}
	var made wire.SubmitReply
	if err := session.Call(t.Context(), wire.MethodJobSubmit, wire.SubmitRequest{Jobs: []wire.JobSpec{spec}}, &made); err != nil {
		t.Fatal(err)
	}
	job := wire.JobRequest{ID: made.Jobs[0].ID}
	broken.Store(true)
	told := make(chan error)
	go func() {
		told <- session.Call(t.Context(), wire.MethodJobCancel, wire.CancelRequest{ID: job.ID}, nil)
	}()
	select {
	case <-s.Fatal():
	case <-time.After(10 * time.Second):
		t.Fatal("the store is as good as before")
	}
	go func() { told <- session.Call(t.Context(), wire.MethodJobGet, job, nil) }()
	go func() {
		st, err := session.Open(t.Context(), wire.MethodJobStream, wire.StreamRequest{ID: job.ID, Follow: true})
		if err == nil {
			defer st.Close()
			_, err = st.Recv()
		}
		told <- err
	}()
	for range 3 { // once the process should have ended long ago
		if err := <-told; wire.KindOf(err) != wire.Unavailable {
			t.Errorf("somebody is told %q: %v", wire.KindOf(err), err)
		}
	}
}
