package daemon

import (
	"cmp"
	"runtime"
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
}

func (l *Limits) withDefaults(maxSessions int) error {
	for key, v := range map[string]int64{
		"sessions_per_peer": int64(l.SessionsPerPeer), "greeting": int64(l.Greeting), "greeting_per_peer": int64(l.GreetingPerPeer),
		"hellos_per_peer": int64(l.HellosPerPeer), "handshakes": int64(l.Handshakes), "unread": l.Unread,
		"runners_per_token": int64(l.RunnersPerToken),
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
	return nil
}

// tally says that a limit holds somebody up: the first time at once, then once a
// minute for all the times since. So who runs into one fills no log.
type tally struct {
	say func(limit, peer string, most, times int)

	mu   sync.Mutex // a leaf
	bite map[string]*bites
}

// bites are those of one limit that have not been told.
type bites struct {
	told  time.Time
	times int
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
	b.times++
	b.peer, b.most = peer, most
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
