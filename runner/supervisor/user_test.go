package supervisor

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/waypointd/waypoint/mux/wire"
	"github.com/waypointd/waypoint/runner/executor"
)

// Users of every system, for a supervisor and its jobs.
const (
	ownName = "daemon"
	jobName = "games"
)

// host is a supervisor that runs as daemon with nothing but its capabilities,
// in a directory as on a real host; its jobs are those of games.
type host struct {
	dir  string // of the supervisor
	kind string
	own  *executor.User
	job  *executor.User
	jobs Jobs
	cmd  *exec.Cmd
	done chan struct{} // closed when the process has ended
	cg   string        // a delegated cgroup, where there is one
	log  *bytes.Buffer // to be read after done
	n    int
}

// eachHost runs f with a host of each isolation.
func eachHost(t *testing.T, f func(t *testing.T, h *host)) {
	own, job := testUsers(t)
	for _, kind := range kinds(t) {
		t.Run(kind, func(t *testing.T) {
			h := &host{dir: openDirectory(t), kind: kind, own: own, job: job}
			chown(t, h.dir, own)
			if kind == executor.IsolationCgroup {
				h.cg = delegate(t, own)
			}
			h.start(t)
			f(t, h)
		})
	}
}

// testUsers needs root, to become them.
func testUsers(t testing.TB) (own, job *executor.User) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("only root can start a supervisor with capabilities")
	}
	var users []*executor.User
	for _, name := range []string{ownName, jobName} {
		found, err := user.Lookup(name)
		if err != nil {
			t.Skipf("this system lacks one of the usual users: %v", err)
		}
		uid, _ := strconv.Atoi(found.Uid)
		gid, _ := strconv.Atoi(found.Gid)
		users = append(users, &executor.User{Name: name, UID: uid, GID: gid})
	}
	return users[0], users[1]
}

// openDirectory is a directory that all users can get to, unlike t.TempDir.
func openDirectory(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "supervisor-user-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func chown(t testing.TB, path string, u *executor.User) {
	t.Helper()
	if err := os.Lchown(path, u.UID, u.GID); err != nil {
		t.Fatal(err)
	}
}

// delegate makes a cgroup that a user may divide.
func delegate(t testing.TB, u *executor.User) string {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	var mount, root, path string
	for line := range strings.Lines(string(mounts)) {
		if head, tail, _ := strings.Cut(line, " - "); strings.HasPrefix(tail, "cgroup2 ") {
			f := strings.Fields(head)
			root, mount = f[3], f[4]
			break
		}
	}
	for line := range strings.Lines(string(own)) {
		if p, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			path = strings.TrimPrefix(p, root)
		}
	}
	cg := filepath.Join(mount, path, "user-test-"+strconv.Itoa(os.Getpid())+"-"+strconv.FormatInt(time.Now().UnixNano(), 36))
	if err := os.Mkdir(cg, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		os.WriteFile(filepath.Join(cg, "cgroup.kill"), []byte("1"), 0)
		await(t, "the delegated cgroup to go", func() bool {
			for _, below := range []string{"/*/*/", "/*/", "/"} {
				dirs, _ := filepath.Glob(cg + below)
				for _, d := range dirs {
					unix.Rmdir(d)
				}
			}
			_, err := os.Stat(cg)
			return errors.Is(err, fs.ErrNotExist)
		})
	})
	chown(t, cg, u)
	for _, file := range []string{"cgroup.procs", "cgroup.subtree_control"} {
		chown(t, filepath.Join(cg, file), u)
	}
	return cg
}

// command is a supervisor's process; caps are its capabilities.
func (h *host) command(t testing.TB, jobUser string, caps ...uintptr) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", "supervise-as", h.dir, h.kind, jobUser)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Setsid:      true,
		Credential:  &syscall.Credential{Uid: uint32(h.own.UID), Gid: uint32(h.own.GID)},
		AmbientCaps: caps,
	}
	if h.cg != "" {
		dir, err := os.Open(h.cg)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { dir.Close() })
		cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(dir.Fd())
	}
	return cmd
}

