package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"sync"
	"time"

	"github.com/waypointd/waypoint/daemon"
	"github.com/waypointd/waypoint/mux"
	"github.com/waypointd/waypoint/mux/wire"
)

// localServer is the server of local mode: a whole one, over a store of the
// user's own, for as long as the command lasts.
type localServer struct {
	srv      *daemon.Server
	ctx      context.Context
	stop     context.CancelFunc
	sessions sync.WaitGroup
}

// stateHome is where a user's programs keep what they remember.
func (a *app) stateHome() (string, error) {
	if dir := a.env.get("XDG_STATE_HOME"); filepath.IsAbs(dir) {
		return dir, nil
	}
	if home := a.env.get("HOME"); filepath.IsAbs(home) {
		return filepath.Join(home, ".local", "state"), nil
	}
	return "", wire.Errorf(wire.BadUsage, "find state directory: neither XDG_STATE_HOME nor HOME is set").
		WithHint("set XDG_STATE_HOME, or name a server with --server-addr")
}

// Between looks at a store that another command uses. Locks have no event
// that says they are free.
const (
	lockLookFirst = 10 * time.Millisecond
	lockLookLast  = 200 * time.Millisecond
)

// localLease is how long a local server waits for the runner of a job. The
// runner lives in the same process and is never out of contact: a job that a
// new server finds running was that of a command that has been killed.
const localLease = time.Millisecond

// startLocalServer opens the user's store. Commands in local mode use it one
// after the other: a second one says for whom it waits. Only a command that a
// local job itself has started is refused, because the job would wait for it
// for ever.
func (a *app) startLocalServer(log *slog.Logger) (*localServer, error) {
	home, err := a.stateHome()
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(home, "waypoint")
	if !a.NoServer {
		a.note("no server: local mode, state in %s", dir)
	}
	waiting := false
	for look := lockLookFirst; ; look = min(2*look, lockLookLast) {
		srv, err := daemon.New(a.ctx, daemon.Config{
			StateDir: dir, Software: software(), Logger: log, Lease: localLease, StoreReserve: -1,
		})
		switch {
		case err == nil:
			l := &localServer{srv: srv}
			l.ctx, l.stop = context.WithCancel(context.WithoutCancel(a.ctx))
			return l, nil
		case wire.KindOf(err) != wire.Conflict:
			return nil, fmt.Errorf("open local store: %w", err)
		case a.env.get("WAYPOINT_JOB_ID") != "":
			return nil, wire.Errorf(wire.Conflict, "open local store: %v", err).
				WithHint("a job in local mode cannot use local mode itself: name a server with --server-addr, or set another XDG_STATE_HOME")
		}
		if !waiting {
			waiting = true
			a.note("waiting for another command in local mode: %v", err)
		}
		select {
		case <-a.ctx.Done():
			return nil, fmt.Errorf("wait for local store: %w", context.Cause(a.ctx))
		case <-time.After(look):
		}
	}
}

// dial connects to the server in memory.
func (l *localServer) dial(context.Context) (net.Conn, error) {
	near, far := mux.Pipe()
	l.sessions.Go(func() { l.srv.ServeConn(l.ctx, far) })
	return near, nil
}

// close ends the server once its sessions have ended.
func (l *localServer) close() error {
	l.stop()
	l.sessions.Wait()
	if err := l.srv.Close(); err != nil {
		return fmt.Errorf("close local store: %w", err)
	}
	return nil
}
