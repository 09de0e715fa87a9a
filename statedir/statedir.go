// Package statedir is what a server or a runner keeps on disk besides the
// store: atomic files, the lock, the identity key, the id, the token, flags.
//
//	version        layout version of the directory, a number
//	lock           held (flock) by the process that owns the directory; says who
//	id             the id, one line
//	identity.key   the ed25519 private key, PKCS #8 in PEM, 0600
//	token          a runner's token, one line, 0600; people and their tools may replace it at any time, by any means
//	draining       a flag: there is such a file, or there is not
//	.tmp-*         files being written; removed by the next Open if their writer is gone
//
// Others keep in it, each by its own rules:
//
//	runner             jobs/<job>-<attempt>/, agent.sock
//	runner/supervisor  jobs/supervisor.sock, its locks and its log
//	daemon             waypoint.db and what SQLite keeps beside it
//
// A process may be killed at any moment: every file is complete or absent,
// never half written; a reader finds the old content or the new one. Two
// processes that make the id or the key at the same moment end up with the
// same one.
//
// The directory is of one user's: it is made 0700, and one that other users
// can write in is closed to them where this process owns it, else refused.
// Reading is left to whoever set the mode; what is secret is 0600 by itself. An
// identity key that others can read is refused, not repaired: it may have been
// copied. A token that others can read is used, said, and closed to them.
//
// Only the token file is watched (WatchToken).
package statedir

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/waypointd/waypoint/mux/wire"
)

// Version is the layout that this build writes; directories of a newer one
// are refused, older ones are migrated by Open.
const Version = 1

const versionFile = "version"

// Dir is an open state directory. It is safe for concurrent use.
type Dir struct {
	// Log is where WatchToken says that it can only poll; nil discards it. It
	// is set before the first use.
	Log *slog.Logger

	path string
	note string

	mu       sync.Mutex
	lock     *os.File // nil while not held
	token    *sight   // what Token has seen last; nil before
	repaired *repair  // of the token file, the last; nil before
}

// Open makes the directory (0700, parents 0755) where it is missing and checks that it can
// be written. Errors name the path and what to do.
func Open(path string) (*Dir, error) {
	if path == "" {
		return nil, wire.Errorf(wire.BadUsage, "state directory has no path").WithHint("name a directory")
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, wire.Errorf(wire.Internal, "find state directory %s: %v", path, err)
	}
	d := &Dir{path: abs}
	if err := d.make(); err != nil {
		return nil, err
	}
	if err := d.sweep(); err != nil {
		return nil, d.explain("read", err)
	}
	if err := d.checkVersion(); err != nil {
		return nil, err
	}
	return d, nil
}

// make makes what is missing of the directory.
func (d *Dir) make() error {
	fi, err := os.Stat(d.path)
	if err == nil {
		if !fi.IsDir() {
			return d.explain("open", unix.ENOTDIR)
		}
		return d.shut(fi)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return d.explain("open", err)
	}
	if err := os.MkdirAll(filepath.Dir(d.path), 0o755); err != nil {
		return d.explain("make", err)
	}
	if err := os.Mkdir(d.path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return d.explain("make", err)
	}
	return nil
}

// shut takes the directory from other users who can write in it: they
// could put a key or a token of theirs in place of ours.
func (d *Dir) shut(fi fs.FileInfo) error {
	mode := fi.Mode().Perm()
	if mode&0o022 == 0 {
		return nil
	}
	if st := fi.Sys().(*syscall.Stat_t); int(st.Uid) != os.Geteuid() {
		return wire.Errorf(wire.Denied, "state directory %s can be written by other users (mode %04o) and belongs to user %d", d.path, mode, st.Uid).
			WithHint("name a directory of user %d's own, or chmod 700 %s", os.Geteuid(), d.path)
	}
	if err := os.Chmod(d.path, mode&^0o022); err != nil {
		return d.explain("repair", err)
	}
	d.note = fmt.Sprintf("state directory %s could be written by other users (mode %04o); it has been repaired, the mode is %04o", d.path, mode, mode&^0o022)
	return nil
}

// Note is for the log: what was wrong with the directory and has been repaired
// by Open; "" where nothing was.
func (d *Dir) Note() string { return d.note }

// checkVersion reads the version file, and writes it into a directory that
// has none; so it is also the check that the directory can be written.
func (d *Dir) checkVersion() error {
	b, err := os.ReadFile(d.Path(versionFile))
	if errors.Is(err, fs.ErrNotExist) {
		return d.WriteFile(versionFile, []byte(strconv.Itoa(Version)+"\n"), 0o600)
	}
	if err != nil {
		return d.explain("read", err)
	}
	v, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || v < 1 {
		return wire.Errorf(wire.BadUsage, "state directory %s: its file %q does not hold a version number", d.path, versionFile).
			WithHint("check that %s is a state directory of waypoint", d.path)
	}
	if v > Version {
		return wire.Errorf(wire.Conflict, "state directory %s has version %d, written by a newer waypoint; this one knows versions up to %d", d.path, v, Version).
			WithHint("install the newer waypoint again, or name another state directory")
	}
	probe, err := d.temp("probe", 0o600)
	if err != nil {
		return d.explain("write", err)
	}
	probe.discard()
	return nil
}

// Path joins elements to the directory.
func (d *Dir) Path(elem ...string) string {
	return filepath.Join(append([]string{d.path}, elem...)...)
}

// Close releases the lock, if it is held. The directory can be used on.
func (d *Dir) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.lock == nil {
		return nil
	}
	err := d.lock.Close()
	d.lock = nil
	return err
}

// explain turns an error of the file system into one that says what to do.
func (d *Dir) explain(verb string, err error) error {
	at := d.path
	cause := err
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		at, cause = pe.Path, pe.Err
	} else if le, ok := errors.AsType[*os.LinkError](err); ok {
		at, cause = le.New, le.Err
	}
	switch {
	case errors.Is(cause, unix.EROFS):
		return wire.Errorf(wire.Denied, "%s state directory %s: %s is on a read-only file system", verb, d.path, at).
			WithHint("name a state directory that can be written")
	case errors.Is(cause, fs.ErrPermission):
		return wire.Errorf(wire.Denied, "%s state directory %s: no permission for %s as user %d", verb, d.path, at, os.Geteuid()).
			WithHint("give that user the directory, run as the user who owns it, or name another state directory")
	case errors.Is(cause, unix.ENOTDIR):
		return wire.Errorf(wire.BadUsage, "%s state directory %s: %s is in the way, it is no directory", verb, d.path, inTheWay(at)).
			WithHint("move that file away, or name another state directory")
	case errors.Is(cause, unix.ENOSPC), errors.Is(cause, unix.EDQUOT):
		return wire.Errorf(wire.Unavailable, "%s state directory %s: no space left", verb, d.path).
			WithHint("make room on its file system")
	case errors.Is(cause, unix.ENAMETOOLONG), errors.Is(cause, unix.ELOOP):
		return wire.Errorf(wire.BadUsage, "%s state directory %s: %v", verb, d.path, cause).
			WithHint("name another state directory")
	}
	return wire.Errorf(wire.Internal, "%s state directory %s: %v", verb, d.path, err)
}

// inTheWay is the first element of path that exists and is no directory.
func inTheWay(path string) string {
	for p := path; ; p = filepath.Dir(p) {
		if fi, err := os.Stat(p); err == nil && !fi.IsDir() {
			return p
		}
		if p == filepath.Dir(p) {
			return path
		}
	}
}
