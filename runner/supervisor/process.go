package supervisor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
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

// The pace of what a process says of itself.
const (
	countEvery = time.Second     // at most so often, while it serves: jobs may be short
	leaveEvery = 5 * time.Second // at least so often, while it leaves: its end may take long, and is not stuck
)

// ProcessConfig is what a supervisor process is given.
type ProcessConfig struct {
	Dir         string        // holds the lock and the socket; made if missing
	Isolation   string        // see Config
	JobUser     string        // see Config
	Controllers bool          // see Config
	IdleExit    time.Duration // 0 is never
	Version     string        // see Jobs
	Logger      *slog.Logger

	// Drain is how long running jobs may go on when the process is asked to
	// end, and Hurry, when it is closed, the end of that.
	Drain time.Duration
	Hurry <-chan struct{}

	// Notify is told how the process fares: first when it can be connected to,
	// then with each change, and while it leaves at least every 5 s. It must not block.
	Notify func(ProcessStatus)
}

// ProcessStatus is how a supervisor process fares.
type ProcessStatus struct {
	Running   int
	Isolation string
	User      string        // that jobs run as; "" is this process's own
	Leaving   bool          // nothing more is started
	Left      time.Duration // Leaving: what the running jobs may still go on for; 0: they are being ended
}

// process is one in its course.
type process struct {
	cfg ProcessConfig
	s   *Supervisor
}

// Run is the life of a supervisor process: it serves Dir's socket until it is
// retired, IdleExit has passed, or ctx ends. With ctx it leaves: it starts nothing
// more, waits up to Drain for the running jobs, then stops them (TERM, grace,
// kill) and records their ends. Agents are answered until the last of that, so
// they hear how their jobs have ended. It sets the process's umask to 022,
// which is the jobs'. A second one for the same directory is Conflict.
func Run(ctx context.Context, cfg ProcessConfig) error {
	// Other users' jobs pass through it to their own directories.
	if err := os.MkdirAll(cfg.Dir, 0o711); err != nil {
		return fileError("make supervisor's directory", err)
	}
	unlock, err := lock(ctx, filepath.Join(cfg.Dir, lockFile), lockWait)
	if err != nil {
		return err
	}
	defer unlock()
	unix.Umask(0o022)
	s, err := New(Config{Dir: cfg.Dir, Isolation: cfg.Isolation, JobUser: cfg.JobUser, Controllers: cfg.Controllers, Logger: cfg.Logger})
	if err != nil {
		return err
	}
	s.life.version, s.life.counted = cfg.Version, make(chan struct{}, 1)
	ln, err := Listen(cfg.Dir, SocketFile)
	if err != nil {
		s.Close()
		return wire.Errorf(wire.Unavailable, "%v", err)
	}
	// Gone before the lock is: who finds no socket waits for the lock.
	defer os.Remove(filepath.Join(cfg.Dir, SocketFile))
	defer s.Close()
	s.log.Info("supervisor started", "isolation", s.Isolation(), "dir", cfg.Dir, "pid", os.Getpid(), "version", cfg.Version)
	err = (&process{cfg: cfg, s: s}).live(ctx, ln)
	s.keepUnreported()
	s.log.Info("supervisor stopping")
	return err
}

// live serves until something ends it. The process is left with no job.
func (p *process) live(ctx context.Context, ln net.Listener) error {
	serving, quit := context.WithCancel(context.WithoutCancel(ctx))
	defer quit()
	served := make(chan error, 1) // sent once
	go func() { served <- p.s.Serve(serving, ln, p.cfg.IdleExit) }()
	p.tell(false, 0)
	var quiet <-chan time.Time // nothing is told before; nil: at once
	for {
		counted := p.s.life.counted
		if quiet != nil {
			counted = nil
		}
		select {
		case <-counted:
			p.tell(false, 0)
			quiet = time.After(countEvery)
		case <-quiet:
			quiet = nil
		case err := <-served:
			return err
		case <-ctx.Done():
			err := p.leave()
			quit()
			return errors.Join(err, <-served)
		}
	}
}

// leave starts nothing more, waits for what runs as long as it may, and ends
// the rest. Agents are served meanwhile.
func (p *process) leave() error {
	p.s.log.Info("supervisor leaving: no more jobs are started", "jobs", p.s.count(), "drain", p.cfg.Drain.String())
	p.s.depart()
	until := time.Now().Add(p.cfg.Drain)
	over := time.NewTimer(p.cfg.Drain)
	defer over.Stop()
	tick := time.NewTicker(leaveEvery)
	defer tick.Stop()
	for waiting := p.cfg.Drain > 0; waiting && p.s.count() > 0; {
		p.tell(true, time.Until(until))
		select {
		case <-p.s.life.counted:
		case <-tick.C:
		case <-p.cfg.Hurry:
			waiting = false
		case <-over.C:
			waiting = false
		}
	}
	if n := p.s.count(); n > 0 {
		p.s.log.Info("ending the running jobs", "jobs", n)
	}
	closed := make(chan error, 1) // sent once
	go func() { closed <- p.s.Close() }()
	for {
		p.tell(true, 0)
		select {
		case <-p.s.life.counted:
		case <-tick.C:
		case err := <-closed:
			return err
		}
	}
}

func (p *process) tell(leaving bool, left time.Duration) {
	if p.cfg.Notify != nil {
		p.cfg.Notify(ProcessStatus{Running: p.s.count(), Isolation: p.s.Isolation(), User: p.s.User(), Leaving: leaving, Left: max(left, 0)})
	}
}

// lock takes a lock file, waiting a while for whoever holds it.
func lock(ctx context.Context, path string, wait time.Duration) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
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
