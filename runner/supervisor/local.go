package supervisor

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/waypointd/waypoint/mux/wire"
	"github.com/waypointd/waypoint/runner/executor"
	"github.com/waypointd/waypoint/statedir"
)

// Defaults of a Spec.
const (
	DefaultGrace    = 10 * time.Second
	DefaultLogLimit = 1 << 30
)

// Config of a Supervisor.
type Config struct {
	Dir         string       // makes the cgroup's name; one open supervisor for each directory
	Isolation   string       // cgroup or process-group; empty is the best that can be had
	Controllers bool         // see executor.Config
	ShimLog     *os.File     // standard error of job shims; nil is this process's
	Logger      *slog.Logger // nil discards

	// JobUser is the user that jobs run as; empty is this process's own.
	// Attempts are then in Dir, and what a supervisor before this one has
	// left of them is ended and taken back by New.
	JobUser string
}

// Supervisor runs attempts in this process. It implements Jobs.
type Supervisor struct {
	log  *slog.Logger
	exec *executor.Executor
	user *executor.User // of jobs; nil is this process's own
	wg   sync.WaitGroup // of attempts, and of keepAll

	// quit is closed by Close: nothing waits for room on the disk any more.
	quit chan struct{}

	mu       sync.Mutex
	closed   bool
	leaving  bool // the process ends: nothing is started any more
	life     life // what ends it; see life.go
	attempts map[wire.JobRef]*attempt
	watchers map[*watcher]struct{}
	running  int                 // attempts without an end
	agents   map[*agent]struct{} // that are connected; see Serve
	arrivals int                 // of agents, ever
	idle     func(bool)
	unkept   []*attempt // ended, to be put on the disk
	keeping  bool       // somebody is about it; see keepAll
}

var _ Jobs = (*Supervisor)(nil)

// New finds out how jobs can be isolated here.
func New(cfg Config) (*Supervisor, error) {
	s := &Supervisor{
		log:      cfg.Logger,
		quit:     make(chan struct{}),
		attempts: map[wire.JobRef]*attempt{},
		watchers: map[*watcher]struct{}{},
		agents:   map[*agent]struct{}{},
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	var err error
	if s.user, err = jobUser(cfg.JobUser); err != nil {
		return nil, err
	}
	s.exec, err = executor.New(executor.Config{
		User:        s.user,
		Dir:         cfg.Dir,
		Isolation:   cfg.Isolation,
		Controllers: cfg.Controllers,
		ShimLog:     cfg.ShimLog,
		Logger:      s.log,
	})
	if err != nil {
		return nil, wire.Errorf(wire.Unavailable, "start supervisor: %v", err)
	}
	if err = s.letIn(cfg.Dir); err == nil {
		err = s.recoverAttempts(cfg.Dir)
	}
	if err != nil {
		s.exec.Close()
		return nil, err
	}
	return s, nil
}

// User is the name of the user that jobs run as; empty is this process's own.
func (s *Supervisor) User() string {
	if s.user == nil {
		return ""
	}
	return s.user.Name
}

// Isolation is how jobs are isolated here.
func (s *Supervisor) Isolation() string { return s.exec.Isolation() }

// validate says what is wrong with a spec, and fills in its defaults.
func (s *Spec) validate() error {
	switch {
	case !statedir.ValidID(s.Job) || s.Attempt < 0:
		return wire.Errorf(wire.BadUsage, "%q attempt %d names no attempt", s.Job, s.Attempt)
	case !filepath.IsAbs(s.Dir), !filepath.IsAbs(s.WorkDir):
		return wire.Errorf(wire.BadUsage, "attempt %s: its directories %q and %q must be absolute", name(s.JobRef), s.Dir, s.WorkDir)
	case len(s.Steps) == 0:
		return wire.Errorf(wire.BadUsage, "attempt %s has no steps", name(s.JobRef))
	case s.Timeout < 0 || s.Grace < 0 || s.LogLimit < 0:
		return wire.Errorf(wire.BadUsage, "attempt %s has a negative limit", name(s.JobRef))
	}
	if i := slices.IndexFunc(s.Theirs, func(n string) bool { return !validTheirs(n) }); i >= 0 {
		return wire.Errorf(wire.BadUsage, "attempt %s: %q is no entry of its directory", name(s.JobRef), s.Theirs[i])
	}
	s.Grace = cmp.Or(s.Grace, DefaultGrace)
	s.LogLimit = cmp.Or(s.LogLimit, DefaultLogLimit)
	return nil
}

// name is an attempt's in messages and in names of files.
func name(ref wire.JobRef) string { return fmt.Sprintf("%s-%d", ref.Job, ref.Attempt) }

// Start starts an attempt and returns when it is held.
func (s *Supervisor) Start(ctx context.Context, spec Spec) error {
	if err := spec.validate(); err != nil {
		return err
	}
	a := newAttempt(s, spec)
	s.mu.Lock()
	if s.closed || s.leaving {
		s.mu.Unlock()
		return ErrLeaving
	}
	if s.attempts[spec.JobRef] != nil {
		s.mu.Unlock()
		return wire.Errorf(wire.Conflict, "attempt %s is held already", name(spec.JobRef))
	}
	// Held from here on, so that a second Start is refused while the files
	// of the first are made.
	s.attempts[spec.JobRef] = a
	s.running++
	s.wg.Add(1)
	s.busyLocked()
	s.mu.Unlock()

	if err := a.prepare(); err != nil {
		s.mu.Lock()
		delete(s.attempts, spec.JobRef)
		s.running--
		s.busyLocked()
		s.mu.Unlock()
		s.wg.Done()
		return err
	}
	s.log.Info("job started", "job", spec.Job, "attempt", spec.Attempt, "isolation", s.Isolation())
	go func() {
		defer s.wg.Done()
		a.run()
	}()
	s.changed(a)
	return nil
}

// prepare makes the attempt's files.
func (a *attempt) prepare() error {
	if err := os.MkdirAll(a.spec.Dir, 0o700); err != nil {
		return fileError("make directory of attempt", err)
	}
	for _, file := range []string{handleFile, endFile} {
		if _, err := os.Lstat(filepath.Join(a.spec.Dir, file)); !errors.Is(err, fs.ErrNotExist) {
			return wire.Errorf(wire.Conflict, "attempt %s was started before", name(a.spec.JobRef))
		}
	}
	out, err := newOutput(a)
	if err != nil {
		return fileError("make output of attempt", err)
	}
	a.out = out
	return nil
}

// Stop ends an attempt: TERM, grace, kill; or at once. One that has ended is
// left as it is.
func (s *Supervisor) Stop(ctx context.Context, ref wire.JobRef, force bool) error {
	a, err := s.held(ref)
	if err != nil {
		return err
	}
	a.stop(stopCancel, force)
	return nil
}

// List is what is held, in no order.
func (s *Supervisor) List(ctx context.Context) ([]Status, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]Status, 0, len(s.attempts))
	for _, a := range s.attempts {
		all = append(all, Status{JobRef: a.spec.JobRef, Dir: a.spec.Dir, End: a.end})
	}
	slices.SortFunc(all, func(x, y Status) int {
		return cmp.Or(cmp.Compare(x.Job, y.Job), cmp.Compare(x.Attempt, y.Attempt))
	})
	return all, nil
}

