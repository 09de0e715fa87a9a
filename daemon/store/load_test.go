package store

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/waypointd/waypoint/daemon/queue"
	"github.com/waypointd/waypoint/daemon/store/storetest"
	"github.com/waypointd/waypoint/mux/wire"
)

// loaded is what the callers of a store under load have been told.
type loaded struct {
	mu   sync.Mutex
	said map[string]progress // by job; guarded by mu
}

type progress struct {
	state  wire.State
	output int // bytes acknowledged
}

func (l *loaded) note(id string, p progress) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.said[id] = p
}

func (l *loaded) sofar() map[string]progress {
	l.mu.Lock()
	defer l.mu.Unlock()
	return maps.Clone(l.said)
}

// outputOf is what a job writes: each byte says where it is.
func outputOf(id string, n int) []byte {
	var b bytes.Buffer
	for i := 0; b.Len() < n; i++ {
		fmt.Fprintf(&b, "%s %d\n", id, i)
	}
	return b.Bytes()[:n]
}

// once takes a few jobs through their life: a build with an artifact, a
// deploy that waits for it, and one that stays queued.
func (l *loaded) once(s *Store, worker string, turn int) error {
	ctx, now := context.Background(), time.Now()
	app := worker
	var ids []string
	if err := s.Update(ctx, func(tx *Tx) error {
		jobs, err := tx.Submit([]wire.JobSpec{
			operation(wire.OpBuild, app, forRunner(worker)), operation(wire.OpDeploy, app, forRunner(worker), dependsOn("#0")), run(forRunner("nobody"), dependsOn("#1")),
		}, now)
		ids = nil
		for _, j := range jobs {
			ids = append(ids, j.ID)
		}
		return err
	}); err != nil {
		return err
	}
	for _, id := range ids {
		l.note(id, progress{state: wire.Queued})
	}
	for i, id := range ids[:2] {
		var given []Assigned
		if err := s.Update(ctx, func(tx *Tx) (err error) {
			given, err = tx.AssignReady(func() []queue.Runner { return []queue.Runner{{ID: worker, Free: 1}} }, now, 1)
			return err
		}); err != nil {
			return err
		}
		if len(given) != 1 || given[0].Job != id {
			return fmt.Errorf("%s was handed out, not %s", fmt.Sprint(given), id)
		}
		ref := given[0].JobRef
		if err := s.Update(ctx, func(tx *Tx) error { return tx.Ack(ref, worker, now) }); err != nil {
			return err
		}
		l.note(id, progress{state: wire.Running})
		out := outputOf(id, 20_000+1000*(turn%20))
		for at := 0; at < len(out); at += 7000 {
			piece := out[at:min(at+7000, len(out))]
			if err := s.Update(ctx, func(tx *Tx) error {
				_, err := tx.AppendLog(ref, worker, []wire.Data{{Offset: int64(at), Bytes: piece, Stream: wire.Stdout, Time: now}})
				return err
			}); err != nil {
				return err
			}
			l.note(id, progress{state: wire.Running, output: at + len(piece)})
		}
		res := wire.Result{State: wire.Success, LogBytes: int64(len(out))}
		digest := fmt.Sprintf("sha256:%s-%d", worker, turn)
		if err := s.Update(ctx, func(tx *Tx) error {
			if i == 0 {
				if err := tx.PutBlobChunk(digest, 0, out); err != nil {
					return err
				}
				if err := tx.SealBlob(digest, digest, int64(len(out)), now); err != nil {
					return err
				}
				res.Artifact = &wire.BlobHeader{Digest: digest, Size: int64(len(out))}
			}
			return tx.Finish(ref, worker, res, now)
		}); err != nil {
			return err
		}
		l.note(id, progress{state: wire.Success, output: len(out)})
	}
	return nil
}

