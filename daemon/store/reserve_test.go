package store

import (
	"bytes"
	"errors"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/waypointd/waypoint/daemon/queue"
	"github.com/waypointd/waypoint/mux/wire"
)

// disk is a file system whose room the test says.
type disk struct {
	mu    sync.Mutex
	room  Room
	err   error
	looks int
}

func (d *disk) free() (Room, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.looks++
	return d.room, d.err
}

func (d *disk) has(free, size int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.room, d.err = Room{Free: free, Size: size}, nil
}

func (d *disk) seen() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.looks
}

// text is a log that several write to.
type text struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (t *text) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.b.Write(p)
}

func (t *text) count(what string) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.Count(t.b.String(), what)
}

func TestReserve(t *testing.T) {
	d, log := &disk{}, &text{}
	d.has(1000<<20, 1<<40)
	told := make(chan struct{}, 100)
	cfg := Config{Logger: slog.New(slog.NewTextHandler(log, nil)), Free: d.free, Room: func() { told <- struct{}{} }}
	b := &bench{t: t, Store: open(t, filepath.Join(t.TempDir(), "db"), cfg), now: time.UnixMicro(1_763_000_000_000_000).UTC(),
		runners: []queue.Runner{{ID: "r1"}}}
	running := b.one(run())
	b.given(running)
	waits := b.one(run(forRunner("nobody"), func(j *wire.JobSpec) { j.IdempotencyKey = "k" }))

	d.has(64<<20-1, 1<<40)
	submit := func(spec wire.JobSpec) error {
		return b.Update(t.Context(), func(tx *Tx) error { _, err := tx.Submit([]wire.JobSpec{spec}, b.now); return err })
	}
	retry := func(id string) error {
		return b.Update(t.Context(), func(tx *Tx) error { _, err := tx.Retry(id, b.now); return err })
	}
	b.Reserved() // may be as of a moment ago
	b.SetReserve(0)
	<-told
	for range 3 {
		err := submit(run())
		want(t, err, wire.Unavailable, "space")
		var e *wire.Error
		if !errors.As(err, &e) || !strings.Contains(e.Hint, "store_reserve") {
			t.Errorf("the refusal has no hint of what to do: %+v", e)
		}
	}
	blob := b.Update(t.Context(), func(tx *Tx) error { return tx.PutBlobChunk("u", 0, []byte("x")) })
	want(t, blob, wire.Unavailable, "space")
	if err := submit(run(forRunner("nobody"), func(j *wire.JobSpec) { j.IdempotencyKey = "k" })); err != nil {
		t.Errorf("a job that is queued already, asked for again: %v", err)
	}
	// What is under way goes on.
	ref := wire.JobRef{Job: running, Attempt: 1}
	update(t, b.Store, func(tx *Tx) error {
		if err := tx.Ack(ref, "r1", b.now); err != nil {
			return err
		}
		_, err := tx.AppendLog(ref, "r1", []wire.Data{{Bytes: []byte("x")}})
		return err
	})
	update(t, b.Store, func(tx *Tx) error { return tx.Finish(ref, "r1", wire.Result{State: wire.Success, LogBytes: 1}, b.now) })
	want(t, retry(running), wire.Unavailable, "space")
	if _, free, short := b.Reserved(); free != 64<<20-1 || !short || b.Full() {
		t.Errorf("%d free, short %v, full %v", free, short, b.Full())
	}
	update(t, b.Store, func(tx *Tx) error { _, err := tx.Cancel(waits, false, b.now); return err })
	if n := log.count("no new work is taken"); n != 1 {
		t.Errorf("said %d times", n)
	}

	// It heals by itself, though not at the very edge.
	d.has(64<<20, 1<<40)
	b.look()
	want(t, submit(run()), wire.Unavailable, "space")
	d.has(100<<20, 1<<40)
	<-told // nobody asks
	if err := submit(run()); err != nil {
		t.Error(err)
	}
	if n := log.count("store has room again"); n != 1 {
		t.Errorf("said %d times that there is room again", n)
	}
}

// Room that comes and goes within a poll is looked at as often as any other.
func TestReserveIsPolledOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &disk{}
		s := &Store{
			cfg: Config{Free: d.free, Logger: slog.New(slog.DiscardHandler)}, engine: &sqlite{},
			kick: make(chan struct{}, 1), quit: make(chan struct{}), began: time.Now(),
		}
		s.reserve.set.Store(1000)
		for range 3 {
			d.has(1<<40, 1<<40)
			s.look()
			d.has(999, 1<<40)
			s.look()
		}
		const polls = 10
		before := d.seen()
		time.Sleep(polls*reservePoll + reservePoll/2)
		if n := d.seen() - before; n != polls {
			t.Errorf("%d looks in the time of %d", n, polls)
		}
		close(s.quit)
		before = d.seen()
		time.Sleep(2 * reservePoll)
		if n := d.seen() - before; n != 0 {
			t.Errorf("%d looks after the end", n)
		}
	})
}

