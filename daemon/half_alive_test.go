package daemon

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/waypointd/waypoint/daemon/queue"
	"github.com/waypointd/waypoint/daemon/store"
	"github.com/waypointd/waypoint/mux/wire"
)

// A runner has two sessions that are half alive: what the old one still
// delivers, once the work stream of the new one has begun, confirms, refuses,
// loses and records nothing.
func TestWhatAnOldSessionDeliversLate(t *testing.T) {
	s, err := New(t.Context(), Config{StateDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	const runner = "one"
	now := time.Now()
	var refs []wire.JobRef
	spec := wire.JobSpec{Operation: wire.OpRun, Command: []string{"true"}, Target: wire.Target{Any: true}}
	if err := s.store.Update(t.Context(), func(tx *store.Tx) error {
		if _, err := tx.Submit([]wire.JobSpec{spec, spec}, now); err != nil {
			return err
		}
		made, err := tx.AssignReady(func() []queue.Runner { return []queue.Runner{{ID: runner, Free: 2}} }, now, 2)
		if err != nil {
			return err
		}
		refs = nil
		for _, a := range made {
			refs = append(refs, a.JobRef)
		}
		return tx.Ack(refs[0], runner, now)
	}); err != nil {
		t.Fatal(err)
	}
	runs, given := refs[0], refs[1]
	s.fleet.put(&attempt{JobRef: runs, runner: runner, running: true, durable: true, startedAt: now})
	s.fleet.put(&attempt{JobRef: given, runner: runner, sure: true, ackBy: now.Add(time.Hour)})
	connect := func() *member {
		t.Helper()
		_, cancel := context.WithCancelCause(t.Context())
		t.Cleanup(func() { cancel(nil) })
		m := &member{visitor: &visitor{id: runner}, orders: newOrders(), replaced: cancel}
		if s.fleet.join(m) != nil {
			t.Fatal("another session is there")
		}
		held := []wire.Held{{JobRef: runs, Started: true}, {JobRef: given}}
		if d := s.fleet.reconcile(m, wire.WorkBegin{Concurrency: 2, Held: held}, time.Second, now); len(d.lost)+len(d.requeue) > 0 {
			t.Fatalf("what it holds differs: %+v", d)
		}
		return m
	}
	old := connect()
	s.fleet.leave(old, now)
	fresh := connect()
	fresh.orders.take()
	old.orders.take()

	s.acknowledged(old, given)
	s.refused(old, wire.Nack{JobRef: given})
	if refs := s.fleet.missing(old, nil); len(refs) > 0 {
		t.Errorf("a late list of what it has loses %v", refs)
	}
	chunks := []wire.Data{{Bytes: []byte("late")}}
	if _, err := s.record(t.Context(), runs, old.visitor, 0, chunks, nil); !errors.Is(err, errNotHere) {
		t.Errorf("late output: %v", err)
	}
	if _, err := s.record(t.Context(), runs, old.visitor, 0, nil, &wire.Result{State: wire.Success}); !errors.Is(err, errNotHere) {
		t.Errorf("a late result: %v", err)
	}
	if _, err := s.fleet.report(runs, old.visitor); wire.KindOf(err) != wire.Unavailable {
		t.Errorf("a late report: %v", err)
	}
	for _, m := range []*member{old, fresh} {
		if said, _ := m.orders.take(); len(said) > 0 {
			t.Errorf("what came late was answered with %+v", said)
		}
	}
	for i, want := range []wire.State{wire.Running, wire.Assigned} {
		if j, err := s.store.Job(t.Context(), refs[i].Job); err != nil || j.State != want || j.Attempt != 1 || j.LogBytes != 0 {
			t.Errorf("job %d is %s, attempt %d, with %d bytes of output, %v; it was %s", i, j.State, j.Attempt, j.LogBytes, err, want)
		}
	}

	// The new one goes on as if nothing had come.
	s.acknowledged(fresh, given)
	if said, _ := fresh.orders.take(); len(said) != 1 || said[0].Start == nil || *said[0].Start != given {
		t.Errorf("its acknowledgement is answered with %+v", said)
	}
	if n, err := s.record(t.Context(), runs, fresh.visitor, 0, chunks, &wire.Result{State: wire.Success, LogBytes: 4}); n != 4 || err != nil {
		t.Errorf("its report: %d bytes, %v", n, err)
	}
}

// What the server before had given a runner that was forgotten is the runner's again
// once it is admitted; until it has said on a new work stream what it holds, it is
// not known whether that was started, so its report is put off, not refused: it
// would be given up, and started again.
func TestReportBeforeTheWorkStreamBeginsAnew(t *testing.T) {
	f := newFleet(func() (ackTimeout, lease time.Duration) { return time.Minute, time.Minute })
	now := time.Now()
	ref := wire.JobRef{Job: "j", Attempt: 1}
	f.restore([]store.Active{{JobRef: ref, RunnerID: "one", State: wire.Assigned}}, nil, map[string]string{"one": "key"}, now)
	connect := func() *member {
		t.Helper()
		_, end := context.WithCancelCause(t.Context())
		t.Cleanup(func() { end(nil) })
		m := &member{visitor: &visitor{id: "one", key: "key"}, orders: newOrders(), replaced: end}
		if f.join(m) != nil {
			t.Fatal("another session is there")
		}
		d := f.reconcile(m, wire.WorkBegin{Concurrency: 1, Held: []wire.Held{{JobRef: ref, Started: true}}}, time.Second, now)
		if len(d.lost)+len(d.requeue)+len(d.forgotten) > 0 {
			t.Fatalf("what it holds differs: %+v", d)
		}
		return m
	}
	m := connect()
	f.mu.Lock()
	f.readmit(m)
	f.mu.Unlock()
	if _, err := f.report(ref, m.visitor); wire.KindOf(err) != wire.Unavailable {
		t.Errorf("a report before it begins anew: %v", err)
	}
	f.leave(m, now)
	m = connect()
	if _, err := f.report(ref, m.visitor); err != nil {
		t.Errorf("a report of what it holds: %v", err)
	}
}

// cramped is a server whose store has no room for a commit before which full says so.
func cramped(t *testing.T, full func() bool) *Server {
	t.Helper()
	s, err := New(t.Context(), Config{StateDir: t.TempDir(), faults: &store.Faults{Gather: func() {}, Begin: func(int) error {
		if full() {
			return errNoSpace
		}
		return nil
	}}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// What a runner gives back is not lost while that is being recorded, though it begins
// anew without it; and where there is no room to record it, it stays the runner's.
func TestBeginsAnewWhileItGivesBack(t *testing.T) {
	var full atomic.Bool
	s, now := cramped(t, full.Load), time.Now()
	acknowledged := func(m *member, job string) wire.JobRef {
		ref := assigned(s.fleet, job, m.id, now)
		s.fleet.ack(m, ref, now)
		return ref
	}
	anew := func(m *member, held ...wire.Held) (*member, differences, *wire.WorkBegun) {
		s.fleet.leave(m, now)
		m = newcomer(m.id, wire.Adopted)
		s.fleet.join(m)
		d := s.fleet.reconcile(m, wire.WorkBegin{Concurrency: 2, Held: held}, time.Second, now)
		orders, _ := m.orders.take()
		return m, d, orders[1].Begun
	}
	m := working(s.fleet, "one")
	ref := acknowledged(m, "recorded")
	if ok, acked := s.fleet.returned(m, ref); !ok || !acked {
		t.Fatal("it is not taken back")
	}
	m, d, _ := anew(m)
	if len(d.lost) > 0 {
		t.Errorf("lost %v, which goes back", d.lost)
	}
	s.fleet.end(ref, true)

	ref = acknowledged(m, "kept")
	full.Store(true)
	s.refused(m, wire.Nack{JobRef: ref})
	if _, _, begun := anew(m, wire.Held{JobRef: ref}); !slices.Contains(begun.Keep, ref) {
		t.Errorf("told %+v, want to keep what was not recorded to go back", begun)
	}
}

// Where there is no room a renewal is tried again, and a rejection that has been recorded
// holds though what follows from it cannot be.
func TestStandingWithoutRoom(t *testing.T) {
	var room atomic.Int64 // for so many commits
	room.Store(100)
	s, now := cramped(t, func() bool { return room.Add(-1) < 0 }), time.Now()
	m := working(s.fleet, "one")
	m.hello.ID, m.key = m.id, "key"
	if err := s.store.Update(t.Context(), func(tx *store.Tx) error {
		return tx.PutRunner(store.RunnerRecord{Runner: wire.Runner{ID: "one", State: wire.Adopted, Fingerprint: "key", TokenExpiry: now.Add(time.Hour)}})
	}); err != nil {
		t.Fatal(err)
	}
	room.Store(0)
	s.renew([]*visitor{m.visitor})
	if d := s.fleet.due(now.Add(renewRetry + time.Minute)); !slices.Contains(d.renew, m.visitor) {
		t.Error("the renewal is not tried again")
	}
	room.Store(1)
	if _, err := s.runnerReject(t.Context(), simClient, wire.RunnerRequest{ID: "one"}); err != nil {
		t.Fatal(err)
	}
	if left := room.Load(); left >= 0 {
		t.Errorf("all that follows is recorded: there is room for %d more", left)
	}
	if len(s.fleet.candidates(nil, now)) > 0 {
		t.Error("it has been rejected, and is given jobs")
	}
}
