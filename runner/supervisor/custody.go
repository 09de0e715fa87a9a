package supervisor

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/waypointd/waypoint/runner/executor"
)

// Where jobs have a user of their own, what an attempt may write (Spec.Theirs)
// is that user's while the attempt runs, and ours before and after. The mode
// of the attempt's directory says how it stands, also to the next supervisor:
//
//	0700    ours
//	1711    handed over, or about to be: the jobs' user passes through it
//	1700    being taken back: nobody comes in any more by its name
//
// What may be going on meanwhile is the doing of other jobs of the same user,
// which may hold directories in it open: so all is done to open files (see
// walk), whose owner was looked at. Only what belongs to us is handed over,
// only what belongs to the jobs' user is taken back. A file with another
// name outside, a hard link, stays that user's: that name is none of our
// business. What others own (by sudo, say) stays theirs.
const (
	modeOurs   = 0o700
	modeTheirs = unix.S_ISVTX | 0o711
	modeTaking = unix.S_ISVTX | 0o700
)

// takeTries is how often a tree is walked whose directories are being moved.
const takeTries = 3

// maxLinked bounds how many files with several names are remembered; those
// beyond stay as they are.
const maxLinked = 1 << 20

// custody changes files from one owner to another.
type custody struct {
	from     int // user
	uid, gid int
	linked   map[inode]uint64 // names seen of files with several
	asFrom   func(func())     // calls a function in a thread that sees files as the old owner; nil: there is no need
}

// change gives a file to the new owner if it is the old one's.
func (c *custody) change(fd int, st *unix.Stat_t) error {
	if int(st.Uid) != c.from {
		return nil
	}
	if st.Nlink > 1 && st.Mode&unix.S_IFMT != unix.S_IFDIR {
		id := inodeOf(st)
		if _, known := c.linked[id]; !known && len(c.linked) >= maxLinked {
			return nil
		}
		if c.linked[id]++; c.linked[id] < uint64(st.Nlink) {
			return nil
		}
	}
	err := c.chown(fd)
	if err == unix.EPERM && c.asFrom != nil && st.Mode&(unix.S_ISUID|unix.S_ISGID) != 0 {
		// A change of owner takes these bits away, and that is the owner's right.
		c.asFrom(func() { err = unix.Fchmodat(unix.AT_FDCWD, procFile(fd), st.Mode&0o1777, 0) })
		if err == nil {
			err = c.chown(fd)
		}
	}
	return err
}

func (c *custody) chown(fd int) error {
	for {
		if err := unix.Fchownat(fd, "", c.uid, c.gid, unix.AT_EMPTY_PATH); err != unix.EINTR {
			return err
		}
	}
}

// open makes a directory that is ours one that we can read and change.
func (c *custody) open(fd int, st *unix.Stat_t) error {
	if owner := int(st.Uid); st.Mode&0o700 == 0o700 || owner != c.from && owner != c.uid {
		return nil
	}
	return unix.Fchmodat(unix.AT_FDCWD, procFile(fd), st.Mode&0o7777|0o700, 0)
}

