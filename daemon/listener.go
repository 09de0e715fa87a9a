package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/waypointd/waypoint/daemon/metrics"
	"github.com/waypointd/waypoint/mux/wire"
)

// Listener is a listener that may be for runners only: what is no agent's
// session is refused there, whoever asks, so that it can be opened to agents
// without making them operators.
type Listener struct {
	net.Listener
	Runners bool
}

// forRunners reports whether a listener is for runners only.
func forRunners(l net.Listener) bool {
	own, ok := l.(Listener)
	return ok && own.Runners
}

// door is how a connection has come in.
type door struct {
	runners bool // for runners only
	group   int  // of a Unix socket, whose members operate; 0 is none
}

// doorOf is that of a listener. The group is the one that may open its socket,
// as its mode says now: that the kernel let somebody in does not say why.
func doorOf(l net.Listener) door {
	d := door{runners: forRunners(l)}
	if l.Addr().Network() != "unix" || d.runners {
		return d
	}
	var st unix.Stat_t
	if err := unix.Lstat(l.Addr().String(), &st); err == nil && st.Mode&unix.S_IFMT == unix.S_IFSOCK && st.Mode&0o020 != 0 {
		d.group = int(st.Gid)
	}
	return d
}

// addListener takes note of a listener and says so in the log.
func (s *Server) addListener(l net.Listener) {
	a := l.Addr()
	entry := wire.Listener{Address: a.Network() + "://" + a.String(), Kind: wire.ForOperators}
	switch {
	case forRunners(l):
		entry.Kind = wire.ForRunners
	case a.Network() == "tcp":
		entry.Kind = wire.ForTCP
	}
	s.mu.Lock()
	s.listeners = append(s.listeners, entry)
	s.mu.Unlock()
	s.tell()
	s.announce(entry, a.Network() == "tcp")
}

// errForRunners refuses whoever is no agent, and says where others go.
func (s *Server) errForRunners() error {
	s.mu.Lock()
	var others []string
	for _, l := range s.listeners {
		if l.Kind != wire.ForRunners {
			others = append(others, l.Address)
		}
	}
	s.mu.Unlock()
	denied := wire.Errorf(wire.Denied, "only runners are served here")
	if len(others) == 0 {
		return denied
	}
	return denied.WithHint("operators use another address: --server-addr %s", strings.Join(others, " or "))
}

// accept takes connections from one listener until ctx ends. An error that
// passes is waited out; where it is that no descriptors are left, one
// connection that has not said hello makes room.
func (s *Server) accept(ctx context.Context, l net.Listener, serve func(session func(context.Context))) error {
	const pause = 100 * time.Millisecond // long enough not to spin, short enough not to be felt
	in := doorOf(l)
	for {
		conn, err := l.Accept()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				conn.Close()
			}
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("accept on %s: %w", l.Addr(), err)
		case errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE):
			s.tally.note(openFiles, l.Addr().String(), s.entrance.files)
			if s.entrance.shed() {
				continue
			}
		}
		if err != nil {
			if !errors.Is(err, unix.EMFILE) && !errors.Is(err, unix.ENFILE) {
				s.log.Warn("accept failed", "address", l.Addr().String(), "error", err)
			}
			select {
			case <-time.After(pause):
			case <-ctx.Done():
			}
			continue
		}
		g := s.entrance.enter(conn, s.cfg())
		if g == nil {
			s.metrics.Refused(metrics.TooMany)
			conn.Close()
			continue
		}
		serve(func(ctx context.Context) {
			defer s.entrance.leave(g)
			if !s.entrance.turn(ctx, g, s.cfg()) {
				conn.Close()
				return
			}
			s.serveConn(ctx, conn, in, func() { s.entrance.greeted(g) })
		})
	}
}

// sayLimit says in the log that a limit holds somebody up.
func (s *Server) sayLimit(limit, peer string, most, times int) {
	s.log.Warn("limit reached", "limit", limit, "most", most, "times", times, "peer", peer)
}
