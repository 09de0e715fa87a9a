package store

import (
	"context"
	"database/sql"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// The tests of the store run on SQLite, and on PostgreSQL if its programs are
// on this machine.

// cluster is a PostgreSQL server for the time of the tests.
type cluster struct {
	dir    string
	cmd    *exec.Cmd
	absent string // why there is none
	n      atomic.Int64
}

var pg cluster

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
	if err := pg.start(); err != nil {
		pg.absent = err.Error()
	}
	code := m.Run()
	pg.stop()
	os.Exit(code)
}

func postgresProgram(name string) (string, error) {
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/" + name)
	if len(found) > 0 {
		return found[len(found)-1], nil
	}
	return exec.LookPath(name)
}

// start makes a cluster in a temporary directory, reached by a socket in it.
// PostgreSQL refuses to run as root.
func (c *cluster) start() error {
	initdb, err := postgresProgram("initdb")
	if err != nil {
		return err
	}
	postgres, err := postgresProgram("postgres")
	if err != nil {
		return err
	}
	// A socket's path is short.
	if c.dir, err = os.MkdirTemp("/tmp", "wppg"); err != nil {
		return err
	}
	attr := &syscall.SysProcAttr{}
	if os.Geteuid() == 0 {
		who, err := user.Lookup("postgres")
		if err != nil {
			if who, err = user.Lookup("nobody"); err != nil {
				return err
			}
		}
		uid, _ := strconv.Atoi(who.Uid)
		gid, _ := strconv.Atoi(who.Gid)
		attr.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
		if err := os.Chown(c.dir, uid, gid); err != nil {
			return err
		}
	}
	data := filepath.Join(c.dir, "data")
	run := exec.Command(initdb, "-D", data, "-U", "waypoint", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "-N")
	run.SysProcAttr = attr
	run.Dir = c.dir
	if out, err := run.CombinedOutput(); err != nil {
		return fmt.Errorf("initdb: %w: %s", err, out)
	}
	log, err := os.Create(filepath.Join(c.dir, "log"))
	if err != nil {
		return err
	}
	defer log.Close()
	attr = &syscall.SysProcAttr{Credential: attr.Credential, Pdeathsig: syscall.SIGQUIT}
	c.cmd = exec.Command(postgres, "-D", data, "-k", c.dir, "-c", "listen_addresses=", "-c", "fsync=on", "-c", "max_connections=200")
	c.cmd.SysProcAttr = attr
	c.cmd.Dir = c.dir
	c.cmd.Stdout, c.cmd.Stderr = log, log
	if err := c.cmd.Start(); err != nil {
		return err
	}
	deadline := time.Now().Add(30 * time.Second)
	for {
		db, err := sql.Open("pgx", c.url("postgres"))
		if err == nil {
			err = db.Ping()
			db.Close()
		}
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			text, _ := os.ReadFile(log.Name())
			c.stop()
			return fmt.Errorf("postgres does not answer: %w: %s", err, text)
		}
		<-time.After(50 * time.Millisecond) // another process: there is no event to wait for
	}
}

func (c *cluster) stop() {
	if c.cmd != nil && c.cmd.Process != nil {
		c.cmd.Process.Signal(syscall.SIGINT)
		c.cmd.Wait()
	}
	if c.dir != "" {
		os.RemoveAll(c.dir)
	}
}

func (c *cluster) url(db string) string {
	return fmt.Sprintf("postgres://waypoint@/%s?host=%s", db, c.dir)
}

// database makes an empty database.
func (c *cluster) database(t testing.TB) string {
	t.Helper()
	if c.absent != "" {
		t.Skipf("NOT TESTED ON POSTGRESQL: %s", c.absent)
	}
	name := fmt.Sprintf("t%d", c.n.Add(1))
	db, err := sql.Open("pgx", c.url("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.Exec("CREATE DATABASE " + name); err != nil {
		t.Fatal(err)
	}
	return c.url(name)
}

// onBoth runs a test on each engine; it is given the address of an empty
// store.
func onBoth(t *testing.T, f func(t *testing.T, dsn string)) {
	t.Helper()
	t.Run("sqlite", func(t *testing.T) { f(t, filepath.Join(t.TempDir(), "waypoint.db")) })
	t.Run("postgres", func(t *testing.T) { f(t, pg.database(t)) })
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
