package store

import (
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/waypointd/waypoint/mux/wire"
)

// when is a moment of a restore.
var when = time.Date(2026, 11, 21, 10, 11, 12, 345_678_000, time.UTC)

// emptyFile is what a snapshot is written to.
func emptyFile(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "snapshot.db")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// fill writes something of each kind and returns the id of the server.
func fill(t testing.TB, s *Store, upload string) string {
	t.Helper()
	update(t, s, func(tx *Tx) error {
		now := time.Now()
		if err := tx.PutSetting("server_id", "SERVER"); err != nil {
			return err
		}
		if err := tx.PutBlobChunk(upload, 0, []byte("bytes\x00\xff")); err != nil {
			return err
		}
		if err := tx.SealBlob(upload, "sha256:"+upload, 7, now); err != nil {
			return err
		}
		_, err := tx.Submit([]wire.JobSpec{{Operation: wire.OpRun, Workspace: "default", Command: []string{"true"}, Target: wire.Target{Any: true}}}, now)
		return err
	})
	return "SERVER"
}

// tables is the content of all tables, by their names.
func tables(t testing.TB, db *sql.DB) map[string][]string {
	t.Helper()
	content := map[string][]string{}
	for _, table := range tableNames {
		rows, err := db.Query("SELECT * FROM " + table)
		if err != nil {
			t.Fatal(err)
		}
		columns, err := rows.Columns()
		if err != nil {
			t.Fatal(err)
		}
		content[table] = []string{}
		for rows.Next() {
			values, into := make([]any, len(columns)), make([]any, len(columns))
			for i := range values {
				into[i] = &values[i]
			}
			if err := rows.Scan(into...); err != nil {
				t.Fatal(err)
			}
			content[table] = append(content[table], fmt.Sprintf("%q", values))
		}
		if err := rows.Err(); err != nil {
			t.Fatal(err)
		}
		rows.Close()
	}
	return content
}

// tableNames are those of the schema.
var tableNames = []string{"jobs", "dependencies", "log_chunks", "sequences", "records", "runners", "blobs", "uploads", "blob_chunks", "settings", "token_keys", "users", "user_tokens", "audit", "servers", "runner_sessions", "proofs", "migrations"}

// A snapshot of either engine has every row, can be checked, and is a store.
func TestSnapshot(t *testing.T) {
	onBoth(t, func(t *testing.T, dsn string) {
		s := open(t, dsn, Config{})
		id := fill(t, s, "u1")
		path := emptyFile(t)
		if err := s.Snapshot(t.Context(), path); err != nil {
			t.Fatal(err)
		}
		want := tables(t, s.reader)
		fill(t, s, "u2") // is not in it
		if err := CheckSnapshot(t.Context(), path, id); err != nil {
			t.Fatal(err)
		}
		if err := CheckSnapshot(t.Context(), path, "another"); wire.KindOf(err) != wire.BadUsage {
			t.Errorf("of another server: %v", err)
		}
		if names, err := filepath.Glob(path + "*"); err != nil || len(names) != 1 {
			t.Errorf("there is more than one file: %v, %v", names, err)
		}
		n := open(t, path, Config{})
		if got := tables(t, n.reader); !reflect.DeepEqual(got, want) {
			t.Errorf("the snapshot has\n%v\nthe store had\n%v", got, want)
		}
		var vacuum, size, names int
		for pragma, to := range map[string]*int{"auto_vacuum": &vacuum, "page_size": &size} {
			if err := n.reader.QueryRow("PRAGMA " + pragma).Scan(to); err != nil {
				t.Fatal(err)
			}
		}
		if vacuum != 2 || size != 8192 {
			t.Errorf("pages of %d bytes, auto_vacuum %d", size, vacuum)
		}
		if err := n.reader.QueryRow("SELECT COUNT(*) FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'").Scan(&names); err != nil || names != len(tableNames) {
			t.Errorf("the schema has %d tables, the test knows %d (%v)", names, len(tableNames), err)
		}
		fill(t, n, "u2")
	})
}

