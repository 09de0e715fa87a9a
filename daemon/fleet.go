package daemon

import (
	"strings"
	"sync"
	"time"

	"github.com/waypointd/waypoint/daemon/metrics"
	"github.com/waypointd/waypoint/daemon/store"
	"github.com/waypointd/waypoint/mux/wire"
)

// fleet is who is connected and which attempts are alive: the server's memory
// of what the store and the runners know. See daemon's package comment for its lock.
type fleet struct {
	timing  func() (ackTimeout, lease time.Duration) // as configured now
	metrics *metrics.Metrics                         // nil where nothing is counted
	now     func() time.Time                         // see Server.now

	mu       sync.Mutex
	members  map[string]*member             // by runner id; those with a session
	active   map[string]*attempt            // by job id; assigned or running
	held     map[string]map[string]*attempt // runner id -> its part of active
	sessions map[string][]*visitor          // by runner id; those of remote runners from the hello on, in their order
	waiters  map[string]chan struct{}       // by runner id; closed when it has no active attempt any more
	owners   map[string]*login              // by runner id; of command lines' own, while they have a session
	owned    chan struct{}                  // closed, and made anew, when owners has changed
	away     map[string]time.Time           // runner id -> since when, for runners with active attempts or kind local
	restored time.Time                      // when this process took up what was going on before it
}

// attempt is one assignment alive.
type attempt struct {
	wire.JobRef
	runner     string
	running    bool      // its start has been confirmed; else assigned
	durable    bool      // the store knows that it is running
	sure       bool      // assigned by this process: not running unless acknowledged here
	assignedAt time.Time // where sure
	spool      string    // of its runner when it was assigned, where not sure; "" is not known
	ackBy      time.Time // while assigned, sure and its runner is connected
	startedAt  time.Time
	logLimit   int64 // bytes of output that its runner was told to keep; 0 is not known
	cancelSent bool
	reported   bool   // a report has been opened
	absent     bool   // its runner has said that it does not have it
	recalled   bool   // it goes back to the queue: its start is confirmed no more
	orphan     bool   // its runner has been forgotten, and not admitted since
	owner      string // the fingerprint of that runner's key; "" where it is not an orphan
}

// maxConcurrency bounds the jobs of one runner: each needs a stream of its session.
const maxConcurrency = 1000

func newFleet(timing func() (ackTimeout, lease time.Duration)) *fleet {
	return &fleet{
		timing:   timing,
		now:      time.Now,
		members:  map[string]*member{},
		sessions: map[string][]*visitor{},
		active:   map[string]*attempt{},
		held:     map[string]map[string]*attempt{},
		waiters:  map[string]chan struct{}{},
		owners:   map[string]*login{},
		owned:    make(chan struct{}),
		away:     map[string]time.Time{},
	}
}

