package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/waypointd/waypoint/mux/wire"
)

// A snapshot is a SQLite database of one file, from either engine: in SQLite's
// rollback mode, so it needs nothing beside it, and the store turns it into one
// that it works on when it opens it.

// Snapshot copies the store, as it is at one moment, to an empty file. Commits
// go on meanwhile. The file is not synced.
func (s *Store) Snapshot(ctx context.Context, path string) error {
	if err := s.deadErr(); err != nil {
		return err
	}
	var err error
	switch e := s.engine.(type) {
	case *sqlite:
		err = e.copyTo(ctx, path)
	case *postgres:
		err = s.copyTables(ctx, path)
	}
	if err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if s.engine.judge(err) == noSpace || (&sqlite{path: path}).judge(err) == noSpace {
			return noRoomForCopy(path)
		}
		return fmt.Errorf("copy store: %w", err)
	}
	return nil
}

func noRoomForCopy(path string) error {
	return wire.Errorf(wire.Unavailable, "no space left for a copy of the store in %s", filepath.Dir(path)).
		WithHint("make room; the copy is there only while a snapshot is made")
}

// Engine is sqlite or postgres.
func (s *Store) Engine() string {
	engine, _, _ := strings.Cut(s.engine.describe(), " ")
	return engine
}

// spareRoom is what a copy must leave of the file system, since a store
// that finds no room refuses work.
const spareRoom = 8 << 20

// copyTo copies in one statement, which reads what was committed when it began.
// What is committed meanwhile gathers in the log.
func (e *sqlite) copyTo(ctx context.Context, path string) error {
	db, err := e.pool(1, url.Values{"_pragma": {"wal_autocheckpoint(0)"}})
	if err != nil {
		return err
	}
	defer db.Close()
	var pages, free, size int64
	for pragma, to := range map[string]*int64{"page_count": &pages, "freelist_count": &free, "page_size": &size} {
		if err := db.QueryRowContext(ctx, "PRAGMA "+pragma).Scan(to); err != nil {
			return err
		}
	}
	var st unix.Statfs_t
	if err := unix.Statfs(filepath.Dir(path), &st); err != nil {
		return err
	}
	if int64(st.Bavail)*st.Bsize < (pages-free)*size+spareRoom {
		return noRoomForCopy(path)
	}
	// The copy need not survive a power cut; its sync would hold up commits.
	if _, err := db.ExecContext(ctx, "PRAGMA synchronous = OFF"); err != nil {
		return err
	}
	if _, err = db.ExecContext(ctx, "VACUUM INTO $1", path); err != nil {
		return err
	}
	return db.Close()
}

// copyTables reads all tables of PostgreSQL in one transaction, which sees one moment.
func (s *Store) copyTables(ctx context.Context, path string) error {
	from, err := s.reader.BeginTx(ctx, &sql.TxOptions{Isolation: sql.LevelRepeatableRead, ReadOnly: true})
	if err != nil {
		return err
	}
	defer from.Rollback()
	db, err := openFile(path, nil)
	if err != nil {
		return err
	}
	defer db.Close()
	for _, setting := range []string{"page_size = 8192", "auto_vacuum = INCREMENTAL", "journal_mode = OFF", "synchronous = OFF"} { // the first as of every store
		if _, err := db.ExecContext(ctx, "PRAGMA "+setting); err != nil {
			return err
		}
	}
	to, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer to.Rollback()
	if _, err := to.ExecContext(ctx, createMigrations); err != nil {
		return err
	}
	names, err := migrationNames(migrations)
	if err != nil {
		return err
	}
	for _, name := range names {
		text, err := fs.ReadFile(migrations, name)
		if err != nil {
			return err
		}
		if _, err := to.ExecContext(ctx, string(text)); err != nil {
			return fmt.Errorf("apply migration %s: %w", name, err)
		}
	}
	var tables []string
	rows, err := to.QueryContext(ctx, "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'")
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var name string
		if err := rows.Scan(&name); err != nil {
			return err
		}
		tables = append(tables, name)
	}
	if err := rows.Err(); err != nil {
		return err
	}
	for _, table := range tables {
		if err := copyTable(ctx, from, to, table); err != nil {
			return fmt.Errorf("copy table %s: %w", table, err)
		}
	}
	if err := to.Commit(); err != nil {
		return err
	}
	return db.Close()
}

