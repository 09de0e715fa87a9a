package store

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/waypointd/waypoint/daemon/store/storetest"
)

// The tests of the store run on SQLite, and on PostgreSQL if its programs are
// on this machine.

func TestMain(m *testing.M) {
	if os.Getenv("STORE_TEST_CHILD") != "" {
		child()
		return
	}
	if dsn := os.Getenv("STORE_TEST_MIGRATE"); dsn != "" {
		os.Exit(migrateChild(dsn))
	}
	if dsn := os.Getenv("STORE_TEST_RESTORE"); dsn != "" {
		os.Exit(restoreChild(dsn, os.Getenv("STORE_TEST_SNAPSHOT")))
	}
	code := m.Run()
	storetest.End()
	os.Exit(code)
}

// onBoth runs a test on each engine; it is given the address of an empty
// store.
func onBoth(t *testing.T, f func(t *testing.T, dsn string)) {
	t.Helper()
	t.Run("sqlite", func(t *testing.T) { f(t, filepath.Join(t.TempDir(), "waypoint.db")) })
	t.Run("postgres", func(t *testing.T) { f(t, storetest.Database(t)) })
}

// onEach is onBoth for a test with one caller; short runs leave PostgreSQL out, where
// the race detector would see nothing else.
func onEach(t *testing.T, f func(t *testing.T, dsn string)) {
	t.Helper()
	if !testing.Short() {
		onBoth(t, f)
		return
	}
	t.Run("sqlite", func(t *testing.T) { f(t, filepath.Join(t.TempDir(), "waypoint.db")) })
}

// open opens a store for the time of the test.
func open(t testing.TB, dsn string, cfg Config) *Store {
	t.Helper()
	if cfg.Fatal == nil {
		cfg.Fatal = func(err error) { t.Errorf("fatal: %v", err) }
	}
	s, err := Open(t.Context(), dsn, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return s
}

func update(t testing.TB, s *Store, f func(tx *Tx) error) {
	t.Helper()
	if err := s.Update(context.Background(), f); err != nil {
		t.Fatal(err)
	}
}

func TestDescribeShowsNoPassword(t *testing.T) {
	e, err := newPostgres("postgres://me:secret@db.example:5433/wp")
	if err != nil {
		t.Fatal(err)
	}
	if got := e.describe(); got != "postgres db.example:5433/wp" {
		t.Fatal(got)
	}
	if _, err := newPostgres("postgres://me:secret@db.example:notaport/wp"); err == nil || strings.Contains(err.Error(), "secret") {
		t.Fatal(err)
	}
}
