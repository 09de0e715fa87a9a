package supervisor

import (
	"testing"

	"github.com/waypointd/waypoint/mux/wire"
)

// An agent that takes over is alone: who was there before is gone, and who
// comes later is not.
func TestTakeover(t *testing.T) {
	dir := t.TempDir()
	before := ensure(t, dir, "", "1m")
	s := sh(t, "read x <go 2>/dev/null; until [ -e go ]; do sleep 0.01; done; echo on")
	start(t, before, s)
	now := ensure(t, dir, "", "1m")
	later := ensure(t, dir, "", "1m")
	if err := now.Takeover(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := before.Start(t.Context(), sh(t, "true")); wire.KindOf(err) != wire.Unavailable {
		t.Errorf("an agent from before can still start jobs: %v", err)
	}
	for _, j := range []Jobs{now, later} {
		list, err := j.List(t.Context())
		if err != nil || len(list) != 1 || list[0].JobRef != s.JobRef || list[0].End != nil {
			t.Errorf("held are %+v, %v", list, err)
		}
	}
	if err := now.Stop(t.Context(), s.JobRef, true); err != nil {
		t.Error(err)
	}
	if end := ended(t, now, s.JobRef); end.State != wire.Canceled {
		t.Errorf("got %+v", end)
	}
	if !Begun(s.Dir) || Begun(t.TempDir()) {
		t.Error("what has begun is not told from what has not")
	}
}

// What was asked for before a takeover is in the list behind it, or never
// starts: however many starts are on their way.
func TestTakeoverUnderStarts(t *testing.T) {
	dir := t.TempDir()
	for range 20 {
		before := ensure(t, dir, "process-group", "1m")
		specs := make([]Spec, 8)
		for i := range specs {
			specs[i] = sh(t, "true")
			go before.Start(t.Context(), specs[i])
		}
		now := ensure(t, dir, "process-group", "1m")
		if err := now.Takeover(t.Context()); err != nil {
			t.Fatal(err)
		}
		list, err := now.List(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		held := map[wire.JobRef]bool{}
		for _, st := range list {
			held[st.JobRef] = true
		}
		for _, s := range specs {
			if !held[s.JobRef] && Begun(s.Dir) {
				t.Errorf("attempt %v has begun and is not held", s.JobRef)
			}
			if held[s.JobRef] {
				ended(t, now, s.JobRef)
				if err := now.Forget(t.Context(), s.JobRef); err != nil {
					t.Error(err)
				}
			} else if end := run(t, now, s); end.State != wire.Success {
				t.Errorf("got %+v", end)
			}
		}
		now.Close()
	}
}
