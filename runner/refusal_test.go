package runner

import (
	"context"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/waypointd/waypoint/mux/wire"
)

func TestPending(t *testing.T) {
	b := newBench(t, nil)
	b.s.state = wire.Pending
	b.start().connected()
	if ev := <-b.events; ev.State != wire.Pending || ev.ID != "runner-1" || ev.Again {
		t.Errorf("event %+v", ev)
	}
	b.s.cut()
	if ev := <-b.events; ev.State != "" || ev.Err == nil {
		t.Errorf("event %+v", ev)
	}
	if ev := <-b.events; ev.State != wire.Pending || !ev.Again {
		t.Errorf("event %+v", ev)
	}
	b.connected()
	b.s.order(wire.WorkOrder{Standing: &wire.Standing{State: wire.Adopted, Admitted: true}})
	if ev := <-b.events; ev.State != wire.Adopted || ev.Again {
		t.Errorf("event %+v", ev)
	}
	a := script("true")
	b.s.assign(a)
	want(t, b.s.ended(a.JobRef), wire.Success, "")
}

// An id that is in use by another identity is waited for, but not by a runner
// for one job.
func TestConflict(t *testing.T) {
	b := newBench(t, nil)
	b.s.refuse = wire.Errorf(wire.Conflict, "runner id %q is in use by another identity", "runner-1")
	b.start()
	b.s.await("it asked again", func() bool { return len(b.s.hellos) > 2 })
	b.kill()
	b.wait()
	b.cfg.Once = true
	b.start()
	if err := b.wait(); wire.KindOf(err) != wire.Conflict || !strings.Contains(err.Error(), "another identity") {
		t.Errorf("Run returned %v", err)
	}
}

func TestOnceRejected(t *testing.T) {
	b := newBench(t, func(c *Config) { c.Once = true })
	b.s.refuse = wire.Errorf(wire.Denied, "rejected")
	b.start()
	if err := b.wait(); wire.KindOf(err) != wire.Denied {
		t.Errorf("at the hello: Run returned %v", err)
	}
	b.s.change(func() { b.s.refuse = nil })
	b.start().connected()
	b.s.order(wire.WorkOrder{Standing: &wire.Standing{State: wire.Rejected}})
	if err := b.wait(); wire.KindOf(err) != wire.Denied {
		t.Errorf("while connected: Run returned %v", err)
	}
}

func TestRefused(t *testing.T) {
	b := newBench(t, nil)
	b.s.refuse = wire.Errorf(wire.Denied, "rejected")
	b.start()
	b.s.await("it asked again", func() bool { return len(b.s.hellos) > 2 })
	if ev := <-b.events; wire.KindOf(ev.Err) != wire.Denied {
		t.Errorf("event %+v", ev)
	}
	b.s.change(func() { b.s.refuse = nil })
	b.connected()
	if ev := <-b.events; ev.State != wire.Adopted { // the refusals were told once
		t.Errorf("event %+v", ev)
	}
}

// Refusals are asked about in pauses that grow to their limit, are never
// shorter than they say, and not all the same.
func TestRefusedPauses(t *testing.T) {
	b := backoff{min: time.Second, max: time.Minute, whole: true}
	want := []time.Duration{1, 2, 4, 8, 16, 32, 60, 60, 60, 60, 60, 60, 60, 60}
	lengths := map[time.Duration]bool{}
	for i, w := range want {
		w *= time.Second
		got := b.next()
		if got < w || got > w+w/4 {
			t.Errorf("pause %d is %v, want about %v", i, got, w)
		}
		lengths[got] = true
	}
	if len(lengths) < len(want)/2 {
		t.Errorf("no jitter: %v", lengths)
	}
	if defaultWaits.refusedMin != time.Second || defaultWaits.refusedMax != time.Minute {
		t.Errorf("refusals: from %v to %v", defaultWaits.refusedMin, defaultWaits.refusedMax)
	}
}