// copyTable copies the rows of a table by the names of its columns.
func copyTable(ctx context.Context, from, to *sql.Tx, table string) error {
	rows, err := from.QueryContext(ctx, "SELECT * FROM "+table)
	if err != nil {
		return err
	}
	defer rows.Close()
	columns, err := rows.Columns()
	if err != nil {
		return err
	}
	marks := make([]string, len(columns))
	values, into := make([]any, len(columns)), make([]any, len(columns))
	for i := range columns {
		marks[i], into[i] = "$"+strconv.Itoa(i+1), &values[i]
	}
	insert, err := to.PrepareContext(ctx, fmt.Sprintf("INSERT INTO %s (%s) VALUES (%s)", table, strings.Join(columns, ", "), strings.Join(marks, ", ")))
	if err != nil {
		return err
	}
	defer insert.Close()
	for rows.Next() {
		if err := rows.Scan(into...); err != nil {
			return err
		}
		if _, err := insert.ExecContext(ctx, values...); err != nil {
			return err
		}
	}
	return rows.Err()
}

// openFile opens a SQLite file over one connection.
func openFile(path string, params url.Values) (*sql.DB, error) {
	db, err := sql.Open("sqlite", (&url.URL{Scheme: "file", Path: path, RawQuery: params.Encode()}).String())
	if err == nil {
		db.SetMaxOpenConns(1)
	}
	return db, err
}

// CheckSnapshot reads all of the SQLite file of a snapshot and reports
// whether Open would take it: BadUsage where it is damaged or no store,
// Conflict where it is of a newer release. Nothing is written.
func CheckSnapshot(ctx context.Context, path, serverID string) error {
	db, err := openFile(path, url.Values{"mode": {"ro"}, "immutable": {"1"}})
	if err != nil {
		return err
	}
	defer db.Close()
	damaged := func(why any) error {
		return wire.Errorf(wire.BadUsage, "it is damaged: %v", why).WithHint("use another snapshot")
	}
	var found string
	if err := db.QueryRowContext(ctx, "PRAGMA quick_check(1)").Scan(&found); err != nil || found != "ok" {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			return damaged(err)
		}
		return damaged(found)
	}
	rows, err := db.QueryContext(ctx, "SELECT name, sum FROM migrations")
	if err != nil {
		return damaged(err)
	}
	defer rows.Close()
	applied := map[string]string{}
	for rows.Next() {
		var name, sum string
		if err := rows.Scan(&name, &sum); err != nil {
			return damaged(err)
		}
		applied[name] = sum
	}
	if err := rows.Err(); err != nil {
		return damaged(err)
	}
	names, err := migrationNames(migrations)
	if err != nil {
		return err
	}
	if err := known(names, applied); err != nil {
		return err
	}
	var id string
	switch err := db.QueryRowContext(ctx, selectSetting, "server_id").Scan(&id); {
	case err != nil && !errors.Is(err, sql.ErrNoRows):
		return damaged(err)
	case id != serverID:
		return damaged("it is of another server than it says")
	}
	return nil
}

// beside are what SQLite keeps beside a file and would take for a new file's own.
var beside = []string{"-wal", "-journal"}

// Replace puts a checked file in the place of the store at path, which nobody
// has open, and keeps the one before under the name kept ("" where there is none);
// both are in one directory. A crash leaves the one or the other.
func Replace(ctx context.Context, path, by, kept string) (string, error) {
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		kept = ""
	} else if err != nil {
		return "", err
	} else if err := fold(ctx, path); err != nil {
		return "", err
	}
	for _, suffix := range beside {
		// There is something only where the store could not be opened; it goes with it.
		err := os.Rename(path+suffix, kept+suffix)
		if kept == "" {
			err = os.Remove(path + suffix)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
	}
	if err := os.Remove(path + "-shm"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	if kept != "" {
		if err := os.Link(path, kept); err != nil {
			return "", err
		}
	}
	return kept, os.Rename(by, path)
}

// fold brings what is in the log of a store into its file, so that the file is
// the whole of it. A store that cannot be read is left as it is, with its log;
// one that somebody has open is a Conflict.
func fold(ctx context.Context, path string) error {
	db, err := openFile(path, url.Values{"mode": {"rw"}, "_pragma": {"synchronous(FULL)"}})
	if err != nil {
		return err
	}
	defer db.Close()
	var locked, pages, moved int
	err = db.QueryRowContext(ctx, "PRAGMA wal_checkpoint(TRUNCATE)").Scan(&locked, &pages, &moved)
	if cerr := db.Close(); err == nil {
		err = cerr
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	refused := (&sqlite{path: path}).judge(err)
	switch {
	case locked != 0, refused == busy:
		return wire.Errorf(wire.Conflict, "another program has the store %s open", path).WithHint("end it first")
	case refused == noSpace:
		return wire.Errorf(wire.Unavailable, "no space left beside the store %s", path).WithHint("make room")
	}
	return nil
}
