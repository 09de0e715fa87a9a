package daemon_test

import (
	"errors"
	"net"
	"path/filepath"
	"sync"
	"testing"

	"github.com/waypointd/waypoint/daemon"
	"github.com/waypointd/waypoint/daemon/daemontest"
	"github.com/waypointd/waypoint/mux"
	"github.com/waypointd/waypoint/mux/wire"
)

// lateClose is a listener that says that it is to be closed, and waits.
type lateClose struct {
	net.Listener
	once          sync.Once
	closing, free chan struct{}
}

func (l *lateClose) Close() error {
	l.once.Do(func() {
		close(l.closing)
		<-l.free
	})
	return l.Listener.Close()
}

// A server that is going breaks off no session while it may still take one: who
// comes again at once would be broken off a second time.
func TestSessionsOutliveListeners(t *testing.T) {
	s := daemontest.Start(t, daemon.Config{})
	path := filepath.Join(t.TempDir(), "s")
	inner, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	l := &lateClose{Listener: inner, closing: make(chan struct{}), free: make(chan struct{})}
	end := s.Serve(l)
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	session, err := mux.Connect(t.Context(), conn, mux.Config{}, wire.Hello{Role: wire.RoleClient}, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer session.Close()
	status := func() error {
		return session.Call(t.Context(), wire.MethodServerStatus, struct{}{}, nil)
	}
	free := sync.OnceFunc(func() { close(l.free) })
	defer free()
	ended := make(chan struct{})
	go func() {
		end()
		close(ended)
	}()
	<-l.closing
	for range 100 {
		if err := status(); err != nil {
			t.Fatalf("while the listener is open: %v", err)
		}
	}
	free()
	<-ended
	if err := status(); !errors.Is(err, mux.ErrLost) {
		t.Errorf("behind the end: %v", err)
	}
}
