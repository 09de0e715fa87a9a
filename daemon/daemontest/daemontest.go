// Package daemontest runs a whole server inside a test, with clients and
// runners as actors: a Runner here speaks the wire by hand, so that a test
// says exactly what it does and when. For tests only.
package daemontest

import (
	"context"
	"log/slog"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/waypointd/waypoint/daemon"
	"github.com/waypointd/waypoint/mux"
	"github.com/waypointd/waypoint/mux/client"
	"github.com/waypointd/waypoint/mux/wire"
)

// Patience bounds every wait of a test; reaching it is a failure.
const Patience = 20 * time.Second

// Server is a server that can be stopped and started again on its directory.
type Server struct {
	t   testing.TB
	cfg daemon.Config

	mu     sync.Mutex
	server *daemon.Server // guarded by mu; nil while stopped
	conns  sync.WaitGroup
}

// Start runs a server in a directory of its own, or in cfg.StateDir.
func Start(t testing.TB, cfg daemon.Config) *Server {
	t.Helper()
	if cfg.StateDir == "" {
		cfg.StateDir = t.TempDir()
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	if cfg.MaxPendingPerPeer == 0 {
		cfg.MaxPendingPerPeer = 1000 // all of a test are of one user
	}
	if cfg.Software == "" {
		cfg.Software = "waypoint test"
	}
	s := &Server{t: t, cfg: cfg}
	s.Restart()
	t.Cleanup(s.Stop)
	return s
}

// Restart stops the server, if it runs, and starts it anew.
func (s *Server) Restart() {
	s.t.Helper()
	s.Stop()
	d, err := daemon.New(context.Background(), s.cfg)
	if err != nil {
		s.t.Fatalf("start server: %v", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.server = d
}

// Reload changes the configuration of the server that runs, and of those after it.
func (s *Server) Reload(change func(*daemon.Config)) {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	change(&s.cfg)
	if _, err := s.server.Reload(context.Background(), s.cfg); err != nil {
		s.t.Fatalf("reload server: %v", err)
	}
}

// Stop ends the server with all its sessions.
func (s *Server) Stop() {
	s.mu.Lock()
	d := s.server
	s.server = nil
	s.mu.Unlock()
	if d == nil {
		return
	}
	if err := d.Close(); err != nil {
		s.t.Errorf("stop server: %v", err)
	}
	s.conns.Wait()
}

// Dial connects in memory; while the server is stopped it is Unavailable.
func (s *Server) Dial(context.Context) (net.Conn, error) {
	s.mu.Lock() // until conns has it: Stop waits for them
	defer s.mu.Unlock()
	d := s.server
	if d == nil {
		return nil, wire.Errorf(wire.Unavailable, "the server is stopped")
	}
	near, far := mux.Pipe()
	s.conns.Go(func() { d.ServeConn(context.Background(), far) })
	return near, nil
}

// Serve has the running server listen; the returned function ends that.
func (s *Server) Serve(l net.Listener) (end func()) {
	s.mu.Lock()
	d := s.server
	s.mu.Unlock()
	ctx, cancel := context.WithCancel(context.Background())
	over := make(chan error, 1)
	go func() { over <- d.Serve(ctx, l) }()
	return func() {
		cancel()
		if err := <-over; err != nil {
			s.t.Errorf("serve: %v", err)
		}
	}
}

// ServeMetrics has the running server tell its metrics; the returned function
// ends that.
func (s *Server) ServeMetrics(l net.Listener) (end func()) {
	s.mu.Lock()
	d := s.server
	s.mu.Unlock()
	ctx, cancel := context.WithCancel(context.Background())
	over := make(chan error, 1)
	go func() { over <- d.ServeMetrics(ctx, l) }()
	return func() {
		cancel()
		if err := <-over; err != nil {
			s.t.Errorf("serve metrics: %v", err)
		}
	}
}

// Client is a new client of the server.
func (s *Server) Client(t testing.TB) *client.Client {
	t.Helper()
	c, err := client.Dial(t.Context(), client.Config{Dial: s.Dial, Software: "waypoint test"})
	if err != nil {
		t.Fatalf("dial: %v", err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}
