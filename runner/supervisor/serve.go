package supervisor

import (
	"context"
	"errors"
	"net"
	"os"
	"sync"
	"time"

	"github.com/waypointd/waypoint/mux"
	"github.com/waypointd/waypoint/mux/wire"
)

// The methods behind the socket. They are this package's own: both ends are
// the same host's, but may be of different versions, since a supervisor lives as long as its
// jobs. The session's version (wire.VersionMin to VersionMax, settled by its hello) is theirs
// too: within it methods and fields are added, and neither is taken away nor
// given another meaning. A release speaks the versions of the one before it. An agent that shares
// none is refused, and its coming says that another release has taken the place of this one: see
// outlive. It finds its jobs' output and ends on the disk, whose formats have versions of their own.
const (
	methodStart   = "supervisor.start"   // MSG Spec -> success
	methodStop    = "supervisor.stop"    // stopRequest -> empty
	methodList    = "supervisor.list"    // empty -> MSG listPage*, at least one
	methodForget  = "supervisor.forget"  // JobRef -> empty
	methodWatch   = "supervisor.watch"   // empty -> MSG Event*
	methodInspect = "supervisor.inspect" // empty -> inspection

	methodTakeover = "supervisor.takeover" // empty -> empty, when the agents before this one are gone
	methodRetire   = "supervisor.retire"   // empty -> empty
)

type empty struct{}

type stopRequest struct {
	wire.JobRef
	Force bool `json:"force,omitempty"`
}

type listPage struct {
	Held []Status `json:"held"`
}

// inspection is what an agent learns about the supervisor itself.
type inspection struct {
	Isolation string `json:"isolation"`
	User      string `json:"user,omitempty"`
	PID       int    `json:"pid"`
	Version   string `json:"version,omitempty"`
}

// pageSize keeps a page of ends with long errors far below wire.MaxMsg.
const pageSize = 100

// table is the API. All of it is for this host's root and this process's
// user: see admit.
func (s *Supervisor) table() mux.Table {
	return mux.Table{
		methodStart: s.serveStart,
		methodStop: mux.Unary(func(ctx context.Context, _ *mux.Peer, r stopRequest) (empty, error) {
			return empty{}, s.Stop(ctx, r.JobRef, r.Force)
		}),
		methodList: s.serveList,
		methodForget: mux.Unary(func(ctx context.Context, _ *mux.Peer, r wire.JobRef) (empty, error) {
			return empty{}, s.Forget(ctx, r)
		}),
		methodWatch: func(ctx context.Context, st *mux.Stream) error {
			return s.Watch(ctx, func(e Event) { st.Send(e) }) // a failed send ends ctx
		},
		methodTakeover: mux.Unary(func(ctx context.Context, peer *mux.Peer, _ empty) (empty, error) {
			return empty{}, s.endBefore(ctx, peer.Data.(*agent))
		}),
		methodInspect: mux.Unary(func(context.Context, *mux.Peer, empty) (inspection, error) {
			return inspection{Isolation: s.Isolation(), User: s.User(), PID: s.PID(), Version: s.Version()}, nil
		}),
		methodRetire: mux.Unary(func(ctx context.Context, _ *mux.Peer, _ empty) (empty, error) {
			return empty{}, s.Retire(ctx)
		}),
	}
}

// serveStart takes the spec as a message: a call's body is too small for
// environments.
func (s *Supervisor) serveStart(ctx context.Context, st *mux.Stream) error {
	var spec Spec
	if err := st.RecvMsg(&spec); err != nil {
		return err
	}
	return s.Start(ctx, spec)
}

func (s *Supervisor) serveList(ctx context.Context, st *mux.Stream) error {
	all, err := s.List(ctx)
	if err != nil {
		return err
	}
	for {
		n := min(len(all), pageSize)
		if err := st.Send(listPage{Held: all[:n]}); err != nil {
			return err
		}
		if all = all[n:]; len(all) == 0 {
			return nil
		}
	}
}

// mayAsk lets in who could do all of it anyway.
func mayAsk(peer *mux.Peer) error {
	if peer.Network == "unix" && peer.UID != 0 && peer.UID != os.Geteuid() {
		return wire.Errorf(wire.Denied, "this supervisor belongs to user %d, not to user %d", os.Geteuid(), peer.UID)
	}
	if peer.Network == "tcp" {
		return wire.Errorf(wire.Denied, "a supervisor is not to be reached by network")
	}
	return nil
}

