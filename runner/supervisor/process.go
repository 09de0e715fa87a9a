package supervisor

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/waypointd/waypoint/mux/wire"
)

const (
	lockFile = "supervisor.lock"

	// ErrorLogFile takes what a supervisor that Ensure has started writes to
	// its standard output and error.
	ErrorLogFile = "supervisor.log"

	// IdleExit is how long a supervisor that Ensure has started stays
	// with no job running and no agent connected.
	IdleExit = 10 * time.Second

	// lockWait is how long a supervisor waits for the one before it, which
	// has stopped serving and is about to go.
	lockWait = 5 * time.Second
)

// ProcessConfig is what a supervisor process is given.
type ProcessConfig struct {
	Dir         string        // holds the lock and the socket; made if missing
	Isolation   string        // see Config
	Controllers bool          // see Config
	IdleExit    time.Duration // 0 is never
	Logger      *slog.Logger
}

// Run is the life of a supervisor process: it serves Dir's socket until ctx
// ends or IdleExit has passed, then stops the jobs (TERM, grace, kill) and
// records their ends. It sets the process's umask to 022, which is the
// jobs'. A second one for the same directory is Conflict.
func Run(ctx context.Context, cfg ProcessConfig) error {
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return fileError("make supervisor's directory", err)
	}
	unlock, err := lock(ctx, filepath.Join(cfg.Dir, lockFile), lockWait)
	if err != nil {
		return err
	}
	defer unlock()
	unix.Umask(0o022)
	s, err := New(Config{Dir: cfg.Dir, Isolation: cfg.Isolation, Controllers: cfg.Controllers, Logger: cfg.Logger})
	if err != nil {
		return err
	}
	defer s.Close()
	ln, err := Listen(cfg.Dir, SocketFile)
	if err != nil {
		return wire.Errorf(wire.Unavailable, "%v", err)
	}
	// Gone before the lock is: who finds no socket waits for the lock.
	defer os.Remove(filepath.Join(cfg.Dir, SocketFile))
	s.log.Info("supervisor started", "isolation", s.Isolation(), "dir", cfg.Dir, "pid", os.Getpid())
	err = s.Serve(ctx, ln, cfg.IdleExit)
	s.log.Info("supervisor stopping")
	return err
}

// lock takes a lock file, waiting a while for whoever holds it.
func lock(ctx context.Context, path string, wait time.Duration) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fileError("lock supervisor's directory", err)
	}
	if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
		return func() { f.Close() }, nil
	}
	got := make(chan error, 1) // sent once
	go func() {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX)
		for err == unix.EINTR {
			err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
		}
		got <- err
	}()
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case err := <-got:
		if err != nil {
			f.Close()
			return nil, fileError("lock supervisor's directory", err)
		}
		return func() { f.Close() }, nil
	case <-timer.C:
		err = wire.Errorf(wire.Conflict, "another supervisor runs for %s", filepath.Dir(path))
	case <-ctx.Done():
		err = fmt.Errorf("lock supervisor's directory: %w", context.Cause(ctx))
	}
	// Waits on until its turn, then lets go.
	go func() {
		<-got
		f.Close()
	}()
	return nil, err
}
