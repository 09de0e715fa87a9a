package supervisor

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// spareSuffix is that of files that are no attempt's yet: their own names say
// how far an attempt has come.
const spareSuffix = ".spare"

// Recycle makes the files of an ended attempt, which no supervisor holds, spare
// ones for another attempt in the same directory, and names those that are to
// stay for it. To write over a file costs a tenth of making one.
func Recycle(dir string) (kept []string) {
	if path := filepath.Join(dir, LogFile); isFile(path) && cut(path) == nil {
		os.Rename(path, path+spareSuffix)
	}
	// The handle of a tree has become the end, see writeEnd.
	if path := filepath.Join(dir, endFile); isFile(path) {
		os.Rename(path, filepath.Join(dir, handleFile+spareSuffix))
	}
	for _, name := range []string{LogFile + spareSuffix, handleFile + spareSuffix} {
		if isFile(filepath.Join(dir, name)) {
			kept = append(kept, name)
		}
	}
	return kept
}

// takeSpare gives the attempt in dir a spare file, if there is one and it has
// none of that name.
func takeSpare(dir, name string) {
	path := filepath.Join(dir, name)
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		os.Rename(path+spareSuffix, path)
	}
}

func isFile(path string) bool {
	info, err := os.Lstat(path)
	return err == nil && info.Mode().IsRegular()
}

// cut makes a file empty if it is not already. It is closed like that:
// ext4 writes out at once what was cut to nothing, filled again and closed.
func cut(path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err == nil && info.Size() > 0 {
		err = f.Truncate(0)
	}
	return errors.Join(err, f.Close())
}

// overwrite gives a file its content, over what it may have already, without
// cutting it to nothing before: see cut.
func overwrite(path string, b []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	if _, err = f.WriteAt(b, 0); err == nil {
		err = f.Truncate(int64(len(b)))
	}
	return errors.Join(err, f.Close())
}
