package lab

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// bound is how long anything may take that is expected to happen in a lab: a machine of
// two cores that does other things as well gets by with a tenth.
const bound = time.Minute

// lab is one booted Debian, and the test's hands in it.
type lab struct {
	t     *testing.T
	suite string
	name  string
	dir   string // everything of this lab on the host; root is the mounted file system

	shell    shell
	journal  *journal
	patience time.Duration // bound, or more where time runs slower

	nspawn *exec.Cmd
	leader int // the process that is PID 1 inside
	disks  []*disk
}

// shell runs a command inside; its context bounds it.
type shell func(ctx context.Context, stdin string, args []string) result

type result struct {
	stdout, stderr string
	code           int // -1: the command was not run to its end
}

// onEach runs a test in a fresh lab of each suite, beside others. What is to be
// there before it is started, setup makes.
func onEach(t *testing.T, test func(l *lab, p packages), setup ...func(l *lab)) {
	t.Helper()
	onLabs(t, suites, test, setup...)
}

// onNewest is onEach for what is the program's doing more than systemd's: in the short
// form there is one lab.
func onNewest(t *testing.T, test func(l *lab, p packages), setup ...func(l *lab)) {
	t.Helper()
	onLabs(t, newest(), test, setup...)
}

// newest are all suites in the long form, and one in the short.
func newest() []string {
	if long() {
		return suites
	}
	return suites[len(suites)-1:]
}

func onLabs(t *testing.T, suites []string, test func(l *lab, p packages), setup ...func(l *lab)) {
	t.Helper()
	p := under(t)
	needs(t, map[string]string{"systemd-nspawn": "systemd-container", "mmdebstrap": "mmdebstrap", "nsenter": "util-linux", "mke2fs": "e2fsprogs"})
	t.Parallel()
	for _, suite := range suites {
		t.Run(suite, func(t *testing.T) {
			t.Parallel()
			test(boot(t, suite, setup...), p)
		})
	}
}

// boot starts a lab that ends with the test. When the test has failed, the end of
// the lab's journal is shown.
func boot(t *testing.T, suite string, setup ...func(l *lab)) *lab {
	t.Helper()
	root, err := base(suite)
	if err != nil {
		t.Fatal(err)
	}
	l := &lab{t: t, suite: suite, name: "waypoint-lab-" + strings.ToLower(rand.Text()[:8]), journal: newJournal(), patience: bound}
	l.shell = l.enter
	l.dir = filepath.Join("/run", l.name)
	if err := l.mount(root); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if l.nspawn != nil && l.leader != 0 && (t.Failed() || os.Getenv("LAB_KEEP_JOURNAL") != "") {
			l.catchUp()
		}
		l.kill()
		if t.Failed() {
			t.Logf("the journal's end:\n%s", l.journal.tail(80))
		}
		if dir := os.Getenv("LAB_KEEP_JOURNAL"); dir != "" {
			name := filepath.Join(dir, strings.ReplaceAll(t.Name(), "/", "-")+".journal")
			if err := errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(name, []byte(l.journal.tail(1<<30)), 0o644)); err != nil {
				t.Errorf("keep the journal: %v", err)
			}
		}
		if err := l.unmount(); err != nil {
			t.Errorf("take down the lab: %v", err)
		}
	})
	for _, make := range setup {
		make(l)
	}
	l.start()
	return l
}

