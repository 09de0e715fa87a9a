package runner

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/waypointd/waypoint/mux/wire"
)

// bench is a runner on a test server, with a supervisor that may outlive it.
type bench struct {
	t      testing.TB
	s      *testServer
	cfg    Config
	waits  func(*waits) // changes them further; nil does not
	r      *Runner
	kill   context.CancelFunc // ends the agent as a signal 9 would, as far as its disk sees
	stop   context.CancelFunc
	result chan error
	events chan Event
}

// newBench starts a runner; change may change its configuration first.
func newBench(t testing.TB, change func(*Config)) *bench {
	t.Helper()
	b := &bench{t: t, s: newTestServer(t), events: make(chan Event, 1000)}
	dir := t.TempDir()
	_, key, _ := ed25519.GenerateKey(nil)
	b.cfg = Config{
		Dial: b.s.dial, ID: "runner-1", Key: key, Concurrency: 4, Dir: dir,
		Software: "test", Logger: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelInfo})),
		Notify: func(e Event) { b.events <- e },
	}
	if change != nil {
		change(&b.cfg)
	}
	if b.cfg.Supervisor == nil {
		b.cfg.Supervisor = newSupervisor(t, dir)
	}
	return b
}

// start runs an agent over the bench's directory.
func (b *bench) start() *bench {
	b.t.Helper()
	r, err := New(b.cfg)
	if err != nil {
		b.t.Fatal(err)
	}
	r.waits.connectMin, r.waits.connectMax = time.Millisecond, 20*time.Millisecond
	r.waits.refusedMin, r.waits.refusedMax = 5*time.Millisecond, 50*time.Millisecond
	r.waits.retryMin, r.waits.retryMax = time.Millisecond, 20*time.Millisecond
	r.waits.refusedOutput = 40 * time.Millisecond
	r.waits.spool, r.waits.counts = 5*time.Millisecond, time.Millisecond
	r.waits.storeMin, r.waits.storeMax = time.Millisecond, 20*time.Millisecond
	r.waits.silence = 20 * time.Second // on a busy machine heartbeats are late
	if b.waits != nil {
		b.waits(&r.waits)
	}
	ctx, kill := context.WithCancel(context.Background())
	stopped, stop := context.WithCancel(context.Background())
	result := make(chan error, 1)
	go func() { result <- r.Run(ctx, stopped) }()
	b.r, b.kill, b.stop, b.result = r, kill, stop, result
	b.t.Cleanup(func() {
		kill()
		stop()
		b.wait()
	})
	return b
}

// wait waits for the agent's end.
func (b *bench) wait() error {
	b.t.Helper()
	select {
	case err := <-b.result:
		b.result <- err // for who asks next
		return err
	case <-time.After(30 * time.Second):
		b.t.Fatal("the runner does not end")
		return nil
	}
}

// restart kills the agent and starts another on the same directory.
func (b *bench) restart() {
	b.t.Helper()
	b.kill()
	if err := b.wait(); err != nil {
		b.t.Fatalf("killed agent returned %v", err)
	}
	b.s.await("the old work stream has ended", func() bool { return b.s.work == nil })
	b.start()
}

func (b *bench) connected() *bench {
	b.t.Helper()
	b.s.await("the runner is connected", func() bool { return b.s.work != nil })
	return b
}

// gone waits until nothing of an attempt is left.
func (b *bench) gone(ref wire.JobRef) {
	b.t.Helper()
	limit := time.Now().Add(20 * time.Second)
	for b.r.attempt(ref) != nil {
		if time.Now().After(limit) {
			b.t.Fatalf("attempt %v is still held", ref)
		}
		time.Sleep(time.Millisecond)
	}
	if _, err := os.Stat(b.r.attemptDir(ref)); !errors.Is(err, os.ErrNotExist) {
		b.t.Errorf("directory of attempt %v: %v", ref, err)
	}
	list, err := b.cfg.Supervisor.List(b.t.Context())
	if err != nil {
		b.t.Fatal(err)
	}
	for _, st := range list {
		if st.JobRef == ref {
			b.t.Errorf("supervisor still holds %v", ref)
		}
	}
}

var jobNumber struct {
	sync.Mutex
	n int
}

