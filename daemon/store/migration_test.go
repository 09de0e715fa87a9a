package store

import (
	"bufio"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/fstest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/waypointd/waypoint/mux/wire"
)

// nextRelease has one more migration, which writes a lot.
func nextRelease(rows int) (fs.FS, int) {
	files := fstest.MapFS{}
	names, err := migrationNames(migrations)
	if err != nil {
		panic(err)
	}
	for _, name := range names {
		text, err := migrations.ReadFile(name)
		if err != nil {
			panic(err)
		}
		files[name] = &fstest.MapFile{Data: text}
	}
	next := schemaOf(names[len(names)-1]) + 1
	files[fmt.Sprintf("migrations/%04d_next.sql", next)] = &fstest.MapFile{Data: fmt.Appendf(nil, `
		CREATE TABLE bulk (n BIGINT PRIMARY KEY, text TEXT NOT NULL);
		ALTER TABLE jobs ADD COLUMN bulk BIGINT NOT NULL DEFAULT 0;
		INSERT INTO bulk WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < %d)
			SELECT n, 'some text that takes room, some text that takes room, some text that takes room' FROM c;
		UPDATE jobs SET bulk = 7;
		CREATE INDEX bulk_text ON bulk (text, n);`, rows)}
	return files, next
}

// migrateTo opens a store as a release with those files does, as far as to its schema.
func migrateTo(ctx context.Context, dsn string, files fs.FS) error {
	e, err := newEngine(dsn)
	if err != nil {
		return err
	}
	s := &Store{engine: e, cfg: Config{Logger: slog.New(slog.DiscardHandler), Software: "waypoint next"}}
	if s.writer, s.reader, err = e.open(ctx); err != nil {
		return err
	}
	defer s.closePools()
	return s.migrateFrom(ctx, files)
}

// raw is a connection to a store that looks at nothing.
func raw(t testing.TB, dsn string) *sql.DB {
	t.Helper()
	e, err := newEngine(dsn)
	if err != nil {
		t.Fatal(err)
	}
	writer, reader, err := e.open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	reader.Close()
	t.Cleanup(func() { writer.Close() })
	return writer
}

// migrateChild is a process that is killed while it migrates.
func migrateChild(dsn string) int {
	files, _ := nextRelease(bulkRows)
	fmt.Println("ready")
	if err := migrateTo(context.Background(), dsn, files); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Println("done")
	return 0
}

const bulkRows = 30_000

// awaitAlone waits until the database does nothing any more for a process that
// was killed: its backend may have had the COMMIT already.
func awaitAlone(t *testing.T, dsn string, db *sql.DB) {
	t.Helper()
	if !IsDatabase(dsn) {
		return
	}
	db.SetMaxOpenConns(1)
	for others := 1; others > 0; {
		if err := db.QueryRowContext(t.Context(), `SELECT COUNT(*) FROM pg_stat_activity
			WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()`).Scan(&others); err != nil {
			t.Fatal(err)
		}
	}
}

// A migration that is killed at any moment has either not begun or is complete;
// afterwards this release opens the store, or says why not, and the next one does.
func TestMigrationKilled(t *testing.T) {
	onBoth(t, func(t *testing.T, dsn string) {
		rounds := 8
		if testing.Short() {
			rounds = 2
		}
		s := open(t, dsn, Config{})
		fill(t, s, "u1")
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		files, next := nextRelease(bulkRows)
		before, took := 0, time.Duration(0) // the first one is left alone
		for round := range rounds {
			cmd := exec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), "STORE_TEST_MIGRATE="+dsn)
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
				kill := time.AfterFunc(rand.N(took), func() { cmd.Process.Kill() })
				defer kill.Stop()
			}
			done := lines.Scan()
			took = max(took, time.Since(began))
			cmd.Process.Kill()
			cmd.Wait()
			db := raw(t, dsn)
			awaitAlone(t, dsn, db)
			var bulk, changed int
			applied, err := readApplied(t.Context(), db)
			if err != nil {
				t.Fatal(err)
			}
			err = db.QueryRow("SELECT COUNT(*), (SELECT COUNT(*) FROM jobs WHERE bulk = 7) FROM bulk").Scan(&bulk, &changed)
			switch whole := newestOf(applied) == next; {
			case whole && (err != nil || bulk != bulkRows || changed != 1):
				t.Fatalf("round %d: half a migration: %d rows, %d jobs, %v", round, bulk, changed, err)
			case !whole && (err == nil || done):
				t.Fatalf("round %d: the migration is not recorded (the child was done: %t), but there are %d rows", round, done, bulk)
			case whole:
				_, err := Open(t.Context(), dsn, Config{})
				want(t, err, wire.Conflict, fmt.Sprintf("version %d", next), fmt.Sprintf("up to %d", next-1))
				if _, err := db.Exec(fmt.Sprintf("DROP TABLE bulk; ALTER TABLE jobs DROP COLUMN bulk; DELETE FROM migrations WHERE name LIKE '%%%04d_next.sql'", next)); err != nil {
					t.Fatal(err)
				}
			default:
				before++
			}
			db.Close()
			n := open(t, dsn, Config{})
			if jobs, err := n.Jobs(t.Context(), wire.JobFilter{}); err != nil || len(jobs) != 1 {
				t.Fatal(jobs, err)
			}
			if err := n.Close(); err != nil {
				t.Fatal(err)
			}
			if left, err := filepath.Glob(dsn + "*" + unfinished + "*"); !IsDatabase(dsn) && (err != nil || len(left) > 0) {
				t.Errorf("left are %v, %v", left, err)
			}
		}
		t.Logf("%d of %d were killed before the end", before, rounds)
		if before == rounds {
			t.Error("none came to its end, nor the one that was left alone")
		}
		if err := migrateTo(t.Context(), dsn, files); err != nil {
			t.Fatal(err)
		}
	})
}

