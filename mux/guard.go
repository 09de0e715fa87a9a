package mux

import (
	"encoding/binary"
	"errors"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/waypointd/waypoint/mux/wire"
)

// What a yamux header says; the numbers are yamux's specification.
const (
	yamuxHeader = 12

	yamuxData         = 0
	yamuxWindowUpdate = 1
	yamuxPing         = 2
	yamuxGoAway       = 3

	yamuxWindow = 256 << 10 // that a stream begins with

	yamuxSYN = 1
	yamuxACK = 2
	yamuxFIN = 4
	yamuxRST = 8
)

const (
	// joinLimit is the largest body that is copied behind its header to be one
	// write; larger ones go out by writev, so that no large buffer is kept.
	joinLimit = 4 << 10
	// maxPings unanswered at once: yamux starts a goroutine for each.
	maxPings = 8
	// maxUnacknowledged streams opened by this side: below yamux's backlog of
	// 256, where its OpenStream would block without regard to a context.
	maxUnacknowledged = 200
)

// guard stands between a connection and yamux and knows the state of every
// stream from the headers that pass. yamux reads from one goroutine and writes
// from another, each header by a Write of its own followed by its body.
//
// It does not ask that the ids of new streams increase: yamux takes an id
// before it queues the frame, so concurrent opens arrive out of order.
type guard struct {
	net.Conn
	peerParity   uint32      // of the ids of streams that the peer opens
	lost         func(error) // called when the connection is of no more use, before yamux learns of it
	writeTimeout time.Duration
	vectored     bool          // the connection takes header and body in one call
	syns         chan struct{} // a slot for each stream of ours that is not acknowledged; taken by Open, given back here
	pings        atomic.Int32  // asked by the peer, not answered yet
	reads        atomic.Int64  // how often something has come from the peer
	began        time.Time
	dataAt       atomic.Int64                   // when it last sent data, on any stream; since began
	unread       atomic.Int64                   // bytes of all streams that have come and were not taken
	bounds       atomic.Pointer[Bounds]         // of the peer; nil until the hello has succeeded
	budget       *Budget                        // shared with other sessions; nil: none
	limit        func(limit string, most int64) // Config.Limit
	room         chan struct{}                  // something was taken
	shut         chan struct{}                  // closed by Close
	over         atomic.Bool                    // nothing is written any more

	// Of the reading goroutine.
	inHeader [yamuxHeader]byte
	inHave   int    // bytes of inHeader
	inBody   uint32 // bytes of the body to come
	inData   bool   // some of a body has come with this read

	// Of the writing goroutine.
	held     []byte    // to go out before, and with, what is written next
	outBody  int       // bytes of the body to come
	outCork  bool      // that body waits for its stream's FIN
	deadline time.Time // set on the connection
	vec      [2][]byte

	mu      sync.Mutex
	streams map[uint32]*link
	theirs  int // opened by the peer and not closed by it
	opened  int // by the peer, ever, until the hello has succeeded
	closed  bool
	err     error
}

// link is one stream as the headers show it: here until both sides have
// closed it, or one has reset it.
type link struct {
	ours         bool
	acknowledged bool
	ourFIN       bool
	theirFIN     bool
	corked       bool
	credit       int64  // bytes that the peer may send
	unread       int64  // bytes that have come and were not taken
	onClose      func() // called once, when the peer closes or resets; must not block
	onLost       func() // called when the session ends; must not block
}

func newGuard(conn net.Conn, dialing bool, writeTimeout time.Duration) *guard {
	g := &guard{
		Conn:         conn,
		writeTimeout: writeTimeout,
		syns:         make(chan struct{}, maxUnacknowledged),
		began:        time.Now(),
		limit:        func(string, int64) {},
		room:         make(chan struct{}, 1),
		shut:         make(chan struct{}),
		streams:      make(map[uint32]*link),
	}
	if !dialing {
		g.peerParity = 1
	}
	switch conn.(type) {
	case *net.UnixConn, *net.TCPConn:
		g.vectored = true
	}
	return g
}

// admit lets the peer open streams. Until then it may open one, ever.
func (g *guard) admit(b *Bounds) { g.bounds.Store(b) }

// watch has closed called when the peer closes or resets the stream, at once
// if it has already, and lost when the session ends. Neither must block.
func (g *guard) watch(id uint32, closed, lost func()) {
	g.mu.Lock()
	l := g.streams[id]
	if l != nil && !l.theirFIN {
		l.onClose, l.onLost = closed, lost
		over := g.closed
		g.mu.Unlock()
		if over {
			lost()
		}
		return
	}
	g.mu.Unlock()
	closed()
}

