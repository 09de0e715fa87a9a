package mux

import (
	"context"
	"errors"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/yamux"

	"github.com/waypointd/waypoint/mux/wire"
)

// Session is one connection with its calls in both directions. All methods
// are safe for concurrent use.
type Session struct {
	cfg     Config
	peer    *Peer
	guard   *guard
	yamux   *yamux.Session
	welcome wire.Welcome
	table   Table
	slots   chan struct{} // one taken for each call that this side has open

	ctx    context.Context // of all handlers; ends with the session
	cancel context.CancelCauseFunc

	over sync.Once
	done chan struct{} // closed by end
	err  error         // set before done is closed

	served   sync.WaitGroup // the accept loop, the handlers and who watches the contact
	handling chan struct{}  // one taken for each call that is served
}

// slack is for calls that are over for the peer and not quite for this side:
// their handlers are about to return.
const slack = 64

// newSession puts guard and yamux over conn. Nothing is accepted until start.
func newSession(ctx context.Context, conn net.Conn, cfg Config, peer *Peer, dialing bool) (*Session, error) {
	s := &Session{
		cfg:      cfg,
		peer:     peer,
		guard:    newGuard(conn, dialing, cfg.WriteTimeout),
		slots:    make(chan struct{}, cfg.MaxStreams),
		handling: make(chan struct{}, 2*cfg.MaxStreams+slack),
		done:     make(chan struct{}),
	}
	s.ctx, s.cancel = context.WithCancelCause(context.WithoutCancel(ctx))
	s.guard.lost = s.end
	s.guard.budget, s.guard.limit = cfg.Unread, cfg.Limit

	yc := yamux.DefaultConfig()
	yc.LogOutput = nil
	yc.Logger = newYamuxLog(cfg.Logger, peer)
	// A dead peer on TCP is found by the side that dialed; the side that
	// accepted has TCP's own keepalive, and Unix sockets need none.
	yc.EnableKeepAlive = dialing && peer.Network == "tcp"
	yc.KeepAliveInterval = 15 * time.Second
	// After the guard's, which ends the session: yamux's own time-out would
	// leave a session behind that looks alive.
	yc.ConnectionWriteTimeout = cfg.WriteTimeout + 5*time.Second
	yc.StreamOpenTimeout = 0 // it would end the session, with a goroutine for each stream
	// How long a stream that we closed is kept when the peer never closes it.
	yc.StreamCloseTimeout = 30 * time.Second

	open := yamux.Server
	if dialing {
		open = yamux.Client
	}
	var err error
	if s.yamux, err = open(s.guard, yc); err != nil {
		closeConn(conn)
		return nil, err
	}
	return s, nil
}

// start begins to serve the peer's calls.
func (s *Session) start() {
	s.served.Go(s.accept)
}

// accept hands each stream to a goroutine of its own and never waits for one:
// yamux acknowledges a stream only when it is taken from its backlog.
func (s *Session) accept() {
	for {
		ys, err := s.yamux.AcceptStream()
		if err != nil {
			s.end(err)
			return
		}
		select {
		case s.handling <- struct{}{}:
			s.served.Go(func() {
				s.serve(ys)
				<-s.handling
			})
		default:
			s.cfg.Limit(LimitStreams, int64(cap(s.handling)))
			s.end(wire.Errorf(wire.TooLarge, "the peer has more than %d calls running", cap(s.handling)))
			return
		}
	}
}

// end ends the session, once, and does not wait. What the guard has seen is a
// better reason than what yamux made of it.
func (s *Session) end(err error) {
	s.over.Do(func() {
		if cause := s.guard.cause(); cause != nil && !errors.Is(err, ErrClosed) {
			err = cause
		}
		s.err = newLostError(err)
		s.guard.fail(s.err)
		s.guard.over.Store(true)
		close(s.done)
		s.cancel(s.err)
		s.guard.Close() // wakes yamux, whose own Close waits for its goroutines
	})
}

// lost ends the session when yamux has, and reports whether it is over.
func (s *Session) lost() bool {
	if s.yamux.IsClosed() {
		s.end(yamux.ErrSessionShutdown)
	}
	return s.Err() != nil
}

// Welcome is what the accepting side said; zero on the accepting side.
func (s *Session) Welcome() wire.Welcome { return s.welcome }

// Peer is who is at the other end.
func (s *Session) Peer() *Peer { return s.peer }

// Silence is how long the peer has sent nothing on any stream. One that is
// merely slow has much to send, and what it says on one stream waits behind that.
func (s *Session) Silence() time.Duration { return s.guard.silence() }

// Done is closed when the session has ended; Err then says why.
func (s *Session) Done() <-chan struct{} { return s.done }

// Err is nil while the session lives, then Unavailable with the reason.
func (s *Session) Err() error {
	select {
	case <-s.done:
		return s.err
	default:
		return nil
	}
}

// Abort ends the session with all its calls, which see reason, and does not
// wait. Unlike Close it may be called from a handler.
func (s *Session) Abort(reason error) { s.end(reason) }

// Close ends the session with all its calls and waits until the handlers it
// runs have returned; so a handler must not call it.
func (s *Session) Close() error {
	s.end(ErrClosed)
	err := s.yamux.Close()
	s.served.Wait()
	return err
}
