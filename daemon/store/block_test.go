package store

import (
	"slices"
	"strings"
	"testing"

	"github.com/waypointd/waypoint/daemon/queue"
	"github.com/waypointd/waypoint/mux/wire"
)

// One deploy, release or destroy of an app at a time.
func TestSerialized(t *testing.T) {
	onEach(t, func(t *testing.T, dsn string) {
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
	onEach(t, func(t *testing.T, dsn string) {
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

func TestDependencies(t *testing.T) {
	onEach(t, func(t *testing.T, dsn string) {
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

func TestSingletons(t *testing.T) {
	onEach(t, func(t *testing.T, dsn string) {
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

func TestRequeue(t *testing.T) {
	onEach(t, func(t *testing.T, dsn string) {
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
		// One whose end was asked for ends, and so does what waits for it.
		ids := b.submit(run(), run(dependsOn("#0")))
		b.given(ids[0])
		b.cancel(ids[0], false)
		b.requeue(ids[0])
		b.is(ids[0], wire.Canceled, wire.ReasonCanceled)
		b.is(ids[1], wire.Failed, wire.ReasonDependency)
	})
}
