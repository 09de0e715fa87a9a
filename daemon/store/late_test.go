package store

import (
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/waypointd/waypoint/mux/wire"
)

func TestLateResult(t *testing.T) {
	onEach(t, func(t *testing.T, dsn string) {
		b := newBench(t, dsn)
		put := func(id, key string) {
			update(t, b.Store, func(tx *Tx) error {
				return tx.PutRunner(RunnerRecord{Runner: wire.Runner{ID: id, State: wire.Adopted, Kind: wire.KindRemote, Fingerprint: key}, Key: []byte(key)})
			})
		}
		put("r1", "k1")
		chunk := func(offset int64, text string) []wire.Data {
			return []wire.Data{{Offset: offset, Bytes: []byte(text), Stream: wire.Stdout, Time: b.now}}
		}
		late := func(ref wire.JobRef, runner, key string, chunks []wire.Data, res *wire.Result) (n int64, err error) {
			err = b.Update(t.Context(), func(tx *Tx) (err error) {
				if n, err = tx.AppendLate(ref, runner, key, chunks); err != nil || res == nil {
					return err
				}
				return tx.FinishLate(ref, runner, key, *res, b.now)
			})
			return n, err
		}
		refused := func(why string, ref wire.JobRef, runner, key, says string) {
			t.Helper()
			_, err := b.Late(t.Context(), ref, runner, key)
			want(t, err, wire.Conflict, says)
			_, err = late(ref, runner, key, chunk(5, "more"), &wire.Result{State: wire.Success})
			want(t, err, wire.Conflict, says)
		}

		id := b.one(run())
		child := b.one(run(dependsOn(id)))
		ref := b.given(id)[0].JobRef
		b.ack(id)
		update(t, b.Store, func(tx *Tx) error { _, err := tx.AppendLog(ref, "r1", chunk(0, "one\nt")); return err })
		refused("running", ref, "r1", "k1", "running")
		update(t, b.Store, func(tx *Tx) error { return tx.Lost(ref, "no contact", b.now) })
		lostJob := b.is(id, wire.Failed, wire.ReasonRunnerLost)
		before := b.is(child, wire.Failed, wire.ReasonDependency)

		refused("another runner", ref, "r2", "k1", "is not runner")
		refused("another key", ref, "r1", "k2", "same id")
		refused("another attempt", wire.JobRef{Job: id, Attempt: 2}, "r1", "k1", "is not runner")
		_, err := b.Late(t.Context(), wire.JobRef{Job: "none", Attempt: 1}, "r1", "k1")
		want(t, err, wire.NotFound, "none")
		put("r1", "k2") // forgotten, and another has the id now
		refused("the newcomer", ref, "r1", "k2", "same id")

		if n, err := b.Late(t.Context(), ref, "r1", "k1"); err != nil || n != 5 {
			t.Fatalf("there are %d bytes, %v", n, err)
		}
		_, err = late(ref, "r1", "k1", chunk(6, "x"), nil)
		want(t, err, wire.Conflict, "gap")
		for range 2 { // said again, as the answer was lost
			if n, err := late(ref, "r1", "k1", chunk(3, "\ntwo\n"), nil); err != nil || n != 8 {
				t.Fatalf("%d bytes, %v", n, err)
			}
		}
		if j := b.is(id, wire.Failed, wire.ReasonRunnerLost); j.LogBytes != 8 || j.LateResult != nil {
			t.Fatalf("%+v", j)
		}
		_, err = late(ref, "r1", "k1", nil, &wire.Result{State: wire.Success, LogBytes: 9})
		want(t, err, wire.Conflict, "8 of 9")
		res := wire.Result{State: wire.Failed, Reason: wire.ReasonFailed, ExitCode: new(3), Signal: "S\xff", LogBytes: 12, Error: "e",
			Outputs: map[string]string{"k": "v"}, FinishedAt: b.now.Add(-time.Minute)}
		if n, err := late(ref, "r1", "k1", chunk(8, "end\n"), &res); err != nil || n != 12 {
			t.Fatalf("%d bytes, %v", n, err)
		}
		refused("twice", ref, "r1", "k1", "there already")

		got := b.is(id, wire.Failed, wire.ReasonRunnerLost)
		l := got.LateResult
		if l == nil || l.Attempt != 1 || l.State != wire.Failed || l.Reason != wire.ReasonFailed || *l.ExitCode != 3 || l.Signal != "S\uFFFD" ||
			l.LogBytes != 12 || !l.FinishedAt.Equal(b.now.Add(-time.Minute)) || !l.ReportedAt.Equal(b.now) {
			t.Fatalf("late result %+v", l)
		}
		got.LateResult, lostJob.LogBytes = nil, 12
		if !reflect.DeepEqual(got, lostJob) {
			t.Errorf("the job is %+v, and was %+v", got, lostJob)
		}
		if after := b.is(child, wire.Failed, wire.ReasonDependency); !reflect.DeepEqual(after, before) {
			t.Errorf("what depended on it is %+v, and was %+v", after, before)
		}
		if list, err := b.Jobs(t.Context(), wire.JobFilter{}); err != nil || len(list) != 2 || list[1].LateResult == nil || list[1].LogBytes != 12 {
			t.Errorf("listed as %+v, %v", list, err)
		}
		chunks, length, err := b.Log(t.Context(), id, 0, 0, 100)
		var text strings.Builder
		for _, c := range chunks {
			text.Write(c.Bytes)
		}
		if text.String() != "one\ntwo\nend\n" || length != 12 || err != nil {
			t.Errorf("output %q, %d, %v", text.String(), length, err)
		}
	})
}

// Whose an attempt was is told by whatever knew it last.
func TestWhoseALostAttemptWas(t *testing.T) {
	onEach(t, func(t *testing.T, dsn string) {
		b := newBench(t, dsn)
		for _, tt := range []struct {
			name, record, owner string
			key                 string
		}{
			{"without a record, the id", "", "", "r1"},
			{"with a record, its key", "k1", "", "k1"},
			{"forgotten, the key it had", "k2", "k1", "k1"},
		} {
			t.Run(tt.name, func(t *testing.T) {
				id := b.one(run())
				ref := b.given(id)[0].JobRef
				update(t, b.Store, func(tx *Tx) error {
					if tt.owner != "" {
						if err := tx.PutSetting(OwnerSetting("r1"), tt.owner); err != nil {
							return err
						}
					}
					if tt.record != "" {
						if err := tx.PutRunner(RunnerRecord{Runner: wire.Runner{ID: "r1", State: wire.Adopted, Kind: wire.KindRemote, Fingerprint: tt.record}, Key: []byte{1}}); err != nil {
							return err
						}
					}
					return tx.Lost(ref, "gone", b.now)
				})
				for _, key := range []string{"", "k1", "k2", "r1"} {
					_, err := b.Late(t.Context(), ref, "r1", key)
					if (err == nil) != (key == tt.key) {
						t.Errorf("key %q: %v", key, err)
					}
				}
			})
		}
	})
}