// A new token ends a pause at once, whatever it was for.
func TestTokenEndsPause(t *testing.T) {
	for name, refuse := range map[string]func(s *testServer){
		"refused":  func(s *testServer) { s.refuse = wire.Errorf(wire.Denied, "rejected") },
		"conflict": func(s *testServer) { s.refuse = wire.Errorf(wire.Conflict, "in use by another identity") },
		"down":     func(s *testServer) { s.down = true },
	} {
		t.Run(name, func(t *testing.T) {
			b := newTokenBench(t, nil)
			b.waits = func(w *waits) {
				w.connectMin, w.connectMax = time.Hour, time.Hour
				w.refusedMin, w.refusedMax = time.Hour, time.Hour
			}
			refuse(b.s)
			b.put(token(1, time.Hour))
			b.start()
			b.event("it is not connected", func(ev Event) bool { return ev.Err != nil })
			n, _, _ := b.s.counts()
			b.stirred() // nothing is new
			b.s.change(func() { b.s.refuse, b.s.down = nil, false })
			b.put(token(2, time.Hour))
			b.connected()
			if m, _, _ := b.s.counts(); m != n+1 || n > 1 {
				t.Errorf("%d hellos before and %d behind the new token", n, m)
			}
		})
	}
}

// What refuses a runner at the hello ends one for one job only; what the
// dialing refuses, ends none.
func TestOnceRefused(t *testing.T) {
	for _, kind := range []wire.Kind{wire.Denied, wire.Conflict, wire.Unauthenticated, wire.Expired} {
		b := newBench(t, func(c *Config) { c.Once = true })
		b.s.refuse = wire.Errorf(kind, "no")
		b.start()
		if err := b.wait(); wire.KindOf(err) != kind {
			t.Errorf("%s: Run returned %v", kind, err)
		}
	}
	log := new(lineLog)
	b := newBench(t, func(c *Config) {
		c.Once, c.Logger = true, slog.New(slog.NewTextHandler(log, nil))
	})
	tries, dial := make(chan struct{}, 100), b.cfg.Dial
	refusals := 3
	b.cfg.Dial = func(ctx context.Context) (net.Conn, error) {
		tries <- struct{}{}
		if refusals--; refusals >= 0 {
			return nil, wire.Errorf(wire.Denied, "connect: the certificate is not trusted").WithHint("trust it")
		}
		return dial(ctx)
	}
	b.start().connected()
	if n := log.count("not trusted"); n != 1 || log.count("trust it") != 1 || len(tries) != 4 {
		t.Errorf("said %d times in %d tries", n, len(tries))
	}
}

// A rejected runner finishes and reports what runs; then it is refused, which
// is told once.
func TestRejectedAtWork(t *testing.T) {
	b := newBench(t, nil)
	b.start().connected()
	step := filepath.Join(t.TempDir(), "step")
	a := script("echo on\n" + until(step) + "echo done")
	b.s.assign(a)
	b.s.await("it runs", func() bool { return len(b.s.jobs[a.JobRef].log) > 0 })
	b.s.change(func() { b.s.state = wire.Rejected })
	b.s.tell()
	b.event("it is rejected", func(ev Event) bool { return ev.State == wire.Rejected && ev.Jobs == 1 })
	let(t, step)
	j := b.s.ended(a.JobRef)
	want(t, j, wire.Success, "")
	b.gone(a.JobRef)
	denied := wire.Errorf(wire.Denied, "runner %q was rejected by an operator", "runner-1")
	b.s.change(func() { b.s.endWork, b.s.refuse = denied, denied })
	b.s.nudge()
	b.s.await("it asked again", func() bool { return len(b.s.hellos) > 3 })
	b.event("it is refused", func(ev Event) bool { return wire.KindOf(ev.Err) == wire.Denied })
	for len(b.events) > 0 {
		if ev := <-b.events; ev.Err != nil {
			t.Errorf("told again: %+v", ev)
		}
	}
	b.s.change(func() { b.s.state, b.s.refuse = wire.Preadopted, nil })
	b.event("it is back", func(ev Event) bool { return ev.State == wire.Preadopted && !ev.Again })
}