// mount lays a file system in memory over the base.
func (l *lab) mount(base string) error {
	memory, root := filepath.Join(l.dir, "memory"), l.root()
	if err := errors.Join(os.MkdirAll(memory, 0o700), os.MkdirAll(root, 0o755)); err != nil {
		return err
	}
	if err := unix.Mount("lab", memory, "tmpfs", 0, "mode=0755,size=2g"); err != nil {
		return fmt.Errorf("mount a file system in memory: %w", err)
	}
	upper, work := filepath.Join(memory, "upper"), filepath.Join(memory, "work")
	if err := errors.Join(os.Mkdir(upper, 0o755), os.Mkdir(work, 0o755)); err != nil {
		return err
	}
	if err := unix.Mount("lab", root, "overlay", 0, "lowerdir="+base+",upperdir="+upper+",workdir="+work); err != nil {
		return fmt.Errorf("mount an overlay of %s: %w", base, err)
	}
	// With an id this is not a first boot, which would apply presets.
	id := strings.ReplaceAll(uuid(), "-", "")
	return os.WriteFile(filepath.Join(root, "etc/machine-id"), []byte(id+"\n"), 0o444)
}

func (l *lab) unmount() error {
	var all []error
	dirs := []string{l.root()}
	for _, d := range l.disks {
		dirs = append(dirs, d.at)
	}
	for _, dir := range append(dirs, filepath.Join(l.dir, "memory")) {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			all = append(all, fmt.Errorf("unmount %s: %w", dir, err))
		}
	}
	if len(all) == 0 {
		all = append(all, os.RemoveAll(l.dir))
	}
	return errors.Join(all...)
}

func (l *lab) root() string { return filepath.Join(l.dir, "root") }

func uuid() string {
	text, err := os.ReadFile("/proc/sys/kernel/random/uuid")
	if err != nil {
		panic(err) // Every Linux has it.
	}
	return strings.TrimSpace(string(text))
}

// cgroups are the lab's own, one in each hierarchy that nspawn writes to: v2,
// and systemd's of v1 where the host has both.
func (l *lab) cgroups() []string {
	var all []string
	for _, hierarchy := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified", "/sys/fs/cgroup/systemd"} {
		if _, err := os.Stat(filepath.Join(hierarchy, "cgroup.procs")); err == nil {
			all = append(all, filepath.Join(hierarchy, l.name))
		}
	}
	return all
}

// start boots the lab's file system and returns when systemd has done all that
// a boot starts, without a failure.
func (l *lab) start() {
	l.t.Helper()
	socket := filepath.Join(l.dir, "notify")
	if err := os.Remove(socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		l.t.Fatal(err)
	}
	notify, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		l.t.Fatal(err)
	}
	defer notify.Close()
	// A shell puts itself into the cgroups: there may be one in v1, which a
	// child cannot be started in.
	script := "exec \"$@\""
	for _, dir := range slices.Backward(l.cgroups()) {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			l.t.Fatal(err)
		}
		// Again: what is left of the boot before may just be removing it.
		script = "for i in 1 2 3 4 5 6 7 8 9; do mkdir -p " + dir + " && echo $$ >" + dir + "/cgroup.procs && break; done; " + script
	}
	var console bytes.Buffer
	args := []string{
		"-ec", script, "sh", "systemd-nspawn", "--quiet", "--directory", l.root(), "--machine", l.name,
		"--register=no", "--keep-unit", "--private-network", "--console=pipe", "--resolv-conf=off", "--timezone=off", "--notify-ready=yes",
	}
	for _, d := range l.disks {
		args = append(args, d.binds()...)
	}
	l.nspawn = exec.Command("sh", append(args, "--boot", "systemd.show_status=0")...)
	l.nspawn.Env = append(os.Environ(), "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1", "NOTIFY_SOCKET="+socket)
	l.nspawn.Stdout, l.nspawn.Stderr = &console, &console
	l.nspawn.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := l.nspawn.Start(); err != nil {
		l.t.Fatalf("start systemd-nspawn: %v", err)
	}
	// It says who is PID 1, and later that the boot is done.
	l.leader = 0
	message := make([]byte, 4096)
	if err := notify.SetReadDeadline(time.Now().Add(bound)); err != nil {
		l.t.Fatal(err)
	}
	for ready := false; !ready; {
		n, err := notify.Read(message)
		if err != nil {
			l.kill()
			l.t.Fatalf("%s does not boot: %v\n%s", l.suite, err, console.String())
		}
		for line := range strings.Lines(string(message[:n])) {
			line = strings.TrimSpace(line)
			if pid, ok := strings.CutPrefix(line, "X_NSPAWN_LEADER_PID="); ok {
				l.leader, _ = strconv.Atoi(pid)
			}
			ready = ready || line == "READY=1"
		}
	}
	if l.leader == 0 {
		l.t.Fatal("systemd-nspawn does not say which process is PID 1")
	}
	l.follow()
	if state := l.try("systemctl", "is-system-running", "--wait"); state.stdout != "running" {
		l.t.Fatalf("the lab is %s:\n%s", state.stdout, l.try("systemctl", "--failed", "--no-legend").stdout)
	}
}