// restore takes up what the store says was going on before this process, and
// the local runners that jobs are queued for.
// orphaned tells whose orphans there are: see Server.orphaned.
func (f *fleet) restore(active []store.Active, awaited []string, orphaned map[string]string, now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.restored = now
	for _, id := range awaited {
		if strings.HasPrefix(id, localPrefix) {
			f.away[id] = now
		}
	}
	for _, a := range active {
		f.put(known(a, orphaned))
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
		if c := f.waiters[a.runner]; c != nil {
			delete(f.waiters, a.runner)
			close(c)
		}
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
	if !a.absent && !a.orphan {
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

// assign takes note of assignments that have been committed and sends them
// out. Those whose runner has gone meanwhile are due at once.
func (f *fleet) assign(made []store.Assigned, now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	ackTimeout, _ := f.timing()
	for _, as := range made {
		a := &attempt{JobRef: as.JobRef, runner: as.RunnerID, sure: true, assignedAt: now, ackBy: now.Add(ackTimeout), logLimit: as.LogLimit}
		f.put(a)
		if m := f.members[as.RunnerID]; m == nil || !m.admitted(now) {
			a.recalled = true // decided while this was being committed
			continue
		}
		f.tell(as.RunnerID, wire.WorkOrder{Assign: &as.Assignment})
	}
}

// ack confirms the start of an assigned attempt. Of one that is not the
// runner's to start it is told drop; of an orphan nothing, until the runner is
// admitted again. What a work stream says late whose runner has begun another
// is nothing: there it has said what it holds.
func (f *fleet) ack(m *member, ref wire.JobRef, now time.Time) (start, drop, durable bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	a := f.find(ref, m.id)
	switch {
	case a != nil && a.orphan, f.members[m.id] != m:
		return false, false, false
	case a == nil || a.recalled:
		return false, true, false
	}
	if !a.running {
		a.running, a.startedAt = true, now
		if a.sure {
			f.metrics.Started(now.Sub(a.assignedAt))
		}
	}
	m.refusals = 0
	return true, false, a.durable
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
	if !a.orphan {
		f.tell(a.runner, wire.WorkOrder{Cancel: &wire.CancelJob{JobRef: a.JobRef, Force: force}})
	}
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

// report opens the report of an attempt; fresh says that nothing of its output
// can be stored yet. The error is Conflict for what is no running attempt of
// this runner, and Unavailable where the runner has to be admitted first, or
// to begin its work stream.
func (f *fleet) report(ref wire.JobRef, v *visitor) (fresh bool, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	a := f.find(ref, v.id)
	switch m := f.members[v.id]; {
	case a == nil:
	case a.orphan:
		return false, wire.Errorf(wire.Unavailable, "runner %q was forgotten: job %s is kept for it until it is admitted again", v.id, ref.Job)
	case m == nil || m.visitor != v:
		return false, wire.Errorf(wire.Unavailable, "runner %q has to begin its work stream first", v.id)
	case a.running:
		fresh = a.sure && !a.reported
		a.reported = true
		return fresh, nil
	case !a.sure: // it may have been started before this process: its runner is to say so first, and not to give it up
		return false, wire.Errorf(wire.Unavailable, "runner %q has to begin its work stream anew, with job %s", v.id, ref.Job)
	}
	return false, wire.Errorf(wire.Conflict, "attempt %d of job %s is not this runner's", ref.Attempt, ref.Job)
}

// logLimitOf is how much output of its job the runner of an attempt was told to keep;
// limit, where another process has told it.
func (f *fleet) logLimitOf(ref wire.JobRef, limit int64) int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	if a := f.active[ref.Job]; a != nil && a.Attempt == ref.Attempt && a.logLimit > 0 {
		return a.logLimit
	}
	return limit
}

// reportLate is report for one that may be lost; whether it is, the store says.
// It may be live here a moment longer.
func (f *fleet) reportLate(ref wire.JobRef, v *visitor) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch m, a := f.members[v.id], f.find(ref, v.id); {
	case m == nil || m.visitor != v:
		return wire.Errorf(wire.Unavailable, "runner %q has to begin its work stream first", v.id)
	case a != nil && a.orphan, v.kind == wire.KindRemote && v.standing.State == wire.Pending:
		return wire.Errorf(wire.Conflict, "attempt %d of job %s is not this runner's", ref.Attempt, ref.Job)
	}
	return nil
}

// lateKey is what proves, besides the id, whose a lost attempt was; of a local
// runner the id is made of the key.
func (v *visitor) lateKey() string {
	if v.kind == wire.KindLocal {
		return v.id
	}
	return v.key
}

// works reports whether the session is the one with the runner's work stream.
func (f *fleet) works(v *visitor) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	m := f.members[v.id]
	return m != nil && m.visitor == v
}

// returned recalls an attempt that the member gives back, where that is its to
// decide and its start is not on record; acked: it has acknowledged it before.
func (f *fleet) returned(m *member, ref wire.JobRef) (ok, acked bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	a := f.find(ref, m.id)
	if a == nil || a.orphan || a.recalled || a.running && a.durable || f.members[m.id] != m {
		return false, false
	}
	a.recalled = true
	return true, a.running
}

// kept notes that an attempt stays with its runner though that wanted to give it back.
func (f *fleet) kept(ref wire.JobRef) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if a := f.active[ref.Job]; a != nil && a.Attempt == ref.Attempt {
		a.recalled = false
	}
}