// Close wakes whoever waits in a stream, and closes the connection. The order
// matters, as does that yamux closes the connection before it ends its
// streams: a writer that waits for its window when yamux shuts down spins
// until its stream has been ended, and with hundreds of them that is long.
func (g *guard) Close() error {
	g.mu.Lock()
	if !g.closed {
		close(g.shut)
		for _, l := range g.streams {
			g.hold(l, -l.unread)
		}
	}
	g.closed = true
	var wake []func()
	for _, l := range g.streams {
		if l.onLost != nil {
			wake = append(wake, l.onLost)
		}
	}
	g.mu.Unlock()
	for _, f := range wake {
		f()
	}
	return closeConn(g.Conn)
}

// cork makes small writes of the stream wait for its FIN, which the caller is
// to send next.
func (g *guard) cork(id uint32) {
	g.mu.Lock()
	if l := g.streams[id]; l != nil {
		l.corked = true
	}
	g.mu.Unlock()
}

// fail keeps the first reason for the session's end.
func (g *guard) fail(err error) {
	g.mu.Lock()
	if g.err == nil {
		g.err = err
	}
	g.mu.Unlock()
}

// cause is the first reason for the session's end, nil if none is known.
func (g *guard) cause() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.err
}

func (g *guard) Read(p []byte) (int, error) {
	if err := g.awaitRoom(); err != nil {
		g.fail(err)
		g.lost(err)
		return 0, err
	}
	n, err := g.Conn.Read(p)
	if n > 0 {
		g.reads.Add(1)
	}
	bad := g.inspect(p[:n])
	if g.inData {
		g.inData = false
		g.dataAt.Store(int64(time.Since(g.began)))
	}
	if bad != nil {
		g.fail(bad)
		g.lost(bad)
		return 0, bad
	}
	if err != nil {
		g.fail(err)
		g.lost(err)
	}
	return n, err
}

// silence is how long the peer has sent no data: pings do not count, which
// yamux answers for a program that hangs.
func (g *guard) silence() time.Duration {
	return time.Since(g.began) - time.Duration(g.dataAt.Load())
}

// inspect follows the frames in p, which goes on where the last one ended.
func (g *guard) inspect(p []byte) error {
	for len(p) > 0 {
		if g.inBody > 0 {
			g.inData = true
			n := min(uint64(len(p)), uint64(g.inBody))
			g.inBody -= uint32(n)
			p = p[n:]
			continue
		}
		if g.inHave == 0 && p[0] != 0 {
			switch p[0] {
			case tlsHandshake:
				return wire.Errorf(wire.BadUsage, "the peer speaks TLS, which is not available here")
			case tlsAlert:
				return wire.Errorf(wire.BadUsage, "the peer speaks TLS, and this side does not").WithHint(plaintextHint)
			}
			return wire.Errorf(wire.BadUsage, "the peer does not speak this protocol (byte 0x%02x where a frame should begin)", p[0])
		}
		n := copy(g.inHeader[g.inHave:], p)
		g.inHave += n
		p = p[n:]
		if g.inHave == yamuxHeader {
			g.inHave = 0
			if err := g.received(); err != nil {
				return err
			}
		}
	}
	return nil
}

// received takes note of the header in inHeader.
func (g *guard) received() error {
	kind, flags, id, length := parseHeader(g.inHeader[:])
	switch kind {
	case yamuxData:
		g.inBody = length
	case yamuxWindowUpdate:
	case yamuxPing:
		if flags&yamuxSYN != 0 && g.pings.Add(1) > maxPings {
			return wire.Errorf(wire.BadUsage, "the peer sent more than %d pings without waiting for an answer", maxPings)
		}
		return nil
	case yamuxGoAway:
		return nil
	default:
		return wire.Errorf(wire.BadUsage, "the peer sent a frame of the unknown type %d", kind)
	}
	if flags == 0 && kind != yamuxData {
		return nil
	}

	var closed func()
	var err error
	g.mu.Lock()
	if flags != 0 {
		closed, err = g.receivedFlags(flags, id)
	}
	if l := g.streams[id]; l != nil && kind == yamuxData && err == nil {
		if l.credit -= int64(length); l.credit < 0 {
			err = wire.Errorf(wire.BadUsage, "the peer sent more on stream %d than it was allowed", id)
		} else if !g.closed {
			g.hold(l, int64(length))
		}
	}
	g.mu.Unlock()
	if closed != nil {
		closed()
	}
	return err
}

