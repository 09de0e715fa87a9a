package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/waypointd/waypoint/mux/wire"
	"github.com/waypointd/waypoint/runner/supervisor"
)

// scratch is the directory that the runner of this process keeps its attempts
// in. It is locked for as long as the process lives, and has its name only
// from the moment on when it is: one that can be locked is that of a command
// that was killed.
type scratch struct {
	path string
	lock *os.File // of the directory
}

const (
	scratchNew  = "waypoint-new-" // not locked yet
	scratchName = "waypoint-run-"
	scratchJobs = "jobs" // in it: the attempts
)

// newScratch makes a directory in parent ("" is the system's for temporary
// files), once it has removed what killed commands of this user have left there.
func newScratch(parent string) (*scratch, error) {
	if parent == "" {
		parent = os.TempDir()
	}
	parent, err := filepath.Abs(parent)
	if err != nil {
		return nil, fmt.Errorf("make runner directory: %w", err)
	}
	sweepScratch(parent)
	made, err := os.MkdirTemp(parent, scratchNew)
	if err != nil {
		return nil, temporaryError("make runner directory", err)
	}
	s := &scratch{path: filepath.Join(parent, scratchName+strings.TrimPrefix(filepath.Base(made), scratchNew))}
	if s.lock, err = os.Open(made); err == nil {
		if err = unix.Flock(int(s.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err == nil {
			err = os.Rename(made, s.path)
		}
	}
	if err != nil {
		s.lock.Close()
		return nil, errors.Join(fmt.Errorf("make runner directory: %w", err), os.Remove(made))
	}
	return s, nil
}

// temporaryError is the error of a file that could not be made where temporary
// ones are.
func temporaryError(doing string, err error) error {
	return wire.Errorf(wire.Internal, "%s: %v", doing, err).WithHint("set TMPDIR to a directory that you can write to")
}

// remove removes the directory with all that is in it.
func (s *scratch) remove() error {
	return errors.Join(os.RemoveAll(s.path), s.lock.Close())
}

// sweepScratch ends the jobs of killed commands, as far as those have outlived
// them, and removes their directories. What it cannot do is no hindrance.
func sweepScratch(parent string) {
	left, _ := filepath.Glob(filepath.Join(parent, scratchName+"*"))
	for _, path := range left {
		dir, err := os.OpenFile(path, os.O_RDONLY|syscall.O_DIRECTORY|syscall.O_NOFOLLOW, 0)
		if err != nil {
			continue
		}
		if isOurs(dir) && unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			endAttempts(path)
			os.RemoveAll(path)
		}
		dir.Close()
	}
}

func isOurs(dir *os.File) bool {
	var info unix.Stat_t
	return unix.Fstat(int(dir.Fd()), &info) == nil && int(info.Uid) == os.Geteuid()
}

// endAttempts kills what runs of the attempts below path.
func endAttempts(path string) {
	jobs := filepath.Join(path, scratchJobs)
	attempts, _ := os.ReadDir(jobs)
	for _, a := range attempts {
		supervisor.KillLeftovers(filepath.Join(jobs, a.Name()))
	}
}
