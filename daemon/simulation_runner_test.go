package daemon

import (
	"context"
	"crypto/ed25519"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/waypointd/waypoint/daemon/store"
	"github.com/waypointd/waypoint/mux"
	"github.com/waypointd/waypoint/mux/wire"
	"github.com/waypointd/waypoint/statedir"
)

// simRunner is an agent, its disk and its jobs' processes.
type simRunner struct {
	w     *world
	id    string
	n     int
	link  *simLink // as the agent has it; nil: none
	tries []*simTry
	heard time.Time // when the server last had a session of it
	quiet time.Time // that, at the look before

	entered atomic.Pointer[time.Time] // when a session of it last began to be its own; nil: not in this life

	silent, absent time.Duration // how long ago that was, and that it was forgotten, when the last server ended

	disk     int // how often what is on it was made anew, or may be of before
	key      ed25519.PrivateKey
	token    string        // in its file
	lasts    time.Time     // until when the best token lasts that it has had
	standing wire.Standing // as it was told
	rejected bool          // the last thing that an operator was told
	drained  bool
	record   store.RunnerRecord // at the last look
	before   store.RunnerRecord // at the look before it
	unstored string             // the last token granted to it, which it has not stored
	forgets  int                // how often it may have been forgotten
	forgot   time.Time          // since when what it was given is nobody's; zero: it is its own
	trusted  bool               // adopted and admitted, since nothing goes wrong any more

	hostDrained bool      // on its host
	deciding    int       // calls under way that lift either
	adopted     time.Time // since nothing goes wrong any more
}

// simTry is an attempt that a runner was given. What is on its disk outlives
// the agent; its process does not outlive the host.
type simTry struct {
	wire.JobRef
	name    string
	r       *simRunner
	key     string // the runner's, and how often it had been forgotten, when it was given
	forgets int
	given   time.Time
	held    bool // its directory is there
	late    bool // the server has given it up: what there is to say of it is said late
	started bool // and says that it was started
	back    bool // it was offered back: no Start counts
	alive   bool // its process runs
	since   time.Time
	cancel  bool
	out     []byte
	lines   int // it is going to write
	result  *wire.Result
	offered bool  // the result has been sent, perhaps in vain
	safe    int64 // the server said that so much of the output is on record
	report  *simReport
}

// simReport is a report stream.
type simReport struct {
	k    *simLink
	at   int64 // the server has so much
	open bool
	busy bool
}

func simRunnerID(n int) string { return fmt.Sprintf("r%d", n) }

func newSimRunner(w *world, n int) *simRunner {
	r := &simRunner{w: w, id: simRunnerID(n), n: n, key: w.g.keys[n]}
	r.store(w.g.tokens[n])
	return r
}

// since is when the server last had a session of it, as of a moment since the last look.
func (r *simRunner) since(at time.Time) time.Time {
	if e := r.entered.Load(); e != nil && e.After(at) {
		return r.quiet
	}
	return r.heard
}

// orphaned notes that what is on record as the runner's may be nobody's.
func (r *simRunner) orphaned() {
	r.forgets++
	for id, j := range r.w.seen {
		if j.RunnerID == r.id && !j.State.Ended() {
			r.w.orphans[wire.JobRef{Job: id, Attempt: j.Attempt}] = true
		}
	}
}

// store keeps a token, on disk.
func (r *simRunner) store(token string) {
	r.unstored = ""
	if r.token = token; token == "" {
		return
	}
	c, err := wire.ReadToken(token)
	if err != nil {
		r.w.violate("%s was granted what is no token: %v", r.id, err)
	}
	if c.Expiry.After(r.lasts) {
		r.lasts = c.Expiry
	}
}

func (r *simRunner) offers() []wire.TokenOffer {
	if r.token == "" {
		return nil
	}
	return []wire.TokenOffer{{Source: wire.SourceFile, Token: r.token}}
}

// authenticate shows what it has over its session.
func (r *simRunner) authenticate(stored bool) {
	k, s := r.link, r.w.life.s
	if k == nil || k.m == nil || k.asks {
		return
	}
	k.asks = true
	req, peer := wire.AuthenticateRequest{Offers: r.offers(), Stored: stored}, r.peer()
	peer.Data = k.v
	r.w.life.call(func() func() {
		st, err := s.authenticate(k.ctx, peer, req)
		return func() {
			k.asks = false
			if err == nil && r.link == k {
				r.standing = st
			}
		}
	})
}

// spool is under what it remembers what it is given.
func (r *simRunner) spool() string { return fmt.Sprintf("%s.%d", r.id, r.disk) }

// slots is how many jobs it runs at once.
func (r *simRunner) slots() int { return 1 + r.n%2 }

