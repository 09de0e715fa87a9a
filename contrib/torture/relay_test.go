package torture

import (
	"context"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"
)

// link is what a relay makes of its connections.
type link struct {
	latency time.Duration // one way
	rate    int           // bytes a second in each direction of a connection; 0 is any
	pieces  int           // what was written at once arrives in pieces of up to so many bytes; 0: as it was
	hold    time.Duration // a connection is held for up to so long before the server sees it: later ones overtake
}

// relay stands between somebody and the server: a slow or bad link for hosts on
// which the kernel makes none.
type relay struct {
	t    testing.TB
	l    net.Listener
	to   string
	link link

	mu    sync.Mutex
	r     *rand.Rand        // guarded by mu
	open  map[*relayed]bool // guarded by mu
	total int               // connections ever; guarded by mu
	wg    sync.WaitGroup
	ctx   context.Context
}

// relayed is one connection: near is its dialer's end, far the server's.
type relayed struct{ near, far *net.TCPConn }

// onTheWay bounds what is read and not yet passed on, in each direction, in chunks.
const onTheWay = 16

func newRelay(t testing.TB, to string, seed uint64, k link) *relay {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	r := &relay{t: t, l: l, to: to, link: k, r: rand.New(rand.NewPCG(seed, 99)), open: map[*relayed]bool{}, ctx: ctx}
	r.wg.Go(r.accept)
	t.Cleanup(func() {
		cancel()
		l.Close()
		for c := range r.living() {
			c.near.Close()
			c.far.Close()
		}
		r.wg.Wait()
	})
	return r
}

func (r *relay) addr() string { return r.l.Addr().String() }

// draw is a number below n.
func (r *relay) draw(n int) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.r.IntN(n)
}

func (r *relay) living() map[*relayed]bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	m := make(map[*relayed]bool, len(r.open))
	for c := range r.open {
		m[c] = true
	}
	return m
}

func (r *relay) accept() {
	for {
		near, err := r.l.Accept()
		if err != nil {
			return
		}
		r.wg.Go(func() { r.pass(near.(*net.TCPConn)) })
	}
}

// pass serves one connection to its end.
func (r *relay) pass(near *net.TCPConn) {
	defer near.Close()
	if r.link.hold > 0 && !r.wait(time.Duration(r.draw(int(r.link.hold)))) {
		return
	}
	conn, err := net.Dial("tcp", r.to)
	if err != nil {
		near.SetLinger(0) // as the server has refused it
		return
	}
	c := &relayed{near: near, far: conn.(*net.TCPConn)}
	defer c.far.Close()
	for _, end := range []*net.TCPConn{c.near, c.far} {
		end.SetReadBuffer(64 << 10) // what is slow is to be felt at the other end
		end.SetWriteBuffer(64 << 10)
	}
	r.mu.Lock()
	r.open[c] = true
	r.total++
	r.mu.Unlock()
	var ways sync.WaitGroup
	ways.Go(func() { r.way(c.far, c.near) })
	ways.Go(func() { r.way(c.near, c.far) })
	ways.Wait()
	r.mu.Lock()
	delete(r.open, c)
	r.mu.Unlock()
}

// chunk is some bytes that arrive at a moment.
type chunk struct {
	b   []byte
	due time.Time
}

// way passes on what comes from one end, late and in pieces.
func (r *relay) way(to, from *net.TCPConn) {
	line := make(chan chunk, onTheWay)
	var reader sync.WaitGroup
	reader.Go(func() {
		defer close(line)
		var free time.Time // when the line can take more
		for {
			b := make([]byte, 8<<10)
			n, err := from.Read(b)
			if n > 0 {
				now := time.Now()
				if free.Before(now) {
					free = now
				}
				if r.link.rate > 0 {
					free = free.Add(time.Duration(n) * time.Second / time.Duration(r.link.rate))
				}
				line <- chunk{b[:n], free.Add(r.link.latency)}
			}
			if err != nil {
				return
			}
		}
	})
	for c := range line {
		if !r.wait(time.Until(c.due)) || !r.write(to, c.b) {
			from.Close()
			for range line {
			}
		}
	}
	to.CloseWrite()
	reader.Wait()
}

// write writes in pieces.
func (r *relay) write(to io.Writer, b []byte) bool {
	for len(b) > 0 {
		n := len(b)
		if r.link.pieces > 0 {
			n = min(n, 1+r.draw(r.link.pieces))
		}
		if _, err := to.Write(b[:n]); err != nil {
			return false
		}
		b = b[n:]
	}
	return true
}

// wait is the link's slowness; false when the relay ends.
func (r *relay) wait(d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-r.ctx.Done():
		return false
	}
}

// reset resets a connection at random: at both ends, or at the dialer's only,
// so that the server gets what was on its way, and the end, when the next
// connection is there already.
func (r *relay) reset() (how string) {
	var victim *relayed
	for c := range r.living() { // in any order
		victim = c
		break
	}
	if victim == nil {
		return "nothing"
	}
	if r.draw(2) == 0 {
		victim.near.SetLinger(0)
		victim.near.Close()
		victim.far.SetLinger(0)
		victim.far.Close()
		return "both ends"
	}
	victim.near.SetLinger(0)
	victim.near.Close()
	return "one end"
}