// start starts the supervisor, also again.
func (h *host) start(t *testing.T) {
	t.Helper()
	h.log = &bytes.Buffer{}
	h.cmd = h.command(t, h.job.Name, unix.CAP_SETUID, unix.CAP_SETGID, unix.CAP_KILL, unix.CAP_CHOWN)
	h.cmd.Stderr = h.log
	done := make(chan struct{})
	h.done = done
	if err := h.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	cmd := h.cmd
	go func() {
		cmd.Wait()
		close(done)
	}()
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		<-done
		if t.Failed() {
			t.Logf("supervisor: %s", h.log)
		}
	})
	var err error
	await(t, "a supervisor", func() bool {
		select {
		case <-done:
			t.Fatalf("the supervisor ended: %s", h.log)
		default:
		}
		h.jobs, err = Connect(t.Context(), filepath.Join(h.dir, SocketFile))
		return err == nil
	})
	jobs := h.jobs
	t.Cleanup(func() { jobs.Close() })
	if h.jobs.User() != h.job.Name || h.jobs.Isolation() != h.kind {
		t.Fatalf("jobs run as %q, isolated by %s", h.jobs.User(), h.jobs.Isolation())
	}
}

// spec is an attempt with work, home and output for the jobs' user.
func (h *host) spec(t testing.TB, argv ...string) Spec {
	t.Helper()
	h.n++
	s := Spec{
		JobRef: wire.JobRef{Job: fmt.Sprintf("job%d", h.n), Attempt: 1},
		Dir:    filepath.Join(h.dir, fmt.Sprintf("job%d-1", h.n)),
		Steps:  []Step{{Argv: argv}},
		Theirs: []string{"work", "home", "output", "stdin"},
		Grace:  5 * time.Second,
	}
	s.WorkDir, s.Stdin = filepath.Join(s.Dir, "work"), filepath.Join(s.Dir, "stdin")
	s.Env = []string{"PATH=/usr/bin:/bin", "HOME=" + s.Dir + "/home"}
	for _, dir := range []string{"", "work", "home", "home/tmp"} {
		if err := os.Mkdir(filepath.Join(s.Dir, dir), 0o700); err != nil {
			t.Fatal(err)
		}
		chown(t, filepath.Join(s.Dir, dir), h.own)
	}
	h.file(t, s, "output", "", 0o600)
	h.file(t, s, "stdin", "given\n", 0o600)
	h.file(t, s, "assignment.json", "secret\n", 0o600)
	return s
}

// file makes a file of the supervisor's user.
func (h *host) file(t testing.TB, s Spec, name, content string, mode fs.FileMode) {
	t.Helper()
	path := filepath.Join(s.Dir, name)
	if err := os.WriteFile(path, []byte(content), mode); err != nil {
		t.Fatal(err)
	}
	chown(t, path, h.own)
}

func (h *host) sh(t testing.TB, script string) Spec { return h.spec(t, "sh", "-c", script) }

// checkOurs sees that an attempt's directory is as before.
func (h *host) checkOurs(t testing.TB, s Spec) {
	t.Helper()
	if info, err := os.Stat(s.Dir); err != nil || info.Mode() != fs.ModeDir|0o700 {
		t.Errorf("the attempt's directory is %v, %v", info.Mode(), err)
	}
	for _, name := range []string{"work", "home", "home/tmp", "output", "stdin", "log", "end.json"} {
		if got := stat(t, filepath.Join(s.Dir, name)); int(got.Uid) != h.own.UID || int(got.Gid) != h.own.GID {
			t.Errorf("%s belongs to %d:%d", name, got.Uid, got.Gid)
		}
	}
}

func stat(t testing.TB, path string) (st unix.Stat_t) {
	t.Helper()
	if err := unix.Lstat(path, &st); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return st
}

// noCapabilities is what the kernel says of a process that has none.
const noCapabilities = "CapInh:\t0000000000000000\nCapPrm:\t0000000000000000\nCapEff:\t0000000000000000\nCapAmb:\t0000000000000000\n"

