package runner

import (
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	"github.com/waypointd/waypoint/mux/wire"
)

func TestLifeLeft(t *testing.T) {
	issued := time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)
	expiry := issued.Add(100 * time.Hour)
	for _, c := range []struct {
		at, next time.Duration
		low      int
	}{
		{-time.Hour, 76 * time.Hour, 0},
		{0, 75 * time.Hour, 0},
		{74 * time.Hour, time.Hour, 0},
		{75 * time.Hour, 15 * time.Hour, 25},
		{89 * time.Hour, time.Hour, 25},
		{90 * time.Hour, 10 * time.Hour, 10},
		{99 * time.Hour, time.Hour, 10},
		{100 * time.Hour, 0, 10},
		{1000 * time.Hour, 0, 10},
	} {
		if next, low := lifeLeft(issued, expiry, issued.Add(c.at)); next != c.next || low != c.low {
			t.Errorf("after %v: %v, %d; want %v, %d", c.at, next, low, c.next, c.low)
		}
	}
	if next, low := lifeLeft(time.Time{}, time.Time{}, issued); next != 0 || low != 0 {
		t.Errorf("no token: %v, %d", next, low)
	}
}

// The life of the token in use is told at a quarter and a tenth, once each,
// whichever way the clock is set.
func TestLow(t *testing.T) {
	issued := time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)
	var at atomic.Int64 // hours since it was issued, of 100
	log := new(lineLog)
	b := newBench(t, func(c *Config) { c.Logger = slog.New(slog.NewTextHandler(log, nil)) })
	b.waits = func(w *waits) {
		w.now = func() time.Time { return issued.Add(time.Duration(at.Load()) * time.Hour) }
	}
	st := wire.Standing{State: wire.Adopted, Admitted: true, Source: wire.SourceFile, Issued: issued, Expiry: issued.Add(100 * time.Hour)}
	b.s.judge = func([]wire.TokenOffer) wire.Standing { return st }
	at.Store(80)
	b.start().connected()
	b.event("it is low at once", func(ev Event) bool { return ev.Low == 25 })
	set := func(hours int64, low int) {
		t.Helper()
		at.Store(hours)
		b.s.tell()
		b.event("follows the clock", func(ev Event) bool { return ev.Low == low })
	}
	set(10, 0) // the clock was set back
	set(80, 25)
	set(95, 10)
	set(80, 25)
	set(200, 10) // the host slept: what the server says counts
	if n := log.count("token expires soon"); n != 2 {
		t.Errorf("warned %d times, want 2", n)
	}
	st.Issued, st.Expiry = st.Issued.Add(200*time.Hour), st.Expiry.Add(200*time.Hour) // renewed
	set(210, 0)
	set(295, 10)
	if n := log.count("token expires soon"); n != 3 {
		t.Errorf("warned %d times, want 3", n)
	}
	st = wire.Standing{State: wire.Adopted, Problem: wire.NoToken}
	set(300, 0)
}

// The timer finds it as well.
func TestLowTimer(t *testing.T) {
	b := newBench(t, nil)
	now := time.Now()
	st := wire.Standing{State: wire.Adopted, Admitted: true, Source: wire.SourceFile, Issued: now, Expiry: now.Add(time.Second)}
	b.s.judge = func([]wire.TokenOffer) wire.Standing { return st }
	b.start().connected()
	b.event("a quarter is left", func(ev Event) bool { return ev.Low == 25 })
	b.event("a tenth is left", func(ev Event) bool { return ev.Low == 10 })
}

// A runner without a usable token does nothing but answer: counted by the
// calls that it makes while it answers.
func TestIdle(t *testing.T) {
	for _, state := range []wire.RunnerState{wire.Pending, wire.Adopted} {
		b := newTokenBench(t, nil)
		b.put("garbage")
		b.s.judge = func([]wire.TokenOffer) wire.Standing { return wire.Standing{State: state, Problem: wire.TokenInvalid} }
		b.start().connected()
		for n := range 100 { // the server may say the same again and again
			b.s.tell()
			b.s.nudge()
			b.s.await("it answers", func() bool { return len(b.s.nacks) > n })
		}
		if hellos, begins, auths := b.s.counts(); hellos != 1 || begins != 1 || auths != 0 {
			t.Errorf("%s: %d hellos, %d work streams, %d authentications", state, hellos, begins, auths)
		}
		told := 0
		for len(b.events) > 0 {
			<-b.events
			told++
		}
		if told != 1 {
			t.Errorf("%s: %d events, want 1", state, told)
		}
		b.kill()
		b.wait()
	}
}

