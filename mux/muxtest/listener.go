package muxtest

import (
	"context"
	"net"
	"sync"

	"github.com/waypointd/waypoint/mux"
	"github.com/waypointd/waypoint/mux/wire"
)

// Listener is a listener in memory. While it is down, which it is from Stop
// to Start, dialing fails as it does where no server listens.
type Listener struct {
	queue  chan net.Conn
	closed chan struct{}
	once   sync.Once

	mu    sync.Mutex
	down  bool
	links []*Link
}

// Listen returns a listener that is up.
func Listen() *Listener {
	return &Listener{queue: make(chan net.Conn, 128), closed: make(chan struct{})}
}

// Dial connects to it; the signature is that of client.Config's Dial.
func (l *Listener) Dial(ctx context.Context) (net.Conn, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.down {
		return nil, wire.Errorf(wire.Unavailable, "connect to memory: nobody listens there")
	}
	link := NewLink()
	select {
	case l.queue <- link.B:
		l.links = append(l.links, link)
		return link.A, nil
	case <-l.closed:
		return nil, wire.Errorf(wire.Unavailable, "connect to memory: the listener is closed")
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// Links are all connections made so far, the newest last.
func (l *Listener) Links() []*Link {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]*Link(nil), l.links...)
}

// Drop breaks off all connections; new ones can be made.
func (l *Listener) Drop() {
	for _, link := range l.Links() {
		link.Drop()
	}
}

// Stop breaks off all connections and refuses new ones.
func (l *Listener) Stop() {
	l.mu.Lock()
	l.down = true
	l.mu.Unlock()
	l.Drop()
}

// Start takes connections again.
func (l *Listener) Start() {
	l.mu.Lock()
	l.down = false
	l.mu.Unlock()
}

// Accept waits for a connection.
func (l *Listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.queue:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

// Close ends Accept; connections that were made live on.
func (l *Listener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

// Addr has the network "memory".
func (l *Listener) Addr() net.Addr {
	a, b := mux.Pipe()
	defer a.Close()
	defer b.Close()
	return a.LocalAddr()
}

// Serve accepts sessions with admit until the listener is closed, and returns
// once all of them have ended. Peers that are refused are its test's affair.
func (l *Listener) Serve(ctx context.Context, cfg mux.Config, admit mux.Admit) {
	var sessions sync.WaitGroup
	defer sessions.Wait()
	for {
		conn, err := l.Accept()
		if err != nil {
			l.Drop()
			return
		}
		sessions.Go(func() {
			s, err := mux.Accept(ctx, conn, cfg, admit)
			if err != nil {
				return
			}
			<-s.Done()
			s.Close()
		})
	}
}
