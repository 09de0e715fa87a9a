package supervisor

import (
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/waypointd/waypoint/mux"
	"github.com/waypointd/waypoint/mux/wire"
)

// supervisorOf is the process number of the supervisor behind jobs.
func supervisorOf(t testing.TB, j Jobs) int {
	t.Helper()
	return j.(*remote).inspection.PID
}

func ensure(t testing.TB, dir, kind, idle string) Jobs {
	t.Helper()
	j, err := Ensure(t.Context(), dir, self(dir, kind, idle))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { j.Close() })
	return j
}

// The supervisor is killed: its jobs die, and what is left of them is killed
// by whoever comes after.
func TestSupervisorKilled(t *testing.T) {
	for _, kind := range kinds(t) {
		t.Run(kind, func(t *testing.T) {
			dir := t.TempDir()
			j := ensure(t, dir, kind, "10s")
			s := sh(t, `(setsid env -i /bin/sh -c 'echo $$ > left; exec sleep 1000' &); while [ ! -s left ]; do sleep 0.01; done; echo before; echo $$ > main; exec sleep 1000`)
			start(t, j, s)
			main, left := pid(t, filepath.Join(s.WorkDir, "main")), pid(t, filepath.Join(s.WorkDir, "left"))
			await(t, "output", func() bool { return logOf(t, s, 0) != "" })
			syscall.Kill(supervisorOf(t, j), syscall.SIGKILL)
			if err := j.Watch(t.Context(), func(Event) {}); wire.KindOf(err) != wire.Unavailable {
				t.Errorf("watch: %v", err)
			}
			if _, err := j.List(t.Context()); wire.KindOf(err) != wire.Unavailable {
				t.Errorf("list: %v", err)
			}
			await(t, "the job's death", func() bool { return !alive(main) })
			j = ensure(t, dir, kind, "100ms")
			if all, err := j.List(t.Context()); len(all) != 0 || err != nil {
				t.Errorf("the next supervisor holds %+v (%v)", all, err)
			}
			if err := j.Start(t.Context(), s); wire.KindOf(err) != wire.Conflict {
				t.Errorf("it was started again: %v", err)
			}
			if err := KillLeftovers(s.Dir); err != nil {
				t.Error(err)
			}
			if alive(left) {
				t.Error("a leftover lives")
			}
			if end, err := readEnd(s.Dir); end != nil || err != nil {
				t.Errorf("it has an end: %+v %v", end, err)
			}
			if got := logOf(t, s, 0); got != "before\n" {
				t.Errorf("the log is %q", got)
			}
		})
	}
}

func TestSupervisorTerminated(t *testing.T) {
	for _, kind := range kinds(t) {
		t.Run(kind, func(t *testing.T) {
			dir := t.TempDir()
			j := ensure(t, dir, kind, "10s")
			polite, deaf := sh(t, `trap 'echo bye; exit 0' TERM; echo ready; while :; do sleep 0.02; done`), sh(t, `trap '' TERM; echo ready; while :; do sleep 0.02; done`)
			deaf.Grace = 300 * time.Millisecond
			for _, s := range []Spec{polite, deaf} {
				start(t, j, s)
				await(t, "ready", func() bool { return logOf(t, s, 0) == "ready\n" })
			}
			n := supervisorOf(t, j)
			syscall.Kill(n, syscall.SIGTERM)
			await(t, "its end", func() bool { return !alive(n) })
			for _, s := range []Spec{polite, deaf} {
				end, err := readEnd(s.Dir)
				if err != nil || end == nil {
					t.Fatal(end, err)
				}
				check(t, s, *end)
				if end.State != wire.Failed || end.Reason != wire.ReasonRunnerLost {
					t.Errorf("got %+v", end)
				}
			}
			if got := logOf(t, polite, 0); !strings.Contains(got, "bye\n") {
				t.Errorf("the log is %q", got)
			}
			if _, err := os.Stat(filepath.Join(dir, SocketFile)); err == nil {
				t.Error("the socket is left")
			}
		})
	}
}

