package mux

import (
	"crypto/tls"
	"net"
	"time"

	"golang.org/x/sys/unix"

	"github.com/waypointd/waypoint/mux/wire"
)

// Contact is watched where Config.Contact is set. Its times are counted while
// this process runs: one that was stopped has not missed anything.
const (
	contactPoll  = time.Second
	contactAsk   = 2 * time.Second  // nothing has come for so long: a ping asks whether somebody is there
	contactLate  = 5 * time.Second  // nor has an answer: Config.Contact is told
	contactLimit = 15 * time.Second // nor any packet of the other host: the session is given up
)

// errOutOfContact is what Config.Contact is told.
var errOutOfContact = wire.Errorf(wire.Unavailable, "nothing has come from the other side for %v", contactLate)

// errNoPackets is why a session ends whose network has gone.
var errNoPackets = wire.Errorf(wire.Unavailable, "no packet has come from the other side's host for %v", contactLimit)

// contact knows how long nothing has come. Of one goroutine.
type contact struct {
	read   int64         // what had come at the last look
	quiet  time.Duration // nothing has come since
	late   bool          // Config.Contact has been told
	silent time.Duration // without a packet; only where the kernel knows
}

// look is what a poll finds: whether to ask, what to tell (nil: nothing), and
// whether the session is over. What has come tells that the peer is there; a
// packet, if only an acknowledgement, that its host is: a peer that is stopped
// or slow is not given up for its silence.
func (c *contact) look(read int64, packets time.Duration, known bool) (ask bool, tell *bool, over bool) {
	if read != c.read {
		c.read, c.quiet = read, 0
	} else {
		c.quiet += contactPoll
	}
	// The kernel's clock goes on while this process does not run.
	c.silent = min(packets, c.silent+contactPoll)
	if late := c.quiet >= contactLate; late != c.late {
		c.late, tell = late, new(late)
	}
	return c.quiet >= contactAsk, tell, known && c.silent >= contactLimit
}

// keepContact watches until the session ends.
func (s *Session) keepContact() {
	conn := s.guard.Conn
	if tc, ok := conn.(*tls.Conn); ok {
		conn = tc.NetConn()
	}
	tcp, _ := conn.(*net.TCPConn)
	if tcp != nil {
		// Of a peer that has been asked and is stopped only the kernel still knows.
		tcp.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: contactLate / 2, Interval: contactLate / 2, Count: 10})
	}
	poll := time.NewTicker(contactPoll)
	defer poll.Stop()
	asking := make(chan struct{}, 1) // one ping at a time
	var c contact
	for {
		select {
		case <-s.done:
			return
		case <-poll.C:
		}
		packets, known := sincePacket(tcp)
		ask, tell, over := c.look(s.guard.reads.Load(), packets, known)
		if ask {
			select {
			case asking <- struct{}{}:
				s.served.Go(func() {
					s.yamux.Ping()
					<-asking
				})
			default:
			}
		}
		switch {
		case s.Err() != nil:
			return
		case tell == nil:
		case *tell:
			s.cfg.Contact(errOutOfContact)
		default:
			s.cfg.Contact(nil)
		}
		if over {
			s.end(errNoPackets)
			return
		}
	}
}

// sincePacket is how long the kernel has had nothing of the other host, not
// even an acknowledgement.
func sincePacket(tcp *net.TCPConn) (d time.Duration, known bool) {
	if tcp == nil {
		return 0, false
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return 0, false
	}
	if err := raw.Control(func(fd uintptr) {
		info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		if err == nil {
			d, known = time.Duration(min(info.Last_ack_recv, info.Last_data_recv))*time.Millisecond, true
		}
	}); err != nil {
		return 0, false
	}
	return d, known
}