// A job is its user: with its groups, no capability, the usual umask, and what
// a shell expects of its files.
func TestJobUser(t *testing.T) {
	eachHost(t, func(t *testing.T, h *host) {
		s := h.sh(t, `id -u; id -g; id -G; umask
			grep -E 'Cap(Inh|Prm|Eff|Amb)|NoNewPrivs' /proc/self/status
			echo before >/dev/stderr; cat /dev/stdin; echo behind >/dev/stdout
			cat ../assignment.json || ls .. || echo closed
			echo 'echo program' >program; chmod 755 program; ./program
			echo a=b >>../output
			ls /proc/$PPID/fd && echo looks into its parent
			true`)
		end := run(t, h.jobs, s)
		if end.State != wire.Success {
			t.Fatalf("got %+v", end)
		}
		all := logOf(t, s, 0)
		want := fmt.Sprintf("%d\n%d\n%d\n0022\n", h.job.UID, h.job.GID, h.job.GID) + noCapabilities + "NoNewPrivs:\t0\n"
		// Of two pipes either may be read first.
		if got := logOf(t, s, wire.Stdout); !strings.HasPrefix(got, want) {
			t.Errorf("the job is not as it should be:\n%s\nwant\n%s", got, want)
		}
		for _, part := range []string{"before\n", "given\n", "behind\n", "closed\n", "program\n"} {
			if !strings.Contains(all, part) {
				t.Errorf("no %q in\n%s", part, all)
			}
		}
		if strings.Contains(all, "secret") || strings.Contains(all, "looks into") {
			t.Errorf("a job sees what is not its own:\n%s", all)
		}
		if b, err := os.ReadFile(filepath.Join(s.Dir, "output")); err != nil || string(b) != "a=b\n" {
			t.Errorf("output is %q, %v", b, err)
		}
		h.checkOurs(t, s)
	})
}

// What can be executed is asked for the job's user, not for the supervisor's.
func TestJobUserExecutes(t *testing.T) {
	eachHost(t, func(t *testing.T, h *host) {
		tools := openDirectory(t)
		for name, mode := range map[string]fs.FileMode{"closed": 0o700, "open": 0o755, "theirs": 0o700} {
			if err := os.Mkdir(filepath.Join(tools, name), mode); err != nil {
				t.Fatal(err)
			}
			for _, u := range []*executor.User{h.own, h.job} {
				tool := filepath.Join(tools, name, "of-"+u.Name)
				if err := os.WriteFile(tool, []byte("#!/bin/sh\necho ran\n"), 0o700); err != nil {
					t.Fatal(err)
				}
				chown(t, tool, u)
			}
			chown(t, filepath.Join(tools, name), h.own)
		}
		chown(t, filepath.Join(tools, "theirs"), h.job)
		for _, tt := range []struct {
			argv string
			code int
		}{
			{"of-" + jobName, 0},                       // only the job's user can execute it, or get there
			{"of-" + ownName, 126},                     // only the supervisor's
			{filepath.Join(tools, "open/none"), 127},   // nobody's
			{filepath.Join(tools, "closed/none"), 126}, // as a shell would say
		} {
			s := h.spec(t, tt.argv)
			s.Env = []string{"PATH=" + tools + "/closed:" + tools + "/theirs:" + tools + "/open"}
			end := run(t, h.jobs, s)
			if end.ExitCode == nil || *end.ExitCode != tt.code {
				t.Errorf("%s: got %+v, want code %d", tt.argv, end, tt.code)
			}
			h.checkOurs(t, s)
		}
		s := h.sh(t, "true")
		s.WorkDir = filepath.Join(tools, "closed")
		if end := run(t, h.jobs, s); end.State != wire.Failed || end.ExitCode != nil || !strings.Contains(end.Error, "working directory") {
			t.Errorf("in a directory that is closed to the job: %+v", end)
		}
		s = h.sh(t, "true")
		s.Theirs = []string{"work", "home", "output"} // not its standard input
		if end := run(t, h.jobs, s); end.State != wire.Failed || !strings.Contains(end.Error, "standard input") {
			t.Errorf("with an input that is closed to the job: %+v", end)
		}
		s = h.sh(t, "true")
		s.Theirs = []string{"../" + filepath.Base(s.Dir)}
		if err := h.jobs.Start(t.Context(), s); wire.KindOf(err) != wire.BadUsage {
			t.Errorf("a path out of the directory: %v", err)
		}
	})
}

