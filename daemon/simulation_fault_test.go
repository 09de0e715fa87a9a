package daemon

import (
	"crypto/ed25519"
	"slices"
	"time"

	"github.com/waypointd/waypoint/mux/wire"
)

// step is one thing that somebody does, or that goes wrong, and some time.
func (l *life) step() {
	w := l.w
	r := w.runners[w.rng.IntN(len(w.runners))]
	switch n := w.rng.IntN(100); {
	case n < 14:
		l.client()
	case n < 16:
		w.full.Store(!w.full.Load())
		w.say("the disk is full: %v", w.full.Load())
	case n < 18:
		if k := r.link; k != nil {
			r.cut("the connection breaks")
			k.give("the connection breaks")
		}
	case n < 20: // the server goes on with what it has heard, and waits for more
		r.cut("the way to the server is gone")
	case n < 22: // the agent goes on with what it has heard
		if r.link != nil {
			r.link.give("the way to the runner is gone")
		}
	case n < 23: // its jobs go on
		r.cut("the agent dies")
	case n < 24:
		r.die()
	case n < 25 && w.rng.IntN(3) == 0:
		r.lose()
	case n < 26 && w.rng.IntN(4) == 0:
		r.rekey()
	case n < 30:
		l.operator([]string{"adopt", "adopt", "adopt", "reject", "forget", "drain", "drain", "resume"}[w.rng.IntN(8)], r)
	case n < 31:
		r.drainHost(w.rng.IntN(2) == 0)
	case n < 32:
		l.setClock()
	case n < 35:
		l.usurp(r)
	case n < 38:
		r.handOver()
	default:
		for range 4 {
			w.runners[w.rng.IntN(len(w.runners))].step()
			l.settle(time.Microsecond)
			if l.dead.Load() {
				return
			}
		}
	}
	if w.full.Load() || time.Since(l.filled) < 2*clockRetry { // what is overdue would come in either order with what follows
		l.settle(time.Microsecond)
		if l.dead.Load() {
			return
		}
	}
	if len(l.links) > 0 && w.rng.IntN(4) == 0 { // what a session said that is gone comes late
		l.links[w.rng.IntN(len(l.links))].hear()
	}
	if len(l.gone) > 0 && w.rng.IntN(6) == 0 {
		l.gone[w.rng.IntN(len(l.gone))].late()
	}
	l.settle(time.Microsecond)
	if w.rng.IntN(6) == 0 && !l.dead.Load() {
		w.runners[w.rng.IntN(len(w.runners))].loseAgain()
		l.settle(time.Microsecond)
	}
	if r.link != nil && r.link.over && w.rng.IntN(3) == 0 {
		r.cut("it notices")
	}
	for _, r := range w.runners {
		r.checkTold()
	}
	if w.rng.IntN(3) == 0 {
		l.pass(l.pause())
	}
	if k := r.link; k != nil && w.rng.IntN(40) == 0 { // for longer than a lease; its jobs go on
		r.cut("the network is gone")
		k.give("the network is gone")
		for range 3 {
			r.process()
			l.pass(time.Duration(20+w.rng.IntN(50)) * time.Second)
		}
	}
}

// pause is how long nothing happens, but for time itself.
func (l *life) pause() time.Duration {
	w := l.w
	switch n := w.rng.IntN(40); {
	case n < 26:
		return time.Duration(1+w.rng.IntN(80)) * time.Millisecond
	case n < 34:
		return time.Duration(100+w.rng.IntN(3000)) * time.Millisecond
	case n < 38:
		return time.Duration(3+w.rng.IntN(40)) * time.Second
	}
	return time.Duration(60+w.rng.IntN(120)) * time.Second
}

// setClock has somebody set the host's clock, which is never before 1970.
func (l *life) setClock() {
	w := l.w
	unit := []time.Duration{time.Second, time.Minute, time.Hour, 24 * time.Hour, 365 * 24 * time.Hour}[w.rng.IntN(5)]
	by := time.Duration(1+w.rng.IntN(60)) * unit / time.Duration(1+w.rng.IntN(6))
	at := time.Duration(l.clock.shift.Load())
	const years = 365 * 24 * time.Hour
	if at > -20*years && w.rng.IntN(2) == 0 || at+by > 60*years {
		by = -min(by, at+25*years)
	}
	if w.rng.IntN(8) == 0 { // it is set right
		by = -at
	}
	l.clock.set(by)
	l.lookedAt = l.clock.now()
	w.count["clock set"]++
	w.say("the clock is set by %s", by)
}

