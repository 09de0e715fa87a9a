package daemon

import (
	"fmt"
	"net"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/waypointd/waypoint/mux"
)

// comer is a connection that says where it is from, and whether it was closed.
type comer struct {
	net.Conn
	from   string
	closed bool
}

func (c *comer) RemoteAddr() net.Addr {
	return &net.TCPAddr{IP: net.ParseIP(c.from), Port: 1}
}
func (c *comer) LocalAddr() net.Addr { return &net.TCPAddr{} }
func (c *comer) Close() error        { c.closed = true; return nil }

// hall is an entrance with what it has said.
type hall struct {
	*entrance
	config Config
	mu     sync.Mutex
	said   []string
}

func newHall(l Limits, max int) *hall {
	h := &hall{config: Config{MaxSessions: max, Limits: l}}
	if err := h.config.Limits.withDefaults(max); err != nil {
		panic(err)
	}
	h.entrance = newEntrance(newTally(func(limit, peer string, most, times int) {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.said = append(h.said, fmt.Sprintf("%s %s %d times", limit, peer, times))
	}))
	h.files = 1 << 20
	return h
}

func (h *hall) come(from string) (*guest, *comer) {
	c := &comer{from: from}
	return h.enter(c, &h.config), c
}

// check holds that the sums are those of the parts.
func (h *hall) check(t *testing.T) {
	t.Helper()
	h.entrance.mu.Lock()
	defer h.entrance.mu.Unlock()
	var sessions, greeting int
	for name, p := range h.peers {
		sessions += p.sessions
		if p.tcp {
			greeting += p.greeting.Len()
		}
		if p.greeting.Len() > p.sessions {
			t.Errorf("%s: %d of %d connections greet", name, p.greeting.Len(), p.sessions)
		}
	}
	listed := 0
	for n, l := range h.bySize {
		if l != nil {
			listed += n * l.Len()
		}
	}
	if sessions != h.sessions || greeting != h.greeting || listed != greeting {
		t.Errorf("%d and %d connections, %d, %d and %d greet", sessions, h.sessions, greeting, h.greeting, listed)
	}
}

// One address that says nothing does not keep another out, nor do many: the oldest of
// who has the most makes room.
func TestWhoMakesRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHall(Limits{Greeting: 10, GreetingPerPeer: 6}, 100)
		var of1 []*comer
		for n := range 6 {
			g, c := h.come("192.0.2.1")
			if g == nil {
				t.Fatalf("connection %d is refused", n)
			}
			of1 = append(of1, c)
			time.Sleep(time.Millisecond)
		}
		if g, _ := h.come("192.0.2.1"); g != nil {
			t.Error("a seventh of one address is let in, and none is a second old")
		}
		time.Sleep(greetTime)
		if g, _ := h.come("192.0.2.1"); g == nil || !of1[0].closed || of1[1].closed {
			t.Error("the oldest of the address does not make room after its second")
		}
		var others []*comer
		for n := range 8 {
			g, c := h.come(fmt.Sprintf("192.0.2.%d", 100+n))
			if g == nil {
				t.Fatalf("address %d is kept out", n)
			}
			others = append(others, c)
			h.check(t)
		}
		if slices.ContainsFunc(others, func(c *comer) bool { return c.closed }) {
			t.Error("one of those who have one connection made room")
		}
		if h.greeting != 10 || h.sessions != 10 {
			t.Errorf("%d of %d greet", h.greeting, h.sessions)
		}
		// Where all have one, the oldest goes: a good one is done by then.
		for n := range 20 {
			if g, _ := h.come(fmt.Sprintf("198.51.100.%d", n)); g == nil {
				t.Fatal("kept out where all have one")
			} else if n == 0 {
				h.greeted(g)
			}
			h.check(t)
		}
		if g, c := h.come("2001:db8::1"); g == nil || c.closed {
			t.Error("IPv6 is kept out")
		}
	})
}

// What has greeted is not closed for others, and counts for the sessions of its
// peer; the addresses of one /64 are one peer, and users are peers of their own.
func TestSessionsOfOnePeer(t *testing.T) { synctest.Test(t, sessionsOfOnePeer) }

