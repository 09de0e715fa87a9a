package daemon

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/waypointd/waypoint/mux"
	"github.com/waypointd/waypoint/mux/wire"
)

var errNoSpace = errors.New("simulated: no space left on device")

// simClient is who all clients are.
var simClient = &mux.Peer{Network: "memory", Hello: wire.Hello{Role: wire.RoleClient}, Data: &login{}}

// simCall is a request that the server has. Its answer is what is to be done
// with it, once all is quiet.
type simCall struct{ answer chan func() }

// call has the server do something; what it returns is done by the simulation.
func (l *life) call(f func() (then func())) *simCall {
	c := &simCall{answer: make(chan func(), 1)}
	l.calls = append(l.calls, c)
	go func() { c.answer <- f() }()
	return c
}

// settle lets time pass until nobody has anything to do, and takes the answers.
func (l *life) settle(d time.Duration) {
	time.Sleep(d)
	if l.dead.Load() || l.dying.Load() || l.w.chance(1500) {
		if !l.dead.Load() {
			l.die()
		}
		return
	}
	for _, r := range l.w.runners {
		r.quiet = r.heard
		if _, ok := l.s.fleet.get(r.id); ok {
			r.heard = time.Now()
		} else if e := r.entered.Load(); e != nil && e.After(r.heard) { // it has come, and left
			r.heard = *e
		}
	}
	was := maps.Clone(l.w.seen)
	l.look()
	for {
		again := false
		for _, c := range slices.Clone(l.calls) {
			select {
			case then := <-c.answer:
				l.calls = slices.DeleteFunc(l.calls, func(o *simCall) bool { return o == c })
				if then != nil {
					then()
				}
				again = true
			default:
			}
		}
		if !again {
			break
		}
	}
	for _, k := range slices.Clone(l.links) {
		k.listen(was)
	}
	l.checkTime()
}

// pass lets time pass with the heartbeats of the sessions that live at both ends.
func (l *life) pass(d time.Duration) {
	beat := l.s.cfg().Heartbeat
	for d > 0 && !l.dead.Load() && len(l.w.wrong) == 0 {
		slice := min(d, beat)
		d -= slice
		for _, k := range slices.Clone(l.links) {
			switch {
			case k.m == nil:
			case k.r.link == k:
				k.m.heard.Store(l.s.uptime())
			case time.Duration(l.s.uptime()-k.m.heard.Load()) > missedHeartbeats*beat:
				k.give("nothing is heard")
			}
		}
		l.settle(slice)
	}
}

// simLink is a session of a runner, as the server has it.
type simLink struct {
	l      *life
	r      *simRunner
	spool  string
	drain  bool // what the server has heard of the host's drain
	ctx    context.Context
	cancel context.CancelCauseFunc
	v      *visitor
	m      *member          // nil until it works
	up     []wire.WorkEvent // said by the runner
	down   []wire.WorkOrder // said by the server
	hears  bool             // an event is being dealt with
	asks   bool             // it shows its tokens
	over   bool             // the server has given it up
	begun  time.Time        // when the runner was told what to go on with
	given  []wire.JobRef    // assigned on it
}

// serve is what the server does for a session and its work stream. See
// serveConn and runnerWork.
func (k *simLink) serve(begin wire.WorkBegin) (then func()) {
	s, refused := k.l.s, func(err error) func() {
		return func() {
			k.l.w.say("%s: refused: %v", k.r.id, wire.KindOf(err))
			k.end()
		}
	}
	v, err := s.admitRunner(k.ctx, k.r.peer(), door{})
	if err != nil {
		return refused(err)
	}
	parted := func() { s.fleet.parted(v) }
	m := &member{visitor: v, orders: newOrders(), replaced: k.cancel, heartbeat: s.cfg().Heartbeat}
	m.heard.Store(s.uptime())
	if err := s.enter(k.ctx, m); err != nil {
		parted()
		return refused(err)
	}
	k.r.entered.Store(new(time.Now()))
	if err := s.begin(k.ctx, m, begin); err != nil {
		s.exit(m)
		parted()
		return refused(err)
	}
	go func() {
		select {
		case <-k.ctx.Done():
		case <-v.ended: // see attend
			k.cancel(v.why)
		}
		s.exit(m)
		parted()
	}()
	return func() { k.v, k.m = v, m }
}

// give has the server give the session up.
func (k *simLink) give(why string) {
	if !k.over {
		k.l.w.say("%s: the server gives its session up: %s", k.r.id, why)
		k.cancel(errors.New(why))
		k.end()
	}
}

func (k *simLink) end() {
	k.over = true
	k.l.links = slices.DeleteFunc(k.l.links, func(o *simLink) bool { return o == k })
	if k.m != nil {
		k.l.gone = append(k.l.gone, k)
	}
	if k.r.link == k && k.m == nil {
		k.r.cut("refused")
	}
}

// listen takes what the server has said.
func (k *simLink) listen(was map[string]wire.Job) {
	if k.m == nil {
		return
	}
	said, over := k.m.orders.take()
	for _, o := range said {
		if o.Start != nil {
			if j := was[o.Start.Job]; j.State.Ended() || j.Attempt != o.Start.Attempt || j.RunnerID != k.r.id {
				k.l.w.violate("the start of %s is confirmed to %s, and the record says %s %s of attempt %d",
					k.l.w.ref(*o.Start), k.r.id, j.State, j.Reason, j.Attempt)
			}
		}
	}
	k.down = append(k.down, k.l.w.inOrder(said)...)
	if over != nil || k.ctx.Err() != nil {
		k.give(fmt.Sprintf("its work stream ends: %v", context.Cause(k.ctx)))
	}
}

