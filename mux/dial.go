package mux

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/waypointd/waypoint/mux/wire"
)

// dialTimeout is how long a server has to take a connection.
const dialTimeout = 10 * time.Second

// Dial connects to an address within ten seconds, on TCP with TLS 1.3 unless
// trust says plain. Errors are Unavailable (nobody there, or no TLS spoken
// there; the text names the address), Denied (the socket may not be opened, the
// text names its group; or the certificate is not trusted, the text has its
// fingerprint) or BadUsage (what trust asks for makes no sense); where ctx ended
// first, Timeout or its cause.
func Dial(ctx context.Context, a Address, trust Trust) (net.Conn, error) {
	dctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	var d net.Dialer
	var v *verifier
	if a.Network == "tcp" {
		var err error
		if v, err = trust.verifier(a); err != nil {
			return nil, err
		}
		if trust.Plain {
			d.ControlContext = onLoopback
		}
	}
	conn, err := d.DialContext(dctx, a.Network, a.Path)
	if err == nil && v != nil && !trust.Plain {
		conn, err = v.handshake(dctx, conn)
	}
	if err == nil {
		return conn, nil
	}
	if e, ok := errors.AsType[*wire.Error](err); ok {
		return nil, e
	}
	switch {
	case ctx.Err() != nil:
		return nil, contextError(ctx)
	case errors.Is(err, fs.ErrPermission):
		return nil, deniedError(a)
	case errors.Is(err, fs.ErrNotExist):
		return nil, wire.Errorf(wire.Unavailable, "connect to %s: there is no such socket", a).
			WithHint("start the server, or name another with --server-addr")
	case errors.Is(err, syscall.ECONNREFUSED):
		return nil, wire.Errorf(wire.Unavailable, "connect to %s: nobody listens there", a).
			WithHint("start the server, or name another with --server-addr")
	}
	if ne, ok := errors.AsType[net.Error](err); dctx.Err() != nil || ok && ne.Timeout() {
		return nil, wire.Errorf(wire.Unavailable, "connect to %s: no answer within %v", a, dialTimeout).
			WithHint("check the address, and what lies between")
	}
	if oe, ok := errors.AsType[*net.OpError](err); ok {
		err = oe.Err // without the address again
	}
	return nil, wire.Errorf(wire.Unavailable, "connect to %s: %v", a, err).WithHint("check the address")
}

// onLoopback refuses an address, once it is resolved and before it is connected to.
func onLoopback(_ context.Context, _, addr string, _ syscall.RawConn) error {
	if ap, err := netip.ParseAddrPort(addr); err == nil && ap.Addr().Unmap().IsLoopback() {
		return nil
	}
	return wire.Errorf(wire.BadUsage, "connect to tcp://%s: without TLS only loopback addresses are connected to", addr).
		WithHint("leave out --no-server-tls")
}

// deniedError names the group whose members may open the socket or, where the
// way to it is barred, the directory that bars it.
func deniedError(a Address) error {
	at := a.Path
	info, err := os.Stat(at)
	for err != nil && at != "/" {
		at = filepath.Dir(at)
		info, err = os.Stat(at)
	}
	if err != nil {
		return wire.Errorf(wire.Denied, "connect to %s: permission denied", a)
	}
	gid := info.Sys().(*syscall.Stat_t).Gid
	group := groupName(gid)
	what := "the socket"
	if at != a.Path {
		what = "its directory " + at
	}
	denied := wire.Errorf(wire.Denied, "connect to %s: permission denied; %s belongs to the group %s", a, what, group)
	if gid == 0 {
		return denied.WithHint("use sudo, or have root give %s to a group of yours", what)
	}
	return denied.WithHint("join the group %s and log in again: sudo usermod -aG %s %s", group, group, userName())
}

func groupName(gid uint32) string {
	id := strconv.FormatUint(uint64(gid), 10)
	if g, err := user.LookupGroupId(id); err == nil {
		return g.Name
	}
	return id
}

func userName() string {
	if u, err := user.Current(); err == nil {
		return u.Username
	}
	return strconv.Itoa(os.Getuid())
}