// All of a job's processes end, though they are another user's and do not
// want to.
func TestJobUserStopped(t *testing.T) {
	eachHost(t, func(t *testing.T, h *host) {
		for _, force := range []bool{false, true} {
			s := h.sh(t, `trap '' TERM; (trap '' TERM; setsid sleep 1000) & (exec setsid sh -c 'trap "" TERM; echo $$ >pid; exec sleep 1000') & while :; do sleep 1; done`)
			s.Grace = 100 * time.Millisecond
			start(t, h.jobs, s)
			pid := pidIn(t, filepath.Join(s.WorkDir, "pid"))
			if err := h.jobs.Stop(t.Context(), s.JobRef, force); err != nil {
				t.Fatal(err)
			}
			if end := ended(t, h.jobs, s.JobRef); end.State != wire.Canceled {
				t.Errorf("got %+v", end)
			}
			if alive(pid) {
				t.Error("a process of the job lives on")
			}
			h.checkOurs(t, s)
		}
		// One that obeys does so at once: TERM comes through.
		s := h.sh(t, `trap 'echo bye; exit 3' TERM; echo $$ >pid; while :; do sleep 0.01; done`)
		s.Grace = time.Hour
		start(t, h.jobs, s)
		pidIn(t, filepath.Join(s.WorkDir, "pid"))
		if err := h.jobs.Stop(t.Context(), s.JobRef, false); err != nil {
			t.Fatal(err)
		}
		if end := ended(t, h.jobs, s.JobRef); end.State != wire.Canceled || logOf(t, s, wire.Stdout) != "bye\n" {
			t.Errorf("got %+v, %q", end, logOf(t, s, 0))
		}
		// What a job leaves running is ended with it.
		s = h.sh(t, `setsid sh -c 'echo $$ >pid; exec sleep 1000' & until [ -s pid ]; do sleep 0.01; done`)
		if end := run(t, h.jobs, s); end.State != wire.Success {
			t.Errorf("got %+v", end)
		}
		if alive(pidIn(t, filepath.Join(s.WorkDir, "pid"))) {
			t.Error("what the job left running lives on")
		}
	})
}

// A supervisor is killed: its jobs die, and the next one takes their files
// back before it can be connected to.
func TestJobUserSupervisorKilled(t *testing.T) {
	eachHost(t, func(t *testing.T, h *host) {
		s := h.sh(t, `echo kept >file; chmod 600 file; mkdir closed; chmod 0 closed; echo $$ >pid; exec sleep 1000`)
		start(t, h.jobs, s)
		pid := pidIn(t, filepath.Join(s.WorkDir, "pid"))
		if got := stat(t, filepath.Join(s.WorkDir, "file")); int(got.Uid) != h.job.UID {
			t.Fatalf("the job's file belongs to %d", got.Uid)
		}
		// One that died before, while it took files back.
		half := h.sh(t, "true")
		chown(t, half.WorkDir, h.job)
		if err := unix.Chmod(half.Dir, modeTaking); err != nil {
			t.Fatal(err)
		}
		// And what is no attempt's is none of its business.
		other := filepath.Join(h.dir, "other")
		if err := os.Mkdir(other, 0o755); err != nil {
			t.Fatal(err)
		}
		chown(t, other, h.job)
		h.cmd.Process.Kill()
		<-h.done
		await(t, "the job to die with its supervisor", func() bool { return !alive(pid) })
		h.start(t)
		if info, err := os.Stat(s.Dir); err != nil || info.Mode() != fs.ModeDir|0o700 {
			t.Errorf("the attempt's directory is %v, %v", info.Mode(), err)
		}
		if got, kept := stat(t, half.WorkDir), stat(t, other); int(got.Uid) != h.own.UID || int(kept.Uid) != h.job.UID {
			t.Errorf("what was half taken back belongs to %d, and what is no attempt's to %d", got.Uid, kept.Uid)
		}
		for _, name := range []string{"work", "work/file", "work/closed", "home/tmp", "output", "log"} {
			if got := stat(t, filepath.Join(s.Dir, name)); int(got.Uid) != h.own.UID {
				t.Errorf("%s belongs to %d", name, got.Uid)
			}
		}
		if err := h.jobs.Start(t.Context(), s); wire.KindOf(err) != wire.Conflict {
			t.Errorf("the attempt is started again: %v", err)
		}
		if end := run(t, h.jobs, h.sh(t, "true")); end.State != wire.Success {
			t.Errorf("got %+v", end)
		}
	})
}

