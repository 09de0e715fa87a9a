package store

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/waypointd/waypoint/daemon/queue"
	"github.com/waypointd/waypoint/daemon/store/storetest"
	"github.com/waypointd/waypoint/mux/wire"
)

func benchBoth(b *testing.B, f func(b *testing.B, dsn string)) {
	b.Run("sqlite", func(b *testing.B) {
		dir, err := os.MkdirTemp(os.Getenv("STORE_BENCH_DIR"), "store")
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { os.RemoveAll(dir) })
		f(b, filepath.Join(dir, "waypoint.db"))
	})
	b.Run("postgres", func(b *testing.B) { f(b, storetest.Database(b)) })
}

// parallel runs b.N calls of f on n goroutines.
func parallel(b *testing.B, n int, f func()) {
	var left atomic.Int64
	left.Store(int64(b.N))
	var wg sync.WaitGroup
	b.ResetTimer()
	for range n {
		wg.Go(func() {
			for left.Add(-1) >= 0 {
				f()
			}
		})
	}
	wg.Wait()
	b.StopTimer()
}

func benchSpec() wire.JobSpec {
	return run(func(s *wire.JobSpec) {
		s.Project, s.App, s.Command = "shop", "web", []string{"make", "-C", "services/web", "test"}
		s.Env = map[string]string{"LOG_LEVEL": "info", "PAD": strings.Repeat("x", 300)}
	})
}

func BenchmarkEnqueue(b *testing.B) {
	for _, callers := range []int{1, 64} {
		b.Run(fmt.Sprint(callers), func(b *testing.B) {
			benchBoth(b, func(b *testing.B, dsn string) {
				s := open(b, dsn, Config{})
				spec := benchSpec()
				parallel(b, callers, func() {
					if err := s.Update(b.Context(), func(tx *Tx) error {
						_, err := tx.Submit([]wire.JobSpec{spec}, time.Now())
						return err
					}); err != nil {
						b.Error(err)
					}
				})
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "enqueues/s")
			})
		})
	}
}

// A job's two commits: queued and assigned by Match, then its last output and
// its result. The acknowledgement is not waited for.
func BenchmarkLifecycle(b *testing.B) {
	for _, callers := range []int{1, 64} {
		b.Run(fmt.Sprint(callers), func(b *testing.B) {
			benchBoth(b, func(b *testing.B, dsn string) {
				var given sync.Map // job -> chan Assigned
				wait := func(id string) chan Assigned {
					ch, _ := given.LoadOrStore(id, make(chan Assigned, 1))
					return ch.(chan Assigned)
				}
				s := open(b, dsn, Config{Match: func(tx *Tx) (func(bool), error) {
					out, err := tx.AssignReady(func() []queue.Runner { return []queue.Runner{{ID: "r", Free: 1 << 20}} }, time.Now(), 1<<20)
					if err != nil {
						b.Error(err)
					}
					return func(committed bool) {
						for _, a := range out {
							if committed {
								wait(a.Job) <- a
							}
						}
					}, nil
				}})
				spec := benchSpec()
				parallel(b, callers, func() {
					var id string
					if err := s.Update(b.Context(), func(tx *Tx) error {
						jobs, err := tx.Submit([]wire.JobSpec{spec}, time.Now())
						if err == nil {
							id = jobs[0].ID
						}
						return err
					}); err != nil {
						b.Error(err)
						return
					}
					a := <-wait(id)
					given.Delete(id)
					if err := s.Update(b.Context(), func(tx *Tx) error {
						if err := tx.Ack(a.JobRef, a.RunnerID, time.Now()); err != nil {
							return err
						}
						if _, err := tx.AppendLog(a.JobRef, a.RunnerID, []wire.Data{{Bytes: []byte("hello\n"), Stream: 1, Time: time.Now()}}); err != nil {
							return err
						}
						return tx.Finish(a.JobRef, a.RunnerID, wire.Result{State: wire.Success, LogBytes: 6}, time.Now())
					}); err != nil {
						b.Error(err)
					}
				})
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "lifecycles/s")
			})
		})
	}
}

func BenchmarkAppendLog(b *testing.B) {
	for _, jobs := range []int{1, 16} {
		b.Run(fmt.Sprint(jobs), func(b *testing.B) {
			benchBoth(b, func(b *testing.B, dsn string) {
				s := open(b, dsn, Config{})
				specs := make([]wire.JobSpec, jobs)
				for i := range specs {
					specs[i] = run()
				}
				var out []Assigned
				update(b, s, func(tx *Tx) (err error) {
					if _, err = tx.Submit(specs, time.Now()); err != nil {
						return err
					}
					out, err = tx.AssignReady(func() []queue.Runner { return []queue.Runner{{ID: "r", Free: 1 << 20}} }, time.Now(), 1<<20)
					return err
				})
				data := make([]byte, maxRow)
				for i := range data {
					data[i] = byte(i * 7)
				}
				var next atomic.Int64
				b.SetBytes(maxRow)
				parallel(b, jobs, func() {}) // sets the timer
				var wg sync.WaitGroup
				b.ResetTimer()
				b.StartTimer()
				for _, a := range out {
					wg.Go(func() {
						for off := int64(0); next.Add(1) <= int64(b.N); off += maxRow {
							if err := s.Update(b.Context(), func(tx *Tx) error {
								_, err := tx.AppendLog(a.JobRef, a.RunnerID, []wire.Data{{Offset: off, Bytes: data, Stream: 1, Time: time.Now()}})
								return err
							}); err != nil {
								b.Error(err)
								return
							}
						}
					})
				}
				wg.Wait()
				b.StopTimer()
			})
		})
	}
}

