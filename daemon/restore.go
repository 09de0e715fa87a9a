package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/waypointd/waypoint/daemon/store"
	"github.com/waypointd/waypoint/mux/wire"
	"github.com/waypointd/waypoint/statedir"
)

// Restored is what a restore has done.
type Restored struct {
	wire.SnapshotHeader
	Store  string `json:"store"`            // the file that it is in now
	Before string `json:"before,omitempty"` // where the store before is kept; "" where there was none
}

// storeFile is where the store is unless something else is configured.
const storeFile = "waypoint.db"

// Restore makes the snapshot that in holds the store of cfg (StateDir and
// StoreDSN), whose server does not run. All of the snapshot is read and checked
// before anything is changed; the store before is kept beside it. Errors are
// BadUsage where the snapshot cannot be used, Conflict where a server has the
// state directory or the snapshot is of a newer release.
//
// What the snapshot says is running is found by the server that starts next as
// after a crash: its runner has a lease to come back with it.
func Restore(ctx context.Context, cfg Config, in io.Reader) (Restored, error) {
	if strings.Contains(cfg.StoreDSN, "://") {
		return Restored{}, wire.Errorf(wire.Unimplemented, "the store is a database: snapshots are restored into files only").
			WithHint("restore into a state directory with --store FILE, or use the database's own tools (pg_dump, pg_restore)")
	}
	dir, err := statedir.Open(cfg.StateDir)
	if err != nil {
		return Restored{}, err
	}
	if err := dir.Lock("waypoint server restore"); err != nil {
		if e, ok := errors.AsType[*wire.Error](err); ok && e.Kind == wire.Conflict {
			err = e.WithHint("stop the server first; under systemd with its sockets: systemctl stop 'waypoint-server*'")
		}
		return Restored{}, err
	}
	defer dir.Close()
	path := cfg.StoreDSN
	if path == "" {
		path = dir.Path(storeFile)
	}
	if path, err = filepath.Abs(path); err != nil {
		return Restored{}, err
	}
	done, err := restore(ctx, dir, path, in)
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		err = wire.Errorf(wire.Unavailable, "no space left in %s; the store there is as it was", filepath.Dir(path)).WithHint("make room for the snapshot")
	}
	return done, err
}

func restore(ctx context.Context, dir *statedir.Dir, path string, in io.Reader) (Restored, error) {
	f, err := restoreTemp(dir, path)
	if err != nil {
		return Restored{}, err
	}
	defer f.Close()
	defer os.Remove(f.Name()) // nothing is there by this name once it is put in place
	check := wire.NewSnapshotCheck()
	if err := copyAll(ctx, io.MultiWriter(f, check), in); err != nil {
		return Restored{}, err
	}
	h, err := check.Header()
	if err != nil {
		return Restored{}, err
	}
	if err := f.Truncate(h.Size); err != nil {
		return Restored{}, err
	}
	if err := store.CheckSnapshot(ctx, f.Name(), h.ServerID); err != nil {
		return Restored{}, err
	}
	if err := f.Sync(); err != nil {
		return Restored{}, err
	}
	done := Restored{SnapshotHeader: h, Store: path}
	before := fmt.Sprintf("%s.before-restore-%s", path, time.Now().UTC().Format("20060102T150405.000000Z"))
	if done.Before, err = store.Replace(ctx, path, f.Name(), before); err != nil {
		return Restored{}, fmt.Errorf("replace store %s: %w", path, err)
	}
	return done, statedir.SyncDir(filepath.Dir(path))
}

// restoreTemp is a file in the directory of the store, which may be another
// one than the state directory.
func restoreTemp(dir *statedir.Dir, path string) (*os.File, error) {
	if filepath.Dir(path) == dir.Path() {
		return dir.Temp(filepath.Base(path))
	}
	f, err := os.OpenFile(path+".restoring", os.O_RDWR|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW, 0o600)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, wire.Errorf(wire.BadUsage, "there is no directory %s for the store", filepath.Dir(path)).WithHint("make it, or name another store")
	}
	if err == nil {
		err = f.Chmod(0o600)
	}
	return f, err
}

// copyAll is io.Copy until ctx ends. What could not be read is the file's fault
// and said as such.
func copyAll(ctx context.Context, to io.Writer, from io.Reader) error {
	buf := make([]byte, 256<<10)
	for ctx.Err() == nil {
		n, err := from.Read(buf)
		if _, werr := to.Write(buf[:n]); werr != nil {
			return werr
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return wire.Errorf(wire.BadUsage, "it cannot be read: %v", err)
		}
	}
	return context.Cause(ctx)
}
