package statedir

import (
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/waypointd/waypoint/mux/wire"
)

const lockFile = "lock"

// Lock takes the directory for this process ("what" and pid are written into the lock file, so that a second one
// can name the first). A held lock is a *wire.Error of kind Conflict naming
// the holder. It is released by Close and by the process's death: not at once
// if that was just starting another program, which has the lock as well until
// it is that program. For a holder that is dead Lock waits, up to 2 s.
func (d *Dir) Lock(what string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.lock != nil {
		return wire.Errorf(wire.Conflict, "state directory %s is already locked by this process", d.path)
	}
	// It is written to, so no link leads elsewhere.
	f, err := os.OpenFile(d.Path(lockFile), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY, 0o600)
	if errors.Is(err, unix.ELOOP) {
		return wire.Errorf(wire.BadUsage, "lock state directory %s: its file %q is a symbolic link", d.path, lockFile).
			WithHint("remove %s", d.Path(lockFile))
	}
	if err != nil {
		return d.explain("lock", err)
	}
	err = flock(f, unix.LOCK_EX|unix.LOCK_NB)
	if err == unix.EWOULDBLOCK {
		err = inherit(f)
	}
	if err != nil {
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

// deadHolder is for how long Lock waits for the lock of a dead process.
const deadHolder = 2 * time.Second

// inherit takes the lock of a process that is dead; EWOULDBLOCK where that
// one lives, or cannot be told, or something of it still holds the lock.
func inherit(f *os.File) error {
	tick := time.NewTicker(5 * time.Millisecond) // the kernel has no wait with an end
	defer tick.Stop()
	for limit := time.Now().Add(deadHolder); time.Now().Before(limit); <-tick.C {
		m := holderPID.FindStringSubmatch(holder(f))
		if m == nil {
			return unix.EWOULDBLOCK
		}
		if pid, err := strconv.Atoi(m[1]); err != nil || unix.Kill(pid, 0) != unix.ESRCH {
			return unix.EWOULDBLOCK
		}
		if err := flock(f, unix.LOCK_EX|unix.LOCK_NB); err != unix.EWOULDBLOCK {
			return err
		}
	}
	return unix.EWOULDBLOCK
}

var holderPID = regexp.MustCompile(`, pid ([1-9][0-9]*), since `)

// holder is what the lock file says of the process that has the lock.
func holder(f *os.File) string {
	b, err := io.ReadAll(io.NewSectionReader(f, 0, 512))
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
