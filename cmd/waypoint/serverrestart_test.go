package main

import (
	"bytes"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// TestRestartUnderCalls restarts a server again and again behind a socket that
// is held as a service manager holds it: no call fails, each is answered by the
// server before or by the next one, and each job runs once.
func TestRestartUnderCalls(t *testing.T) {
	restarts := 20
	if testing.Short() {
		restarts = 8
	}
	dir := t.TempDir()
	socket := filepath.Join(dir, "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	held, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	program, err := exec.LookPath("waypoint") // this test's binary under its name, as scripts have it
	if err != nil {
		t.Fatal(err)
	}
	env := append(os.Environ(), "HOME="+dir, "XDG_STATE_HOME="+dir, "XDG_CONFIG_HOME="+dir, "WAYPOINT_SERVER_ADDR=unix://"+socket, "GORACE=atexit_sleep_ms=0")
	serve := func() (end func()) {
		// The number of this process is in its environment, so a shell puts it there.
		cmd := exec.Command("sh", "-c", `LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=operators exec "$0" server run --state-dir "$1"`, program, filepath.Join(dir, "state"))
		var said bytes.Buffer
		cmd.Env, cmd.ExtraFiles, cmd.Stderr = env, []*os.File{held}, &said
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		return func() {
			cmd.Process.Signal(syscall.SIGTERM)
			// One that the signal meets before it serves ends by it, and has done nothing.
			if err := cmd.Wait(); err != nil && cmd.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGTERM {
				t.Errorf("server: %v\n%s", err, said.Bytes())
			}
		}
	}
	call := func(args ...string) string {
		cmd := exec.Command(program, args...)
		var said bytes.Buffer
		cmd.Env, cmd.Stderr = env, &said
		out, err := cmd.Output()
		if err != nil {
			t.Errorf("waypoint %s: %v\n%s", strings.Join(args, " "), err, said.Bytes())
		}
		return string(out)
	}

	over := make(chan bool)
	answered := make(chan bool) // received while over is open
	var callers sync.WaitGroup
	var ran int // jobs of the second caller, read when callers have ended
	for i, args := range [][]string{{"job", "list"}, {"run", "--local", "--", "echo", "hello"}, {"run", "--no-local", "--detach", "--", "true"}} {
		callers.Go(func() {
			for {
				out := call(args...)
				if i == 1 {
					ran++
					if out != "hello\n" {
						t.Errorf("job said %q", out)
					}
				}
				select {
				case answered <- true:
				case <-over:
					return
				}
			}
		})
	}
	end := serve()
	for range restarts {
		for range 3 { // so that some are under way at each moment
			select {
			case <-answered:
			case <-time.After(bound):
				t.Fatal("no call is answered")
			}
		}
		end()
		end = serve()
	}
	close(over)
	callers.Wait()
	if got := strings.Count(call("job", "list", "--state", "success", "--limit", "500"), "run "); got != ran {
		t.Errorf("%d jobs have run, %d were asked for", got, ran)
	}
	end()
}
