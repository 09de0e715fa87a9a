package store

import (
	"strings"
	"testing"

	"github.com/waypointd/waypoint/daemon/queue"
	"github.com/waypointd/waypoint/mux/wire"
)

func (b *bench) records(f wire.RecordFilter) []wire.Record {
	b.t.Helper()
	recs, err := b.Records(b.t.Context(), f)
	if err != nil {
		b.t.Fatal(err)
	}
	return recs
}

func TestArtifactsDeploymentsReleases(t *testing.T) {
	onEach(t, func(t *testing.T, dsn string) {
		b := newBench(t, dsn, queue.Runner{ID: "r1", Free: 10})
		// Nothing to deploy, nothing to release: what waits behind it goes on.
		early := b.one(operation(wire.OpDeploy, "web"))
		behind := b.one(operation(wire.OpDestroy, "web"))
		b.given(behind)
		if j := b.is(early, wire.Failed, wire.ReasonFailed); j.Error != "no artifact of shop/web in workspace default: build first" {
			t.Fatal(j.Error)
		}
		b.succeed(behind)
		early = b.one(operation(wire.OpRelease, "web"))
		b.given()
		if j := b.is(early, wire.Failed, wire.ReasonFailed); !strings.Contains(j.Error, "deploy first") {
			t.Fatal(j.Error)
		}

		build := func(digest string) string {
			id := b.one(operation(wire.OpBuild, "web"))
			b.given(id)
			b.finish(id, wire.Result{State: wire.Success, Artifact: &wire.BlobHeader{Digest: digest, Size: 7}, Outputs: map[string]string{"d": digest}})
			return id
		}
		one := build("sha256:1")
		failed := b.one(operation(wire.OpBuild, "web"))
		if a := b.given(failed)[0]; a.Sequence != 2 {
			t.Fatal(a.Sequence)
		}
		b.requeue(failed)
		if a := b.given(failed)[0]; a.Sequence != 2 || a.Attempt != 2 { // kept over a requeue
			t.Fatalf("%+v", a)
		}
		b.fail(failed)
		build("sha256:3")
		recs := b.records(wire.RecordFilter{Kind: wire.RecordArtifact, Project: "shop"})
		if len(recs) != 2 || recs[0].Number != 3 || recs[1].Number != 1 || recs[1].JobID != one || recs[1].Digest != "sha256:1" ||
			recs[1].Size != 7 || recs[1].Outputs["d"] != "sha256:1" || recs[0].Workspace != "default" {
			t.Fatalf("%+v", recs)
		}

		deploy := func(artifact int64, change ...func(*wire.JobSpec)) string {
			t.Helper()
			id := b.one(operation(wire.OpDeploy, "web", change...))
			a := b.given(id)[0]
			if a.Artifact == nil || a.Artifact.Number != artifact || a.Deployment != nil {
				t.Fatalf("%+v, want artifact %d", a.Assignment, artifact)
			}
			b.requeue(id)
			b.given(id)
			b.succeed(id)
			return id
		}
		deploy(3)
		deploy(1, func(s *wire.JobSpec) { s.Artifact = 1 })
		deploy(1, dependsOn(one))
		between := b.one(run(dependsOn(one)))
		b.given(between)
		b.succeed(between)
		chained := deploy(1, dependsOn(between))
		if recs := b.records(wire.RecordFilter{Kind: wire.RecordDeployment, App: "web", Limit: 2}); len(recs) != 2 || recs[0].Number != 4 || recs[0].Of != 1 || recs[0].JobID != chained {
			t.Fatalf("%+v", recs)
		}
		_, err := b.trySubmit(operation(wire.OpDeploy, "web", func(s *wire.JobSpec) { s.Artifact = 9 }))
		want(t, err, wire.NotFound, "no artifact 9 of shop/web in workspace default")
		_, err = b.trySubmit(operation(wire.OpRelease, "web", func(s *wire.JobSpec) { s.Deployment = 9 }))
		want(t, err, wire.NotFound, "no deployment 9 of shop/web in workspace default")
		missing := b.one(operation(wire.OpDeploy, "web", dependsOn(one), func(s *wire.JobSpec) { s.Artifact = 9 }))
		b.given()
		if j := b.is(missing, wire.Failed, wire.ReasonFailed); !strings.Contains(j.Error, "no artifact 9 of shop/web") {
			t.Fatal(j.Error)
		}
		release := b.one(operation(wire.OpRelease, "web", func(s *wire.JobSpec) { s.Deployment = 2 })) // rollback
		if a := b.given(release)[0]; a.Deployment == nil || a.Deployment.Number != 2 || a.Artifact != nil {
			t.Fatalf("%+v", a)
		}
		b.succeed(release)
		up := b.submit(operation(wire.OpBuild, "web"), operation(wire.OpDeploy, "web", dependsOn("#0")), operation(wire.OpRelease, "web", dependsOn("#1")))
		for i, id := range up {
			a := b.given(id)[0]
			if i == 1 && a.Artifact.JobID != up[0] || i == 2 && a.Deployment.JobID != up[1] {
				t.Fatalf("%+v", a)
			}
			b.succeed(id)
		}
		if recs := b.records(wire.RecordFilter{Kind: wire.RecordRelease, Workspace: "default"}); len(recs) != 2 || recs[0].Of != 5 || recs[1].Of != 2 {
			t.Fatalf("%+v", recs)
		}
		// Of another workspace the job that is depended on has it, not one behind that.
		elsewhere := workspace("other")
		deploy(4, dependsOn(up[0]), elsewhere)
		between = b.one(run(dependsOn(up[0])))
		b.given(between)
		b.succeed(between)
		missing = b.one(operation(wire.OpDeploy, "web", dependsOn(between), elsewhere))
		b.given()
		if j := b.is(missing, wire.Failed, wire.ReasonFailed); !strings.Contains(j.Error, "no artifact of shop/web in workspace other") {
			t.Fatal(j.Error)
		}
		if recs := b.records(wire.RecordFilter{Kind: wire.RecordDeployment, Newest: true}); len(recs) != 2 ||
			recs[0].Workspace != "other" || recs[0].Number != 1 || recs[1].Workspace != "default" || recs[1].Number != 5 {
			t.Fatalf("%+v", recs)
		}
		if recs := b.records(wire.RecordFilter{Kind: wire.RecordRelease, Workspace: "other"}); recs == nil || len(recs) != 0 {
			t.Fatalf("%+v", recs)
		}
		_, err = b.Records(t.Context(), wire.RecordFilter{Kind: "nonsense"})
		want(t, err, wire.BadUsage)
	})
}
