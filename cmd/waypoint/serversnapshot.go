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
	f, err := os.CreateTemp(filepath.Dir(target), "."+filepath.Base(target)+".*") // 0600
	if err != nil {
		return wire.Errorf(wire.BadUsage, "%v", err)
	}
	defer f.Close()
	defer os.Remove(f.Name()) // nothing is there by this name once it is renamed
	h, err := a.takeSnapshot(f)
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = os.Rename(f.Name(), target)
	}
	if err == nil {
		err = statedir.SyncDir(filepath.Dir(target))
	}
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
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
