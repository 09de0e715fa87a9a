package statedir

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/waypointd/waypoint/mux/wire"
)

const lockFile = "lock"

// Lock takes the directory for this process ("what" and pid are written into the lock file, so that a second one
// can name the first). A held lock is a *wire.Error of kind Conflict naming
// the holder. It is released by Close and by the process's death.
func (d *Dir) Lock(what string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.lock != nil {
		return wire.Errorf(wire.Conflict, "state directory %s is already locked by this process", d.path)
	}
	f, err := os.OpenFile(d.Path(lockFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return d.explain("lock", err)
	}
	if err := flock(f, unix.LOCK_EX|unix.LOCK_NB); err != nil {
		defer f.Close()
		if err != unix.EWOULDBLOCK {
			return d.explain("lock", &os.PathError{Op: "flock", Path: f.Name(), Err: err})
		}
		return wire.Errorf(wire.Conflict, "state directory %s is in use by %s", d.path, holder(f)).
			WithHint("stop that process, or name another state directory")
	}
	// The text is for people and is written in one go; who holds the lock is
	// the kernel's to say.
	text := fmt.Sprintf("%s, pid %d, since %s\n", oneLine(what), os.Getpid(), time.Now().UTC().Format(time.RFC3339))
	if err = f.Truncate(0); err == nil {
		_, err = f.WriteAt([]byte(text), 0)
	}
	if err != nil {
		f.Close()
		return d.explain("lock", err)
	}
	d.lock = f
	return nil
}

// holder is what the lock file says of the process that has the lock.
func holder(f *os.File) string {
	b, err := io.ReadAll(io.LimitReader(f, 512))
	if s := oneLine(string(b)); err == nil && s != "" {
		return s
	}
	return "another process"
}

// oneLine makes text fit for a one-line message.
func oneLine(s string) string {
	return strings.TrimSpace(strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, s))
}