// What comes on the work stream while a call is made is newer than its answer.
func TestStandingOrder(t *testing.T) {
	var s standing
	asked := s.count()
	s.put(wire.Standing{State: wire.Rejected}, nil)
	if _, _, ok := s.put(wire.Standing{State: wire.Adopted}, &asked); ok {
		t.Error("an answer that is out of date was taken")
	}
	asked = s.count()
	if before, online, ok := s.put(wire.Standing{State: wire.Adopted}, &asked); !ok || !online || before.State != wire.Rejected {
		t.Errorf("an answer was not taken: %v, %v, %v", before, online, ok)
	}
	s.offline()
	if last, online := s.now(); online || last.State != wire.Adopted {
		t.Errorf("offline: %v, %v", last, online)
	}
}

// The same over a session: an operator rejects the runner while it
// authenticates.
func TestStandingMeanwhile(t *testing.T) {
	a, next := token(1, time.Hour), token(2, time.Hour)
	b := newTokenBench(t, nil)
	b.s.accept(a, next)
	b.put(a)
	b.start().connected()
	b.event("it is admitted", func(ev Event) bool { return ev.State != "" && ev.Standing.Admitted })
	gate := make(chan struct{})
	b.s.change(func() {
		b.s.authenticate = func() error {
			b.s.order(wire.WorkOrder{Standing: &wire.Standing{State: wire.Rejected}})
			<-gate
			return nil
		}
	})
	b.put(next)
	b.event("it is rejected", func(ev Event) bool { return ev.State == wire.Rejected })
	close(gate)
	b.stirred() // the answer has been dealt with
	for len(b.events) > 0 {
		if ev := <-b.events; ev.State != wire.Rejected {
			t.Errorf("told %+v", ev)
		}
	}
	if last, _ := b.r.standing.now(); last.State != wire.Rejected {
		t.Errorf("it stands as %s", last.State)
	}
}

// An event is of one moment: state and standing agree, whoever has it told.
func TestEventWhole(t *testing.T) {
	b := newBench(t, nil)
	r, err := New(b.cfg)
	if err != nil {
		t.Fatal(err)
	}
	r.standing.put(wire.Standing{State: wire.Pending}, nil)
	r.notify(Event{State: wire.Pending})
	r.standing.put(wire.Standing{State: wire.Adopted, Admitted: true}, nil)
	r.retell() // of something else, before the new standing is told
	r.notify(Event{State: wire.Adopted})
	for _, state := range []wire.RunnerState{wire.Pending, wire.Adopted} {
		if ev := <-b.events; ev.State != state || ev.Standing.State != state {
			t.Errorf("told %s with a standing of %s, want %s", ev.State, ev.Standing.State, state)
		}
	}
	if len(b.events) > 0 {
		t.Errorf("told again: %+v", <-b.events)
	}
}

// What a person can do is part of what is logged of a runner without jobs,
// each time that this changes: also where only an operator's word does.
func TestRemedy(t *testing.T) {
	log := new(lineLog)
	b := newBench(t, func(c *Config) {
		c.Logger = slog.New(slog.NewTextHandler(log, nil))
		c.Remedy = func(id string, st wire.Standing) string { return "help " + id + " " + string(st.State) }
	})
	st := wire.Standing{State: wire.Pending, Problem: wire.NoToken}
	b.s.judge = func([]wire.TokenOffer) wire.Standing { return st }
	b.start().connected()
	b.event("it is pending", func(ev Event) bool { return ev.State == wire.Pending })
	st.State = wire.Rejected
	b.s.tell()
	b.event("it is rejected", func(ev Event) bool { return ev.State == wire.Rejected })
	b.s.tell()
	for _, want := range []string{`hint="help runner-1 pending"`, `hint="help runner-1 rejected"`} {
		if n := log.count(want); n != 1 {
			t.Errorf("%d lines with %s, want 1", n, want)
		}
	}
}
