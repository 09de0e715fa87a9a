package store

import (
	"bufio"
	"context"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/waypointd/waypoint/daemon/store/storetest"
	"github.com/waypointd/waypoint/mux/wire"
)

// snapshotOf is the snapshot of a store that has every kind of row.
func snapshotOf(t *testing.T, dsn string) (path string, content map[string][][]string) {
	t.Helper()
	text, err := os.ReadFile("testdata/schema-3.sql")
	if err != nil {
		t.Fatal(err)
	}
	load(t, dsn, string(text)).Close()
	s := open(t, dsn, Config{})
	path = emptyFile(t)
	if err := s.Snapshot(t.Context(), path); err != nil {
		t.Fatal(err)
	}
	if err := CheckSnapshot(t.Context(), path, oldID); err != nil {
		t.Fatal(err)
	}
	return path, allRows(t, s.reader, tableNames)
}

func allRows(t *testing.T, db rowsReader, names []string) map[string][][]string {
	t.Helper()
	content := map[string][][]string{}
	for _, table := range names {
		_, content[table] = rowsOf(t, db, table)
	}
	return content
}

func same(t *testing.T, what string, got, want map[string][][]string) {
	t.Helper()
	for _, table := range slices.Sorted(maps.Keys(want)) {
		if !reflect.DeepEqual(got[table], want[table]) {
			t.Errorf("%s: %s has\n%v\nwant\n%v", what, table, got[table], want[table])
		}
	}
}

