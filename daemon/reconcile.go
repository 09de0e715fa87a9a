package daemon

import (
	"time"

	"github.com/waypointd/waypoint/mux/wire"
)

// reconcile compares what a runner says it holds with what the store gave it:
// every difference is resolved in this one exchange. The member is working
// from here on, and its orders carry the answer.
func (f *fleet) reconcile(m *member, b wire.WorkBegin, heartbeat time.Duration, now time.Time) (d differences) {
	f.mu.Lock()
	defer f.mu.Unlock()
	ackTimeout, _ := f.timing()
	begun := wire.WorkBegun{HeartbeatEvery: wire.Duration(heartbeat)}
	kept := map[string]bool{}
	orphaned := f.orphaned(m.id) // its attempts are none of its business until it is admitted
	var cancels []wire.WorkOrder
	for _, h := range b.Held {
		a := f.find(h.JobRef, m.id)
		if a == nil || a.recalled || orphaned && a.owner != m.key {
			begun.Drop = append(begun.Drop, h.JobRef)
			continue
		}
		if orphaned && a.owner == m.key {
			begun.Keep = append(begun.Keep, h.JobRef)
			continue
		}
		kept[a.Job] = true
		begun.Keep = append(begun.Keep, h.JobRef)
		switch {
		case h.Started && !a.running: // confirmed by the process before this one
			a.running, a.startedAt = true, now
			d.started = append(d.started, a.JobRef)
		case !a.running:
			a.sure, a.ackBy = true, now.Add(ackTimeout)
		}
		if a.cancelSent {
			cancels = append(cancels, wire.WorkOrder{Cancel: &wire.CancelJob{JobRef: a.JobRef}})
		}
	}
	for _, a := range f.held[m.id] {
		if orphaned {
			break
		}
		a.absent = !kept[a.Job]
		switch {
		case kept[a.Job]:
		case a.running && a.recalled: // given back before: whoever hears that deals with it
		case a.running:
			d.lost = append(d.lost, a.JobRef)
		case !a.sure && a.spool != "" && b.Spool != "" && a.spool != b.Spool:
			// The process before this one may have confirmed it, and the runner would not know.
			d.forgotten = append(d.forgotten, a.JobRef)
		default:
			a.recalled = true
			d.requeue = append(d.requeue, a.JobRef)
		}
	}
	m.concurrency, m.draining, m.spool = min(max(b.Concurrency, 0), maxConcurrency), b.Draining, b.Spool
	if f.members[m.id] == m {
		m.working = true
	}
	f.tellStanding(m)
	m.orders.put(wire.WorkOrder{Begun: &begun})
	for _, c := range cancels {
		m.orders.put(c)
	}
	return d
}

// differences are what the store has to be told after a reconcile.
type differences struct {
	requeue   []wire.JobRef // not there, and not started
	lost      []wire.JobRef // started, and not there
	forgotten []wire.JobRef // not there, and nobody knows whether it was started
	started   []wire.JobRef // started, which this process did not know
}

// missing are the running attempts of a runner that it does not have, though
// their start was confirmed to it: whatever went wrong, nobody runs them.
func (f *fleet) missing(m *member, has []wire.JobRef) (lost []wire.JobRef) {
	there := make(map[wire.JobRef]bool, len(has))
	for _, ref := range has {
		there[ref] = true
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.members[m.id] != m {
		return nil // what it had when it was here says nothing of now
	}
	for _, a := range f.held[m.id] {
		if a.running && !a.orphan && !there[a.JobRef] {
			a.absent = true
			lost = append(lost, a.JobRef)
		}
	}
	return lost
}
