package statedir

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/waypointd/waypoint/mux/wire"
)

// The test binary is also the other process of some tests.
func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == "child" {
		os.Exit(child(os.Args[2], os.Args[3], os.Args[4:]...))
	}
	os.Exit(m.Run())
}

func child(what, dir string, args ...string) int {
	switch what {
	case "own":
		return ownChild(dir, args[0])
	case "watch":
		return watchChild(dir, args[0])
	case "open":
		d, err := Open(dir)
		if err == nil {
			err = d.WriteFile("file", []byte("x"), 0o600)
		}
		var we *wire.Error
		if errors.As(err, &we) {
			fmt.Printf("%s|%s|%s\n", we.Kind, we.Message, we.Hint)
			return 1
		}
		if err != nil {
			fmt.Println(err)
			return 2
		}
	case "token":
		_, err := (&Dir{path: dir}).Token()
		if we, ok := errors.AsType[*wire.Error](err); ok {
			fmt.Printf("%s|%s|%s\n", we.Kind, we.Message, we.Hint)
			return 1
		}
		fmt.Println(err)
	case "lock":
		d, err := Open(dir)
		if err == nil {
			err = d.Lock("the other one")
		}
		fmt.Println(err)
		bufio.NewReader(os.Stdin).ReadString('\n')
	case "bequeath":
		// Hands the lock on to a program that ends with its input, as every
		// program has it between fork and exec.
		d, err := Open(dir)
		if err == nil {
			err = d.Lock("the dead one")
		}
		if err == nil {
			cmd := exec.Command("cat")
			cmd.Stdin, cmd.ExtraFiles = os.Stdin, []*os.File{d.lock}
			err = cmd.Start()
		}
		fmt.Println(err)
		select {}
	case "write":
		// Writes alternating contents until it is killed.
		d, err := Open(dir)
		if err != nil {
			fmt.Println(err)
			return 1
		}
		for i := range 1_000_000 {
			if err := d.WriteFile("file", bytes.Repeat([]byte{byte('a' + i%26)}, 100_000), 0o600); err != nil {
				fmt.Println(err)
				return 1
			}
			if i == 0 {
				fmt.Println("writing")
			}
		}
	}
	return 0
}

func self(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	return exec.CommandContext(t.Context(), "/proc/self/exe", append([]string{"child"}, args...)...)
}