// agrees fails the test unless a store has all that was said before it was
// copied, and its tables agree with each other.
func agrees(t *testing.T, s *Store, before map[string]progress) {
	t.Helper()
	for id, was := range before {
		j, err := s.Job(t.Context(), id)
		if err != nil {
			t.Fatalf("a job that was acknowledged before: %v", err)
		}
		if rank := map[wire.State]int{wire.Queued: 0, wire.Assigned: 1, wire.Running: 2, wire.Success: 3}; rank[j.State] < rank[was.state] {
			t.Errorf("job %s is %s, and was %s before", id, j.State, was.state)
		}
		var got []byte
		for {
			chunks, _, err := s.Log(t.Context(), id, j.Attempt, int64(len(got)), 1<<20)
			if err != nil {
				t.Fatal(err)
			}
			if len(chunks) == 0 {
				break
			}
			for _, c := range chunks {
				if c.Offset != int64(len(got)) {
					t.Fatalf("job %s: after %d bytes comes offset %d", id, len(got), c.Offset)
				}
				got = append(got, c.Bytes...)
			}
		}
		if len(got) < was.output || !bytes.Equal(got, outputOf(id, len(got))) || j.State == wire.Success && int64(len(got)) != j.LogBytes {
			t.Errorf("job %s (%s): %d bytes of output, %d were acknowledged, the record says %d", id, j.State, len(got), was.output, j.LogBytes)
		}
	}
	for what, q := range map[string]string{
		"output without a job":               "SELECT job_id FROM log_chunks WHERE job_id NOT IN (SELECT id FROM jobs)",
		"dependency without a job":           "SELECT job_id FROM dependencies WHERE job_id NOT IN (SELECT id FROM jobs)",
		"record without its job":             "SELECT job_id FROM records WHERE job_id NOT IN (SELECT id FROM jobs WHERE state = 'success')",
		"success without its record":         "SELECT id FROM jobs WHERE state = 'success' AND operation IN ('build', 'deploy') AND id NOT IN (SELECT job_id FROM records)",
		"artifact without its blob":          "SELECT digest FROM records WHERE digest <> '' AND digest NOT IN (SELECT digest FROM blobs)",
		"blob without its bytes":             "SELECT digest FROM blobs WHERE size <> (SELECT COALESCE(SUM(length), 0) FROM blob_chunks WHERE blob_chunks.upload = blobs.upload)",
		"blocked by what has ended":          "SELECT id FROM jobs j WHERE state = 'queued' AND blocked = 'dependency' AND waiting <> (SELECT COUNT(*) FROM dependencies d JOIN jobs o ON o.id = d.dependency_id WHERE d.job_id = j.id AND o.finished_at = 0)",
		"ready although something is to end": "SELECT id FROM jobs j WHERE state = 'queued' AND blocked = '' AND EXISTS (SELECT 1 FROM dependencies d JOIN jobs o ON o.id = d.dependency_id WHERE d.job_id = j.id AND o.finished_at = 0)",
	} {
		rows, err := s.reader.Query(q)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if found, err := texts(rows); err != nil || len(found) > 0 {
			t.Errorf("%s: %v, %v", what, found, err)
		}
	}
}

// A snapshot under load, from either engine and restored into either, is one
// moment: what was acknowledged before it is there, all output is a whole prefix,
// and jobs, records and blobs agree.
func TestSnapshotUnderLoad(t *testing.T) {
	onBoth(t, func(t *testing.T, dsn string) {
		s := open(t, dsn, Config{})
		l := &loaded{said: map[string]progress{}}
		var wg sync.WaitGroup
		var stop atomic.Bool
		turned := make(chan struct{}, 1000)
		for w := range 4 {
			wg.Go(func() {
				for turn := 0; !stop.Load(); turn++ {
					if err := l.once(s, fmt.Sprint("w", w), turn); err != nil {
						t.Errorf("worker %d: %v", w, err)
						stop.Store(true)
					}
					select {
					case turned <- struct{}{}:
					default:
					}
				}
			})
		}
		defer wg.Wait()
		defer stop.Store(true)
		turns := 6
		if testing.Short() {
			turns = 1
		}
		for round := range 3 {
			for range turns { // some of it between two snapshots
				<-turned
			}
			before := l.sofar()
			path := emptyFile(t)
			if err := s.Snapshot(t.Context(), path); err != nil {
				t.Fatal(err)
			}
			if err := CheckSnapshot(t.Context(), path, ""); err != nil {
				t.Fatal(err)
			}
			if storetest.Absent() == nil && round == 2 {
				to := storetest.Database(t)
				if _, _, err := RestoreDatabase(t.Context(), to, path, when); err != nil {
					t.Fatal(err)
				}
				agrees(t, open(t, to, Config{}), before)
			}
			agrees(t, open(t, path, Config{}), before)
			if len(before) < 12 || !strings.Contains(fmt.Sprint(before), "success") {
				t.Errorf("only %d jobs", len(before))
			}
		}
	})
}