// script is an assignment of a shell script.
func script(text string) wire.Assignment {
	jobNumber.Lock()
	defer jobNumber.Unlock()
	jobNumber.n++
	return wire.Assignment{
		JobRef: wire.JobRef{Job: fmt.Sprintf("job%d", jobNumber.n), Attempt: 1},
		Spec:   wire.JobSpec{Operation: wire.OpRun, Script: text},
	}
}

// until is a script's way to wait for a file that the test makes with let.
func until(file string) string { return fmt.Sprintf("while [ ! -e %s ]; do sleep 0.01; done\n", file) }

func let(t testing.TB, file string) {
	t.Helper()
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
}

func awaitFile(t testing.TB, file string) {
	t.Helper()
	limit := time.Now().Add(20 * time.Second)
	for {
		if _, err := os.Stat(file); err == nil {
			return
		}
		if time.Now().After(limit) {
			t.Fatalf("%s does not appear", file)
		}
		time.Sleep(time.Millisecond)
	}
}

func want(t testing.TB, j *testJob, state wire.State, reason wire.Reason) {
	t.Helper()
	if j.result.State != state || j.result.Reason != reason {
		t.Errorf("job ended %s/%s (%s), want %s/%s; output %q", j.result.State, j.result.Reason, j.result.Error, state, reason, j.log)
	}
}

func TestRun(t *testing.T) {
	b := newBench(t, func(c *Config) { c.Labels = map[string]string{"tier": "web"} }).start().connected()
	h := b.s.hellos[0]
	if h.Role != wire.RoleRunner || h.Runner.ID != "runner-1" || h.Runner.Labels["tier"] != "web" || h.Runner.Labels["os"] != "linux" ||
		h.Runner.Labels["arch"] == "" || h.Runner.Concurrency != 4 || h.Runner.Isolation == "" {
		t.Errorf("hello: %+v", h.Runner)
	}
	a := script("echo out; echo err >&2; pwd; echo k=v >>$WAYPOINT_OUTPUT; echo $WAYPOINT_JOB_ID; touch $TMPDIR/x; exit 3")
	b.s.assign(a)
	j := b.s.ended(a.JobRef)
	want(t, j, wire.Failed, wire.ReasonFailed)
	if j.result.ExitCode == nil || *j.result.ExitCode != 3 || j.result.Outputs["k"] != "v" || j.result.Usage == nil {
		t.Errorf("result %+v", j.result)
	}
	work := filepath.Join(b.cfg.Dir, a.Job+"-1", "work")
	if got, want := string(j.byKind[wire.Stdout]), "out\n"+work+"\n"+a.Job+"\n"; got != want {
		t.Errorf("stdout %q, want %q", got, want)
	}
	if got := string(j.byKind[wire.Stderr]); got != "err\n" {
		t.Errorf("stderr %q", got)
	}
	b.gone(a.JobRef)
	if ev := <-b.events; ev.State != wire.Adopted || ev.ID != "runner-1" || ev.Again {
		t.Errorf("event %+v", ev)
	}
}

func TestOutputWhole(t *testing.T) {
	b := newBench(t, nil).start().connected()
	a := script("i=0; while [ $i -lt 300 ]; do head -c 100000 /dev/zero | tr '\\0' x; i=$((i+1)); done")
	b.s.assign(a)
	j := b.s.ended(a.JobRef)
	want(t, j, wire.Success, "")
	if len(j.log) != 300*100000 || bytes.Count(j.log, []byte("x")) != len(j.log) {
		t.Errorf("%d bytes of output", len(j.log))
	}
}

// lines is a script that prints n numbered lines, and lineText what it prints.
func lines(n int) string {
	return fmt.Sprintf("i=0; while [ $i -lt %d ]; do echo line $i; i=$((i+1)); done", n)
}

func lineText(n int) string {
	var text strings.Builder
	for i := range n {
		fmt.Fprintf(&text, "line %d\n", i)
	}
	return text.String()
}

// A session that is cut at any point loses nothing and doubles nothing.
func TestCut(t *testing.T) {
	b := newBench(t, nil).start().connected()
	const n = 20000
	a := script(lines(n))
	b.s.assign(a)
	for b.s.mu.Lock(); b.s.jobs[a.JobRef].result == nil; b.s.mu.Lock() {
		b.s.cutAfter = 1 + (len(b.s.jobs[a.JobRef].log)*7919+13)%20000
		changed := b.s.changed
		b.s.mu.Unlock()
		select {
		case <-changed:
		case <-time.After(30 * time.Second):
			t.Fatal("nothing moves")
		}
	}
	j := b.s.jobs[a.JobRef]
	b.s.mu.Unlock()
	want(t, j, wire.Success, "")
	if string(j.log) != lineText(n) {
		t.Errorf("output differs: %d bytes, want %d", len(j.log), len(lineText(n)))
	}
	if j.reports < 3 {
		t.Errorf("%d reports: the session was hardly cut", j.reports)
	}
	b.gone(a.JobRef)
}

