package runner

import (
	"context"
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
	changed chan struct{}   // closed, and replaced, at each change; guarded by mu
}

// now is the supervisor in use, nil while it is lost.
func (p *parent) now() supervisor.Jobs {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.jobs
}

func (p *parent) isolation() string {
	if jobs := p.now(); jobs != nil {
		return jobs.Isolation()
	}
	return ""
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
	p.jobs, p.own = jobs, jobs != nil
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

// watch passes the supervisor's events on to the attempts until ctx ends, and
// replaces a supervisor that is lost.
func (r *Runner) watch(ctx context.Context) {
	pause := backoff{min: r.waits.connectMin, max: r.waits.connectMax}
	for {
		began := time.Now()
		err := r.parent.now().Watch(ctx, r.supervised)
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			err = wire.Errorf(wire.Unavailable, "the supervisor watches no more")
		}
		r.log.Error("supervisor lost", "error", err)
		r.parent.set(nil)
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
		if !r.resupervise(ctx, &pause) {
			return
		}
	}
}

// supervised hands an event to its attempt.
func (r *Runner) supervised(ev supervisor.Event) {
	if a := r.attempt(ev.JobRef); a != nil {
		a.supervised(ev)
	}
}

// resupervise gets another supervisor, and sorts who is held by it: an attempt
// that was given to the old one and is not with the new one is bereaved.
func (r *Runner) resupervise(ctx context.Context, pause *backoff) bool {
	for {
		jobs, err := r.cfg.Resupervise(ctx)
		if err == nil {
			var list []supervisor.Status
			if list, err = jobs.List(ctx); err == nil {
				r.sort(ctx, jobs, list)
				r.parent.set(jobs)
				r.log.Info("supervisor found again", "jobs", len(list))
				return true
			}
			jobs.Close()
		}
		if ctx.Err() != nil {
			return false
		}
		r.log.Error("supervisor not found again yet", "error", err)
		if !sleep(ctx, pause.next()) {
			return false
		}
	}
}

// sort compares what a supervisor holds with what this runner gave away, and
// resolves every difference: what only the supervisor knows is stopped there.
func (r *Runner) sort(ctx context.Context, jobs supervisor.Jobs, list []supervisor.Status) {
	theirs := map[wire.JobRef]bool{}
	for _, s := range list {
		theirs[s.JobRef] = true
		if r.attempt(s.JobRef) == nil {
			r.log.Warn("supervisor holds a job that this runner does not: stopping it", "job", s.Job, "attempt", s.Attempt)
			r.attempts.Go(func() { r.expel(ctx, jobs, s.JobRef) })
		}
	}
	for _, a := range r.all() {
		if a.at() == given && !theirs[a.job.JobRef] {
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
