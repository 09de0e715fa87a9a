package daemon_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/waypointd/waypoint/daemon"
	"github.com/waypointd/waypoint/daemon/daemontest"
	"github.com/waypointd/waypoint/mux/client"
	"github.com/waypointd/waypoint/mux/wire"
)

// putBlob stores bytes and returns their digest.
func putBlob(t testing.TB, c *client.Client, b []byte) string {
	t.Helper()
	digest := fmt.Sprintf("sha256:%x", sha256.Sum256(b))
	err := c.PutBlobs(t.Context(), []client.Blob{{
		BlobHeader: wire.BlobHeader{Digest: digest, Size: int64(len(b))},
		Open:       func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil },
	}})
	if err != nil {
		t.Fatal(err)
	}
	return digest
}

// output is what a job has written.
func output(t testing.TB, c *client.Client, id string) string {
	t.Helper()
	var text strings.Builder
	for o, err := range c.Stream(t.Context(), wire.StreamRequest{ID: id}) {
		if err != nil {
			t.Fatal(err)
		}
		text.Write(o.Data.Bytes)
	}
	return text.String()
}

func snapshot(t testing.TB, c *client.Client) []byte {
	t.Helper()
	var b bytes.Buffer
	h, err := c.Snapshot(t.Context(), &b, nil)
	if err != nil || h.Size <= 0 || h.Engine != "sqlite" || h.Software != "waypoint test" {
		t.Fatalf("snapshot: %+v, %v", h, err)
	}
	return b.Bytes()
}

func restore(dir string, b []byte) (daemon.Restored, error) {
	return daemon.Restore(context.Background(), daemon.Config{StateDir: dir}, bytes.NewReader(b))
}

func noTemp(t testing.TB, dir string) {
	t.Helper()
	if left, err := filepath.Glob(filepath.Join(dir, ".tmp-*")); err != nil || len(left) > 0 {
		t.Errorf("left are %v, %v", left, err)
	}
}