// The same with the agent killed and started again.
func TestRestart(t *testing.T) {
	b := newBench(t, nil).start().connected()
	const n = 20000
	step := filepath.Join(t.TempDir(), "step")
	a := script(lines(n) + "\n" + until(step) + lines(n))
	b.s.assign(a)
	b.s.await("output has come", func() bool { return len(b.s.jobs[a.JobRef].log) > 1000 })
	b.restart()
	b.s.await("more output has come", func() bool { return len(b.s.jobs[a.JobRef].log) == len(lineText(n)) })
	b.restart()
	let(t, step)
	j := b.s.ended(a.JobRef)
	want(t, j, wire.Success, "")
	if string(j.log) != lineText(n)+lineText(n) {
		t.Errorf("output differs: %d bytes", len(j.log))
	}
	if last := b.s.begins[len(b.s.begins)-1]; len(last.Held) != 1 || !last.Held[0].Started {
		t.Errorf("held after restart: %+v", last.Held)
	}
	b.gone(a.JobRef)
}

// A job that ended while no agent was there is reported by the next.
func TestEndWithoutAgent(t *testing.T) {
	b := newBench(t, nil).start().connected()
	step, done := filepath.Join(t.TempDir(), "step"), filepath.Join(t.TempDir(), "done")
	a := script(until(step) + "echo late; touch " + done)
	b.s.assign(a)
	b.s.await("it has started", func() bool { return b.s.jobs[a.JobRef].reports > 0 })
	awaitFile(t, filepath.Join(b.r.attemptDir(a.JobRef), fileLog))
	b.kill()
	b.wait()
	let(t, step)
	awaitFile(t, done)
	awaitFile(t, filepath.Join(b.r.attemptDir(a.JobRef), fileEnd))
	b.start()
	j := b.s.ended(a.JobRef)
	want(t, j, wire.Success, "")
	if string(j.log) != "late\n" {
		t.Errorf("output %q", j.log)
	}
	b.gone(a.JobRef)
}

// What was recorded and not started is acknowledged again after a restart, or dropped.
func TestRestartUnstarted(t *testing.T) {
	b := newBench(t, nil)
	b.s.hold = true
	b.start().connected()
	keep, stale := script("echo kept"), script("echo never")
	b.s.assign(keep)
	b.s.assign(stale)
	b.s.await("both are acknowledged", func() bool { return b.s.jobs[keep.JobRef].acks == 1 && b.s.jobs[stale.JobRef].acks == 1 })
	b.s.change(func() { b.s.jobs[stale.JobRef].stale, b.s.hold = true, false })
	b.restart()
	j := b.s.ended(keep.JobRef)
	want(t, j, wire.Success, "")
	b.gone(keep.JobRef)
	b.gone(stale.JobRef)
	for _, h := range b.s.begins[1].Held {
		if h.Started {
			t.Errorf("%v is said to be started", h.JobRef)
		}
	}
	if j.acks != 2 {
		t.Errorf("%d acknowledgements, want 2", j.acks)
	}
}

