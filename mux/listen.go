package mux

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/waypointd/waypoint/mux/wire"
)

// Listen listens. A stale socket file (nobody accepts behind it) is
// replaced; one that answers is Conflict; a path that is no socket is
// Conflict and left alone. mode is the socket file's: at no moment may more
// open it. Whether sessions may be accepted on TCP is CheckListener's to say,
// and Accept's for each connection.
func Listen(ctx context.Context, a Address, mode uint32) (net.Listener, error) {
	switch a.Network {
	case "unix":
		return listenUnix(ctx, a, mode)
	case "tcp":
		return listenTCP(ctx, a)
	}
	return nil, wire.Errorf(wire.BadUsage, "listen on %s: the network is not known", a)
}

func listenTCP(ctx context.Context, a Address) (net.Listener, error) {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", a.Path)
	if err != nil {
		if errors.Is(err, syscall.EADDRINUSE) {
			return nil, wire.Errorf(wire.Conflict, "listen on %s: the port is in use", a)
		}
		return nil, wire.Errorf(wire.Unavailable, "listen on %s: %v", a, listenCause(err))
	}
	return l, nil
}

// CheckListener refuses a listener, also one that was handed over, on which
// Accept would refuse every connection. TCP will do on any address where
// sessions are encrypted, which is where Config.TLS will be set, else on
// loopback addresses. Unix sockets will do, and listeners in memory, for tests
// and local mode. Its error is BadUsage.
func CheckListener(l net.Listener, encrypted bool) error {
	switch addr := l.Addr().(type) {
	case *net.UnixAddr:
		return nil
	case *net.TCPAddr:
		if encrypted || addr.IP.IsLoopback() {
			return nil
		}
		return wire.Errorf(wire.BadUsage, "listen on tcp://%s: without TLS only a loopback address will do", addr)
	default:
		if addr.Network() == memoryNetwork {
			return nil
		}
		return wire.Errorf(wire.BadUsage, "listen on %s: neither a Unix socket nor TCP", addr)
	}
}

func listenUnix(ctx context.Context, a Address, mode uint32) (net.Listener, error) {
	if len(a.Path) > maxSocketPath {
		return nil, wire.Errorf(wire.BadUsage, "listen on %s: the path has %d bytes, a socket's may have %d", a, len(a.Path), maxSocketPath)
	}
	if err := clearSocket(ctx, a); err != nil {
		return nil, err
	}
	lc := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		// The kernel makes the file with the socket's own mode less the umask,
		// so it is never open to more than it will be in the end.
		var chmodErr error
		err := raw.Control(func(fd uintptr) { chmodErr = unix.Fchmod(int(fd), mode) })
		return errors.Join(err, chmodErr)
	}}
	l, err := lc.Listen(ctx, "unix", a.Path)
	if err != nil {
		switch {
		case errors.Is(err, fs.ErrPermission):
			return nil, wire.Errorf(wire.Denied, "listen on %s: permission denied", a)
		case errors.Is(err, syscall.EADDRINUSE):
			return nil, wire.Errorf(wire.Conflict, "listen on %s: somebody else took the path at the same moment", a)
		case errors.Is(err, fs.ErrNotExist):
			return nil, wire.Errorf(wire.BadUsage, "listen on %s: its directory does not exist", a)
		}
		return nil, wire.Errorf(wire.Unavailable, "listen on %s: %v", a, listenCause(err))
	}
	if err := os.Chmod(a.Path, fs.FileMode(mode)); err != nil { // what the umask took
		l.Close()
		return nil, wire.Errorf(wire.Unavailable, "listen on %s: set mode: %v", a, err)
	}
	return l, nil
}

// listenCause is err without the address that the text has already.
func listenCause(err error) error {
	if oe, ok := errors.AsType[*net.OpError](err); ok {
		return oe.Err
	}
	return err
}

// clearSocket removes a socket that nobody answers at. Two servers that start
// at the same moment are kept apart by their state directory's lock.
func clearSocket(ctx context.Context, a Address) error {
	info, err := os.Lstat(a.Path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return wire.Errorf(wire.Denied, "listen on %s: %v", a, err)
	}
	if info.Mode().Type() != fs.ModeSocket {
		return wire.Errorf(wire.Conflict, "listen on %s: the path exists and is no socket", a).
			WithHint("choose another path, or remove it")
	}
	d := net.Dialer{Timeout: time.Second}
	conn, err := d.DialContext(ctx, "unix", a.Path)
	if err == nil {
		conn.Close()
	}
	if !errors.Is(err, syscall.ECONNREFUSED) && !errors.Is(err, fs.ErrNotExist) {
		// Also where it may not be asked or is too busy to answer.
		return wire.Errorf(wire.Conflict, "listen on %s: somebody listens there already", a).
			WithHint("stop the other server, or choose another path")
	}
	if err := os.Remove(a.Path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return wire.Errorf(wire.Denied, "listen on %s: remove stale socket: %v", a, err)
	}
	return nil
}
