package daemon

import (
	"container/list"
	"context"
	"net"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"
)

// entrance knows every connection that has been accepted, of which peer it is,
// and whether it has said hello. Who comes is let in or closed at once; nobody is
// left waiting with the kernel, where one who says nothing would stand before
// the others. Where there is no room for more that have said nothing yet, the peer
// who has the most of them makes it, with the oldest of his: a good one is done with its hello
// long before that.
type entrance struct {
	log   *tally
	files int // descriptors that connections may take

	mu       sync.Mutex // a leaf
	peers    map[string]*party
	sessions int // all connections
	tcp      int // those over TCP
	greeting int // those over TCP that have not said hello
	bySize   []*list.List
	idle     *list.List // of parties without a connection whose rate is remembered
}

// party is one peer's connections.
type party struct {
	name     string
	tcp      bool
	sessions int
	greeting *list.List // of *guest, the oldest first
	rate     *rate.Limiter
	place    *list.Element // in bySize[greeting.Len()], of TCP with some, or in idle
	resting  bool          // place is in idle
}

// guest is one connection.
type guest struct {
	party *party
	conn  net.Conn
	came  time.Time
	place *list.Element // in party.greeting; nil once it has said hello, or was closed for another
	gone  bool
}

const (
	// greetTime is how long a connection is safe from those that come behind it
	// from the same address: a hello takes a few round trips.
	greetTime = time.Second
	// operatorFiles are descriptors, and connections, that those over TCP leave to Unix sockets.
	operatorFiles = 64
	// ownFiles are descriptors that the server has besides connections.
	ownFiles = 128
	// rootSessions may be made by root where nobody else may any more.
	rootSessions = 16
	// maxIdle is of how many peers that are not connected their rate is remembered.
	maxIdle = 4096
)

func newEntrance(log *tally) *entrance {
	return &entrance{log: log, files: connectionFiles(), peers: map[string]*party{}, idle: list.New()}
}

// connectionFiles is how many descriptors this process may give to connections.
func connectionFiles() int {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil || limit.Cur > 1<<30 {
		return 1 << 30
	}
	return max(int(limit.Cur)-ownFiles, int(limit.Cur)/2)
}

// enter takes note of a connection, or returns nil for one that has to be closed.
func (e *entrance) enter(conn net.Conn, c *Config) *guest {
	name, tcp := cameFrom(conn)
	l := &c.Limits
	var shut net.Conn
	defer func() {
		if shut != nil {
			shut.Close()
		}
	}()
	e.mu.Lock()
	defer e.mu.Unlock()
	p := e.peers[name]
	if p == nil {
		p = &party{name: name, tcp: tcp, greeting: list.New()}
		if tcp {
			p.rate = rate.NewLimiter(rate.Limit(l.HellosPerPeer), 5*l.HellosPerPeer)
		}
		e.peers[name] = p
	}
	g := &guest{party: p, conn: conn, came: time.Now()}
	admit := func() *guest {
		e.sessions++
		p.sessions++
		if tcp {
			e.tcp++
			e.greeting++
		}
		e.resize(p, func() { g.place = p.greeting.PushBack(g) })
		return g
	}
	refuse := func(limit string, most int) *guest {
		e.log.note(limit, name, most)
		e.settle(p)
		return nil
	}
	most := min(c.MaxSessions, e.files)
	switch {
	case name == "uid 0":
		most += rootSessions
	case tcp:
		most = max(1, most-min(operatorFiles, most/16))
	}
	perPeer := l.GreetingPerPeer
	if !tcp {
		perPeer = max(l.Greeting, 1)
	}
	switch {
	case p.sessions >= l.SessionsPerPeer && name != "uid 0":
		return refuse("sessions_per_peer", l.SessionsPerPeer)
	case p.greeting.Len() >= perPeer:
		e.log.note("greeting_per_peer", name, perPeer)
		if shut = e.oldest(p, greetTime); shut == nil {
			e.settle(p)
			return nil
		}
	case tcp && e.greeting >= l.Greeting:
		e.log.note("greeting", name, l.Greeting)
		if shut = e.makeRoom(p); shut == nil {
			e.settle(p)
			return nil
		}
	case e.sessions >= most || tcp && e.tcp >= most:
		e.log.note("max_sessions", name, most)
		if shut = e.makeRoom(p); shut == nil {
			e.settle(p)
			return nil
		}
	}
	return admit()
}