// powerOff shuts the lab down as an administrator does; start boots it again.
func (l *lab) powerOff() {
	l.t.Helper()
	l.run("systemctl", "poweroff")
	l.wait()
}

// wait returns when systemd-nspawn has ended, and with it everything inside.
func (l *lab) wait() {
	done := make(chan struct{})
	go func() { l.nspawn.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(2 * bound):
		l.t.Error("the lab does not end: it is killed")
		for _, dir := range l.cgroups() {
			os.WriteFile(filepath.Join(dir, "cgroup.kill"), []byte("1"), 0)
		}
		<-done
	}
	l.nspawn = nil
	l.journal.close()
	for _, dir := range l.cgroups() {
		removeCgroup(dir)
	}
}

// kill ends the lab: nothing in it is worth a clean stop. With PID 1 goes
// everything inside, and systemd-nspawn sees it.
func (l *lab) kill() {
	if l.nspawn == nil {
		return
	}
	if l.leader != 0 {
		unix.Kill(l.leader, unix.SIGKILL)
	} else {
		unix.Kill(l.nspawn.Process.Pid, unix.SIGKILL)
	}
	l.wait()
}

func removeCgroup(dir string) {
	filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && path != dir {
			removeCgroup(path)
			return fs.SkipDir
		}
		return nil
	})
	os.Remove(dir) // What is left over is empty and hurts nobody.
}

// environment is that of commands inside.
var environment = []string{
	"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "TERM=dumb", "LANG=C.UTF-8", "DEBIAN_FRONTEND=noninteractive", "SYSTEMD_PAGER=cat",
}

// enter runs a command in all of the lab's namespaces.
func (l *lab) enter(ctx context.Context, stdin string, args []string) result {
	cmd := l.command(ctx, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &stdout, &stderr
	err := cmd.Run()
	r := result{strings.TrimSpace(stdout.String()), strings.TrimSpace(stderr.String()), cmd.ProcessState.ExitCode()}
	if err != nil && cmd.ProcessState == nil {
		r.code, r.stderr = -1, err.Error()
	}
	return r
}

func (l *lab) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "nsenter", append([]string{"--target", strconv.Itoa(l.leader), "--all", "--"}, args...)...)
	cmd.Env = environment
	cmd.WaitDelay = time.Second // A process that was left behind may hold its output.
	return cmd
}

// try runs a command as root and returns what came of it. The program gives a server
// ten seconds to answer at all, in which a machine may not even have started one: so there
// it is run again until somebody answers.
func (l *lab) try(args ...string) result {
	ctx, cancel := context.WithTimeout(context.Background(), 2*l.patience)
	defer cancel()
	for {
		r := l.shell(ctx, "", args)
		if unreachable := r.code == 5; !unreachable || args[0] != "waypoint" || l.patience == bound {
			return r
		}
	}
}

// run is try for a command that has to succeed; it returns its output.
func (l *lab) run(args ...string) string {
	l.t.Helper()
	r := l.try(args...)
	if r.code != 0 {
		l.t.Fatalf("%s: exit code %d\n%s\n%s", strings.Join(args, " "), r.code, r.stdout, r.stderr)
	}
	return r.stdout
}

