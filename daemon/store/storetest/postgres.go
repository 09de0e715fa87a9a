// Package storetest runs a PostgreSQL server for tests, if its programs are on
// this machine. For tests only.
package storetest

import (
	"database/sql"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib" // the driver "pgx"
)

// Postgres is a server with a cluster of its own in a temporary directory,
// reached by a socket in it.
type Postgres struct {
	dir  string
	attr *syscall.SysProcAttr
	cmd  *exec.Cmd
	done chan struct{} // closed when cmd has ended
	n    atomic.Int64
}

// Program finds one of PostgreSQL's programs.
func Program(name string) (string, error) {
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/" + name)
	if len(found) > 0 {
		return found[len(found)-1], nil
	}
	return exec.LookPath(name)
}

// NewPostgres makes a cluster and starts it. An error says why there is none.
// Close removes it.
func NewPostgres() (*Postgres, error) {
	initdb, err := Program("initdb")
	if err != nil {
		return nil, err
	}
	c := &Postgres{attr: &syscall.SysProcAttr{}}
	// A socket's path is short.
	if c.dir, err = os.MkdirTemp("/tmp", "wppg"); err != nil {
		return nil, err
	}
	if os.Geteuid() == 0 { // as which PostgreSQL refuses to run
		who, err := user.Lookup("postgres")
		if err != nil {
			if who, err = user.Lookup("nobody"); err != nil {
				return nil, err
			}
		}
		uid, _ := strconv.Atoi(who.Uid)
		gid, _ := strconv.Atoi(who.Gid)
		c.attr.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
		if err := os.Chown(c.dir, uid, gid); err != nil {
			return nil, err
		}
	}
	run := exec.Command(initdb, "-D", c.data(), "-U", "waypoint", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "-N")
	run.SysProcAttr, run.Dir = c.attr, c.dir
	if out, err := run.CombinedOutput(); err != nil {
		c.Close()
		return nil, fmt.Errorf("initdb: %w: %s", err, out)
	}
	if err := c.Start(); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

func (c *Postgres) data() string { return filepath.Join(c.dir, "data") }

// Start starts a server that has been stopped, and waits until it answers. It
// ends with this process.
func (c *Postgres) Start() error {
	postgres, err := Program("postgres")
	if err != nil {
		return err
	}
	log, err := os.OpenFile(filepath.Join(c.dir, "log"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	c.cmd = exec.Command(postgres, "-D", c.data(), "-k", c.dir, "-c", "listen_addresses=", "-c", "fsync=on", "-c", "max_connections=200")
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Credential: c.attr.Credential, Pdeathsig: syscall.SIGQUIT}
	c.cmd.Dir = c.dir
	c.cmd.Stdout, c.cmd.Stderr = log, log
	started := make(chan error, 1)
	c.done = make(chan struct{})
	go func(cmd *exec.Cmd, done chan struct{}) {
		runtime.LockOSThread() // the parent, by which it is ended, is a thread
		defer runtime.UnlockOSThread()
		defer close(done)
		err := cmd.Start()
		started <- err
		if err == nil {
			cmd.Wait()
		}
	}(c.cmd, c.done)
	if err := <-started; err != nil {
		return err
	}
	deadline := time.Now().Add(30 * time.Second)
	for {
		db, err := sql.Open("pgx", c.URL("postgres"))
		if err == nil {
			err = db.Ping()
			db.Close()
		}
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			text, _ := os.ReadFile(log.Name())
			return fmt.Errorf("postgres does not answer: %w: %s", err, text)
		}
		<-time.After(50 * time.Millisecond) // another process: there is no event to wait for
	}
}

// Stop ends the server at once: SIGINT rolls open transactions back, SIGQUIT is
// a crash.
func (c *Postgres) Stop(sig syscall.Signal) {
	if c.cmd != nil && c.cmd.Process != nil {
		c.cmd.Process.Signal(sig)
		<-c.done
		c.cmd = nil
	}
}

// Close ends the server and removes its cluster.
func (c *Postgres) Close() {
	c.Stop(syscall.SIGINT)
	if c.dir != "" {
		os.RemoveAll(c.dir)
	}
}

// Dir is where the server listens, and what names its processes.
func (c *Postgres) Dir() string { return c.dir }

// URL is the address of a database.
func (c *Postgres) URL(db string) string {
	return fmt.Sprintf("postgres://waypoint@/%s?host=%s", db, c.dir)
}

// Database makes an empty database.
func (c *Postgres) Database(t testing.TB) string {
	t.Helper()
	name := fmt.Sprintf("t%d", c.n.Add(1))
	db, err := sql.Open("pgx", c.URL("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.Exec("CREATE DATABASE " + name); err != nil {
		t.Fatal(err)
	}
	return c.URL(name)
}

var shared struct {
	sync.Mutex
	server *Postgres
	absent error
	asked  bool
}

// Database is an empty database on a server that all tests of the process share.
// It is started for the first one, and ended by End; where there cannot be one the
// test is skipped.
func Database(t testing.TB) string {
	t.Helper()
	if err := Absent(); err != nil {
		t.Skipf("NOT TESTED ON POSTGRESQL: %v", err)
	}
	return shared.server.Database(t)
}

// Absent is why there cannot be one, nil where there is.
func Absent() error {
	shared.Lock()
	defer shared.Unlock()
	if !shared.asked {
		shared.asked = true
		shared.server, shared.absent = NewPostgres()
	}
	return shared.absent
}

// End ends the server that Database has started: for TestMain.
func End() {
	shared.Lock()
	defer shared.Unlock()
	if shared.server != nil {
		shared.server.Close()
	}
}
