package daemon_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/waypointd/waypoint/daemon"
	"github.com/waypointd/waypoint/daemon/daemontest"
	"github.com/waypointd/waypoint/mux/wire"
)

// A runner that comes to a restored server holds what is of a later time than the
// snapshot. What the server knows goes on or is resolved, the rest is dropped; a job
// that was queued runs, once more if it has run since.
func TestRunnerOfALaterTime(t *testing.T) {
	s := daemontest.Start(t, slowly)
	c := s.Client(t)
	r := s.Adopted(t, "keeper", nil)
	r.Disconnect()
	r.AwaitEnd()
	r.Hello.Concurrency = 4
	r.MustConnect()
	r.MustBegin()
	ended := submit(t, c, run())[0] // runs at the snapshot, has ended since
	endedAt := r.MustStart()
	confirmed := submit(t, c, run())[0] // the same, and the runner has nothing of it any more
	confirmedAt := r.MustStart()
	given := submit(t, c, run())[0] // assigned at the snapshot, started since
	givenAt := r.MustAssign()
	for _, id := range []string{ended.ID, confirmed.ID} {
		s.AwaitJob(t, id, running)
	}
	queued := submit(t, c, run(func(j *wire.JobSpec) { j.Target = wire.Target{ID: "keeper"}; j.DependsOn = []string{given.ID} }))[0]
	shot := snapshot(t, c)

	r.Say(wire.WorkEvent{Ack: &givenAt.JobRef})
	if o := r.MustOrder(); o.Start == nil || *o.Start != givenAt.JobRef {
		t.Fatalf("%+v", o)
	}
	r.MustFinish(confirmedAt.JobRef, "", daemontest.Succeeded())
	unknown := submit(t, c, run())[0]
	unknownAt := r.MustStart()
	s.Stop()

	dir := filepath.Join(t.TempDir(), "restored")
	if _, err := restore(dir, shot); err != nil {
		t.Fatal(err)
	}
	cfg := slowly
	cfg.StateDir = dir
	n := daemontest.Start(t, cfg)
	nc := n.Client(t)
	back := n.Runner(t, "keeper", nil)
	back.Key, back.Offers, back.Hello.Concurrency = r.Key, r.Offers, 4
	back.MustConnect()
	begun := back.MustBegin(wire.Held{JobRef: endedAt.JobRef, Started: true}, wire.Held{JobRef: givenAt.JobRef, Started: true}, wire.Held{JobRef: unknownAt.JobRef, Started: true})
	if want := []wire.JobRef{unknownAt.JobRef}; !slices.Equal(begun.Drop, want) || len(begun.Keep) != 2 {
		t.Fatalf("keep %v, drop %v", begun.Keep, begun.Drop)
	}
	back.MustFinish(endedAt.JobRef, "to its end\n", daemontest.Succeeded())
	if j := n.AwaitJob(t, ended.ID, func(j wire.Job) bool { return j.State == wire.Success }); output(t, nc, j.ID) != "to its end\n" {
		t.Errorf("%+v", j)
	}
	if j := n.AwaitJob(t, confirmed.ID, func(j wire.Job) bool { return !j.FinishedAt.IsZero() }); j.Reason != wire.ReasonRunnerLost {
		t.Errorf("%+v", j)
	}
	back.MustFinish(givenAt.JobRef, "", daemontest.Succeeded())
	if a := back.MustStart(); a.Job != queued.ID {
		t.Errorf("after what it depends on comes %s, not %s", a.Job, queued.ID)
	}
	if _, err := nc.Job(t.Context(), unknown.ID); wire.KindOf(err) != wire.NotFound {
		t.Errorf("a job from after the snapshot: %v", err)
	}
	// A report of what was dropped is refused, so a runner that missed the drop gives it up.
	if err := back.Finish(unknownAt.JobRef, "", daemontest.Succeeded()); wire.KindOf(err) != wire.NotFound && wire.KindOf(err) != wire.Conflict {
		t.Errorf("a report of it: %v", err)
	}
}

// holding is a state directory with a store whose only setting besides its own is
// the server's id; the returned function fails the test unless it is as it was.
func holding(t *testing.T, dir string, shot []byte) (same func(what string)) {
	t.Helper()
	if _, err := restore(dir, shot); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "waypoint.db")
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return func(what string) {
		t.Helper()
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, e := range entries {
			names = append(names, e.Name())
		}
		after, err := os.ReadFile(path)
		if err != nil || !bytes.Equal(before, after) || strings.Join(names, " ") != "lock version waypoint.db" {
			t.Fatalf("%s: the directory has %v, the store is the same: %t (%v)", what, names, bytes.Equal(before, after), err)
		}
	}
}

