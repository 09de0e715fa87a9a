package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/fstest"
	"time"

	"github.com/waypointd/waypoint/daemon/queue"
	"github.com/waypointd/waypoint/mux/wire"
)

// A caller that fails, or whose statement the database refuses, loses its own
// changes and nobody else's, in whatever company.
func TestCallersAreIsolated(t *testing.T) {
	onBoth(t, func(t *testing.T, dsn string) {
		s := open(t, dsn, Config{})
		mistake := errors.New("mistake")
		var wg sync.WaitGroup
		for i := range 300 {
			wg.Go(func() {
				name := fmt.Sprint(i)
				err := s.Update(t.Context(), func(tx *Tx) error {
					if err := tx.PutSetting(name, "x"); err != nil {
						return err
					}
					switch i % 5 {
					case 0:
						if i%2 == 0 {
							panic("what nobody has thought of")
						}
						return mistake
					case 1:
						_, err := tx.exec("INSERT INTO nowhere VALUES (1)")
						return err
					case 2:
						tx.exec("INSERT INTO nowhere VALUES (1)") // and tells nobody
					}
					return nil
				})
				if fails := i%5 < 3; fails == (err == nil) {
					t.Errorf("%d: %v", i, err)
				}
				if i%5 == 0 && i%2 == 1 && !errors.Is(err, mistake) {
					t.Errorf("%d: %v", i, err)
				}
			})
		}
		wg.Wait()
		for i := range 300 {
			v, err := s.Setting(t.Context(), fmt.Sprint(i))
			if err != nil || (v == "x") != (i%5 >= 3) {
				t.Fatalf("%d: %q, %v", i, v, err)
			}
		}
	})
}

func TestMatchSharesTheCommit(t *testing.T) {
	onBoth(t, func(t *testing.T, dsn string) {
		var (
			mu      sync.Mutex
			free    = 1
			started []string
			calls   int
			inside  atomic.Bool
			changed = map[string]bool{}
			now     = time.Now()
			broken  atomic.Bool
			refused atomic.Bool
		)
		s := open(t, dsn, Config{
			Match: func(tx *Tx) (func(bool), error) {
				if !inside.CompareAndSwap(false, true) {
					t.Error("Match before the last one's done")
				}
				mu.Lock()
				defer mu.Unlock()
				calls++
				n := free
				if broken.Load() {
					tx.exec("INSERT INTO nowhere VALUES (1)")
				}
				out, err := tx.AssignReady(func() []queue.Runner { return []queue.Runner{{ID: "r", Free: n}} }, now, 10)
				if err != nil && !broken.Load() {
					t.Error(err)
				}
				if refused.Load() {
					inside.Store(false)
					return nil, fmt.Errorf("%d jobs are not to be handed out", len(out))
				}
				return func(committed bool) {
					mu.Lock()
					defer mu.Unlock()
					if committed {
						for _, a := range out {
							started = append(started, a.Job)
							free--
						}
					}
					inside.Store(false)
				}, nil
			},
			Changed: func(c Changes) {
				mu.Lock()
				defer mu.Unlock()
				for _, id := range c.Jobs {
					changed[id] = true
				}
			},
		})
		var id string
		submit := func() {
			t.Helper()
			update(t, s, func(tx *Tx) error {
				jobs, err := tx.Submit([]wire.JobSpec{run()}, now)
				if err == nil {
					id = jobs[0].ID
				}
				return err
			})
		}
		submit()
		mu.Lock()
		if !slices.Equal(started, []string{id}) || !changed[id] {
			t.Errorf("started %v, changed %v", started, changed)
		}
		was := calls
		mu.Unlock()
		if j, err := s.Job(t.Context(), id); err != nil || j.State != wire.Assigned {
			t.Fatal(j.State, err)
		}
		// What makes nothing ready asks for no match.
		update(t, s, func(tx *Tx) error { return tx.Ack(wire.JobRef{Job: id, Attempt: 1}, "r", now) })
		mu.Lock()
		if calls != was {
			t.Error("Match for an acknowledgement")
		}
		mu.Unlock()
		// Match's failure is not the callers'.
		broken.Store(true)
		submit()
		if j, err := s.Job(t.Context(), id); err != nil || j.State != wire.Queued {
			t.Fatal(j.State, err)
		}
		broken.Store(false)
		// What it has done before its error is undone, as nobody is told of it.
		refused.Store(true)
		first := id
		submit()
		if j, err := s.Job(t.Context(), id); err != nil || j.State != wire.Queued {
			t.Fatal(j.State, err)
		}
		refused.Store(false)
		update(t, s, func(tx *Tx) error {
			_, err := tx.Cancel(id, false, now)
			return err
		})
		id = first
		handedOut := func() {
			t.Helper()
			for deadline := time.Now().Add(10 * time.Second); ; {
				j, err := s.Job(t.Context(), id)
				if err != nil {
					t.Fatal(err)
				}
				if j.State == wire.Assigned {
					return
				}
				if time.Now().After(deadline) {
					t.Fatal("nothing was handed out after Kick")
				}
				update(t, s, func(tx *Tx) error { return nil })
			}
		}
		// A runner that waits gets it as soon as it can.
		mu.Lock()
		free = 1
		mu.Unlock()
		s.Kick()
		update(t, s, func(tx *Tx) error { return nil }) // the kick is in this batch or before it
		handedOut()
		// Also beside a caller that fails, and alone in the batch takes its transaction with it.
		for range 20 {
			submit()
			mu.Lock()
			free = 1
			mu.Unlock()
			entered, leave, failed := make(chan struct{}), make(chan struct{}), make(chan error, 1)
			var once sync.Once
			go s.Update(t.Context(), func(*Tx) error { once.Do(func() { close(entered); <-leave }); return nil })
			<-entered
			s.Kick()
			go func() { failed <- s.Update(t.Context(), func(*Tx) error { return errors.New("mistake") }) }()
			runtime.Gosched()
			close(leave)
			<-failed
			handedOut()
		}
	})
}

