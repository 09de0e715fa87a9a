package mux

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"os"
	"time"

	"github.com/waypointd/waypoint/mux/wire"
)

// exporterLabel is what both ends of a TLS connection derive the binding of a
// runner's proof with.
const exporterLabel = "EXPORTER-waypoint-runner-identity"

// tlsHandshake is the first byte of a TLS connection, tlsAlert that of a
// server that gives up at once. A session without TLS begins with zero.
const (
	tlsAlert     = 0x15
	tlsHandshake = 0x16
)

// heed waits until the peer has said something, and costs next to nothing until
// then: most of those who say nothing never will. It is for TCP with TLS only, and
// refuses there what is no TLS, but where plaintext is allowed. On error conn is closed.
func (c Config) heed(ctx context.Context, conn net.Conn, late time.Time) (net.Conn, error) {
	if conn.LocalAddr().Network() != "tcp" || c.TLS == nil {
		return conn, nil
	}
	begun, err := readFirst(ctx, conn, late)
	if err == nil && begun.first[0] != tlsHandshake && !c.plain(conn) {
		err = wire.Errorf(wire.Denied, "accept session: the peer does not speak TLS, and plaintext is not allowed")
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return begun, nil
}

// plain reports whether a peer need not speak TLS.
func (c Config) plain(conn net.Conn) bool {
	return c.Plain && loopback(conn.LocalAddr()) && loopback(conn.RemoteAddr())
}

// secure makes the accepting side's TLS handshake on TCP, or finds that there
// is to be none: on Unix sockets, in memory, and where plaintext is allowed and
// the peer's first byte is not TLS's. ctx is the handshake's; on error conn is
// closed.
func (c Config) secure(ctx context.Context, conn net.Conn) (net.Conn, error) {
	if conn.LocalAddr().Network() != "tcp" {
		return conn, nil
	}
	secured, err := c.secureTCP(ctx, conn)
	if err != nil {
		conn.Close()
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, err
	}
	return secured, nil
}

func (c Config) secureTCP(ctx context.Context, conn net.Conn) (net.Conn, error) {
	begun, ok := conn.(*begunConn)
	switch {
	case !ok && c.plain(conn):
		return conn, nil
	case !ok:
		return nil, wire.Errorf(wire.Denied, "accept session: TLS is not available here, and plaintext is not allowed")
	case begun.first[0] != tlsHandshake:
		return conn, nil
	}
	at := &workedConn{Conn: conn, ctx: ctx, places: c.Handshakes, limit: c.Limit}
	tc := tls.Server(at, serverTLS(c.TLS))
	err := tc.HandshakeContext(ctx)
	at.finish()
	if err != nil {
		return nil, wire.Errorf(wire.Unavailable, "accept session: TLS handshake: %s", lostText(err))
	}
	return tc, nil
}

// serverTLS is a copy of t with what is the same for every session.
func serverTLS(t *tls.Config) *tls.Config {
	t = t.Clone()
	t.MinVersion = tls.VersionTLS13
	t.SessionTicketsDisabled = true      // sessions are long, and each proves its certificate anew
	t.DynamicRecordSizingDisabled = true // what is written is whole frames already
	return t
}

// workedConn has the handshakes of TLS share a few places to be worked at, so
// that newcomers do not take all processors from those who are in. It holds one
// while there is work, and gives it up to wait for the peer.
type workedConn struct {
	net.Conn
	ctx    context.Context // of the handshake
	places chan struct{}   // nil once the handshake is over, or where there is no bound
	holds  bool
	limit  func(limit string, most int64) // Config.Limit
}

func (c *workedConn) Read(p []byte) (int, error) {
	if c.places == nil {
		return c.Conn.Read(p)
	}
	c.yield()
	n, err := c.Conn.Read(p)
	if err == nil {
		err = c.take()
	}
	return n, err
}

// heldUp is how long a handshake waits for its place before that is spoken of: a
// few at once are nothing to say.
const heldUp = time.Second

func (c *workedConn) take() error {
	late := time.NewTimer(heldUp)
	defer late.Stop()
	for {
		select {
		case c.places <- struct{}{}:
			c.holds = true
			return nil
		case <-late.C:
			c.limit(LimitHandshakes, int64(cap(c.places)))
		case <-c.ctx.Done():
			return context.Cause(c.ctx)
		}
	}
}

func (c *workedConn) yield() {
	if c.holds {
		c.holds = false
		<-c.places
	}
}

// finish is called once nobody is in a handshake any more.
func (c *workedConn) finish() {
	c.yield()
	c.ctx, c.places = nil, nil
}

func loopback(a net.Addr) bool {
	t, ok := a.(*net.TCPAddr)
	return ok && t.IP.IsLoopback()
}

// begunConn is a connection of which the first byte has been looked at.
type begunConn struct {
	net.Conn
	first []byte // to be read again; of the goroutine that reads
}

// readFirst waits for the first byte until late.
func readFirst(ctx context.Context, conn net.Conn, late time.Time) (*begunConn, error) {
	conn.SetReadDeadline(late)
	stop := context.AfterFunc(ctx, func() { conn.SetReadDeadline(past) })
	first := make([]byte, 1)
	_, err := conn.Read(first)
	switch {
	case !stop():
		return nil, context.Cause(ctx)
	case errors.Is(err, os.ErrDeadlineExceeded):
		return nil, errHandshakeLate
	case err != nil:
		return nil, wire.Errorf(wire.Unavailable, "accept session: %s", lostText(err))
	}
	conn.SetReadDeadline(time.Time{})
	return &begunConn{conn, first}, nil
}

func (c *begunConn) Read(p []byte) (int, error) {
	if len(c.first) == 0 || len(p) == 0 {
		return c.Conn.Read(p)
	}
	n := copy(p, c.first)
	c.first = c.first[n:]
	return n, nil
}

// binding is what ties a runner's proof to this connection, so that nobody
// who stands between two connections can pass it on: the exporter's value on
// TLS, nothing elsewhere.
func binding(conn net.Conn) ([]byte, error) {
	tc, ok := conn.(*tls.Conn)
	if !ok {
		return nil, nil
	}
	cs := tc.ConnectionState()
	b, err := cs.ExportKeyingMaterial(exporterLabel, nil, 32)
	if err != nil {
		return nil, wire.Errorf(wire.Internal, "bind proof to the connection: %v", err)
	}
	return b, nil
}

// closeConn closes what is below TLS. TLS's own Close would first say that it
// is the end, for up to five seconds where the peer does not read; a session
// needs no such word, because each of its calls ends with a STATUS.
func closeConn(conn net.Conn) error {
	if tc, ok := conn.(*tls.Conn); ok {
		conn = tc.NetConn()
	}
	return conn.Close()
}

// past is a deadline that wakes whoever waits.
var past = time.Unix(1, 0)
