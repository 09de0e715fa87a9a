package daemon

import (
	"slices"
	"strings"
	"time"

	"github.com/waypointd/waypoint/daemon/store"
	"github.com/waypointd/waypoint/mux/wire"
)

// errGiven is why the work stream of a runner ends that another server has
// given something.
var errGiven = wire.Errorf(wire.Unavailable, "another server has given jobs to the runner: begin anew with what it holds")

// places are the runners that work here, by their ids.
func (f *fleet) places() map[string]place {
	f.mu.Lock()
	defer f.mu.Unlock()
	here := make(map[string]place, len(f.members))
	for id, m := range f.members {
		if m.working {
			here[id] = place{m, f.view(m).text()}
		}
	}
	return here
}

// describe is how the store describes a member.
func (f *fleet) describe(m *member) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.view(m).text()
}

// joined reports whether the runner has a work stream here, begun or not.
func (f *fleet) joined(id string) bool { return f.member(id) != nil }

func (f *fleet) member(id string) *member {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.members[id]
}

// known is what an active job of the store is here.
func known(a store.Active, orphaned map[string]string) *attempt {
	owner, orphan := orphaned[a.RunnerID]
	return &attempt{
		JobRef: a.JobRef, runner: a.RunnerID,
		running: a.State == wire.Running, durable: a.State == wire.Running, spool: a.Spool,
		cancelSent: a.CancelRequested, orphan: orphan, owner: owner,
	}
}

// takeUp adds attempts that other servers kept. Their runners have a whole lease
// to come here; one that is here says anew what it holds.
func (f *fleet) takeUp(taken []store.Active, orphaned map[string]string, now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, a := range taken {
		m, is := f.members[a.RunnerID], f.find(a.JobRef, a.RunnerID)
		if m != nil && is != nil {
			continue // it was here all the time
		}
		f.put(known(a, orphaned))
		switch {
		case m == nil:
			f.away[a.RunnerID] = now
		case m.working:
			m.orders.end(errGiven)
		}
	}
}

// takeIn makes the attempts of a runner that is about to begin those that the
// store says it has. What only this process knows of its own assignments stays.
func (f *fleet) takeIn(m *member, held []store.Active, own string, orphaned map[string]string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.members[m.id] != m {
		return
	}
	is := map[wire.JobRef]bool{}
	for _, a := range held {
		is[a.JobRef] = true
		if a.Keeper != own || f.find(a.JobRef, m.id) == nil {
			f.put(known(a, orphaned))
		}
	}
	for _, a := range f.held[m.id] {
		if !is[a.JobRef] {
			f.remove(a)
		}
	}
}

// depart forgets a runner that is connected to another server, with all that it
// holds: that server keeps it.
func (f *fleet) depart(m *member) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.members[m.id] != m {
		return false
	}
	delete(f.members, m.id)
	m.replaced(errReplaced)
	for _, a := range f.held[m.id] {
		f.remove(a)
	}
	delete(f.away, m.id)
	return true
}

// disclaim forgets an attempt that another server keeps, unless its runner is here.
func (f *fleet) disclaim(ref wire.JobRef) {
	f.mu.Lock()
	defer f.mu.Unlock()
	a := f.active[ref.Job]
	if a == nil || a.Attempt != ref.Attempt || f.members[a.runner] != nil {
		return
	}
	f.remove(a)
	if len(f.held[a.runner]) == 0 && !strings.HasPrefix(a.runner, localPrefix) {
		delete(f.away, a.runner)
	}
}

// await gives local runners that jobs are queued for a lease to come.
func (f *fleet) await(awaited []string, now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, id := range awaited {
		if _, ok := f.away[id]; !ok && f.members[id] == nil && strings.HasPrefix(id, localPrefix) {
			f.away[id] = now
		}
	}
}

// mine are the attempts among the jobs named, or all where all is set.
func (f *fleet) mine(jobs []string, all bool) (refs []wire.JobRef) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if all {
		for _, a := range f.active {
			refs = append(refs, a.JobRef)
		}
		return refs
	}
	for _, id := range jobs {
		if a := f.active[id]; a != nil {
			refs = append(refs, a.JobRef)
		}
	}
	return refs
}

// isHere reports whether the runner of an attempt works here.
func (f *fleet) isHere(runner string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	m := f.members[runner]
	return m != nil && m.working
}

// pass passes a cancel on that another server has recorded, if that has not been done.
func (f *fleet) pass(ref wire.JobRef) (news bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	a := f.active[ref.Job]
	if a == nil || a.Attempt != ref.Attempt || a.cancelSent {
		return false
	}
	a.cancelSent = true
	if !a.orphan {
		f.tell(a.runner, wire.WorkOrder{Cancel: &wire.CancelJob{JobRef: a.JobRef}})
	}
	return true
}

// hasRoom reports whether a runner here could be given a job.
func (f *fleet) hasRoom(now time.Time) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, m := range f.members {
		if m.takes(now) && len(f.held[m.id]) < m.concurrency {
			return true
		}
	}
	return false
}

// strange are those of the store's active jobs that are this server's and that
// it does not know.
func (f *fleet) strange(active []store.Active, own string) (out []store.Active) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, a := range active {
		if a.Keeper == own && f.find(a.JobRef, a.RunnerID) == nil {
			out = append(out, a)
		}
	}
	return slices.Clip(out)
}
