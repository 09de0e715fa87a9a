package daemon_test

import (
	"strings"
	"testing"
	"time"

	"github.com/waypointd/waypoint/daemon"
	"github.com/waypointd/waypoint/daemon/daemontest"
	"github.com/waypointd/waypoint/mux/wire"
)

func TestPendingRunnerGetsNothing(t *testing.T) {
	s := daemontest.Start(t, slowly)
	c := s.Client(t)
	if list, err := c.Runners(t.Context(), wire.RunnerFilter{}); err != nil || len(list) != 0 {
		t.Fatalf("runners of an empty server: %+v, %v", list, err)
	}
	r := s.Runner(t, "r1", map[string]string{"zone": "east"})
	r.MustConnect()
	r.MustBegin()
	got, err := c.Runner(t.Context(), "r1")
	if err != nil || got.State != wire.Pending || !got.Online || got.Kind != wire.KindRemote || !strings.HasPrefix(got.Fingerprint, "SHA256:") {
		t.Fatalf("runner %+v, %v", got, err)
	}
	job := submit(t, c, run())[0]
	if o, ok := r.Order(20 * time.Millisecond); ok {
		t.Fatalf("a pending runner is told %+v", o)
	}
	if why, err := c.Why(t.Context(), job.ID); err != nil || why.Code != "runners_pending" || !strings.Contains(why.Sentence, "r1") {
		t.Fatalf("why: %+v, %v", why, err)
	}
	_, err = r.Session.Open(t.Context(), wire.MethodBlobGet, wire.BlobDigests{})
	if err == nil {
		err = r.Session.Call(t.Context(), wire.MethodBlobMissing, wire.BlobDigests{}, nil)
	}
	wantKind(t, err, wire.Denied)
	if _, err := c.Adopt(t.Context(), "r1", "SHA256:other"); wire.KindOf(err) != wire.Conflict {
		t.Fatalf("adopted with a foreign fingerprint: %v", err)
	}
	if _, err := c.Adopt(t.Context(), "r1", got.Fingerprint); err != nil {
		t.Fatal(err)
	}
	r.TakeGrant()
	r.MustStart()
}

func TestAdmissionOutlivesEverything(t *testing.T) {
	s := daemontest.Start(t, slowly)
	r := s.Adopted(t, "r1", nil)
	r.Disconnect()
	c := s.Client(t)
	for {
		got, err := c.Runner(t.Context(), "r1")
		if err != nil || got.State != wire.Adopted {
			t.Fatalf("runner %+v, %v", got, err)
		}
		if !got.Online {
			break
		}
	}
	s.Restart()
	if got, err := s.Client(t).Runner(t.Context(), "r1"); err != nil || got.State != wire.Adopted || got.Online {
		t.Fatalf("after a restart: %+v, %v", got, err)
	}
	r.MustConnect()
	r.MustBegin()
	submit(t, s.Client(t), run())
	r.MustStart()
}

func TestIDIsBoundToItsKey(t *testing.T) {
	s := daemontest.Start(t, slowly)
	s.Adopted(t, "r1", nil).Disconnect()
	wantKind(t, s.Runner(t, "r1", nil).Connect(), wire.Conflict)
	wantKind(t, s.Runner(t, "no spaces", nil).Connect(), wire.BadUsage)
	wantKind(t, s.Runner(t, "cli-0", nil).Connect(), wire.BadUsage)
	wantKind(t, s.Runner(t, "r2", map[string]string{"a b": "c"}).Connect(), wire.BadUsage)
	_, err := s.Client(t).Runner(t.Context(), "r2")
	wantKind(t, err, wire.NotFound)
	_, err = s.Client(t).Adopt(t.Context(), "r2", "")
	wantKind(t, err, wire.NotFound)
}

// A copy of a state directory is refused while the original answers, and
// replaces one that does not.
func TestSameIdentityTwice(t *testing.T) {
	s := daemontest.Start(t, daemon.Config{Heartbeat: 100 * time.Millisecond, Lease: time.Hour})
	r := s.Adopted(t, "r1", nil)
	copied := *r
	stop := make(chan struct{})
	talked := make(chan struct{})
	go func() {
		defer close(talked)
		for {
			select {
			case <-stop:
				return
			case <-time.After(20 * time.Millisecond):
				r.Say(wire.WorkEvent{Heartbeat: true})
			}
		}
	}()
	copied.MustConnect()
	_, err := copied.Begin()
	wantKind(t, err, wire.Conflict)
	close(stop)
	<-talked
	copied.MustConnect()
	copied.MustBegin()
	submit(t, s.Client(t), run())
	copied.MustStart()
}

