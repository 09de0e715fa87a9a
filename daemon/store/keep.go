package store

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/waypointd/waypoint/mux/wire"
	"github.com/waypointd/waypoint/statedir"
)

// What is kept beside a SQLite store as it was before a migration is a snapshot
// like any other, so the release before restores it with its own command.

// keptName is of the store as it was before its schema had a version.
func (e *sqlite) keptName(version int) string {
	return fmt.Sprint(e.path, beforeSchema, version)
}

const beforeSchema = ".before-schema-"

// keep copies a store that holds something and is about to be migrated. Where
// there is no room for that the store is migrated all the same: a server that
// does not come up after an upgrade costs more than a way back that most never go.
func (s *Store) keep(ctx context.Context, e *sqlite, list []migration) error {
	var there int
	err := s.writer.QueryRowContext(ctx, "SELECT COUNT(*) FROM sqlite_master WHERE type = 'table' AND name = 'migrations'").Scan(&there)
	if err != nil || there == 0 {
		return err
	}
	applied, err := readApplied(ctx, s.writer)
	if err != nil {
		return fmt.Errorf("read migrations: %w", err)
	}
	from, to := newestOf(applied), schemaOf(list[len(list)-1].name)
	if from == 0 || from >= to || known(list, applied) != nil {
		return nil
	}
	var id string
	if err := s.writer.QueryRowContext(ctx, "SELECT COALESCE(MAX(value), '') FROM settings WHERE name = 'server_id'").Scan(&id); err != nil {
		return fmt.Errorf("read id of the server: %w", err)
	}
	h := wire.SnapshotHeader{
		Format: wire.SnapshotFormat, Schema: from, ServerID: id, TakenAt: time.Now().UTC().Truncate(time.Microsecond),
		Software: s.cfg.Software, Engine: s.Engine(),
	}
	kept := e.keptName(to)
	switch err := e.keepAs(ctx, kept, h); {
	case err == nil:
		s.cfg.Logger.Info("store kept as it is before its schema changes", "file", kept, "from_schema", from, "to_schema", to)
		return nil
	case wire.KindOf(err) == wire.Unavailable, e.judge(err) == noSpace, statedir.NoSpace(err):
		s.cfg.Logger.Warn("no room to keep the store as it is before its schema changes", "file", kept, "from_schema", from, "to_schema", to, "error", err)
		return nil
	default:
		return fmt.Errorf("keep the store as it is before its schema changes: %w", err)
	}
}

// unfinished is what a file is called until all of it is on the disk.
const unfinished = ".unfinished"

// keepAs writes a snapshot under a name, replacing one that is there.
func (e *sqlite) keepAs(ctx context.Context, name string, h wire.SnapshotHeader) error {
	temp := name + unfinished
	if err := os.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(temp, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	defer os.Remove(temp) // nothing is there by this name once it is renamed
	if err := e.copyTo(ctx, temp, spareRoom); err != nil {
		return err
	}
	sum := sha256.New()
	if h.Size, err = io.Copy(sum, f); err != nil {
		return err
	}
	seal, err := h.Seal(sum)
	if err != nil {
		return err
	}
	if _, err := f.WriteAt(seal, h.Size); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := os.Rename(temp, name); err != nil {
		return err
	}
	return statedir.SyncDir(filepath.Dir(name))
}

// forget removes what was kept at earlier migrations: one way back is kept.
func (e *sqlite) forget(but int) {
	for _, name := range e.besides(beforeSchema) {
		if name != e.keptName(but) {
			os.Remove(name)
		}
	}
}

// besides are the files whose names are the store's and go on with a text.
func (e *sqlite) besides(text string) []string {
	entries, _ := os.ReadDir(filepath.Dir(e.path)) // what cannot be listed is left
	var found []string
	for _, entry := range entries {
		if strings.HasPrefix(entry.Name(), filepath.Base(e.path)+text) && entry.Type().IsRegular() {
			found = append(found, filepath.Join(filepath.Dir(e.path), entry.Name()))
		}
	}
	return found
}