func open(t *testing.T) *Dir {
	t.Helper()
	d, err := Open(filepath.Join(t.TempDir(), "a", "b"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func wantError(t *testing.T, err error, kind wire.Kind, texts ...string) {
	t.Helper()
	var we *wire.Error
	if !errors.As(err, &we) {
		t.Fatalf("got %v, want an error of kind %s", err, kind)
	}
	if we.Kind != kind {
		t.Errorf("got kind %s (%s), want %s", we.Kind, we.Message, kind)
	}
	if we.Hint == "" {
		t.Errorf("%q has no hint", we.Message)
	}
	for _, s := range texts {
		if !strings.Contains(we.Message, s) {
			t.Errorf("%q does not say %q", we.Message, s)
		}
	}
}

func TestOpenMakesDirectories(t *testing.T) {
	d := open(t)
	for path, want := range map[string]os.FileMode{d.Path(): 0o700, filepath.Dir(d.Path()): 0o755} {
		fi, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if fi.Mode().Perm() != want {
			t.Errorf("mode of %s is %o, want %o", path, fi.Mode().Perm(), want)
		}
	}
	if _, err := Open(d.Path()); err != nil {
		t.Errorf("second open: %v", err)
	}
}

// TestOpenWritableByOthers holds that a directory which others can write in is
// shut or refused.
func TestOpenWritableByOthers(t *testing.T) {
	for _, test := range []struct{ mode, after os.FileMode }{
		{0o700, 0o700}, {0o755, 0o755}, {0o750, 0o750}, {0o770, 0o750}, {0o777, 0o755}, {0o702, 0o700},
	} {
		dir := t.TempDir()
		if err := os.Chmod(dir, test.mode); err != nil {
			t.Fatal(err)
		}
		d, err := Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		fi, err := os.Stat(dir)
		if err != nil || fi.Mode().Perm() != test.after {
			t.Errorf("mode %o has become %o (%v), want %o", test.mode, fi.Mode().Perm(), err, test.after)
		}
		if repaired := test.mode != test.after; repaired != strings.Contains(d.Note(), fmt.Sprintf("mode %04o", test.mode)) || !repaired && d.Note() != "" {
			t.Errorf("mode %o: note %q", test.mode, d.Note())
		}
	}
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: only root can give a directory away")
	}
	dir := t.TempDir()
	if err := os.Chown(dir, 65534, 65534); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o775); err != nil {
		t.Fatal(err)
	}
	_, err := Open(dir)
	wantError(t, err, wire.Denied, dir, "mode 0775", "user 65534")
	if fi, _ := os.Stat(dir); fi.Mode().Perm() != 0o775 {
		t.Errorf("the mode of another's directory has become %o", fi.Mode().Perm())
	}
	os.Chmod(dir, 0o755)
	if _, err := Open(dir); err != nil {
		t.Error(err)
	}
}

func TestOpenFileInTheWay(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := Open(file)
	wantError(t, err, wire.BadUsage, file, "in the way")
	_, err = Open(filepath.Join(file, "below"))
	wantError(t, err, wire.BadUsage, file+" is in the way")
	_, err = Open("")
	wantError(t, err, wire.BadUsage)
}

func TestOpenWithoutPermission(t *testing.T) {
	base := t.TempDir()
	dir := filepath.Join(base, "state")
	if err := os.Mkdir(dir, 0o500); err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() != 0 {
		_, err := Open(dir)
		wantError(t, err, wire.Denied, dir, "no permission")
		return
	}
	// Root may do anything: ask as nobody. The directories above are 0755
	// or opened up for it.
	for p := base; p != "/" && p != os.TempDir(); p = filepath.Dir(p) {
		if err := os.Chmod(p, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	cmd := self(t, "open", dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.HasPrefix(string(out), "denied|") || !strings.Contains(string(out), "as user 65534|give that user the directory") {
		t.Errorf("got %s (%v)", out, err)
	}
}

func TestOpenReadOnly(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting a read-only file system needs root")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_RDONLY, ""); err != nil {
		t.Skipf("mount: %v", err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	_, err := Open(dir)
	wantError(t, err, wire.Denied, "read-only", dir)
	_, err = Open(filepath.Join(dir, "new"))
	wantError(t, err, wire.Denied, "read-only", dir)
}

func TestOpenFullDisk(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting a small file system needs root")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Skipf("mount: %v", err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	d, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.WriteFile("file", []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	wantError(t, d.WriteFile("file", make([]byte, 1<<20), 0o600), wire.Unavailable, "no space")
	if b, err := os.ReadFile(d.Path("file")); err != nil || string(b) != "old" {
		t.Errorf("after a full disk the file holds %q (%v)", b, err)
	}
	if n := temps(t, d); n != 0 {
		t.Errorf("%d temporary files were left behind", n)
	}
}

func TestVersion(t *testing.T) {
	d := open(t)
	put := func(s string) {
		t.Helper()
		if err := os.WriteFile(d.Path(versionFile), []byte(s), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	put(strconv.Itoa(Version + 1))
	_, err := Open(d.Path())
	wantError(t, err, wire.Conflict, "newer", d.Path())
	put("many")
	_, err = Open(d.Path())
	wantError(t, err, wire.BadUsage, d.Path())
	put("1\n\n")
	if _, err = Open(d.Path()); err != nil {
		t.Error(err)
	}
}

func TestLockNamesHolder(t *testing.T) {
	d := open(t)
	cmd := self(t, "lock", d.Path())
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(stdout).ReadString('\n'); err != nil || line != "<nil>\n" {
		t.Fatalf("child: %q %v", line, err)
	}
	wantError(t, d.Lock("us"), wire.Conflict, "the other one, pid "+strconv.Itoa(cmd.Process.Pid), "since 20")
	cmd.Process.Kill()
	cmd.Wait()
	stdin.Close()
	if err := d.Lock("us"); err != nil {
		t.Fatalf("lock of a killed process is still held: %v", err)
	}
	if err := d.Lock("us"); err == nil {
		t.Error("locked twice")
	}
	second, err := Open(d.Path())
	if err != nil {
		t.Fatal(err)
	}
	wantError(t, second.Lock("again"), wire.Conflict, "us, pid "+strconv.Itoa(os.Getpid()))
	d.Close()
	if err := second.Lock("again"); err != nil {
		t.Error(err)
	}
	second.Close()
}

// TestLockFollowsNoLink holds that what a link leads to is not written to.
func TestLockFollowsNoLink(t *testing.T) {
	d := open(t)
	other := filepath.Join(t.TempDir(), "other")
	if err := errors.Join(os.WriteFile(other, []byte("somebody's"), 0o600), os.Symlink(other, d.Path("lock"))); err != nil {
		t.Fatal(err)
	}
	wantError(t, d.Lock("us"), wire.BadUsage, "symbolic link")
	if b, err := os.ReadFile(other); err != nil || string(b) != "somebody's" {
		t.Errorf("it is now %q, %v", b, err)
	}
	if err := os.Remove(d.Path("lock")); err != nil {
		t.Fatal(err)
	}
	if err := d.Lock("us"); err != nil {
		t.Error(err)
	}
}

// TestLockOfTheDead holds that a lock is waited for which only what the dead
// one had begun to start still holds, and that the wait ends.
func TestLockOfTheDead(t *testing.T) {
	d := open(t)
	cmd := self(t, "bequeath", d.Path())
	stdin, stdinWriter, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	defer stdinWriter.Close()
	cmd.Stdin = stdin
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(stdout).ReadString('\n'); err != nil || line != "<nil>\n" {
		t.Fatalf("child: %q %v", line, err)
	}
	begin := time.Now()
	wantError(t, d.Lock("us"), wire.Conflict, "the dead one, pid "+strconv.Itoa(cmd.Process.Pid))
	if took := time.Since(begin); took >= deadHolder {
		t.Errorf("the lock of one who lives was waited for, for %s", took)
	}
	cmd.Process.Kill()
	cmd.Wait()
	if !testing.Short() {
		wantError(t, d.Lock("us"), wire.Conflict, "the dead one, pid "+strconv.Itoa(cmd.Process.Pid))
	}
	go stdinWriter.Close()
	if err := d.Lock("us"); err != nil {
		t.Errorf("a dead one's lock is not taken: %v", err)
	}
}

func TestWriteFile(t *testing.T) {
	d := open(t)
	for _, name := range []string{"file", "sub/dir/file"} {
		for _, text := range []string{"one", "", "three"} {
			if err := d.WriteFile(name, []byte(text), 0o640); err != nil {
				t.Fatal(err)
			}
			b, err := os.ReadFile(d.Path(name))
			if err != nil || string(b) != text {
				t.Errorf("%s: %q %v", name, b, err)
			}
			if fi, _ := os.Stat(d.Path(name)); fi.Mode().Perm() != 0o640 {
				t.Errorf("%s: mode %o", name, fi.Mode())
			}
		}
	}
	for _, name := range []string{"", ".", "../x", "/etc/x", "a/../../x"} {
		if err := d.WriteFile(name, nil, 0o600); wire.KindOf(err) != wire.BadUsage {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func temps(t *testing.T, d *Dir) int {
	t.Helper()
	m, err := filepath.Glob(d.Path(tempPrefix + "*"))
	if err != nil {
		t.Fatal(err)
	}
	return len(m)
}

func TestKilledWriter(t *testing.T) {
	d := open(t)
	for range 5 {
		cmd := self(t, "write", d.Path())
		stdout, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if line, err := bufio.NewReader(stdout).ReadString('\n'); line != "writing\n" {
			t.Fatalf("child: %q %v", line, err)
		}
		// A directory opened meanwhile must not take the file away.
		if _, err := Open(d.Path()); err != nil {
			t.Fatal(err)
		}
		cmd.Process.Kill()
		cmd.Wait()
		b, err := os.ReadFile(d.Path("file"))
		if err != nil || len(b) != 100_000 || bytes.Count(b, b[:1]) != len(b) {
			t.Fatalf("the file is torn: %d bytes, %v", len(b), err)
		}
	}
	if err := os.WriteFile(d.Path(tempPrefix+"left-1"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(d.Path()); err != nil {
		t.Fatal(err)
	}
	if n := temps(t, d); n != 0 {
		t.Errorf("%d temporary files were left behind", n)
	}
}

func TestIdentity(t *testing.T) {
	d := open(t)
	var wg sync.WaitGroup
	keys := make([]string, 8)
	ids := make([]string, 8)
	for i := range keys {
		wg.Go(func() {
			k, err := d.Identity()
			if err != nil {
				t.Error(err)
			}
			keys[i] = string(k)
			if ids[i], err = d.ID(""); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for i := range keys {
		if keys[i] != keys[0] || ids[i] != ids[0] {
			t.Fatal("first uses at the same moment made different identities")
		}
	}
	if fi, _ := os.Stat(d.Path(identityFile)); fi.Mode().Perm() != 0o600 {
		t.Errorf("mode of the key is %o", fi.Mode())
	}
	os.Chmod(d.Path(identityFile), 0o640)
	_, err := d.Identity()
	wantError(t, err, wire.Denied, identityFile, "mode 0640")
	if fi, _ := os.Stat(d.Path(identityFile)); fi.Mode().Perm() != 0o640 {
		t.Errorf("the mode of a key that may have been copied has become %o", fi.Mode().Perm())
	}
	os.Chmod(d.Path(identityFile), 0o600)
	os.WriteFile(d.Path(identityFile), []byte("junk"), 0o600)
	_, err = d.Identity()
	wantError(t, err, wire.BadUsage, identityFile)
	os.Remove(d.Path(identityFile))
	if err := unix.Mkfifo(d.Path(identityFile), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = d.Identity()
	wantError(t, err, wire.BadUsage, identityFile, "a named pipe")
	if f := Fingerprint(make([]byte, 32)); f != "SHA256:Zmh6rfhivXdsj8GLjp+OIAiXFIVu4jOzkCpZHQ1fKSU" {
		t.Error(f)
	}
}

func TestID(t *testing.T) {
	d := open(t)
	first, err := d.ID("")
	if err != nil || len(first) != 26 {
		t.Fatal(first, err)
	}
	for _, want := range []string{"web-1", "A", "9.x_y", strings.Repeat("a", 63)} {
		if got, err := d.ID(want); got != want || err != nil {
			t.Errorf("%q: %q %v", want, got, err)
		}
		if got, err := d.ID(""); got != want || err != nil {
			t.Errorf("kept %q: %q %v", want, got, err)
		}
	}
	for _, bad := range []string{"-a", ".", "a b", "a\n", "ä", strings.Repeat("a", 64), "a/b"} {
		_, err := d.ID(bad)
		wantError(t, err, wire.BadUsage)
	}
	os.WriteFile(d.Path(idFile), []byte(" web-2 \n\n"), 0o600)
	if got, err := d.ID(""); got != "web-2" || err != nil {
		t.Errorf("%q %v", got, err)
	}
	os.WriteFile(d.Path(idFile), nil, 0o600)
	_, err = d.ID("")
	wantError(t, err, wire.BadUsage, idFile)
	if got, err := d.ID("web-3"); got != "web-3" || err != nil {
		t.Errorf("%q %v", got, err)
	}
}
