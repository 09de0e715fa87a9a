package daemon

import (
	"testing"
	"time"

	"github.com/waypointd/waypoint/daemon/queue"
	"github.com/waypointd/waypoint/daemon/store"
	"github.com/waypointd/waypoint/mux/wire"
)

// "Running" is made durable by a timer and by the first report, whichever
// comes first; they may meet in one transaction, where the second finds that
// the job is running already. Its result must not be refused for that.
func TestResultBesideTheRecordOfItsStart(t *testing.T) {
	s, err := New(t.Context(), Config{StateDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	const runner = "one"
	now := time.Now()
	idle := func() []queue.Runner { return []queue.Runner{{ID: runner, Free: 1}} }
	var ref wire.JobRef
	err = s.store.Update(t.Context(), func(tx *store.Tx) error {
		if _, err := tx.Submit([]wire.JobSpec{{Operation: wire.OpRun, Command: []string{"true"}, Target: wire.Target{Any: true}}}, now); err != nil {
			return err
		}
		made, err := tx.AssignReady(idle, now, 1)
		if err != nil {
			return err
		}
		ref = made[0].JobRef
		return tx.Ack(ref, runner, now)
	})
	if err != nil {
		t.Fatal(err)
	}
	v := &visitor{id: runner}
	if other := s.fleet.join(&member{visitor: v}); other != nil {
		t.Fatal("another runner is there")
	}
	s.fleet.put(&attempt{JobRef: ref, runner: runner, running: true, startedAt: now})
	if _, pending := s.fleet.started(ref); !pending {
		t.Fatal("the start is taken for recorded")
	}
	if _, err := s.record(t.Context(), ref, v, 0, nil, &wire.Result{State: wire.Success, ExitCode: new(0)}); err != nil {
		t.Errorf("result refused: %v", err)
	}
	if job, err := s.store.Job(t.Context(), ref.Job); err != nil || job.State != wire.Success {
		t.Errorf("job is %s, %v", job.State, err)
	}
	// One that is not the runner's any more is refused all the same.
	s.fleet.put(&attempt{JobRef: ref, runner: runner, running: true, startedAt: now})
	if _, err := s.record(t.Context(), ref, v, 0, nil, &wire.Result{State: wire.Success, ExitCode: new(0)}); wire.KindOf(err) != wire.Conflict {
		t.Errorf("second result: %v", err)
	}
}
