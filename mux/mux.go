// Package mux carries calls over sessions. It listens and dials, shakes
// hands, and gives each call a stream of frames (package wire). It is the
// only importer of yamux and closes off its hazards.
//
// # A session
//
//	net.Conn ── guard ── yamux ── streams, one for each call
//
// The guard (guard.go) reads the headers that pass in both directions. It
// ends the session of a peer that does not read, floods pings, opens more
// streams than it may, or does not speak the protocol; and it is what learns
// that the peer has closed a stream, so that no stream needs a goroutine of
// its own that waits for a cancel.
//
// On TCP, TLS 1.3 comes between the two (tls.go): inside Accept and Dial, before
// anything else and within the handshake's time-out. Plaintext is for loopback
// addresses, and only where both sides were asked for it. What a runner signs
// to prove its key is bound to the TLS connection, so that somebody in
// the middle cannot pass it on.
//
// Until the hello has succeeded a session serves that one call, within the
// handshake's time-out, and reads no payload over wire.MaxBeforeHello. From
// then on both sides may open calls.
//
// # A call
//
// The opener's context governs it: its deadline travels and is enforced at
// both ends; its cancel closes the stream, which ends the handler's context
// within the time of one message, wherever the handler is: in a receive, in a
// send that waits for the other side to read, or elsewhere. The
// handler's return ends the call with a STATUS. A handler that panics costs
// its caller an Internal error and nobody else anything.
//
// Sends block while the other side does not read (256 KiB are on their way at
// most); other calls of the session go on meanwhile.
//
// # Goroutines
//
// A session has three at each end: yamux's receiver and sender, and the accept
// loop; a dialed TCP session has yamux's keepalive as well, and one whose contact
// is watched (contact.go) one for that, and one while a ping is not answered. Each
// call that is served has one. Close waits for the accept loop, the handlers and
// the watch.
package mux

import (
	"cmp"
	"context"
	"crypto/tls"
	"log/slog"
	"time"

	"github.com/waypointd/waypoint/mux/wire"
)

// Config is what both ends of a session can set; its zero value is good.
type Config struct {
	Software         string        // said in the hello, "waypoint 0.1.0"
	Logger           *slog.Logger  // nil discards
	MaxStreams       int           // open at once from the peer; default 1024; more ends the session. Open waits when as many are open the other way
	HandshakeTimeout time.Duration // default 10 s
	WriteTimeout     time.Duration // of the connection; a peer that does not read for so long loses the session; default 30 s

	// Of the dialing side, except in memory; nil: nobody watches. It is told when
	// nothing has come for some seconds although it was asked for, and with nil
	// when something does again. Where the network itself has gone (no packet for
	// 15 s) the session ends. It is called by one goroutine and must not block.
	Contact func(err error)

	// Of the accepting side. With neither, no session on TCP is accepted.
	TLS   *tls.Config // for TCP, which speaks TLS 1.3 with it
	Plain bool        // TCP between loopback addresses may be plaintext; a peer that begins with TLS gets it

	// Shared by the sessions of one accepting side; nil: no bound.
	Handshakes chan struct{} // room for each handshake of TLS that is worked at, not waited for, at once
	Unread     *Budget
	// Limit is told that a limit has held the peer up: LimitHandshakes, LimitUnread
	// or LimitStreams, and how much it allows. It must not block. nil: nobody is told.
	Limit func(limit string, most int64)
}

// What Config.Limit is told of.
const (
	LimitHandshakes = "handshakes" // the peer has waited for a second, as others are worked at
	LimitUnread     = "unread"     // nothing is read of it until calls have taken what came
	LimitStreams    = "streams"    // it has opened more than it may, and has lost its session
)

func (c Config) withDefaults() Config {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Limit == nil {
		c.Limit = func(string, int64) {}
	}
	c.MaxStreams = cmp.Or(c.MaxStreams, 1024)
	c.HandshakeTimeout = cmp.Or(c.HandshakeTimeout, 10*time.Second)
	c.WriteTimeout = cmp.Or(c.WriteTimeout, 30*time.Second)
	return c
}

// Handler serves one call. Its context ends when the caller's deadline
// passes, the caller closes the stream (the cause is ErrCanceled), or the
// session ends. A nil error is sent as a STATUS of success; an error as its
// *wire.Error, or as Internal (logged, with a text that gives nothing away).
type Handler func(ctx context.Context, st *Stream) error

// Table is an API: method to handler. wire.MethodPing is answered by mux
// where the table has no handler for it.
type Table map[string]Handler

// Admission is what an accepting side makes of a hello.
type Admission struct {
	Welcome wire.Welcome // Version and Software are filled in by mux
	Data    any          // kept as Peer.Data
	Table   Table        // the methods this peer may reach
	Bounds  *Bounds      // nil: Config.MaxStreams, which is the most that may be set
}

// Admit decides on a peer whose hello has been read and, for runners, whose
// key has been proved. An error refuses it and is what it is told. Its context
// ends with the handshake's time-out.
type Admit func(ctx context.Context, peer *Peer) (*Admission, error)

// Unary makes a Handler of a function from request to reply.
func Unary[Req, Reply any](f func(ctx context.Context, peer *Peer, req Req) (Reply, error)) Handler {
	return func(ctx context.Context, st *Stream) error {
		var req Req
		if err := st.Body(&req); err != nil {
			return err
		}
		st.Forget()
		reply, err := f(ctx, st.Peer(), req)
		if err != nil {
			return err
		}
		return st.Queue(reply) // written together with the STATUS
	}
}