func (r *simRunner) fingerprint() string {
	return statedir.Fingerprint(r.key.Public().(ed25519.PublicKey))
}

func (r *simRunner) peer() *mux.Peer {
	key := r.key.Public().(ed25519.PublicKey)
	return &mux.Peer{Network: "memory", Key: key, Hello: wire.Hello{Role: wire.RoleRunner, Software: "waypoint simulation",
		Runner: &wire.RunnerHello{
			ID: r.id, Kind: wire.KindRemote, PublicKey: key, Concurrency: r.slots(),
			Labels: map[string]string{"parity": fmt.Sprint(r.n % 2)},
			Offers: r.offers(),
		}}}
}

// try is the attempt of a reference that the runner holds.
func (r *simRunner) try(ref wire.JobRef) *simTry {
	for _, a := range r.tries {
		if a.JobRef == ref && a.held {
			return a
		}
	}
	return nil
}

// has are the attempts it holds.
func (r *simRunner) has() (held []*simTry) {
	for _, a := range r.tries {
		if a.held {
			held = append(held, a)
		}
	}
	return held
}

// works are those of them that it has not been told to give up.
func (r *simRunner) works() []*simTry {
	return slices.DeleteFunc(r.has(), func(a *simTry) bool { return a.late })
}

// cut has the agent lose its session.
func (r *simRunner) cut(why string) {
	if r.link == nil {
		return
	}
	r.w.say("%s: loses its session: %s", r.id, why)
	r.link = nil
	for _, a := range r.tries {
		a.report = nil
	}
}

// connect begins a session and its work stream.
func (r *simRunner) connect() {
	l := r.w.life
	k := &simLink{l: l, r: r, spool: r.spool()}
	k.ctx, k.cancel = context.WithCancelCause(l.ctx)
	begin := wire.WorkBegin{Concurrency: r.slots(), Spool: k.spool, Draining: r.hostDrained}
	k.drain = r.hostDrained
	for _, a := range r.works() {
		begin.Held = append(begin.Held, wire.Held{JobRef: a.JobRef, Started: a.started})
	}
	r.w.say("%s: connects with %d held", r.id, len(begin.Held))
	r.link = k
	l.links = append(l.links, k)
	l.call(func() func() { return k.serve(begin) })
}

// say sends an event.
func (r *simRunner) say(e wire.WorkEvent) { r.link.up = append(r.link.up, e) }

// step has the runner do something.
func (r *simRunner) step() {
	w := r.w
	switch {
	case r.link == nil:
		r.connect()
		return
	case r.link.m == nil:
		return
	}
	k := r.link
	if !r.standing.Admitted && w.rng.IntN(6) == 0 {
		r.authenticate(false)
	}
	if r.leaves() {
		switch {
		case w.rng.IntN(12) == 0:
			r.leave()
			return
		case len(k.up) > 0: // before its start is on record
			k.hear()
			return
		}
	}
	switch n := w.rng.IntN(12); {
	case n == 0:
		e := wire.WorkEvent{Holds: &wire.WorkHolds{Jobs: []wire.JobRef{}}}
		for _, a := range r.works() {
			e.Holds.Jobs = append(e.Holds.Jobs, a.JobRef)
		}
		r.say(e)
	case n < 4:
		r.obey(k)
	case n < 6:
		k.hear()
	case n < 9:
		r.process()
	default:
		r.ship()
	}
}

