package supervisor

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// deep makes directories in each other and a file in the last, and returns the
// first.
func deep(t *testing.T, levels int, name string) string {
	t.Helper()
	top := filepath.Join(t.TempDir(), "top")
	if err := os.Mkdir(top, 0o700); err != nil {
		t.Fatal(err)
	}
	cur, err := openat(unix.AT_FDCWD, top, unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		t.Fatal(err)
	}
	for range levels {
		if err := unix.Mkdirat(cur, name, 0o700); err != nil {
			t.Fatal(err)
		}
		next, err := openat(cur, name, unix.O_PATH|unix.O_DIRECTORY)
		if err != nil {
			t.Fatal(err)
		}
		unix.Close(cur)
		cur = next
	}
	f, err := unix.Openat(cur, "file", unix.O_WRONLY|unix.O_CREAT, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	unix.Close(f)
	unix.Close(cur)
	return top
}

func gone(t *testing.T, path string) {
	t.Helper()
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s is still there: %v", path, err)
	}
}

// What a job has made cannot be so deep that it costs all files that may be
// open, or has no path.
func TestRemoveDeepTree(t *testing.T) {
	long, many := deep(t, 100, strings.Repeat("n", 255)), deep(t, 3000, "d")
	var was unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	few := was
	few.Cur = 200
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &few); err != nil {
		t.Fatal(err)
	}
	defer unix.Setrlimit(unix.RLIMIT_NOFILE, &was)
	for _, top := range []string{long, many} {
		if err := RemoveTree(t.Context(), top); err != nil {
			t.Error(err)
		}
		gone(t, top)
	}
}

func TestRemoveTree(t *testing.T) {
	dir := t.TempDir()
	outside := filepath.Join(dir, "outside")
	if err := os.WriteFile(outside, []byte("x"), 0o640); err != nil {
		t.Fatal(err)
	}
	top := filepath.Join(dir, "top")
	for i := range 1000 {
		sub := filepath.Join(top, strconv.Itoa(i%3), strconv.Itoa(i))
		if err := os.MkdirAll(sub, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(os.WriteFile(sub+".txt", nil, 0), os.Symlink(outside, sub+".link"), os.Symlink("../..", sub+".up")); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(unix.Mkfifo(filepath.Join(top, "pipe"), 0o600), os.Chmod(filepath.Join(top, "1"), 0), os.Chmod(top, 0o400)); err != nil {
		t.Fatal(err)
	}
	if err := RemoveTree(t.Context(), top); err != nil {
		t.Error(err)
	}
	gone(t, top)
	if info, err := os.Stat(outside); err != nil || info.Mode() != 0o640 {
		t.Errorf("what a link led to: %v %v", info, err)
	}
	// A single file, a link to a directory, and what is not there.
	link := filepath.Join(dir, "link")
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{link, outside, outside, filepath.Join(dir, "no", "where")} {
		if err := RemoveTree(t.Context(), path); err != nil {
			t.Error(err)
		}
		gone(t, path)
	}
	if _, err := os.Stat(dir); err != nil {
		t.Error(err)
	}
}
