package contexts

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// tempPrefix marks files that are being written.
const tempPrefix = ".tmp-"

// put writes a file as a whole: under another name first, which nobody takes
// for a context, and durable before it has its own. Without replace one that
// is there is kept, and the error is fs.ErrExist.
func put(path string, text []byte, replace bool) error {
	f, err := os.CreateTemp(filepath.Dir(path), tempPrefix+"*") // 0600
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		if replace {
			err = os.Rename(f.Name(), path)
		} else {
			err = renameNew(f.Name(), path)
		}
	}
	if err != nil {
		os.Remove(f.Name())
		return err
	}
	return syncDir(filepath.Dir(path))
}

// renameNew renames where nothing has the new name; else fs.ErrExist.
func renameNew(from, to string) error {
	err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EPERM):
		// Not every file system knows the flag; links they know.
		if err := os.Link(from, to); err != nil {
			return err
		}
		return os.Remove(from)
	}
	return &os.LinkError{Op: "rename", Old: from, New: to, Err: err}
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	err = d.Sync()
	if errors.Is(err, unix.EINVAL) || errors.Is(err, fs.ErrInvalid) {
		err = nil // a file system that cannot
	}
	return errors.Join(err, d.Close())
}