// obey follows the next order.
func (r *simRunner) obey(k *simLink) {
	if len(k.down) == 0 {
		return
	}
	o := k.down[0]
	k.down = k.down[1:]
	w := r.w
	switch {
	case o.Standing != nil:
		r.standing = *o.Standing
		w.say("%s: is told that it is %s, admitted %v", r.id, r.standing.State, r.standing.Admitted)
	case o.Grant != nil:
		w.count["grant"]++
		if w.chance(3) {
			if o.Grant.Token != r.token {
				r.unstored = o.Grant.Token
			}
			w.say("%s: does not store what it is granted", r.id)
			return
		}
		r.store(o.Grant.Token)
		w.say("%s: stores what it is granted", r.id)
		r.authenticate(true)
	case o.Begun != nil:
		k.begun = time.Now()
		for _, ref := range o.Begun.Keep {
			if a := r.try(ref); a != nil && !a.started {
				a.back = false
				r.say(wire.WorkEvent{Ack: &a.JobRef})
			}
		}
		for _, ref := range o.Begun.Drop {
			r.drop(ref, "does not keep")
		}
		for _, a := range r.works() {
			if !slices.Contains(o.Begun.Keep, a.JobRef) && !slices.Contains(k.given, a.JobRef) {
				w.violate("%s is told neither to keep nor to drop %s", r.id, w.ref(a.JobRef))
			}
		}
	case o.Assign != nil:
		a := &simTry{JobRef: o.Assign.JobRef, name: w.names[o.Assign.Job], r: r, key: r.fingerprint(), forgets: r.forgets, given: time.Now(), lines: w.rng.IntN(30)}
		if w.tries[a.JobRef] != nil {
			w.violate("%s is assigned twice", w.ref(a.JobRef))
			return
		}
		w.tries[a.JobRef] = a
		k.given = append(k.given, a.JobRef)
		if w.chance(15) {
			w.say("%s: refuses %s", r.id, w.ref(a.JobRef))
			r.say(wire.WorkEvent{Nack: &wire.Nack{JobRef: a.JobRef, Error: "simulated"}})
			return
		}
		w.say("%s: is given %s", r.id, w.ref(a.JobRef))
		a.held = true
		r.tries = append(r.tries, a)
		r.say(wire.WorkEvent{Ack: &a.JobRef})
		if w.chance(12) {
			r.handOver()
		}
	case o.Start != nil:
		if a := r.try(*o.Start); a != nil && !a.started && !a.back {
			w.say("%s: starts %s", r.id, w.ref(a.JobRef))
			if before, ok := w.starts[a.Job]; ok {
				w.violate("job %s was started as attempt %d and is started as %d", a.name, before, a.Attempt)
			}
			w.starts[a.Job] = a.Attempt
			w.checkInput(a)
			a.started, a.alive, a.since = true, true, time.Now()
			w.count["start"]++
		}
	case o.Drop != nil:
		r.drop(*o.Drop, "drops")
	case o.Cancel != nil:
		if a := r.try(o.Cancel.JobRef); a != nil {
			w.say("%s: is to end %s", r.id, w.ref(a.JobRef))
			a.cancel = true
		}
	}
}

// drop ends and forgets an attempt, since the server wants nothing of it.
func (r *simRunner) drop(ref wire.JobRef, how string) {
	w := r.w
	a := r.try(ref)
	if a == nil {
		return
	}
	w.say("%s: %s %s", r.id, how, w.ref(ref))
	if j := w.seen[ref.Job]; !a.late && j.State == wire.Running && j.Attempt == ref.Attempt && j.RunnerID == r.id && a.started {
		w.violate("%s is told to drop %s, which runs on record", r.id, w.ref(ref))
	}
	if !a.started || a.late {
		a.held, a.alive = false, false
		return
	}
	a.late, a.report, a.offered = true, nil, false
	if a.alive {
		a.end(wire.Result{State: wire.Canceled, Reason: wire.ReasonCanceled})
	}
}

// handOver has the agent offer back what it was not let start; it keeps that until it is
// told to drop it, or the next agent asks again.
func (r *simRunner) handOver() {
	if r.link == nil || r.link.m == nil {
		return
	}
	for _, a := range r.has() {
		if !a.started && !a.back {
			r.w.say("%s: gives %s back", r.id, r.w.ref(a.JobRef))
			r.w.count["given back"]++
			a.back = true
			r.say(wire.WorkEvent{Nack: &wire.Nack{JobRef: a.JobRef, Error: "simulated"}})
		}
	}
}

// leave is the end of an agent that has handed over: the next one asks again what it may start.
func (r *simRunner) leave() {
	r.cut("the agent has handed over")
	for _, a := range r.tries {
		a.back = false
	}
}

// leaves reports whether the agent is about to end.
func (r *simRunner) leaves() bool {
	return slices.ContainsFunc(r.has(), func(a *simTry) bool { return a.back })
}

// process lets a job write, or end.
func (r *simRunner) process() {
	w := r.w
	var alive []*simTry
	for _, a := range r.has() {
		if a.alive {
			alive = append(alive, a)
		}
	}
	if len(alive) == 0 {
		return
	}
	a := alive[w.rng.IntN(len(alive))]
	for range 1 + w.rng.IntN(12) {
		if a.lines == 0 {
			break
		}
		a.lines--
		a.out = fmt.Appendf(a.out, "%s attempt %d, %d more\n", a.name, a.Attempt, a.lines)
	}
	switch {
	case a.cancel && w.rng.IntN(3) > 0:
		a.end(wire.Result{State: wire.Canceled, Reason: wire.ReasonCanceled})
	case a.lines > 0:
	case w.rng.IntN(5) == 0:
		a.end(wire.Result{State: wire.Failed, Reason: wire.ReasonFailed, ExitCode: new(1)})
	default:
		a.end(wire.Result{State: wire.Success, ExitCode: new(0)})
	}
}