// makeRoom takes the place of a connection over TCP that has not said hello, for
// a newcomer of p: nil where there is none, or none that is not the newcomer's own.
func (e *entrance) makeRoom(p *party) net.Conn {
	biggest := e.biggest()
	switch {
	case biggest == nil:
		return nil
	case biggest == p && p.greeting.Len() > 1:
		return e.oldest(p, greetTime)
	}
	return e.oldest(biggest, 0)
}

// oldest takes the place of a peer's oldest connection that has not said hello, if
// it has had so much time for it.
func (e *entrance) oldest(p *party, had time.Duration) net.Conn {
	front := p.greeting.Front()
	if front == nil || time.Since(front.Value.(*guest).came) < had {
		return nil
	}
	g := front.Value.(*guest)
	e.remove(g)
	return g.conn
}

// shed closes one that has not said hello, where there are no descriptors left.
func (e *entrance) shed() bool {
	e.mu.Lock()
	p := e.biggest()
	var conn net.Conn
	if p != nil {
		conn = e.oldest(p, 0)
	}
	e.mu.Unlock()
	if conn == nil {
		return false
	}
	conn.Close()
	return true
}

// biggest is the peer over TCP with the most connections that have not said hello.
func (e *entrance) biggest() *party {
	for n := len(e.bySize) - 1; n > 0; n-- {
		if front := e.bySize[n].Front(); front != nil {
			return front.Value.(*party)
		}
		e.bySize = e.bySize[:n]
	}
	return nil
}

// resize changes how many of a peer's connections have not said hello.
func (e *entrance) resize(p *party, change func()) {
	if p.place != nil {
		if p.resting {
			e.idle.Remove(p.place)
		} else {
			e.bySize[p.greeting.Len()].Remove(p.place)
		}
		p.place, p.resting = nil, false
	}
	change()
	if n := p.greeting.Len(); n > 0 && p.tcp {
		for len(e.bySize) <= n {
			e.bySize = append(e.bySize, list.New())
		}
		p.place = e.bySize[n].PushBack(p)
	}
}

// greeted takes note that a connection has said hello.
func (e *entrance) greeted(g *guest) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.unlist(g)
}

func (e *entrance) unlist(g *guest) {
	if g.place == nil {
		return
	}
	e.resize(g.party, func() { g.party.greeting.Remove(g.place) })
	g.place = nil
	if g.party.tcp {
		e.greeting--
	}
}

// leave takes note that a connection is over.
func (e *entrance) leave(g *guest) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.remove(g)
}

func (e *entrance) remove(g *guest) {
	if g.gone {
		return
	}
	g.gone = true
	e.unlist(g)
	e.sessions--
	if g.party.tcp {
		e.tcp--
	}
	g.party.sessions--
	e.settle(g.party)
}

// settle forgets a peer without a connection, but for a while not one that has
// used up some of its rate.
func (e *entrance) settle(p *party) {
	if p.sessions > 0 || p.resting {
		return
	}
	if p.rate == nil || p.rate.Tokens() >= float64(p.rate.Burst()) {
		delete(e.peers, p.name)
		return
	}
	p.place, p.resting = e.idle.PushBack(p), true
	if e.idle.Len() > maxIdle {
		old := e.idle.Remove(e.idle.Front()).(*party)
		delete(e.peers, old.name)
	}
}

// turn waits until the peer may greet: as often as it may in a second, over a
// while. It reports whether the connection is to be served.
func (e *entrance) turn(ctx context.Context, g *guest, c *Config) bool {
	r := g.party.rate
	if r == nil {
		return true
	}
	if n := c.Limits.HellosPerPeer; r.Limit() != rate.Limit(n) {
		r.SetLimit(rate.Limit(n)) // the configuration was read again
		r.SetBurst(5 * n)
	}
	if r.Allow() {
		return true
	}
	e.log.note("hellos_per_peer", g.party.name, c.Limits.HellosPerPeer)
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	return r.Wait(ctx) == nil
}

// count is how many connections there are.
func (e *entrance) count() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.sessions
}

// cameFrom is what a connection is counted as.
func cameFrom(conn net.Conn) (group string, tcp bool) {
	if c, ok := conn.(*net.UnixConn); ok {
		uid := -1
		if raw, err := c.SyscallConn(); err == nil {
			raw.Control(func(fd uintptr) {
				if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
					uid = int(cred.Uid)
				}
			})
		}
		return "uid " + strconv.Itoa(uid), false
	}
	a := conn.RemoteAddr()
	if a.Network() == "tcp" {
		_, group = addressOf(a.String())
		return group, true
	}
	return a.Network(), false
}
