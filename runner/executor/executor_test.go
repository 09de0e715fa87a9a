package executor

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The test binary is also the shim, and the process that dies in
// TestHolderKilled.
func TestMain(m *testing.M) {
	if os.Args[0] == ShimArg {
		os.Exit(ShimMain())
	}
	if len(os.Args) == 4 && os.Args[1] == "holder" {
		os.Exit(hold(os.Args[2], os.Args[3]))
	}
	os.Exit(m.Run())
}

// env is what commands get in tests.
var env = []string{"PATH=/usr/local/bin:/usr/bin:/bin"}

// eachIsolation runs f with an executor of each kind that can be had here.
func eachIsolation(t *testing.T, f func(t *testing.T, e *Executor)) {
	for _, kind := range []string{IsolationCgroup, IsolationProcessGroup} {
		t.Run(kind, func(t *testing.T) {
			e, err := New(Config{Dir: t.TempDir(), Isolation: kind})
			if err != nil {
				t.Skipf("no %s here: %v", kind, err)
			}
			defer e.Close()
			if e.Isolation() != kind {
				t.Fatalf("isolation is %s", e.Isolation())
			}
			f(t, e)
			if e.Isolation() != kind {
				t.Errorf("isolation became %s", e.Isolation())
			}
		})
	}
}