// A snapshot of either engine goes into PostgreSQL, an empty database or over
// what is there, with every value; what was there is kept in a schema of its own.
func TestRestoreDatabase(t *testing.T) {
	onBoth(t, func(t *testing.T, from string) {
		path, want := snapshotOf(t, from)
		to := storetest.Database(t)
		described, kept, err := RestoreDatabase(t.Context(), to, path, when)
		if err != nil || kept != "" || !strings.HasPrefix(described, "postgres ") {
			t.Fatal(described, kept, err)
		}
		s := open(t, to, Config{})
		same(t, "restored", allRows(t, s.reader, tableNames), want)
		fill(t, s, "u9") // after the snapshot
		second := allRows(t, s.reader, tableNames)

		// While somebody works on it nothing is changed.
		_, _, err = RestoreDatabase(t.Context(), to, path, when)
		if wire.KindOf(err) != wire.Conflict || !strings.Contains(err.Error(), "servers are connected to it (from a local socket)") {
			t.Fatal(err)
		}
		same(t, "refused", allRows(t, s.reader, tableNames), second)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		db := raw(t, to)
		if _, err := db.Exec("CREATE TABLE somebody_elses (n BIGINT)"); err != nil {
			t.Fatal(err)
		}
		db.Close()

		_, kept, err = RestoreDatabase(t.Context(), to, path, when)
		if err != nil || kept != "waypoint_before_restore_20261121t101112" {
			t.Fatal(kept, err)
		}
		n := open(t, to, Config{})
		same(t, "restored again", allRows(t, n.reader, tableNames), want)
		var prefixed []string
		for _, name := range tableNames {
			prefixed = append(prefixed, kept+"."+name)
		}
		before := map[string][][]string{}
		for table, rows := range allRows(t, n.reader, prefixed) {
			before[strings.TrimPrefix(table, kept+".")] = rows
		}
		same(t, "kept", before, second)
		if _, err := n.reader.Exec("SELECT n FROM somebody_elses"); err != nil {
			t.Errorf("what is not ours: %v", err)
		}
		fill(t, n, "u9") // its indexes are there, by their names
		if got, want := schemaText(t, n), schemaText(t, open(t, storetest.Database(t), Config{})); !slices.Equal(without(got, "somebody_elses"), want) {
			t.Errorf("it has\n%s\na new store has\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	})
}

func without(list []string, text string) []string {
	return slices.DeleteFunc(slices.Clone(list), func(s string) bool { return strings.Contains(s, text) })
}

// Whose tables are in the way is not guessed; a newer release's all make room.
func TestRestoreDatabaseOfOthers(t *testing.T) {
	path, want := snapshotOf(t, filepath.Join(t.TempDir(), "waypoint.db"))
	to := storetest.Database(t)
	db := raw(t, to)
	defer db.Close()
	exec := func(text string) {
		t.Helper()
		if _, err := db.Exec(text); err != nil {
			t.Fatal(err)
		}
	}
	restore := func() error {
		db.Close() // it counts as a server
		_, _, err := RestoreDatabase(t.Context(), to, path, when)
		db = raw(t, to)
		return err
	}
	exec("CREATE TABLE jobs (title TEXT); INSERT INTO jobs VALUES ('clerk'); CREATE TABLE migrations (version BIGINT)")
	err := restore()
	if wire.KindOf(err) != wire.Conflict || !strings.Contains(err.Error(), "its schema public has tables that are not of a waypoint store: jobs, migrations") {
		t.Fatal(err)
	}
	exec("SELECT title FROM jobs; DROP TABLE jobs; DROP TABLE migrations")

	// An older schema than this release's.
	old, err := os.ReadFile("testdata/schema-1.sql")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "old.db")
	load(t, file, string(old)).Close()
	if err := fold(t.Context(), file); err != nil {
		t.Fatal(err)
	}
	db.Close()
	if _, _, err := RestoreDatabase(t.Context(), to, file, when); err != nil {
		t.Fatal(err)
	}
	if err := open(t, to, Config{}).Close(); err != nil { // is migrated
		t.Fatal(err)
	}
	db = raw(t, to)

	exec("INSERT INTO migrations (name, sum, applied_at) VALUES ('migrations/0812_flying.sql', 'x', 1); CREATE TABLE wings (n BIGINT)")
	if err := restore(); err != nil {
		t.Fatal(err)
	}
	exec("SELECT * FROM waypoint_before_restore_20261121t101112.wings; CREATE TABLE wings (n BIGINT)")
	db.Close()
	s := open(t, to, Config{})
	same(t, "restored", allRows(t, s.reader, tableNames), want)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}

	_, _, err = RestoreDatabase(t.Context(), to+"&search_path=nowhere", path, when)
	if wire.KindOf(err) != wire.BadUsage || !strings.Contains(err.Error(), "has no schema") {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := RestoreDatabase(ctx, to, path, when); err != context.Canceled {
		t.Error(err)
	}
}

// A user who may not do it is told what is missing, and nothing is changed.
func TestRestoreDatabaseDenied(t *testing.T) {
	path, _ := snapshotOf(t, filepath.Join(t.TempDir(), "waypoint.db"))
	to := storetest.Database(t)
	s := open(t, to, Config{})
	fill(t, s, "u1")
	was := allRows(t, s.reader, tableNames)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	db := raw(t, to)
	if _, err := db.Exec("DROP ROLE IF EXISTS clerk; CREATE ROLE clerk LOGIN"); err != nil {
		t.Fatal(err)
	}
	db.Close()
	_, _, err := RestoreDatabase(t.Context(), strings.Replace(to, "waypoint@", "clerk@", 1), path, when)
	if wire.KindOf(err) != wire.Denied || !strings.Contains(err.Error(), "does not let its user clerk do that") {
		t.Error(err)
	}
	same(t, "denied", allRows(t, open(t, to, Config{}).reader, tableNames), was)
}

// restoreChild is a process that is killed while it restores into a database.
func restoreChild(dsn, path string) int {
	fmt.Println("ready")
	if _, _, err := RestoreDatabase(context.Background(), dsn, path, time.Now()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Println("done")
	return 0
}

// A restore into a database that is killed at any moment leaves the store before
// or the new one.
func TestRestoreDatabaseKilled(t *testing.T) {
	from := filepath.Join(t.TempDir(), "waypoint.db")
	s := open(t, from, Config{})
	fill(t, s, "u1")
	const chunks = 200
	for i := range chunks {
		update(t, s, func(tx *Tx) error { return tx.PutBlobChunk(fmt.Sprint("big", i), 0, make([]byte, 60_000)) })
	}
	path := emptyFile(t)
	if err := s.Snapshot(t.Context(), path); err != nil {
		t.Fatal(err)
	}
	to := storetest.Database(t)
	n := open(t, to, Config{})
	fill(t, n, "before")
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	rounds := 8
	if testing.Short() {
		rounds = 3
	}
	killed, took := 0, time.Duration(0)
	for round := range rounds {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "STORE_TEST_RESTORE="+to, "STORE_TEST_SNAPSHOT="+path)
		cmd.Stderr = os.Stderr
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		if !lines.Scan() || lines.Text() != "ready" {
			t.Fatal("the child has not begun")
		}
		began := time.Now()
		if round > 0 {
			kill := time.AfterFunc(took*time.Duration(round)/time.Duration(rounds), func() { cmd.Process.Kill() })
			defer kill.Stop()
		}
		done := lines.Scan()
		took = max(took, time.Since(began))
		cmd.Process.Kill()
		cmd.Wait()
		if !done {
			killed++
		}
		var uploads, settings int
		n := open(t, to, Config{}) // waits for what is left of the killed one's
		if err := n.reader.QueryRow("SELECT COUNT(*), (SELECT COUNT(*) FROM settings) FROM blob_chunks").Scan(&uploads, &settings); err != nil {
			t.Fatal(err)
		}
		if settings != 1 || uploads != chunks+1 && uploads != 1 || done && uploads == 1 {
			t.Fatalf("round %d: %d chunks, %d settings (done: %t)", round, uploads, settings, done)
		}
		if uploads > 1 { // the one before, again
			if _, err := n.writer.Exec("DELETE FROM blob_chunks WHERE upload LIKE 'big%'"); err != nil {
				t.Fatal(err)
			}
		}
		if err := n.Close(); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d of %d were killed before the end", killed, rounds)
}

// A replacement that is cut off after any of its steps leaves the store before or
// the new one, with nothing of the other's, once it is opened; one that fails
// leaves the store before.
func TestReplaceCutOff(t *testing.T) {
	if testing.Short() {
		t.Skip("short: it cuts at every step of one goroutine")
	}
	for cut := 0; ; cut++ {
		for _, log := range []bool{false, true} { // is there a log that could not be folded in
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
			fill(t, s, "u2") // two jobs are the store before, one is the new one
			wal, err := os.ReadFile(path + "-wal")
			if err != nil {
				t.Fatal(err)
			}
			main, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			r := replacement{path: path, by: by, kept: path + beforeRestore + "now"}
			if log {
				for name, b := range map[string][]byte{path: main, path + "-wal": wal, path + "-shm": []byte("index")} {
					if err := os.WriteFile(name, b, 0o600); err != nil {
						t.Fatal(err)
					}
				}
			} else if err := r.prepare(t.Context()); err != nil {
				t.Fatal(err)
			}
			steps := r.steps()
			if cut > len(steps) {
				return
			}
			for _, step := range steps[:cut] {
				if err := step(); err != nil {
					t.Fatal(err)
				}
			}
			n, err := Open(t.Context(), path, Config{})
			if err != nil {
				t.Fatalf("cut off after %d steps (log: %t): %v", cut, log, err)
			}
			jobs, err := n.Jobs(t.Context(), wire.JobFilter{})
			if err := n.Close(); err != nil {
				t.Fatal(err)
			}
			renamed := cut >= len(steps)-1
			if err != nil || renamed && len(jobs) != 1 || !renamed && len(jobs) != 2 {
				t.Fatalf("cut off after %d steps (log: %t): %d jobs, %v", cut, log, len(jobs), err)
			}
			names, err := filepath.Glob(filepath.Join(dir, "waypoint.db*"))
			want := []string{path}
			if renamed {
				want = append(want, r.kept)
				if log {
					want = append(want, r.kept+"-wal")
				}
			}
			if err != nil || !slices.Equal(names, want) {
				t.Errorf("cut off after %d steps (log: %t): there are %v, want %v", cut, log, names, want)
			}
			if !renamed {
				continue
			}
			// The one before, with its log.
			k := open(t, r.kept, Config{})
			if jobs, err := k.Jobs(t.Context(), wire.JobFilter{}); err != nil || len(jobs) != 2 {
				t.Errorf("kept are %d jobs, %v", len(jobs), err)
			}
		}
	}
}

// An error on the way undoes what was done.
func TestReplaceFails(t *testing.T) {
	path := filepath.Join(t.TempDir(), "waypoint.db")
	s := open(t, path, Config{})
	fill(t, s, "u1")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Replace(t.Context(), path, path+".nothing", when); err == nil {
		t.Fatal("replaced by nothing")
	}
	if names, err := filepath.Glob(path + "*"); err != nil || len(names) != 1 {
		t.Errorf("there are %v, %v", names, err)
	}
	n := open(t, path, Config{})
	if jobs, err := n.Jobs(t.Context(), wire.JobFilter{}); err != nil || len(jobs) != 1 {
		t.Errorf("%d jobs, %v", len(jobs), err)
	}
}
