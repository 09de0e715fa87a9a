package daemon

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/waypointd/waypoint/mux"
	"github.com/waypointd/waypoint/mux/wire"
)

// works opens a runner's work stream and returns what reads its orders.
func works(t *testing.T, session *mux.Session) (next func() (wire.WorkOrder, error)) {
	t.Helper()
	_, next = talks(t, session)
	return next
}

// talks is works that can say more.
func talks(t *testing.T, session *mux.Session) (say func(wire.WorkEvent), next func() (wire.WorkOrder, error)) {
	t.Helper()
	st, err := session.Open(t.Context(), wire.MethodWork, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { st.Close() })
	say = func(e wire.WorkEvent) {
		t.Helper()
		if err := st.Send(e); err != nil {
			t.Fatal(err)
		}
	}
	say(wire.WorkEvent{Begin: &wire.WorkBegin{Concurrency: 1}})
	return say, func() (o wire.WorkOrder, err error) {
		for err = st.RecvMsg(&o); err == nil && o.Heartbeat; err = st.RecvMsg(&o) {
			o = wire.WorkOrder{}
		}
		return o, err
	}
}

// await reads orders until one is as wanted.
func await(t *testing.T, next func() (wire.WorkOrder, error), want func(wire.WorkOrder) bool) wire.WorkOrder {
	t.Helper()
	for {
		o, err := next()
		if err != nil {
			t.Fatal(err)
		}
		if want(o) {
			return o
		}
	}
}

// What is decided on one server about a runner that is connected to another
// one of the same store reaches its session there.
func TestDecisionsOfAnotherServer(t *testing.T) {
	dsn := filepath.Join(t.TempDir(), "shared.db")
	a, b := newSite(t, Config{StoreDSN: dsn}), newSite(t, Config{StoreDSN: dsn})
	ops := a.mustHello(t, "unix", operator(""))
	r := remote("r1", "")
	session := b.mustHello(t, "unix", r)
	next := works(t, session)
	await(t, next, func(o wire.WorkOrder) bool { return o.Begun != nil })
	decide := func(method string) {
		t.Helper()
		if err := ops.Call(t.Context(), method, wire.RunnerRequest{ID: "r1"}, nil); err != nil {
			t.Fatal(err)
		}
		if err := b.heedAll(t.Context()); err != nil {
			t.Fatal(err)
		}
	}

	decide(wire.MethodRunnerAdopt)
	token := await(t, next, func(o wire.WorkOrder) bool { return o.Grant != nil }).Grant.Token
	var st wire.Standing
	show := wire.AuthenticateRequest{Offers: []wire.TokenOffer{{Source: wire.SourceFile, Token: token}}, Stored: true}
	if err := session.Call(t.Context(), wire.MethodAuthenticate, show, &st); err != nil || !st.Admitted {
		t.Fatalf("%+v, %v", st, err)
	}
	await(t, next, wire.WorkOrder.Admits)

	var drained wire.Runner
	if err := ops.Call(t.Context(), wire.MethodRunnerDrain, wire.DrainRequest{ID: "r1", Drain: true}, &drained); err != nil || !drained.Draining {
		t.Fatalf("%+v, %v", drained, err)
	}
	if err := b.heedAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	await(t, next, func(o wire.WorkOrder) bool { return o.Standing != nil && o.Standing.Draining })

	decide(wire.MethodRunnerReject)
	for {
		if _, err := next(); err != nil {
			is(t, err, wire.Denied, "rejected", "adopt it")
			break
		}
	}
	decide(wire.MethodRunnerForget)
	again := works(t, b.mustHello(t, "unix", remote("r1", "")))
	if o := await(t, again, func(o wire.WorkOrder) bool { return o.Standing != nil }); o.Standing.State != wire.Pending {
		t.Errorf("after forget: %+v", o.Standing)
	}
	decide(wire.MethodRunnerForget)
	for {
		if _, err := again(); err != nil {
			return
		}
	}
}

// Forgotten at work on another server, it gets its jobs back from any of them.
func TestForgottenAtWorkOnAnotherServer(t *testing.T) {
	dsn := filepath.Join(t.TempDir(), "shared.db")
	a, b := newSite(t, Config{StoreDSN: dsn}), newSite(t, Config{StoreDSN: dsn})
	ops := b.mustHello(t, "unix", operator(""))
	say, next := talks(t, b.mustHello(t, "unix", remote("r1", b.runnerToken(t, time.Hour))))
	job := wire.JobSpec{Target: wire.Target{ID: "r1"}, Command: []string{"true"}, Project: "p", Workspace: "default", Operation: wire.OpRun}
	if err := ops.Call(t.Context(), wire.MethodJobSubmit, wire.SubmitRequest{Jobs: []wire.JobSpec{job}}, nil); err != nil {
		t.Fatal(err)
	}
	given := await(t, next, func(o wire.WorkOrder) bool { return o.Assign != nil }).Assign
	say(wire.WorkEvent{Ack: &given.JobRef})
	await(t, next, func(o wire.WorkOrder) bool { return o.Start != nil })
	var was wire.Runner
	if err := a.mustHello(t, "unix", operator("")).Call(t.Context(), wire.MethodRunnerForget, wire.RunnerRequest{ID: "r1"}, &was); err != nil {
		t.Fatal(err)
	}
	if err := b.heedAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	active, err := a.store.Active(t.Context())
	if err != nil || len(active) != 1 || active[0].JobRef != given.JobRef {
		t.Fatalf("%+v, %v", active, err)
	}
	if orphans, err := a.orphaned(t.Context(), active); err != nil || orphans["r1"] != was.Fingerprint {
		t.Errorf("orphans %v, %v", orphans, err)
	}
}
