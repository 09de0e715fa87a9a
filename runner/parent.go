package runner

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/waypointd/waypoint/mux/wire"
	"github.com/waypointd/waypoint/runner/supervisor"
)

// parent is the supervisor in use: the parent of the jobs. One behind a socket
// can be lost, and replaced by another, or by a new connection to the same.
type parent struct {
	mu      sync.Mutex
	jobs    supervisor.Jobs // nil while it is lost; guarded by mu
	own     bool            // made by Resupervise, so closed here; guarded by mu
	leaving bool            // it starts nothing more; guarded by mu
	met     bool            // there has been one; guarded by mu
	strange error           // why the one that is there cannot be spoken with; nil while jobs is not; guarded by mu
	kind    string          // isolation of the last one; guarded by mu
	changed chan struct{}   // closed, and replaced, at each change; guarded by mu
}

// now is the supervisor in use, nil while it is lost.
func (p *parent) now() supervisor.Jobs {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.jobs
}

// isolation is that of the supervisor in use, or of the last one.
func (p *parent) isolation() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.jobs != nil {
		p.kind = p.jobs.Isolation()
	}
	return p.kind
}

// state is how far there is one.
func (p *parent) state() wire.SupervisorState {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.strange != nil:
		return wire.SupervisorIncompatible
	case p.jobs == nil:
		return wire.SupervisorMissing
	case p.leaving:
		return wire.SupervisorLeaving
	}
	return wire.SupervisorReady
}

// leave takes note that a supervisor starts nothing more, and reports whether
// that is news of the one in use.
func (p *parent) leave(jobs supervisor.Jobs) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.jobs != jobs || p.leaving {
		return false
	}
	p.leaving = true
	return true
}

