package executor

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// fixture makes a directory with files.
func fixture(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

const (
	unifiedMounts = `22 28 0:21 / /sys rw,nosuid shared:7 - sysfs sysfs rw
29 22 0:26 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate
`
	hybridMounts = `31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
`
	boundMounts = `41 31 0:38 /machine/a\040b /my\040cgroup rw - cgroup2 cgroup2 rw
`
	legacyMounts = `35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
`
)

func TestOwnCgroup(t *testing.T) {
	for name, c := range map[string]struct{ mounts, cgroup, want, err string }{
		"unified":   {unifiedMounts, "0::/system.slice/waypoint-jobs.service\n", "/sys/fs/cgroup/system.slice/waypoint-jobs.service", ""},
		"root":      {unifiedMounts, "0::/\n", "/sys/fs/cgroup", ""},
		"hybrid":    {hybridMounts, "4:memory:/elsewhere\n1:name=systemd:/x\n0::/user.slice\n", "/sys/fs/cgroup/unified/user.slice", ""},
		"bound":     {boundMounts, "0::/machine/a b/job\n", "/my cgroup/job", ""},
		"outside":   {boundMounts, "0::/machine/other\n", "", "outside"},
		"namespace": {unifiedMounts, "0::/../other\n", "", "outside"},
		"legacy":    {legacyMounts, "4:memory:/\n", "", "no cgroup version 2"},
		"no line":   {hybridMounts, "4:memory:/\n", "", "in no cgroup"},
		"empty":     {"", "", "", "no cgroup version 2"},
		"junk":      {"junk - cgroup2\n1 2 - cgroup2 x y\n", "0::/\n", "", "no cgroup version 2"},
	} {
		got, err := ownCgroup(fixture(t, map[string]string{"mountinfo": c.mounts, "cgroup": c.cgroup}))
		if got != c.want || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s: %q %v", name, got, err)
		}
	}
}

func TestCgroupUsage(t *testing.T) {
	full := map[string]string{
		"cpu.stat":      "usage_usec 1234567\nuser_usec 1000000\nsystem_usec 234567\n",
		"memory.peak":   "7340032\n",
		"memory.events": "low 0\nhigh 0\nmax 12\noom 1\noom_kill 1\noom_group_kill 0\n",
	}
	u := Usage{CPU: 1, MaxRSS: 2}
	cgroup{fixture(t, full)}.usage(&u)
	if want := (Usage{CPU: 1234567 * time.Microsecond, MaxRSS: 7340032, OOM: true}); u != want {
		t.Errorf("got %+v, want %+v", u, want)
	}
	// Without controllers: what is known by other means is kept.
	u = Usage{CPU: 1, MaxRSS: 2}
	cgroup{fixture(t, map[string]string{"cgroup.procs": ""})}.usage(&u)
	if want := (Usage{CPU: 1, MaxRSS: 2}); u != want {
		t.Errorf("got %+v, want %+v", u, want)
	}
	// An OOM that killed nobody here (it was resolved, or hit a parent), and junk.
	u = Usage{}
	cgroup{fixture(t, map[string]string{"memory.events": "oom 1\noom_kill 0\n", "memory.peak": "max\n", "cpu.stat": "usage_usec\nusage_usec x\n"})}.usage(&u)
	if u != (Usage{}) {
		t.Errorf("got %+v", u)
	}
}

func TestPopulated(t *testing.T) {
	for text, want := range map[string]bool{"populated 1\nfrozen 0\n": true, "populated 0\nfrozen 0\n": false, "": false} {
		c := cgroup{fixture(t, map[string]string{"cgroup.events": text})}
		if c.populated() != want {
			t.Errorf("%q: %v", text, !want)
		}
	}
}

func TestControllers(t *testing.T) {
	dir := fixture(t, map[string]string{
		"cgroup.controllers":     "cpuset cpu io memory pids\n",
		"cgroup.subtree_control": "cpu\n",
		"cgroup.procs":           strconv.Itoa(os.Getpid()) + "\n",
	})
	if !controllerIn(dir, "cgroup.controllers", "memory") || controllerIn(dir, "cgroup.controllers", "mem") || controllerIn(dir, "nosuch", "cpu") {
		t.Error("the list of controllers was misread")
	}
	if !alone(dir) {
		t.Error("this process is alone in it")
	}
	os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(os.Getpid())+"\n1\n"), 0)
	if alone(dir) {
		t.Error("this process is not alone in it")
	}
	// Not delegated: nothing is moved.
	if got := takeControllers(dir); got != dir {
		t.Error(got)
	}
	if _, err := os.Stat(filepath.Join(dir, "supervisor")); err == nil {
		t.Error("a cgroup that was not delegated has been divided")
	}
}