// Where there is no room for a migration nothing of it is there; where there is
// none for the copy that is kept it goes on without.
func TestMigrationWithoutRoom(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=14m"); err != nil {
		t.Skipf("NOT TESTED ON A FULL DISK: mount a small file system: %v", err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	dsn := filepath.Join(dir, "waypoint.db")
	s := open(t, dsn, Config{})
	fill(t, s, "u1")
	for i := range 4 {
		update(t, s, func(tx *Tx) error { return tx.PutBlobChunk(fmt.Sprint(i), 0, make([]byte, 1<<20)) })
	}
	want := tables(t, s.reader)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	files, next := nextRelease(200_000)
	err := migrateTo(t.Context(), dsn, files)
	if wire.KindOf(err) != wire.Unavailable || !strings.Contains(err.Error(), "no space left to bring the store up to date; it is as it was") {
		t.Fatal(err)
	}
	names := func() (list []string) {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			list = append(list, e.Name())
		}
		return list
	}
	if got := names(); !slices.Equal(got, []string{"waypoint.db"}) {
		t.Errorf("there are %v", got)
	}
	n := open(t, dsn, Config{})
	if got := tables(t, n.reader); !reflect.DeepEqual(got, want) {
		t.Errorf("it has\n%v\nand had\n%v", got, want)
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	small, _ := nextRelease(10)
	if err := migrateTo(t.Context(), dsn, small); err != nil {
		t.Fatal(err)
	}
	if got := names(); slices.Contains(got, fmt.Sprintf("waypoint.db.before-schema-%d", next)) {
		t.Errorf("there was room: %v", got)
	}
}

// What is kept before a migration is a snapshot that the release before
// restores; of several migrations the last one's is kept.
func TestKeptBeforeMigration(t *testing.T) {
	dsn := filepath.Join(t.TempDir(), "waypoint.db")
	s := open(t, dsn, Config{})
	id := fill(t, s, "u1")
	was := tables(t, s.reader)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	files, next := nextRelease(10)
	for _, other := range []string{".before-schema-1", ".before-schema-2.unfinished", ".before-schema", "-other.before-schema-1"} {
		if err := os.WriteFile(dsn+other, []byte("earlier"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := migrateTo(t.Context(), dsn, files); err != nil {
		t.Fatal(err)
	}
	kept := fmt.Sprintf("%s.before-schema-%d", dsn, next)
	found, err := filepath.Glob(dsn + "*")
	if err != nil || !slices.Equal(found, []string{dsn, dsn + "-other.before-schema-1", dsn + ".before-schema", kept}) {
		t.Errorf("there are %v, %v", found, err)
	}
	b, err := os.ReadFile(kept)
	if err != nil {
		t.Fatal(err)
	}
	check := wire.NewSnapshotCheck()
	check.Write(b)
	h, err := check.Header()
	if err != nil || h.Schema != next-1 || h.ServerID != id || h.Software != "waypoint next" || h.Engine != "sqlite" {
		t.Errorf("%+v, %v", h, err)
	}
	if fi, err := os.Stat(kept); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", fi, err)
	}
	if err := CheckSnapshot(t.Context(), kept, id); err != nil {
		t.Fatal(err)
	}
	if got := tables(t, raw(t, kept)); !reflect.DeepEqual(got, was) {
		t.Errorf("kept is\n%v\nthere was\n%v", got, was)
	}
}

// A store of a newer release, or of a build whose migrations were others, is
// refused with both versions and what to do, and is not changed.
func TestForeignSchema(t *testing.T) {
	onBoth(t, func(t *testing.T, dsn string) {
		s := open(t, dsn, Config{})
		fill(t, s, "u1")
		version, err := SchemaVersion()
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		for _, test := range []struct{ change, back, says string }{
			{"INSERT INTO migrations (name, sum, applied_at) VALUES ('migrations/0812_flying.sql', 'x', 1)", "DELETE FROM migrations WHERE sum = 'x'",
				fmt.Sprintf("its schema has version 812 and was written by a newer release (0812_flying.sql); this waypoint knows versions up to %d", version)},
			{"INSERT INTO migrations (name, sum, applied_at) VALUES ('migrations/0002_other.sql', 'x', 1)", "DELETE FROM migrations WHERE sum = 'x'",
				fmt.Sprintf("its schema was made by another build: its migration 0002_other.sql is not the one that this waypoint has (schema version %d)", version)},
			{"UPDATE migrations SET sum = 'x' || sum WHERE name = 'migrations/0002_tokens.sql'", "UPDATE migrations SET sum = SUBSTR(sum, 2) WHERE name = 'migrations/0002_tokens.sql'",
				"its migration 0002_tokens.sql is not the one"},
		} {
			db := raw(t, dsn)
			if _, err := db.Exec(test.change); err != nil {
				t.Fatal(err)
			}
			was := tables(t, db)
			_, err := Open(t.Context(), dsn, Config{})
			want(t, err, wire.Conflict, test.says)
			if e, ok := errors.AsType[*wire.Error](err); !ok || e.Hint == "" {
				t.Errorf("%v: no hint", err)
			}
			if got := tables(t, db); !reflect.DeepEqual(got, was) {
				t.Errorf("it has been changed: %v", got)
			}
			if _, err := db.Exec(test.back); err != nil {
				t.Fatal(err)
			}
			db.Close()
		}
		open(t, dsn, Config{})
	})
}
