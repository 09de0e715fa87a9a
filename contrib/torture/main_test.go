package torture

import (
	"bytes"
	"flag"
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

	"github.com/waypointd/waypoint/runner/executor"
)

// Of the whole run; set by TestMain before any test.
var (
	base    string // the directory of everything
	program string // the path of the program under test
)

const reapVariable = "TORTURE_REAP"

func TestMain(m *testing.M) {
	if dir := os.Getenv(reapVariable); dir != "" {
		io.Copy(io.Discard, os.Stdin) // ends with the process that started this one
		reap(dir)
		os.Exit(0)
	}
	os.Exit(run(m))
}

func run(m *testing.M) int {
	fail := func(err error) int {
		fmt.Fprintln(os.Stderr, "torture:", err)
		return 1
	}
	var err error
	if base, err = os.MkdirTemp("/tmp", "wt-"); err != nil {
		return fail(err)
	}
	if err := os.Chmod(base, 0o755); err != nil { // some tests run the program as nobody
		return fail(err)
	}
	if err := os.Mkdir(base+siteMark, 0o755); err != nil {
		return fail(err)
	}
	stop, err := startReaper(base)
	if err != nil {
		return fail(err)
	}
	defer stop()
	if program, err = build(base); err != nil {
		return fail(err)
	}
	// Most of those that run side by side wait for a time to pass.
	flag.Parse()
	if err := flag.Set("test.parallel", "8"); err != nil {
		return fail(err)
	}
	return m.Run()
}

// build makes the program under test.
func build(dir string) (string, error) {
	path := filepath.Join(dir, "waypoint")
	if given := os.Getenv("TORTURE_BINARY"); given != "" {
		b, err := os.ReadFile(given)
		if err == nil {
			err = os.WriteFile(path, b, 0o755) // here, so that its processes are known by it
		}
		return path, err
	}
	args, env := []string{"build", "-o", path}, os.Environ()
	if raceBuild() {
		args, env = append(args, "-race"), append(env, "CGO_ENABLED=1")
	}
	cmd := exec.Command("go", append(args, "github.com/waypointd/waypoint/cmd/waypoint")...)
	cmd.Env = env
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build program: %w\n%s", err, out)
	}
	return path, nil
}

func raceBuild() bool { return os.Getenv("TORTURE_RACE") == "1" }

// startReaper starts a process that cleans dir up when this one is gone. stop
// has it done now and waits for it.
func startReaper(dir string) (stop func(), err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), reapVariable+"="+dir)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // a Ctrl-C is not for it
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	return func() {
		in.Close()
		cmd.Wait()
	}, nil
}

// reap kills what runs of dir, unmounts what is mounted in it, and removes it
// and its networks.
func reap(dir string) {
	for range 100 {
		left := processesOf(dir)
		if len(left) == 0 {
			break
		}
		for _, p := range left {
			syscall.Kill(p.pid, syscall.SIGKILL)
		}
		time.Sleep(20 * time.Millisecond)
	}
	removeNetworks(filepath.Base(dir) + "-")
	if os.Getenv("TORTURE_KEEP") == "1" {
		fmt.Fprintln(os.Stderr, "torture: left behind", dir)
		return
	}
	mounts, _ := os.ReadFile("/proc/self/mounts")
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 1 && strings.HasPrefix(f[1], dir+"/") {
			syscall.Unmount(f[1], syscall.MNT_DETACH)
		}
	}
	os.RemoveAll(dir)
}

// running is a process as /proc shows it.
type running struct {
	pid     int
	cmdline string
	marks   string // what it is known by
}

func (r running) String() string { return fmt.Sprintf("%d %q", r.pid, r.cmdline) }

// processesOf finds the processes that have mark in their command line,
// environment or the path of their program, less this one and the reaper. A
// job's shim, which has nothing of the kind, goes by its supervisor.
func processesOf(mark string) []running {
	entries, _ := os.ReadDir("/proc")
	var found []running
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		cmdline, _ := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		environ, _ := os.ReadFile(filepath.Join("/proc", e.Name(), "environ"))
		if strings.Contains(string(environ), reapVariable+"=") {
			continue
		}
		exe, _ := os.Readlink(filepath.Join("/proc", e.Name(), "exe"))
		if isShim(cmdline) {
			environ = append(environ, parentCmdline(pid)...)
		}
		if marks := strings.Join([]string{string(cmdline), string(environ), exe}, "\x00"); strings.Contains(marks, mark) {
			found = append(found, running{pid, strings.ReplaceAll(strings.TrimRight(string(cmdline), "\x00"), "\x00", " "), marks})
		}
	}
	return found
}

// isShim reports whether a command line is that of a job's shim.
func isShim(cmdline []byte) bool { return string(cmdline) == executor.ShimArg+"\x00" }

// shimsOf counts the shims whose supervisor has mark in its command line: the
// jobs that run, where they are process groups.
func shimsOf(mark string) (n int) {
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if cmdline, _ := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline")); isShim(cmdline) && strings.Contains(parentCmdline(pid), mark) {
			n++
		}
	}
	return n
}

// parentCmdline is the command line of a process's parent; "" if it is gone.
func parentCmdline(pid int) string {
	stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(fields) < 2 {
		return ""
	}
	cmdline, _ := os.ReadFile(filepath.Join("/proc", fields[1], "cmdline"))
	return string(cmdline)
}
