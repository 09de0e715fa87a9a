package supervisor

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// walk goes over the files of a tree that others may change at the same time.
// Each is opened by its name in a directory that is held open, without being
// followed and without effect on what it is, and from then on it is that file
// whatever becomes of the name. Not entered is what is mounted in the tree.
//
// Of the directories on the way it holds the nearest open, and every so many
// of the others. The way back up is to one that is held, and down again from
// there; that this leads to where the walk came from is seen by the inode. (Up by
// ".." takes longer the deeper one is where something is mounted on a part of
// its file system, as in a sandbox.)
type walk struct {
	// enter is called for each file, of a directory before what is in it;
	// leave for each directory, after what is in it.
	enter func(fd int, st *unix.Stat_t) error
	leave func(fd int, st *unix.Stat_t) error
	// stop is asked from time to time whether to go on.
	stop func() error
}

// inode names a file for as long as it is there.
type inode struct{ dev, ino uint64 }

func inodeOf(st *unix.Stat_t) inode { return inode{uint64(st.Dev), st.Ino} }

// near is how many directories above the current one are held open, and how
// far those of the others are apart that are.
const near = 256

// level is a directory on the way to the current one, or that itself.
type level struct {
	name string
	fd   int // -1: not held
	st   unix.Stat_t
	dirs []string // in it, that are still to be visited
}

// path is the way from the top to the current directory, which are both held.
type path []level

func (p path) top() *level { return &p[len(p)-1] }

// down goes into a directory.
func (p path) down(l level) path {
	p = append(p, l)
	if i := len(p) - 1 - near; i > 0 && i%near != 0 {
		unix.Close(p[i].fd)
		p[i].fd = -1
	}
	return p
}

// up leaves the current directory, which is not the top.
func (p path) up() (path, error) {
	unix.Close(p.top().fd)
	p = p[:len(p)-1]
	held := len(p) - 1
	for p[held].fd < 0 {
		held--
	}
	for i := held + 1; i < len(p); i++ {
		fd, st, err := openEntry(p[i-1].fd, p[i].name, &p[i-1].st)
		if err != nil || inodeOf(&st) != inodeOf(&p[i].st) {
			if err == nil {
				unix.Close(fd)
			}
			return p, errMoved
		}
		p[i].fd = fd
	}
	return p, nil
}

func (p path) close() {
	for _, l := range p {
		if l.fd >= 0 {
			unix.Close(l.fd)
		}
	}
}

// errMoved says that a directory was moved while the walk was in it.
var errMoved = errors.New("its directories are being moved")

// problems are what went wrong with single files: the first, and how many.
type problems struct {
	first error
	count int
}

// add takes note of what went wrong with a file. One that is gone is no problem,
// what is mounted is not entered, and what may not be read is somebody else's.
func (p *problems) add(name string, err error) {
	if err == nil || err == unix.ENOENT || err == unix.EXDEV || err == unix.EACCES {
		return
	}
	if p.count++; p.first == nil {
		p.first = fmt.Errorf("%s: %w", name, err)
	}
}

func (p *problems) err() error {
	if p.count > 1 {
		return fmt.Errorf("%w, and %d more", p.first, p.count-1)
	}
	return p.first
}

// tree walks over the file name in a directory, and all below it. What goes
// wrong with one file does not spare the others.
func (w *walk) tree(dir int, name string) error {
	var bad problems
	fd, st, err := openEntry(dir, name, nil)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		defer unix.Close(fd)
		return w.enter(fd, &st)
	}
	way := path{{name: name, fd: fd, st: st, dirs: w.list(fd, &st, name, &bad)}}
	defer func() { way.close() }()
	for {
		if err := w.stop(); err != nil {
			return err
		}
		top := way.top()
		if n := len(top.dirs); n > 0 {
			name, top.dirs = top.dirs[n-1], top.dirs[:n-1]
			fd, st, err := openEntry(top.fd, name, &top.st)
			if err != nil {
				bad.add(name, err)
				continue
			}
			if st.Mode&unix.S_IFMT != unix.S_IFDIR { // another one by now
				bad.add(name, w.enter(fd, &st))
				unix.Close(fd)
				continue
			}
			if dirs := w.list(fd, &st, name, &bad); len(dirs) > 0 {
				way = way.down(level{name: name, fd: fd, st: st, dirs: dirs})
				continue
			}
			bad.add(name, w.leave(fd, &st))
			unix.Close(fd)
			continue
		}
		bad.add(top.name, w.leave(top.fd, &top.st))
		if len(way) == 1 {
			return bad.err()
		}
		if way, err = way.up(); err != nil {
			return err
		}
	}
}

// list enters a directory and all in it that are none, and names those that
// are.
func (w *walk) list(fd int, st *unix.Stat_t, name string, bad *problems) (dirs []string) {
	bad.add(name, w.enter(fd, st))
	r, err := openat(fd, ".", unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		bad.add(name, err)
		return nil
	}
	// By this name it finds out what an entry is where the file system does
	// not say so.
	f := os.NewFile(uintptr(r), procFile(r))
	defer f.Close()
	for w.stop() == nil {
		entries, err := f.ReadDir(256)
		for _, e := range entries {
			if e.IsDir() {
				dirs = append(dirs, e.Name())
				continue
			}
			isDir, err := w.file(fd, e.Name(), st)
			if isDir {
				dirs = append(dirs, e.Name())
			}
			bad.add(e.Name(), err)
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			bad.add(name, err)
			break
		}
	}
	return dirs
}

// file enters what should be no directory.
func (w *walk) file(dir int, name string, in *unix.Stat_t) (isDir bool, err error) {
	fd, st, err := openEntry(dir, name, in)
	if err != nil {
		return false, err
	}
	defer unix.Close(fd)
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return true, nil
	}
	return false, w.enter(fd, &st)
}

// openEntry opens a directory's entry as what it is, and looks at it; EXDEV is
// something mounted there. in is of the directory, nil where there is no need
// to ask.
func openEntry(dir int, name string, in *unix.Stat_t) (fd int, st unix.Stat_t, err error) {
	const flags = unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC
	how := unix.OpenHow{Flags: flags, Resolve: unix.RESOLVE_NO_XDEV}
	asked := true
	for {
		fd, err = unix.Openat2(dir, name, &how)
		if err != unix.EINTR && err != unix.EAGAIN {
			break
		}
	}
	if err == unix.ENOSYS || err == unix.EPERM {
		// A kernel before 5.6, or a filter: a device of its own has to do.
		asked = false
		fd, err = openat(dir, name, flags)
	}
	if err != nil {
		return -1, st, err
	}
	if err = fstat(fd, &st); err == nil && !asked && in != nil && st.Mode&unix.S_IFMT == unix.S_IFDIR && st.Dev != in.Dev {
		err = unix.EXDEV
	}
	if err != nil {
		unix.Close(fd)
		return -1, st, err
	}
	return fd, st, nil
}

func openat(dir int, name string, flags int) (fd int, err error) {
	for {
		if fd, err = unix.Openat(dir, name, flags|unix.O_CLOEXEC, 0); err != unix.EINTR {
			return fd, err
		}
	}
}

func fstat(fd int, st *unix.Stat_t) (err error) {
	for {
		if err = unix.Fstat(fd, st); err != unix.EINTR {
			return err
		}
	}
}

// procFile is a name for what is open as fd.
func procFile(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }
