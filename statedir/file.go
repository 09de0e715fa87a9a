package statedir

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/waypointd/waypoint/mux/wire"
)

// tempPrefix marks files that are being written.
const tempPrefix = ".tmp-"

// WriteFile replaces a file atomically: temporary file in the same
// directory, fsync, rename, fsync of the directory.
func (d *Dir) WriteFile(name string, data []byte, mode uint32) error {
	_, err := d.put(name, data, mode, true)
	return err
}

// createFile makes a file that does not exist yet, as atomically as
// WriteFile; made is false where there was one already, which is kept.
func (d *Dir) createFile(name string, data []byte, mode uint32) (made bool, err error) {
	return d.put(name, data, mode, false)
}

func (d *Dir) put(name string, data []byte, mode uint32, replace bool) (bool, error) {
	if !filepath.IsLocal(name) || filepath.Clean(name) == "." {
		return false, wire.Errorf(wire.BadUsage, "%q is no name of a file in the state directory", name)
	}
	// A sweeper in another process may take the temporary file in the moment
	// between its making and its locking; that is seen at the rename.
	for try := 0; ; try++ {
		err := d.putOnce(name, data, mode, replace)
		switch {
		case err == nil:
			return true, nil
		case !replace && errors.Is(err, fs.ErrExist):
			return false, nil
		case errors.Is(err, fs.ErrNotExist) && try < 10:
			if err := os.MkdirAll(filepath.Dir(d.Path(name)), 0o700); err != nil {
				return false, d.explain("write", err)
			}
		default:
			return false, d.explain("write", err)
		}
	}
}

func (d *Dir) putOnce(name string, data []byte, mode uint32, replace bool) error {
	t, err := d.temp(name, mode)
	if err != nil {
		return err
	}
	defer t.discard()
	if _, err := t.Write(data); err != nil {
		return err
	}
	if err := t.Sync(); err != nil {
		return err
	}
	target := d.Path(name)
	if replace {
		err = os.Rename(t.Name(), target)
	} else {
		err = RenameNew(t.Name(), target)
	}
	if err != nil {
		return err
	}
	t.placed = true
	return SyncDir(filepath.Dir(target))
}

// temp is a temporary file; its flock says that its writer lives.
type temp struct {
	*os.File
	placed bool // renamed: no longer ours to remove
}

// temp makes a temporary file beside name.
func (d *Dir) temp(name string, mode uint32) (*temp, error) {
	target := d.Path(name)
	f, err := os.CreateTemp(filepath.Dir(target), tempPrefix+filepath.Base(target)+"-*")
	if err != nil {
		return nil, err
	}
	t := &temp{File: f}
	// Blocks only while a sweeper looks at the file.
	if err := flock(f, unix.LOCK_EX); err != nil {
		t.discard()
		return nil, err
	}
	if err := f.Chmod(fs.FileMode(mode) & fs.ModePerm); err != nil {
		t.discard()
		return nil, err
	}
	return t, nil
}

// Temp makes an empty file (0600) beside name that holds what will be put in its
// place, or is not kept. The caller removes it if it is not; that of a process
// that died, the next Open does. It is of no use where the error is ErrNotExist
// of a later rename: another Open took it before it was locked.
func (d *Dir) Temp(name string) (*os.File, error) {
	t, err := d.temp(name, 0o600)
	if err != nil {
		return nil, d.explain("write", err)
	}
	return t.File, nil
}

// discard closes the file and, where it was not put in place, removes it.
func (t *temp) discard() {
	if !t.placed {
		os.Remove(t.Name())
	}
	t.Close()
}

// sweep removes temporary files whose writers are gone.
func (d *Dir) sweep() error {
	entries, err := os.ReadDir(d.path)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), tempPrefix) || !e.Type().IsRegular() {
			continue
		}
		f, err := os.OpenFile(d.Path(e.Name()), os.O_RDWR|unix.O_NOFOLLOW, 0)
		if err != nil {
			continue // gone, or another user's; the next write will tell
		}
		if flock(f, unix.LOCK_EX|unix.LOCK_NB) == nil {
			// Not by the name that f was opened by if that is another file
			// by now: the writer renamed it while we waited.
			if same, err := isAt(f, d.Path(e.Name())); err == nil && same {
				os.Remove(d.Path(e.Name()))
			}
		}
		f.Close()
	}
	return nil
}

// isAt reports whether the open file is what path names.
func isAt(f *os.File, path string) (bool, error) {
	a, err := f.Stat()
	if err != nil {
		return false, err
	}
	b, err := os.Lstat(path)
	if err != nil {
		return false, err
	}
	return os.SameFile(a, b), nil
}

// RenameNew renames where the target does not exist; else the error is
// fs.ErrExist.
func RenameNew(from, to string) error {
	err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE)
	if err == unix.EINVAL || err == unix.ENOSYS || err == unix.EPERM {
		// Not every file system knows the flag; every one that does not
		// knows links.
		if err := os.Link(from, to); err != nil {
			return err
		}
		return os.Remove(from)
	}
	if err != nil {
		return &os.LinkError{Op: "rename", Old: from, New: to, Err: err}
	}
	return nil
}

// SyncDir makes what was renamed or removed in a directory durable, where the
// file system can.
func SyncDir(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	// Some file systems cannot sync a directory and need not.
	if err := f.Sync(); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOTSUP) {
		return err
	}
	return nil
}

// NoSpace reports whether an error says that a disk, or somebody's share of it, is full.
func NoSpace(err error) bool { return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) }

func flock(f *os.File, how int) error {
	for {
		err := unix.Flock(int(f.Fd()), how)
		if err != unix.EINTR {
			return err
		}
	}
}