// What is committed meanwhile is in a snapshot as a whole or not at all.
func TestSnapshotIsOneMoment(t *testing.T) {
	onBoth(t, func(t *testing.T, dsn string) {
		s := open(t, dsn, Config{})
		var last atomic.Int64
		stop, done := make(chan struct{}), make(chan error, 1)
		go func() {
			for n := int64(1); ; n++ {
				select {
				case <-stop:
					done <- nil
					return
				default:
				}
				// Two rows that agree, far from each other.
				err := s.Update(t.Context(), func(tx *Tx) error {
					return errors.Join(tx.PutSetting("a", fmt.Sprint(n)), tx.PutBlobChunk(fmt.Sprint("u", n), 0, make([]byte, 3000)), tx.PutSetting("z", fmt.Sprint(n)))
				})
				if err != nil {
					done <- err
					return
				}
				last.Store(n)
			}
		}()
		for range 6 {
			path := emptyFile(t)
			before := last.Load()
			if err := s.Snapshot(t.Context(), path); err != nil {
				t.Fatal(err)
			}
			db, err := openFile(path, nil)
			if err != nil {
				t.Fatal(err)
			}
			var a, z, chunks int64
			if err := db.QueryRow("SELECT COALESCE(MAX(CASE WHEN name = 'a' THEN CAST(value AS INTEGER) END), 0), COALESCE(MAX(CASE WHEN name = 'z' THEN CAST(value AS INTEGER) END), 0), (SELECT COUNT(*) FROM blob_chunks) FROM settings").Scan(&a, &z, &chunks); err != nil {
				t.Fatal(err)
			}
			db.Close()
			if a != z || a != chunks || a < before {
				t.Errorf("the snapshot has %d, %d and %d chunks; %d was acknowledged before it", a, z, chunks, before)
			}
		}
		close(stop)
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	})
}

// A damaged database is told from a good one although no checksum says so, and
// so is one of a newer release, with both versions.
func TestCheckSnapshot(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "waypoint.db"), Config{})
	id := fill(t, s, "u1")
	path := emptyFile(t)
	if err := s.Snapshot(t.Context(), path); err != nil {
		t.Fatal(err)
	}
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for name, damage := range map[string]func(b []byte) []byte{
		"cut":     func(b []byte) []byte { return b[:len(b)-8192] },
		"zeroes":  func(b []byte) []byte { clear(b[2*8192 : 3*8192]); return b },
		"nothing": func(b []byte) []byte { return nil },
		"schema":  func(b []byte) []byte { clear(b[100:200]); return b },
	} {
		bad := emptyFile(t)
		if err := os.WriteFile(bad, damage(append([]byte(nil), good...)), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := CheckSnapshot(t.Context(), bad, id); wire.KindOf(err) != wire.BadUsage {
			t.Errorf("%s: %v", name, err)
		}
	}
	db, err := openFile(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.Exec("INSERT INTO migrations (name, sum, applied_at) VALUES ('migrations/0812_flying.sql', 'x', 1)"); err != nil {
		t.Fatal(err)
	}
	version, err := SchemaVersion()
	if err != nil || version < 3 {
		t.Fatal(version, err)
	}
	for what, err := range map[string]error{
		"check": CheckSnapshot(t.Context(), path, id),
		"open":  func() error { _, err := Open(t.Context(), path, Config{}); return err }(),
	} {
		if wire.KindOf(err) != wire.Conflict || !strings.Contains(err.Error(), "version 812") || !strings.Contains(err.Error(), fmt.Sprintf("up to %d", version)) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// Replace keeps the whole of the store before, also what is in its log, and
// leaves nothing that the new one could take for its own.
func TestReplace(t *testing.T) {
	dir := t.TempDir()
	path, by := filepath.Join(dir, "waypoint.db"), filepath.Join(dir, "new")
	s := open(t, path, Config{})
	fill(t, s, "u1")
	if err := os.WriteFile(by, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.Snapshot(t.Context(), by); err != nil {
		t.Fatal(err)
	}
	fill(t, s, "u2")
	want := tables(t, s.reader)
	// As after a crash: a file and its log.
	crashed := filepath.Join(t.TempDir(), "waypoint.db")
	for _, suffix := range []string{"", "-wal"} {
		b, err := os.ReadFile(path + suffix)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(crashed+suffix, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if fi, err := os.Stat(crashed + "-wal"); err != nil || fi.Size() == 0 {
		t.Fatalf("there is no log: %v", err)
	}
	moved := filepath.Join(filepath.Dir(crashed), "new")
	if err := os.Rename(by, moved); err != nil {
		t.Fatal(err)
	}
	kept, err := Replace(t.Context(), crashed, moved, when)
	if err != nil || kept != crashed+".before-restore-20261121T101112.345678Z" {
		t.Fatal(kept, err)
	}
	entries, err := os.ReadDir(filepath.Dir(crashed))
	if err != nil || len(entries) != 2 {
		t.Errorf("left are %v, %v", entries, err)
	}
	if got := tables(t, open(t, kept, Config{}).reader); !reflect.DeepEqual(got, want) {
		t.Errorf("kept is\n%v\nthere was\n%v", got, want)
	}
	if got := tables(t, open(t, crashed, Config{}).reader); len(got["jobs"]) != 1 || len(want["jobs"]) != 2 {
		t.Errorf("the new one has the jobs %v", got["jobs"])
	}

	// A store that cannot be read goes with its log.
	broken := filepath.Join(t.TempDir(), "waypoint.db")
	for suffix, text := range map[string]string{"": "broken", "-wal": "log", "-shm": "index", "-journal": "journal", ".new": "new"} {
		if err := os.WriteFile(broken+suffix, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if kept, err = Replace(t.Context(), broken, broken+".new", when); err != nil {
		t.Fatal(err)
	}
	for suffix, text := range map[string]string{"": "new", strings.TrimPrefix(kept, broken): "broken"} {
		if b, err := os.ReadFile(broken + suffix); err != nil || string(b) != text {
			t.Errorf("%s holds %q, %v", suffix, b, err)
		}
	}
	for _, suffix := range []string{"-wal", "-shm", "-journal", ".new"} {
		if _, err := os.Stat(broken + suffix); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is still there: %v", suffix, err)
		}
	}
}

// Who has the store open is not robbed of it.
func TestReplaceInUse(t *testing.T) {
	path := filepath.Join(t.TempDir(), "waypoint.db")
	s := open(t, path, Config{})
	fill(t, s, "u1")
	tx, err := s.reader.Begin()
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback()
	var n int
	if err := tx.QueryRow("SELECT COUNT(*) FROM jobs").Scan(&n); err != nil {
		t.Fatal(err)
	}
	fill(t, s, "u2")
	if _, err := Replace(t.Context(), path, path+".new", when); wire.KindOf(err) != wire.Conflict {
		t.Error(err)
	}
}

// Where there is no room a snapshot is refused before it has taken what is left.
func TestSnapshotWithoutRoom(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("SKIPPED: only root can mount a small file system")
	}
	small := t.TempDir()
	if err := unix.Mount("tmpfs", small, "tmpfs", 0, "size=16m"); err != nil {
		t.Skipf("SKIPPED: mount: %v", err)
	}
	t.Cleanup(func() { unix.Unmount(small, syscall.MNT_DETACH) })
	s := open(t, filepath.Join(t.TempDir(), "waypoint.db"), Config{})
	for i := range 9 {
		update(t, s, func(tx *Tx) error { return tx.PutBlobChunk(fmt.Sprint(i), 0, make([]byte, 1<<20)) })
	}
	path := filepath.Join(small, "snapshot.db")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.Snapshot(t.Context(), path); wire.KindOf(err) != wire.Unavailable || !strings.Contains(err.Error(), "no space left") {
		t.Error(err)
	}
	if fi, err := os.Stat(path); err != nil || fi.Size() != 0 {
		t.Errorf("it has taken %d bytes all the same (%v)", fi.Size(), err)
	}
	fill(t, s, "u1")
}
