package store

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/waypointd/waypoint/daemon/queue"
	"github.com/waypointd/waypoint/mux/wire"
)

func putBlob(t testing.TB, s *Store, upload, digest string, data []byte, now time.Time) {
	t.Helper()
	update(t, s, func(tx *Tx) error {
		if err := tx.PutBlobChunk(upload, 0, data); err != nil {
			return err
		}
		return tx.SealBlob(upload, digest, int64(len(data)), now)
	})
}

func readBlob(t testing.TB, s *Store, digest string, offset int64) (data []byte) {
	t.Helper()
	for {
		chunk, err := s.BlobChunk(t.Context(), digest, offset)
		if err != nil {
			t.Fatal(err)
		}
		if len(chunk) == 0 {
			return data
		}
		if len(chunk) > maxRow {
			t.Fatalf("chunk of %d", len(chunk))
		}
		data = append(data, chunk...)
		offset += int64(len(chunk))
	}
}

func uploads(t testing.TB, s *Store) (n int) {
	t.Helper()
	if err := one(s.read(t.Context()), `SELECT COUNT(DISTINCT upload) FROM blob_chunks`, nil, &n); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestBlobs(t *testing.T) {
	onEach(t, func(t *testing.T, dsn string) {
		s := open(t, dsn, Config{})
		now := time.Now()
		data := make([]byte, 300_000)
		for i := range data {
			data[i] = byte(rand.IntN(256))
		}
		for off := 0; off < len(data); off += 100_000 {
			update(t, s, func(tx *Tx) error { return tx.PutBlobChunk("u1", int64(off), data[off:off+100_000]) })
		}
		missing := func(digests ...string) []string {
			t.Helper()
			m, err := s.MissingBlobs(t.Context(), digests)
			if err != nil {
				t.Fatal(err)
			}
			return m
		}
		if m := missing("sha256:b", "sha256:a"); !slices.Equal(m, []string{"sha256:b", "sha256:a"}) {
			t.Fatal(m)
		}
		_, err := s.BlobChunk(t.Context(), "sha256:a", 0)
		want(t, err, wire.NotFound)
		_, err = s.BlobSize(t.Context(), "sha256:a")
		want(t, err, wire.NotFound)
		want(t, s.Update(t.Context(), func(tx *Tx) error { return tx.SealBlob("u1", "sha256:a", 300_001, now) }), wire.Conflict)
		seal := func(upload, digest string, size int64) {
			t.Helper()
			update(t, s, func(tx *Tx) error { return tx.SealBlob(upload, digest, size, now) })
		}
		seal("u1", "sha256:a", 300_000)
		seal("u1", "sha256:a", 300_000)
		for _, off := range []int64{0, 1, 65_535, 65_536, 100_000, 299_999, 300_000, 400_000} {
			if got := readBlob(t, s, "sha256:a", off); !bytes.Equal(got, data[min(off, 300_000):]) {
				t.Fatalf("other bytes from %d on", off)
			}
		}
		if n, err := s.BlobSize(t.Context(), "sha256:a"); n != 300_000 || err != nil {
			t.Fatal(n, err)
		}
		// The same again: the upload goes, the blob stays.
		putBlob(t, s, "u2", "sha256:a", data, now.Add(-time.Hour))
		if n := uploads(t, s); n != 1 {
			t.Fatal(n)
		}
		putBlob(t, s, "u3", "sha256:empty", nil, now)
		if got := readBlob(t, s, "sha256:empty", 0); len(got) != 0 {
			t.Fatal(got)
		}
		update(t, s, func(tx *Tx) error { return tx.PutBlobChunk("u4", 0, data) })
		update(t, s, func(tx *Tx) error { return tx.DropUpload("u4") })
		update(t, s, func(tx *Tx) error { return tx.DropUpload("u4") })
		update(t, s, func(tx *Tx) error { return tx.DropUpload("u1") }) // sealed
		if n := uploads(t, s); n != 1 || len(readBlob(t, s, "sha256:a", 0)) != 300_000 {
			t.Fatal(n)
		}
		var many []string
		for i := range 1000 {
			many = append(many, fmt.Sprint(i))
		}
		if m := missing(append(many, "sha256:a", "sha256:empty")...); !slices.Equal(m, many) {
			t.Fatal(len(m))
		}
	})
}

func TestPruneJobs(t *testing.T) {
	onEach(t, func(t *testing.T, dsn string) {
		b := newBench(t, dsn, queue.Runner{ID: "r1", Free: 1000})
		end := func(n int) []string {
			ids := make([]string, n)
			for i := range ids {
				ids[i] = b.one(run())
			}
			for _, a := range b.assign() {
				update(t, b.Store, func(tx *Tx) error {
					if _, err := tx.AppendLog(a.JobRef, a.RunnerID, []wire.Data{{Bytes: []byte("output")}}); err != nil {
						return err
					}
					return tx.Finish(a.JobRef, a.RunnerID, wire.Result{State: wire.Success}, b.now)
				})
			}
			return ids
		}
		prune := func(age time.Duration, count, want int) {
			t.Helper()
			n, err := b.Prune(t.Context(), age, count, b.now)
			if err != nil || n != want {
				t.Fatalf("pruned %d, %v; want %d", n, err, want)
			}
		}
		old := end(120)
		waited := b.one(run())
		b.given(waited)
		b.succeed(waited)
		live := b.one(run(dependsOn(waited), dependsOnToo(b.one(run(forRunner("nobody"))))))
		b.now = b.now.Add(time.Hour)
		young := end(10)
		prune(0, 0, 0)
		prune(30*time.Minute, 0, 120) // not the one that a queued job names
		_, err := b.Job(t.Context(), old[0])
		want(t, err, wire.NotFound)
		_, _, err = b.Log(t.Context(), old[0], 0, 0, 10)
		want(t, err, wire.NotFound)
		b.is(waited, wire.Success, "")
		b.is(live, wire.Queued, "")
		prune(30*time.Minute, 0, 0)
		prune(0, 4, 6) // and the waited-for one is the seventh beyond
		for i, id := range young {
			if _, err := b.Job(t.Context(), id); (err == nil) != (i >= 6) {
				t.Fatalf("%d: %v", i, err)
			}
		}
		b.cancel(live, false)
		prune(0, 4, 2)
		var rows int
		if err := one(b.read(t.Context()), `SELECT COUNT(*) FROM log_chunks`, nil, &rows); err != nil || rows > 4 {
			t.Fatal(rows, err)
		}

		// One with more output than goes in one transaction.
		big := b.one(run())
		ref := func() wire.JobRef { return wire.JobRef{Job: big, Attempt: 1} }
		b.assign()
		for i := range pruneChunks + 10 {
			update(t, b.Store, func(tx *Tx) error {
				_, err := tx.AppendLog(ref(), "r1", []wire.Data{{Offset: int64(i) * 5000, Bytes: make([]byte, 5000)}})
				return err
			})
		}
		b.succeed(big)
		b.now = b.now.Add(time.Hour)
		prune(time.Minute, 0, 5)
		if err := one(b.read(t.Context()), `SELECT COUNT(*) FROM log_chunks`, nil, &rows); err != nil || rows != 0 {
			t.Fatal(rows, err)
		}
		if _, ok := b.engine.(*sqlite); ok {
			var free int
			if err := one(b.read(t.Context()), `SELECT freelist_count FROM pragma_freelist_count`, nil, &free); err != nil || free != 0 {
				t.Fatalf("%d pages were not given back (%v)", free, err)
			}
		}
	})
}

func dependsOnToo(id string) func(*wire.JobSpec) {
	return func(s *wire.JobSpec) { s.DependsOn = append(s.DependsOn, id) }
}

func TestPruneBlobs(t *testing.T) {
	onEach(t, func(t *testing.T, dsn string) {
		b := newBench(t, dsn)
		day := 24 * time.Hour
		putBlob(t, b.Store, "u1", "sha256:before", make([]byte, 200_000), b.now.Add(-2*day))
		putBlob(t, b.Store, "u2", "sha256:tree", []byte("x"), b.now.Add(-time.Hour))
		putBlob(t, b.Store, "u3", "sha256:artifact", []byte("x"), b.now.Add(-5*day))
		update(t, b.Store, func(tx *Tx) error { return tx.PutBlobChunk("given up", 0, make([]byte, (pruneChunks+5)*maxRow)) })
		build := b.one(operation(wire.OpBuild, "web"))
		b.given(build)
		b.finish(build, wire.Result{State: wire.Success, Artifact: &wire.BlobHeader{Digest: "sha256:artifact", Size: 1}})
		there := func(digest string) bool {
			t.Helper()
			var n int
			if err := one(b.read(t.Context()), `SELECT COUNT(*) FROM blobs WHERE digest = $1`, []any{digest}, &n); err != nil {
				t.Fatal(err)
			}
			return n == 1
		}
		prune := func(age time.Duration, now time.Time) {
			t.Helper()
			if _, err := b.Prune(t.Context(), age, 0, now); err != nil {
				t.Fatal(err)
			}
		}
		prune(30*day, b.now)
		if there("sha256:before") || !there("sha256:tree") || !there("sha256:artifact") {
			t.Fatal("the wrong blobs went")
		}
		if n := uploads(t, b.Store); n != 3 { // this one's age counts from now
			t.Fatal(n)
		}
		prune(time.Minute, time.Now().Add(25*time.Hour))
		if there("sha256:tree") || !there("sha256:artifact") {
			t.Fatal("the wrong blobs went")
		}
		if n := uploads(t, b.Store); n != 1 {
			t.Fatal(n)
		}
		// Whoever was told that it is there has time to name it.
		putBlob(t, b.Store, "u5", "sha256:tree", []byte("x"), b.now.Add(-9*day))
		if m, err := b.MissingBlobs(t.Context(), []string{"sha256:tree"}); err != nil || len(m) != 0 {
			t.Fatal(m, err)
		}
		prune(time.Minute, time.Now())
		if !there("sha256:tree") {
			t.Fatal("a blob went that was just asked for")
		}
	})
}

// The blobs that a retry names are as old as the job that it is a retry of,
// which stays for them while the retry has not ended.
// A clock that is set back makes jobs that were queued earlier than those with
// lower ids: what they need is kept as well.
// Who has sent a blob is known as long as the blob is there, and somebody so called.
func TestProofs(t *testing.T) {
	onEach(t, func(t *testing.T, dsn string) {
		s := open(t, dsn, Config{})
		now := time.Now()
		sent := func(sender string, digests ...string) []string {
			t.Helper()
			proven, err := s.Proven(t.Context(), sender, digests)
			if err != nil {
				t.Fatal(err)
			}
			return slices.DeleteFunc(digests, func(d string) bool { return !proven[d] })
		}
		old, young := "sha256:old", "sha256:young"
		putBlob(t, s, "u1", old, []byte("x"), now.Add(-48*time.Hour))
		putBlob(t, s, "u2", young, []byte("y"), now)
		update(t, s, func(tx *Tx) error {
			for _, sender := range []string{"ada", "olga", "ada"} {
				for _, digest := range []string{old, young} {
					if err := tx.Prove(sender, digest); err != nil {
						return err
					}
				}
			}
			return nil
		})
		many := append(slices.Repeat([]string{"sha256:none"}, 300), young, old)
		if got := sent("olga", many...); !slices.Equal(got, []string{young, old}) {
			t.Errorf("olga has sent %v", got)
		}
		if got := sent("otto", old, young); len(got) != 0 {
			t.Errorf("otto has sent %v", got)
		}
		if _, err := s.Prune(t.Context(), 24*time.Hour, 0, now); err != nil {
			t.Fatal(err)
		}
		if got := sent("olga", old, young); !slices.Equal(got, []string{young}) {
			t.Errorf("after the blob has gone olga has sent %v", got)
		}
		update(t, s, func(tx *Tx) error {
			return tx.PutUser(UserRecord{Name: "Olga", Role: wire.Viewer, CreatedAt: now, DeletedAt: now})
		})
		if got := sent("olga", young); len(got) != 0 {
			t.Errorf("who is gone has sent %v", got)
		}
		if got := sent("ada", old, young); !slices.Equal(got, []string{young}) {
			t.Errorf("ada has sent %v", got)
		}
	})
}

func TestPruneBlobsBehindAClockSetBack(t *testing.T) {
	onEach(t, func(t *testing.T, dsn string) {
		b := newBench(t, dsn, queue.Runner{ID: "r1", Free: 1000})
		right := b.now
		b.now = right.Add(30 * 24 * time.Hour) // set wrongly
		ahead := b.one(run())
		b.now = right
		putBlob(t, b.Store, "u1", "sha256:needed", []byte("source"), right)
		late := b.one(run())
		if late < ahead {
			t.Fatalf("job %s has a lower id than %s, which was queued before it", late, ahead)
		}
		if _, err := b.Prune(t.Context(), 24*time.Hour, 0, right.Add(7*24*time.Hour)); err != nil {
			t.Fatal(err)
		}
		if got := readBlob(t, b.Store, "sha256:needed", 0); string(got) != "source" {
			t.Errorf("what a queued job needs is %q", got)
		}
	})
}

func TestPruneKeepsWhatARetryNeeds(t *testing.T) {
	onEach(t, func(t *testing.T, dsn string) {
		b := newBench(t, dsn)
		const day = 24 * time.Hour
		putBlob(t, b.Store, "u1", "sha256:tree", []byte("x"), b.now)
		first := b.one(run())
		b.given(first)
		b.fail(first)
		retry := func(id string) string {
			t.Helper()
			var j wire.Job
			update(t, b.Store, func(tx *Tx) (err error) {
				j, err = tx.Retry(id, b.now)
				return err
			})
			return j.ID
		}
		b.now = b.now.Add(10 * day)
		second := retry(first)
		b.cancel(second, false)
		b.now = b.now.Add(10 * day)
		third := retry(second)
		prune := func(want int) {
			t.Helper()
			if n, err := b.Prune(t.Context(), time.Hour, 0, b.now); err != nil || n != want {
				t.Fatalf("pruned %d, %v; want %d", n, err, want)
			}
		}
		b.now = b.now.Add(10 * day)
		prune(0)
		if got := readBlob(t, b.Store, "sha256:tree", 0); string(got) != "x" {
			t.Fatalf("blob %q", got)
		}
		b.is(first, wire.Failed, wire.ReasonFailed)
		b.cancel(third, false)
		b.now = b.now.Add(day)
		prune(3)
	})
}
