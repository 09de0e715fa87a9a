package store

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/waypointd/waypoint/daemon/queue"
	"github.com/waypointd/waypoint/mux/wire"
)

// bench is a store with a clock that the test moves, and its runners.
type bench struct {
	t testing.TB
	*Store
	now     time.Time
	runners []queue.Runner
}

func newBench(t testing.TB, dsn string, runners ...queue.Runner) *bench {
	if len(runners) == 0 {
		runners = []queue.Runner{{ID: "r1"}}
	}
	return &bench{t: t, Store: open(t, dsn, Config{}), now: time.UnixMicro(1_763_000_000_000_000).UTC(), runners: runners}
}

func run(change ...func(*wire.JobSpec)) wire.JobSpec {
	s := wire.JobSpec{Operation: wire.OpRun, Target: wire.Target{Any: true}, Command: []string{"true"}}
	for _, c := range change {
		c(&s)
	}
	return s
}

func operation(op wire.Operation, app string, change ...func(*wire.JobSpec)) wire.JobSpec {
	return run(append([]func(*wire.JobSpec){func(s *wire.JobSpec) { s.Operation, s.Project, s.App = op, "shop", app }}, change...)...)
}

func dependsOn(ids ...string) func(*wire.JobSpec) {
	return func(s *wire.JobSpec) { s.DependsOn = ids }
}
func singleton(key string) func(*wire.JobSpec) { return func(s *wire.JobSpec) { s.Singleton = key } }
func priority(p int) func(*wire.JobSpec)       { return func(s *wire.JobSpec) { s.Priority = p } }
func expiresIn(d time.Duration) func(*wire.JobSpec) {
	return func(s *wire.JobSpec) { s.ExpiresIn = wire.Duration(d) }
}
func forRunner(id string) func(*wire.JobSpec) {
	return func(s *wire.JobSpec) { s.Target = wire.Target{ID: id} }
}
func forLabels(labels map[string]string) func(*wire.JobSpec) {
	return func(s *wire.JobSpec) { s.Target = wire.Target{Labels: labels} }
}
func workspace(w string) func(*wire.JobSpec) { return func(s *wire.JobSpec) { s.Workspace = w } }
func allowFailure(s *wire.JobSpec)           { s.AllowDependencyFailure = true }
func idempotent(key string) func(*wire.JobSpec) {
	return func(s *wire.JobSpec) { s.IdempotencyKey = key }
}

func (b *bench) trySubmit(specs ...wire.JobSpec) (jobs []wire.Job, err error) {
	b.now = b.now.Add(time.Millisecond)
	err = b.Update(b.t.Context(), func(tx *Tx) (err error) {
		jobs, err = tx.Submit(specs, b.now)
		return err
	})
	return jobs, err
}

func (b *bench) submit(specs ...wire.JobSpec) []string {
	b.t.Helper()
	jobs, err := b.trySubmit(specs...)
	if err != nil {
		b.t.Fatal(err)
	}
	var ids []string
	for _, j := range jobs {
		ids = append(ids, j.ID)
	}
	return ids
}

func (b *bench) one(spec wire.JobSpec) string { b.t.Helper(); return b.submit(spec)[0] }

// assign hands out to the given runners, each with room for one more.
func (b *bench) assign(ids ...string) []Assigned {
	b.t.Helper()
	var rs []queue.Runner
	for _, r := range b.runners {
		if len(ids) == 0 || slices.Contains(ids, r.ID) {
			if r.Free == 0 {
				r.Free = 1
			}
			rs = append(rs, r)
		}
	}
	var out []Assigned
	b.now = b.now.Add(time.Millisecond)
	update(b.t, b.Store, func(tx *Tx) (err error) {
		out, err = tx.AssignReady(func() []queue.Runner { return slices.Clone(rs) }, b.now, 1000)
		return err
	})
	return out
}

// given assigns and wants exactly these jobs, in this order.
func (b *bench) given(ids ...string) []Assigned {
	b.t.Helper()
	out := b.assign()
	var got []string
	for _, a := range out {
		got = append(got, a.Job)
	}
	if !slices.Equal(got, ids) {
		b.t.Fatalf("handed out %v, want %v", got, ids)
	}
	return out
}

func (b *bench) job(id string) wire.Job {
	b.t.Helper()
	j, err := b.Job(b.t.Context(), id)
	if err != nil {
		b.t.Fatal(err)
	}
	return j
}

