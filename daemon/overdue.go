package daemon

import (
	"strings"
	"time"

	"github.com/waypointd/waypoint/mux/wire"
)

// overdue is what has to be done because time has passed.
type overdue struct {
	requeue []wire.JobRef // assigned, and certainly not started
	lost    []wire.JobRef // their runner's lease is over
	gone    []absence     // those runners
	rested  bool          // a runner can be given jobs again
	lapsed  []*visitor    // their token has expired
	renew   []*visitor    // their token is to be renewed
	next    time.Time     // when to look again; zero: when something happens
}

// absence is a runner that is away, since when.
type absence struct {
	runner string
	since  time.Time
}

// due looks for what is overdue. Attempts and runners stay as they are, except
// that an acknowledgement comes too late now for what goes back: what was dealt
// with is told by end and forget, the rest is due again.
func (f *fleet) due(now time.Time) (d overdue) {
	f.mu.Lock()
	defer f.mu.Unlock()
	at := func(t time.Time) bool {
		if !now.Before(t) {
			return true
		}
		if d.next.IsZero() || t.Sub(now) < d.next.Sub(now) { // not all of them are by the same clock
			d.next = t
		}
		return false
	}
	for _, a := range f.active {
		if a.sure && !a.running && (a.recalled || a.orphan || f.members[a.runner] == nil || at(a.ackBy)) {
			a.recalled = true
			d.requeue = append(d.requeue, a.JobRef)
		}
	}
	for _, m := range f.members {
		if !m.restUntil.IsZero() && at(m.restUntil) {
			m.restUntil, d.rested = time.Time{}, true
		}
		if st := m.standing; st.Admitted && !st.Expiry.IsZero() && !m.expired && at(st.Expiry) {
			m.expired = true
			d.lapsed = append(d.lapsed, m.visitor)
		}
		if !m.renewAt.IsZero() && at(m.renewAt) {
			m.renewAt = time.Time{}
			d.renew = append(d.renew, m.visitor)
		}
	}
	_, lease := f.timing()
	for id, since := range f.away {
		if !at(since.Add(lease)) {
			continue
		}
		d.gone = append(d.gone, absence{id, since})
		for _, a := range f.held[id] {
			d.lost = append(d.lost, a.JobRef)
		}
	}
	return d
}

// awaiting is how long the runner of an attempt is waited for.
type awaiting struct {
	since, until time.Time
	restored     bool // it has not been here since this process began
	orphan       bool // it has been forgotten
}

// awaited is that of a live attempt whose runner this server waits for.
func (f *fleet) awaited(ref wire.JobRef) (w awaiting, ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	a := f.active[ref.Job]
	if a == nil || a.Attempt != ref.Attempt {
		return w, false
	}
	since, ok := f.away[a.runner]
	if !ok {
		return w, false
	}
	_, lease := f.timing()
	return awaiting{since: since, until: since.Add(lease), restored: since.Equal(f.restored), orphan: a.orphan}, true
}

// waits reports whether a runner is away that may come back.
func (f *fleet) waits() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.away) > 0
}

// resume gives those who are away a whole lease as of now, and reports whether
// there are any.
func (f *fleet) resume(now time.Time) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	for id, since := range f.away {
		if since.Before(now) {
			f.away[id] = now
		}
	}
	return len(f.away) > 0
}

// isAway reports whether the runner has not been back since.
func (f *fleet) isAway(a absence) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.away[a.runner].Equal(a.since)
}

// forget drops the memory of a runner that has been away for too long, once it has
// no attempts any more: one whose loss could not be recorded, for want of room, is due again.
func (f *fleet) forget(a absence) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.away[a.runner].Equal(a.since) && len(f.held[a.runner]) == 0 {
		delete(f.away, a.runner)
	}
}

// beginWithin is how much longer than a lease, which local mode makes very
// short, a local runner may take from its first job to its work stream.
const beginWithin = 10 * time.Second

// expect gives a local runner for which a job is queued, and which does not
// work yet, the time to begin.
func (f *fleet) expect(id string, now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, ok := f.away[id]; !ok && f.members[id] == nil && strings.HasPrefix(id, localPrefix) {
		f.away[id] = now.Add(beginWithin)
	}
}
