package mux

import (
	"sync/atomic"
	"time"

	"github.com/waypointd/waypoint/mux/wire"
)

// Bounds are what one peer may take of an accepting side; they can be changed
// while the session lives. Safe for concurrent use.
type Bounds struct {
	streams, unread atomic.Int64
}

// NewBounds are those of Set.
func NewBounds(streams int, unread int64) *Bounds {
	b := new(Bounds)
	b.Set(streams, unread)
	return b
}

// Set lets the peer have so many streams open at once, and so many bytes sent
// that no handler has taken yet; 0 bytes is what the streams' windows allow.
func (b *Bounds) Set(streams int, unread int64) {
	b.streams.Store(int64(streams))
	b.unread.Store(unread)
}

// Budget bounds the bytes that have come and that no handler has taken yet, over
// all sessions that share it. While there are more, nothing is read of those
// sessions that have more than their share of them. Safe for concurrent use.
type Budget struct {
	most, held atomic.Int64
}

// NewBudget is one of so many bytes.
func NewBudget(most int64) *Budget {
	b := new(Budget)
	b.Set(most)
	return b
}

// Set changes how many bytes it has.
func (b *Budget) Set(most int64) { b.most.Store(most) }

// Held is how many bytes wait for a handler.
func (b *Budget) Held() int64 { return b.held.Load() }

const (
	// share is what each session may have unread whatever the others have: the
	// longest message, and a window behind it.
	share = wire.MaxMsg + yamuxWindow
	// crowdedPoll is how often a session that waits for the others looks.
	crowdedPoll = 20 * time.Millisecond
)

// hold counts bytes that have come. It is called with mu held.
func (g *guard) hold(l *link, n int64) {
	l.unread += n
	g.unread.Add(n)
	if g.budget != nil {
		g.budget.held.Add(n)
	}
}

// taken counts n bytes of a stream that a handler has taken.
func (g *guard) taken(id uint32, n int64) {
	g.mu.Lock()
	if l := g.streams[id]; l != nil && !g.closed {
		g.hold(l, -min(n, l.unread))
	}
	g.mu.Unlock()
	select {
	case g.room <- struct{}{}:
	default:
	}
}

// crowded reports whether the peer has to wait before more is read of it, and
// what the bound is that it has come to.
func (g *guard) crowded() (most int64, wait bool) {
	n := g.unread.Load()
	if n == 0 {
		return 0, false
	}
	if b := g.bounds.Load(); b != nil {
		if most := b.unread.Load(); most > 0 && n > most {
			return most, true
		}
	}
	if g.budget == nil || n <= share {
		return 0, false
	}
	most = g.budget.most.Load()
	return most, g.budget.held.Load() > most
}

// awaitRoom waits while the peer has sent too much that nobody has taken. One of
// whom nothing is taken for as long as a peer may not read loses the session.
func (g *guard) awaitRoom() error {
	most, wait := g.crowded()
	if !wait {
		return nil
	}
	g.limit(LimitUnread, most)
	end := time.NewTimer(g.writeTimeout)
	defer end.Stop()
	poll := time.NewTicker(crowdedPoll)
	defer poll.Stop()
	before := g.unread.Load()
	for ; wait; _, wait = g.crowded() {
		select {
		case <-g.room:
		case <-poll.C:
		case <-g.shut:
			return nil // the read says why
		case <-end.C:
			return wire.Errorf(wire.TooLarge, "the peer sent %d bytes for calls that do not take them", g.unread.Load())
		}
		if n := g.unread.Load(); n < before {
			before = n
			end.Reset(g.writeTimeout)
		}
	}
	return nil
}
