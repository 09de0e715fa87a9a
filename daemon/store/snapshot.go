package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"slices"
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
		err = e.copyTo(ctx, path, max(spareRoom, s.reserve.size.Load()))
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

// spareRoom is what a copy must leave of the file system, and the reserve where
// that is more, since a store that finds no room refuses work.
const spareRoom = 8 << 20

// copyTo copies in one statement, which reads what was committed when it began.
// What is committed meanwhile gathers in the log.
func (e *sqlite) copyTo(ctx context.Context, path string, spare int64) error {
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
	if int64(st.Bavail)*st.Bsize < (pages-free)*size+spare {
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
	list, err := readMigrations(migrations)
	if err != nil {
		return err
	}
	applied, err := readApplied(ctx, from)
	if err != nil {
		return err
	}
	if err := known(list, applied); err != nil { // of a release that has come to the database since
		return err
	}
	if err := makeTables(ctx, to, list); err != nil {
		return err
	}
	tables, err := tablesOf(ctx, to)
	if err != nil {
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

// makeTables makes the schema that some migrations lead to, without a record of them.
func makeTables(ctx context.Context, to interface {
	ExecContext(ctx context.Context, q string, args ...any) (sql.Result, error)
}, list []migration) error {
	if _, err := to.ExecContext(ctx, createMigrations); err != nil {
		return err
	}
	for _, m := range list {
		if _, err := to.ExecContext(ctx, m.text); err != nil {
			return fmt.Errorf("apply migration %s: %w", m.name, err)
		}
	}
	return nil
}

// tablesOf are those of a SQLite store.
func tablesOf(ctx context.Context, db rowsReader) ([]string, error) {
	rows, err := db.QueryContext(ctx, "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%' ORDER BY name")
	if err != nil {
		return nil, err
	}
	return texts(rows)
}

// texts reads rows of one text, and closes them.
func texts(rows *sql.Rows) ([]string, error) {
	defer rows.Close()
	var list []string
	for rows.Next() {
		var text string
		if err := rows.Scan(&text); err != nil {
			return nil, err
		}
		list = append(list, text)
	}
	return list, rows.Err()
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
	applied, err := readApplied(ctx, db)
	if err != nil {
		return damaged(err)
	}
	list, err := readMigrations(migrations)
	if err != nil {
		return err
	}
	if err := known(list, applied); err != nil {
		return err
	}
	if missing, err := missing(ctx, db, list, applied); err != nil {
		return damaged(err)
	} else if missing != "" {
		return damaged("it has no " + missing + ", which its schema has")
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

// missing names the first column that the applied migrations lead to and the
// SQLite database does not have.
func missing(ctx context.Context, db rowsReader, list []migration, applied map[string]string) (string, error) {
	fresh, err := sql.Open("sqlite", ":memory:")
	if err != nil {
		return "", err
	}
	defer fresh.Close()
	fresh.SetMaxOpenConns(1) // the database is the connection's
	var had []migration
	for _, m := range list {
		if _, ok := applied[m.name]; ok {
			had = append(had, m)
		}
	}
	if len(had) == 0 {
		return "migration", nil
	}
	if err := makeTables(ctx, fresh, had); err != nil {
		return "", err
	}
	const columns = `SELECT m.name || '.' || c.name FROM sqlite_master m, pragma_table_info(m.name) c
		WHERE m.type = 'table' AND m.name NOT LIKE 'sqlite_%' ORDER BY 1`
	both := make([][]string, 2)
	for i, from := range []rowsReader{fresh, db} {
		rows, err := from.QueryContext(ctx, columns)
		if err != nil {
			return "", err
		}
		if both[i], err = texts(rows); err != nil {
			return "", err
		}
	}
	for _, column := range both[0] {
		if _, ok := slices.BinarySearch(both[1], column); !ok {
			return column, nil
		}
	}
	return "", nil
}
