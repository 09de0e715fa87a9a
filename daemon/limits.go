package daemon

import (
	"cmp"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/waypointd/waypoint/mux/wire"
)

// Limits bound what peers can take, whoever they are. A peer is here an address
// (of IPv6 one /64) or, on a Unix socket, a user. Zero means the default; what
// is configured anew holds for connections from then on.
type Limits struct {
	SessionsPerPeer int   // connections of one peer; half of MaxSessions
	Greeting        int   // connections over TCP that have not said hello; 2,048, and at most a quarter of MaxSessions
	GreetingPerPeer int   // those of one address; 512. Over a Unix socket one user may have as many as Greeting
	HellosPerPeer   int   // connections a second that one address may greet with over a while, five times as many at once; 200
	Handshakes      int   // of TLS, worked at at once; half of the processors
	Unread          int64 // bytes that have come for calls which have not taken them yet, of all sessions; 512 MiB
	RunnersPerToken int   // records that come of one token for any id; 1,000
	Streams         int   // calls of one session open at once; more end it; 1,024, and at least minStreams

	HandshakeTime time.Duration // from a connection to its hello; 10 s
}

// minStreams is what a session can do with: a runner's has a few calls besides one for each
// of its jobs, and who has one more open than he may loses it.
const minStreams = 64

func (l *Limits) withDefaults(maxSessions int) error {
	for key, v := range map[string]int64{
		"sessions_per_peer": int64(l.SessionsPerPeer), "greeting": int64(l.Greeting), "greeting_per_peer": int64(l.GreetingPerPeer),
		"hellos_per_peer": int64(l.HellosPerPeer), "handshakes": int64(l.Handshakes), "unread": l.Unread,
		"runners_per_token": int64(l.RunnersPerToken), "streams": int64(l.Streams), "handshake_time": int64(l.HandshakeTime),
	} {
		if v < 0 {
			return wire.Errorf(wire.BadUsage, "limits.%s must be positive", key)
		}
	}
	l.SessionsPerPeer = cmp.Or(l.SessionsPerPeer, max(1, maxSessions/2))
	l.Greeting = cmp.Or(l.Greeting, max(1, min(2048, maxSessions/4)))
	l.GreetingPerPeer = cmp.Or(l.GreetingPerPeer, 512)
	l.HellosPerPeer = cmp.Or(l.HellosPerPeer, 200)
	l.Handshakes = cmp.Or(l.Handshakes, max(1, runtime.GOMAXPROCS(0)/2))
	l.Unread = cmp.Or(l.Unread, 512<<20)
	l.RunnersPerToken = cmp.Or(l.RunnersPerToken, 1000)
	l.Streams = cmp.Or(l.Streams, 1024)
	l.HandshakeTime = cmp.Or(l.HandshakeTime, 10*time.Second)
	if l.Streams < minStreams {
		return wire.Errorf(wire.BadUsage, "limits.streams must be at least %d, not %d: a runner has a call open for each of its jobs", minStreams, l.Streams)
	}
	return nil
}

// tally counts how often a limit holds somebody up, and says so: the first time at
// once, then once a minute for all the times since. So who runs into one fills no log.
type tally struct {
	say func(limit, peer string, most, times int)

	mu   sync.Mutex // a leaf
	bite map[string]*bites
}

// bites are those of one limit.
type bites struct {
	all   int64
	last  time.Time
	told  time.Time
	times int    // that have not been told
	peer  string // the last
	most  int
	timer *time.Timer
}

// tallyEvery is how often a limit is spoken of.
const tallyEvery = time.Minute

func newTally(say func(limit, peer string, most, times int)) *tally {
	return &tally{say: say, bite: map[string]*bites{}}
}

// note counts that a limit has held up a peer. It does not wait for the log.
func (t *tally) note(limit, peer string, most int) {
	now := time.Now()
	t.mu.Lock()
	b := t.bite[limit]
	if b == nil {
		b = &bites{}
		t.bite[limit] = b
	}
	b.all++
	b.times++
	b.peer, b.most, b.last = peer, most, now
	if b.timer == nil {
		wait := time.Duration(0)
		if !b.told.IsZero() {
			wait = max(0, tallyEvery-now.Sub(b.told))
		}
		b.timer = time.AfterFunc(wait, func() { t.tell(limit) })
	}
	t.mu.Unlock()
}

func (t *tally) tell(limit string) {
	t.mu.Lock()
	b := t.bite[limit]
	times, peer, most := b.times, b.peer, b.most
	b.times, b.timer, b.told = 0, nil, time.Now()
	t.mu.Unlock()
	if times > 0 {
		t.say(limit, peer, most, times)
	}
}

// met is how often a limit has held somebody up, and when last.
func (t *tally) met(limit string) (times int64, last time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if b := t.bite[limit]; b != nil {
		return b.all, b.last
	}
	return 0, time.Time{}
}

// limits are those that hold now, with how often each was met.
func (s *Server) limits() []wire.PeerLimit {
	c := s.cfg()
	l := c.Limits
	list := []wire.PeerLimit{
		{Name: "max_sessions", Most: int64(c.MaxSessions)},
		{Name: openFiles, Most: int64(s.entrance.files)},
		{Name: "limits.sessions_per_peer", Most: int64(l.SessionsPerPeer)},
		{Name: "limits.greeting", Most: int64(l.Greeting)},
		{Name: "limits.greeting_per_peer", Most: int64(l.GreetingPerPeer)},
		{Name: "limits.hellos_per_peer", Most: int64(l.HellosPerPeer)},
		{Name: "limits.runners_per_token", Most: int64(l.RunnersPerToken)},
		{Name: "max_pending", Most: int64(c.MaxPending)},
		{Name: "limits.handshakes", Most: int64(l.Handshakes)},
		{Name: "limits.unread", Most: l.Unread},
		{Name: "limits.streams", Most: int64(l.Streams)},
		{Name: "max_pending_per_peer", Most: int64(c.MaxPendingPerPeer)},
	}
	for i := range list {
		list[i].Times, list[i].Last = s.tally.met(strings.TrimPrefix(list[i].Name, "limits."))
	}
	return list
}

// openFiles is the limit that the process has of its host.
const openFiles = "open_files"

// flush tells what has not been told, at the end.
func (t *tally) flush() {
	t.mu.Lock()
	var left []string
	for limit, b := range t.bite {
		if b.timer != nil && b.timer.Stop() {
			left = append(left, limit)
		}
	}
	t.mu.Unlock()
	for _, limit := range left {
		t.tell(limit)
	}
}