// Takeover has nothing to do: calls in this process are nobody else's.
func (s *Supervisor) Takeover(ctx context.Context) error { return nil }

// Forget drops an attempt that has ended. One that is not held is NotFound.
func (s *Supervisor) Forget(ctx context.Context, ref wire.JobRef) error {
	a, err := s.dropEnded(ref)
	if err == nil {
		a.forget()
	}
	return err
}

func (s *Supervisor) dropEnded(ref wire.JobRef) (*attempt, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.attempts[ref]
	switch {
	case a == nil:
		return nil, notHeld(ref)
	case a.end == nil:
		return nil, wire.Errorf(wire.Conflict, "attempt %s has not ended", name(ref))
	}
	delete(s.attempts, ref)
	a.sync.Stop()
	return a, nil
}

func (s *Supervisor) held(ref wire.JobRef) (*attempt, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if a := s.attempts[ref]; a != nil {
		return a, nil
	}
	return nil, notHeld(ref)
}

func notHeld(ref wire.JobRef) error {
	return wire.Errorf(wire.NotFound, "attempt %s is not held", name(ref))
}

// Close stops what runs (TERM, grace, kill), records it as lost with its
// runner, and ends all Watches. It returns when no process is left.
func (s *Supervisor) Close() error {
	s.mu.Lock()
	first := !s.closed
	s.closed = true
	var running []*attempt
	for _, a := range s.attempts {
		if a.end == nil {
			running = append(running, a)
		}
		if a.sync != nil {
			a.sync.Stop()
		}
	}
	if first {
		close(s.quit)
	}
	s.mu.Unlock()
	for _, a := range running {
		a.stop(stopClose, false)
	}
	s.wg.Wait()
	s.closeWatchers()
	if !first {
		return nil
	}
	return s.exec.Close()
}

// busyLocked tells Serve whether anything is going on; mu is held.
func (s *Supervisor) busyLocked() {
	s.countLocked()
	if s.idle != nil {
		s.idle(s.running == 0 && len(s.agents) == 0)
	}
}