func TestCancel(t *testing.T) {
	b := newBench(t, nil)
	b.s.hold = true
	b.start().connected()

	before := script("echo never")
	b.s.assign(before)
	b.s.await("it is acknowledged", func() bool { return b.s.jobs[before.JobRef].acks == 1 })
	b.s.order(wire.WorkOrder{Cancel: &wire.CancelJob{JobRef: before.JobRef}})
	b.s.change(func() { b.s.hold, b.s.jobs[before.JobRef].started = false, true })
	b.s.order(wire.WorkOrder{Start: &before.JobRef})
	j := b.s.ended(before.JobRef)
	want(t, j, wire.Canceled, wire.ReasonCanceled)
	if len(j.log) > 0 {
		t.Errorf("it ran: %q", j.log)
	}
	b.gone(before.JobRef)

	for _, force := range []bool{false, true} {
		a := script("echo on; sleep 1000")
		b.s.assign(a)
		b.s.await("it runs", func() bool { return len(b.s.jobs[a.JobRef].log) > 0 })
		b.s.order(wire.WorkOrder{Cancel: &wire.CancelJob{JobRef: a.JobRef, Force: force}})
		j := b.s.ended(a.JobRef)
		want(t, j, wire.Canceled, wire.ReasonCanceled)
		b.gone(a.JobRef)
	}

	stubborn := script("trap '' TERM; echo on; while :; do sleep 0.1; done")
	b.s.assign(stubborn)
	b.s.await("it runs", func() bool { return len(b.s.jobs[stubborn.JobRef].log) > 0 })
	b.s.order(wire.WorkOrder{Cancel: &wire.CancelJob{JobRef: stubborn.JobRef}})
	b.s.order(wire.WorkOrder{Cancel: &wire.CancelJob{JobRef: stubborn.JobRef, Force: true}})
	want(t, b.s.ended(stubborn.JobRef), wire.Canceled, wire.ReasonCanceled)
}

func TestDrop(t *testing.T) {
	b := newBench(t, nil).start().connected()
	mark := filepath.Join(t.TempDir(), "mark")
	a := script("echo on; sleep 1000; touch " + mark)
	b.s.assign(a)
	b.s.await("it runs", func() bool { return len(b.s.jobs[a.JobRef].log) > 0 })
	b.s.change(func() { b.s.jobs[a.JobRef].stale = true })
	b.s.order(wire.WorkOrder{Drop: &a.JobRef})
	b.gone(a.JobRef)
	if b.s.jobs[a.JobRef].result != nil {
		t.Error("a dropped job was reported")
	}

	// A report that is refused is a drop as well.
	c := script("echo on; sleep 1000")
	b.s.assign(c)
	b.s.await("it runs", func() bool { return len(b.s.jobs[c.JobRef].log) > 0 })
	b.s.change(func() { b.s.jobs[c.JobRef].stale = true; b.s.deaf = true })
	b.s.cut()
	b.gone(c.JobRef)
}

func TestNack(t *testing.T) {
	b := newBench(t, func(c *Config) { c.Concurrency = 1 }).start().connected()
	step := filepath.Join(t.TempDir(), "step")
	one, two := script(until(step)), script("true")
	b.s.assign(one)
	b.s.assign(two)
	b.s.await("the second is refused", func() bool { return len(b.s.nacks) == 1 && b.s.nacks[0].JobRef == two.JobRef })
	let(t, step)
	want(t, b.s.ended(one.JobRef), wire.Success, "")
	if b.s.nacks[0].Error == "" {
		t.Error("refused without a reason")
	}
}

// The server gives the next job the moment it has a result: never refused.
func TestNextWithResult(t *testing.T) {
	b := newBench(t, func(c *Config) { c.Concurrency = 2 })
	var refs []wire.JobRef
	for range 100 {
		a := script("echo hello")
		b.s.queue = append(b.s.queue, a)
		refs = append(refs, a.JobRef)
	}
	b.s.slots = 2
	b.start()
	for _, ref := range refs {
		want(t, b.s.ended(ref), wire.Success, "")
	}
	if len(b.s.nacks) > 0 {
		t.Errorf("refused: %+v", b.s.nacks)
	}
}

func TestOnce(t *testing.T) {
	b := newBench(t, func(c *Config) { c.Once = true }).start().connected()
	a, other := script("echo one"), script("echo two")
	b.s.assign(a)
	b.s.assign(other)
	if err := b.wait(); err != nil {
		t.Fatal(err)
	}
	want(t, b.s.ended(a.JobRef), wire.Success, "")
	b.s.await("the second job is given back", func() bool {
		return len(b.s.nacks) == 1 && b.s.nacks[0].JobRef == other.JobRef && b.s.jobs[other.JobRef].acks == 0
	})
	b.s.await("drain is said", func() bool { return len(b.s.drains) > 0 && b.s.drains[0] })
}