func (b *bench) ref(id string) (wire.JobRef, string) {
	j := b.job(id)
	return wire.JobRef{Job: id, Attempt: j.Attempt}, j.RunnerID
}

func (b *bench) do(id string, f func(tx *Tx, ref wire.JobRef, runner string) error) {
	b.t.Helper()
	ref, runner := b.ref(id)
	b.now = b.now.Add(time.Millisecond)
	update(b.t, b.Store, func(tx *Tx) error { return f(tx, ref, runner) })
}

func (b *bench) ack(id string) {
	b.t.Helper()
	b.do(id, func(tx *Tx, ref wire.JobRef, r string) error { return tx.Ack(ref, r, b.now) })
}

func (b *bench) requeue(id string) {
	b.t.Helper()
	b.do(id, func(tx *Tx, ref wire.JobRef, r string) error { return tx.Requeue(ref, r, b.now) })
}

func (b *bench) finish(id string, res wire.Result) {
	b.t.Helper()
	b.do(id, func(tx *Tx, ref wire.JobRef, r string) error { return tx.Finish(ref, r, res, b.now) })
}

func (b *bench) succeed(id string) { b.t.Helper(); b.finish(id, wire.Result{State: wire.Success}) }
func (b *bench) fail(id string) {
	b.t.Helper()
	b.finish(id, wire.Result{State: wire.Failed, Error: "exit status 1", ExitCode: new(1)})
}

func (b *bench) cancel(id string, force bool) wire.Job {
	b.t.Helper()
	var j wire.Job
	update(b.t, b.Store, func(tx *Tx) (err error) {
		j, err = tx.Cancel(id, force, b.now)
		return err
	})
	return j
}

func (b *bench) is(id string, state wire.State, reason wire.Reason) wire.Job {
	b.t.Helper()
	j := b.job(id)
	if j.State != state || j.Reason != reason {
		b.t.Fatalf("job %s is %s/%s (%s), want %s/%s", id, j.State, j.Reason, j.Error, state, reason)
	}
	return j
}

func (b *bench) blocked(id string, by queue.Blocked) QueueFacts {
	b.t.Helper()
	f, err := b.QueueFacts(b.t.Context(), id)
	if err != nil {
		b.t.Fatal(err)
	}
	if f.Job.State != wire.Queued || f.Blocked != by {
		b.t.Fatalf("job %s is %s, blocked %q, want %q", id, f.Job.State, f.Blocked, by)
	}
	return f
}

// isKind reports whether err is a *wire.Error of a kind.
func isKind(err error, kind wire.Kind) bool { return errors.Is(err, &wire.Error{Kind: kind}) }

func want(t testing.TB, err error, kind wire.Kind, words ...string) {
	t.Helper()
	if !errors.Is(err, &wire.Error{Kind: kind}) {
		t.Fatalf("got %v, want %s", err, kind)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Fatalf("%q does not say %q", err, w)
		}
	}
}

func TestOneJobsWay(t *testing.T) {
	onEach(t, func(t *testing.T, dsn string) {
		b := newBench(t, dsn)
		spec := operation(wire.OpRun, "web", func(s *wire.JobSpec) { s.Env = map[string]string{"A": "b"}; s.Profile = "p" })
		a, second := b.one(spec), b.one(run())
		j := b.is(a, wire.Queued, "")
		if !j.QueuedAt.Before(b.now) || j.Workspace != "default" || !slices.Equal(j.Command, []string{"true"}) || !j.Target.Any {
			t.Fatalf("%+v", j)
		}
		got := b.given(a)[0]
		if got.RunnerID != "r1" || got.Attempt != 1 || got.Spec.Env["A"] != "b" || got.Spec.Workspace != "default" {
			t.Fatalf("%+v", got)
		}
		j = b.is(a, wire.Assigned, "")
		if j.RunnerID != "r1" || j.AssignedAt.IsZero() || j.Attempt != 1 {
			t.Fatalf("%+v", j)
		}
		b.ack(a)
		if j = b.is(a, wire.Running, ""); j.StartedAt.IsZero() {
			t.Fatalf("%+v", j)
		}
		b.given(second)
		b.finish(a, wire.Result{State: wire.Success, ExitCode: new(0), Outputs: map[string]string{"k": "v"},
			Usage: &wire.Usage{CPUSeconds: 1.5, MaxRSSBytes: 4096, WallSeconds: 2}})
		j = b.is(a, wire.Success, "")
		if *j.ExitCode != 0 || j.Outputs["k"] != "v" || j.Usage.CPUSeconds != 1.5 || j.FinishedAt.IsZero() {
			t.Fatalf("%+v", j)
		}
	})
}

