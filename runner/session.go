package runner

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/waypointd/waypoint/mux"
	"github.com/waypointd/waypoint/mux/wire"
)

// missedHeartbeats is how many may fail to come before a session is given up.
const missedHeartbeats = 3

// What ends a session, as causes of its context.
var (
	errSilent    = wire.Errorf(wire.Unavailable, "nothing heard from the server for too long")
	errEnded     = wire.Errorf(wire.Unavailable, "the server ended the session")
	errAbandoned = errors.New("the session has ended")
	errStale     = errors.New("the runner has to say hello again: how it isolates jobs has changed")
)

// phase is how far a session has come.
type phase int

const (
	dialing  phase = iota
	greeting       // the hello
	joining        // the work stream, until the server has taken this runner's place
	serving
)

// connect makes one session after the other until ctx ends, or a refusal ends
// the Run. Pauses are jittered, grow, and are short again after a session that
// lasted longer than the pause before it: so a server that comes back is found
// at once, and one that takes sessions and drops them is not hammered. One that
// refuses this runner is asked at most once a minute in the end.
func (r *Runner) connect(ctx context.Context) {
	lost := backoff{min: r.waits.connectMin, max: r.waits.connectMax}
	refused := backoff{min: r.waits.refusedMin, max: r.waits.refusedMax, whole: true}
	said := ""
	r.tokens.fresh(r.look())
	if r.parent.now() == nil {
		soon, done := context.WithTimeout(ctx, r.waits.supervisor)
		r.parent.settled(soon)
		done()
	}
	for {
		r.pulse.due(callLimit)
		at, lasted, err := r.session(ctx)
		if ctx.Err() != nil {
			return
		}
		if errors.Is(err, errStale) {
			r.log.Info("saying hello again", "runner", r.name(), "why", err)
			continue
		}
		if (r.cfg.Once || r.local() && !r.isKnown()) && r.isFinal(at, err) {
			if !r.local() { // its command line says so
				r.log.Error("server refuses this runner", because(err, "runner", r.cfg.ID)...)
			}
			r.end(err)
			return
		}
		if at == serving {
			said = ""
			if lasted > lost.last {
				lost.last = 0
			}
			if st, _ := r.standing.now(); lasted > refused.last && st != nil && st.State != wire.Rejected {
				refused.last = 0
			}
		}
		level := slog.LevelDebug
		if said != err.Error() {
			level, said = slog.LevelWarn, err.Error()
		}
		attrs := because(err, "runner", r.name())
		pause := &lost
		switch {
		case !isRefusal(at, err) && at == serving:
			r.log.Log(ctx, level, "runner disconnected", attrs...)
		case !isRefusal(at, err):
			r.log.Log(ctx, level, "not connected", attrs...)
		case at == dialing:
			pause = &refused
			r.log.Log(ctx, level, "server cannot be used, and is tried again now and then", attrs...)
		default:
			pause = &refused
			r.log.Log(ctx, level, "refused by the server, which is asked again now and then", attrs...)
		}
		r.disconnected(err)
		if !r.rest(ctx, pause.next(), &refused) {
			return
		}
	}
}

// isFinal reports whether an error ends a runner for one job, or one whose
// command line waits for it to begin: the server's refusal at the hello, or of
// one that was rejected and holds nothing.
func (r *Runner) isFinal(at phase, err error) bool {
	switch k := wire.KindOf(err); at {
	case greeting:
		return k == wire.Denied || k == wire.Conflict || k == wire.Unauthenticated || k == wire.Expired
	case joining, serving:
		return k == wire.Denied && r.count() == 0
	}
	return false
}

// isRefusal tells a server that does not want this runner, or one that this
// runner does not trust, from one that is not there: the former is asked again
// slowly. So is one that has another with this runner's key; but a Conflict in a
// session that serves asks for a new one at once.
func isRefusal(at phase, err error) bool {
	switch wire.KindOf(err) {
	case wire.Denied, wire.Unauthenticated, wire.Expired, wire.BadUsage, wire.Unimplemented:
		return true
	case wire.Conflict:
		return at != serving
	}
	return false
}