// handOver gives entries of an attempt's directory to the jobs' user.
func handOver(dir string, names []string, to *executor.User, stop func() error) error {
	d, err := openOurs(dir)
	if err != nil {
		return err
	}
	defer unix.Close(d)
	if err := unix.Fchmod(d, modeTheirs); err != nil {
		return &fs.PathError{Op: "chmod", Path: dir, Err: err}
	}
	c := &custody{from: os.Geteuid(), uid: to.UID, gid: to.GID, linked: map[inode]uint64{}}
	w := &walk{
		// A directory last, while we may still search it.
		enter: func(fd int, st *unix.Stat_t) error {
			if st.Mode&unix.S_IFMT == unix.S_IFDIR {
				return nil
			}
			return c.change(fd, st)
		},
		leave: c.change,
		stop:  stop,
	}
	for _, name := range names {
		if err := w.tree(d, name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// takeBack makes everything in an attempt's directory ours that is the jobs'
// user's, for which asFrom is, see custody.
func takeBack(dir string, from *executor.User, asFrom func(func())) error {
	d, err := openOurs(dir)
	if err != nil {
		return err
	}
	defer unix.Close(d)
	if err := unix.Fchmod(d, modeTaking); err != nil {
		return &fs.PathError{Op: "chmod", Path: dir, Err: err}
	}
	for try := 1; ; try++ {
		c := &custody{from: from.UID, uid: os.Geteuid(), gid: os.Getegid(), linked: map[inode]uint64{}, asFrom: asFrom}
		w := &walk{
			enter: func(fd int, st *unix.Stat_t) error {
				if err := c.change(fd, st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFDIR {
					return err
				}
				return c.open(fd, st)
			},
			leave: func(int, *unix.Stat_t) error { return nil },
			stop:  func() error { return nil },
		}
		if err = w.tree(d, "."); !errors.Is(err, errMoved) || try == takeTries {
			break
		}
	}
	if err != nil {
		return err
	}
	if err := unix.Fchmod(d, modeOurs); err != nil {
		return &fs.PathError{Op: "chmod", Path: dir, Err: err}
	}
	return nil
}

// openOurs opens a directory that belongs to this process's user.
func openOurs(dir string) (int, error) {
	fd, err := openat(unix.AT_FDCWD, dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW)
	if err != nil {
		return -1, &fs.PathError{Op: "open", Path: dir, Err: err}
	}
	var st unix.Stat_t
	if err = fstat(fd, &st); err == nil && int(st.Uid) != os.Geteuid() {
		err = fmt.Errorf("it belongs to user %d, not to user %d", st.Uid, os.Geteuid())
	}
	if err != nil {
		unix.Close(fd)
		return -1, &fs.PathError{Op: "open", Path: dir, Err: err}
	}
	return fd, nil
}

// handOver lets the job have what is to be its user's; the handle has been
// written, so the next supervisor knows to take it back.
func (a *attempt) handOver() error {
	user := a.s.user
	if user == nil {
		return nil
	}
	err := handOver(a.spec.Dir, a.spec.Theirs, user, func() error {
		if a.stopped() {
			return errStopped
		}
		return nil
	})
	if err == nil {
		// A program may open them again: /dev/stdout, /dev/stderr.
		for _, f := range []*os.File{a.out.stdout, a.out.stderr} {
			err = errors.Join(err, f.Chown(user.UID, user.GID))
		}
	}
	if err != nil && !errors.Is(err, errStopped) {
		return fmt.Errorf("hand files over to user %s: %w", user.Name, err)
	}
	return err
}

// takeBack is for when no process of the attempt is left. What fails is only
// logged: how the job has ended was its commands' doing. An output or artifact
// that cannot be read for it is missed by whoever reads it, and that is
// an error of the job then.
func (a *attempt) takeBack() {
	if a.s.user == nil {
		return
	}
	if err := takeBack(a.spec.Dir, a.s.user, a.s.exec.AsUser); err != nil {
		a.s.log.Error("take files of job back", "job", a.spec.Job, "attempt", a.spec.Attempt, "error", err.Error())
	}
}

// recoverAttempts does for the attempts in a directory what a supervisor that
// died has left to do: no process of them lives, and their files are ours.
func (s *Supervisor) recoverAttempts(dir string) error {
	if s.user == nil {
		return nil
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil || !info.IsDir() || info.Mode()&fs.ModeSticky == 0 {
			continue
		}
		path := filepath.Join(dir, e.Name())
		log := s.log.With("attempt_dir", path)
		// The handle stays: it says that the attempt was started.
		if err := executor.EndLeftovers(filepath.Join(path, handleFile)); err != nil {
			log.Error("end processes", "error", err.Error())
		}
		if err := takeBack(path, s.user, s.exec.AsUser); err != nil {
			log.Error("take files of job back", "error", err.Error())
			continue
		}
		log.Info("files of a lost job taken back")
	}
	return nil
}

// validTheirs reports whether a name is that of an entry of a directory.
func validTheirs(name string) bool {
	return filepath.IsLocal(name) && name != "." && !strings.Contains(name, "/")
}