func TestWorkBeginsWithBegin(t *testing.T) {
	s := daemontest.Start(t, slowly)
	r := s.Runner(t, "r1", nil)
	r.MustConnect()
	st, err := r.Session.Open(t.Context(), wire.MethodWork, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := st.Send(wire.WorkEvent{Heartbeat: true}); err != nil {
		t.Fatal(err)
	}
	var o wire.WorkOrder
	wantKind(t, st.RecvMsg(&o), wire.Conflict)
}

func TestPendingRunnersAreBounded(t *testing.T) {
	s := daemontest.Start(t, daemon.Config{MaxPending: 2})
	a := s.Runner(t, "a", nil)
	for _, r := range []*daemontest.Runner{a, s.Runner(t, "b", nil)} {
		r.MustConnect()
		r.MustBegin()
	}
	wantKind(t, s.Runner(t, "c", nil).Connect(), wire.Unavailable)
	a.MustAdopt()
	s.Runner(t, "c", nil).MustConnect()
}

func TestWhoMayCallWhat(t *testing.T) {
	s := daemontest.Start(t, slowly)
	r := s.Adopted(t, "r1", nil)
	c := s.Client(t)
	for _, m := range []string{
		wire.MethodServerStatus, wire.MethodJobSubmit, wire.MethodJobGet, wire.MethodJobList, wire.MethodJobWhy,
		wire.MethodJobCancel, wire.MethodJobRetry, wire.MethodJobWait, wire.MethodJobStream, wire.MethodRecordList,
		wire.MethodRunnerList, wire.MethodRunnerInspect, wire.MethodRunnerAdopt, wire.MethodRunnerMatch,
	} {
		if err := r.Session.Call(t.Context(), m, struct{}{}, nil); wire.KindOf(err) != wire.Denied {
			t.Errorf("a runner calls %s: %v, want denied", m, err)
		}
	}
	for _, m := range []string{wire.MethodWork, wire.MethodReport} {
		if err := c.Call(t.Context(), m, struct{}{}, nil); wire.KindOf(err) != wire.Denied {
			t.Errorf("a client calls %s: %v, want denied", m, err)
		}
	}
	if err := c.Call(t.Context(), "no.such", struct{}{}, nil); wire.KindOf(err) != wire.Unimplemented {
		t.Errorf("an unknown method: %v", err)
	}
}

func TestSecondServerIsRefused(t *testing.T) {
	dir := t.TempDir()
	daemontest.Start(t, daemon.Config{StateDir: dir})
	_, err := daemon.New(t.Context(), daemon.Config{StateDir: dir})
	wantKind(t, err, wire.Conflict)
	if !strings.Contains(err.Error(), "pid") {
		t.Errorf("%q does not name the holder", err)
	}
}

func TestServerStatus(t *testing.T) {
	s := daemontest.Start(t, slowly)
	s.Adopted(t, "r1", nil)
	c := s.Client(t)
	submit(t, c, run(func(j *wire.JobSpec) { j.Target = wire.Target{ID: "nobody"} }))
	st, err := c.ServerStatus(t.Context())
	if err != nil || st.ID == "" || st.Runners["adopted"] != 1 || st.RunnersOnline != 1 || st.QueueDepth != 1 || !strings.HasPrefix(st.Store, "sqlite ") {
		t.Fatalf("status %+v, %v", st, err)
	}
	s.Restart()
	if again, err := s.Client(t).ServerStatus(t.Context()); err != nil || again.ID != st.ID {
		t.Fatalf("the server's id changed: %+v, %v", again, err)
	}
}

func TestWhy(t *testing.T) {
	s := daemontest.Start(t, slowly)
	c := s.Client(t)
	deploy := func(j *wire.JobSpec) {
		j.Operation, j.Project, j.App = wire.OpDeploy, "shop", "web"
		j.Target = wire.Target{ID: "nobody"}
		j.Singleton = ""
	}
	jobs := submit(t, c,
		run(func(j *wire.JobSpec) { j.Target = wire.Target{Labels: map[string]string{"zone": "mars"}} }),
		run(func(j *wire.JobSpec) { j.DependsOn = []string{"#0"} }),
		run(deploy), run(deploy),
	)
	for i, want := range []string{"no_runner_matches", "dependency", "no_runner_matches", "serialized"} {
		w, err := c.Why(t.Context(), jobs[i].ID)
		if err != nil || w.Code != want {
			t.Errorf("job %d: %+v, %v, want %s", i, w, err, want)
		}
	}
	r := s.Adopted(t, "r1", nil)
	busy := submit(t, c, run(), run())
	a := r.MustAssign()
	for id, want := range map[string]string{busy[0].ID: "assigned", busy[1].ID: "runners_busy"} {
		if w, err := c.Why(t.Context(), id); err != nil || w.Code != want {
			t.Errorf("%+v, %v, want %s", w, err, want)
		}
	}
	r.Say(wire.WorkEvent{Ack: &a.JobRef})
	r.MustOrder()
	s.AwaitJob(t, a.Job, running)
	if w, err := c.Why(t.Context(), a.Job); err != nil || w.Code != "running" {
		t.Errorf("%+v, %v", w, err)
	}
	r.MustFinish(a.JobRef, "", daemontest.FailedWith(1))
	if w, err := c.Why(t.Context(), a.Job); err != nil || w.Code != "ended" || !strings.Contains(w.Sentence, "failed") {
		t.Errorf("%+v, %v", w, err)
	}
	r.Disconnect()
	for {
		w, err := c.Why(t.Context(), busy[1].ID)
		if err != nil {
			t.Fatal(err)
		}
		if w.Code == "runners_offline" {
			break
		}
		if w.Code != "assigned" && w.Code != "next" && w.Code != "runners_busy" {
			t.Fatalf("%+v, want runners_offline", w)
		}
	}
}
