package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/waypointd/waypoint/mux/wire"
)

// speaks is the variable of the environment that tells a program of
// anyVersions which versions of the protocol it speaks: 1-2.
const speaks = "WAYPOINT_SPEAKS"

// anyVersions builds the program as one that is told which versions of the protocol
// it speaks. It is built once, since that takes longer than all that is done with it.
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
	// A supervisor is not told, and does not listen to anybody but its agent.
	told := fmt.Sprintf(`package wire

import (
	"fmt"
	"os"
)

func versions() (low, high int) {
	if _, err := fmt.Sscanf(os.Getenv(%q), "%%d-%%d", &low, &high); err != nil {
		return %d, %d
	}
	return low, high
}
`, speaks, wire.VersionMin, wire.VersionMax)
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
	cmd := exec.Command(b.program, args...)
	cmd.Env = append(os.Environ(), speaks+"="+release, "HOME="+b.dir, "XDG_STATE_HOME="+b.dir, "XDG_CONFIG_HOME="+b.dir,
		"WAYPOINT_SERVER_ADDR=unix://"+filepath.Join(b.dir, "sock"), "WAYPOINT_LOG_FORMAT=text")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

// start runs a program until the test's end, or until stop, which ends it in good order.
// What it says is in the file NAME.log.
func (b *releases) start(name, release string, args ...string) (stop func()) {
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
	return func() {
		cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil {
			b.t.Errorf("%s: %v", name, err)
		}
	}
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
}
