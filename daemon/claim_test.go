package daemon

import (
	"slices"
	"testing"
	"time"

	"github.com/waypointd/waypoint/daemon/adoption"
	"github.com/waypointd/waypoint/daemon/store"
	"github.com/waypointd/waypoint/mux"
	"github.com/waypointd/waypoint/mux/wire"
)

// newcomer is a runner whose work stream is about to begin.
func newcomer(id string, state wire.RunnerState) *member {
	standing := wire.Standing{State: state, Admitted: state == wire.Adopted}
	return &member{visitor: &visitor{id: id, standing: standing, ended: make(chan struct{}), bounds: mux.NewBounds(minStreams, 0)}, orders: newOrders()}
}

// working is a runner with a work stream.
func fixed(ackTimeout, lease time.Duration) func() (time.Duration, time.Duration) {
	return func() (time.Duration, time.Duration) { return ackTimeout, lease }
}

func working(f *fleet, id string) *member {
	m := newcomer(id, wire.Adopted)
	f.join(m)
	f.reconcile(m, wire.WorkBegin{Concurrency: 1}, time.Second, time.Now())
	m.orders.take()
	return m
}

func assigned(f *fleet, job, runner string, now time.Time) wire.JobRef {
	ref := wire.JobRef{Job: job, Attempt: 1}
	f.assign([]store.Assigned{{RunnerID: runner, Assignment: wire.Assignment{JobRef: ref}}}, now)
	return ref
}

// From the moment that an assignment is taken back its start is not confirmed
// any more, though the store does not know yet: it would run twice.
func TestLateAcknowledgement(t *testing.T) {
	f := newFleet(fixed(time.Second, time.Minute))
	working(f, "one")
	now := time.Now()
	ref := assigned(f, "job", "one", now)
	if d := f.due(now); len(d.requeue) != 0 {
		t.Fatalf("due at once: %v", d.requeue)
	}
	late := now.Add(time.Second)
	if d := f.due(late); !slices.Contains(d.requeue, ref) {
		t.Fatalf("not due in time: %v", d.requeue)
	}
	if start, drop, _ := f.ack(f.members["one"], ref, late); start || !drop {
		t.Error("the start of what is taken back was confirmed")
	}
	// Nor is it kept by a runner that comes back now.
	again := newcomer("one", wire.Adopted)
	f.leave(f.members["one"], late)
	f.join(again)
	d := f.reconcile(again, wire.WorkBegin{Held: []wire.Held{{JobRef: ref}}}, time.Second, late)
	orders, _ := again.orders.take()
	if begun := orders[1].Begun; len(begun.Keep) != 0 || !slices.Contains(begun.Drop, ref) {
		t.Errorf("told %+v, want to drop it", begun)
	}
	if !slices.Contains(d.requeue, ref) {
		t.Error("the store is not told")
	}
	// The store may have been full: it is still due.
	if d := f.due(late); !slices.Contains(d.requeue, ref) {
		t.Error("forgotten before the store had it")
	}
}

// What was being committed while its runner was rejected goes back at once, and the
// runner never hears of it.
func TestAssignedWhileItIsRejected(t *testing.T) {
	f := newFleet(fixed(time.Hour, time.Hour))
	m, now := working(f, "one"), time.Now()
	f.stand(m.visitor, adoption.Outcome{Standing: wire.Standing{State: wire.Rejected}}, nil, nil, now)
	ref := assigned(f, "job", "one", now)
	told, _ := m.orders.take()
	if slices.ContainsFunc(told, func(o wire.WorkOrder) bool { return o.Assign != nil }) || !slices.Contains(f.due(now).requeue, ref) {
		t.Errorf("told %+v, want the job to go back", told)
	}
}

// What a runner is told before its work stream has begun would come before its
// state; reconcile says it instead.
func TestNothingIsSaidBeforeTheState(t *testing.T) {
	f := newFleet(fixed(time.Hour, time.Hour))
	m := newcomer("one", wire.Pending)
	f.join(m)
	f.stand(m.visitor, adoption.Outcome{Standing: wire.Standing{State: wire.Adopted, Admitted: true}}, nil, nil, time.Now())
	ref := assigned(f, "job", "one", time.Now()) // committed while it came back
	f.cancel("job", false)
	d := f.reconcile(m, wire.WorkBegin{Concurrency: 1}, time.Second, time.Now())
	orders, _ := m.orders.take()
	if len(orders) != 2 || !orders[0].Admits() || orders[1].Begun == nil {
		t.Errorf("told %+v, want the state and what it holds", orders)
	}
	if !slices.Contains(d.requeue, ref) {
		t.Errorf("differences %+v: what it was not told of must go back", d)
	}
}

// A runner that came back and left again while the clock was busy with its
// absence has a lease anew.
func TestAbsenceIsForgottenOnce(t *testing.T) {
	f := newFleet(fixed(time.Hour, time.Second))
	now := time.Now()
	m := working(f, "one")
	f.ack(m, assigned(f, "job", "one", now), now)
	f.leave(m, now)
	d := f.due(now.Add(time.Second))
	if len(d.gone) != 1 || len(d.lost) != 1 {
		t.Fatalf("due %+v", d)
	}
	f.join(m)
	f.leave(m, now.Add(2*time.Second))
	if f.isAway(d.gone[0]) {
		t.Error("the old absence still counts")
	}
	f.forget(d.gone[0])
	if d := f.due(now.Add(3 * time.Second)); len(d.gone) != 1 {
		t.Error("the new absence was forgotten with the old one")
	}
}

// A command's own runner is known before it asks for work: a lease as short as
// that of local mode must not be what it has to begin in.
func TestExpectedRunnerHasTimeToBegin(t *testing.T) {
	f := newFleet(fixed(time.Hour, 10*time.Millisecond))
	now := time.Now()
	f.expect("cli-one", now)
	if d := f.due(now.Add(beginWithin - time.Second)); len(d.gone) != 0 {
		t.Errorf("given up before it could begin: %+v", d)
	}
	if d := f.due(now.Add(beginWithin + time.Second)); len(d.gone) != 1 {
		t.Error("never given up")
	}
}

// A runner that talks and never reads is not given memory without end.
func TestConcurrencyIsBounded(t *testing.T) {
	f := newFleet(fixed(time.Hour, time.Hour))
	m := newcomer("one", wire.Adopted)
	f.join(m)
	for concurrency, want := range map[int]int{-1: 0, 7: 7, 1 << 40: maxConcurrency} {
		f.reconcile(m, wire.WorkBegin{Concurrency: concurrency}, time.Second, time.Now())
		if got := f.candidates(nil, time.Now())[0].Free; got != want {
			t.Errorf("concurrency %d gives room for %d, want %d", concurrency, got, want)
		}
	}
}