// admit gives an agent the whole table.
func (s *Supervisor) admit(peer *mux.Peer, a *agent) (*mux.Admission, error) {
	if err := mayAsk(peer); err != nil {
		return nil, err
	}
	if peer.Hello.Role != wire.RoleSupervisor {
		return nil, wire.Errorf(wire.BadUsage, "this is a supervisor of jobs, no server").
			WithHint("use the server's address")
	}
	return &mux.Admission{Table: s.table(), Data: a}, nil
}

// outlive retires, as an agent of a release has come that cannot speak with this one, and so cannot
// ask for it: nobody else gives jobs to it any more. It reports whether that is so; the
// agent comes again and again, and is spoken of once.
func (s *Supervisor) outlive(ctx context.Context, stranger *mux.VersionError) bool {
	peer := stranger.Peer
	if peer.Hello.Role != wire.RoleSupervisor || mayAsk(peer) != nil {
		return false
	}
	s.mu.Lock()
	known := s.life.retiring
	s.mu.Unlock()
	if !known {
		s.log.Warn("agent is of a release that cannot be spoken with", "error", stranger.Refusal.Message)
	}
	return s.Retire(ctx) == nil
}

// What ends Serve by itself: nothing has gone on for some time; or it was asked
// to end, and no job runs.
var (
	errIdle    = errors.New("idle")
	errRetired = errors.New("retired")
)

// Serve serves Jobs to agents until ctx ends; until no job runs, once it has been asked
// to Retire; or, with idleAfter above 0, until no job has run and no agent has been connected
// for so long. It closes the listener and its sessions, not the Supervisor. Serve once.
func (s *Supervisor) Serve(ctx context.Context, ln net.Listener, idleAfter time.Duration) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var sessions sync.WaitGroup
	defer sessions.Wait()
	defer context.AfterFunc(ctx, func() { ln.Close() })()
	defer ln.Close()
	defer s.retirable(func() { cancel(errRetired) })()
	if idleAfter > 0 {
		stop := s.watchIdle(idleAfter, func() { cancel(errIdle) })
		defer stop()
	}
	for {
		conn, err := ln.Accept()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				conn.Close()
			}
			cancel(nil)
			return nil
		case err != nil:
			cancel(err)
			return wire.Errorf(wire.Unavailable, "accept agents: %v", err)
		}
		a := s.arrive(conn)
		sessions.Go(func() {
			defer s.leave(a)
			session, err := mux.Accept(ctx, conn, mux.Config{Software: software(s.life.version), Logger: s.log}, func(_ context.Context, peer *mux.Peer) (*mux.Admission, error) {
				return s.admit(peer, a)
			})
			if stranger, ok := errors.AsType[*mux.VersionError](err); ok && s.outlive(ctx, stranger) {
				return
			}
			if err != nil {
				s.log.Warn("accept agent", "error", err.Error())
				return
			}
			select {
			case <-session.Done():
			case <-ctx.Done():
			}
			session.Close()
		})
	}
}

// agent is one connection.
type agent struct {
	number int // in the order of their arrival
	conn   net.Conn
	gone   chan struct{} // closed by leave: no call of its runs any more
}

func (s *Supervisor) arrive(conn net.Conn) *agent {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.arrivals++
	a := &agent{number: s.arrivals, conn: conn, gone: make(chan struct{})}
	s.agents[a] = struct{}{}
	s.busyLocked()
	return a
}

func (s *Supervisor) leave(a *agent) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.agents, a)
	close(a.gone)
	s.busyLocked()
}

// endBefore ends the agents that arrived before one, and waits for the calls
// that they have under way.
func (s *Supervisor) endBefore(ctx context.Context, a *agent) error {
	var before []*agent
	s.mu.Lock()
	for other := range s.agents {
		if other.number < a.number {
			before = append(before, other)
		}
	}
	s.mu.Unlock()
	for _, other := range before {
		other.conn.Close()
	}
	for _, other := range before {
		select {
		case <-other.gone:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// watchIdle calls expired once nothing has gone on for d; nothing is started
// from then on.
func (s *Supervisor) watchIdle(d time.Duration, expired func()) (stop func()) {
	var timer *time.Timer // guarded by s.mu, like all that follows
	gone := false
	s.mu.Lock()
	defer s.mu.Unlock()
	s.idle = func(idle bool) {
		if timer != nil {
			timer.Stop()
			timer = nil
		}
		if !idle || gone {
			return
		}
		var t *time.Timer
		t = time.AfterFunc(d, func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			if timer == t { // not stopped in the meantime
				s.leaving, gone = true, true
				expired()
			}
		})
		timer = t
	}
	s.busyLocked()
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.idle(false)
		s.idle = nil
	}
}
