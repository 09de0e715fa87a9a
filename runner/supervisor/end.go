package supervisor

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/waypointd/waypoint/mux/wire"
)

// The files of an attempt that others read.
const (
	LogFile = "log" // package joblog
	endFile = "end.json"
)

// syncDelay is how long an attempt that has ended is held before its files are
// synced. Most are forgotten long before, and the server has what matters.
const syncDelay = time.Second

// Begun reports whether a supervisor has begun the attempt in dir, be it alive
// or dead: the log is there before any process is.
func Begun(dir string) bool {
	_, err := os.Lstat(filepath.Join(dir, LogFile))
	return !errors.Is(err, fs.ErrNotExist)
}

// writeEnd writes it whole or not at all, as far as the kernel lives. The
// handle of a tree that has ended is of no use any more and becomes the file:
// a new inode would cost more than all the rest.
func writeEnd(dir string, end *End, handle bool) error {
	b, err := json.Marshal(end)
	if err != nil {
		return fmt.Errorf("encode end of attempt: %w", err)
	}
	fresh := filepath.Join(dir, endFile+".new")
	if handle {
		fresh = filepath.Join(dir, handleFile)
	}
	if err := overwrite(fresh, b); err != nil {
		return fmt.Errorf("write end of attempt: %w", err)
	}
	if err := os.Rename(fresh, filepath.Join(dir, endFile)); err != nil {
		return fmt.Errorf("write end of attempt: %w", err)
	}
	return nil
}

// finish records the end, then says it.
func (a *attempt) finish(end *End) {
	log := a.s.log.With("job", a.spec.Job, "attempt", a.spec.Attempt)
	err := a.s.untilRoom(func() error { return writeEnd(a.spec.Dir, end, a.gone) })
	if err != nil {
		// It is still told to whoever asks this process.
		log.Error("record end of job", "error", err.Error())
	}
	log.Info("job ended", "state", end.State, "reason", end.Reason, "error", end.Error, "log_bytes", end.LogBytes)
	s := a.s
	s.mu.Lock()
	a.end = end
	a.sync = time.AfterFunc(syncDelay, a.syncFiles)
	if s.closed {
		a.sync.Stop()
	}
	s.running--
	s.busyLocked()
	s.mu.Unlock()
	s.changed(a)
}

// syncFiles puts on the disk what a server has not asked for yet.
func (a *attempt) syncFiles() {
	for _, name := range []string{LogFile, endFile, "."} {
		f, err := os.Open(filepath.Join(a.spec.Dir, name))
		if err != nil {
			continue // removed meanwhile
		}
		if err := f.Sync(); err != nil {
			a.s.log.Warn("sync attempt", "job", a.spec.Job, "attempt", a.spec.Attempt, "error", err.Error())
		}
		f.Close()
	}
}

// The waits for room on a full disk.
const (
	roomWaitFirst = 50 * time.Millisecond
	roomWaitMost  = 2 * time.Second
)

// untilRoom repeats f while it fails for want of space, until the supervisor
// is closed.
func (s *Supervisor) untilRoom(f func() error) error {
	wait := roomWaitFirst
	for {
		err := f()
		if !isFull(err) {
			return err
		}
		if wait == roomWaitFirst {
			s.log.Warn("no space left: waiting for room", "error", err.Error())
		}
		t := time.NewTimer(wait) // a file system does not say when it has room again
		select {
		case <-t.C:
		case <-s.quit:
			t.Stop()
			return err
		}
		wait = min(2*wait, roomWaitMost)
	}
}

func isFull(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// fileError is the wire's form of an error with an attempt's files.
func fileError(what string, err error) error {
	kind := wire.Internal
	if isFull(err) || errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) {
		kind = wire.Unavailable
	} else if errors.Is(err, fs.ErrPermission) || errors.Is(err, syscall.EROFS) {
		kind = wire.Denied
	}
	return wire.Errorf(kind, "%s: %v", what, err)
}