// An agent goes away and comes back; the job goes on, and Watch tells all.
func TestAgentReconnects(t *testing.T) {
	dir := t.TempDir()
	j := ensure(t, dir, "", "50ms")
	s := sh(t, `while [ ! -e go ]; do sleep 0.01; done; echo after; exit 3`)
	quick := sh(t, "echo quick")
	start(t, j, s)
	run(t, j, quick)
	n := supervisorOf(t, j)
	j.Close()
	if err := j.Stop(t.Context(), s.JobRef, true); wire.KindOf(err) != wire.Unavailable {
		t.Errorf("stop without connection: %v", err)
	}
	j = ensure(t, dir, "", "50ms")
	if supervisorOf(t, j) != n {
		t.Fatal("that is another supervisor")
	}
	seen := make(chan Event, 100)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var wg sync.WaitGroup
	wg.Go(func() { j.Watch(ctx, func(e Event) { seen <- e }) })
	for range 2 {
		switch e := <-seen; e.JobRef {
		case s.JobRef:
			if e.Ended || e.LogBytes != 0 {
				t.Errorf("got %+v", e)
			}
		case quick.JobRef:
			if !e.Ended || e.LogBytes != 6 {
				t.Errorf("got %+v", e)
			}
		}
	}
	os.WriteFile(filepath.Join(s.WorkDir, "go"), nil, 0o600)
	for e := range seen {
		if e.JobRef != s.JobRef {
			t.Errorf("got %+v", e)
		}
		if e.Ended {
			if e.LogBytes != 6 {
				t.Errorf("got %+v", e)
			}
			break
		}
	}
	cancel()
	wg.Wait()
	if end := ended(t, j, s.JobRef); !same(end.ExitCode, new(3)) {
		t.Errorf("got %+v", end)
	}
	// With nobody connected and nothing running it goes, ended jobs or not.
	j.Close()
	await(t, "the supervisor's end", func() bool { return !alive(n) })
	if end, err := readEnd(s.Dir); err != nil || end == nil {
		t.Error(end, err)
	}
}

func TestEnsureStartsOne(t *testing.T) {
	// Longer than the kernel takes as a socket's address.
	dir := filepath.Join(t.TempDir(), strings.Repeat("long/", 30), strings.Repeat("x", 100))
	var wg sync.WaitGroup
	all := make([]Jobs, 6)
	for i := range all {
		wg.Go(func() {
			j, err := Ensure(t.Context(), dir, self(dir, "", "100ms"))
			if err != nil {
				t.Error(err)
				return
			}
			all[i] = j
		})
	}
	wg.Wait()
	if t.Failed() {
		return
	}
	for _, j := range all {
		if supervisorOf(t, j) != supervisorOf(t, all[0]) {
			t.Error("two supervisors were started")
		}
		j.Close()
	}
	err := Run(t.Context(), ProcessConfig{Dir: dir, IdleExit: time.Millisecond})
	if err != nil && wire.KindOf(err) != wire.Conflict {
		t.Error(err)
	}
}

// Supervisors that leave the moment they may, and agents that come all the
// time: everyone is served by one that stays.
func TestEnsureWhileLeaving(t *testing.T) {
	dir := t.TempDir()
	for range 30 {
		j, err := Ensure(t.Context(), dir, self(dir, "process-group", "1ms"))
		if err != nil {
			t.Fatal(err)
		}
		s := sh(t, "true")
		if end := run(t, j, s); end.State != wire.Success {
			t.Errorf("got %+v", end)
		}
		if err := j.Forget(t.Context(), s.JobRef); err != nil { // else it is put on the disk first
			t.Error(err)
		}
		j.Close()
	}
}

