package daemon

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/waypointd/waypoint/daemon/queue"
	"github.com/waypointd/waypoint/daemon/store"
	"github.com/waypointd/waypoint/mux"
	"github.com/waypointd/waypoint/mux/wire"
)

// fleet is who is connected and which attempts are alive: the server's memory
// of what the store and the runners know. See daemon's package comment for its lock.
type fleet struct {
	ackTimeout time.Duration
	lease      time.Duration

	mu      sync.Mutex
	members map[string]*member             // by runner id; those with a session
	active  map[string]*attempt            // by job id; assigned or running
	held    map[string]map[string]*attempt // runner id -> its part of active
	away    map[string]time.Time           // runner id -> since when, for runners with active attempts or kind local
}

// member is a runner's session. Its fields are guarded by fleet.mu, but for
// those that never change.
type member struct {
	id      string
	kind    wire.RunnerKind
	labels  map[string]string
	hello   wire.RunnerHello
	peer    *mux.Peer
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

// attempt is one assignment alive.
type attempt struct {
	wire.JobRef
	runner     string
	running    bool      // its start has been confirmed; else assigned
	durable    bool      // the store knows that it is running
	sure       bool      // assigned by this process: not running unless acknowledged here
	ackBy      time.Time // while assigned, sure and its runner is connected
	startedAt  time.Time
	cancelSent bool
	reported   bool // a report has been opened
	absent     bool // its runner has said that it does not have it
	recalled   bool // it goes back to the queue: its start is confirmed no more
}

// maxConcurrency bounds the jobs of one runner: each needs a stream of its session.
const maxConcurrency = 1000

func newFleet(ackTimeout, lease time.Duration) *fleet {
	return &fleet{
		ackTimeout: ackTimeout, lease: lease,
		members: map[string]*member{},
		active:  map[string]*attempt{},
		held:    map[string]map[string]*attempt{},
		away:    map[string]time.Time{},
	}
}

// restore takes up what the store says was going on before this process, and
// the local runners that jobs are queued for.
func (f *fleet) restore(active []store.Active, awaited []string, now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, id := range awaited {
		if strings.HasPrefix(id, localPrefix) {
			f.away[id] = now
		}
	}
	for _, a := range active {
		f.put(&attempt{
			JobRef: a.JobRef, runner: a.RunnerID,
			running: a.State == wire.Running, durable: a.State == wire.Running,
			cancelSent: a.CancelRequested,
		})
		f.away[a.RunnerID] = now
	}
}

// put adds an attempt. One before it of the same job is over.
func (f *fleet) put(a *attempt) {
	if old := f.active[a.Job]; old != nil {
		f.remove(old)
		f.tellDrop(old)
	}
	f.active[a.Job] = a
	if f.held[a.runner] == nil {
		f.held[a.runner] = map[string]*attempt{}
	}
	f.held[a.runner][a.Job] = a
}

func (f *fleet) remove(a *attempt) {
	if f.active[a.Job] != a {
		return
	}
	delete(f.active, a.Job)
	delete(f.held[a.runner], a.Job)
	if len(f.held[a.runner]) == 0 {
		delete(f.held, a.runner)
	}
}

// find returns the live attempt that ref names, of this runner.
func (f *fleet) find(ref wire.JobRef, runner string) *attempt {
	a := f.active[ref.Job]
	if a == nil || a.Attempt != ref.Attempt || a.runner != runner {
		return nil
	}
	return a
}

// end forgets an attempt that the store has ended or put back, and tells its
// runner to drop it where tell is set.
func (f *fleet) end(ref wire.JobRef, tell bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	a := f.active[ref.Job]
	if a == nil || a.Attempt != ref.Attempt {
		return
	}
	f.remove(a)
	if tell {
		f.tellDrop(a)
	}
}

// tellDrop has a runner forget an attempt that it may have.
func (f *fleet) tellDrop(a *attempt) {
	if !a.absent {
		f.tell(a.runner, wire.WorkOrder{Drop: &a.JobRef})
	}
}

// tell says something on a runner's work stream. Where that has not begun,
// reconcile is going to say what holds then.
func (f *fleet) tell(runner string, o wire.WorkOrder) {
	if m := f.members[runner]; m != nil && m.working {
		m.orders.put(o)
	}
}

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

// admitted reports whether the runner may have jobs.
func (m *member) admitted() bool { return m.state == wire.Adopted || m.state == wire.Preadopted }

// assign takes note of assignments that have been committed and sends them
// out. Those whose runner has gone meanwhile are due at once.
func (f *fleet) assign(made []store.Assigned, now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, as := range made {
		f.put(&attempt{JobRef: as.JobRef, runner: as.RunnerID, sure: true, ackBy: now.Add(f.ackTimeout)})
		f.tell(as.RunnerID, wire.WorkOrder{Assign: &as.Assignment})
	}
}

// ack confirms the start of an assigned attempt; false means that it is not
// this runner's to start.
func (f *fleet) ack(ref wire.JobRef, runner string, now time.Time) (ok, durable bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	a := f.find(ref, runner)
	if a == nil || a.recalled {
		return false, false
	}
	if !a.running {
		a.running, a.startedAt = true, now
	}
	if m := f.members[runner]; m != nil {
		m.refusals = 0
	}
	return true, a.durable
}

// started is when a running attempt was confirmed, zero when the store knows.
func (f *fleet) started(ref wire.JobRef) (at time.Time, pending bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	a := f.active[ref.Job]
	if a == nil || a.Attempt != ref.Attempt || a.durable || !a.running {
		return time.Time{}, false
	}
	return a.startedAt, true
}

// settled notes that the store knows that the attempt runs.
func (f *fleet) settled(ref wire.JobRef) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if a := f.active[ref.Job]; a != nil && a.Attempt == ref.Attempt {
		a.durable = true
	}
}

