package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/waypointd/waypoint/daemon/store"
	"github.com/waypointd/waypoint/mux/wire"
	"github.com/waypointd/waypoint/statedir"
)

// Restored is what a restore has done.
type Restored struct {
	wire.SnapshotHeader
	Store  string `json:"store"`            // the file or database that it is in now
	Before string `json:"before,omitempty"` // where the store before is kept, a file or "schema NAME"; "" where there was none
}

// storeFile is where the store is unless something else is configured.
const storeFile = "waypoint.db"

// Restore makes the snapshot that in holds the store of cfg (StateDir and
// StoreDSN), whose server does not run. All of the snapshot is read and checked
// before anything is changed; the store before is kept beside it. Errors are
// BadUsage where the snapshot cannot be used, Conflict where a server has the
// state directory or the database, or the snapshot is of a newer release.
//
// What the snapshot says is running is found by the server that starts next as
// after a crash: its runner has a lease to come back with it.
func Restore(ctx context.Context, cfg Config, in io.Reader) (Restored, error) {
	dir, err := statedir.Open(cfg.StateDir)
	if err != nil {
		return Restored{}, err
	}
	if err := dir.Lock("waypoint server restore"); err != nil {
		if e, ok := errors.AsType[*wire.Error](err); ok && e.Kind == wire.Conflict {
			err = e.WithHint("stop the server first; under systemd: systemctl stop waypoint-server.socket")
		}
		return Restored{}, err
	}
	defer dir.Close()
	r := restoration{dir: dir, dsn: cfg.StoreDSN, now: time.Now()}
	if r.dsn == "" {
		r.dsn = dir.Path(storeFile)
	}
	if !store.IsDatabase(r.dsn) {
		if r.dsn, err = filepath.Abs(r.dsn); err != nil {
			return Restored{}, err
		}
	}
	done, err := r.run(ctx, in)
	if statedir.NoSpace(err) {
		err = wire.Errorf(wire.Unavailable, "no space left in %s; the store is as it was", r.place()).WithHint("make room for the snapshot")
	}
	return done, err
}

// restoration is a restore in progress.
type restoration struct {
	dir *statedir.Dir
	dsn string // an absolute path, or a database
	now time.Time
}

// place is the directory of the snapshot's copy: that of the store, whose place
// it takes, or the state directory.
func (r restoration) place() string {
	if store.IsDatabase(r.dsn) {
		return r.dir.Path()
	}
	return filepath.Dir(r.dsn)
}

func (r restoration) run(ctx context.Context, in io.Reader) (Restored, error) {
	f, err := r.temp()
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
	done := Restored{SnapshotHeader: h, Store: r.dsn}
	if store.IsDatabase(r.dsn) {
		var schema string
		if done.Store, schema, err = store.RestoreDatabase(ctx, r.dsn, f.Name(), r.now); err != nil {
			return Restored{}, err
		}
		if schema != "" {
			done.Before = "schema " + schema
		}
		return done, nil
	}
	if err := f.Sync(); err != nil {
		return Restored{}, err
	}
	if done.Before, err = store.Replace(ctx, r.dsn, f.Name(), r.now); err != nil {
		return Restored{}, fmt.Errorf("replace store %s: %w", r.dsn, err)
	}
	return done, nil
}

// temp is a file in that place.
func (r restoration) temp() (*os.File, error) {
	if store.IsDatabase(r.dsn) {
		return r.dir.Temp("snapshot")
	}
	path := r.dsn
	if filepath.Dir(path) == r.dir.Path() {
		return r.dir.Temp(filepath.Base(path))
	}
	f, err := os.OpenFile(path+store.Restoring, os.O_RDWR|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW, 0o600)
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