// One for one job that is rejected with its job running ends with that.
func TestOnceRejectedAtWork(t *testing.T) {
	b := newBench(t, func(c *Config) { c.Once = true }).start().connected()
	step := filepath.Join(t.TempDir(), "step")
	a := script("echo on\n" + until(step))
	b.s.assign(a)
	b.s.await("it runs", func() bool { return len(b.s.jobs[a.JobRef].log) > 0 })
	b.s.change(func() { b.s.state = wire.Rejected })
	b.s.tell()
	b.event("it is rejected", func(ev Event) bool { return ev.State == wire.Rejected })
	let(t, step)
	if err := b.wait(); err != nil {
		t.Errorf("Run returned %v", err)
	}
	want(t, b.s.ended(a.JobRef), wire.Success, "")
}

// A server that ends the work stream to begin anew finds the runner back at
// once, with what it holds.
func TestBeginAnew(t *testing.T) {
	for _, kind := range []wire.Kind{wire.Conflict, wire.Unavailable} {
		b := newBench(t, nil)
		b.waits = func(w *waits) { w.refusedMin, w.refusedMax = time.Hour, time.Hour }
		b.start().connected()
		step := filepath.Join(t.TempDir(), "step")
		a := script("echo on\n" + until(step) + "echo done")
		b.s.assign(a)
		b.s.await("it runs", func() bool { return len(b.s.jobs[a.JobRef].log) > 0 })
		b.s.change(func() { b.s.endWork = wire.Errorf(kind, "begin anew") })
		b.s.nudge()
		var held []wire.Held
		b.s.await("it is back", func() bool {
			if len(b.s.begins) != 2 {
				return false
			}
			held = b.s.begins[1].Held
			return true
		})
		if len(held) != 1 || held[0].JobRef != a.JobRef || !held[0].Started {
			t.Errorf("%s: holds %+v", kind, held)
		}
		let(t, step)
		j := b.s.ended(a.JobRef)
		want(t, j, wire.Success, "")
		if string(j.log) != "on\ndone\n" {
			t.Errorf("%s: output %q", kind, j.log)
		}
		b.kill()
		b.wait()
	}
}

// Reports that a server refuses for now, as it does of a runner that was
// forgotten, are kept.
func TestReportLater(t *testing.T) {
	b := newBench(t, nil)
	left := 5
	b.s.refuseReport = func() (err error) {
		b.s.change(func() {
			if left--; left >= 0 {
				err = wire.Errorf(wire.Unavailable, "runner is not admitted")
			}
		})
		return err
	}
	b.start().connected()
	a := script("echo on")
	b.s.assign(a)
	j := b.s.ended(a.JobRef)
	want(t, j, wire.Success, "")
	if string(j.log) != "on\n" || left > 0 {
		t.Errorf("output %q, %d refusals left", j.log, left)
	}
}

// A copy of a runner that is connected is refused on the work stream, however
// long the server took to see that: it is asked again as slowly as any other.
func TestCopy(t *testing.T) {
	log := new(lineLog)
	b := newTokenBench(t, func(c *Config) { c.Logger = slog.New(slog.NewTextHandler(log, nil)) })
	b.waits = func(w *waits) {
		w.connectMin, w.connectMax = time.Millisecond, time.Millisecond
		w.refusedMin, w.refusedMax = time.Hour, time.Hour
	}
	b.s.other = wire.Errorf(wire.Conflict, "runner %q is connected already", "runner-1")
	b.put(token(1, time.Hour))
	b.start()
	b.event("it is refused", func(ev Event) bool { return wire.KindOf(ev.Err) == wire.Conflict })
	if slow, fast := log.count("refused by the server"), log.count("not connected"); slow != 1 || fast != 0 {
		t.Errorf("told %d times that it asks slowly, and %d times that it connects anew", slow, fast)
	}
	b.s.change(func() { b.s.other = nil })
	b.put(token(2, time.Hour))
	b.connected()
	if n, _, _ := b.s.counts(); n != 2 {
		t.Errorf("%d hellos, want one behind the new token", n)
	}
}
