package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// A snapshot that finds no room leaves what was there before under its name, and
// nothing else.
func TestSnapshotFileWithoutRoom(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("SKIPPED: only root can mount a small file system")
	}
	if systemSocketExists() {
		t.Skip("a packaged server runs on this machine")
	}
	small := t.TempDir()
	if err := unix.Mount("tmpfs", small, "tmpfs", 0, "size=64k"); err != nil {
		t.Skipf("SKIPPED: mount: %v", err)
	}
	t.Cleanup(func() { unix.Unmount(small, unix.MNT_DETACH) })
	path := filepath.Join(small, "snap.db")
	if err := os.WriteFile(path, []byte("the one before"), 0o600); err != nil {
		t.Fatal(err)
	}
	var stdout, stderr bytes.Buffer
	code := run(t.Context(), []string{"server", "snapshot", path, "--no-server"}, strings.NewReader(""), &stdout, &stderr,
		[]string{"HOME=" + t.TempDir(), "XDG_STATE_HOME=" + t.TempDir()})
	if code != exitFailed || !strings.Contains(stderr.String(), "take snapshot: no space left in "+small+"\nhint: ") || stdout.Len() > 0 {
		t.Errorf("exit code %d, %s%s", code, &stderr, &stdout)
	}
	entries, err := os.ReadDir(small)
	if b, rerr := os.ReadFile(path); err != nil || rerr != nil || len(entries) != 1 || string(b) != "the one before" {
		t.Errorf("there are %v (%v), and %q (%v)", entries, err, b, rerr)
	}
}

// Root restores as the user whose directory it is, from a file that only root
// can read; whatever there is in the directory belongs to that user.
func TestRestoreAsOwner(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("SKIPPED: only root can become another user")
	}
	const uid, gid = 65534, 65533
	program, err := exec.LookPath("waypoint") // this test's binary under its name, as scripts have it
	if err != nil {
		t.Fatal(err)
	}
	secret := t.TempDir()
	if err := os.Chmod(secret, 0o700); err != nil {
		t.Fatal(err)
	}
	snap := filepath.Join(secret, "snap.db")
	command := func(args ...string) *exec.Cmd {
		cmd := exec.Command(program, args...)
		cmd.Env = []string{"HOME=" + secret, "XDG_STATE_HOME=" + secret, "GORACE=atexit_sleep_ms=0"}
		return cmd
	}
	if out, err := command("server", "snapshot", snap, "--no-server").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	dir, err := os.MkdirTemp("/tmp", "waypoint-restore-") // where others can come to
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chown(dir, uid, gid); err != nil {
		t.Fatal(err)
	}
	for range 2 { // into an empty one, and over what is there
		if out, err := command("server", "restore", snap, "--state-dir", dir).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 4 { // lock, version, the store and the one before
		t.Errorf("%v, %v", entries, err)
	}
	for _, e := range entries {
		fi, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		if st := fi.Sys().(*syscall.Stat_t); st.Uid != uid || st.Gid != gid || fi.Mode() != 0o600 {
			t.Errorf("%s belongs to %d:%d and has the mode %v", e.Name(), st.Uid, st.Gid, fi.Mode())
		}
	}
	// What that user may have put in the way is not followed to what is root's.
	victim := filepath.Join(secret, "victim")
	if err := os.WriteFile(victim, []byte("of root's"), 0o600); err != nil {
		t.Fatal(err)
	}
	lock := filepath.Join(dir, "lock")
	if err := os.Remove(lock); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(victim, lock); err != nil {
		t.Fatal(err)
	}
	if out, err := command("server", "restore", snap, "--state-dir", dir).CombinedOutput(); err == nil {
		t.Errorf("restored over a lock that is not there: %s", out)
	}
	if b, err := os.ReadFile(victim); err != nil || string(b) != "of root's" {
		t.Errorf("%q, %v", b, err)
	}
}
