package daemon

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/waypointd/waypoint/daemon/queue"
	"github.com/waypointd/waypoint/mux/wire"
)

// member is a runner's work stream. Its fields are guarded by fleet.mu, but for
// those that never change.
type member struct {
	*visitor

	heard     heardAt                 // when it last said something; atomic
	replaced  context.CancelCauseFunc // ends its work stream
	heartbeat time.Duration           // as configured when it came

	working     bool // its work stream has begun: it can be given jobs
	concurrency int
	spool       string      // see wire.WorkBegin
	draining    bool        // on its host; see standing for the operator's
	waits       []wire.Wait // as the runner said last
	orders      *orders
	refusals    int       // in a row
	restUntil   time.Time // after a refusal
}

// join adds a session, unless its id has one already, which is returned. Those that
// said hello before it end: what they say of what the runner holds is of the past,
// should they get their turn once this one is gone.
func (f *fleet) join(m *member) (other *member) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if o := f.members[m.id]; o != nil {
		return o
	}
	if m.over {
		m.replaced(m.why)
		return nil
	}
	f.members[m.id] = m
	for _, v := range f.sessions[m.id] {
		if v == m.visitor {
			break
		}
		v.close(errReplaced)
	}
	if !f.orphaned(m.id) {
		delete(f.away, m.id)
	}
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
	if len(f.held[m.id]) > 0 && !f.orphaned(m.id) || m.kind == wire.KindLocal {
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
		if m.takes(now) && !now.Before(m.restUntil) {
			rs = append(rs, queue.Runner{
				ID: m.id, Labels: m.labels, ByIDOnly: m.kind == wire.KindLocal,
				Free: m.concurrency - held[m.id], Spool: m.spool,
			})
		}
	}
	return rs
}

// takes reports whether the runner takes jobs, be it busy or not.
func (m *member) takes(now time.Time) bool {
	return m.working && !m.draining && !m.standing.Draining && m.admitted(now)
}

// restMax bounds the rest of a runner that refuses again and again.
const restMax = time.Minute

// rest gives a runner that refused a job nothing for a while, from a second on.
func (f *fleet) rest(m *member, now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	m.restUntil = now.Add(min(restMax, time.Second<<min(m.refusals, 10)))
	m.refusals++
}

// size is how many sessions there are.
func (f *fleet) size() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.members)
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
	standing    wire.Standing
	admitted    bool
	available   bool         // it takes jobs, be it busy or not
	problem     wire.Problem // the record's
	detail      string
	labels      map[string]string // never changed
	hello       wire.RunnerHello
	version     string
	peer        string
	draining    bool // by an operator, or on its host
	onHost      bool // on its host
	concurrency int
	held        int
	owner       string // see login.owner; of a command line's own
	waits       []wire.Wait
}

func (f *fleet) view(m *member) memberView {
	now := f.now()
	owner := ""
	if m.login != nil {
		owner = m.login.owner()
	}
	return memberView{
		owner: owner,
		id:    m.id, kind: m.kind, standing: m.standing, admitted: m.admitted(now), available: m.takes(now),
		problem: m.problem, detail: m.detail, labels: m.labels, hello: m.hello, version: m.version, peer: m.peerName,
		draining: m.draining || m.standing.Draining, onHost: m.draining, concurrency: m.concurrency, held: len(f.held[m.id]),
		waits: m.waits,
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

// drain sets whether a runner is given nothing more; news says whether that is other
// than before.
func (f *fleet) drain(m *member, on bool) (news bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	news, m.draining = m.draining != on, on
	return news
}

// wait takes note of what a runner says keeps it, and its jobs where they are, of those
// that it has; news says whether it is other than before.
func (f *fleet) wait(m *member, waits []wire.Wait) (news bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var known []wire.Wait
	for _, w := range waits[:min(len(waits), wire.MaxWaits)] {
		if w.JobRef == (wire.JobRef{}) || f.find(w.JobRef, m.id) != nil {
			w.For = plain(w.For)
			known = append(known, w)
		}
	}
	if slices.Equal(m.waits, known) {
		return false
	}
	m.waits = known
	return true
}

// waitsFor is what the runner says keeps a job where it is, "" for nothing.
func (v memberView) waitsFor(ref wire.JobRef) string {
	for _, w := range v.waits {
		if w.JobRef == ref {
			return w.For
		}
	}
	return ""
}

// permitted reports whether a runner may use what jobs need: it may have jobs,
// or it still has some. Of a remote one's sessions it is only that with the
// work stream: no other is told what operators decide.
func (f *fleet) permitted(v *visitor) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if m := f.members[v.id]; v.kind == wire.KindRemote && (m == nil || m.visitor != v) {
		return false
	}
	return !v.over && (v.admitted(f.now()) || f.reports(v.id))
}

// stranger reports whether a runner gets no jobs and has none left.
func (f *fleet) stranger(v *visitor) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return !v.admitted(f.now()) && !f.reports(v.id)
}

// mayReport reports whether a runner that gets no jobs has some to report.
func (f *fleet) mayReport(id string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.reports(id)
}

func (f *fleet) reports(id string) bool { return len(f.held[id]) > 0 && !f.orphaned(id) }
