package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// TestEndedWhileStarting asks a server, an agent and a supervisor to end at
// every moment of their start: that is a good end, however far they have come.
func TestEndedWhileStarting(t *testing.T) {
	program, err := exec.LookPath("waypoint") // this test's binary under its name, as scripts have it
	if err != nil {
		t.Fatal(err)
	}
	apart := 4 * time.Millisecond
	if testing.Short() {
		apart = 10 * time.Millisecond
	}
	for _, c := range []struct {
		name string
		args func(dir string) []string
	}{
		{"server", func(dir string) []string {
			return []string{"server", "run", "--state-dir", dir, "--listen", "unix://" + filepath.Join(dir, "s")}
		}},
		{"agent", func(dir string) []string {
			return []string{"runner", "agent", "--state-dir", dir, "--id", "r", "--server-addr", "unix://" + filepath.Join(dir, "s")}
		}},
		{"supervisor", func(dir string) []string { return []string{"runner", "supervisor", "--dir", dir} }},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			good := 0
			for after := time.Duration(0); after < 100*time.Millisecond || good == 0; after += apart {
				cmd := exec.Command(program, c.args(dir)...)
				var said bytes.Buffer
				cmd.Env, cmd.Stderr = append(os.Environ(), "HOME="+dir, "GORACE=atexit_sleep_ms=0"), &said
				if err := cmd.Start(); err != nil {
					t.Fatal(err)
				}
				time.Sleep(after) // the moment
				cmd.Process.Signal(syscall.SIGTERM)
				cmd.Wait()
				status := cmd.ProcessState.Sys().(syscall.WaitStatus)
				switch {
				case status.Signaled() && status.Signal() == syscall.SIGTERM && said.Len() == 0: // it had not begun
				case status.Exited() && status.ExitStatus() == 0:
					good++
				default:
					t.Errorf("asked to end after %s: %s\n%s", after, cmd.ProcessState, said.Bytes())
				}
				if t.Failed() {
					return
				}
			}
		})
	}
}
