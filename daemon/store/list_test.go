package store

import (
	"fmt"
	"slices"
	"testing"

	"github.com/waypointd/waypoint/daemon/queue"
	"github.com/waypointd/waypoint/mux/wire"
)

func TestListJobs(t *testing.T) {
	onEach(t, func(t *testing.T, dsn string) {
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
	onEach(t, func(t *testing.T, dsn string) {
		b := newBench(t, dsn)
		b.submit(run(), run(priority(-1)), run(priority(3)), run(forRunner("x")))
		a := b.one(run())
		if f := b.blocked(a, queue.Ready); f.Ahead != 2 {
			t.Fatal(f.Ahead)
		}
	})
}
