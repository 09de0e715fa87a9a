package torture

import (
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/waypointd/waypoint/mux/client"
	"github.com/waypointd/waypoint/mux/wire"
)

// leave takes the room of a file system but for so many bytes; free gives it back.
func leave(t *testing.T, dir string, bytes int64) (free func()) {
	t.Helper()
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "filler")
	if err := os.WriteFile(path, make([]byte, int64(st.Bavail)*st.Bsize-bytes), 0o600); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
}

// TestServerReserve leaves the server's disk less than its reserve: what runs is
// recorded to its end, decisions are taken, and nothing new is, until there is room.
func TestServerReserve(t *testing.T) {
	ctx := bounded(t, 3*time.Minute)
	s := newSite(t, "--store-reserve", fmt.Sprint(12<<20))
	mountSmall(t, s.serverState, "48m")
	s.concurrency = 5
	s.open(ctx)
	c := s.client(ctx)

	all := startGated(ctx, t, s, c)
	endless := submitOne(ctx, t, c, wire.JobSpec{Operation: wire.OpRun, Command: []string{"sleep", "1000"}, Target: wire.Target{Any: true}})
	await(ctx, t, "the endless one to run", func() error {
		j, err := c.Job(ctx, endless.ID)
		if err == nil && j.State != wire.Running {
			err = fmt.Errorf("it is %s", j.State)
		}
		return err
	})
	queued := submitOne(ctx, t, c, wire.JobSpec{Operation: wire.OpRun, Command: []string{"true"}, Target: wire.Target{Any: true}})

	free := leave(t, s.serverState, 10<<20)
	refusal := submitUntilRefused(ctx, t, s)
	checkAnswer(t, refusal, 5, []string{"no space left for new work", "store_reserve"})
	checkAnswer(t, s.cli(ctx, "server", "snapshot", filepath.Join(s.dir, "snapshot")), 5, []string{"space"})
	bytes := []byte("some bytes")
	blob := client.Blob{
		BlobHeader: wire.BlobHeader{Digest: fmt.Sprintf("sha256:%x", sha256.Sum256(bytes)), Size: int64(len(bytes))},
		Open:       func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(string(bytes))), nil },
	}
	if err := c.PutBlobs(ctx, []client.Blob{blob}); wire.KindOf(err) != wire.Unavailable {
		t.Errorf("a blob: %v", err)
	}
	if st, err := c.ServerStatus(ctx); err != nil || st.StoreProblem != wire.StoreReserve || st.StoreReserve != 12<<20 || st.StoreFree == 0 || st.StoreFree > 12<<20 {
		t.Errorf("status %+v, %v", st, err)
	}
	for _, g := range all[1:] {
		g.open(t, 0)
		g.finish(ctx, t, c)
	}
	if a := s.cli(ctx, "job", "cancel", endless.ID); a.code != 0 {
		t.Errorf("cancel: %s", a)
	}
	if end, err := c.Wait(ctx, endless.ID); err != nil || end.State != wire.Canceled {
		t.Errorf("canceled: %s %s, %v", end.State, end.Reason, err)
	}
	checkAnswer(t, s.cli(ctx, "job", "retry", endless.ID), 5, []string{"no space left for new work"})
	if a := s.cli(ctx, "runner", "drain", runnerID); a.code != 0 {
		t.Errorf("drain: %s", a)
	}
	if a := s.cli(ctx, "runner", "resume", runnerID); a.code != 0 {
		t.Errorf("resume: %s", a)
	}
	if j, err := c.Job(ctx, queued.ID); err != nil || j.State != wire.Queued {
		t.Errorf("a job was given out of the reserve: %+v, %v", j, err)
	}
	if why, err := c.Why(ctx, queued.ID); err != nil || why.Code != "store_reserve" || !strings.Contains(why.Sentence, "reserve") {
		t.Errorf("why: %+v, %v", why, err)
	}
	if n := counted(t, s.server.log, "no new work is taken"); n != 1 {
		t.Errorf("the log says it %d times", n)
	}

	free()
	all[0].open(t, 0)
	all[0].finish(ctx, t, c)
	if end, err := c.Wait(ctx, queued.ID); err != nil || end.State != wire.Success {
		t.Errorf("queued meanwhile: %s %s, %v", end.State, end.Reason, err)
	}
	if a := s.cli(ctx, "run", "--no-local", "--", "true"); a.code != 0 {
		t.Errorf("once there is room: %s", a)
	}
	if n := counted(t, s.server.log, "store has room again"); n != 1 {
		t.Errorf("the log says %d times that there is room", n)
	}
	if n := counted(t, s.server.log, "store is full"); n != 0 {
		t.Errorf("the store was full %d times", n)
	}
}