func TestCallerMayLeave(t *testing.T) {
	onBoth(t, func(t *testing.T, dsn string) {
		s := open(t, dsn, Config{})
		ctx, cancel := context.WithCancelCause(t.Context())
		gone := errors.New("gone")
		cancel(gone)
		for range 20 {
			if err := s.Update(ctx, func(tx *Tx) error { return tx.PutSetting("k", "left") }); !errors.Is(err, gone) {
				t.Fatal(err)
			}
		}
		// While f runs.
		ctx, cancel = context.WithCancelCause(t.Context())
		entered, leave := make(chan struct{}), make(chan struct{})
		var once sync.Once
		err := s.Update(ctx, func(tx *Tx) error {
			once.Do(func() { close(entered); cancel(gone); <-leave })
			return nil
		})
		<-entered
		if !errors.Is(err, gone) {
			t.Fatal(err)
		}
		close(leave)
		update(t, s, func(tx *Tx) error { return tx.PutSetting("j", "stayed") })
		if v, _ := s.Setting(t.Context(), "k"); v != "" {
			t.Fatal(v)
		}
	})
}

func TestFatalOnce(t *testing.T) {
	var calls atomic.Int64
	s := open(t, filepath.Join(t.TempDir(), "x.db"), Config{Fatal: func(error) { calls.Add(1) }})
	s.fail(errors.New("the disk is on fire"))
	s.fail(errors.New("again"))
	if calls.Load() != 1 {
		t.Fatal(calls.Load())
	}
	err := s.Update(t.Context(), func(tx *Tx) error { return nil })
	want(t, err, wire.Internal, "on fire")
	_, err = s.Job(t.Context(), "x")
	want(t, err, wire.Internal, "on fire")
}

// The file is damaged under the store.
func TestDamageIsFatal(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.db")
	fatal := make(chan error, 1)
	b := &bench{t: t, Store: open(t, path, Config{Fatal: func(err error) { fatal <- err }}), now: time.Now()}
	for range 200 {
		b.one(run(func(s *wire.JobSpec) { s.Script = strings.Repeat("x", 2000) }))
	}
	if err := b.outside("PRAGMA wal_checkpoint(TRUNCATE)"); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, _ := f.Stat()
	junk := slices.Repeat([]byte{0xff}, 4096)
	for off := int64(4096); off < info.Size(); off += 4096 {
		if _, err := f.WriteAt(junk, off); err != nil {
			t.Fatal(err)
		}
	}
	// Another connection's write makes the writer forget its cached pages.
	if err := b.outside("PRAGMA shrink_memory"); err != nil {
		t.Fatal(err)
	}
	for i := range 1000 {
		_, err := b.trySubmit(run(idempotent(fmt.Sprint(i))))
		if err != nil {
			break
		}
	}
	select {
	case err := <-fatal:
		t.Log(err)
	case <-time.After(10 * time.Second):
		t.Fatal("damage was not noticed")
	}
	_, err = b.trySubmit(run())
	want(t, err, wire.Internal)
}