// taker is wait, and waits for the next one while this one is leaving.
func (p *parent) taker(ctx context.Context) (supervisor.Jobs, error) {
	for {
		p.mu.Lock()
		jobs, leaving, changed := p.jobs, p.leaving, p.changed
		p.mu.Unlock()
		if jobs != nil && !leaving {
			return jobs, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// wait is now, and waits while it is lost.
func (p *parent) wait(ctx context.Context) (supervisor.Jobs, error) {
	for {
		p.mu.Lock()
		jobs, changed := p.jobs, p.changed
		p.mu.Unlock()
		if jobs != nil {
			return jobs, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// settled waits until there is one, or one that cannot be spoken with.
func (p *parent) settled(ctx context.Context) {
	for {
		p.mu.Lock()
		known, changed := p.jobs != nil || p.strange != nil, p.changed
		p.mu.Unlock()
		if known {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// problem is why the supervisor that is there cannot be spoken with, nil where
// it can and where there is none.
func (p *parent) problem() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.strange
}

// estrange takes note that the supervisor that is there cannot be spoken with, or
// with nil that it has gone, and reports whether that is news.
func (p *parent) estrange(why error) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if text(p.strange) == text(why) || p.jobs != nil {
		return false
	}
	p.strange = why
	close(p.changed)
	p.changed = make(chan struct{})
	return true
}

// left waits until the supervisor in use is another than jobs.
func (p *parent) left(ctx context.Context, jobs supervisor.Jobs) bool {
	for {
		p.mu.Lock()
		now, changed := p.jobs, p.changed
		p.mu.Unlock()
		if now != jobs {
			return true
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return false
		}
	}
}

func (p *parent) set(jobs supervisor.Jobs) {
	p.mu.Lock()
	old, own := p.jobs, p.own
	p.jobs, p.own, p.leaving, p.strange = jobs, jobs != nil, false, nil
	p.met = p.met || jobs != nil
	close(p.changed)
	p.changed = make(chan struct{})
	p.mu.Unlock()
	if own && old != nil {
		old.Close()
	}
}

// close closes what was made by Resupervise.
func (p *parent) close() {
	p.mu.Lock()
	jobs, own := p.jobs, p.own
	p.own = false
	p.mu.Unlock()
	if own && jobs != nil {
		jobs.Close()
	}
}

// unsupervised is why no job can be given to the supervisor for some time, ""
// when one can. One that is lost and not Managed is replaced at once.
func (r *Runner) unsupervised() string {
	switch state := r.parent.state(); {
	case state == wire.SupervisorLeaving:
		return "the supervisor of the runner's jobs is stopping"
	case state == wire.SupervisorIncompatible:
		return "the supervisor of the runner's jobs is of another release, with which this one cannot speak: it is replaced once its jobs have ended"
	case state == wire.SupervisorMissing && (r.cfg.Managed || !r.parent.known()):
		return "the runner has no supervisor for its jobs"
	}
	return ""
}

// known reports whether there has been a supervisor.
func (p *parent) known() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.met
}

// left takes note that a supervisor starts nothing more.
func (r *Runner) left(jobs supervisor.Jobs) {
	r.intake.Lock() // no job is being taken for it when this returns
	news := r.parent.leave(jobs)
	r.intake.Unlock()
	if news {
		r.log.Info("supervisor is leaving: no jobs are taken until there is another", "jobs", r.count())
		r.tellDrain()
		r.retell()
	}
}

// watch passes the supervisor's events on to the attempts until ctx ends, and
// replaces a supervisor that is lost.
func (r *Runner) watch(ctx context.Context) {
	pause := backoff{min: r.waits.connectMin, max: r.waits.connectMax}
	retired := "" // the version that was asked to retire last
	for {
		if jobs := r.parent.now(); jobs != nil {
			began := time.Now()
			asked := r.retire(ctx, jobs, &retired)
			err := jobs.Watch(ctx, func(ev supervisor.Event) { r.supervised(jobs, ev) })
			if ctx.Err() != nil {
				return
			}
			if err == nil {
				err = wire.Errorf(wire.Unavailable, "the supervisor watches no more")
			}
			if asked || r.parent.state() == wire.SupervisorLeaving {
				r.log.Info("supervisor has left", "why", err)
			} else {
				r.log.Error("supervisor lost", "error", err)
			}
			r.parent.set(nil)
			r.readEnds()
			r.tellDrain()
			r.retell()
			if r.cfg.Resupervise == nil {
				r.end(err)
				return
			}
			// The first time at once: jobs wait. One that is lost again and again
			// is not asked for in a loop.
			if time.Since(began) > pause.last {
				pause.last = 0
			} else if !sleep(ctx, pause.next()) {
				return
			}
		}
		if !r.resupervise(ctx, &pause) {
			return
		}
	}
}

// retire asks a supervisor of another version to end once no job runs, so that
// its place is taken by one of this agent's; it reports whether it did. One
// of the version that was asked to retire before is left alone: whoever starts them has no other.
func (r *Runner) retire(ctx context.Context, jobs supervisor.Jobs, before *string) bool {
	_, own, _ := strings.Cut(r.cfg.Software, " ")
	version := jobs.Version()
	if r.cfg.Resupervise == nil || version == "" || version == own || version == *before {
		return false
	}
	err := jobs.Retire(ctx)
	switch k := wire.KindOf(err); {
	case k == "", k == wire.Unavailable: // it may have gone before its answer had left
		*before = version
		r.log.Info("supervisor is of another version and retires once no job runs", "supervisor", version, "version", own)
		return true
	case ctx.Err() == nil:
		r.log.Warn("supervisor of another version does not retire", "supervisor", version, "version", own, "error", err)
	}
	return false
}

// supervised takes an event of the supervisor's, or hands it to its attempt.
func (r *Runner) supervised(jobs supervisor.Jobs, ev supervisor.Event) {
	if ev.Leaving {
		r.left(jobs)
		return
	}
	if a := r.attempt(ev.JobRef); a != nil {
		a.supervised(ev)
	}
}

// readEnds finds the ends that a supervisor has recorded and may not have come
// to say: nobody else will say them before there is another.
func (r *Runner) readEnds() {
	for _, a := range r.all() {
		if a.at() != given {
			continue
		}
		if _, err := supervisor.ReadEnd(a.dir); err == nil {
			a.exited.open()
		}
	}
}

// holding is what a supervisor holds.
type holding struct {
	list []supervisor.Status
	refs map[wire.JobRef]bool
	// alone: what an agent has given to a supervisor and is not in the list
	// will never be begun.
	alone bool
}

func (h holding) has(ref wire.JobRef) bool { return h.refs[ref] }

// takeOver ends what agents before this one, and this one's lost connections,
// may have on their way to the supervisor, and returns what it holds. One that is too old to know
// of Takeover is not asked again for it.
func takeOver(ctx context.Context, jobs supervisor.Jobs) (holding, error) {
	h := holding{refs: map[wire.JobRef]bool{}}
	err := jobs.Takeover(ctx)
	h.alone = err == nil
	if err != nil && wire.KindOf(err) != wire.Unimplemented {
		return h, fmt.Errorf("take supervisor over: %w", err)
	}
	if h.list, err = jobs.List(ctx); err != nil {
		return h, fmt.Errorf("list supervised jobs: %w", err)
	}
	for _, s := range h.list {
		h.refs[s.JobRef] = true
	}
	return h, nil
}

// estranged takes note that the supervisor that is there shares no version with this
// agent, or with nil that it has gone.
func (r *Runner) estranged(why error) {
	if !r.parent.estrange(why) {
		return
	}
	if why != nil {
		r.log.Warn("supervisor is of a release that cannot be spoken with",
			"jobs", r.count(), "runner", r.name(), "error", why,
			"hint", "its jobs go on, and others are taken when the last of them has ended; to end them at once: systemctl restart waypoint-jobs")
	}
	r.tellDrain()
	r.retell()
}

// lookAfter is for a supervisor that cannot be spoken with: what its jobs write, and how they
// end, is on the disk, so that is looked at until the supervisor is to be asked again.
func (r *Runner) lookAfter(ctx context.Context) bool {
	for end := time.Now().Add(r.waits.estranged); time.Now().Before(end); {
		r.readEnds()
		for _, a := range r.all() {
			poke(a.wake)
		}
		if !sleep(ctx, r.waits.look) {
			return false
		}
	}
	return true
}

// resupervise gets another supervisor, and sorts who is held by it.
func (r *Runner) resupervise(ctx context.Context, pause *backoff) bool {
	for {
		// One that cannot be spoken with answers at once; where nobody answers it has gone.
		gone := time.AfterFunc(r.waits.estranged, func() {
			r.readEnds()
			r.estranged(nil)
		})
		jobs, err := r.cfg.Resupervise(ctx)
		gone.Stop()
		if wire.KindOf(err) == wire.Unimplemented && ctx.Err() == nil {
			r.estranged(err)
			if !r.lookAfter(ctx) {
				return false
			}
			continue
		}
		if err == nil {
			var theirs holding
			if theirs, err = takeOver(ctx, jobs); err == nil {
				r.removeLeftovers()
				r.sort(ctx, jobs, theirs)
				r.parent.set(jobs)
				r.log.Info("supervisor found", "jobs", len(theirs.list), "pid", jobs.PID(), "version", jobs.Version())
				r.tellDrain()
				r.retell()
				r.introduce()
				return true
			}
			jobs.Close()
		}
		if ctx.Err() != nil {
			return false
		}
		r.log.Error("supervisor not found yet", "error", err)
		if !sleep(ctx, pause.next()) {
			return false
		}
	}
}

// introduce has the runner say hello again where it has said of itself what
// is so no more.
func (r *Runner) introduce() {
	kind := r.parent.isolation()
	r.mu.Lock()
	w, stale := r.work, r.isolation != kind
	r.mu.Unlock()
	if w != nil && stale {
		w.end(errStale)
	}
}

// sort compares what a supervisor holds with what this runner gave away, and
// resolves every difference: what only the supervisor knows is stopped there; what only this
// runner knows is given to the supervisor anew, if none has begun it, or else
// bereaved. What is being asked for at this moment finds out for itself.
func (r *Runner) sort(ctx context.Context, jobs supervisor.Jobs, theirs holding) {
	for _, s := range theirs.list {
		if r.attempt(s.JobRef) == nil && !r.isNewer(s.JobRef) {
			r.log.Warn("supervisor holds a job that this runner does not: stopping it", "job", s.Job, "attempt", s.Attempt)
			r.attempts.Go(func() { r.expel(ctx, jobs, s.JobRef) })
		}
	}
	for _, a := range r.all() {
		switch {
		case !a.isGiven(), theirs.has(a.job.JobRef):
		case a.unbegun(theirs):
			poke(a.unheld)
		default:
			a.bereave()
		}
	}
}

// expel stops and forgets a job that nobody wants.
func (r *Runner) expel(ctx context.Context, jobs supervisor.Jobs, ref wire.JobRef) {
	if err := jobs.Stop(ctx, ref, true); err != nil && wire.KindOf(err) != wire.NotFound {
		return
	}
	watch, done := context.WithCancel(ctx)
	defer done()
	jobs.Watch(watch, func(ev supervisor.Event) {
		if ev.JobRef == ref && ev.Ended {
			done()
		}
	})
	if err := jobs.Forget(ctx, ref); err != nil && ctx.Err() == nil {
		r.log.Warn("supervisor does not forget a job", "job", ref.Job, "attempt", ref.Attempt, "error", err)
	}
}
