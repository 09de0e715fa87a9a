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

// builtFor builds the program as one that speaks other versions of the protocol.
func builtFor(t *testing.T, min, max int) string {
	t.Helper()
	dir := t.TempDir()
	source, err := filepath.Abs("../../mux/wire/wire.go")
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(source)
	if err != nil {
		t.Fatal(err)
	}
	altered := string(text)
	for name, is := range map[string][2]int{"VersionMin": {wire.VersionMin, min}, "VersionMax": {wire.VersionMax, max}} {
		was := fmt.Sprintf("\t%s = %d\n", name, is[0])
		if strings.Count(altered, was) != 1 {
			t.Fatalf("%s does not say %q once", source, was)
		}
		altered = strings.Replace(altered, was, fmt.Sprintf("\t%s = %d\n", name, is[1]), 1)
	}
	overlay, err := json.Marshal(map[string]any{"Replace": map[string]string{source: filepath.Join(dir, "wire.go")}})
	if err != nil {
		t.Fatal(err)
	}
	for name, body := range map[string]string{"wire.go": altered, "overlay.json": string(overlay)} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(body), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	program := filepath.Join(dir, "waypoint")
	build := exec.Command("go", "build", "-overlay", filepath.Join(dir, "overlay.json"), "-o", program, ".")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	return program
}

// releases are programs of two releases, with a directory of their own.
type releases struct {
	t   *testing.T
	dir string
}

func (b *releases) command(program string, args ...string) *exec.Cmd {
	cmd := exec.Command(program, args...)
	cmd.Env = append(os.Environ(), "HOME="+b.dir, "XDG_STATE_HOME="+b.dir, "XDG_CONFIG_HOME="+b.dir,
		"WAYPOINT_SERVER_ADDR=unix://"+filepath.Join(b.dir, "sock"), "WAYPOINT_LOG_FORMAT=text")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

// start runs a program until the test's end, or until stop, which ends it in good order.
// What it says is in the file NAME.log.
func (b *releases) start(name, program string, args ...string) (stop func()) {
	b.t.Helper()
	log, err := os.OpenFile(filepath.Join(b.dir, name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		b.t.Fatal(err)
	}
	defer log.Close()
	cmd := b.command(program, args...)
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
func (b *releases) serve(program string) (stop func()) {
	b.t.Helper()
	stop = b.start("server", program, "server", "run", "--state-dir", filepath.Join(b.dir, "server"), "--listen", "unix://"+filepath.Join(b.dir, "sock"))
	b.await("the server is there", func() bool { return b.command(program, "server", "status").Run() == nil })
	return stop
}

func (b *releases) await(what string, cond func() bool) {
	b.t.Helper()
	for end := time.Now().Add(time.Minute); !cond(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			b.t.Fatalf("timed out waiting until %s", what)
		}
	}
}

func (b *releases) says(name string) string {
	text, _ := os.ReadFile(filepath.Join(b.dir, name+".log"))
	return string(text)
}

func (b *releases) must(program string, args ...string) string {
	b.t.Helper()
	out, err := b.command(program, args...).CombinedOutput()
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
	old, both, new := builtFor(t, 1, 1), builtFor(t, 1, 2), builtFor(t, 2, 3)

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
			b := &releases{t, t.TempDir()}
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
		b := &releases{t, t.TempDir()}
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
