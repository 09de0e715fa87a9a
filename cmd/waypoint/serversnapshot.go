package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/waypointd/waypoint/cmd/internal/output"
	"github.com/waypointd/waypoint/mux/wire"
	"github.com/waypointd/waypoint/statedir"
)

// serverSnapshot is `waypoint server snapshot FILE|-`.
type serverSnapshot struct {
	File string `arg:"" placeholder:"FILE" help:"Where to write it; - is standard output."`
}

func (serverSnapshot) Help() string {
	return `The server goes on meanwhile; the snapshot is the store as it was at one moment. FILE is there when all of it is on the
disk and its checksum is right, and until then what was there before. It holds the keys that sign tokens: keep it as
you keep them. waypoint server restore takes it.`
}

// snapshotTaken is the answer with --json.
type snapshotTaken struct {
	wire.SnapshotHeader
	File string `json:"file"`
}

func (c *serverSnapshot) Run(a *app) error {
	write := a.snapshotToFile
	if c.File == "-" {
		write = a.snapshotToStdout
	}
	if err := write(c.File); err != nil {
		return fmt.Errorf("take snapshot: %w", err)
	}
	return nil
}

func (a *app) snapshotToStdout(string) error {
	if a.JSON {
		return wire.Errorf(wire.BadUsage, "--json and the snapshot cannot both be on standard output").WithHint("name a file")
	}
	if output.IsTerminal(a.stdout.w) {
		return wire.Errorf(wire.BadUsage, "standard output is a terminal, and a snapshot is no text").WithHint("name a file, or send it through a pipe")
	}
	_, err := a.takeSnapshot(a.stdout)
	return err
}

// snapshotToFile writes beside the file and renames, so that a snapshot has the
// name only when it is whole.
func (a *app) snapshotToFile(path string) error {
	target, err := snapshotTarget(path)
	if err != nil {
		return err
	}
	f, err := draftOf(target)
	if err != nil {
		return wire.Errorf(wire.BadUsage, "%v", err)
	}
	defer f.discard()
	h, err := a.takeSnapshot(f)
	if err == nil {
		err = f.place()
	}
	if statedir.NoSpace(err) {
		return withCode{wire.Errorf(wire.Unavailable, "no space left in %s", filepath.Dir(target)).WithHint("make room, or name a file elsewhere"), exitFailed}
	}
	if err != nil {
		return err
	}
	return a.print(snapshotTaken{h, path}, func(w io.Writer) error {
		_, err := fmt.Fprintf(w, "Snapshot of server %s written to %s (%s).\n", h.ServerID, path, output.Bytes(h.Size))
		return err
	})
}

// draft is a file that is being written, to be put under a name as a whole.
type draft struct {
	*os.File
	target string
	named  string // the name that it has meanwhile; "" where the file system knows files without one
}

// draftOf makes a file (0600) where target will be. It has no name, so that
// nothing is left of it when this process is killed; where it needs one, that is
// always the same, and whoever comes next takes it away.
func draftOf(target string) (*draft, error) {
	dir := filepath.Dir(target)
	d := &draft{target: target}
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	switch err {
	case nil:
		d.File = os.NewFile(uintptr(fd), target)
		return d, nil
	case unix.EOPNOTSUPP, unix.EISDIR, unix.EINVAL, unix.ENOENT: // a file system, or a kernel, that knows none; else the next one says what is wrong
		d.named = d.name()
		d.File, err = d.open()
		return d, err
	}
	return nil, &os.PathError{Op: "write in", Path: dir, Err: err}
}

// name is that of a draft that needs one.
func (d *draft) name() string {
	return filepath.Join(filepath.Dir(d.target), "."+filepath.Base(d.target)+".unfinished")
}

// open makes the named file, locked as long as its writer lives.
func (d *draft) open() (*os.File, error) {
	f, err := os.OpenFile(d.named, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("another command writes %s: %w", d.target, err)
	}
	err = f.Truncate(0)
	if err == nil {
		err = f.Chmod(0o600)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// place makes it durable and puts it in the place of what has the name.
func (d *draft) place() error {
	if err := d.Sync(); err != nil {
		return err
	}
	if d.named == "" {
		// A file without a name can be given one that is free only.
		name := d.name()
		if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", d.Fd()), unix.AT_FDCWD, name, unix.AT_SYMLINK_FOLLOW); err != nil {
			return &os.LinkError{Op: "link", Old: d.target, New: name, Err: err}
		}
		d.named = name
	}
	if err := os.Rename(d.named, d.target); err != nil {
		return err
	}
	d.named = ""
	return statedir.SyncDir(filepath.Dir(d.target))
}

// discard closes it, and removes it where it was not put in place.
func (d *draft) discard() {
	if d.named != "" {
		os.Remove(d.named)
	}
	d.Close()
}

// snapshotTarget is the file that path leads to, which has to be a regular one
// if it is there.
func snapshotTarget(path string) (string, error) {
	fi, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return path, nil
	case err != nil:
		return "", wire.Errorf(wire.BadUsage, "%v", err)
	case !fi.Mode().IsRegular():
		return "", wire.Errorf(wire.BadUsage, "%s is no regular file", path).WithHint("name a file; - is standard output")
	}
	return filepath.EvalSymlinks(path)
}

func (a *app) takeSnapshot(w io.Writer) (wire.SnapshotHeader, error) {
	conn, err := a.connect()
	if err != nil {
		return wire.SnapshotHeader{}, err
	}
	meter := a.meter()
	defer meter.Clear()
	meter.Say("The server copies its store…")
	p := &metered{w: w, meter: meter}
	h, err := conn.Snapshot(a.ctx, p, func(h wire.SnapshotHeader) { p.size = h.Size })
	if cerr := conn.close(); err == nil && conn.local != nil {
		err = cerr
	}
	return h, err
}

// metered says how much has been written.
type metered struct {
	w     io.Writer
	meter *output.Meter
	size  int64 // of all
	done  int64
}

func (m *metered) Write(b []byte) (int, error) {
	n, err := m.w.Write(b)
	m.done += int64(n)
	m.meter.Say("Snapshot: %s of %s", output.Bytes(min(m.done, m.size)), output.Bytes(m.size))
	return n, err
}
