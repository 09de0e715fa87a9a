package supervisor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// removeTries is how often a directory is read again that was not empty after
// all in it had been removed.
const removeTries = 3

// deepest is how far down a directory is entered. One below is moved up to the top
// first: where a part of a file system is mounted, as in a unit's sandbox, the
// kernel goes all the way up for each "..", which makes hours of a tree as
// deep as a job can make it in seconds.
const deepest = 64

// removal is a directory whose files are being removed.
type removal struct {
	name  string // in the one above
	id    inode
	dirs  []string // in it, that are still to be removed
	tries int
}

// RemoveTree removes a file, or a directory with all that is in it, also
// where a job took the permissions of some of it away. Like walk it follows no
// link, enters nothing that is mounted, and keeps three files open however deep
// the tree: a job must not cost its agent all files that it may open, nor
// leave behind what is too deep to have a path. What is gone already is no error.
// The end of ctx ends it; then a part is left, which can be removed like the whole.
func RemoveTree(ctx context.Context, path string) error {
	cur, err := openat(unix.AT_FDCWD, filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY)
	if err == unix.ENOENT {
		return nil
	}
	if err != nil {
		return &fs.PathError{Op: "open", Path: filepath.Dir(path), Err: err}
	}
	defer func() { unix.Close(cur) }()
	var st unix.Stat_t
	if err := fstat(cur, &st); err != nil {
		return &fs.PathError{Op: "stat", Path: filepath.Dir(path), Err: err}
	}
	top, moved := -1, 0
	defer func() { unix.Close(top) }()
	var bad problems
	todo := []removal{{id: inodeOf(&st), dirs: []string{filepath.Base(path)}}}
	for {
		if err := context.Cause(ctx); err != nil {
			return fmt.Errorf("remove %s: %w", path, err)
		}
		at := &todo[len(todo)-1]
		if n := len(at.dirs); n > 0 {
			name := at.dirs[n-1]
			at.dirs = at.dirs[:n-1]
			if len(todo) > deepest {
				if to, err := moveUp(cur, name, top, &moved); err != nil {
					bad.note(name, err)
				} else if to != "" {
					todo[1].dirs = append(todo[1].dirs, to)
				}
				continue
			}
			fd, in, err := clearDir(ctx, cur, name)
			if fd < 0 {
				bad.note(name, err)
				continue
			}
			if len(todo) == 1 {
				if top, err = openat(fd, ".", unix.O_PATH|unix.O_DIRECTORY); err != nil {
					bad.note(name, err)
				}
			}
			unix.Close(cur)
			cur, todo = fd, append(todo, in)
			continue
		}
		if len(todo) == 1 {
			return bad.err()
		}
		up, err := openUp(cur, todo[len(todo)-2].id)
		if err != nil {
			return fmt.Errorf("remove %s: %w", path, err)
		}
		done := *at
		unix.Close(cur)
		cur, todo = up, todo[:len(todo)-1]
		err = unlinkat(cur, done.name, unix.AT_REMOVEDIR)
		if errors.Is(err, fs.ErrExist) && done.tries < removeTries && bad.count == 0 { // ENOTEMPTY
			// It was not read whole while it changed, or somebody added to it.
			var fd int
			var in removal
			if fd, in, err = clearDir(ctx, cur, done.name); fd >= 0 {
				in.tries = done.tries + 1
				unix.Close(cur)
				cur, todo = fd, append(todo, in)
				continue
			}
		}
		bad.note(done.name, err)
	}
}

// note is add for what has to go.
func (p *problems) note(name string, err error) {
	if err == nil || err == unix.ENOENT {
		return
	}
	if p.count++; p.first == nil {
		p.first = fmt.Errorf("remove %s: %w", name, err)
	}
}

// moveUp removes an entry of a directory; where it is a directory that is
// not empty, it moves it to another one and returns its name there.
func moveUp(dir int, name string, top int, moved *int) (to string, err error) {
	if err = remove(dir, name); !errors.Is(err, fs.ErrExist) {
		return "", err
	}
	if fd, st, err := openEntry(dir, name, nil); err == nil {
		makeOurs(fd, &st) // or its ".." cannot be changed
		unix.Close(fd)
	}
	for {
		*moved++
		to = ".removed-" + strconv.Itoa(*moved)
		switch err = unix.Renameat(dir, name, top, to); {
		case err == nil:
			return to, nil
		case err != unix.EINTR && err != unix.ENOTDIR && !errors.Is(err, fs.ErrExist): // else that name is taken
			return "", err
		}
	}
}

// remove removes a file or an empty directory.
func remove(dir int, name string) error {
	// EPERM is the answer of other file systems for a directory.
	if err := unlinkat(dir, name, 0); err != unix.EISDIR && err != unix.EPERM {
		return err
	}
	return unlinkat(dir, name, unix.AT_REMOVEDIR)
}

// makeOurs makes a directory one that can be read and changed. Where that is
// not ours to do, what follows tells.
func makeOurs(fd int, st *unix.Stat_t) {
	if st.Mode&0o700 != 0o700 {
		unix.Fchmodat(unix.AT_FDCWD, procFile(fd), 0o700, 0)
	}
}

// clearDir removes an entry of a directory; where it is itself a directory that
// is not empty, all in it but directories, which it returns, with it open. fd is -1
// where there is nothing more to do.
func clearDir(ctx context.Context, dir int, name string) (fd int, in removal, err error) {
	if err = remove(dir, name); !errors.Is(err, fs.ErrExist) {
		return -1, in, err
	}
	fd, st, err := openEntry(dir, name, nil)
	if err != nil {
		return -1, in, err
	}
	in = removal{name: name, id: inodeOf(&st)}
	makeOurs(fd, &st)
	r, err := openat(fd, ".", unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		unix.Close(fd)
		return -1, in, err
	}
	f := os.NewFile(uintptr(r), procFile(r))
	defer f.Close()
	for {
		entries, err := f.ReadDir(256)
		for _, e := range entries {
			// What is none although it seems to be one, or the other way
			// round, is seen when its turn comes.
			if e.IsDir() || unlinkat(fd, e.Name(), 0) != nil {
				in.dirs = append(in.dirs, e.Name())
			}
		}
		if err != nil || ctx.Err() != nil { // also io.EOF; what was not read keeps the directory from being removed
			return fd, in, nil
		}
	}
}

func unlinkat(dir int, name string, flags int) (err error) {
	for {
		if err = unix.Unlinkat(dir, name, flags); err != unix.EINTR {
			return err
		}
	}
}

// openUp opens the directory that one is in, which must be the given one.
func openUp(dir int, want inode) (int, error) {
	up, err := openat(dir, "..", unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return -1, err
	}
	var st unix.Stat_t
	if err = fstat(up, &st); err == nil && inodeOf(&st) != want {
		err = errMoved
	}
	if err != nil {
		unix.Close(up)
		return -1, err
	}
	return up, nil
}