// die is the end of the host: of what ran there the next agent knows that it was
// started, unless that had only just been written. What waited for its start does not go on.
func (r *simRunner) die() {
	r.cut("the host dies")
	r.disk++
	for _, a := range r.has() {
		switch {
		case !a.started, time.Since(a.given) < time.Minute && r.w.rng.IntN(2) == 0:
			a.held, a.alive = false, false
		case a.alive:
			a.end(wire.Result{State: wire.Failed, Reason: wire.ReasonRunnerLost})
		}
	}
}

// lose is the end of the host and of what its attempts have on disk.
func (r *simRunner) lose() {
	r.cut("the disk is lost")
	r.disk++
	for _, a := range r.has() {
		a.held, a.alive = false, false
	}
}

// rekey is the end of the host and of all that was on it: who comes back under
// its id is another, and has no token.
func (r *simRunner) rekey() {
	r.cut("the host is replaced")
	r.disk++
	seed := make([]byte, ed25519.SeedSize)
	for i := range seed {
		seed[i] = byte(r.w.rng.IntN(256))
	}
	r.key, r.token, r.standing, r.unstored = ed25519.NewKeyFromSeed(seed), "", wire.Standing{}, ""
	for _, a := range r.has() {
		a.held, a.alive = false, false
	}
}

// usurp has a runner say how an attempt went that is another's, or that was its own.
func (l *life) usurp(r *simRunner) {
	w, k := l.w, r.link
	o := w.runners[w.rng.IntN(len(w.runners))]
	if k == nil || k.m == nil || len(o.tries) == 0 {
		return
	}
	a := o.tries[w.rng.IntN(len(o.tries))]
	j := w.job(a.Job)
	late := j.State.Ended() && w.rng.IntN(3) > 0
	if o == r && j.Attempt == a.Attempt && (!late || j.Reason == wire.ReasonRunnerLost && j.LateResult == nil) {
		return
	}
	var chunks []wire.Data
	result := &wire.Result{State: wire.Success}
	if w.rng.IntN(2) == 0 {
		chunks, result = []wire.Data{{Offset: int64(len(a.out)), Time: time.Now(), Stream: wire.Stdout, Bytes: []byte("usurped\n")}}, nil
	}
	w.say("%s: says how %s went", r.id, w.ref(a.JobRef))
	s := l.s
	l.call(func() func() {
		var err error
		if late {
			_, err = s.recordLate(k.ctx, a.JobRef, k.v, chunks, result)
		} else {
			_, err = s.record(k.ctx, a.JobRef, k.v, 0, chunks, result)
		}
		return func() {
			if err == nil {
				w.violate("what %s says of %s, which is not its own, is recorded", r.id, w.ref(a.JobRef))
			}
		}
	})
}

// loseAgain has the server come to lose an attempt that it has found due before
// that ended, or went back to the queue: nothing comes of it.
func (r *simRunner) loseAgain() {
	l := r.w.life
	if len(r.tries) == 0 {
		return
	}
	a := r.tries[r.w.rng.IntN(len(r.tries))]
	if j := r.w.seen[a.Job]; !j.State.Ended() && j.State != wire.Queued && j.Attempt == a.Attempt {
		return
	}
	s := l.s
	l.call(func() func() {
		if err := s.lose([]wire.JobRef{a.JobRef}, "found due too late"); wire.KindOf(err) != "" && wire.KindOf(err) != wire.Unavailable {
			return func() { r.w.violate("lose what has ended: %v", err) }
		}
		return nil
	})
}

// drainHost sets whether the host's people want jobs there.
func (r *simRunner) drainHost(on bool) {
	if r.hostDrained == on {
		return
	}
	r.hostDrained = on
	if r.link != nil && r.link.m != nil {
		r.say(wire.WorkEvent{Drain: &on})
	}
}

