package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/waypointd/waypoint/mux/wire"
)

// anyVersions builds the program as one whose name says which versions of the protocol
// it speaks: waypoint-1-2. It is built once, since that takes longer than all that is done with it.
func anyVersions(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	folder, err := filepath.Abs("../../mux/wire")
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(folder, "wire.go"))
	if err != nil {
		t.Fatal(err)
	}
	was := fmt.Sprintf("const (\n\tVersionMin = %d\n\tVersionMax = %d\n)\n", wire.VersionMin, wire.VersionMax)
	altered := strings.Replace(string(text), was, "var VersionMin, VersionMax = versions()\n", 1)
	if altered == string(text) {
		t.Fatalf("wire.go does not say %q", was)
	}
	const told = `package wire

import (
	"fmt"
	"os"
	"path/filepath"
)

func versions() (low, high int) {
	name, err := os.Readlink("/proc/self/exe")
	if err == nil {
		_, err = fmt.Sscanf(filepath.Base(name), "waypoint-%d-%d", &low, &high)
	}
	if err != nil {
		panic(err)
	}
	return low, high
}
`
	overlay := map[string]map[string]string{"Replace": {}}
	for name, body := range map[string]string{"wire.go": altered, "versions_told.go": told} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(body), 0o600); err != nil {
			t.Fatal(err)
		}
		overlay["Replace"][filepath.Join(folder, name)] = path
	}
	list, err := json.Marshal(overlay)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "overlay.json"), list, 0o600); err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(dir, "waypoint")
	build := exec.Command("go", "build", "-buildvcs=false", "-ldflags=-s -w", "-overlay", filepath.Join(dir, "overlay.json"), "-o", program, ".")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	return program
}

// releases are programs of several releases, with a directory of their own. A
// release is called by the versions that it speaks.
type releases struct {
	t       *testing.T
	dir     string
	program string
}