// disconnected tells that there is no session, and why.
func (r *Runner) disconnected(err error) {
	r.mu.Lock()
	r.why = err
	r.mu.Unlock()
	r.notify(Event{Err: err})
}

// rest waits before the next session, and reports false when ctx has ended. A
// token that the server has not seen ends it, and begins the pauses anew.
func (r *Runner) rest(ctx context.Context, d time.Duration, pause *backoff) bool {
	r.pulse.due(d + callLimit)
	t := time.NewTimer(d)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			return true
		case <-r.tokens.stir:
			if r.tokens.fresh(r.look()) {
				r.log.Info("a new token has come: asking at once", "runner", r.name())
				pause.last = 0
				return true
			}
		case <-ctx.Done():
			return false
		}
	}
}

// session is one connection from dial to loss, and how long it served.
func (r *Runner) session(ctx context.Context) (at phase, lasted time.Duration, err error) {
	conn, err := r.cfg.Dial(ctx)
	if err != nil {
		return dialing, 0, err
	}
	s, err := mux.Connect(ctx, conn, mux.Config{Software: r.cfg.Software, Logger: r.log}, r.hello(), r.cfg.Key, nil)
	if err != nil {
		return greeting, 0, err
	}
	defer s.Close()
	began := time.Now()
	r.welcomed(s.Welcome().RunnerID)
	at, err = r.serve(ctx, s)
	return at, time.Since(began), err
}

// serve opens the work stream, says what is held, and follows orders until the
// stream, the session, the server's heartbeat or ctx ends. It returns how far
// that came.
func (r *Runner) serve(ctx context.Context, s *mux.Session) (at phase, err error) {
	at = joining
	ctx, cancel := context.WithCancelCause(ctx)
	var wg sync.WaitGroup
	defer r.standing.offline() // when nobody is left to say otherwise
	defer wg.Wait()
	defer cancel(errAbandoned)
	st, err := s.Open(ctx, wire.MethodWork, nil)
	if err != nil {
		return at, err
	}
	defer st.Close()
	w := &workStream{st: st, end: cancel}
	begin := r.begin()
	w.drain = begin.Draining
	if err := w.send(wire.WorkEvent{Begin: &begin}); err != nil {
		return at, err
	}
	r.setWork(w)
	defer r.setWork(nil)
	r.tellDrain() // what has changed since begin
	defer r.uplink.set(nil)

	var tended sync.Once
	limit := r.waits.firstOrder
	silence := newSilence(limit, s.Silence, func(left time.Duration) { r.pulse.due(left + callLimit) }, func() { cancel(errSilent) })
	defer silence.stop()
	for {
		r.pulse.due(limit + callLimit)
		var o wire.WorkOrder
		if err := st.RecvMsg(&o); err != nil {
			if cause := context.Cause(ctx); cause != nil {
				return at, cause
			}
			if errors.Is(err, io.EOF) {
				return at, errEnded
			}
			return at, err
		}
		r.pulse.due(callLimit)
		if o.Begun != nil {
			at = serving
			every := time.Duration(o.Begun.HeartbeatEvery)
			if every > 0 && limit == r.waits.firstOrder {
				limit = max(missedHeartbeats*every, r.waits.silence)
				wg.Go(func() { w.heartbeat(ctx, every, r) })
			}
			r.begun(w, *o.Begun)
			r.uplink.set(s)
			if !r.local() {
				tended.Do(func() { wg.Go(func() { r.tend(ctx, s) }) })
			}
		}
		silence.broken(limit)
		r.obey(w, o)
	}
}

// silence is given up when no order has come for some time and nothing else
// either: behind much that is on its way over a slow link an order waits.
type silence struct {
	limit  time.Duration            // guarded by mu
	of     func() time.Duration     // the session's
	goesOn func(left time.Duration) // it is not given up before left has passed
	over   func()

	mu    sync.Mutex
	timer *time.Timer // guarded by mu
}

