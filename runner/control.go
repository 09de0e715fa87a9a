package runner

import (
	"context"
	"crypto/ed25519"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/waypointd/waypoint/mux"
	"github.com/waypointd/waypoint/mux/wire"
	"github.com/waypointd/waypoint/runner/supervisor"
	"github.com/waypointd/waypoint/statedir"
)

// ControlSocket is the agent's socket in its state directory, at which the
// command line on this host asks and drains it, also with the server down.
const ControlSocket = "agent.sock"

// ListenControl makes the socket in dir, whose lock the caller holds. The path
// may be of any length.
func ListenControl(dir string) (net.Listener, error) {
	l, err := supervisor.Listen(dir, ControlSocket)
	if err != nil {
		return nil, wire.Errorf(wire.Unavailable, "listen for commands: %v", err)
	}
	return l, nil
}

// DialControl connects to the agent that keeps its state in dir. Errors are
// Unavailable where none runs, and Denied where it is another user's.
func DialControl(ctx context.Context, dir string) (net.Conn, error) {
	conn, err := supervisor.Dial(ctx, "agent", filepath.Join(dir, ControlSocket))
	if err == nil {
		return conn, nil
	}
	if e, ok := errors.AsType[*wire.Error](err); ok && ctx.Err() == nil {
		if e.Kind == wire.Denied {
			return nil, e.WithHint("ask as the agent's user, or with sudo")
		}
		return nil, e.WithHint("start `waypoint runner agent` on this host, or name its directory with --state-dir")
	}
	return nil, err
}

// ServeControl serves the command line on this host until ctx ends, which is
// no error. It closes the listener and its sessions. It may be called before
// Run, beside it, and once.
func (r *Runner) ServeControl(ctx context.Context, l net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	var sessions sync.WaitGroup
	defer sessions.Wait()
	defer cancel()
	defer context.AfterFunc(ctx, func() { l.Close() })()
	defer l.Close()
	for {
		conn, err := l.Accept()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				conn.Close()
			}
			return nil
		case errors.Is(err, net.ErrClosed):
			return wire.Errorf(wire.Unavailable, "accept commands: %v", err)
		case err != nil: // out of files: later, perhaps
			r.log.Warn("command cannot be accepted", "error", err)
			sleep(ctx, r.waits.accept)
			continue
		}
		sessions.Go(func() { r.control(ctx, conn) })
	}
}

// control serves one command line.
func (r *Runner) control(ctx context.Context, conn net.Conn) {
	cfg := mux.Config{Software: r.cfg.Software, Logger: r.log, MaxStreams: 16}
	s, err := mux.Accept(ctx, conn, cfg, func(_ context.Context, p *mux.Peer) (*mux.Admission, error) {
		if err := mayControl(p); err != nil {
			return nil, err
		}
		return &mux.Admission{Welcome: wire.Welcome{RunnerID: r.name()}, Table: r.controls()}, nil
	})
	if err != nil {
		r.log.Warn("command refused", "error", err)
		return
	}
	select {
	case <-s.Done():
	case <-ctx.Done():
	}
	s.Close()
}

// mayControl lets in who could do all of it anyway: this process's user, and root.
func mayControl(p *mux.Peer) error {
	switch {
	case p.Network == "tcp":
		return wire.Errorf(wire.Denied, "an agent is not to be reached by network")
	case p.UID != 0 && p.UID != os.Geteuid():
		return wire.Errorf(wire.Denied, "this agent belongs to user %d, not to user %d", os.Geteuid(), p.UID).
			WithHint("ask as that user, or with sudo")
	case p.Hello.Role != wire.RoleClient:
		return wire.Errorf(wire.BadUsage, "this is a runner's agent, no server").WithHint("use the server's address")
	}
	return nil
}

// controls is what can be asked of an agent.
func (r *Runner) controls() mux.Table {
	return mux.Table{
		wire.MethodAgentStatus: mux.Unary(func(context.Context, *mux.Peer, wire.AgentStatusRequest) (wire.AgentStatus, error) {
			return r.Status(), nil
		}),
		wire.MethodAgentDrain: mux.Unary(func(_ context.Context, _ *mux.Peer, req wire.DrainRequest) (wire.AgentStatus, error) {
			if req.ID != "" && req.ID != r.name() {
				return wire.AgentStatus{}, wire.Errorf(wire.NotFound, "drain runner: this is %q, not %q", r.name(), req.ID)
			}
			if err := r.drainHost(req.Drain); err != nil {
				return wire.AgentStatus{}, err
			}
			return r.Status(), nil
		}),
		wire.MethodAgentWait: mux.Unary(func(ctx context.Context, _ *mux.Peer, _ wire.AgentStatusRequest) (wire.AgentStatus, error) {
			if err := r.awaitIdle(ctx); err != nil {
				return wire.AgentStatus{}, err
			}
			return r.Status(), nil
		}),
	}
}

// Status is how the runner fares at this moment.
func (r *Runner) Status() wire.AgentStatus {
	_, version, _ := strings.Cut(r.cfg.Software, " ")
	st := wire.AgentStatus{
		ID: r.name(), Version: version, PID: os.Getpid(), Server: r.cfg.Server,
		Fingerprint: statedir.Fingerprint(r.cfg.Key.Public().(ed25519.PublicKey)),
		Concurrency: r.cfg.Concurrency, Jobs: r.holds(), Waits: r.waiting(),
	}
	st.Supervisor = wire.AgentSupervisor{State: r.parent.state(), Dir: r.cfg.Dir, Problem: text(r.parent.problem())}
	if jobs := r.parent.now(); jobs != nil {
		st.Supervisor.PID, st.Supervisor.Version, st.Supervisor.Isolation = jobs.PID(), jobs.Version(), jobs.Isolation()
		st.Supervisor.User = jobs.User()
	}
	st.Standing, st.Connected = r.standing.now()
	r.mu.Lock()
	st.Draining, st.Stopping = r.drained, r.stopping
	if !st.Connected {
		st.Error = text(r.why)
	}
	r.mu.Unlock()
	return st
}
