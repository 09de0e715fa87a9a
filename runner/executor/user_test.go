package executor

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// someone is a user of the tests; no name is asked for down here.
func someone(t testing.TB) *User {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("only root can start commands as another user")
	}
	return &User{Name: "someone", UID: 54321, GID: 54322, Groups: []int{54323, 54324}}
}

// eachUser runs f with an executor of each kind whose commands are someone's.
func eachUser(t *testing.T, f func(t *testing.T, e *Executor, u *User)) {
	u := someone(t)
	for _, kind := range []string{IsolationCgroup, IsolationProcessGroup} {
		t.Run(kind, func(t *testing.T) {
			e, err := New(Config{Dir: t.TempDir(), Isolation: kind, User: u})
			if errors.Is(err, unix.EPERM) || kind == IsolationCgroup && err != nil {
				t.Skipf("not to be had here: %v", err)
			}
			if err != nil {
				t.Fatal(err)
			}
			defer e.Close()
			f(t, e, u)
			if e.Isolation() != kind {
				t.Errorf("isolation became %s", e.Isolation())
			}
		})
	}
}

// Commands have the user, its groups and nothing else of this process; this
// process stays what it was.
func TestUser(t *testing.T) {
	before := credentials(t)
	eachUser(t, func(t *testing.T, e *Executor, u *User) {
		out := output(t)
		tr := newTree(t, e, out)
		if err := tr.Start(Command{Argv: []string{"grep", "-E", "^(Uid|Gid|Groups|Cap(Inh|Prm|Eff|Amb)):", "/proc/self/status"}, Env: env, Dir: "/"}); err != nil {
			t.Fatal(err)
		}
		if x := tr.Wait(); !x.Success() {
			t.Errorf("%+v", x)
		}
		if _, err := tr.Close(); err != nil {
			t.Error(err)
		}
		want := "Uid:" + strings.Repeat(fmt.Sprintf("\t%d", u.UID), 4) +
			"\nGid:" + strings.Repeat(fmt.Sprintf("\t%d", u.GID), 4) +
			fmt.Sprintf("\nGroups:\t%d %d", u.Groups[0], u.Groups[1]) +
			"\nCapInh:\t0000000000000000\nCapPrm:\t0000000000000000\nCapEff:\t0000000000000000\nCapAmb:\t0000000000000000"
		got := strings.TrimSpace(strings.ReplaceAll(text(t, out), " \n", "\n"))
		if got != want {
			t.Errorf("got\n%s\nwant\n%s", got, want)
		}
	})
	if after := credentials(t); after != before {
		t.Errorf("this process was\n%s\nand is\n%s", before, after)
	}
}

// credentials are those of this process's other threads.
func credentials(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("/proc/self/status") // of the first thread
	if err != nil {
		t.Fatal(err)
	}
	var s strings.Builder
	for line := range strings.Lines(string(b)) {
		if strings.HasPrefix(line, "Cap") || strings.HasPrefix(line, "Uid") || strings.HasPrefix(line, "Gid") || strings.HasPrefix(line, "Groups") {
			s.WriteString(line)
		}
	}
	return s.String()
}

// What may be executed, and where, is the user's question.
func TestUserResolves(t *testing.T) {
	eachUser(t, func(t *testing.T, e *Executor, u *User) {
		dir, err := os.MkdirTemp("", "executor-user-")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(dir)
		for name, owner := range map[string]int{"ours": 0, "theirs": u.UID, "groups": 0} {
			path := filepath.Join(dir, name)
			if err := os.WriteFile(path, []byte("#!/bin/sh\nexit 7\n"), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.Chown(path, owner, 0); err != nil {
				t.Fatal(err)
			}
		}
		if err := errors.Join(os.Chmod(dir, 0o711), os.Chown(filepath.Join(dir, "groups"), 0, u.Groups[1]), os.Chmod(filepath.Join(dir, "groups"), 0o750)); err != nil {
			t.Fatal(err)
		}
		for argv, code := range map[string]int{"./ours": 126, "./theirs": 7, "./groups": 7, "./nothing": 127} {
			x, _, err := run(t, e, Command{Argv: []string{argv}, Env: env, Dir: dir})
			if se, ok := errors.AsType[*StartError](err); ok {
				x.Code = se.Code
			} else if err != nil {
				t.Error(err)
			}
			if x.Code != code {
				t.Errorf("%s: got code %d (%v), want %d", argv, x.Code, err, code)
			}
		}
		if err := e.CheckSearch(dir); err != nil {
			t.Error(err)
		}
		if err := os.Chmod(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := e.CheckSearch(dir); !errors.Is(err, unix.EACCES) {
			t.Errorf("a closed directory can be searched: %v", err)
		}
		_, _, err = run(t, e, Command{Argv: []string{"/bin/true"}, Env: env, Dir: dir})
		if se, ok := errors.AsType[*StartError](err); !ok || se.Code != 0 || !strings.Contains(se.Text, "working directory") {
			t.Errorf("in a closed directory: %v", err)
		}
	})
}

// Commands have the usual chance with the kernel's OOM killer, whatever that
// of their parents is.
func TestUserOOMScore(t *testing.T) {
	someone(t)
	const file = "/proc/self/oom_score_adj"
	if ownOOMScore() >= 0 {
		// What it is was asked once: so this is for another process.
		old, err := os.ReadFile(file)
		if err == nil {
			err = os.WriteFile(file, []byte("-100"), 0)
		}
		if err != nil {
			t.Skipf("a process cannot be preferred here: %v", err)
		}
		out, err := again(t, "TestUserOOMScore")
		if err := os.WriteFile(file, old, 0); err != nil {
			t.Error(err)
		}
		if err != nil {
			t.Errorf("%v\n%s", err, out)
		}
		return
	}
	eachUser(t, func(t *testing.T, e *Executor, u *User) {
		out := output(t)
		tr := newTree(t, e, out)
		if err := tr.Start(sh("until [ $(cat " + file + ") = 0 ]; do sleep 0.01; done; echo usual")); err != nil {
			t.Fatal(err)
		}
		await(t, "the usual score", func() bool { return text(t, out) == "usual\n" })
		tr.Wait()
		if _, err := tr.Close(); err != nil {
			t.Error(err)
		}
	})
}

// A user that this process cannot become is an error.
func TestUserThatCannotBe(t *testing.T) {
	if os.Getuid() == 0 {
		out, err := again(t, "TestUserThatCannotBe", 65534)
		if err != nil {
			t.Errorf("%v\n%s", err, out)
		}
		return
	}
	dir, err := os.MkdirTemp("", "executor-user-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	e, err := New(Config{Dir: dir, Isolation: IsolationProcessGroup, User: &User{Name: "someone", UID: 54321, GID: 54322}})
	if err == nil {
		e.Close()
		t.Fatal("a user without capabilities has become another")
	}
	if !errors.Is(err, unix.EPERM) || !strings.Contains(err.Error(), "someone") {
		t.Error(err)
	}
}

// again runs one test in a process of its own, as another user where one is
// given.
func again(t *testing.T, name string, uid ...uint32) ([]byte, error) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", "-test.run", "^"+name+"$")
	cmd.Dir = "/"
	if len(uid) > 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid[0], Gid: uid[0]}}
		cmd.Env = append(os.Environ(), "TMPDIR=/tmp")
	}
	return cmd.CombinedOutput()
}
