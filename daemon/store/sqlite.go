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
	"strings"

	"golang.org/x/sys/unix"
	driver "modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

// sqlite is the embedded engine: one file, one writer.
type sqlite struct {
	path string
}

func (e *sqlite) describe() string       { return "sqlite " + e.path }
func (e *sqlite) committers() int        { return 1 }
func (e *sqlite) begin() string          { return "BEGIN IMMEDIATE" }
func (e *sqlite) lockRules() string      { return "" } // there is one writer
func (e *sqlite) lockMigrations() string { return "" } // BEGIN IMMEDIATE is the lock

// size is that of the file and of what is written ahead of it.
func (e *sqlite) size(context.Context, *sql.DB) (bytes int64, err error) {
	for _, suffix := range []string{"", "-wal", "-shm"} {
		fi, err := os.Stat(e.path + suffix)
		switch {
		case err == nil:
			bytes += fi.Size()
		case suffix == "" || !errors.Is(err, fs.ErrNotExist):
			return 0, err
		}
	}
	return bytes, nil
}

// listen hears nothing: there is no other server.
func (e *sqlite) listen(ctx context.Context, ready func(), _ func(string)) error {
	ready()
	<-ctx.Done()
	return context.Cause(ctx)
}

// maxReaders bounds the readers' connections, each of which has a page cache.
const maxReaders = 4

func (e *sqlite) open(ctx context.Context) (writer, reader *sql.DB, err error) {
	path, err := filepath.Abs(e.path)
	if err != nil {
		return nil, nil, err
	}
	e.path = path
	if err := e.settle(); err != nil {
		return nil, nil, err
	}
	e.sweep()
	// Made here, so that it never has a mode that lets others read it; SQLite
	// gives its other files the same mode.
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, nil, err
	}
	err = f.Chmod(0o600)
	f.Close()
	if err != nil {
		return nil, nil, err
	}
	if err := e.format(ctx); err != nil {
		return nil, nil, err
	}
	if writer, err = e.pool(1, url.Values{
		"_txlock": {"immediate"},
		// 2,000 pages of log between checkpoints, each of which syncs twice;
		// the file of the log is cut back to 64 MiB when one has been larger.
		"_pragma": {"wal_autocheckpoint(2000)", "journal_size_limit(67108864)"},
	}); err != nil {
		return nil, nil, err
	}
	var mode string
	if err := writer.QueryRowContext(ctx, "PRAGMA journal_mode").Scan(&mode); err != nil {
		writer.Close()
		return nil, nil, err
	}
	if !strings.EqualFold(mode, "wal") {
		writer.Close()
		return nil, nil, fmt.Errorf("journal mode is %q, not wal: its file system cannot share memory (a network file system?)", mode)
	}
	if reader, err = e.pool(maxReaders, url.Values{"_query_only": {"1"}}); err != nil {
		writer.Close()
		return nil, nil, err
	}
	return writer, reader, nil
}

// format makes an empty file a database: page size and vacuum mode can be set
// only before anything else. Pages of 8 KiB take output of one job in 1.8 times
// as fast as those of 4 KiB, and job records no slower; larger ones cost records.
func (e *sqlite) format(ctx context.Context) error {
	if fi, err := os.Stat(e.path); err != nil || fi.Size() > 0 {
		return err
	}
	db, err := sql.Open("sqlite", (&url.URL{Scheme: "file", Path: e.path}).String())
	if err != nil {
		return err
	}
	defer db.Close()
	db.SetMaxOpenConns(1) // the settings are the connection's until the file is written
	for _, setting := range []string{"page_size = 8192", "auto_vacuum = INCREMENTAL", "journal_mode = WAL"} {
		if _, err := db.ExecContext(ctx, "PRAGMA "+setting); err != nil {
			return fmt.Errorf("format %s: %w", e.path, err)
		}
	}
	return nil
}

func (e *sqlite) pool(conns int, params url.Values) (*sql.DB, error) {
	params.Set("_busy_timeout", "10000")
	params.Set("_foreign_keys", "1")
	params.Set("_journal_mode", "WAL")
	params.Set("_synchronous", "FULL")
	dsn := (&url.URL{Scheme: "file", Path: e.path, RawQuery: params.Encode()}).String()
	db, err := sql.Open("sqlite", dsn)
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(conns)
	db.SetMaxIdleConns(conns)
	return db, nil
}

func (e *sqlite) judge(err error) verdict {
	serr, ok := errors.AsType[*driver.Error](err)
	if !ok {
		return callersOwn
	}
	switch serr.Code() & 0xff {
	case sqlite3.SQLITE_FULL:
		return noSpace
	case sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED:
		return busy
	case sqlite3.SQLITE_IOERR:
		switch serr.Code() {
		case sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_IOERR_SHMSIZE, sqlite3.SQLITE_IOERR_SHMMAP,
			sqlite3.SQLITE_IOERR_SHMOPEN, sqlite3.SQLITE_IOERR_TRUNCATE:
			// SQLite tells ENOSPC from other errors only where it writes data.
			if e.full() {
				return noSpace
			}
		}
		return fatal
	case sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN,
		sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_PROTOCOL, sqlite3.SQLITE_PERM, sqlite3.SQLITE_MISUSE:
		return fatal
	}
	return callersOwn
}

// full reports whether the file system has no room for another few pages.
func (e *sqlite) full() bool {
	var st unix.Statfs_t
	if err := unix.Statfs(filepath.Dir(e.path), &st); err != nil {
		return false
	}
	return st.Bavail*uint64(st.Bsize) < 64<<10
}

// vacuumPages bounds one step: 8 MiB.
const vacuumPages = 1024

func (e *sqlite) vacuum(ctx context.Context, c *session) (bool, error) {
	if _, err := c.conn.ExecContext(ctx, fmt.Sprintf("PRAGMA incremental_vacuum(%d)", vacuumPages)); err != nil {
		return false, err
	}
	var free int64
	if err := c.conn.QueryRowContext(ctx, "PRAGMA freelist_count").Scan(&free); err != nil {
		return false, err
	}
	return free > 0, nil
}