// cancel passes a cancel on to the runner of an active job, once for each force.
func (f *fleet) cancel(job string, force bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	a := f.active[job]
	if a == nil {
		return
	}
	a.cancelSent = true
	f.tell(a.runner, wire.WorkOrder{Cancel: &wire.CancelJob{JobRef: a.JobRef, Force: force}})
}

// reconcile compares what a runner says it holds with what the store gave it:
// every difference is resolved in this one exchange. The member is working
// from here on, and its orders carry the answer.
func (f *fleet) reconcile(m *member, b wire.WorkBegin, heartbeat time.Duration, now time.Time) (d differences) {
	f.mu.Lock()
	defer f.mu.Unlock()
	begun := wire.WorkBegun{HeartbeatEvery: wire.Duration(heartbeat)}
	kept := map[string]bool{}
	var cancels []wire.WorkOrder
	for _, h := range b.Held {
		a := f.find(h.JobRef, m.id)
		if a == nil || a.recalled {
			begun.Drop = append(begun.Drop, h.JobRef)
			continue
		}
		kept[a.Job] = true
		begun.Keep = append(begun.Keep, h.JobRef)
		switch {
		case h.Started && !a.running: // confirmed by the process before this one
			a.running, a.startedAt = true, now
			d.started = append(d.started, a.JobRef)
		case !a.running:
			a.sure, a.ackBy = true, now.Add(f.ackTimeout)
		}
		if a.cancelSent {
			cancels = append(cancels, wire.WorkOrder{Cancel: &wire.CancelJob{JobRef: a.JobRef}})
		}
	}
	for _, a := range f.held[m.id] {
		a.absent = !kept[a.Job]
		switch {
		case kept[a.Job]:
		case a.running:
			d.lost = append(d.lost, a.JobRef)
		default:
			a.recalled = true
			d.requeue = append(d.requeue, a.JobRef)
		}
	}
	m.concurrency, m.draining, m.working = min(max(b.Concurrency, 0), maxConcurrency), b.Draining, true
	m.orders.put(wire.WorkOrder{State: m.state})
	m.orders.put(wire.WorkOrder{Begun: &begun})
	for _, c := range cancels {
		m.orders.put(c)
	}
	return d
}

// differences are what the store has to be told after a reconcile.
type differences struct {
	requeue []wire.JobRef // not there, and not started
	lost    []wire.JobRef // started, and not there
	started []wire.JobRef // started, which this process did not know
}

// missing are the running attempts of a runner that it does not have, though
// their start was confirmed to it: whatever went wrong, nobody runs them.
func (f *fleet) missing(m *member, has []wire.JobRef) (lost []wire.JobRef) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, a := range f.held[m.id] {
		if a.running && !slices.Contains(has, a.JobRef) {
			a.absent = true
			lost = append(lost, a.JobRef)
		}
	}
	return lost
}

// overdue is what has to be done because time has passed.
type overdue struct {
	requeue []wire.JobRef // assigned, and certainly not started
	lost    []wire.JobRef // their runner's lease is over
	gone    []absence     // those runners
	rested  bool          // a runner can be given jobs again
	next    time.Time     // when to look again; zero: when something happens
}

// absence is a runner that is away, since when.
type absence struct {
	runner string
	since  time.Time
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
		if d.next.IsZero() || t.Before(d.next) {
			d.next = t
		}
		return false
	}
	for _, a := range f.active {
		if a.sure && !a.running && (a.recalled || f.members[a.runner] == nil || at(a.ackBy)) {
			a.recalled = true
			d.requeue = append(d.requeue, a.JobRef)
		}
	}
	for _, m := range f.members {
		if !m.restUntil.IsZero() && at(m.restUntil) {
			m.restUntil, d.rested = time.Time{}, true
		}
	}
	for id, since := range f.away {
		if !at(since.Add(f.lease)) {
			continue
		}
		d.gone = append(d.gone, absence{id, since})
		for _, a := range f.held[id] {
			d.lost = append(d.lost, a.JobRef)
		}
	}
	return d
}

// isAway reports whether the runner has not been back since.
func (f *fleet) isAway(a absence) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.away[a.runner].Equal(a.since)
}

// forget drops the memory of a runner that has been away for too long.
func (f *fleet) forget(a absence) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.away[a.runner].Equal(a.since) {
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
		f.tell(id, wire.WorkOrder{State: state})
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

// runnerOf is whose a live attempt is; "" when it is not live.
func (f *fleet) runnerOf(ref wire.JobRef) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	if a := f.active[ref.Job]; a != nil && a.Attempt == ref.Attempt {
		return a.runner
	}
	return ""
}

// report reports whether ref is a live attempt of this runner, running, so that
// it may report; fresh, that nothing of its output can be stored yet.
func (f *fleet) report(ref wire.JobRef, runner string) (ok, fresh bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	a := f.find(ref, runner)
	if a == nil || !a.running {
		return false, false
	}
	fresh = a.sure && !a.reported
	a.reported = true
	return true, fresh
}