// A claim with 10,000 jobs queued and blocked, and with as many ready.
func BenchmarkAssign(b *testing.B) {
	for _, kind := range []string{"blocked", "ready"} {
		b.Run(kind, func(b *testing.B) {
			benchBoth(b, func(b *testing.B, dsn string) {
				bb := &bench{t: b, Store: open(b, dsn, Config{}), now: time.Now()}
				root := bb.one(run(forRunner("nobody")))
				for range 10 {
					specs := make([]wire.JobSpec, 1000)
					for i := range specs {
						specs[i] = run()
						if kind == "blocked" {
							specs[i] = run(dependsOn(root))
						}
					}
					bb.submit(specs...)
				}
				b.ResetTimer()
				for range b.N {
					update(b, bb.Store, func(tx *Tx) error {
						out, err := tx.AssignReady(func() []queue.Runner { return []queue.Runner{{ID: "r", Free: 1}} }, bb.now, 1)
						for _, a := range out {
							if err := tx.Requeue(a.JobRef, "r", bb.now); err != nil {
								return err
							}
						}
						return err
					})
				}
			})
		})
	}
}

// BenchmarkMillion fills a store with STORE_BENCH_JOBS (a million) ended jobs and
// measures what must not grow with them.
func BenchmarkMillion(b *testing.B) {
	benchBoth(b, func(b *testing.B, dsn string) {
		total := 1_000_000
		if v := os.Getenv("STORE_BENCH_JOBS"); v != "" {
			fmt.Sscan(v, &total)
		}
		s, err := Open(b.Context(), dsn, Config{})
		if err != nil {
			b.Fatal(err)
		}
		spec := benchSpec()
		start := time.Now()
		for n := 0; n < total; n += 1000 {
			update(b, s, func(tx *Tx) error {
				for i := range 1000 {
					spec.Project = fmt.Sprintf("p%d", i%50)
					jobs, err := tx.Submit([]wire.JobSpec{spec}, time.Now())
					if err != nil {
						return err
					}
					state, reason := "success", ""
					if i%20 == 0 {
						state, reason = "error", "failed"
					}
					if _, err := tx.exec(`UPDATE jobs SET state = $1, reason = $2, attempt = 1, runner_id = $3, finished_at = $4, blocked = '' WHERE id = $5`,
						state, reason, fmt.Sprintf("r%d", i%100), time.Now().UnixMicro(), jobs[0].ID); err != nil {
						return err
					}
				}
				return nil
			})
		}
		b.ReportMetric(time.Since(start).Seconds(), "fill-s")
		s.Close()
		start = time.Now()
		s = open(b, dsn, Config{})
		b.ReportMetric(float64(time.Since(start).Microseconds())/1000, "open-ms")
		for _, f := range []struct {
			name string
			f    func() error
		}{
			{"newest", func() error { _, err := s.Jobs(b.Context(), wire.JobFilter{}); return err }},
			{"failed", func() error { _, err := s.Jobs(b.Context(), wire.JobFilter{State: wire.Failed}); return err }},
			{"project", func() error { _, err := s.Jobs(b.Context(), wire.JobFilter{Project: "p7"}); return err }},
			{"runner-failed", func() error {
				_, err := s.Jobs(b.Context(), wire.JobFilter{Runner: "r40", State: wire.Failed})
				return err
			}},
			{"counts", func() error { _, err := s.JobCounts(b.Context()); return err }},
			{"claim", func() error {
				return s.Update(b.Context(), func(tx *Tx) error {
					_, err := tx.AssignReady(func() []queue.Runner { return nil }, time.Now(), 1)
					return err
				})
			}},
			{"enqueue", func() error {
				return s.Update(b.Context(), func(tx *Tx) error {
					_, err := tx.Submit([]wire.JobSpec{spec}, time.Now())
					return err
				})
			}},
			{"active", func() error { _, err := s.Active(b.Context()); return err }},
		} {
			b.Run(f.name, func(b *testing.B) {
				for b.Loop() {
					if err := f.f(); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	})
}

// A log of 4 MiB, read from its beginning to its end.
func BenchmarkLog(b *testing.B) {
	for _, batch := range []int{16 << 10, 256 << 10} {
		b.Run(fmt.Sprintf("%dKiB", batch>>10), func(b *testing.B) {
			benchBoth(b, func(b *testing.B, dsn string) {
				const length = 4 << 20
				s := open(b, dsn, Config{})
				var job wire.JobRef
				update(b, s, func(tx *Tx) error {
					if _, err := tx.Submit([]wire.JobSpec{run()}, time.Now()); err != nil {
						return err
					}
					out, err := tx.AssignReady(func() []queue.Runner { return []queue.Runner{{ID: "r", Free: 1}} }, time.Now(), 1)
					if err != nil {
						return err
					}
					job = out[0].JobRef
					_, err = tx.AppendLog(job, "r", []wire.Data{{Bytes: make([]byte, length), Stream: 1, Time: time.Now()}})
					return err
				})
				b.SetBytes(length)
				b.ReportAllocs()
				for b.Loop() {
					for offset := int64(0); offset < length; {
						chunks, _, err := s.Log(b.Context(), job.Job, job.Attempt, offset, batch)
						if err != nil {
							b.Fatal(err)
						}
						for _, c := range chunks {
							offset += int64(len(c.Bytes))
						}
					}
				}
			})
		})
	}
}