// receivedFlags is called with mu held; what it returns is to be called
// without.
func (g *guard) receivedFlags(flags uint16, id uint32) (closed func(), err error) {
	if flags&yamuxSYN != 0 {
		if id == 0 || id&1 != g.peerParity {
			return nil, wire.Errorf(wire.BadUsage, "the peer opened stream %d, an id that is not its own", id)
		}
		if g.streams[id] != nil {
			return nil, wire.Errorf(wire.BadUsage, "the peer opened stream %d twice", id)
		}
		g.streams[id] = &link{credit: yamuxWindow}
		g.theirs++
		g.opened++
		b := g.bounds.Load()
		if b == nil {
			if g.opened > 1 {
				return nil, wire.Errorf(wire.BadUsage, "the peer opened a second stream before the hello was answered")
			}
		} else if most := int(b.streams.Load()); g.theirs > most || len(g.streams) > 4*most+slack {
			g.limit(LimitStreams, int64(most))
			return nil, wire.Errorf(wire.TooLarge, "the peer has more than %d streams open", most)
		}
	}
	l := g.streams[id]
	if l == nil {
		return nil, nil
	}
	if flags&yamuxACK != 0 {
		g.acknowledge(l)
	}
	if flags&yamuxFIN != 0 && l.theirFIN {
		return nil, wire.Errorf(wire.BadUsage, "the peer closed stream %d twice", id)
	}
	if flags&(yamuxFIN|yamuxRST) != 0 && !l.theirFIN {
		l.theirFIN = true
		closed, l.onClose = l.onClose, nil
		if !l.ours {
			g.theirs--
		}
	}
	if l.ourFIN && l.theirFIN || flags&yamuxRST != 0 {
		g.drop(id, l)
	}
	return closed, nil
}

func (g *guard) acknowledge(l *link) {
	if l.ours && !l.acknowledged {
		l.acknowledged = true
		<-g.syns // never waits: Open took the slot before the stream's SYN was sent
	}
}

func (g *guard) drop(id uint32, l *link) {
	g.acknowledge(l)
	if !g.closed {
		g.hold(l, -l.unread)
	}
	if !l.ours && !l.theirFIN {
		l.theirFIN = true
		g.theirs--
	}
	delete(g.streams, id)
}

// Write takes one header or one body. A header waits for its body, that of a
// new stream for what is written next: Open writes the CALL at once.
func (g *guard) Write(p []byte) (int, error) {
	if g.over.Load() {
		return len(p), nil // or calls that end with their session would look canceled to the peer
	}
	if g.outBody > 0 {
		return len(p), g.writeBody(p)
	}
	if len(p) != yamuxHeader {
		return 0, errors.New("write frame: header and body out of step")
	}
	kind, flags, id, length := parseHeader(p)
	g.outCork = false
	if kind == yamuxPing && flags&yamuxACK != 0 {
		g.pings.Add(-1)
	} else if kind <= yamuxWindowUpdate {
		var grant uint32
		if kind == yamuxWindowUpdate {
			grant = length
		}
		g.sent(flags, id, grant)
	}
	g.held = append(g.held, p...)
	if kind == yamuxData && length > 0 {
		g.outBody = int(length)
		return len(p), nil
	}
	if flags&yamuxSYN != 0 && kind == yamuxWindowUpdate {
		return len(p), nil
	}
	return len(p), g.flush(nil)
}

func (g *guard) writeBody(p []byte) error {
	g.outBody -= len(p)
	if len(p) > joinLimit {
		return g.flush(p)
	}
	g.held = append(g.held, p...)
	if g.outCork && len(g.held) <= joinLimit {
		return nil
	}
	return g.flush(nil)
}

// sent takes note of the flags of a header that goes out, and of how much more
// it allows the peer to send.
func (g *guard) sent(flags uint16, id uint32, grant uint32) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if flags&yamuxSYN != 0 {
		g.streams[id] = &link{ours: true, credit: yamuxWindow}
	}
	l := g.streams[id]
	if l == nil {
		return
	}
	l.credit += int64(grant)
	g.outCork = l.corked
	if flags&yamuxFIN != 0 {
		l.ourFIN = true
	}
	if l.ourFIN && l.theirFIN || flags&yamuxRST != 0 {
		g.drop(id, l)
	}
}

// flush writes what is held, and body behind it. A peer that does not take it
// within the time-out has lost the session: a frame that was written in part
// cannot be taken back.
func (g *guard) flush(body []byte) error {
	now := time.Now()
	if left := g.deadline.Sub(now); left < g.writeTimeout-g.writeTimeout/16 {
		g.deadline = now.Add(g.writeTimeout)
		if err := g.Conn.SetWriteDeadline(g.deadline); err != nil {
			g.fail(err)
			return err
		}
	}
	var err error
	if g.vectored && body != nil {
		g.vec = [2][]byte{g.held, body}
		buffers := net.Buffers(g.vec[:])
		_, err = buffers.WriteTo(g.Conn)
		g.vec = [2][]byte{}
	} else {
		// TLS makes a record of each write: no record for a header alone.
		n := min(len(body), max(0, joinLimit-len(g.held)))
		g.held = append(g.held, body[:n]...)
		_, err = g.Conn.Write(g.held)
		if n < len(body) && err == nil {
			_, err = g.Conn.Write(body[n:])
		}
	}
	g.held = g.held[:0]
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = wire.Errorf(wire.Unavailable, "the peer did not read for %v", g.writeTimeout)
	}
	if err != nil {
		g.fail(err)
		g.lost(err)
	}
	return err
}

func parseHeader(h []byte) (kind uint8, flags uint16, id, length uint32) {
	return h[1], binary.BigEndian.Uint16(h[2:]), binary.BigEndian.Uint32(h[4:]), binary.BigEndian.Uint32(h[8:])
}