func (b *releases) command(release string, args ...string) *exec.Cmd {
	b.t.Helper()
	program := b.program + "-" + release
	if err := os.Link(b.program, program); err != nil && !errors.Is(err, os.ErrExist) {
		b.t.Fatal(err)
	}
	cmd := exec.Command(program, args...)
	cmd.Env = append(os.Environ(), "HOME="+b.dir, "XDG_STATE_HOME="+b.dir, "XDG_CONFIG_HOME="+b.dir,
		"WAYPOINT_SERVER_ADDR=unix://"+filepath.Join(b.dir, "sock"), "WAYPOINT_LOG_FORMAT=text")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

// start runs a program until the test's end, or until stop, which ends it in good order.
// What it says is in the file NAME.log.
func (b *releases) start(name, release string, args ...string) (stop func()) {
	b.t.Helper()
	cmd := b.run(name, release, args...)
	return func() {
		cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil {
			b.t.Errorf("%s: %v", name, err)
		}
	}
}

// run is start of what may be killed.
func (b *releases) run(name, release string, args ...string) *exec.Cmd {
	b.t.Helper()
	log, err := os.OpenFile(filepath.Join(b.dir, name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		b.t.Fatal(err)
	}
	defer log.Close()
	cmd := b.command(release, args...)
	cmd.Stderr = log
	if err := cmd.Start(); err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	return cmd
}

// serve starts a server, which is there when a command line of its own is answered.
func (b *releases) serve(release string) (stop func()) {
	b.t.Helper()
	stop = b.start("server", release, "server", "run", "--state-dir", filepath.Join(b.dir, "server"), "--listen", "unix://"+filepath.Join(b.dir, "sock"))
	b.await("the server is there", func() bool { return b.command(release, "server", "status").Run() == nil })
	return stop
}

func (b *releases) await(what string, cond func() bool) {
	b.t.Helper()
	end := time.Now().Add(time.Minute)
	for pause := between; !cond(); pause = min(2*pause, rarely) {
		if time.Now().After(end) {
			b.t.Fatalf("timed out waiting until %s", what)
		}
		time.Sleep(pause)
	}
}

func (b *releases) says(name string) string {
	text, _ := os.ReadFile(filepath.Join(b.dir, name+".log"))
	return string(text)
}

func (b *releases) must(release string, args ...string) string {
	b.t.Helper()
	out, err := b.command(release, args...).CombinedOutput()
	if err != nil {
		b.t.Fatalf("waypoint %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// Programs of neighbouring releases speak in the version that they share. Of those that
// share none the one that asks says both ranges and what to upgrade; a runner keeps
// its jobs and their output meanwhile, asks on, and goes on with the next server.
func TestReleases(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the program")
	}
	if _, err := exec.LookPath("go"); err != nil {
		t.Skip("there is no go to build the program with")
	}
	const old, both, new = "1-1", "1-2", "2-3"
	program := anyVersions(t)

	t.Run("command line", func(t *testing.T) {
		for _, c := range []struct {
			server, client string
			want           []string // of the refusal; none: it works
		}{
			{old, both, nil},
			{both, old, nil},
			{both, new, nil},
			{new, both, nil},
			{old, new, []string{"the command line", "speaks 2 to 3", "the server", "speaks 1 to 1", "upgrade the server"}},
			{new, old, []string{"the command line", "speaks 1 to 1", "the server", "speaks 2 to 3", "upgrade the command line"}},
		} {
			b := &releases{t, t.TempDir(), program}
			stop := b.serve(c.server)
			out, err := b.command(c.client, "job", "list").CombinedOutput()
			if (err == nil) != (c.want == nil) {
				t.Errorf("%v\n%s", err, out)
			}
			for _, text := range c.want {
				if !strings.Contains(string(out), text) {
					t.Errorf("it does not say %q:\n%s", text, out)
				}
			}
			stop()
		}
	})

	t.Run("runner", func(t *testing.T) {
		b := &releases{t, t.TempDir(), program}
		step := filepath.Join(b.dir, "step")
		stop := b.serve(old)
		b.start("runner", old, "runner", "agent", "--id", "r1", "--state-dir", filepath.Join(b.dir, "runner"))
		b.await("it is adopted", func() bool { return b.command(old, "runner", "adopt", "r1").Run() == nil })
		job := strings.TrimSpace(b.must(old, "run", "--no-local", "--detach", "--", "sh", "-c",
			"echo before; while [ ! -e "+step+" ]; do sleep 0.02; done; echo behind"))
		b.await("it runs", func() bool { return strings.Contains(b.must(old, "job", "stream", "--no-follow", job), "before") })
		stop()

		stop = b.serve(new)
		b.await("it is refused", func() bool {
			said := b.says("runner")
			for _, text := range []string{"the runner", "speaks 1 to 1", "the server", "speaks 2 to 3", "upgrade the runner"} {
				if !strings.Contains(said, text) {
					return false
				}
			}
			return true
		})
		if err := os.WriteFile(step, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		b.await("the job ends there", func() bool { return strings.Contains(b.says("runner"), "job ended") })
		stop()

		stop = b.serve(both)
		b.must(old, "job", "wait", job)
		if out := b.must(old, "job", "stream", job); out != "before\nbehind\n" {
			t.Errorf("output %q", out)
		}
		b.must(new, "run", "--no-local", "--", "true")
		stop()
	})

	// An agent whose supervisor shares no version with it, after an upgrade and after a downgrade:
	// the jobs go on, what they say and how they end is reported, and no others are taken until the
	// last of them has ended, and with it that supervisor.
	t.Run("supervisor", func(t *testing.T) {
		for _, c := range []struct{ first, then, managed string }{
			{old, new, "--managed"},
			{new, old, ""},
		} {
			b := &releases{t, t.TempDir(), program}
			step := filepath.Join(b.dir, "step")
			b.serve("1-3")
			jobs, state := filepath.Join(b.dir, "jobs"), filepath.Join(b.dir, "runner")
			supervise := func(release string) {
				if c.managed != "" {
					b.start("jobs", release, "runner", "supervisor", "--dir", jobs)
				}
			}
			agent := func(release string) *exec.Cmd {
				args := []string{"runner", "agent", "--id", "r1", "--concurrency", "4", "--state-dir", state, "--jobs-dir", jobs}
				if c.managed != "" {
					args = append(args, c.managed)
				}
				return b.run("runner", release, args...)
			}
			run := func(script string) string {
				return strings.TrimSpace(b.must("1-3", "run", "--no-local", "--detach", "--", "sh", "-c", script))
			}
			supervise(c.first)
			before := agent(c.first)
			b.await("it is adopted", func() bool { return b.command("1-3", "runner", "adopt", "r1").Run() == nil })
			var running [2]string
			for i := range running {
				s := step + strconv.Itoa(i)
				running[i] = run("echo before; while [ ! -e " + s + " ]; do sleep 0.02; done; echo behind; exit 3")
				b.await("it runs", func() bool {
					return strings.Contains(b.must("1-3", "job", "stream", "--no-follow", running[i]), "before")
				})
			}
			before.Process.Kill()
			before.Wait()
			agent(c.then)
			b.await("it says so on its host", func() bool {
				out, _ := b.command(c.then, "runner", "status", "--state-dir", state).CombinedOutput()
				return strings.Contains(string(out), "of another release: its jobs go on") && strings.Contains(string(out), "speaks 1 to 1") &&
					strings.Contains(string(out), "speaks 2 to 3") && strings.Contains(string(out), "Gets jobs:") && !strings.Contains(string(out), "yes: ")
			})
			late := run("echo late")
			b.await("the job that waits says why", func() bool {
				return strings.Contains(b.must("1-3", "job", "why", late), "the supervisor of the runner's jobs is of another release")
			})
			b.await("its runner says why", func() bool {
				return strings.Contains(b.must("1-3", "runner", "inspect", "r1"), "the supervisor of the runner's jobs is of another release")
			})
			for i, id := range running {
				if err := os.WriteFile(step+strconv.Itoa(i), nil, 0o600); err != nil {
					t.Fatal(err)
				}
				b.await("it has ended", func() bool { return strings.Contains(b.must("1-3", "job", "inspect", "--json", id), `"exit_code": 3`) })
				if out, _ := b.command("1-3", "job", "stream", id).Output(); string(out) != "before\nbehind\n" {
					t.Errorf("output %q", out)
				}
			}
			b.await("it retires", func() bool { return c.managed == "" || strings.Contains(b.says("jobs"), "supervisor stopping") })
			supervise(c.then)
			b.must("1-3", "job", "wait", late)
			if out := b.must("1-3", "job", "stream", late); out != "late\n" {
				t.Errorf("output %q", out)
			}
			if n := strings.Count(b.says("runner"), "cannot be spoken with"); n != 1 {
				t.Errorf("it says %d times what is wrong:\n%s", n, b.says("runner"))
			}
		}
	})
}
