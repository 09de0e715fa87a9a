package runner

import (
	"fmt"
	"maps"
	"slices"

	"github.com/waypointd/waypoint/mux/wire"
)

// begin is what the work stream opens with. Attempts that are given up
// already, or whose result the server has, are not held any more.
func (r *Runner) begin() wire.WorkBegin {
	drain := r.wantsNothing()
	r.mu.Lock()
	defer r.mu.Unlock()
	b := wire.WorkBegin{Concurrency: r.cfg.Concurrency, Draining: drain, Spool: r.spool}
	for ref, a := range r.held {
		if started, live := a.standing(); live {
			b.Held = append(b.Held, wire.Held{JobRef: ref, Started: started})
		}
	}
	for ref, n := range r.newer {
		b.Held = append(b.Held, wire.Held{JobRef: ref, Started: n.begun})
	}
	return b
}

// holds are the attempts that are held and not given up.
func (r *Runner) holds() []wire.JobRef {
	r.mu.Lock()
	defer r.mu.Unlock()
	refs := make([]wire.JobRef, 0, len(r.held))
	for ref, a := range r.held {
		if _, live := a.standing(); live {
			refs = append(refs, ref)
		}
	}
	return slices.AppendSeq(refs, maps.Keys(r.newer))
}

// CancelAll asks for the end of every job held, at once with force. Their ends
// are reported like any other.
func (r *Runner) CancelAll(force bool) {
	for _, a := range r.all() {
		a.cancel(force)
	}
}

// begun sorts what is held by the server's answer. An attempt that waits to be
// started is acknowledged again, also while draining: whether the server has
// confirmed it already on the session that was lost cannot be known, and the
// answer, Start or Drop, can.
func (r *Runner) begun(w *workStream, b wire.WorkBegun) {
	for _, ref := range b.Drop {
		if a := r.attempt(ref); a != nil {
			a.giveUp("it is not this runner's any more")
		}
		r.dropNewer(ref)
	}
	for _, a := range r.all() {
		started, live := a.standing()
		switch {
		case !live || slices.Contains(b.Drop, a.job.JobRef):
		case started:
			a.permit()
		default:
			a.askAgain()
			w.send(wire.WorkEvent{Ack: &a.job.JobRef})
		}
	}
}

// obey follows one order. What cannot be sent is lost with the session, and
// settled at the beginning of the next.
func (r *Runner) obey(w *workStream, o wire.WorkOrder) {
	switch {
	case o.Standing != nil:
		r.stand(*o.Standing, nil)
	case o.Grant != nil:
		r.granted(*o.Grant)
	case o.Assign != nil:
		r.assign(w, *o.Assign)
	case o.Start != nil:
		if a := r.attempt(*o.Start); a != nil {
			a.permit()
		} else {
			w.send(wire.WorkEvent{Nack: &wire.Nack{JobRef: *o.Start, Error: "this runner does not hold it"}})
		}
	case o.Drop != nil:
		if a := r.attempt(*o.Drop); a != nil {
			a.giveUp("it is not this runner's any more")
		}
		r.dropNewer(*o.Drop)
	case o.Cancel != nil:
		if a := r.attempt(o.Cancel.JobRef); a != nil {
			a.cancel(o.Cancel.Force)
		} else if r.isNewer(o.Cancel.JobRef) {
			r.stopNewer(o.Cancel.JobRef, o.Cancel.Force)
		}
	}
}

// assign records an assignment and acknowledges it, in the goroutine that
// reads orders: so an attempt is held exactly when it is on disk, whatever
// happens to the session meanwhile.
func (r *Runner) assign(w *workStream, job wire.Assignment) {
	if a := r.attempt(job.JobRef); a != nil {
		if started, live := a.standing(); live && !started {
			w.send(wire.WorkEvent{Ack: &job.JobRef})
		}
		return
	}
	refusal, err := r.take(job)
	if err != nil {
		r.spoolFailed(err)
		refusal = err.Error()
	}
	if refusal != "" {
		r.log.Warn("job refused", "job", job.Job, "attempt", job.Attempt, "runner", r.name(), "why", refusal)
		w.send(wire.WorkEvent{Nack: &wire.Nack{JobRef: job.JobRef, Error: refusal}})
		return
	}
	w.send(wire.WorkEvent{Ack: &job.JobRef})
	if r.cfg.Once {
		r.tellDrain()
	}
}

// take records an assignment and holds it, or says why it does not; an error
// is the spool's. Whoever has drained the runner and finds it idle can rely on
// it.
func (r *Runner) take(job wire.Assignment) (refusal string, err error) {
	r.intake.Lock()
	defer r.intake.Unlock()
	if refusal = r.refusal(); refusal != "" {
		return refusal, nil
	}
	a, err := r.record(job)
	if err != nil {
		return "", err
	}
	r.adopt(a)
	return "", nil
}

// refusal is why no further job can be taken, "" when one can.
func (r *Runner) refusal() string {
	unsupervised := r.unsupervised()
	r.mu.Lock()
	defer r.mu.Unlock()
	busy := len(r.newer)
	for _, a := range r.held {
		if a.busy() {
			busy++
		}
	}
	switch {
	case r.stopping:
		return "the runner is draining"
	case r.drained:
		return "the runner is drained on its host"
	case unsupervised != "":
		return unsupervised
	case r.sick != nil:
		return "the runner's disk cannot be written"
	case r.cfg.Once && len(r.held) > 0:
		return "the runner takes one job only"
	case busy >= r.cfg.Concurrency:
		return fmt.Sprintf("the runner has %d jobs already and runs no more at once", busy)
	}
	return ""
}

// spoolFailed stops the taking of jobs until the spool can be written again: a
// runner that only refuses would get the same job again and again.
func (r *Runner) spoolFailed(err error) {
	told := r.unnamed(err)
	r.mu.Lock()
	first := r.sick == nil
	r.sick = told
	r.mu.Unlock()
	if !first {
		return
	}
	r.log.Error("spool cannot be written: taking no jobs", "dir", r.cfg.Dir, "error", err)
	r.tellDrain()
	r.attempts.Go(r.awaitSpool)
}

// awaitSpool takes jobs again once the spool can be written.
func (r *Runner) awaitSpool() {
	for {
		if !sleep(r.ctx, r.waits.spool) {
			return
		}
		if r.probeSpool() == nil {
			break
		}
	}
	r.log.Info("spool can be written again", "dir", r.cfg.Dir)
	r.mu.Lock()
	r.sick = nil
	r.mu.Unlock()
	r.tellDrain()
}

// attempt returns one that is held, nil where there is none.
func (r *Runner) attempt(ref wire.JobRef) *attempt {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.held[ref]
}

// all returns those held.
func (r *Runner) all() []*attempt {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := make([]*attempt, 0, len(r.held))
	for _, a := range r.held {
		all = append(all, a)
	}
	return all
}

func (r *Runner) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.held)
}

func (r *Runner) name() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.id
}

// adopt holds an attempt from now on and starts its goroutine.
func (r *Runner) adopt(a *attempt) {
	r.hold(a)
	r.attempts.Go(a.live)
}

func (r *Runner) hold(a *attempt) {
	r.mu.Lock()
	r.held[a.job.JobRef] = a
	r.mu.Unlock()
	poke(r.counted)
}

// release holds an attempt no more.
func (r *Runner) release(a *attempt) {
	r.mu.Lock()
	delete(r.held, a.job.JobRef)
	close(r.released)
	r.released = make(chan struct{})
	r.mu.Unlock()
	poke(r.counted)
	if r.cfg.Once {
		r.tellDrain()
	}
}
