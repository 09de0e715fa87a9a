package runner

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/waypointd/waypoint/mux/wire"
)

func TestLocal(t *testing.T) {
	root := t.TempDir()
	if err := os.Mkdir(filepath.Join(root, "sub"), 0o700); err != nil {
		t.Fatal(err)
	}
	b := newBench(t, func(c *Config) {
		c.Kind, c.ID, c.Root = wire.KindLocal, "", root
		c.BaseEnv = []string{"MINE=1", "PATH=" + os.Getenv("PATH")}
	})
	b.s.runnerID = "cli-7"
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	b.start()
	id, err := b.r.ID(t.Context())
	if err != nil || id != "cli-7" {
		t.Fatalf("id %q, %v", id, err)
	}
	if _, err := new(Runner).ID(ctx); err == nil {
		t.Error("ID of a runner that is not connected")
	}
	b.connected()
	a := script("pwd; echo $MINE")
	a.Spec.Dir = "sub"
	a.Spec.Source = &wire.Source{Tree: "sha256:none"} // not for a local runner
	b.s.assign(a)
	j := b.s.ended(a.JobRef)
	want(t, j, wire.Success, "")
	if got, want := string(j.log), filepath.Join(root, "sub")+"\n1\n"; got != want {
		t.Errorf("output %q, want %q", got, want)
	}
	b.gone(a.JobRef)
	if _, err := os.Stat(filepath.Join(root, "sub")); err != nil {
		t.Error(err)
	}
}

// A command line that waits for its runner to begin is told why it does not;
// one that was lost comes back by itself.
func TestLocalRefused(t *testing.T) {
	b := newBench(t, func(c *Config) { c.Kind, c.ID, c.Root = wire.KindLocal, "", t.TempDir() })
	refusal := wire.Errorf(wire.Unauthenticated, "the token is not valid")
	b.s.runnerID, b.s.refuse = "cli-7", refusal
	b.start()
	if err := b.wait(); wire.KindOf(err) != wire.Unauthenticated {
		t.Errorf("Run returned %v", err)
	}
	b.s.change(func() { b.s.refuse = nil })
	b.start().connected()
	b.s.change(func() { b.s.refuse = refusal })
	n, _, _ := b.s.counts()
	b.s.cut()
	b.s.await("it asks again and again", func() bool { return len(b.s.hellos) > n+2 })
	b.s.change(func() { b.s.refuse = nil })
	b.connected()
}