func TestTargets(t *testing.T) {
	onEach(t, func(t *testing.T, dsn string) {
		b := newBench(t, dsn,
			queue.Runner{ID: "r1", Labels: map[string]string{"zone": "eu", "arch": "arm64"}},
			queue.Runner{ID: "r2", Labels: map[string]string{"zone": "us"}},
			queue.Runner{ID: "cli", ByIDOnly: true, Labels: map[string]string{"zone": "eu"}})
		old := b.one(run(forRunner("r2")))
		byID := b.one(run(forRunner("cli")))
		eu := b.one(run(forLabels(map[string]string{"zone": "eu"})))
		none := b.one(run(forLabels(map[string]string{"zone": "eu", "gpu": "yes"})))
		first := func(runner string, want string) {
			t.Helper()
			out := b.assign(runner)
			if want == "" && len(out) == 0 {
				return
			}
			if len(out) != 1 || out[0].Job != want || out[0].RunnerID != runner {
				t.Fatalf("%s got %+v, want %s", runner, out, want)
			}
		}
		first("r1", eu)
		first("r1", "") // the job by id is not for it
		first("cli", byID)
		low := b.one(run(priority(-1)))
		mid1, mid2 := b.one(run()), b.one(run())
		high := b.one(run(priority(7)))
		first("cli", "") // never gets anything else
		first("r1", high)
		first("r1", mid1)
		first("r2", old) // oldest of all that it matches
		first("r2", mid2)
		first("r2", low)
		first("r2", "")
		b.is(none, wire.Queued, "")
		// The runner with the most room.
		b.runners = []queue.Runner{{ID: "a", Free: 1}, {ID: "b", Free: 3}, {ID: "c", Free: 3}}
		var got []string
		b.submit(run(), run(), run(), run())
		for _, a := range b.assign() {
			got = append(got, a.RunnerID)
		}
		if !slices.Equal(got, []string{"b", "c", "b", "c"}) {
			t.Fatal(got)
		}
	})
}

func TestFailedAndLost(t *testing.T) {
	onEach(t, func(t *testing.T, dsn string) {
		b := newBench(t, dsn)
		a := b.one(run())
		child := b.one(run(dependsOn(a)))
		b.given(a)
		b.ack(a)
		b.finish(a, wire.Result{State: wire.Failed, Reason: wire.ReasonTimeout, Error: "ran \x00longer\xff", Signal: "SIGKILL"})
		if j := b.is(a, wire.Failed, wire.ReasonTimeout); j.Error != "ran \uFFFDlonger\uFFFD" || j.Signal != "SIGKILL" || j.ExitCode != nil {
			t.Fatalf("%+v", j)
		}
		b.is(child, wire.Failed, wire.ReasonDependency)
		c := b.one(run())
		b.given(c)
		b.do(c, func(tx *Tx, ref wire.JobRef, _ string) error { return tx.Lost(ref, "no contact", b.now) })
		if j := b.is(c, wire.Failed, wire.ReasonRunnerLost); j.Error != "no contact" {
			t.Fatal(j.Error)
		}
	})
}

