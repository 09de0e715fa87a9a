package daemon

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"time"

	"github.com/waypointd/waypoint/daemon/queue"
	"github.com/waypointd/waypoint/mux"
	"github.com/waypointd/waypoint/mux/wire"
)

// member is a runner's session. Its fields are guarded by fleet.mu, but for
// those that never change.
type member struct {
	id      string
	kind    wire.RunnerKind
	labels  map[string]string
	hello   wire.RunnerHello
	peer    *mux.Peer
	login   *login // of the command line that a local one belongs to; else nil
	version string

	heard    heardAt                 // when it last said something; atomic
	replaced context.CancelCauseFunc // ends its work stream

	state       wire.RunnerState
	decided     bool // state was changed since it joined
	working     bool // its work stream has begun: it can be given jobs
	concurrency int
	draining    bool
	orders      *orders
	refusals    int       // in a row
	restUntil   time.Time // after a refusal
}

// whose is the login that the session depends on.
func (m *member) whose() *login { return m.login }

// join adds a session, unless its id has one already, which is returned.
func (f *fleet) join(m *member) (other *member) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if o := f.members[m.id]; o != nil {
		return o
	}
	f.members[m.id] = m
	delete(f.away, m.id)
	return nil
}

// leave removes a session; its running attempts have a lease from now on. What
// this process assigned and never confirmed has not started: see due.
func (f *fleet) leave(m *member, now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.members[m.id] != m {
		return
	}
	delete(f.members, m.id)
	if len(f.held[m.id]) > 0 || m.kind == wire.KindLocal {
		f.away[m.id] = now
	}
}

// candidates are the runners that can be given jobs now, as matching sees
// them: held says how many each has.
func (f *fleet) candidates(held map[string]int, now time.Time) []queue.Runner {
	f.mu.Lock()
	defer f.mu.Unlock()
	rs := make([]queue.Runner, 0, len(f.members))
	for _, m := range f.members {
		if m.working && !m.draining && m.admitted() && !now.Before(m.restUntil) {
			rs = append(rs, queue.Runner{
				ID: m.id, Labels: m.labels, ByIDOnly: m.kind == wire.KindLocal,
				Free: m.concurrency - held[m.id],
			})
		}
	}
	return rs
}

// standing is what the runner is told of itself.
func (m *member) standing() *wire.Standing {
	return &wire.Standing{State: m.state, Admitted: m.admitted()}
}

// admitted reports whether the runner may have jobs.
func (m *member) admitted() bool { return m.state == wire.Adopted || m.state == wire.Preadopted }

// restMax bounds the rest of a runner that refuses again and again.
const restMax = time.Minute

// rest gives a runner that refused a job nothing for a while, from a second on.
func (f *fleet) rest(m *member, now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	m.restUntil = now.Add(min(restMax, time.Second<<min(m.refusals, 10)))
	m.refusals++
}

// online returns the sessions, in the order of their ids.
func (f *fleet) online() []memberView {
	f.mu.Lock()
	defer f.mu.Unlock()
	views := make([]memberView, 0, len(f.members))
	for _, m := range f.members {
		views = append(views, f.view(m))
	}
	slices.SortFunc(views, func(a, b memberView) int { return cmp.Compare(a.id, b.id) })
	return views
}

// memberView is a copy of what a member is at one moment.
type memberView struct {
	id          string
	kind        wire.RunnerKind
	state       wire.RunnerState
	labels      map[string]string
	hello       wire.RunnerHello
	version     string
	working     bool
	draining    bool
	concurrency int
	held        int
}

func (f *fleet) view(m *member) memberView {
	return memberView{
		id: m.id, kind: m.kind, state: m.state, labels: maps.Clone(m.labels), hello: m.hello, version: m.version,
		working: m.working, draining: m.draining, concurrency: m.concurrency, held: len(f.held[m.id]),
	}
}

// get returns one session.
func (f *fleet) get(id string) (memberView, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	m := f.members[id]
	if m == nil {
		return memberView{}, false
	}
	return f.view(m), true
}

// setState changes a connected runner's adoption and tells it.
func (f *fleet) setState(id string, state wire.RunnerState) {
	f.mu.Lock()
	defer f.mu.Unlock()
	m := f.members[id]
	if m == nil {
		return
	}
	m.decided = true
	if m.state != state {
		m.state = state
		f.tell(id, wire.WorkOrder{Standing: m.standing()})
	}
}

// recallState is the adoption that was on record after the runner had joined;
// what was decided meanwhile is newer.
func (f *fleet) recallState(m *member, state wire.RunnerState) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !m.decided {
		m.state = state
	}
}

// drain sets whether a runner is given nothing more.
func (f *fleet) drain(m *member, on bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	m.draining = on
}

// permitted reports whether the runner is connected and may have jobs.
func (f *fleet) permitted(id string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	m := f.members[id]
	return m != nil && m.admitted()
}