// admit has an operator bring a runner back to its work, who does each thing that
// is needed once.
func (l *life) admit(r *simRunner) {
	w := l.w
	rec, err := l.s.store.Runner(l.ctx, r.id)
	if err != nil || len(l.calls) > 0 {
		return // it has not connected yet
	}
	v, online := l.s.fleet.get(r.id)
	r.drainHost(false)
	if online && rec.State == wire.Adopted && rec.Fingerprint == r.fingerprint() {
		if r.trusted && !v.admitted {
			w.violate("%s had jobs by right of its adoption, and is not admitted any more: %s", r.id, rec.Detail)
			return
		}
		r.trusted = v.admitted
	}
	switch {
	case rec.Fingerprint != r.fingerprint():
		l.operator("forget", r)
	case rec.Draining:
		l.operator("resume", r)
	case rec.State == wire.Rejected, online && !v.admitted && r.link != nil && !r.link.begun.IsZero() && time.Since(r.link.begun) > 10*time.Second:
		if !r.adopted.IsZero() && time.Since(r.adopted) < 30*time.Second {
			return
		}
		if !r.adopted.IsZero() {
			w.violate("%s was adopted, and is %s and not admitted: %s", r.id, rec.State, rec.Detail)
			return
		}
		r.adopted = time.Now()
		l.operator("adopt", r)
	}
}

// heal has everybody do what he should until nobody has anything left.
func (l *life) heal() {
	w := l.w
	idleFor := 10
	if w.rng.IntN(4) == 0 {
		idleFor += int(simGrant / healStep) // tokens are renewed
	}
	for n := range 400 {
		for _, k := range w.wishes {
			if !k.done && !k.gone() {
				l.send(k)
				l.settle(time.Microsecond)
			}
		}
		for _, r := range w.runners {
			l.admit(r)
			l.settle(time.Microsecond)
			r.work()
		}
		if len(w.wrong) > 0 || l.idle() && n > idleFor {
			return
		}
		l.pass(healStep)
	}
	w.violate("nobody does anything wrong, and it comes to no end")
	for id, j := range w.seen {
		if !j.State.Ended() {
			w.say("job %s is %s, attempt %d of %q, target %v", w.names[id], j.State, j.Attempt, j.RunnerID, j.Target)
		}
	}
}

// healStep is between two looks of everybody at what there is to do.
const healStep = 5 * time.Second

// idle reports whether nobody has anything left to do.
func (l *life) idle() bool {
	for _, k := range l.w.wishes {
		if !k.done && !k.gone() {
			return false
		}
	}
	for _, r := range l.w.runners {
		if len(r.has()) > 0 {
			return false
		}
	}
	for _, j := range l.w.seen {
		if !j.State.Ended() {
			return false
		}
	}
	return true
}

// work has the runner do all that it can do now.
func (r *simRunner) work() {
	l := r.w.life
	if k := r.link; k != nil && (k.over || k.ctx.Err() != nil) {
		r.cut("it notices")
		k.give("it is over")
	}
	if r.link != nil && len(r.link.up) == 0 && r.leaves() {
		r.leave()
	}
	if r.link == nil {
		r.connect()
		l.settle(time.Microsecond)
	}
	for range 8 {
		k := r.link
		if k == nil || k.m == nil || l.dead.Load() {
			return
		}
		for range len(k.down) {
			r.obey(k)
		}
		for len(k.up) > 0 && !k.hears {
			k.hear()
			l.settle(time.Microsecond)
		}
		r.checkTold()
		r.process()
		for _, a := range r.has() {
			switch {
			case !a.started || r.link != k:
			case a.report == nil:
				a.openReport()
			case a.report.open && !a.report.busy:
				a.send()
			}
			l.settle(time.Microsecond)
		}
	}
}

// gone reports whether an operator's wish has come to nothing: what runners
// need in the end, admit looks after.
func (k *wish) gone() bool {
	return slices.Contains([]string{"adopt", "reject", "forget", "drain", "resume"}, k.what)
}