// outside runs a statement outside of a transaction.
func (b *bench) outside(text string) error {
	return b.Store.submit(b.t.Context(), &op{done: make(chan error, 1), raw: func(c *session) error {
		_, err := c.conn.ExecContext(context.Background(), text)
		return err
	}})
}

func TestSQLiteFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a b?c#d%.db") // a name that is awkward in an address
	s := open(t, path, Config{})
	update(t, s, func(tx *Tx) error { return tx.PutSetting("k", "v") })
	for _, name := range []string{path, path + "-wal", path + "-shm"} {
		info, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v", name, info.Mode())
		}
	}
	if s.Describe() != "sqlite "+path {
		t.Error(s.Describe())
	}
	for pragma, want := range map[string]string{"journal_mode": "wal", "synchronous": "2", "auto_vacuum": "2", "page_size": "8192", "foreign_keys": "1", "busy_timeout": "10000"} {
		var got string
		err := s.submit(t.Context(), &op{done: make(chan error, 1), raw: func(c *session) error {
			return c.conn.QueryRowContext(context.Background(), "PRAGMA "+pragma).Scan(&got)
		}})
		if err != nil || got != want {
			t.Errorf("%s is %q (%v), want %q", pragma, got, err, want)
		}
	}
}

func TestReopen(t *testing.T) {
	onBoth(t, func(t *testing.T, dsn string) {
		s, err := Open(t.Context(), dsn, Config{})
		if err != nil {
			t.Fatal(err)
		}
		future := time.Now().Add(24 * time.Hour)
		var first string
		update(t, s, func(tx *Tx) error {
			jobs, err := tx.Submit([]wire.JobSpec{run()}, future)
			first = jobs[0].ID
			return err
		})
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		want(t, s.Update(t.Context(), func(*Tx) error { return nil }), wire.Unavailable)
		s = open(t, dsn, Config{})
		var second string
		update(t, s, func(tx *Tx) error {
			jobs, err := tx.Submit([]wire.JobSpec{run()}, time.Now())
			second = jobs[0].ID
			return err
		})
		if second <= first {
			t.Fatalf("%s after %s: the clock was set back", second, first)
		}
	})
}

func TestMigrations(t *testing.T) {
	onBoth(t, func(t *testing.T, dsn string) {
		s := open(t, dsn, Config{})
		// What this release has, and two more: a newer release.
		newer := fstest.MapFS{}
		names, err := fs.Glob(migrations, "migrations/*.sql")
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			text, err := migrations.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			newer[name] = &fstest.MapFile{Data: text}
		}
		newer["migrations/9998_a.sql"] = &fstest.MapFile{Data: []byte("CREATE TABLE a (x BIGINT); CREATE TABLE b (x BIGINT);")}
		newer["migrations/9999_b.sql"] = &fstest.MapFile{Data: []byte("CREATE TABLE c (x BIGINT); nonsense;")}
		if err := s.migrateFrom(t.Context(), newer); err == nil || !strings.Contains(err.Error(), "9999_b") {
			t.Fatal(err)
		}
		// All or none.
		if err := each(s.read(t.Context()), "SELECT x FROM a", nil, nil); err == nil {
			t.Fatal("half of the migrations were kept")
		}
		delete(newer, "migrations/9999_b.sql")
		for range 2 {
			if err := s.migrateFrom(t.Context(), newer); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := Open(t.Context(), dsn, Config{}); err == nil || !strings.Contains(err.Error(), "newer release") || !strings.Contains(err.Error(), "9998_a") {
			t.Fatal(err)
		}
		newer["migrations/9998_a.sql"].Data = []byte("CREATE TABLE other (x BIGINT)")
		if err := s.migrateFrom(t.Context(), newer); err == nil || !strings.Contains(err.Error(), "not the one") {
			t.Fatal(err)
		}
	})
}

