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