func newSilence(limit time.Duration, of func() time.Duration, goesOn func(left time.Duration), over func()) *silence {
	s := &silence{limit: limit, of: of, goesOn: goesOn, over: over}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.timer = time.AfterFunc(limit, s.lasts)
	return s
}

// lasts looks whether it does.
func (s *silence) lasts() {
	s.mu.Lock()
	left := s.limit - s.of()
	if left > 0 {
		s.timer.Reset(left)
	}
	s.mu.Unlock()
	if left > 0 {
		s.goesOn(left)
	} else {
		s.over()
	}
}

// broken begins it anew.
func (s *silence) broken(limit time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.limit = limit
	s.timer.Reset(limit)
}

func (s *silence) stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.timer.Stop()
}

// workStream is the sending side of the work stream in use.
type workStream struct {
	st  *mux.Stream
	end context.CancelCauseFunc // ends the session

	mu    sync.Mutex // held while sending: one at a time
	drain bool       // what the server was told last; guarded by mu
}

// send says one thing to the server. An error means that the stream is broken,
// which its reader will find as well.
func (w *workStream) send(ev wire.WorkEvent) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.st.Send(ev)
}

// sayHolds is send of what is held at the moment of sending: an
// acknowledgement that went before it is of something that is in it.
func (w *workStream) sayHolds(r *Runner) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.sendHolds(r)
}

func (w *workStream) sendHolds(r *Runner) error {
	return w.st.Send(wire.WorkEvent{Holds: &wire.WorkHolds{Jobs: r.holds(), Waits: r.waiting()}})
}

// sayDrain says whether the server is to give nothing more, if that is news, and with
// it why.
func (w *workStream) sayDrain(r *Runner) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	on := r.wantsNothing()
	if w.drain == on {
		return nil
	}
	w.drain = on
	if err := w.st.Send(wire.WorkEvent{Drain: &on}); err != nil {
		return err
	}
	return w.sendHolds(r)
}

// heartbeat tells the server at every tick that this side lives, and what it
// holds: nothing that the two sides see differently stays so for long.
func (w *workStream) heartbeat(ctx context.Context, every time.Duration, r *Runner) {
	if len(r.waiting()) > 0 && w.sayHolds(r) != nil {
		return
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if w.sayHolds(r) != nil {
				return
			}
		}
	}
}

func (r *Runner) setWork(w *workStream) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.work = w
}

// uplink is the session over which attempts report and fetch: there is one
// from the server's Begun to the session's loss.
type uplink struct {
	mu      sync.Mutex
	session *mux.Session  // nil while there is none; guarded by mu
	changed chan struct{} // closed, and replaced, at each change; guarded by mu
}

func (u *uplink) set(s *mux.Session) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.session == s {
		return
	}
	u.session = s
	close(u.changed)
	u.changed = make(chan struct{})
}

// up reports whether there is a session.
func (u *uplink) up() bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.session != nil && u.session.Err() == nil
}

// wait returns the session in use, and waits for one that lives while there is none.
func (u *uplink) wait(ctx context.Context) (*mux.Session, error) {
	for {
		u.mu.Lock()
		s, changed := u.session, u.changed
		u.mu.Unlock()
		if s != nil && s.Err() == nil {
			return s, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// backoff is a pause that doubles.
type backoff struct {
	min, max time.Duration
	whole    bool          // it is never shorter than it says
	last     time.Duration // before jitter; 0 starts anew
}

// next is how long to wait now: between half of the pause and the whole of it,
// or between the whole of it and a quarter more.
func (b *backoff) next() time.Duration {
	b.last = min(max(2*b.last, b.min), b.max)
	if b.whole {
		return b.last + rand.N(b.last/4+1)
	}
	return b.last/2 + rand.N(b.last/2+1)
}

// sleep waits, and reports false when ctx has ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