func TestCancel(t *testing.T) {
	onEach(t, func(t *testing.T, dsn string) {
		b := newBench(t, dsn, queue.Runner{ID: "r1", Free: 10})
		a := b.one(run())
		child := b.one(run(dependsOn(a)))
		b.cancel(a, false)
		b.is(a, wire.Canceled, wire.ReasonCanceled)
		b.is(child, wire.Failed, wire.ReasonDependency)

		a = b.one(run())
		b.given(a)
		if j := b.cancel(a, false); j.State != wire.Assigned || j.CancelRequested.IsZero() {
			t.Fatalf("%+v", j)
		}
		act, err := b.Active(t.Context())
		if err != nil || len(act) != 1 || !act[0].CancelRequested || act[0].State != wire.Assigned {
			t.Fatalf("%v %+v", err, act)
		}
		b.ack(a)
		b.succeed(a) // in time
		if j := b.is(a, wire.Success, ""); j.CancelRequested.IsZero() {
			t.Fatalf("%+v", j)
		}

		a = b.one(run())
		b.given(a)
		b.cancel(a, false)
		b.ack(a)
		b.finish(a, wire.Result{State: wire.Canceled, Signal: "SIGTERM"})
		b.is(a, wire.Canceled, wire.ReasonCanceled)

		a = b.one(run())
		b.given(a)
		b.cancel(a, false)
		b.requeue(a)
		b.is(a, wire.Canceled, wire.ReasonCanceled)

		a = b.one(run())
		child = b.one(run(dependsOn(a)))
		b.given(a)
		b.ack(a)
		b.cancel(a, true)
		j := b.is(a, wire.Canceled, wire.ReasonCanceled)
		b.is(child, wire.Failed, wire.ReasonDependency)
		if again := b.cancel(a, true); again.State != wire.Canceled || !again.FinishedAt.Equal(j.FinishedAt) {
			t.Fatalf("%+v", again)
		}
		_, err = b.Job(t.Context(), "nonsense")
		want(t, err, wire.NotFound)
		want(t, b.Update(t.Context(), func(tx *Tx) error { _, err := tx.Cancel("nonsense", false, b.now); return err }), wire.NotFound)
	})
}

func TestExpiry(t *testing.T) {
	onEach(t, func(t *testing.T, dsn string) {
		b := newBench(t, dsn)
		a := b.one(run(expiresIn(time.Minute)))
		child := b.one(run(dependsOn(a), expiresIn(time.Minute)))
		stays := b.one(run(expiresIn(time.Hour)))
		taken := b.one(run(priority(1), expiresIn(time.Minute)))
		b.given(taken)
		at, err := b.NextExpiry(t.Context())
		if err != nil || !at.Equal(b.job(a).ExpiresAt) {
			t.Fatal(at, err)
		}
		b.now = b.now.Add(2 * time.Minute)
		b.given(stays) // the expired one is passed over
		var n int
		update(t, b.Store, func(tx *Tx) (err error) { n, err = tx.Expire(b.now); return err })
		if n != 1 {
			t.Fatal(n)
		}
		b.is(a, wire.Failed, wire.ReasonExpired)
		b.is(child, wire.Failed, wire.ReasonDependency)
		b.is(taken, wire.Assigned, "")
		if at, err := b.NextExpiry(t.Context()); err != nil || !at.IsZero() {
			t.Fatal(at, err)
		}
	})
}

func TestAbandon(t *testing.T) {
	onEach(t, func(t *testing.T, dsn string) {
		b := newBench(t, dsn)
		a := b.one(run(forRunner("cli")))
		waits := b.one(run(forRunner("cli"), dependsOn(a)))
		stays := b.one(run(forRunner("cli2")))
		var n int
		update(t, b.Store, func(tx *Tx) (err error) { n, err = tx.Abandon("cli", "the command line is gone", b.now); return err })
		if n != 1 {
			t.Fatal(n)
		}
		b.is(a, wire.Failed, wire.ReasonRunnerLost)
		b.is(waits, wire.Failed, wire.ReasonDependency)
		b.is(stays, wire.Queued, "")
	})
}

// An active job has the spool of the runner that it was assigned to last.
func TestSpoolOfAssignment(t *testing.T) {
	onEach(t, func(t *testing.T, dsn string) {
		b := newBench(t, dsn, queue.Runner{ID: "r1", Spool: "a"}, queue.Runner{ID: "r2", Spool: "b"})
		id := b.one(wire.JobSpec{Operation: wire.OpRun, Target: wire.Target{Any: true}, Command: []string{"true"}})
		spool := func(want string) {
			t.Helper()
			if active, err := b.Active(t.Context()); err != nil || len(active) != 1 || active[0].Job != id || active[0].Spool != want {
				t.Fatalf("active is %+v, %v; want it of spool %q", active, err, want)
			}
		}
		b.assign("r1")
		spool("a")
		b.do(id, func(tx *Tx, ref wire.JobRef, runner string) error { return tx.Requeue(ref, runner, b.now) })
		b.assign("r2")
		spool("b")
		b.do(id, func(tx *Tx, ref wire.JobRef, runner string) error { return tx.Ack(ref, runner, b.now) })
		spool("b")
		if kept, err := b.Kept(t.Context(), []string{id}); err != nil || len(kept) != 1 || kept[0].Spool != "b" {
			t.Fatalf("kept is %+v, %v", kept, err)
		}
	})
}
