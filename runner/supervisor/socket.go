package supervisor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/waypointd/waypoint/mux/wire"
)

// SocketFile is the supervisor's socket in its directory.
const SocketFile = "supervisor.sock"

// dialTimeout bounds a connect: the listener's queue may be full.
const dialTimeout = 5 * time.Second

// dirPath is a directory held open, so that a file in it has a short name
// whatever its path: the kernel takes 107 bytes as the address of a socket.
type dirPath struct{ f *os.File }

func openDir(dir string) (dirPath, error) {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return dirPath{}, &os.PathError{Op: "open", Path: dir, Err: err}
	}
	return dirPath{os.NewFile(uintptr(fd), dir)}, nil
}

func (d dirPath) file(name string) string {
	return "/proc/self/fd/" + strconv.Itoa(int(d.f.Fd())) + "/" + name
}

// Dial connects to the socket at path, which may be of any length; who listens
// there is named in errors: Unavailable where nobody does, Denied where it may
// not be opened.
func Dial(ctx context.Context, who, path string) (net.Conn, error) {
	dir, err := openDir(filepath.Dir(path))
	if err == nil {
		defer dir.f.Close()
		ctx, cancel := context.WithTimeout(ctx, dialTimeout)
		defer cancel()
		var conn net.Conn
		var d net.Dialer
		conn, err = d.DialContext(ctx, "unix", dir.file(filepath.Base(path)))
		if err == nil {
			return conn, nil
		}
	}
	if errno, ok := errors.AsType[syscall.Errno](err); ok {
		err = errno // without the path in /proc
	}
	kind := wire.Unavailable
	if errors.Is(err, os.ErrPermission) {
		kind = wire.Denied
	}
	return nil, wire.Errorf(kind, "connect to %s at %s: %v", who, path, err)
}

// Listen makes the socket name in dir, whose lock the caller holds: what is
// there is stale. It can be opened by the caller's user alone, appears under
// its name once it can be connected to, and is left behind by Close.
func Listen(dir, name string) (net.Listener, error) {
	d, err := openDir(dir)
	if err != nil {
		return nil, fmt.Errorf("make socket: %w", err)
	}
	defer d.f.Close()
	path := filepath.Join(dir, name)
	fresh := path + ".new"
	if err := os.Remove(fresh); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("make socket: %w", err)
	}
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: d.file(name + ".new"), Net: "unix"})
	if err != nil {
		if errno, ok := errors.AsType[syscall.Errno](err); ok {
			err = errno // without the path in /proc
		}
		return nil, fmt.Errorf("make socket %s: %w", path, err)
	}
	ln.SetUnlinkOnClose(false) // it would use the name that ends with this function
	if err = os.Chmod(fresh, 0o600); err == nil {
		err = os.Rename(fresh, path)
	}
	if err != nil {
		ln.Close()
		return nil, fmt.Errorf("make socket: %w", err)
	}
	return ln, nil
}
