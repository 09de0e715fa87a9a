package supervisor

import (
	"context"
	"os"
	"path/filepath"

	"github.com/waypointd/waypoint/mux/wire"
)

// ErrLeaving is the refusal of a Start because the supervisor is ending:
// nothing has been done of it, and it is for the next supervisor.
var ErrLeaving = wire.Errorf(wire.Unavailable, "the supervisor is stopping")

// life is what ends a supervisor with a process of its own. All of it is
// guarded by Supervisor.mu, but for the channel itself, which is set before
// anything starts.
type life struct {
	version  string
	counted  chan struct{} // one token: another number of jobs runs; nil where nobody wants to know
	retiring bool
	retire   func() // ends Serve; nil while there is none
}

// Version is what Run was given.
func (s *Supervisor) Version() string { return s.life.version }

// software is what a process of a version says that it is, "" where it has none.
func software(version string) string {
	if version == "" {
		return ""
	}
	return "waypoint " + version
}

// PID is this process's.
func (s *Supervisor) PID() int { return os.Getpid() }

// Retire ends Serve with the last running job, and at once where none runs.
func (s *Supervisor) Retire(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.life.retire == nil {
		return wire.Errorf(wire.Unimplemented, "retire supervisor: it has no process of its own")
	}
	if !s.life.retiring {
		s.life.retiring = true
		s.log.Info("supervisor retires once no job runs", "jobs", s.running)
	}
	s.countLocked()
	return nil
}

// retirable has Retire call end, until the function it returns is called.
func (s *Supervisor) retirable(end func()) (stop func()) {
	set := func(f func()) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.life.retire = f
	}
	set(end)
	return func() { set(nil) }
}

// countLocked takes note of another number of running jobs; mu is held.
func (s *Supervisor) countLocked() {
	select {
	case s.life.counted <- struct{}{}:
	default:
	}
	if s.life.retiring && s.running == 0 && s.life.retire != nil {
		s.leaving = true
		s.life.retire()
	}
}

// depart refuses every Start from now on, and tells all watchers.
func (s *Supervisor) depart() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.leaving {
		return
	}
	s.leaving = true
	for w := range s.watchers {
		w.leave()
	}
}

// count is the number of running jobs.
func (s *Supervisor) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.running
}

// Probe asks the supervisor in dir, over its socket, what it holds: whether
// its listener, its sessions and its lock answer.
func Probe(ctx context.Context, dir string) error {
	jobs, err := Connect(ctx, filepath.Join(dir, SocketFile))
	if err != nil {
		return err
	}
	defer jobs.Close()
	_, err = jobs.List(ctx)
	return err
}
