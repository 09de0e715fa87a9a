// Package client is the one client library: the command line and tests use it
// to reach a server, and it survives that server's restart.
//
// A Client keeps one session and makes it anew when it is lost. Calls that
// are safe to repeat are repeated on the new session until their context ends;
// a stream of output goes on at the offset it had reached, so its reader sees
// every byte once. What is not safe to repeat (retry, adopt, and Call) fails
// with Unavailable when the session is lost under it: it may have happened.
//
// While there is no session, calls wait for one. A server that answers and
// refuses the client ends the waiting with its refusal.
package client

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"github.com/waypointd/waypoint/mux"
	"github.com/waypointd/waypoint/mux/wire"
)

// Config says how a Client reaches its server.
type Config struct {
	// Dial opens a connection; called again after each loss.
	Dial     func(ctx context.Context) (net.Conn, error)
	Software string
	// Token, if set, is read at each connection: the login. See wire.Hello.
	Token  func() string
	Logger *slog.Logger // nil discards
	// Reconnecting, if set, is told when there is no contact with the server for
	// some seconds, when a lost connection is being re-made (err), once for each
	// attempt, and when it is back (nil), so that nothing waits in silence. It is
	// called by one goroutine at a time; while it does not return only the last of what comes is
	// kept for it, and nothing else waits but calls, until they end or Close ends them.
	Reconnecting func(err error)
}

// The back-off between attempts: doubled from the first to the longest, each
// wait drawn from its upper half.
const (
	firstDelay   = 50 * time.Millisecond
	longestDelay = 5 * time.Second
)

// goingTime is how long after an Unavailable the session's end still belongs
// to it.
const goingTime = 200 * time.Millisecond

var errClosed = wire.Errorf(wire.Unavailable, "the client is closed")

// Client is a connection to a server that re-makes itself, with jittered
// back-off. Safe for concurrent use. A call that is safe to repeat (reads, waits, streams, cancels,
// and submits, which get an idempotency key each) is repeated after a loss
// until its context ends.
type Client struct {
	cfg    Config
	closed chan struct{} // closed by Close
	once   sync.Once

	teller teller
	making chan struct{} // held by the one call that makes a session
	mu     sync.Mutex
	now    *mux.Session // the last one made
}

// Dial connects once; errors are mux.Dial's and the handshake's.
func Dial(ctx context.Context, cfg Config) (*Client, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	c := &Client{cfg: cfg, closed: make(chan struct{}), making: make(chan struct{}, 1)}
	c.teller.to = func(err error) {
		if err != nil {
			cfg.Logger.Debug("no contact with the server", "error", err)
		}
		if cfg.Reconnecting != nil {
			cfg.Reconnecting(err)
		}
	}
	s, err := c.connect(ctx)
	if err != nil {
		return nil, err
	}
	c.now = s
	return c, nil
}

// connect makes one session. A connection that is closed before the server has
// said anything was taken by a server that was just going: that is tried once
// more at once.
func (c *Client) connect(ctx context.Context) (*mux.Session, error) {
	for again := true; ; again = false {
		conn, err := c.cfg.Dial(ctx)
		if err != nil {
			return nil, err
		}
		hello := wire.Hello{Role: wire.RoleClient}
		if c.cfg.Token != nil {
			hello.Token = c.cfg.Token()
		}
		s, err := mux.Connect(ctx, conn, mux.Config{Software: c.cfg.Software, Logger: c.cfg.Logger, Contact: func(err error) { c.teller.tell(err) }}, hello, nil, nil)
		if err == nil {
			return s, nil
		}
		if !again || !errors.Is(err, mux.ErrLost) || ctx.Err() != nil {
			return nil, err
		}
	}
}

// Close ends the connection, and calls that wait for one.
func (c *Client) Close() error {
	c.once.Do(func() { close(c.closed) })
	if s := c.last(); s != nil {
		return s.Close()
	}
	return nil
}

func (c *Client) last() *mux.Session {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

// session returns a living session, making one if need be: one call makes it,
// the others wait for that. tried is how often the caller has failed before.
func (c *Client) session(ctx context.Context, tried int) (*mux.Session, error) {
	if ctx.Err() != nil {
		return nil, contextError(ctx)
	}
	if s := c.last(); s.Err() == nil {
		return s, nil
	}
	select {
	case c.making <- struct{}{}:
		defer func() { <-c.making }()
	case <-ctx.Done():
		return nil, contextError(ctx)
	case <-c.closed:
		return nil, errClosed
	}
	s := c.last()
	if s.Err() == nil {
		return s, nil
	}
	why := s.Err()
	for {
		c.tell(ctx, why)
		if err := c.wait(ctx, tried); err != nil {
			return nil, err
		}
		tried++
		s, err := c.connect(ctx)
		if err == nil {
			if err := c.keep(s); err != nil {
				return nil, err
			}
			c.tell(ctx, nil)
			return s, nil
		}
		if ctx.Err() != nil {
			return nil, contextError(ctx)
		}
		if kind := wire.KindOf(err); kind != wire.Unavailable && kind != wire.Timeout {
			return nil, err
		}
		why = err
	}
}

// keep makes s the client's, unless that has been closed meanwhile.
func (c *Client) keep(s *mux.Session) error {
	c.mu.Lock()
	c.now = s
	c.mu.Unlock()
	select {
	case <-c.closed:
		s.Close()
		return errClosed
	default:
		return nil
	}
}

// tell has the contact told before the call goes on, so that what is said is in
// order; but a call that is over, and Close, wait for nobody who listens.
func (c *Client) tell(ctx context.Context, err error) {
	select {
	case <-c.teller.tell(err):
	case <-ctx.Done():
	case <-c.closed:
	}
}

// wait waits before the attempt after tried others: not at all before the
// first.
func (c *Client) wait(ctx context.Context, tried int) error {
	var delay time.Duration
	if tried > 0 {
		delay = min(longestDelay, firstDelay<<min(tried-1, 10))
		delay = delay/2 + rand.N(delay/2)
	}
	timer := time.NewTimer(delay)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return contextError(ctx)
	case <-c.closed:
		return errClosed
	}
}

func contextError(ctx context.Context) error {
	if cause := context.Cause(ctx); !errors.Is(cause, context.DeadlineExceeded) {
		return cause
	}
	return wire.Errorf(wire.Timeout, "the deadline passed while there was no connection to the server")
}

// repeat runs f on a session, and again on the next one as long as it fails
// because its session was lost.
func (c *Client) repeat(ctx context.Context, f func(*mux.Session) error) error {
	for tried := 0; ; tried++ {
		s, err := c.session(ctx, max(0, tried-1)) // the first repetition is at once
		if err != nil {
			return err
		}
		began := time.Now()
		if err = f(s); err == nil || ctx.Err() != nil || !lost(s, err) {
			return err
		}
		if time.Since(began) > longestDelay {
			tried = 0
		}
	}
}

// lost reports whether err means that the session was lost under a call. A
// server that is just going may say Unavailable before it goes.
func lost(s *mux.Session, err error) bool {
	if errors.Is(err, mux.ErrLost) {
		return true
	}
	if wire.KindOf(err) != wire.Unavailable {
		return false
	}
	timer := time.NewTimer(goingTime)
	defer timer.Stop()
	select {
	case <-s.Done():
		return true
	case <-timer.C:
		return false
	}
}

// Call makes any unary call by name, without repeating it.
func (c *Client) Call(ctx context.Context, method string, req, reply any) error {
	s, err := c.session(ctx, 0)
	if err != nil {
		return err
	}
	return s.Call(ctx, method, req, reply)
}