// A user that cannot be had is an error of the start.
func TestJobUserThatCannotBe(t *testing.T) {
	own, job := testUsers(t)
	h := &host{dir: openDirectory(t), kind: executor.IsolationProcessGroup, own: own, job: job}
	chown(t, h.dir, own)
	all := []uintptr{unix.CAP_SETUID, unix.CAP_SETGID, unix.CAP_KILL, unix.CAP_CHOWN}
	for _, tt := range []struct {
		user string
		caps []uintptr
		kind wire.Kind
		say  string
	}{
		{"nobody-of-that-name", all, wire.BadUsage, "no such user"},
		{"root", all, wire.BadUsage, "root"},
		{jobName, nil, wire.Denied, "has no CAP_SETUID, CAP_SETGID, CAP_KILL, CAP_CHOWN"},
		{jobName, all[:3], wire.Denied, "has no CAP_CHOWN"},
	} {
		out, err := h.command(t, tt.user, tt.caps...).CombinedOutput()
		if _, ok := errors.AsType[*exec.ExitError](err); !ok || !strings.Contains(string(out), string(tt.kind)) || !strings.Contains(string(out), tt.say) {
			t.Errorf("user %s, %d capabilities: %v, %s", tt.user, len(tt.caps), err, out)
		}
	}
	closed := filepath.Join(h.dir, "closed")
	if err := os.MkdirAll(closed+"/jobs", 0o700); err != nil {
		t.Fatal(err)
	}
	chown(t, closed, own)
	chown(t, closed+"/jobs", own)
	h.dir = closed + "/jobs"
	out, err := h.command(t, jobName, all...).CombinedOutput()
	if err == nil || !strings.Contains(string(out), string(wire.Denied)) || !strings.Contains(string(out), "does not get to") {
		t.Errorf("in a directory that is closed to the jobs: %v, %s", err, out)
	}
	// Its own user is no other one.
	s, err := New(Config{Dir: t.TempDir(), JobUser: "root"})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if s.User() != "" {
		t.Errorf("jobs run as %q", s.User())
	}
}

// Root may run jobs as another user too.
func TestJobUserOfRoot(t *testing.T) {
	_, job := testUsers(t)
	for _, kind := range kinds(t) {
		t.Run(kind, func(t *testing.T) {
			h := &host{dir: openDirectory(t), own: &executor.User{}, job: job}
			s, err := New(Config{Dir: h.dir, Isolation: kind, JobUser: job.Name})
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			sp := h.sh(t, `exec 2>&1; id -u; grep -E 'Cap(Inh|Prm|Eff|Amb)' /proc/self/status; touch file; chmod 600 file; cat /etc/shadow`)
			end := run(t, s, sp)
			want := strconv.Itoa(job.UID) + "\n" + noCapabilities
			if all := logOf(t, sp, 0); end.State != wire.Failed || !strings.HasPrefix(all, want) {
				t.Errorf("got %+v, %s", end, all)
			}
			if got := stat(t, filepath.Join(sp.WorkDir, "file")); got.Uid != 0 || got.Mode&0o7777 != 0o600 {
				t.Errorf("the job's file belongs to %d and has mode %o", got.Uid, got.Mode)
			}
			h.checkOurs(t, sp)
		})
	}
}

func pidIn(t testing.TB, file string) (pid int) {
	t.Helper()
	await(t, "a process number in "+file, func() bool {
		b, _ := os.ReadFile(file)
		if !bytes.HasSuffix(b, []byte("\n")) {
			return false
		}
		pid, _ = strconv.Atoi(strings.TrimSpace(string(b)))
		return true
	})
	return pid
}
