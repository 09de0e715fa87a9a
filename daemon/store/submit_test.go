package store

import (
	"slices"
	"strings"
	"testing"

	"github.com/waypointd/waypoint/mux/wire"
)

func TestIdempotencyKeys(t *testing.T) {
	onEach(t, func(t *testing.T, dsn string) {
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

func TestRetry(t *testing.T) {
	onEach(t, func(t *testing.T, dsn string) {
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
	onEach(t, func(t *testing.T, dsn string) {
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