func TestDrain(t *testing.T) {
	b := newBench(t, nil).start().connected()
	step := filepath.Join(t.TempDir(), "step")
	a, late := script("echo on\n"+until(step)+"echo done"), script("true")
	b.s.assign(a)
	b.s.await("it runs", func() bool { return len(b.s.jobs[a.JobRef].log) > 0 })
	b.stop()
	b.s.await("drain is said", func() bool { return len(b.s.drains) == 1 && b.s.drains[0] })
	b.s.assign(late)
	b.s.await("the late one is given back", func() bool { return len(b.s.nacks) == 1 })
	b.s.cut() // also over a lost session
	b.s.await("it is back, draining", func() bool { return len(b.s.begins) == 2 && b.s.begins[1].Draining })
	let(t, step)
	if err := b.wait(); err != nil {
		t.Fatal(err)
	}
	j := b.s.ended(a.JobRef)
	want(t, j, wire.Success, "")
	if string(j.log) != "on\ndone\n" {
		t.Errorf("output %q", j.log)
	}
}

func TestStopWhileDisconnected(t *testing.T) {
	b := newBench(t, nil)
	b.s.down = true
	b.start()
	if ev := <-b.events; ev.Err == nil || ev.State != "" {
		t.Errorf("event %+v", ev)
	}
	b.stop()
	if err := b.wait(); err != nil {
		t.Fatal(err)
	}
}

// An agent that is to stop does not wait for ever for a server that is not
// there: what has ended and what has not begun is settled at the next start.
func TestStopWithoutTheServer(t *testing.T) {
	b := newBench(t, nil)
	b.waits = func(w *waits) { w.apart = 20 * time.Millisecond }
	b.start().connected()
	step := filepath.Join(t.TempDir(), "step")
	runs := script("echo on\n" + until(step) + "echo done")
	b.s.assign(runs)
	b.s.await("it runs", func() bool { return len(b.s.jobs[runs.JobRef].log) > 0 })
	b.s.change(func() { b.s.down = true })
	b.s.cut()
	b.stop()
	select {
	case err := <-b.result:
		t.Fatalf("it has ended while a job runs: %v", err)
	case <-time.After(10 * 20 * time.Millisecond):
	}
	let(t, step)
	if err := b.wait(); err != nil {
		t.Fatal(err)
	}
	b.s.await("the old work stream has ended", func() bool { return b.s.work == nil })
	b.s.change(func() { b.s.down, b.s.hold = false, true })
	b.start().connected()
	j := b.s.ended(runs.JobRef)
	want(t, j, wire.Success, "")
	waits := script("true")
	b.s.assign(waits)
	b.s.await("it is acknowledged", func() bool { return b.s.jobs[waits.JobRef].acks > 0 })
	b.s.change(func() { b.s.down = true })
	b.s.cut()
	b.stop()
	if err := b.wait(); err != nil {
		t.Fatal(err)
	}
	b.s.change(func() { b.s.down, b.s.hold = false, false })
	b.start()
	want(t, b.s.ended(waits.JobRef), wire.Success, "")
	if string(j.log) != "on\ndone\n" {
		t.Errorf("output %q", j.log)
	}
}

// The number of jobs is told as well.
func TestCounts(t *testing.T) {
	b := newBench(t, nil).start().connected()
	step := filepath.Join(t.TempDir(), "step")
	a := script(until(step))
	b.s.assign(a)
	for ev := range b.events {
		if ev.Jobs == 1 && ev.State == wire.Adopted {
			break
		}
	}
	let(t, step)
	for ev := range b.events {
		if ev.Jobs == 0 {
			break
		}
	}
}

func TestNewRefuses(t *testing.T) {
	good := newBench(t, nil).cfg
	for name, change := range map[string]func(*Config){
		"dial":        func(c *Config) { c.Dial = nil },
		"key":         func(c *Config) { c.Key = nil },
		"supervisor":  func(c *Config) { c.Supervisor = nil },
		"dir":         func(c *Config) { c.Dir = "relative" },
		"id":          func(c *Config) { c.ID = "../x" },
		"label":       func(c *Config) { c.Labels = map[string]string{"a b": "c"} },
		"kind":        func(c *Config) { c.Kind = "odd" },
		"root":        func(c *Config) { c.Kind = wire.KindLocal },
		"concurrency": func(c *Config) { c.Concurrency = -1 },
	} {
		c := good
		c.Labels = maps.Clone(c.Labels)
		change(&c)
		if _, err := New(c); wire.KindOf(err) != wire.BadUsage {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := New(good); err != nil {
		t.Error(err)
	}
}