// becomes waits until a job has a state.
func (b *bench) becomes(id string, state wire.State) {
	b.t.Helper()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		j, err := b.Job(b.t.Context(), id)
		if err == nil && j.State == state {
			return
		}
		if time.Now().After(end) {
			b.t.Fatalf("job is %s, %v; want %s", j.State, err, state)
		}
	}
}

// A queued job is not handed out of the reserve, and is as soon as there is room.
func TestReserveHandsNothingOut(t *testing.T) {
	d := &disk{}
	d.has(1<<40, 1<<40)
	var matches atomic.Int64
	b := &bench{t: t, now: time.UnixMicro(1_763_000_000_000_000).UTC()}
	b.Store = open(t, filepath.Join(t.TempDir(), "db"), Config{Free: d.free, Reserve: 1000, Match: func(tx *Tx) (func(bool), error) {
		matches.Add(1)
		_, err := tx.AssignReady(func() []queue.Runner { return []queue.Runner{{ID: "r1", Free: 1}} }, b.now, 10)
		return nil, err
	}})
	first := b.one(run())
	b.becomes(first, wire.Assigned)
	second := b.one(run(forRunner("r2")))
	d.has(999, 1<<40)
	b.SetReserve(1000)
	before := matches.Load()
	update(t, b.Store, func(tx *Tx) error { tx.ready = true; return nil })
	if matches.Load() != before {
		t.Error("jobs are handed out of the reserve")
	}
	d.has(2000, 1<<40)
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		if matches.Load() > before {
			break
		}
		if time.Now().After(end) {
			t.Fatal("nothing is handed out once there is room")
		}
	}
	b.is(second, wire.Queued, "")
}

// How much is kept: as set, or by the size of the file system; nothing where
// none is wanted, where it cannot be told, and with a database elsewhere.
func TestReserveSize(t *testing.T) {
	d := &disk{}
	s := open(t, filepath.Join(t.TempDir(), "db"), Config{Free: d.free})
	for _, tt := range []struct{ set, size, want int64 }{
		{0, 1 << 40, 64 << 20}, {0, 1 << 30, 1 << 30 / 100}, {5, 1 << 40, 5}, {-1, 1 << 40, 0},
	} {
		d.has(4, tt.size)
		s.SetReserve(tt.set)
		if size, _, short := s.Reserved(); size != tt.want || short != (tt.want > 4) {
			t.Errorf("%+v: %d, short %v", tt, size, short)
		}
	}
	d.has(4, 1<<40)
	s.SetReserve(0)
	if err := s.newWork(); err == nil {
		t.Error("new work is taken")
	}
	d.err = errors.New("gone")
	s.look()
	if err := s.newWork(); err != nil {
		t.Errorf("of a file system that cannot be asked: %v", err)
	}
}

// The file system is not asked for each job.
func TestReserveIsCheap(t *testing.T) {
	d := &disk{}
	d.has(1<<40, 1<<40)
	s := open(t, filepath.Join(t.TempDir(), "db"), Config{Free: d.free})
	s.reserve.looked.Store(int64(time.Since(s.began) + time.Hour)) // it was just now
	before := d.seen()
	for range 1000 {
		if err := s.newWork(); err != nil {
			t.Fatal(err)
		}
	}
	if d.seen() != before {
		t.Errorf("asked %d times", d.seen()-before)
	}
}

// A look at the room that has begun is over when the store is closed.
func TestCloseWaitsForALook(t *testing.T) {
	var closing, looking, behind atomic.Bool
	begun := make(chan struct{})
	s := open(t, filepath.Join(t.TempDir(), "waypoint.db"), Config{Reserve: 100, Free: func() (Room, error) {
		if closing.Load() && looking.CompareAndSwap(false, true) {
			close(begun)
			time.Sleep(500 * time.Millisecond) // who does not wait has closed it meanwhile
			behind.Store(true)
		}
		return Room{Free: 1, Size: 1 << 30}, nil
	}})
	closing.Store(true)
	s.await()
	<-begun
	if err := s.Close(); err != nil || !behind.Load() {
		t.Errorf("closed with %v while somebody looks", err)
	}
}
