package store

import (
	"errors"
	"fmt"
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

// Behaviours 33, 37, 48, 56, 82.
func TestOneJobsWay(t *testing.T) {
	onBoth(t, func(t *testing.T, dsn string) {
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
		again, err := b.Assignment(t.Context(), got.JobRef)
		if err != nil || fmt.Sprint(again) != fmt.Sprint(got.Assignment) {
			t.Fatalf("%v: %+v, want %+v", err, again, got.Assignment)
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
		if _, err := b.Assignment(t.Context(), got.JobRef); !isKind(err, wire.Conflict) {
			t.Fatal(err)
		}
	})
}

// Behaviours 35, 37: one deploy, release or destroy of an app at a time.
func TestSerialized(t *testing.T) {
	onBoth(t, func(t *testing.T, dsn string) {
		b := newBench(t, dsn, queue.Runner{ID: "r1", Free: 10})
		build := b.one(operation(wire.OpBuild, "web"))
		b.given(build)
		b.succeed(build)
		stage := b.one(operation(wire.OpBuild, "web", workspace("stage")))
		b.given(stage)
		b.succeed(stage)
		first := b.one(operation(wire.OpDeploy, "web"))
		other := b.one(operation(wire.OpDeploy, "web", workspace("stage")))
		second := b.one(operation(wire.OpDestroy, "web"))
		third := b.one(operation(wire.OpDestroy, "web", priority(1)))
		// The newcomer of a higher priority goes first: the other was not yet given away.
		b.blocked(first, queue.BySerial)
		b.given(third, other)
		if f := b.blocked(second, queue.BySerial); len(f.By) != 1 || f.By[0].ID != third {
			t.Fatalf("%+v", f.By)
		}
		b.one(operation(wire.OpRun, "web"))
		b.assign()
		urgent := b.one(operation(wire.OpDestroy, "web", priority(5)))
		b.given() // what is in progress stays
		b.succeed(third)
		b.given(urgent)
		b.fail(urgent)
		b.given(first)
		b.requeue(first) // keeps the right to go next
		b.blocked(second, queue.BySerial)
		b.given(first)
		b.cancel(first, true)
		b.given(second)
		// One that waits for its dependency does not hold the others up.
		dep := b.one(run(forRunner("nobody")))
		waits := b.one(operation(wire.OpDestroy, "web", dependsOn(dep)))
		later := b.one(operation(wire.OpDestroy, "web"))
		b.succeed(second)
		b.given(later)
		b.blocked(waits, queue.ByDependency)
		b.cancel(dep, false)
		b.is(waits, wire.Failed, wire.ReasonDependency)
	})
}

func TestRequeueGivesWayToAHigherPriority(t *testing.T) {
	onBoth(t, func(t *testing.T, dsn string) {
		b := newBench(t, dsn)
		first := b.one(operation(wire.OpDestroy, "web"))
		b.given(first)
		urgent := b.one(operation(wire.OpDestroy, "web", priority(1)))
		b.blocked(urgent, queue.BySerial)
		b.requeue(first)
		b.blocked(first, queue.BySerial)
		b.given(urgent)
	})
}

// Behaviours 38 to 40, and priority.
func TestTargets(t *testing.T) {
	onBoth(t, func(t *testing.T, dsn string) {
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

// Behaviours 42, 43, 58, 60, 65.
func TestDependencies(t *testing.T) {
	onBoth(t, func(t *testing.T, dsn string) {
		b := newBench(t, dsn, queue.Runner{ID: "r1", Free: 10})
		// In any order.
		ids := b.submit(run(dependsOn("#1", "#2", "#1")), run(dependsOn("#2")), run())
		if j := b.job(ids[0]); !slices.Equal(j.DependsOn, []string{ids[1], ids[2]}) {
			t.Fatal(j.DependsOn)
		}
		if f := b.blocked(ids[0], queue.ByDependency); len(f.By) != 2 {
			t.Fatalf("%+v", f)
		}
		b.given(ids[2])
		b.given()
		b.succeed(ids[2])
		b.given(ids[1])
		b.blocked(ids[0], queue.ByDependency)
		b.succeed(ids[1])
		b.given(ids[0])
		b.succeed(ids[0])
		// One that has succeeded already.
		b.given(b.one(run(dependsOn(ids[0]))))

		// The cascade, down and across, once each.
		tree := b.submit(run(), run(dependsOn("#0")), run(dependsOn("#0", "#1")), run(dependsOn("#2")),
			run(dependsOn("#1"), allowFailure), run(dependsOn("#0", "#1"), allowFailure))
		b.given(tree[0])
		b.fail(tree[0])
		for _, id := range tree[1:4] {
			if j := b.is(id, wire.Failed, wire.ReasonDependency); !strings.Contains(j.Error, "job "+tree[0]) && !strings.Contains(j.Error, "job "+tree[2]) {
				t.Fatal(j.Error)
			}
		}
		if j := b.job(tree[1]); !strings.Contains(j.Error, tree[0]) {
			t.Fatal(j.Error)
		}
		b.given(tree[4], tree[5])
		// One that has failed already.
		late := b.one(run(dependsOn(tree[0])))
		b.is(late, wire.Failed, wire.ReasonDependency)
		b.given(b.one(run(dependsOn(tree[0]), allowFailure)))

		_, err := b.trySubmit(run(), run(dependsOn("nonsense")))
		want(t, err, wire.NotFound, "nonsense")
		_, err = b.trySubmit(run(dependsOn("#1")), run(dependsOn("#2")), run(dependsOn("#0")))
		want(t, err, wire.Conflict, "#0 -> #1 -> #2 -> #0")
		_, err = b.trySubmit(run(dependsOn("#5")))
		want(t, err, wire.BadUsage)
		b.given() // all or none
	})
}

// Behaviours 66, 68 and cli.md's rules.
func TestSingletons(t *testing.T) {
	onBoth(t, func(t *testing.T, dsn string) {
		b := newBench(t, dsn)
		old := b.one(run(singleton("nightly")))
		other := b.one(run(singleton("hourly")))
		between := b.one(run())
		child := b.one(run(dependsOn(old)))
		newer := b.one(run(singleton("nightly")))
		if j := b.is(old, wire.Canceled, wire.ReasonSuperseded); !strings.Contains(j.Error, newer) {
			t.Fatal(j.Error)
		}
		b.is(child, wire.Failed, wire.ReasonDependency)
		b.given(newer) // the place of the oldest
		// What is assigned stays, and the newer one waits behind it.
		third := b.one(run(singleton("nightly")))
		if f := b.blocked(third, queue.BySingleton); len(f.By) != 1 || f.By[0].ID != newer {
			t.Fatalf("%+v", f)
		}
		fourth := b.one(run(singleton("nightly")))
		b.is(third, wire.Canceled, wire.ReasonSuperseded)
		b.blocked(fourth, queue.BySingleton)
		b.ack(newer)
		b.given(other)
		b.given(between)
		b.given()
		b.succeed(newer)
		b.given(fourth)
		b.is(newer, wire.Success, "")
		// One that comes back to the queue meets a newer one.
		fifth := b.one(run(singleton("nightly")))
		last := b.one(run())
		b.requeue(fourth)
		b.is(fourth, wire.Canceled, wire.ReasonSuperseded)
		b.given(fifth)
		b.given(last)
	})
}

func TestIdempotencyKeys(t *testing.T) {
	onBoth(t, func(t *testing.T, dsn string) {
		b := newBench(t, dsn)
		a := b.one(run(idempotent("k")))
		if again := b.one(run(idempotent("k"))); again != a {
			t.Fatal(again)
		}
		ids := b.submit(run(idempotent("l")), run(dependsOn("#0")), run(idempotent("l")), run(idempotent("k"), dependsOn("#1")))
		if ids[2] != ids[0] || ids[3] != a {
			t.Fatal(ids)
		}
		b.given(a)
		b.succeed(a)
		if again := b.one(run(idempotent("k"))); again != a {
			t.Fatal(again)
		}
	})
}

// Behaviours 49, 55.
func TestRequeue(t *testing.T) {
	onBoth(t, func(t *testing.T, dsn string) {
		b := newBench(t, dsn)
		a := b.one(run())
		ref := b.given(a)[0].JobRef
		b.requeue(a)
		if j := b.is(a, wire.Queued, ""); j.RunnerID != "" || !j.AssignedAt.IsZero() || j.Attempt != 1 {
			t.Fatalf("%+v", j)
		}
		if got := b.given(a)[0]; got.Attempt != 2 {
			t.Fatal(got.Attempt)
		}
		for name, f := range map[string]func(tx *Tx) error{
			"ack":     func(tx *Tx) error { return tx.Ack(ref, "r1", b.now) },
			"requeue": func(tx *Tx) error { return tx.Requeue(ref, "r1", b.now) },
			"finish":  func(tx *Tx) error { return tx.Finish(ref, "r1", wire.Result{State: wire.Success}, b.now) },
			"lost":    func(tx *Tx) error { return tx.Lost(ref, "gone", b.now) },
			"append": func(tx *Tx) error {
				_, err := tx.AppendLog(ref, "r1", []wire.Data{{Bytes: []byte("x")}})
				return err
			},
			"foreign": func(tx *Tx) error { return tx.Ack(wire.JobRef{Job: a, Attempt: 2}, "r2", b.now) },
		} {
			if err := b.Update(t.Context(), f); !isKind(err, wire.Conflict) {
				t.Errorf("%s: %v", name, err)
			}
		}
		b.ack(a)
		want(t, b.Update(t.Context(), func(tx *Tx) error {
			return tx.Ack(wire.JobRef{Job: a, Attempt: 2}, "r1", b.now)
		}), wire.Conflict)
		b.is(a, wire.Running, "")
	})
}

// Behaviours 51, 53, 57.
func TestFailedAndLost(t *testing.T) {
	onBoth(t, func(t *testing.T, dsn string) {
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

// Behaviours 28, 70 to 77.
func TestCancel(t *testing.T) {
	onBoth(t, func(t *testing.T, dsn string) {
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
		act, err := b.Active(t.Context(), "r1")
		if err != nil || len(act) != 1 || !act[0].CancelRequested || act[0].State != wire.Assigned {
			t.Fatalf("%v %+v", err, act)
		}
		ref, _ := b.ref(a)
		if as, err := b.Assignment(t.Context(), ref); err != nil || !as.CancelSent {
			t.Fatalf("%v %+v", err, as)
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

// Behaviour 78.
func TestExpiry(t *testing.T) {
	onBoth(t, func(t *testing.T, dsn string) {
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
	onBoth(t, func(t *testing.T, dsn string) {
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

func TestRetry(t *testing.T) {
	onBoth(t, func(t *testing.T, dsn string) {
		b := newBench(t, dsn)
		ids := b.submit(operation(wire.OpBuild, "web", idempotent("k")), operation(wire.OpDestroy, "web", dependsOn("#0")))
		retry := func(id string) (j wire.Job, err error) {
			err = b.Update(t.Context(), func(tx *Tx) (err error) { j, err = tx.Retry(id, b.now); return err })
			return j, err
		}
		_, err := retry(ids[0])
		want(t, err, wire.Conflict)
		_, err = retry("nonsense")
		want(t, err, wire.NotFound)
		b.given(ids[0])
		b.fail(ids[0])
		build, err := retry(ids[0])
		if err != nil || build.RetryOf != ids[0] || build.State != wire.Queued || build.ID == ids[0] {
			t.Fatalf("%v %+v", err, build)
		}
		// The dependency that failed is replaced by its retry.
		destroy, err := retry(ids[1])
		if err != nil || !slices.Equal(destroy.DependsOn, []string{build.ID}) {
			t.Fatalf("%v %+v", err, destroy)
		}
		b.given(build.ID)
		b.fail(build.ID)
		b.is(destroy.ID, wire.Failed, wire.ReasonDependency)
		destroy, err = retry(ids[1])
		if err != nil || destroy.DependsOn != nil {
			t.Fatalf("%v %+v", err, destroy)
		}
		b.given(destroy.ID)
	})
}

func TestSubmitRefuses(t *testing.T) {
	onBoth(t, func(t *testing.T, dsn string) {
		b := newBench(t, dsn)
		_, err := b.trySubmit()
		want(t, err, wire.BadUsage)
		_, err = b.trySubmit(run(func(s *wire.JobSpec) { s.Target = wire.Target{} }))
		want(t, err, wire.BadUsage)
		_, err = b.trySubmit(run(func(s *wire.JobSpec) { s.Script = strings.Repeat("x", maxSpec) }))
		want(t, err, wire.TooLarge)
		_, err = b.trySubmit(make([]wire.JobSpec, maxSubmit+1)...)
		want(t, err, wire.TooLarge)
		b.given()
	})
}

// Behaviour 83.
func TestListJobs(t *testing.T) {
	onBoth(t, func(t *testing.T, dsn string) {
		b := newBench(t, dsn)
		var ids []string
		for i := range 60 {
			ids = append(ids, b.one(operation(wire.OpBuild, fmt.Sprintf("app%d", i%3), workspace(fmt.Sprintf("ws%d", i%2)),
				func(s *wire.JobSpec) { s.Project = fmt.Sprintf("p%d", i%5) })))
		}
		list := func(f wire.JobFilter) []string {
			t.Helper()
			jobs, err := b.Jobs(t.Context(), f)
			if err != nil {
				t.Fatal(err)
			}
			out := []string{}
			for _, j := range jobs {
				out = append(out, j.ID)
			}
			return out
		}
		pick := func(keep func(i int) bool) []string {
			var out []string
			for i := len(ids) - 1; i >= 0; i-- {
				if keep(i) {
					out = append(out, ids[i])
				}
			}
			return out
		}
		is := func(f wire.JobFilter, want []string) {
			t.Helper()
			if got := list(f); !slices.Equal(got, want) {
				t.Fatalf("%+v: %d jobs %v, want %d %v", f, len(got), got, len(want), want)
			}
		}
		is(wire.JobFilter{}, pick(func(i int) bool { return i >= 10 }))
		is(wire.JobFilter{After: ids[10]}, pick(func(i int) bool { return i < 10 }))
		is(wire.JobFilter{Limit: 3, After: ids[50]}, []string{ids[49], ids[48], ids[47]})
		is(wire.JobFilter{Project: "p1", App: "app1", Workspace: "ws1"}, pick(func(i int) bool { return i%5 == 1 && i%3 == 1 && i%2 == 1 }))
		is(wire.JobFilter{Operation: wire.OpDeploy}, nil)
		b.given(ids[0])
		b.given(ids[1])
		b.given(ids[2])
		b.ack(ids[1])
		b.succeed(ids[2])
		b.cancel(ids[3], false)
		is(wire.JobFilter{State: wire.Assigned}, ids[:1])
		is(wire.JobFilter{State: wire.Running, Runner: "r1"}, ids[1:2])
		is(wire.JobFilter{State: wire.Success, Project: "p2"}, ids[2:3])
		is(wire.JobFilter{State: wire.Canceled, Limit: 500}, ids[3:4])
		is(wire.JobFilter{State: wire.Queued, Limit: 500}, pick(func(i int) bool { return i > 3 }))
		is(wire.JobFilter{Runner: "r1"}, []string{ids[2], ids[1], ids[0]})
		is(wire.JobFilter{Runner: "r2"}, nil)
		counts, err := b.JobCounts(t.Context())
		if err != nil || counts[wire.Queued] != 56 || counts[wire.Success] != 1 || counts[wire.Canceled] != 1 || counts[wire.Running] != 1 {
			t.Fatal(counts, err)
		}
		_, err = b.Jobs(t.Context(), wire.JobFilter{After: "nonsense"})
		want(t, err, wire.NotFound)
		_, err = b.Jobs(t.Context(), wire.JobFilter{State: "nonsense"})
		want(t, err, wire.BadUsage)
		_, err = b.Jobs(t.Context(), wire.JobFilter{Limit: -1})
		want(t, err, wire.BadUsage)
	})
}

func TestAheadInQueue(t *testing.T) {
	onBoth(t, func(t *testing.T, dsn string) {
		b := newBench(t, dsn)
		b.submit(run(), run(priority(-1)), run(priority(3)), run(forRunner("x")))
		a := b.one(run())
		if f := b.blocked(a, queue.Ready); f.Ahead != 2 {
			t.Fatal(f.Ahead)
		}
	})
}