func TestParseStat(t *testing.T) {
	line := func(comm, state, threads string) string {
		return "42 (" + comm + ") " + state + " 7 41 40 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 " + threads + " 0 987654 1 2 3\n"
	}
	for _, comm := range []string{"sh", "a b", "a) R 1 (b", ")", ""} {
		s, ok := parseStat([]byte(line(comm, "S", "1")))
		if !ok || s != (stat{pid: 42, ppid: 7, session: 40, start: 987654}) {
			t.Errorf("%q: %+v %v", comm, s, ok)
		}
	}
	if s, _ := parseStat([]byte(line("x", "Z", "1"))); !s.dead {
		t.Error("a zombie is dead")
	}
	if s, _ := parseStat([]byte(line("x", "Z", "2"))); s.dead {
		t.Error("a process is not dead while one of its threads runs")
	}
	full := line("sh", "S", "1")
	for i := range full {
		if _, ok := parseStat([]byte(full[:i])); ok && i < len("42 (sh) S 7 41 40 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 9") {
			t.Errorf("%q was taken", full[:i])
		}
	}
}

func TestOldHandles(t *testing.T) {
	me, _ := readStat(os.Getpid())
	for name, text := range map[string]string{
		"torn":          `{"version":1,"boot":"` + bootID() + `","shim":`,
		"empty":         "",
		"other boot":    `{"version":1,"boot":"x","shim":` + strconv.Itoa(me.pid) + `,"shim_start":` + strconv.FormatUint(me.start, 10) + `}`,
		"reused number": `{"version":1,"boot":"` + bootID() + `","shim":` + strconv.Itoa(me.pid) + `,"shim_start":1}`,
		"not ours":      `{"version":1,"boot":"` + bootID() + `","cgroup":"/sys/fs/cgroup/unified"}`,
		"gone":          `{"version":1,"boot":"` + bootID() + `","cgroup":"/nosuch/waypoint-x/job-1"}`,
	} {
		path := filepath.Join(t.TempDir(), "handle")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := KillLeftovers(path); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// What a newer release has started is not killed by what its handle says to this one.
func TestNewerHandle(t *testing.T) {
	eachIsolation(t, func(t *testing.T, e *Executor) {
		dir, out := t.TempDir(), output(t)
		path := filepath.Join(dir, "handle")
		tr, err := e.NewTree(Options{Name: "job-1", Stdout: out, Stderr: out, Handle: path})
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			if _, err := tr.Close(); err != nil {
				t.Error(err)
			}
		}()
		c := sh("echo $$ $PPID > $F; exec sleep 1000")
		c.Env = append(c.Env, "F="+filepath.Join(dir, "pids"))
		if err := tr.Start(c); err != nil {
			t.Fatal(err)
		}
		all := pids(t, filepath.Join(dir, "pids"), 2)
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		version := fmt.Sprintf(`{"version":%d,`, handleVersion)
		newer := strings.Replace(string(text), version, fmt.Sprintf(`{"version":%d,`, handleVersion+1), 1)
		if newer == string(text) {
			t.Fatalf("a handle does not begin with %s: %s", version, text)
		}
		if err := os.WriteFile(path, []byte(newer), 0o600); err != nil {
			t.Fatal(err)
		}
		for _, kill := range []func(string) error{EndLeftovers, KillLeftovers} {
			if err := kill(path); err == nil || !strings.Contains(err.Error(), "newer") {
				t.Errorf("a handle of a newer version: %v", err)
			}
		}
		if got, err := os.ReadFile(path); err != nil || string(got) != newer {
			t.Errorf("it has become %q, %v", got, err)
		}
		if n := living(all); n != len(all) {
			t.Errorf("%d of %d processes are left", n, len(all))
		}
	})
}