// output is a file that commands write to.
func output(t *testing.T) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "output"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func text(t *testing.T, f *os.File) string {
	t.Helper()
	b, err := os.ReadFile(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func newTree(t *testing.T, e *Executor, out *os.File) Tree {
	t.Helper()
	tr, err := e.NewTree(Options{Name: "job-1", Stdout: out, Stderr: out, Handle: filepath.Join(t.TempDir(), "handle")})
	if err != nil {
		t.Fatal(err)
	}
	return tr
}

func sh(script string) Command {
	return Command{Argv: []string{"sh", "-c", script}, Env: env, Dir: "/"}
}

// run runs a command in a tree of its own.
func run(t *testing.T, e *Executor, c Command) (Exit, Usage, error) {
	t.Helper()
	tr := newTree(t, e, output(t))
	err := tr.Start(c)
	var x Exit
	if err == nil {
		x = tr.Wait()
	}
	u, cerr := tr.Close()
	if cerr != nil {
		t.Error(cerr)
	}
	return x, u, err
}

// await waits for an event that has no other sign than being so.
func await(t *testing.T, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !f(); {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain: %s", what)
		}
		unix.Poll(nil, 2)
	}
}

// pids reads the process numbers in a file, once there are n.
func pids(t *testing.T, file string, n int) []stat {
	t.Helper()
	var all []stat
	await(t, fmt.Sprintf("%d processes in %s", n, file), func() bool {
		b, _ := os.ReadFile(file)
		f := strings.Fields(string(b))
		if len(f) < n || !strings.HasSuffix(string(b), "\n") {
			return false
		}
		all = nil
		for _, s := range f {
			pid, err := strconv.Atoi(s)
			if err != nil {
				t.Fatal(err)
			}
			st, ok := readStat(pid)
			if !ok {
				t.Fatalf("process %d is gone already", pid)
			}
			all = append(all, st)
		}
		return true
	})
	return all
}

func living(all []stat) (n int) {
	for _, s := range all {
		if now, ok := readStat(s.pid); ok && now.start == s.start && !now.dead {
			n++
		}
	}
	return n
}

func TestExits(t *testing.T) {
	eachIsolation(t, func(t *testing.T, e *Executor) {
		for script, want := range map[string]Exit{
			"exit 0":        {},
			"exit 7":        {Code: 7},
			"exit 255":      {Code: 255},
			"kill -TERM $$": {Signal: "SIGTERM"},
			"kill -KILL $$": {Signal: "SIGKILL"},
			"nosuch":        {Code: 127},
		} {
			if got, _, err := run(t, e, sh(script)); got != want || err != nil {
				t.Errorf("%s: got %+v %v, want %+v", script, got, err, want)
			}
		}
	})
}

func TestStartErrors(t *testing.T) {
	dir := t.TempDir()
	put := func(name, text string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		os.Chmod(path, mode)
		return path
	}
	put("plain", "exit 3\n", 0o644)
	put("script", "exit 3\n", 0o755)
	put("lost", "#!/nosuch/interpreter\n", 0o755)
	put("garbage", "\x7fELF\x00\x01garbage", 0o755)
	os.Mkdir(filepath.Join(dir, "folder"), 0o755)
	eachIsolation(t, func(t *testing.T, e *Executor) {
		for _, c := range []struct {
			argv []string
			path string
			code int
			text string
			exit int
		}{
			{argv: []string{"nosuch"}, code: 127, text: "command not found: nosuch"},
			{argv: []string{"./nosuch"}, code: 127, text: "command not found: ./nosuch"},
			{argv: []string{""}, code: 127, text: "empty"},
			{argv: nil, code: 127, text: "empty"},
			{argv: []string{"./plain"}, code: 126, text: "./plain cannot be executed: permission denied"},
			{argv: []string{"plain"}, path: dir, code: 126, text: "permission denied"},
			{argv: []string{"./folder"}, code: 126, text: "is a directory"},
			{argv: []string{"./plain/x"}, code: 127, text: "command not found"},
			{argv: []string{"./lost"}, code: 127, text: "interpreter of ./lost"},
			{argv: []string{"./script"}, exit: 3},
			{argv: []string{"script"}, path: "/nosuch:" + dir, exit: 3},
			{argv: []string{"script"}, path: "", exit: 3}, // an empty element is the working directory
			{argv: []string{"sh", "-c", "exit 4", strings.Repeat("x", 200<<10)}, path: "/bin", code: 126, text: "too long"},
		} {
			x, _, err := run(t, e, Command{Argv: c.argv, Env: []string{"PATH=" + c.path}, Dir: dir})
			var se *StartError
			switch {
			case c.code == 0:
				if err != nil || x.Code != c.exit {
					t.Errorf("%q: %+v %v", c.argv, x, err)
				}
			case !errors.As(err, &se):
				t.Errorf("%.50q: %+v %v", c.argv, x, err)
			case se.Code != c.code || !strings.Contains(se.Text, c.text):
				t.Errorf("%.50q: %d %s", c.argv, se.Code, se.Text)
			}
		}
		for _, c := range []struct {
			c    Command
			text string
		}{
			{Command{Argv: []string{"true"}, Env: env, Dir: dir + "/nosuch"}, "open working directory"},
			{Command{Argv: []string{"true"}, Env: env, Dir: dir + "/plain"}, "no directory"},
			{Command{Argv: []string{"true"}, Env: env, Dir: dir, Stdin: dir + "/nosuch"}, "open standard input"},
		} {
			_, _, err := run(t, e, c.c)
			if se, ok := errors.AsType[*StartError](err); !ok || se.Code != 0 || !strings.Contains(se.Text, c.text) {
				t.Errorf("%v: %v", c.c, err)
			}
		}
	})
}

func TestCommandContext(t *testing.T) {
	stdin := filepath.Join(t.TempDir(), "stdin")
	if err := os.WriteFile(stdin, []byte("from a file\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	eachIsolation(t, func(t *testing.T, e *Executor) {
		out := output(t)
		tr := newTree(t, e, out)
		for range 2 { // each command reads it from the start
			if err := tr.Start(Command{Argv: []string{"sh", "-c", "pwd; cat; env; ls /proc/self/fd | tr '\\n' ' '"}, Env: append(env, "A=b"), Dir: "/usr", Stdin: stdin}); err != nil {
				t.Fatal(err)
			}
			if x := tr.Wait(); !x.Success() {
				t.Error(x)
			}
		}
		if _, err := tr.Close(); err != nil {
			t.Error(err)
		}
		got := text(t, out)
		for _, want := range []string{"/usr\nfrom a file\n", "A=b\n"} {
			if strings.Count(got, want) != 2 {
				t.Errorf("output lacks %q:\n%s", want, got)
			}
		}
		if strings.Contains(got, "HOME=") {
			t.Errorf("this process's environment is seen:\n%s", got)
		}
		if !strings.Contains(got, "0 1 2 3 ") || strings.Contains(got, "3 4") {
			t.Errorf("files are left open for the command:\n%s", got)
		}
	})
}

// What a job does to escape, and all of it must die with the tree.
var escapes = map[string]struct {
	script string
	n      int
}{
	"background":   {`sleep 1000 & echo $! >> $F`, 1},
	"new session":  {`setsid sh -c 'echo $$ >> $F; exec sleep 1000' & sleep 0.05`, 1},
	"double fork":  {`F=$F setsid sh -c '(setsid env -i /bin/sh -c "echo \$\$ >> $F; exec sleep 1000" </dev/null >/dev/null 2>&1 &) &' & wait; sleep 0.05`, 1},
	"term ignored": {`sh -c 'trap "" TERM HUP INT; echo $$ >> $F; while :; do sleep 1000; done' & sleep 0.05`, 1},
	"stopped":      {`sleep 1000 & echo $! >> $F; kill -STOP $!`, 1},
	"200":          {`for i in $(seq 200); do sleep 1000 & echo $! ; done >> $F`, 200},
	"nested":       {`for i in 1 2 3 4; do (for j in 1 2 3 4; do (setsid sh -c 'echo $$ >> $F; sleep 1000; :' &) ; done) & done; wait; sleep 0.1`, 16},
}

func TestNothingEscapes(t *testing.T) {
	eachIsolation(t, func(t *testing.T, e *Executor) {
		for name, esc := range escapes {
			for _, how := range []string{"close", "kill"} {
				t.Run(name+"/"+how, func(t *testing.T) {
					file := filepath.Join(t.TempDir(), "pids")
					tr := newTree(t, e, output(t))
					c := sh(esc.script)
					c.Env = append(c.Env, "F="+file)
					if how == "kill" {
						c.Argv[2] += "; exec sleep 1000"
					}
					if err := tr.Start(c); err != nil {
						t.Fatal(err)
					}
					var all []stat
					if how == "kill" {
						all = pids(t, file, esc.n)
						tr.Kill()
						if x := tr.Wait(); x.Signal != "SIGKILL" {
							t.Errorf("the command ended with %+v", x)
						}
						if !tr.AwaitEmpty(10 * time.Second) {
							t.Error("killed, and not empty")
						}
					} else {
						if x := tr.Wait(); !x.Success() {
							t.Errorf("the command ended with %+v", x)
						}
						all = pids(t, file, esc.n)
						if tr.AwaitEmpty(0) {
							t.Error("empty with processes in it")
						}
						if n := living(all); n != esc.n {
							t.Errorf("%d processes live, want %d", n, esc.n)
						}
					}
					if _, err := tr.Close(); err != nil {
						t.Error(err)
					}
					if n := living(all); n != 0 {
						t.Errorf("%d processes are left", n)
					}
				})
			}
		}
	})
}

func TestForkBombEnds(t *testing.T) {
	eachIsolation(t, func(t *testing.T, e *Executor) {
		tr := newTree(t, e, output(t))
		file := filepath.Join(t.TempDir(), "pids")
		c := sh(`echo $$ >> $F; while :; do setsid sh -c 'sleep 0.01' & done`)
		c.Env = append(c.Env, "F="+file)
		if err := tr.Start(c); err != nil {
			t.Fatal(err)
		}
		all := pids(t, file, 1)
		tr.Kill()
		if x := tr.Wait(); x.Signal != "SIGKILL" {
			t.Error(x)
		}
		if _, err := tr.Close(); err != nil {
			t.Error(err)
		}
		if living(all) != 0 {
			t.Error("it lives")
		}
	})
}

func TestTerm(t *testing.T) {
	eachIsolation(t, func(t *testing.T, e *Executor) {
		out := output(t)
		tr := newTree(t, e, out)
		if err := tr.Start(sh(`setsid sh -c 'trap "echo child; exit" TERM; echo ready; while :; do sleep 0.05; done' & trap "wait; echo main; exit 5" TERM; echo ready; wait; wait`)); err != nil {
			t.Fatal(err)
		}
		await(t, "both are ready", func() bool { return strings.Count(text(t, out), "ready") == 2 })
		tr.Term()
		if x := tr.Wait(); x.Code != 5 {
			t.Errorf("got %+v", x)
		}
		if !tr.AwaitEmpty(10 * time.Second) {
			t.Error("processes are left")
		}
		if _, err := tr.Close(); err != nil {
			t.Error(err)
		}
		if got := text(t, out); !strings.HasSuffix(got, "child\nmain\n") {
			t.Errorf("output is %q", got)
		}
	})
}

func TestUsage(t *testing.T) {
	eachIsolation(t, func(t *testing.T, e *Executor) {
		// Most of it in a process that nobody of the job waits for.
		_, u, err := run(t, e, sh(`(setsid sh -c 'i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done' &) ; i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; sleep 0.5`))
		if err != nil {
			t.Fatal(err)
		}
		if u.CPU < 20*time.Millisecond || u.CPU > 10*time.Second {
			t.Errorf("%v of CPU", u.CPU)
		}
		if u.MaxRSS < 500<<10 || u.MaxRSS > 1<<30 {
			t.Errorf("%d bytes", u.MaxRSS)
		}
		if u.OOM {
			t.Error("no process was killed for want of memory")
		}
	})
}

func TestNoTraceLeft(t *testing.T) {
	dir := t.TempDir()
	e, err := New(Config{Dir: dir, Isolation: IsolationCgroup})
	if err != nil {
		t.Skip(err)
	}
	run(t, e, sh("true"))
	run(t, e, sh("sleep 1000 &"))
	entries, err := filepath.Glob(filepath.Join(e.cgroup.path, "job-*"))
	if err != nil || len(entries) != 0 {
		t.Error(entries, err)
	}
	e.Close()
	if _, err := os.Stat(e.cgroup.path); err == nil {
		t.Error("the root cgroup is left")
	}
}

// A job may divide its cgroup.
func TestCgroupsOfJob(t *testing.T) {
	e, err := New(Config{Dir: t.TempDir(), Isolation: IsolationCgroup})
	if err != nil {
		t.Skip(err)
	}
	defer e.Close()
	x, _, err := run(t, e, sh(`mkdir -p `+e.cgroup.path+`/job-1/a/b && echo 0 > `+e.cgroup.path+`/job-1/a/b/cgroup.procs && sleep 1000 &
		sleep 0.1`))
	if err != nil || !x.Success() {
		t.Error(x, err)
	}
	if _, err := os.Stat(e.cgroup.path + "/job-1"); err == nil {
		t.Error("the tree's cgroup is left")
	}
}

// What a dead executor has left is gone when its successor is there; and
// empty cgroups of others are swept.
func TestSuccessor(t *testing.T) {
	dir := t.TempDir()
	e, err := New(Config{Dir: dir, Isolation: IsolationCgroup})
	if err != nil {
		t.Skip(err)
	}
	base := filepath.Dir(e.cgroup.path)
	e.Close()
	stale := filepath.Join(base, rootPrefix+"stale", "job-1")
	if err := os.MkdirAll(stale, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "holder", IsolationCgroup, dir)
	stdin, _ := cmd.StdinPipe()
	defer stdin.Close()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	all := pids(t, filepath.Join(dir, "pids"), 16)
	other, err := New(Config{Dir: t.TempDir(), Isolation: IsolationCgroup})
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if n := living(all); n != 16 {
		t.Errorf("another executor has killed %d processes", 16-n)
	}
	if _, err := os.Stat(filepath.Dir(stale)); err == nil {
		t.Error("a stale cgroup is left")
	}
	cmd.Process.Kill()
	cmd.Wait()
	next, err := New(Config{Dir: dir, Isolation: IsolationCgroup})
	if err != nil {
		t.Fatal(err)
	}
	defer next.Close()
	if n := living(all); n != 0 {
		t.Errorf("%d processes are left", n)
	}
}

// hold starts a tree, says so, and waits to be killed.
func hold(kind, dir string) int {
	e, err := New(Config{Dir: dir, Isolation: kind})
	if err != nil {
		fmt.Println(err)
		return 1
	}
	null, _ := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	tr, err := e.NewTree(Options{Name: "job-1", Handle: filepath.Join(dir, "handle"), Stdout: null, Stderr: null})
	if err != nil {
		fmt.Println(err)
		return 1
	}
	c := sh(escapes["nested"].script + "; echo $$ > $F.main; exec sleep 1000")
	c.Env = append(c.Env, "F="+filepath.Join(dir, "pids"))
	if err := tr.Start(c); err != nil {
		fmt.Println(err)
		return 1
	}
	io.Copy(io.Discard, os.Stdin)
	return 0
}

func TestHolderKilled(t *testing.T) {
	eachIsolation(t, func(t *testing.T, e *Executor) {
		dir := t.TempDir()
		cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "holder", e.Isolation(), dir)
		stdin, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		defer stdin.Close()
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		main := pids(t, filepath.Join(dir, "pids.main"), 1)
		all := append(pids(t, filepath.Join(dir, "pids"), 16), main...)
		cmd.Process.Kill()
		cmd.Wait()
		await(t, "the command dies with its holder", func() bool { return living(main) == 0 })
		if err := KillLeftovers(filepath.Join(dir, "handle")); err != nil {
			t.Error(err)
		}
		await(t, "all die", func() bool { return living(all) == 0 || e.Isolation() == IsolationCgroup })
		if n := living(all); n != 0 {
			t.Errorf("%d processes are left", n)
		}
		if _, err := os.Stat(filepath.Join(dir, "handle")); err == nil {
			t.Error("the handle is left")
		}
		if err := KillLeftovers(filepath.Join(dir, "handle")); err != nil {
			t.Error("again:", err)
		}
	})
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
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run", "^Test(Exits|StartErrors|CommandContext|NothingEscapes|ForkBombEnds|Term|Usage|HolderKilled|ShimKilled|ShimStopped)$", "-test.v")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	cmd.Env = append(env, "TMPDIR="+dir)
	cmd.Dir = dir
	cmd.WaitDelay = 20 * time.Second // for what holds its output and should not
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "PASS: TestHolderKilled/process-group") {
		t.Errorf("%v\n%s", err, out)
	}
}