// sh runs a script that has to succeed.
func (l *lab) sh(script string) string {
	l.t.Helper()
	return l.run("sh", "-euc", script)
}

// as is try as another user.
func (l *lab) as(user string, args ...string) result {
	return l.try(append([]string{"setpriv", "--reuid=" + user, "--regid=" + user, "--init-groups", "--reset-env", "--"}, args...)...)
}

// begun is a command that runs beside the test.
type begun struct {
	l    *lab
	args []string
	done chan result
}

// begin starts a command; its wait returns what came of it.
func (l *lab) begin(args ...string) *begun {
	b := &begun{l, args, make(chan result, 1)}
	var all sync.WaitGroup
	ctx, cancel := context.WithTimeout(context.Background(), 3*l.patience)
	all.Go(func() { b.done <- l.shell(ctx, "", args) })
	l.t.Cleanup(func() { cancel(); all.Wait() })
	return b
}

func (b *begun) wait() result {
	r := <-b.done
	b.done <- r // for who asks again
	return r
}

// push copies files of the host to /root and returns their paths inside.
func (l *lab) push(files ...string) []string {
	l.t.Helper()
	var inside []string
	for _, f := range files {
		path := filepath.Join("/root", filepath.Base(f))
		text, err := os.ReadFile(f)
		if err != nil {
			l.t.Fatal(err)
		}
		l.place(path, string(text), 0o644)
		inside = append(inside, path)
	}
	return inside
}

// place makes a file inside without a process that is seen there.
func (l *lab) place(path, text string, mode fs.FileMode) {
	l.t.Helper()
	// By way of PID 1: what is mounted inside is seen from there.
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/root%s", l.leader, path), []byte(text), mode); err != nil {
		l.t.Fatal(err)
	}
}

// write makes a file inside.
func (l *lab) write(path, text string, mode fs.FileMode) {
	l.t.Helper()
	l.sh(fmt.Sprintf("umask 077; cat >%[1]s <<'=EOF='\n%[2]s\n=EOF=\nchmod %#[3]o %[1]s", path, strings.TrimSuffix(text, "\n"), mode))
}

// await returns when the condition holds; it is asked again with each line
// of the journal, and now and then for what nobody logs: where it takes long to
// ask, less often.
func (l *lab) await(what string, condition func() bool) {
	l.t.Helper()
	l.patiently(l.patience, what, condition)
}

// patiently is await for what may take longer.
func (l *lab) patiently(bound time.Duration, what string, condition func() bool) {
	l.t.Helper()
	deadline := time.NewTimer(bound)
	defer deadline.Stop()
	for {
		news, asked := l.journal.news(), time.Now()
		if condition() {
			return
		}
		select {
		case <-news:
		case <-time.After(max(100*time.Millisecond, time.Since(asked))):
		case <-deadline.C:
			l.t.Fatalf("within %s it did not come to this: %s", bound, what)
		}
	}
}

// part runs a part of a test under a name of its own.
func (l *lab) part(name string, test func()) {
	whole := l.t
	defer func() { l.t = whole }()
	whole.Run(name, func(t *testing.T) {
		l.t = t
		test()
	})
}

// equal fails the test where the two differ.
func equal[T comparable](l *lab, what string, got, want T) {
	l.t.Helper()
	if got != want {
		l.t.Errorf("%s:\n got %v\nwant %v", what, got, want)
	}
}

// contains fails the test where a text is not in another.
func contains(l *lab, what, text, part string) {
	l.t.Helper()
	if !strings.Contains(text, part) {
		l.t.Errorf("%s: %q is not in:\n%s", what, part, text)
	}
}

// decode reads the JSON that a command prints.
func decode[T any](l *lab, args ...string) T {
	l.t.Helper()
	var v T
	out := l.run(args...)
	if err := json.Unmarshal([]byte(out), &v); err != nil {
		l.t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, cmp.Or(out, "(nothing)"))
	}
	return v
}
