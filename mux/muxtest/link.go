// Package muxtest makes sessions in memory that can be given faults: a link
// that drops, stalls, delays, or is cut at a byte. For tests only.
package muxtest

import (
	"net"
	"os"
	"sync"
	"time"

	"github.com/waypointd/waypoint/mux"
)

// Link is a connection in memory whose faults a test chooses. Each direction
// is named after the end that writes.
type Link struct {
	A, B net.Conn // A dials, B accepts, where that matters
}

// NewLink returns a link without faults.
func NewLink() *Link {
	a, b := mux.Pipe()
	return &Link{A: newEnd(a), B: newEnd(b)}
}

// Drop breaks the link off: both ends see it closed, and what is on its way
// may be lost.
func (l *Link) Drop() {
	l.A.Close()
	l.B.Close()
}

// CutAfter closes the link once n more bytes have been written by both ends
// together; those n bytes arrive.
func (l *Link) CutAfter(n int64) {
	c := &cut{left: n, link: l}
	l.A.(*end).change(func(e *end) { e.cut = c })
	l.B.(*end).change(func(e *end) { e.cut = c })
}

// Stall has the link take nothing more from the ends named, or from both, as
// when nobody reads at the far end: writes wait, up to their deadline.
func (l *Link) Stall(ends ...net.Conn) { l.stall(true, ends) }

// Resume ends a Stall.
func (l *Link) Resume() { l.stall(false, nil) }

func (l *Link) stall(on bool, ends []net.Conn) {
	if len(ends) == 0 {
		ends = []net.Conn{l.A, l.B}
	}
	for _, conn := range ends {
		conn.(*end).change(func(e *end) {
			if e.stalled != nil {
				close(e.stalled)
			}
			e.stalled = nil
			if on {
				e.stalled = make(chan struct{})
			}
		})
	}
}

// Delay holds every write back for d.
func (l *Link) Delay(d time.Duration) {
	l.A.(*end).change(func(e *end) { e.delay = d })
	l.B.(*end).change(func(e *end) { e.delay = d })
}

// end is one end of a link.
type end struct {
	net.Conn

	mu       sync.Mutex
	cut      *cut
	stalled  chan struct{} // closed by Resume; nil while nothing stalls
	delay    time.Duration
	deadline time.Time // of writes
	closed   chan struct{}
	once     sync.Once
}

// cut counts down to the end of a link.
type cut struct {
	mu   sync.Mutex
	left int64
	link *Link
}

// take returns how many of n bytes may pass.
func (c *cut) take(n int) (int, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	pass := min(int64(n), c.left)
	c.left -= pass
	return int(pass), c.left == 0
}

func newEnd(c net.Conn) *end { return &end{Conn: c, closed: make(chan struct{})} }

func (e *end) change(f func(*end)) {
	e.mu.Lock()
	f(e)
	e.mu.Unlock()
}

// SetWriteDeadline also governs the time a write is stalled.
func (e *end) SetWriteDeadline(t time.Time) error {
	e.change(func(e *end) { e.deadline = t })
	return e.Conn.SetWriteDeadline(t)
}

func (e *end) SetDeadline(t time.Time) error {
	e.change(func(e *end) { e.deadline = t })
	return e.Conn.SetDeadline(t)
}

func (e *end) Close() error {
	e.once.Do(func() { close(e.closed) })
	return e.Conn.Close()
}

func (e *end) Write(p []byte) (int, error) {
	for {
		e.mu.Lock()
		stalled, delay, deadline, c := e.stalled, e.delay, e.deadline, e.cut
		e.mu.Unlock()
		if stalled != nil {
			if err := wait(e, stalled, deadline); err != nil {
				return 0, err
			}
			continue
		}
		if delay > 0 {
			if err := wait(e, time.After(delay), deadline); err != nil {
				return 0, err
			}
		}
		if c == nil {
			return e.Conn.Write(p)
		}
		pass, over := c.take(len(p))
		n, err := e.Conn.Write(p[:pass])
		if over {
			c.link.Drop()
		}
		if err == nil && n < len(p) {
			err = net.ErrClosed
		}
		return n, err
	}
}

// wait waits for c; the deadline and the connection's end cut it short.
func wait[T any](e *end, c <-chan T, deadline time.Time) error {
	var late <-chan time.Time
	if !deadline.IsZero() {
		late = time.After(time.Until(deadline))
	}
	select {
	case <-c:
		return nil
	case <-late:
		return os.ErrDeadlineExceeded
	case <-e.closed:
		return net.ErrClosed
	}
}
