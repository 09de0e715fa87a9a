package runner

import (
	"maps"
	"os"
	"os/user"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/waypointd/waypoint/mux/wire"
	"github.com/waypointd/waypoint/runner/supervisor"
)

// Jobs that run as a user of their own have all that they need, and what they
// leave is read and cleared away as that of others is.
func TestJobsOfAnotherUser(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can run jobs as another user")
	}
	const name = "games"
	if _, err := user.Lookup(name); err != nil {
		t.Skipf("this system lacks a usual user: %v", err)
	}
	dir, err := os.MkdirTemp("", "runner-user-") // t.TempDir is closed to other users
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	jobs, err := supervisor.New(supervisor.Config{Dir: dir, JobUser: name})
	if err == nil {
		t.Cleanup(func() { jobs.Close() })
		err = os.Chmod(dir, 0o711)
	}
	if err != nil {
		t.Fatal(err)
	}
	b := newBench(t, func(c *Config) { c.Dir, c.Supervisor, c.Concurrency = dir, jobs, 1 }).start().connected()

	build := script(`set -e
		test "$(id -un)" = "$USER"; test "$USER" = games; test -z "$(ls -A)"; test -z "$(ls -A $TMPDIR)"
		cd; touch file; mkdir -m 0 closed; mktemp -d; cd "$OLDPWD"
		mkdir out; echo secret >out/private; chmod 600 out/private; chmod 500 out
		echo name=value >>"$WAYPOINT_OUTPUT"; chmod 0700 .; echo "log" >/dev/stderr`)
	build.Spec.Operation, build.Spec.Output = wire.OpBuild, []string{"out"}
	for round := range 2 {
		b.s.assign(build)
		j := b.s.ended(build.JobRef)
		if j.result.State != wire.Success || j.result.Artifact == nil || !maps.Equal(j.result.Outputs, map[string]string{"name": "value"}) {
			t.Fatalf("round %d: %+v", round, j.result)
		}
		next := script("")
		build.JobRef = next.JobRef
		deploy := script(`set -e; cat "$WAYPOINT_ARTIFACT/out/private"; rm -r "$WAYPOINT_ARTIFACT/out"; test ! -s "$WAYPOINT_OUTPUT"`)
		deploy.Artifact = &wire.Record{Kind: wire.RecordArtifact, Number: 1, Digest: j.result.Artifact.Digest, Size: j.result.Artifact.Size}
		b.s.assign(deploy)
		if j := b.s.ended(deploy.JobRef); j.result.State != wire.Success {
			t.Fatalf("round %d: %+v", round, j.result)
		}
		b.gone(deploy.JobRef)
	}
	closed := script("cat ../" + fileAssignment)
	b.s.assign(closed)
	if j := b.s.ended(closed.JobRef); j.result.State != wire.Failed || strings.Contains(string(j.log), closed.Job) {
		t.Errorf("a job read its assignment: %+v", j.result)
	}
	// What is kept for the next job is nobody else's any more.
	b.gone(closed.JobRef)
	b.stop()
	b.wait()
	slots, err := filepath.Glob(filepath.Join(dir, slotPrefix+"*"))
	if err != nil || len(slots) != 1 {
		t.Fatalf("%d slots, %v", len(slots), err)
	}
	for _, name := range append(b.r.slotDirs(), ".") {
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(slots[0], name), &st); err != nil || st.Uid != 0 || st.Mode&0o7777 != 0o700 {
			t.Errorf("%s belongs to %d and has mode %o, %v", name, st.Uid, st.Mode&0o7777, err)
		}
	}
}