// However full the disk is, a restore is done or has changed nothing.
func TestRestoreOnFullDisk(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("SKIPPED: only root can mount a small file system")
	}
	s := daemontest.Start(t, slowly)
	putBlob(t, s.Client(t), bytes.Repeat([]byte("0123456789abcdef"), 20_000))
	shot := snapshot(t, s.Client(t))
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=8m,mode=0700"); err != nil {
		t.Skipf("SKIPPED: mount: %v", err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	same := holding(t, dir, shot)
	refused := 0
	for room := 0; ; room += 64 << 10 {
		var st unix.Statfs_t
		if err := unix.Statfs(dir, &st); err != nil {
			t.Fatal(err)
		}
		used := int64(st.Blocks-st.Bfree) * st.Bsize
		if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_REMOUNT, fmt.Sprintf("size=%d", used+int64(room))); err != nil {
			t.Fatal(err)
		}
		_, err := restore(dir, shot)
		if err == nil {
			break
		}
		if wire.KindOf(err) != wire.Unavailable || !strings.Contains(err.Error(), "no space left in "+dir+"; the store is as it was") {
			t.Fatalf("with room for %d bytes: %v", room, err)
		}
		same(fmt.Sprintf("with room for %d bytes", room))
		refused++
	}
	if refused < 5 {
		t.Errorf("refused %d times only", refused)
	}
}

// FuzzSnapshot changes a snapshot anywhere, and seals some of those again as if
// they were meant: whatever it is, it is refused with a kind of its own and changes
// nothing, or it is a store that a server opens.
func FuzzSnapshot(f *testing.F) {
	s := daemontest.Start(f, slowly)
	putBlob(f, s.Client(f), bytes.Repeat([]byte("0123456789abcdef"), 300))
	submit(f, s.Client(f), run())
	shot := snapshot(f, s.Client(f))
	check := wire.NewSnapshotCheck()
	check.Write(shot)
	h, err := check.Header()
	if err != nil {
		f.Fatal(err)
	}
	s.Stop()
	size := uint32(h.Size)
	for _, at := range []uint32{0, 16, 18, 20, 24, 28, 40, 52, 92, 100, 103, 105, 108, 4096, 8192, 8195, 8200, 16384, size / 2, size - 8192, size - 1, size + 1, uint32(len(shot)) - 2} {
		f.Add(at, []byte{0xff}, uint32(0), false, 0)
		f.Add(at, []byte{0xff, 0, 0x7f}, uint32(0), true, 0)
		f.Add(at, []byte{}, at, false, 0)
		f.Add(at, []byte{}, at, true, 0)
	}
	f.Add(uint32(0), []byte{}, uint32(0), true, 1) // of a newer format
	f.Fuzz(func(t *testing.T, at uint32, with []byte, cut uint32, seal bool, format int) {
		bad := bytes.Clone(shot)
		if seal {
			bad = bad[:h.Size]
		}
		if n := uint32(len(bad)); cut > 0 {
			bad = bad[:cut%n]
		}
		if len(bad) > 0 {
			copy(bad[at%uint32(len(bad)):], with)
		}
		if seal {
			changed := h
			changed.Size, changed.Format = int64(len(bad)), wire.SnapshotFormat+format
			sum := sha256.New()
			sum.Write(bad)
			line, err := changed.Seal(sum)
			if err != nil {
				t.Fatal(err)
			}
			bad = append(bad, line...)
		}
		dir := t.TempDir()
		same := holding(t, dir, shot)
		if _, err := restore(dir, bad); err != nil {
			if kind := wire.KindOf(err); kind != wire.BadUsage && kind != wire.Conflict {
				t.Fatalf("%s: %v", kind, err)
			}
			same(err.Error())
			return
		}
		if !seal && !bytes.Equal(bad, shot) {
			t.Fatal("a changed snapshot was taken")
		}
		n, err := daemon.New(context.Background(), daemon.Config{StateDir: dir})
		if err != nil {
			t.Logf("a meant change is no store: %v", err)
			return
		}
		if err := n.Close(); err != nil {
			t.Fatal(err)
		}
	})
}