// A snapshot that was made under load has, on another host, every job that was
// acknowledged before it with its output; runners come back with their tokens,
// and what runs goes on.
func TestSnapshotOnAnotherHost(t *testing.T) {
	s := daemontest.Start(t, slowly)
	c := s.Client(t)
	status, err := c.ServerStatus(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	blob := bytes.Repeat([]byte("blob"), 100_000)
	digest := putBlob(t, c, blob)
	worker, keeper := s.Adopted(t, "worker", nil), s.Adopted(t, "keeper", nil)
	to := func(id string) func(*wire.JobSpec) {
		return func(j *wire.JobSpec) { j.Target = wire.Target{ID: id} }
	}
	held := submit(t, c, run(to("keeper")))[0]
	attempt := keeper.MustStart()
	s.AwaitJob(t, held.ID, running)

	var (
		wg       sync.WaitGroup
		mu       sync.Mutex
		finished []string // in their order; guarded by mu
		stop     atomic.Bool
	)
	wg.Go(func() {
		for !stop.Load() {
			id := submit(t, c, run(to("worker")))[0].ID
			worker.MustFinish(worker.MustStart().JobRef, strings.Repeat(id+"\n", 1000), daemontest.Succeeded())
			mu.Lock()
			finished = append(finished, id)
			mu.Unlock()
		}
	})
	sofar := func() []string {
		mu.Lock()
		defer mu.Unlock()
		return append([]string(nil), finished...)
	}
	var shot []byte
	var before []string
	for len(before) < 20 { // several, while jobs come and go
		before = sofar()
		shot = snapshot(t, c)
	}
	stop.Store(true)
	wg.Wait()
	s.Stop()

	dir := filepath.Join(t.TempDir(), "elsewhere")
	done, err := restore(dir, shot)
	if err != nil || done.Before != "" || done.ServerID != status.ID {
		t.Fatalf("%+v, %v", done, err)
	}
	cfg := slowly
	cfg.StateDir = dir
	n := daemontest.Start(t, cfg)
	nc := n.Client(t)
	if now, err := nc.ServerStatus(t.Context()); err != nil || now.ID != status.ID {
		t.Errorf("the server is %+v, %v", now, err)
	}
	for _, id := range before {
		if j, err := nc.Job(t.Context(), id); err != nil || j.State != wire.Success {
			t.Fatalf("job %s is %+v, %v", id, j, err)
		}
		if got, want := output(t, nc, id), strings.Repeat(id+"\n", 1000); got != want {
			t.Fatalf("job %s has %d bytes of output, had %d", id, len(got), len(want))
		}
	}
	err = nc.GetBlobs(t.Context(), []string{digest}, func(_ wire.BlobHeader, r io.Reader) error {
		b, err := io.ReadAll(r)
		if err == nil && !bytes.Equal(b, blob) {
			err = errors.New("other bytes")
		}
		return err
	})
	if err != nil {
		t.Errorf("blob: %v", err)
	}
	// The same key and token, at the new address; a stranger with the name has no chance.
	back := n.Runner(t, "keeper", nil)
	back.Key, back.Offers = keeper.Key, keeper.Offers
	back.MustConnect()
	if b := back.MustBegin(wire.Held{JobRef: attempt.JobRef, Started: true}); len(b.Keep) != 1 || !back.Standing.Admitted {
		t.Fatalf("it keeps %+v and stands as %+v", b.Keep, back.Standing)
	}
	back.MustFinish(attempt.JobRef, "to the end\n", daemontest.Succeeded())
	if got := output(t, nc, held.ID); got != "to the end\n" {
		t.Errorf("the job that ran has the output %q", got)
	}
}

// Whatever is wrong with a snapshot, it is refused and changes nothing.
func TestRestoreRefuses(t *testing.T) {
	s := daemontest.Start(t, slowly)
	putBlob(t, s.Client(t), bytes.Repeat([]byte("0123456789abcdef"), 20_000))
	shot := snapshot(t, s.Client(t))

	dir := t.TempDir()
	if _, err := restore(dir, shot); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "waypoint.db")
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	same := func(what string) {
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
	refused := func(what string, b []byte) {
		t.Helper()
		if _, err := restore(dir, b); wire.KindOf(err) != wire.BadUsage {
			t.Fatalf("%s: %v", what, err)
		}
		same(what)
	}
	tried := 0
	for at := 0; at < len(shot); at += 4096 {
		bad := bytes.Clone(shot)
		bad[at] ^= 0x10
		refused(fmt.Sprintf("another bit at %d", at), bad)
		refused(fmt.Sprintf("%d bytes of %d", at, len(shot)), shot[:at])
		tried++
	}
	if tried < 50 {
		t.Errorf("%d places were tried only", tried)
	}
	refused("one byte less", shot[:len(shot)-1])
	refused("twice", append(bytes.Clone(shot), shot...))
	refused("text", []byte("text"))

	ctx, cancel := context.WithCancelCause(t.Context())
	interrupted := errors.New("interrupted")
	in := io.MultiReader(bytes.NewReader(shot[:100_000]), readerFunc(func([]byte) (int, error) { cancel(interrupted); return 0, nil }))
	if _, err := daemon.Restore(ctx, daemon.Config{StateDir: dir}, in); !errors.Is(err, interrupted) {
		t.Errorf("interrupted: %v", err)
	}
	same("interrupted")
	for dsn, kind := range map[string]wire.Kind{"postgres://u@/d?host=" + dir: wire.Unavailable, "mysql://h/d": wire.BadUsage} {
		if _, err := daemon.Restore(t.Context(), daemon.Config{StateDir: dir, StoreDSN: dsn}, bytes.NewReader(shot)); wire.KindOf(err) != kind {
			t.Errorf("into %s: %v", dsn, err)
		}
		same(dsn)
	}
	// A store that is somewhere else.
	elsewhere := filepath.Join(t.TempDir(), "store.db")
	if done, err := daemon.Restore(t.Context(), daemon.Config{StateDir: dir, StoreDSN: elsewhere}, bytes.NewReader(shot)); err != nil || done.Store != elsewhere {
		t.Errorf("elsewhere: %+v, %v", done, err)
	}
	if fi, err := os.Stat(elsewhere); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("%+v, %v", fi, err)
	}
	if _, err := os.Stat(elsewhere + ".restoring"); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	same("elsewhere")
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(b []byte) (int, error) { return f(b) }

// A state directory with a server is not restored into.
func TestRestoreWhileServing(t *testing.T) {
	cfg := slowly
	cfg.StateDir = t.TempDir()
	s := daemontest.Start(t, cfg)
	shot := snapshot(t, s.Client(t))
	if _, err := restore(cfg.StateDir, shot); wire.KindOf(err) != wire.Conflict || !strings.Contains(err.Error(), "in use by waypoint server") {
		t.Error(err)
	}
	if _, err := s.Client(t).ServerStatus(t.Context()); err != nil {
		t.Error(err)
	}
}

// One snapshot at a time; one that nobody waits for any more makes room for the
// next, and none leaves anything, nor does one that a crash ended.
func TestSnapshotOneAtATime(t *testing.T) {
	cfg := slowly
	cfg.StateDir = t.TempDir()
	left := filepath.Join(cfg.StateDir, ".tmp-snapshot-123")
	if err := os.WriteFile(left, []byte("of a server that was killed"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := daemontest.Start(t, cfg)
	noTemp(t, cfg.StateDir)
	c := s.Client(t)
	putBlob(t, c, make([]byte, 8<<20)) // more than is on its way where nobody reads
	first, begun := s.Client(t), make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	over := make(chan error, 1)
	go func() {
		_, err := first.Snapshot(ctx, io.Discard, func(wire.SnapshotHeader) { close(begun); <-ctx.Done() })
		over <- err
	}()
	<-begun
	if _, err := c.Snapshot(t.Context(), io.Discard, nil); wire.KindOf(err) != wire.Conflict || !strings.Contains(err.Error(), "another snapshot") {
		t.Errorf("a second one: %v", err)
	}
	cancel()
	if err := <-over; !errors.Is(err, context.Canceled) {
		t.Errorf("the first: %v", err)
	}
	for deadline := time.Now().Add(daemontest.Patience); ; {
		_, err := c.Snapshot(t.Context(), io.Discard, nil)
		if err == nil {
			break
		}
		if wire.KindOf(err) != wire.Conflict || time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	s.Stop() // it may tell of the end before the file is removed
	noTemp(t, cfg.StateDir)
}

// A server whose disk has no room for the copy says so and works on.
func TestSnapshotOnFullDisk(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("SKIPPED: only root can mount a small file system")
	}
	cfg := slowly
	cfg.StateDir = t.TempDir()
	if err := unix.Mount("tmpfs", cfg.StateDir, "tmpfs", 0, "size=40m,mode=0700"); err != nil {
		t.Skipf("SKIPPED: mount: %v", err)
	}
	t.Cleanup(func() { unix.Unmount(cfg.StateDir, unix.MNT_DETACH) })
	s := daemontest.Start(t, cfg)
	c := s.Client(t)
	for i := range 14 {
		putBlob(t, c, append(make([]byte, 1<<20), byte(i)))
	}
	if _, err := c.Snapshot(t.Context(), io.Discard, nil); wire.KindOf(err) != wire.Unavailable || !strings.Contains(err.Error(), "no space left for a copy") {
		t.Error(err)
	}
	submit(t, c, run())
	s.Stop()
	noTemp(t, cfg.StateDir)
}