func sessionsOfOnePeer(t *testing.T) {
	h := newHall(Limits{SessionsPerPeer: 3}, 100)
	var in []*guest
	for n := range 3 {
		g, _ := h.come(fmt.Sprintf("2001:db8::%d", n+1))
		if g == nil {
			t.Fatal("refused")
		}
		h.greeted(g)
		h.greeted(g)
		in = append(in, g)
	}
	if g, _ := h.come("2001:db8::ffff"); g != nil {
		t.Error("a fourth of the network is let in")
	}
	if g, _ := h.come("2001:db8:0:1::1"); g == nil {
		t.Error("another network is kept out")
	}
	h.leave(in[0])
	h.leave(in[0])
	h.check(t)
	if g, _ := h.come("2001:db8::ffff"); g == nil {
		t.Error("one has gone, and nobody may take its place")
	}
	synctest.Wait()
	if !slices.Equal(h.said, []string{"sessions_per_peer 2001:db8::/64 1 times"}) {
		t.Errorf("said %q", h.said)
	}
}

// All connections together are bounded, Unix sockets have some that TCP has not, and root
// a few more.
func TestAllSessions(t *testing.T) {
	h := newHall(Limits{SessionsPerPeer: 1000}, 32)
	n := 0
	for ; n < 100; n++ {
		g, _ := h.come(fmt.Sprintf("192.0.2.%d", n))
		if g == nil {
			break
		}
		h.greeted(g)
	}
	if n != 30 {
		t.Errorf("%d came over TCP, of 32 connections", n)
	}
	for range 2 {
		a, b := mux.Pipe()
		defer b.Close()
		if h.enter(a, &h.config) == nil {
			t.Error("the reserve is not there")
		}
	}
	a, b := mux.Pipe()
	defer b.Close()
	if h.enter(a, &h.config) != nil {
		t.Error("more than all are let in")
	}
	h.check(t)
}

// Whoever comes and goes, in any order and at once, is counted once and forgotten.
func TestEntranceForgets(t *testing.T) {
	h := newHall(Limits{Greeting: 7, GreetingPerPeer: 3, HellosPerPeer: 1_000_000}, 50)
	var wg sync.WaitGroup
	for n := range 8 {
		wg.Go(func() {
			for i := range 500 {
				g, _ := h.come(fmt.Sprintf("192.0.2.%d", (n*i)%11))
				if g == nil {
					continue
				}
				if i%3 > 0 {
					h.greeted(g)
				}
				if i%7 == 0 {
					h.shed()
				}
				h.leave(g)
			}
		})
	}
	wg.Wait()
	h.check(t)
	if h.sessions != 0 || h.tcp != 0 || len(h.peers) != 0 {
		t.Errorf("%d connections of %d peers are left", h.sessions, len(h.peers))
	}
}

// Who greets too often waits, also where it has hung up in between; and nobody else does.
func TestHellosPerPeer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHall(Limits{HellosPerPeer: 10}, 1000)
		greet := func(from string) time.Duration {
			g, _ := h.come(from)
			began := time.Now()
			if !h.turn(t.Context(), g, &h.config) {
				t.Error("refused")
			}
			h.leave(g)
			return time.Since(began)
		}
		for range 50 {
			if d := greet("192.0.2.1"); d > 0 {
				t.Fatalf("waits for %s", d)
			}
		}
		if d := greet("192.0.2.1"); d != 100*time.Millisecond {
			t.Errorf("the one too many waits for %s", d)
		}
		if d := greet("192.0.2.2"); d > 0 {
			t.Errorf("another one waits for %s", d)
		}
		time.Sleep(time.Hour)
		for n := range 2 * maxIdle {
			if d := greet(fmt.Sprintf("198.18.%d.%d", n/250, n%250)); d > 0 {
				t.Fatalf("waits for %s", d)
			}
		}
		if len(h.peers) > maxIdle {
			t.Errorf("%d peers are remembered", len(h.peers))
		}
	})
}

// What holds somebody up is said at once, and then once a minute with a count.
func TestTally(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var (
			mu   sync.Mutex
			said []string
		)
		y := newTally(func(limit, peer string, most, times int) {
			mu.Lock()
			defer mu.Unlock()
			said = append(said, fmt.Sprintf("%s %s %d of %d", limit, peer, times, most))
		})
		y.note("a", "p", 3)
		synctest.Wait()
		for range 999 {
			y.note("a", "p", 3)
		}
		synctest.Wait()
		y.note("b", "q", 4)
		time.Sleep(tallyEvery + time.Second)
		synctest.Wait()
		y.note("a", "r", 3)
		synctest.Wait()
		y.flush()
		want := []string{"a p 1 of 3", "b q 1 of 4", "a p 999 of 3", "a r 1 of 3"}
		if !slices.Equal(said, want) {
			t.Errorf("said %q, want %q", said, want)
		}
		y.flush()
		if len(said) != len(want) {
			t.Errorf("said again: %q", said[len(want):])
		}
	})
}