// 64 goroutines submit, hand out and finish; each job is handed out once.
func TestEachJobOnce(t *testing.T) {
	onBoth(t, func(t *testing.T, dsn string) {
		each := 40
		if strings.HasPrefix(dsn, "postgres") {
			each = 8
		}
		if testing.Short() {
			each /= 4
		}
		var (
			mu    sync.Mutex
			given = map[string]string{}
		)
		stores := []*Store{open(t, dsn, Config{})}
		if strings.HasPrefix(dsn, "postgres") {
			stores = append(stores, open(t, dsn, Config{})) // two servers
		}
		var wg sync.WaitGroup
		for g := range 64 {
			wg.Go(func() {
				s := stores[g%len(stores)]
				runner := fmt.Sprintf("r%d", g)
				for i := range each {
					spec := run()
					if i%4 == 0 {
						spec = operation(wire.OpDestroy, fmt.Sprint(i%3))
					}
					if err := s.Update(t.Context(), func(tx *Tx) error {
						_, err := tx.Submit([]wire.JobSpec{spec}, time.Now())
						return err
					}); err != nil {
						t.Error(err)
						return
					}
					var out []Assigned
					if err := s.Update(t.Context(), func(tx *Tx) (err error) {
						out, err = tx.AssignReady(func() []queue.Runner { return []queue.Runner{{ID: runner, Free: 2}} }, time.Now(), 2)
						return err
					}); err != nil {
						t.Error(err)
						return
					}
					for _, a := range out {
						mu.Lock()
						if other, ok := given[a.Job]; ok {
							t.Errorf("job %s went to %s and to %s", a.Job, other, runner)
						}
						given[a.Job] = runner
						mu.Unlock()
						if err := s.Update(t.Context(), func(tx *Tx) error {
							if err := tx.Ack(a.JobRef, runner, time.Now()); err != nil {
								return err
							}
							if _, err := tx.AppendLog(a.JobRef, runner, []wire.Data{{Bytes: []byte("x")}}); err != nil {
								return err
							}
							return tx.Finish(a.JobRef, runner, wire.Result{State: wire.Success, LogBytes: 1}, time.Now())
						}); err != nil {
							t.Error(err)
						}
					}
				}
			})
		}
		wg.Wait()
		// What is left was serialized behind others.
		for left := true; left && !t.Failed(); {
			update(t, stores[0], func(tx *Tx) error {
				out, err := tx.AssignReady(func() []queue.Runner { return []queue.Runner{{ID: "last", Free: 100}} }, time.Now(), 100)
				left = len(out) > 0
				for _, a := range out {
					if err := tx.Finish(a.JobRef, "last", wire.Result{State: wire.Success}, time.Now()); err != nil {
						return err
					}
				}
				return err
			})
		}
		counts, err := stores[0].JobCounts(t.Context())
		if err != nil || counts[wire.Success] != 64*each || len(counts) != 1 {
			t.Fatal(counts, err)
		}
	})
}

// A committer that hands out jobs waits for the queue's lock, which another one
// holds that wants to hand out jobs as well: whoever comes second must not wait
// for the first in a way that the database does not see.
func TestMatchersDoNotWaitForEachOther(t *testing.T) {
	onBoth(t, func(t *testing.T, dsn string) {
		matching := make(chan struct{}, 100)
		s := open(t, dsn, Config{Match: func(tx *Tx) (func(bool), error) {
			matching <- struct{}{}
			_, err := tx.AssignReady(func() []queue.Runner { return nil }, time.Now(), 1)
			return func(bool) {}, err
		}})
		submit := func(f func()) error {
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			return s.Update(ctx, func(tx *Tx) error {
				_, err := tx.Submit([]wire.JobSpec{run()}, time.Now())
				f()
				return err
			})
		}
		if err := submit(func() {}); err != nil {
			t.Fatal(err)
		}
		<-matching
		if err := submit(func() {
			s.Kick()
			select {
			case <-matching: // another committer's
			case <-time.After(100 * time.Millisecond): // it waits, or there is none
			}
		}); err != nil {
			t.Fatal(err)
		}
		if err := submit(func() {}); err != nil {
			t.Fatal(err)
		}
	})
}
