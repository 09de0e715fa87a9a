package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/waypointd/waypoint/daemon/store"
	"github.com/waypointd/waypoint/mux/wire"
)

// bigState makes the state directory of a server with some megabytes, of which
// each store says which it is.
func bigState(t *testing.T, dir, which string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	s, err := store.Open(t.Context(), filepath.Join(dir, "waypoint.db"), store.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for i := range 100 {
		if err := s.Update(t.Context(), func(tx *store.Tx) error {
			return errors.Join(tx.PutSetting("server_id", which), tx.PutBlobChunk(fmt.Sprint(which, i), 0, bytes.Repeat([]byte{byte(i)}, 60_000)))
		}); err != nil {
			t.Fatal(err)
		}
	}
}

// whichState is what bigState was told, of a store that is whole.
func whichState(t *testing.T, path string) string {
	t.Helper()
	s, err := store.Open(t.Context(), path, store.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	id, err := s.Setting(t.Context(), "server_id")
	if err != nil {
		t.Fatal(err)
	}
	copied := filepath.Join(t.TempDir(), "copy")
	if err := os.WriteFile(copied, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.Snapshot(t.Context(), copied), store.CheckSnapshot(t.Context(), copied, id)); err != nil {
		t.Fatal(err)
	}
	return id
}

// itself runs this test's binary under its name, as scripts have it.
func itself(t *testing.T, dir string, args ...string) *exec.Cmd {
	t.Helper()
	path, err := exec.LookPath("waypoint")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path, args...)
	cmd.Env = append(os.Environ(), "HOME="+dir, "XDG_STATE_HOME="+dir, "XDG_CONFIG_HOME="+dir, "WAYPOINT_SERVER_ADDR=unix://"+filepath.Join(dir, "sock"), "GORACE=atexit_sleep_ms=0")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

// serving starts a server and returns when it answers.
func serving(t *testing.T, dir, state string) *exec.Cmd {
	t.Helper()
	cmd := itself(t, dir, "server", "run", "--state-dir", state, "--listen", "unix://"+filepath.Join(dir, "sock"))
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for itself(t, dir, "server", "status").Run() != nil {
		if ctx.Err() != nil {
			t.Fatal("the server does not answer")
		}
	}
	return cmd
}

func wholeSnapshot(t *testing.T, path string) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	check := wire.NewSnapshotCheck()
	check.Write(b)
	if _, err := check.Header(); err != nil {
		t.Errorf("%s: %v", path, err)
	}
}

func filesIn(t *testing.T, dir string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func killRounds() int {
	if testing.Short() {
		return 4
	}
	return 12
}

// A command that is killed while it takes a snapshot leaves nothing, or all of it;
// a server that is killed meanwhile leaves nothing either once it is back, and the
// command says that it has failed. Between the deaths all goes on.
func TestSnapshotKilled(t *testing.T) {
	if systemSocketExists() {
		t.Skip("a packaged server runs on this machine")
	}
	dir, err := os.MkdirTemp("/tmp", "waypoint-kill-") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	state, target := filepath.Join(dir, "state"), filepath.Join(dir, "target")
	bigState(t, state, "ONE")
	if err := os.Mkdir(target, 0o700); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(target, "snap.db")
	server := serving(t, dir, state)
	began := time.Now()
	if out, err := itself(t, dir, "server", "snapshot", file).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	took, killed, failed := time.Since(began), 0, 0
	for round := range killRounds() {
		if round%3 == 0 {
			if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
				t.Fatal(err)
			}
		}
		cmd := itself(t, dir, "server", "snapshot", file)
		var said bytes.Buffer
		cmd.Stderr = &said
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		victim := cmd.Process
		if round%2 == 1 {
			victim = server.Process
		}
		timer := time.AfterFunc(rand.N(took), func() { victim.Kill() })
		if round%2 == 1 { // a command that had asked for nothing yet waits for the next one
			server.Wait()
			server = serving(t, dir, state)
		}
		err := cmd.Wait()
		timer.Stop()
		if round%2 == 1 {
			if err != nil {
				failed++
				if !strings.Contains(said.String(), "take snapshot: ") {
					t.Errorf("round %d: the server died, and the command says %q (%v)", round, &said, err)
				}
				if names := strings.Join(filesIn(t, state), " "); strings.Contains(names, ".tmp") {
					t.Errorf("round %d: the next server leaves %s", round, names)
				}
			}
		} else if err != nil {
			killed++
		}
		switch names := filesIn(t, target); {
		case len(names) > 1 || len(names) == 1 && names[0] != "snap.db":
			t.Errorf("round %d: there are %v", round, names)
		case len(names) == 1:
			wholeSnapshot(t, file)
		case err == nil:
			t.Errorf("round %d: there is no snapshot", round)
		}
	}
	t.Logf("%d commands were killed before their end, %d failed as the server was", killed, failed)
	// The copy of a command that was killed goes when the server notices.
	server.Process.Signal(syscall.SIGTERM)
	if err := server.Wait(); err != nil {
		t.Error(err)
	}
	if names := strings.Join(filesIn(t, state), " "); strings.Contains(names, ".tmp") {
		t.Errorf("in the state directory are %s", names)
	}
}

// A restore that is killed at any moment leaves the store before or the new one,
// whole, and no trace once a server or another restore has come.
func TestRestoreKilled(t *testing.T) {
	dir := t.TempDir()
	state, other := filepath.Join(dir, "state"), filepath.Join(dir, "other")
	bigState(t, state, "BEFORE")
	bigState(t, other, "AFTER")
	sock := filepath.Join(dir, "sock")
	if len(sock) > 100 {
		t.Skipf("SKIPPED: %s is too long for a socket", sock)
	}
	if systemSocketExists() {
		t.Skip("a packaged server runs on this machine")
	}
	server := serving(t, dir, other)
	snap := filepath.Join(dir, "snap.db")
	if out, err := itself(t, dir, "server", "snapshot", snap).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	server.Process.Kill()
	server.Wait()
	path := filepath.Join(state, "waypoint.db")
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var took time.Duration
	counts := map[string]int{}
	for round := range killRounds() + 1 {
		cmd := itself(t, dir, "server", "restore", snap, "--state-dir", state)
		began := time.Now()
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		timer := time.AfterFunc(time.Hour, func() {})
		if round > 0 { // the first one is left alone, and says how long it takes
			timer = time.AfterFunc(rand.N(took), func() { cmd.Process.Kill() })
		}
		err := cmd.Wait()
		timer.Stop()
		took = max(took, time.Since(began))
		which := whichState(t, path)
		if counts[which]++; which != "BEFORE" && which != "AFTER" || err == nil && which != "AFTER" {
			t.Fatalf("round %d: the store is that of %q (%v)", round, which, err)
		}
		kept := 0
		for _, name := range filesIn(t, state) {
			switch {
			case strings.HasPrefix(name, "waypoint.db.before-restore-"):
				kept++
				if whichState(t, filepath.Join(state, name)) != "BEFORE" {
					t.Errorf("round %d: kept is another store", round)
				}
				if err := os.Remove(filepath.Join(state, name)); err != nil {
					t.Fatal(err)
				}
			case strings.HasPrefix(name, ".tmp-"): // until the next one comes
			case name != "waypoint.db" && name != "lock" && name != "version":
				t.Errorf("round %d: there is %s", round, name)
			}
		}
		if want := map[string]int{"AFTER": 1}[which]; kept != want {
			t.Errorf("round %d: the store is %s, and %d are kept", round, which, kept)
		}
		if err := os.WriteFile(path, before, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d left the store before, %d the new one", counts["BEFORE"], counts["AFTER"])
	if out, err := itself(t, dir, "server", "restore", filepath.Join(dir, "nothing"), "--state-dir", state).CombinedOutput(); err == nil {
		t.Fatalf("%s", out)
	}
	if out, err := itself(t, dir, "server", "restore", snap, "--state-dir", state).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, name := range filesIn(t, state) {
		if strings.HasPrefix(name, ".tmp-") {
			t.Errorf("%s is still there", name)
		}
	}
}