func (a *simTry) end(res wire.Result) {
	res.LogBytes = int64(len(a.out))
	a.alive, a.result = false, &res
	a.r.w.say("%s: %s ends as %s with %d bytes", a.r.id, a.r.w.ref(a.JobRef), res.State, res.LogBytes)
}

// ship goes on with a report.
func (r *simRunner) ship() {
	w := r.w
	var due []*simTry
	for _, a := range r.has() {
		if a.started && (a.report == nil || !a.report.busy) {
			due = append(due, a)
		}
	}
	if len(due) == 0 {
		return
	}
	a := due[w.rng.IntN(len(due))]
	if a.report == nil {
		a.openReport()
		return
	}
	a.send()
}

// openReport asks from where on the server wants the output.
func (a *simTry) openReport() {
	r, w := a.r, a.r.w
	k, s := r.link, w.life.s
	rep := &simReport{k: k, busy: true}
	a.report = rep
	late, owed := a.late, a.owed()
	w.life.call(func() func() {
		length, err := s.reported(k.ctx, wire.ReportRequest{JobRef: a.JobRef, Late: late}, k.v)
		return func() {
			if owed && a.owed() && (wire.KindOf(err) == wire.Conflict || wire.KindOf(err) == wire.NotFound) {
				w.violate("%s was lost, and what its runner says of it late is refused: %v", w.ref(a.JobRef), err)
			}
			if a.report != rep || a.failed(err) {
				return
			}
			if length < a.safe || length > int64(len(a.out)) {
				w.violate("output of %s: the server has %d bytes; it said %d were safe, of %d written", w.ref(a.JobRef), length, a.safe, len(a.out))
			}
			rep.at, rep.open, rep.busy = length, true, false
		}
	})
}

// owed reports whether the server is to take what there is to say late: the attempt was
// lost, is still on record without its late result, and its runner is who it was.
func (a *simTry) owed() bool {
	j, r := a.r.w.seen[a.Job], a.r
	return a.late && j.Reason == wire.ReasonRunnerLost && j.Attempt == a.Attempt && j.LateResult == nil &&
		a.key == r.fingerprint() && a.forgets == r.forgets && !a.r.w.orphans[a.JobRef]
}

// failed deals with a report that cannot go on, as an agent does.
func (a *simTry) failed(err error) bool {
	switch wire.KindOf(err) {
	case "":
		return err != nil
	case wire.Conflict, wire.NotFound:
		a.r.drop(a.JobRef, "may not report")
	}
	a.report = nil
	return true
}

// send sends some output, and behind the last byte the result.
func (a *simTry) send() {
	w, rep := a.r.w, a.report
	from, stored := rep.at, rep.at
	if w.chance(6) && from > 0 { // what was sent before comes again
		from -= int64(w.rng.IntN(int(from)))
	}
	rest := a.out[from:]
	if w.chance(2) {
		rest = rest[:w.rng.IntN(len(rest)+1)]
	}
	gap := len(rest) > 1 && w.chance(25) // some of it is left out
	if gap {
		skip := max(0, int(stored-from)) + 1
		gap = skip < len(rest)
		if gap {
			from, rest = from+int64(skip), rest[skip:]
		}
	}
	var chunks []wire.Data
	for at := from; len(rest) > 0; {
		n := min(len(rest), 1+w.rng.IntN(400))
		chunks = append(chunks, wire.Data{Offset: at, Time: time.Now(), Stream: wire.Stdout, Bytes: slices.Clone(rest[:n])})
		at, rest = at+int64(n), rest[n:]
		from = at
	}
	var result *wire.Result
	hasty := max(from, stored) < int64(len(a.out)) && w.chance(12) // the end is said before all of the output
	if a.result != nil && !gap && (hasty || max(from, stored) == int64(len(a.out))) {
		result, a.offered = a.result, true
	}
	hasty = hasty && result != nil
	if len(chunks) == 0 && result == nil {
		return
	}
	rep.busy = true
	l, k, late := w.life, rep.k, a.late
	l.call(func() func() {
		length, err := l.record(k, a.JobRef, late, stored, chunks, result)
		return func() {
			if gap && err == nil {
				w.violate("output of %s is recorded from byte %d on, and there were %d", w.ref(a.JobRef), chunks[0].Offset, stored)
			}
			if (hasty || gap) && err != nil && a.report == rep {
				a.report = nil
			}
			if a.report != rep || a.failed(err) {
				return
			}
			rep.busy, rep.at = false, length
			if a.safe = max(a.safe, length); a.safe > int64(len(a.out)) {
				w.violate("output of %s: %d bytes are said to be safe of %d", w.ref(a.JobRef), a.safe, len(a.out))
			}
			switch {
			case result != nil && late:
				w.recordedLate(a)
			case result != nil:
				w.recorded(a)
			}
		}
	})
}