// What nobody has come to report is on the disk when the process has ended.
func TestUnreportedIsKept(t *testing.T) {
	dir := t.TempDir()
	j, err := Ensure(t.Context(), dir, self(dir, "process-group", "1ms"))
	if err != nil {
		t.Fatal(err)
	}
	told, untold := sh(t, "true"), sh(t, "true")
	for _, s := range []Spec{told, untold} {
		run(t, j, s)
	}
	if err := j.Forget(t.Context(), told.JobRef); err != nil {
		t.Error(err)
	}
	j.Close()
	unlock, err := lock(t.Context(), filepath.Join(dir, lockFile), 20*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	unlock()
	if Kept(told.Dir, told.JobRef) || !Kept(untold.Dir, untold.JobRef) || Kept(untold.Dir, told.JobRef) {
		t.Error("kept is not what nobody has come for")
	}
}

func TestEnsureFails(t *testing.T) {
	dir := t.TempDir()
	_, err := Ensure(t.Context(), dir, []string{"/bin/sh", "-c", "echo my reason >&2; exit 3"})
	if wire.KindOf(err) != wire.Unavailable || !strings.Contains(err.Error(), "exit status 3") || !strings.Contains(err.Error(), "my reason") {
		t.Error(err)
	}
	if _, err = Ensure(t.Context(), dir, []string{"/nosuch"}); wire.KindOf(err) != wire.Unavailable {
		t.Error(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err = Ensure(ctx, dir, []string{"/bin/sh", "-c", "exec sleep 1"}); err == nil || !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	if _, err := Connect(t.Context(), filepath.Join(dir, SocketFile)); wire.KindOf(err) != wire.Unavailable {
		t.Error(err)
	}
}

func TestAdmission(t *testing.T) {
	s, err := New(Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	hello := wire.Hello{Role: wire.RoleSupervisor}
	for name, c := range map[string]struct {
		peer mux.Peer
		want wire.Kind
	}{
		"same user": {mux.Peer{Network: "unix", UID: os.Geteuid(), Hello: hello}, ""},
		"root":      {mux.Peer{Network: "unix", UID: 0, Hello: hello}, ""},
		"other":     {mux.Peer{Network: "unix", UID: 12345, Hello: hello}, wire.Denied},
		"unknown":   {mux.Peer{Network: "unix", UID: -1, Hello: hello}, wire.Denied},
		"network":   {mux.Peer{Network: "tcp", UID: -1, Hello: hello}, wire.Denied},
		"client":    {mux.Peer{Network: "unix", UID: 0, Hello: wire.Hello{Role: wire.RoleClient}}, wire.BadUsage},
	} {
		if _, err := s.admit(&c.peer, nil); wire.KindOf(err) != c.want {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// In memory: Serve, many attempts in one list, and its end.
func TestServeEnds(t *testing.T) {
	s, err := New(Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	path := filepath.Join(t.TempDir(), "sock")
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx, ln, 0) }()
	j, err := Connect(ctx, path)
	if err != nil {
		t.Fatal(err)
	}
	const n = 2*pageSize + 1
	for range n {
		start(t, j, spec(t, "nosuch"))
	}
	all, err := j.List(ctx)
	if err != nil || len(all) != n {
		t.Errorf("%d attempts, %v", len(all), err)
	}
	large := sh(t, "printenv X | wc -c")
	large.Env = append(large.Env, "X="+strings.Repeat("x", 100_000))
	if end := run(t, j, large); end.State != wire.Success || logOf(t, large, 0) != "100001\n" {
		t.Errorf("got %+v %q", end, logOf(t, large, 0))
	}
	large.Env = append(large.Env, "Y="+strings.Repeat("x", 1<<20))
	if err := j.Start(ctx, large); wire.KindOf(err) != wire.TooLarge {
		t.Error(err)
	}
	watched := make(chan error, 1)
	go func() { watched <- j.Watch(t.Context(), func(Event) {}) }()
	cancel()
	if err := <-served; err != nil {
		t.Error(err)
	}
	if err := <-watched; wire.KindOf(err) != wire.Unavailable {
		t.Error(err)
	}
	j.Close()
}

// The supervisor process does not take the terminal's signals, nor this
// process's environment.
func TestDetached(t *testing.T) {
	t.Setenv("WAYPOINT_TOKEN", "secret")
	dir := t.TempDir()
	j := ensure(t, dir, "", "100ms")
	n := supervisorOf(t, j)
	if sid, _ := syscall.Getpgid(n); sid != n {
		t.Errorf("its process group is %d", sid)
	}
	out, err := exec.Command("sh", "-c", "tr '\\0' '\\n' < /proc/$0/environ; ls -l /proc/$0/fd", strconv.Itoa(n)).CombinedOutput()
	if err != nil || strings.Contains(string(out), "secret") {
		t.Errorf("%v: %s", err, out)
	}
	s := sh(t, "umask; env; ls /proc/self/fd | tr '\\n' ' '")
	run(t, j, s)
	got := logOf(t, s, 0)
	if !strings.HasPrefix(got, "0022\n") || strings.Contains(got, "secret") || !strings.HasSuffix(got, "0 1 2 3 ") {
		t.Errorf("a job sees %q", got)
	}
}

// Root runs the whole again as nobody, who has no cgroup.
func TestAsNobody(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("these tests run without privileges already")
	}
	dir := t.TempDir()
	for p := dir; p != os.TempDir() && p != "/"; p = filepath.Dir(p) {
		os.Chmod(p, 0o777)
	}
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.v", "-test.run",
		"^Test(Ends|Steps|LeftoverHoldsOutput|Stop|Timeout|LongLine|SupervisorKilled|SupervisorTerminated|AgentReconnects|EnsureStartsOne|Detached)$")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	cmd.Env = []string{"PATH=/usr/local/bin:/usr/bin:/bin", "TMPDIR=" + dir}
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "PASS: TestSupervisorKilled/process-group") || strings.Contains(string(out), "/cgroup (") {
		t.Errorf("%v\n%s", err, out)
	}
}
