package supervisor

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/waypointd/waypoint/mux/wire"
	"github.com/waypointd/waypoint/statedir"
)

// The files of an attempt that others read.
const (
	LogFile  = "log" // package joblog
	endFile  = "end.json"
	keptFile = "kept" // the attempt's name, once all that it has left is on the disk
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

// EndVersion is that of the format of end.json. A file without one is of before
// there was one, and the same otherwise.
const EndVersion = 1

// endRecord is what end.json holds.
type endRecord struct {
	Version int `json:"version"`
	*End
}

// encodeEnd is the content of end.json.
func encodeEnd(end *End) ([]byte, error) {
	b, err := json.Marshal(endRecord{Version: EndVersion, End: end})
	if err != nil {
		return nil, fmt.Errorf("encode end of attempt: %w", err)
	}
	return b, nil
}

// ReadEnd reads how the attempt in dir ended. ErrNotExist: its end is not on
// record; Unimplemented: a newer release wrote it; anything else: it is damaged.
func ReadEnd(dir string) (*End, error) {
	b, err := os.ReadFile(filepath.Join(dir, endFile))
	if err != nil {
		return nil, fmt.Errorf("read end of attempt: %w", err)
	}
	var v struct {
		Version int `json:"version"`
	}
	if err := json.Unmarshal(b, &v); err != nil {
		return nil, fmt.Errorf("read end of attempt: %s is damaged: %w", endFile, err)
	}
	if v.Version > EndVersion {
		return nil, wire.Errorf(wire.Unimplemented, "read end of attempt: format %d of %s is of a newer release", v.Version, endFile)
	}
	end := &End{}
	if err := json.Unmarshal(b, end); err != nil {
		return nil, fmt.Errorf("read end of attempt: %s is damaged: %w", endFile, err)
	}
	if !end.State.Ended() {
		return nil, fmt.Errorf("read end of attempt: %s is damaged: %q is no end", endFile, end.State)
	}
	return end, nil
}

// WriteEnd records the end of an attempt that no supervisor has, whole or not at all.
func WriteEnd(dir string, end *End) error { return writeEnd(dir, end, false) }

// writeEnd writes it whole or not at all, as far as the kernel lives. The
// handle of a tree that has ended is of no use any more and becomes the file:
// a new inode would cost more than all the rest.
func writeEnd(dir string, end *End, handle bool) error {
	b, err := encodeEnd(end)
	if err != nil {
		return err
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

// finish records the end, then says it. Where there is no room for the record
// the end is said all the same, and recorded once there is: whoever asks this process is
// told until then.
func (a *attempt) finish(end *End) {
	log := a.s.log.With("job", a.spec.Job, "attempt", a.spec.Attempt)
	switch err := a.record(end); {
	case statedir.NoSpace(err):
		log.Warn("end of job is recorded once there is room", "error", err.Error())
		a.s.wg.Go(func() {
			if err := a.untilRoom(func() error { return a.record(end) }); err != nil {
				log.Error("record end of job", "error", err.Error())
				return
			}
			a.keep()
		})
	case err != nil:
		log.Error("record end of job", "error", err.Error())
	}
	log.Info("job ended", "state", end.State, "reason", end.Reason, "error", end.Error, "log_bytes", end.LogBytes)
	s := a.s
	s.mu.Lock()
	a.end = end
	a.sync = time.AfterFunc(syncDelay, a.keep)
	if s.closed {
		a.sync.Stop()
	}
	s.running--
	s.busyLocked()
	s.mu.Unlock()
	s.changed(a)
}

// record writes end.json, if the attempt is not forgotten: its directory may
// then be another's.
func (a *attempt) record(end *End) error {
	a.recording.Lock()
	defer a.recording.Unlock()
	if a.forgotten {
		return nil
	}
	return writeEnd(a.spec.Dir, end, a.gone)
}

// forget says that the directory is nobody's any more.
func (a *attempt) forget() {
	a.recording.Lock()
	defer a.recording.Unlock()
	a.forgotten = true
}

// keep puts on the disk, soon, what a server has not asked for yet: together
// with all whose turn comes while the disk is at work.
func (a *attempt) keep() {
	s := a.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	s.unkept = append(s.unkept, a)
	if !s.keeping {
		s.keeping = true
		s.wg.Go(s.keepAll)
	}
}

func (s *Supervisor) keepAll() {
	for {
		s.mu.Lock()
		all := s.unkept
		s.unkept = nil
		s.keeping = len(all) > 0
		s.mu.Unlock()
		if len(all) == 0 {
			return
		}
		s.keep(all)
	}
}

// keepUnreported is keep for all that has ended and that nobody has forgotten,
// when the process ends.
func (s *Supervisor) keepUnreported() {
	var all []*attempt
	s.mu.Lock()
	for _, a := range s.attempts {
		if a.end != nil {
			all = append(all, a)
		}
	}
	s.mu.Unlock()
	s.keep(all)
}

// keep puts attempts on the disk: also where the host loses its power, they
// ended as it is recorded then.
func (s *Supervisor) keep(all []*attempt) {
	all = slices.DeleteFunc(all, func(a *attempt) bool {
		return Kept(a.spec.Dir, a.spec.JobRef) || !isFile(filepath.Join(a.spec.Dir, endFile))
	})
	if len(all) == 0 {
		return
	}
	// All of the file system: an attempt's record, and what a build has made,
	// are many files.
	synced := syncFS(all[0].spec.Dir)
	for _, a := range all {
		err := synced
		if err == nil {
			err = a.markKept()
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // removed meanwhile
			s.log.Warn("sync attempt", "job", a.spec.Job, "attempt", a.spec.Attempt, "error", err.Error())
		}
	}
}

func syncFS(dir string) error {
	d, err := os.Open(filepath.Dir(dir))
	if err != nil {
		return err
	}
	defer d.Close()
	if err := unix.Syncfs(int(d.Fd())); err != nil {
		return &fs.PathError{Op: "syncfs", Path: dir, Err: err}
	}
	return nil
}

// markKept says so in the attempt's directory, if that is still its own.
func (a *attempt) markKept() error {
	a.recording.Lock()
	defer a.recording.Unlock()
	if a.forgotten {
		return nil
	}
	f, err := os.OpenFile(filepath.Join(a.spec.Dir, keptFile), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(name(a.spec.JobRef))
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	d, err := os.Open(a.spec.Dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Kept reports whether what the attempt in dir has left was on the disk as a
// whole before the host may have gone down. Of one that was not, any file may
// be empty, short, or what another attempt had in its place.
func Kept(dir string, ref wire.JobRef) bool {
	b, err := os.ReadFile(filepath.Join(dir, keptFile))
	return err == nil && string(b) == name(ref)
}

// Disown takes back that an attempt has ended: what is recorded of it cannot be
// relied on.
func Disown(dir string) error {
	err := os.Remove(filepath.Join(dir, endFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// The waits for room on a full disk.
const (
	roomWaitFirst = 50 * time.Millisecond
	roomWaitMost  = 2 * time.Second
)

// untilRoom repeats f while it fails for want of space, until the supervisor
// is closed. Watchers are told that the attempt waits, and that it does no more.
func (a *attempt) untilRoom(f func() error) error {
	s, wait := a.s, roomWaitFirst
	defer func() {
		if wait != roomWaitFirst {
			a.waits.Store(nil)
			s.changed(a)
		}
	}()
	for {
		err := f()
		if !statedir.NoSpace(err) {
			return err
		}
		if wait == roomWaitFirst {
			s.log.Warn("no space left: waiting for room", "job", a.spec.Job, "attempt", a.spec.Attempt, "error", err.Error())
			a.waits.Store(new(err.Error()))
			s.changed(a)
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

// fileError is the wire's form of an error with an attempt's files.
func fileError(what string, err error) error {
	kind := wire.Internal
	if statedir.NoSpace(err) || errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) {
		kind = wire.Unavailable
	} else if errors.Is(err, fs.ErrPermission) || errors.Is(err, syscall.EROFS) {
		kind = wire.Denied
	}
	return wire.Errorf(kind, "%s: %v", what, err)
}
