package mux

import (
	"io"
	"net"
	"os"
	"sync"
	"time"
)

const memoryNetwork = "memory"

// pipeCapacity is what a pipe holds in one direction before a write waits:
// about what a Unix socket does.
const pipeCapacity = 256 << 10

// Pipe is a connected pair in memory, for local mode and tests: buffered, so
// that a write does not wait for a read, with deadlines. Closing one end is
// io.EOF at the other once it has read what was written.
func Pipe() (net.Conn, net.Conn) {
	a, b := newHalf(), newHalf()
	return &pipeConn{in: a, out: b}, &pipeConn{in: b, out: a}
}

type memoryAddr struct{}

func (memoryAddr) Network() string { return memoryNetwork }
func (memoryAddr) String() string  { return memoryNetwork }

// pipeConn is one end.
type pipeConn struct {
	in, out *half
}

func (c *pipeConn) Read(p []byte) (int, error)  { return c.in.read(p) }
func (c *pipeConn) Write(p []byte) (int, error) { return c.out.write(p) }

func (c *pipeConn) Close() error {
	c.in.close(&c.in.readClosed)
	c.out.close(&c.out.writeClosed)
	return nil
}

func (c *pipeConn) LocalAddr() net.Addr  { return memoryAddr{} }
func (c *pipeConn) RemoteAddr() net.Addr { return memoryAddr{} }

func (c *pipeConn) SetDeadline(t time.Time) error {
	c.SetReadDeadline(t)
	return c.SetWriteDeadline(t)
}

func (c *pipeConn) SetReadDeadline(t time.Time) error  { return c.in.setDeadline(&c.in.readEnd, t) }
func (c *pipeConn) SetWriteDeadline(t time.Time) error { return c.out.setDeadline(&c.out.writeEnd, t) }

// half is one direction.
type half struct {
	mu          sync.Mutex
	changed     sync.Cond // after each change of what follows
	buf         []byte    // a ring: n bytes from r on
	r, n        int
	readClosed  bool
	writeClosed bool
	readEnd     pipeDeadline
	writeEnd    pipeDeadline
}

// pipeDeadline is guarded by its half's mu.
type pipeDeadline struct {
	timer  *time.Timer
	passed bool
}

func newHalf() *half {
	h := &half{}
	h.changed.L = &h.mu
	return h
}

func (h *half) read(p []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for {
		switch {
		case h.readClosed:
			return 0, net.ErrClosed
		case h.readEnd.passed:
			return 0, os.ErrDeadlineExceeded
		case h.n > 0:
			first := min(h.n, len(h.buf)-h.r)
			n := copy(p, h.buf[h.r:h.r+first])
			n += copy(p[n:], h.buf[:h.n-first])
			h.r = (h.r + n) % len(h.buf)
			if h.n -= n; h.n == 0 {
				h.r = 0
			}
			h.changed.Broadcast()
			return n, nil
		case h.writeClosed:
			return 0, io.EOF
		case len(p) == 0:
			return 0, nil
		}
		h.changed.Wait()
	}
}

func (h *half) write(p []byte) (n int, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for {
		switch {
		case h.writeClosed:
			return n, net.ErrClosed
		case h.writeEnd.passed:
			return n, os.ErrDeadlineExceeded
		case h.readClosed:
			return n, io.ErrClosedPipe
		case n == len(p):
			return n, nil
		}
		if h.n < pipeCapacity {
			n += h.put(p[n:])
			h.changed.Broadcast()
			continue
		}
		h.changed.Wait()
	}
}

// put appends what there is room for.
func (h *half) put(p []byte) int {
	p = p[:min(len(p), pipeCapacity-h.n)]
	if need := h.n + len(p); need > len(h.buf) {
		grown := make([]byte, min(pipeCapacity, max(2*len(h.buf), need, 4<<10)))
		k := copy(grown, h.buf[h.r:min(h.r+h.n, len(h.buf))])
		copy(grown[k:], h.buf[:h.n-k])
		h.buf, h.r = grown, 0
	}
	w := (h.r + h.n) % len(h.buf)
	k := copy(h.buf[w:], p)
	copy(h.buf, p[k:])
	h.n += len(p)
	return len(p)
}

func (h *half) close(which *bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	*which = true
	for _, d := range []*pipeDeadline{&h.readEnd, &h.writeEnd} {
		if h.readClosed && h.writeClosed && d.timer != nil {
			d.timer.Stop()
		}
	}
	h.changed.Broadcast()
}

func (h *half) setDeadline(d *pipeDeadline, t time.Time) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
	d.passed = !t.IsZero() && time.Until(t) <= 0
	if !t.IsZero() && !d.passed {
		var timer *time.Timer
		timer = time.AfterFunc(time.Until(t), func() {
			h.mu.Lock()
			defer h.mu.Unlock()
			if d.timer == timer { // not replaced meanwhile
				d.passed = true
				h.changed.Broadcast()
			}
		})
		d.timer = timer
	}
	h.changed.Broadcast()
	return nil
}