// inOrder puts what a runner is told at once to drop in the order of its jobs'
// names: those that are due together go in any.
func (w *world) inOrder(said []wire.WorkOrder) []wire.WorkOrder {
	for from := 0; from < len(said); from++ {
		to := from
		for to < len(said) && said[to].Drop != nil {
			to++
		}
		slices.SortFunc(said[from:to], func(a, b wire.WorkOrder) int { return strings.Compare(w.ref(*a.Drop), w.ref(*b.Drop)) })
		from = max(from, to-1)
	}
	return said
}

// hear has the server deal with the next event. See Server.hear.
func (k *simLink) hear() {
	if k.hears || k.m == nil || len(k.up) == 0 {
		return
	}
	e := k.up[0]
	k.up, k.hears = k.up[1:], true
	s, m := k.l.s, k.m
	m.heard.Store(s.uptime())
	k.l.call(func() func() {
		switch {
		case e.Ack != nil:
			s.acknowledged(m, *e.Ack)
		case e.Nack != nil:
			s.refused(m, *e.Nack)
		case e.Drain != nil:
			s.fleet.drain(m, *e.Drain)
			s.store.Kick()
			return func() { k.hears, k.drain = false, *e.Drain }
		case e.Holds != nil:
			if err := s.lose(s.fleet.missing(m, e.Holds.Jobs), "its runner does not have it any more"); wire.KindOf(err) != "" && wire.KindOf(err) != wire.Unavailable {
				return func() { k.l.w.violate("lost jobs: %v", err) }
			}
		}
		return func() { k.hears = false }
	})
	if e.Drain != nil && !*e.Drain {
		k.drain = false // from now on it may have been heard
	}
}

// late has a session that the server has given up deliver something.
func (k *simLink) late() {
	w, s := k.l.w, k.l.s
	if n := k.r.link; n != nil && n != k && w.rng.IntN(3) == 0 { // from before it was given anything
		k.up = append(k.up, wire.WorkEvent{Holds: &wire.WorkHolds{Jobs: []wire.JobRef{}}})
	}
	if len(k.up) > 0 && w.rng.IntN(2) == 0 {
		w.say("%s: something comes of a session that is gone", k.r.id)
		w.count["late frame"]++
		k.hear()
		return
	}
	for _, a := range k.r.tries {
		if !a.started || len(a.out) == 0 || w.rng.IntN(2) == 0 {
			continue
		}
		w.say("%s: output of %s comes on a session that is gone", k.r.id, w.ref(a.JobRef))
		w.count["late frame"]++
		chunks := []wire.Data{{Time: time.Now(), Stream: wire.Stdout, Bytes: slices.Clone(a.out)}}
		k.l.call(func() func() {
			_, err := s.record(k.ctx, a.JobRef, k.v, 0, chunks, a.result)
			return func() {
				if err == nil {
					w.violate("%s: %s is recorded from a session that is gone", k.r.id, w.ref(a.JobRef))
				}
			}
		})
		return
	}
}

// look compares what is on record with the last time.
func (l *life) look() {
	defer func() { l.lookedAt = l.clock.now() }()
	if l.w.full.Load() {
		l.filled = time.Now()
	}
	n := l.commits.Load()
	if n == l.looked && l.looked > 0 {
		return
	}
	l.looked = n
	jobs, err := l.s.store.Jobs(context.Background(), wire.JobFilter{Limit: 500})
	if err != nil {
		l.w.violate("read jobs: %v", err)
		return
	}
	for _, r := range l.w.runners {
		r.lookUp()
	}
	slices.Reverse(jobs)
	l.w.observe(jobs, time.Now())
}

// lookUp reads the runner's record. One that waits for adoption, and does not come,
// is forgotten by the server itself, and what was decided of it with it.
func (r *simRunner) lookUp() {
	rec, err := r.w.life.s.store.Runner(context.Background(), r.id)
	if err != nil && wire.KindOf(err) != wire.NotFound {
		r.w.violate("read runner: %v", err)
	}
	same := rec.ID != "" && rec.FirstSeen.Equal(r.record.FirstSeen)
	if r.record.State == wire.Pending && (rec.ID == "" || !rec.FirstSeen.Equal(r.record.FirstSeen)) {
		r.drained = false
	}
	if !same || rec.State != wire.Adopted || rec.Fingerprint != r.fingerprint() {
		r.unstored = ""
	} else if r.unstored != "" && rec.Grant == "" {
		r.w.violate("%s has not stored what it was granted, and it is not on record any more", r.id)
	}
	r.before, r.record = r.record, rec
	if !r.nobody(true) && r.record.Fingerprint == r.fingerprint() && r.before.Fingerprint == r.fingerprint() && r.deciding == 0 {
		r.forgot = time.Time{}
		for ref := range r.w.orphans {
			if r.w.seen[ref.Job].RunnerID == r.id {
				delete(r.w.orphans, ref)
			}
		}
	}
}

// nobody reports whether there was nobody under the runner's id at the last two looks, or
// somebody who has not been admitted; with either, at one of them.
func (r *simRunner) nobody(either bool) bool {
	is, was := r.record.TokenExpiry.IsZero(), r.before.TokenExpiry.IsZero()
	return is && was || either && (is || was)
}

// record is what the server does for a report: see runnerReport.
func (l *life) record(k *simLink, ref wire.JobRef, late bool, length int64, chunks []wire.Data, result *wire.Result) (int64, error) {
	if late {
		return l.s.recordLate(k.ctx, ref, k.v, chunks, result)
	}
	length, err := l.s.record(k.ctx, ref, k.v, length, chunks, result)
	if err == nil && result != nil {
		l.s.fleet.end(ref, false)
		l.s.fleet.settleRejected(k.v.id)
	}
	return length, err
}
