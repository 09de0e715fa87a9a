package daemon

import (
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/waypointd/waypoint/daemon/queue"
	"github.com/waypointd/waypoint/daemon/store"
	"github.com/waypointd/waypoint/mux/wire"
)

// A server that did not run while a runner was away gives it a whole lease: the
// runner could not come back.
func TestLeasesBeginAnewBehindAPause(t *testing.T) {
	const lease = time.Minute
	f := newFleet(func() (ackTimeout, _ time.Duration) { return time.Hour, lease })
	if f.waits() || f.resume(time.Now()) {
		t.Fatal("nobody is away, and somebody is waited for")
	}
	left := time.Now()
	job := store.Active{JobRef: wire.JobRef{Job: "j", Attempt: 1}, RunnerID: "r", State: wire.Running}
	f.restore([]store.Active{job}, nil, nil, left)
	if !f.waits() {
		t.Fatal("a runner is away, and not waited for")
	}
	back := left.Add(2 * lease) // as far as the process knows, no time has passed
	if !f.resume(back) {
		t.Fatal("a runner is away, and has no lease")
	}
	if d := f.due(back.Add(lease - 1)); len(d.lost) > 0 || !d.next.Equal(back.Add(lease)) {
		t.Fatalf("within the lease lost %v, next %v", d.lost, d.next)
	}
	if d := f.due(back.Add(lease)); len(d.lost) != 1 {
		t.Fatalf("behind the lease lost %v", d.lost)
	}
	// One that is expected later keeps that time.
	f.away["later"] = back.Add(time.Hour)
	f.resume(back)
	if got := f.away["later"]; !got.Equal(back.Add(time.Hour)) {
		t.Errorf("a later absence is %v", got)
	}
}

// A server that was stopped, behind a restart, takes no lease for over; one that is over while
// the store has no room ends the job once there is some.
func TestLeaseIsOverWithoutRoom(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		var full atomic.Bool
		var stopped atomic.Int64 // for how long, and its timers with it
		start := func() *Server {
			s, err := New(t.Context(), Config{StateDir: dir, Lease: time.Minute, now: func() time.Time { return time.Now().Add(time.Duration(stopped.Load())) }, faults: &store.Faults{
				Gather: func() {},
				Begin: func(int) error {
					if full.Load() {
						return errors.New("no room")
					}
					return nil
				},
			}})
			if err != nil {
				t.Fatal(err)
			}
			return s
		}
		s := start()
		var ref wire.JobRef
		err := s.store.Update(t.Context(), func(tx *store.Tx) error {
			_, err := tx.Submit([]wire.JobSpec{{Operation: wire.OpRun, Command: []string{"true"}, Target: wire.Target{Any: true}}}, s.now())
			if err != nil {
				return err
			}
			made, err := tx.AssignReady(func() []queue.Runner { return []queue.Runner{{ID: "r", Free: 1}} }, s.now(), 1)
			if err != nil {
				return err
			}
			ref = made[0].JobRef
			return tx.Ack(ref, "r", s.now())
		})
		if err := errors.Join(err, s.Close()); err != nil {
			t.Fatal(err)
		}
		s = start()
		defer s.Close()
		time.Sleep(time.Second)
		stopped.Store(int64(time.Hour))
		time.Sleep(50 * time.Second)
		synctest.Wait()
		if j, err := s.store.Job(t.Context(), ref.Job); err != nil || j.State != wire.Running {
			t.Fatalf("nobody could come back for an hour, and the job is %s, %v", j.State, err)
		}
		full.Store(true)
		time.Sleep(90 * time.Second)
		synctest.Wait()
		if j, err := s.store.Job(t.Context(), ref.Job); err != nil || j.State != wire.Running {
			t.Fatalf("without room the job is %s, %v", j.State, err)
		}
		full.Store(false)
		time.Sleep(2 * clockRetry)
		synctest.Wait()
		if j, err := s.store.Job(t.Context(), ref.Job); err != nil || j.Reason != wire.ReasonRunnerLost {
			t.Errorf("with room again the job is %s %s, %v", j.State, j.Reason, err)
		}
	})
}
