package runner

import (
	"context"
	"errors"
	"io"
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
)

// connect makes one session after the other until ctx ends, or a refusal ends
// the Run. Pauses are jittered, grow, and are short again after a session that
// lasted longer than the pause before it: so a server that comes back is found
// at once, and one that takes sessions and drops them is not hammered.
func (r *Runner) connect(ctx context.Context) {
	lost := backoff{min: r.waits.connectMin, max: r.waits.connectMax}
	refused := backoff{min: r.waits.refusedMin, max: r.waits.refusedMax}
	for {
		began := time.Now()
		atHello, err := r.session(ctx)
		if ctx.Err() != nil {
			return
		}
		if k := wire.KindOf(err); atHello && (k == wire.Conflict || k == wire.Denied && r.cfg.Once) {
			r.log.Error("server refused this runner", "runner", r.cfg.ID, "err", err)
			r.end(err)
			return
		}
		r.log.Warn("not connected", "err", err)
		r.notify(Event{Err: err})
		pause := &lost
		if isRefusal(err) {
			pause = &refused
		}
		if time.Since(began) > pause.last {
			lost.last, refused.last = 0, 0
		}
		if !sleep(ctx, pause.next()) {
			return
		}
	}
}

// isRefusal tells a server that does not want this runner from one that is
// not there: the former is asked again slowly.
func isRefusal(err error) bool {
	switch wire.KindOf(err) {
	case wire.Denied, wire.Unauthenticated, wire.Expired, wire.BadUsage, wire.Conflict, wire.Unimplemented:
		return true
	}
	return false
}

// session is one connection from dial to loss. atHello says that the error is
// the server's answer to the hello.
func (r *Runner) session(ctx context.Context) (atHello bool, err error) {
	conn, err := r.cfg.Dial(ctx)
	if err != nil {
		return false, err
	}
	s, err := mux.Connect(ctx, conn, mux.Config{Software: r.cfg.Software, Logger: r.log}, r.hello(), r.cfg.Key, nil)
	if err != nil {
		return true, err
	}
	defer s.Close()
	r.welcomed(s.Welcome().RunnerID)
	return false, r.serve(ctx, s)
}

// serve opens the work stream, says what is held, and follows orders until the
// stream, the session, the server's heartbeat or ctx ends.
func (r *Runner) serve(ctx context.Context, s *mux.Session) error {
	ctx, cancel := context.WithCancelCause(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel(errAbandoned)
	st, err := s.Open(ctx, wire.MethodWork, nil)
	if err != nil {
		return err
	}
	defer st.Close()
	w := &workStream{st: st}
	begin := r.begin()
	w.drain = begin.Draining
	if err := w.send(wire.WorkEvent{Begin: &begin}); err != nil {
		return err
	}
	r.setWork(w)
	defer r.setWork(nil)
	defer r.uplink.set(nil)

	limit := r.waits.firstOrder
	silence := time.AfterFunc(limit, func() { cancel(errSilent) })
	defer silence.Stop()
	for {
		var o wire.WorkOrder
		if err := st.RecvMsg(&o); err != nil {
			if cause := context.Cause(ctx); cause != nil {
				return cause
			}
			if errors.Is(err, io.EOF) {
				return errEnded
			}
			return err
		}
		if o.Begun != nil {
			every := time.Duration(o.Begun.HeartbeatEvery)
			if every > 0 && limit == r.waits.firstOrder {
				limit = missedHeartbeats * every
				wg.Go(func() { w.heartbeat(ctx, every, r.holds) })
			}
			r.begun(w, *o.Begun)
			r.uplink.set(s)
		}
		silence.Reset(limit)
		r.obey(w, o)
	}
}

// workStream is the sending side of the work stream in use.
type workStream struct {
	st *mux.Stream

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
func (w *workStream) sayHolds(holds func() []wire.JobRef) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.st.Send(wire.WorkEvent{Holds: &wire.WorkHolds{Jobs: holds()}})
}

// sendDrain says whether the server is to give nothing more, if that is news.
func (w *workStream) sendDrain(on bool) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.drain == on {
		return nil
	}
	w.drain = on
	return w.st.Send(wire.WorkEvent{Drain: &on})
}

// heartbeat tells the server at every tick that this side lives, and what it
// holds: nothing that the two sides see differently stays so for long.
func (w *workStream) heartbeat(ctx context.Context, every time.Duration, holds func() []wire.JobRef) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if w.sayHolds(holds) != nil {
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
	last     time.Duration // before jitter; 0 starts anew
}

// next is how long to wait now: between half of the pause and the whole of it.
func (b *backoff) next() time.Duration {
	b.last = min(max(2*b.last, b.min), b.max)
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
