package runner

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// A default list of access does not show in a directory's mode, and the next
// job's files would get it.
func TestEmptyDirKeepsNoAttributes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "work")
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	before, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := emptyDir(t.Context(), path, false); err != nil {
		t.Fatal(err)
	}
	if now, err := os.Stat(path); err != nil || !os.SameFile(before, now) {
		t.Fatalf("a directory that is as it was given is made anew: %v", err)
	}
	// Version 2: the user rwx, user 65534 rwx, the group nothing, mask rwx, others nothing.
	acl := "\x02\x00\x00\x00" +
		"\x01\x00\x07\x00\xff\xff\xff\xff" + "\x02\x00\x07\x00\xfe\xff\x00\x00" +
		"\x04\x00\x00\x00\xff\xff\xff\xff" + "\x10\x00\x07\x00\xff\xff\xff\xff" + "\x20\x00\x00\x00\xff\xff\xff\xff"
	const name = "system.posix_acl_default"
	if err := unix.Setxattr(path, name, []byte(acl), 0); err == unix.ENOTSUP {
		t.Skip("this file system has no lists of access")
	} else if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode() != before.Mode() {
		t.Fatalf("its mode is %v, %v", info.Mode(), err)
	}
	if err := emptyDir(t.Context(), path, false); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.Getxattr(path, name, make([]byte, 256)); err != unix.ENODATA {
		t.Errorf("its default list of access: %v", err)
	}
}
