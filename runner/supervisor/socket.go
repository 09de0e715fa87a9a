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

// dial connects to a socket; Unavailable where nobody listens, Denied where
// it may not be opened.
func dial(ctx context.Context, path string) (net.Conn, error) {
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
	return nil, wire.Errorf(kind, "connect to supervisor at %s: %v", path, err)
}

// listen makes the socket in dir, whose lock is held: what is there is stale.
// It appears under its name once it can be connected to.
func listen(dir string) (net.Listener, error) {
	d, err := openDir(dir)
	if err != nil {
		return nil, fmt.Errorf("listen for agents: %w", err)
	}
	defer d.f.Close()
	const fresh = SocketFile + ".new"
	if err := os.Remove(filepath.Join(dir, fresh)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("listen for agents: %w", err)
	}
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: d.file(fresh), Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen for agents: %w", err)
	}
	ln.SetUnlinkOnClose(false) // it would use the name that ends with this function
	if err = os.Chmod(filepath.Join(dir, fresh), 0o600); err == nil {
		err = os.Rename(filepath.Join(dir, fresh), filepath.Join(dir, SocketFile))
	}
	if err != nil {
		ln.Close()
		return nil, fmt.Errorf("listen for agents: %w", err)
	}
	return ln, nil
}
