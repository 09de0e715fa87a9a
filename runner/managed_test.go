package runner

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/waypointd/waypoint/mux/wire"
	"github.com/waypointd/waypoint/runner/supervisor"
)

// foreign is a supervisor that somebody else runs, in this process, one life
// after the other.
type foreign struct {
	t     *testing.T
	dir   string
	leave context.CancelFunc
	ended chan error
}

// begin starts a supervisor of a version, which has so long for its jobs when it is to end.
func (f *foreign) begin(version string, drain time.Duration) {
	f.t.Helper()
	ctx, leave := context.WithCancel(context.Background())
	ended, ready := make(chan error, 1), make(chan struct{})
	said := sync.OnceFunc(func() { close(ready) })
	go func() {
		ended <- supervisor.Run(ctx, supervisor.ProcessConfig{
			Dir: f.dir, Version: version, Drain: drain, Notify: func(supervisor.ProcessStatus) { said() },
		})
	}()
	<-ready
	f.leave, f.ended = leave, ended
	f.t.Cleanup(func() {
		leave()
		ended <- <-ended
	})
}

// end waits for its end.
func (f *foreign) end() {
	f.t.Helper()
	select {
	case err := <-f.ended:
		f.ended <- err
		if err != nil {
			f.t.Error(err)
		}
	case <-time.After(20 * time.Second):
		f.t.Fatal("the supervisor does not end")
	}
}

// newManaged is a bench whose supervisor is somebody else's, and not there yet.
func newManaged(t *testing.T) (*bench, *foreign) {
	t.Helper()
	f := &foreign{t: t}
	b := newBench(t, func(c *Config) {
		f.dir = c.Dir
		c.Managed, c.Software = true, "waypoint 2.0.0"
		c.Resupervise = func(ctx context.Context) (supervisor.Jobs, error) { return supervisor.Await(ctx, f.dir) }
		c.Supervisor = newSupervisor(t, t.TempDir()) // newBench would make one
	})
	b.cfg.Supervisor = nil
	b.waits = func(w *waits) { w.supervisor = 20 * time.Second }
	return b, f
}

// fares waits until the agent says that of its supervisor.
func (b *bench) fares(want wire.SupervisorState) {
	b.t.Helper()
	limit := time.After(20 * time.Second)
	for b.r.Status().Supervisor.State != want {
		select {
		case <-b.events:
		case <-limit:
			b.t.Fatalf("its supervisor is %+v, not %s", b.r.Status().Supervisor, want)
		}
	}
}

// Without a supervisor it connects, wants nothing and refuses; with one it works.
func TestManagedWaits(t *testing.T) {
	b, f := newManaged(t)
	b.waits = func(w *waits) { w.supervisor = time.Millisecond }
	b.start().connected()
	b.fares(wire.SupervisorMissing)
	if !b.s.begins[0].Draining {
		t.Error("it wants jobs without a supervisor")
	}
	b.s.await("it says why", func() bool {
		return slices.Equal(b.s.waits, []wire.Wait{{For: "a supervisor of its jobs: the runner has no supervisor for its jobs"}})
	})
	a := script("echo on")
	b.s.assign(a)
	b.s.await("it is given back", func() bool { return len(b.s.nacks) == 1 })
	f.begin("2.0.0", 0)
	b.fares(wire.SupervisorReady)
	if st := b.r.Status().Supervisor; st.Version != "2.0.0" || st.Isolation == "" || st.Dir != b.cfg.Dir {
		t.Errorf("status %+v", st)
	}
	b.s.await("it says what it can do", func() bool { return len(b.s.begins) == 2 && !b.s.begins[1].Draining })
	next := script("echo on")
	b.s.assign(next)
	want(t, b.s.ended(next.JobRef), wire.Success, "")
	if err := b.r.Probe(t.Context()); err != nil {
		t.Error(err)
	}
}

// Asked to stop, it ends while its job runs; the next agent reports it.
func TestHandOver(t *testing.T) {
	b, f := newManaged(t)
	f.begin("2.0.0", 0)
	b.start().connected()
	b.fares(wire.SupervisorReady)
	step := filepath.Join(t.TempDir(), "step")
	a := script("echo on\n" + until(step) + "echo off")
	b.s.assign(a)
	b.s.await("it runs", func() bool { return len(b.s.jobs[a.JobRef].log) > 0 })
	b.stop()
	if err := b.wait(); err != nil {
		t.Fatal(err)
	}
	let(t, step)
	b.start()
	j := b.s.ended(a.JobRef)
	want(t, j, wire.Success, "")
	if string(j.log) != "on\noff\n" {
		t.Errorf("output %q", j.log)
	}
}

// A supervisor that leaves has its jobs' ends reported, and gets no more; the
// next one is used.
func TestSupervisorLeaves(t *testing.T) {
	b, f := newManaged(t)
	f.begin("2.0.0", time.Hour)
	b.start().connected()
	b.fares(wire.SupervisorReady)
	step := filepath.Join(t.TempDir(), "step")
	a := script("echo on\n" + until(step))
	b.s.assign(a)
	b.s.await("it runs", func() bool { return len(b.s.jobs[a.JobRef].log) > 0 })
	f.leave()
	b.fares(wire.SupervisorLeaving)
	late := script("echo on")
	b.s.assign(late)
	b.s.await("it is given back", func() bool { return len(b.s.nacks) == 1 })
	let(t, step)
	want(t, b.s.ended(a.JobRef), wire.Success, "")
	f.end()
	b.fares(wire.SupervisorMissing)
	f.begin("2.0.0", 0)
	b.fares(wire.SupervisorReady)
	next := script("echo on")
	b.s.assign(next)
	want(t, b.s.ended(next.JobRef), wire.Success, "")
}

// One that ends its jobs says how before it is gone: the agent reports it
// though there is no other supervisor.
func TestSupervisorEnds(t *testing.T) {
	b, f := newManaged(t)
	f.begin("2.0.0", 0)
	b.start().connected()
	b.fares(wire.SupervisorReady)
	a := script("echo on; sleep 1000")
	b.s.assign(a)
	b.s.await("it runs", func() bool { return len(b.s.jobs[a.JobRef].log) > 0 })
	f.leave()
	j := b.s.ended(a.JobRef)
	want(t, j, wire.Failed, wire.ReasonRunnerLost)
	if j.result.Error == "" {
		t.Error("nobody says why")
	}
}

// A supervisor of another version ends once no job runs; what meets its end is
// done by the next one. One that is again of that version is left alone.
func TestRetire(t *testing.T) {
	b, f := newManaged(t)
	f.begin("1.0.0", 0)
	b.start().connected()
	f.end()
	f.begin("1.0.0", 0)
	b.fares(wire.SupervisorReady)
	a := script("echo on")
	b.s.assign(a)
	want(t, b.s.ended(a.JobRef), wire.Success, "")
	select {
	case err := <-f.ended:
		t.Errorf("the second of its version ended: %v", err)
	default:
	}
}

// A start that is refused by a supervisor that is leaving is for the next one.
func TestStartWhileLeaving(t *testing.T) {
	var next supervisor.Jobs
	var first *line
	b := newBench(t, func(c *Config) {
		next = newSupervisor(t, c.Dir)
		first = newLine(newSupervisor(t, c.Dir))
		first.refuse = supervisor.ErrLeaving
		c.Supervisor = first
		c.Resupervise = func(context.Context) (supervisor.Jobs, error) { return newLine(next), nil }
	}).start().connected()
	a := script("echo on")
	b.s.assign(a)
	b.fares(wire.SupervisorLeaving)
	first.cut()
	j := b.s.ended(a.JobRef)
	want(t, j, wire.Success, "")
	if string(j.log) != "on\n" {
		t.Errorf("output %q", j.log)
	}
}

// The probe fails when a lock is held for ever, naming what, and when the loop
// does not turn.
func TestProbeFails(t *testing.T) {
	b := newBench(t, nil).start().connected()
	if err := b.r.Probe(t.Context()); err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	b.r.intake.Lock()
	err := b.r.Probe(ctx)
	b.r.intake.Unlock()
	if err == nil {
		t.Error("a lock that is held is not found")
	}
	b.r.pulse.due(-time.Hour)
	if err := b.r.Probe(t.Context()); wire.KindOf(err) != wire.Internal {
		t.Errorf("a loop that is overdue: %v", err)
	}
}

// What a host that lost its power has left of an attempt, with an assignment
// that was never written, may still be the jobs' user's: it waits for the
// supervisor, which takes it back first, and is removed then.
func TestManagedLeftovers(t *testing.T) {
	b, f := newManaged(t)
	b.waits = func(w *waits) { w.supervisor = time.Millisecond }
	dir := filepath.Join(b.cfg.Dir, "torn-1")
	if err := errors.Join(os.MkdirAll(dir, 0o700), os.WriteFile(filepath.Join(dir, fileAssignment), make([]byte, 300), 0o600)); err != nil {
		t.Fatal(err)
	}
	b.start().connected()
	b.fares(wire.SupervisorMissing)
	if _, err := os.Stat(dir); err != nil {
		t.Errorf("before there is a supervisor: %v", err)
	}
	f.begin("2.0.0", 0)
	b.fares(wire.SupervisorReady)
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("with a supervisor it is still there: %v", err)
	}
}

// An agent takes its jobs up again under a supervisor of the release before or
// after its own; that one goes when they are done.
func TestReattachToOtherVersion(t *testing.T) {
	for _, version := range []string{"1.9.0", "2.1.0", ""} {
		t.Run("version "+version, func(t *testing.T) {
			b, f := newManaged(t)
			f.begin(version, 0)
			b.cfg.Software = "waypoint " + version
			b.start().connected()
			b.fares(wire.SupervisorReady)
			step := filepath.Join(t.TempDir(), "step")
			var jobs []wire.Assignment
			for range 4 {
				a := script("echo on\n" + until(step) + "echo off")
				jobs = append(jobs, a)
				b.s.assign(a)
			}
			b.s.await("they run", func() bool {
				for _, a := range jobs {
					if len(b.s.jobs[a.JobRef].log) == 0 {
						return false
					}
				}
				return true
			})
			b.cfg.Software = "waypoint 2.0.0"
			b.restart()
			b.fares(wire.SupervisorReady)
			if st := b.r.Status().Supervisor; st.Version != version {
				t.Errorf("its supervisor is %+v", st)
			}
			let(t, step)
			for _, a := range jobs {
				j := b.s.ended(a.JobRef)
				want(t, j, wire.Success, "")
				if string(j.log) != "on\noff\n" {
					t.Errorf("output %q", j.log)
				}
			}
			if version != "" { // one too old to say so cannot be asked to retire either
				f.end()
			}
		})
	}
}

// ancient is a supervisor that knows nothing of what was added since the first.
type ancient struct{ supervisor.Jobs }

var errUnknown = wire.Errorf(wire.Unimplemented, "no such method")

func (ancient) Takeover(context.Context) error { return errUnknown }
func (ancient) Retire(context.Context) error   { return errUnknown }
func (ancient) Version() string                { return "" }

// One that does not know of all that is asked keeps its jobs all the same.
func TestReattachToAncient(t *testing.T) {
	b := newBench(t, func(c *Config) { c.Supervisor = ancient{newSupervisor(t, c.Dir)} }).start().connected()
	step := filepath.Join(t.TempDir(), "step")
	a := script("echo on\n" + until(step) + "echo off")
	b.s.assign(a)
	b.s.await("it runs", func() bool { return len(b.s.jobs[a.JobRef].log) > 0 })
	b.restart()
	b.s.await("it is back", func() bool { return len(b.s.begins) == 2 })
	let(t, step)
	j := b.s.ended(a.JobRef)
	want(t, j, wire.Success, "")
	if string(j.log) != "on\noff\n" {
		t.Errorf("output %q", j.log)
	}
}

// What it gives back it keeps until the server says Drop. Where the server has
// not heard it, or has the start on record, the next agent starts it.
func TestGivesBack(t *testing.T) {
	b, f := newManaged(t)
	b.waits = func(w *waits) { w.handOver = time.Second }
	f.begin("2.0.0", 0)
	b.start().connected()
	b.fares(wire.SupervisorReady)
	b.s.change(func() { b.s.hold = true })
	kept, dropped := script("echo on"), script("echo on")
	for _, a := range []wire.Assignment{kept, dropped} {
		b.s.assign(a)
		b.s.await("it is acknowledged", func() bool { return b.s.jobs[a.JobRef].acks == 1 })
	}
	b.stop()
	b.s.await("both are given back", func() bool { return len(b.s.nacks) == 2 })
	b.s.order(wire.WorkOrder{Start: &kept.JobRef}) // it has crossed the other on the way
	b.s.order(wire.WorkOrder{Drop: &dropped.JobRef})
	if err := b.wait(); err != nil {
		t.Fatal(err)
	}
	if readable(filepath.Join(b.cfg.Dir, dropped.Job+"-1")) || !readable(filepath.Join(b.cfg.Dir, kept.Job+"-1")) {
		t.Error("it keeps what it was to drop, or has dropped what it was to keep")
	}
	b.s.change(func() { b.s.hold = false })
	b.start()
	j := b.s.ended(kept.JobRef)
	want(t, j, wire.Success, "")
	if string(j.log) != "on\n" || j.acks != 2 {
		t.Errorf("output %q after %d acknowledgements", j.log, j.acks)
	}
}

func readable(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// A supervisor that shares no version of the protocol keeps its jobs: their output and their
// ends come from the disk. It gets no others, and who waits is told why; once it has been
// replaced, there are jobs again.
func TestIncompatible(t *testing.T) {
	for _, managed := range []bool{true, false} {
		t.Run(fmt.Sprintf("managed %t", managed), func(t *testing.T) {
			b, f := newManaged(t)
			b.s.heartbeat = time.Second
			b.waits = func(w *waits) {
				w.estranged, w.look, w.supervisor = 20*time.Millisecond, time.Millisecond, 20*time.Second
			}
			f.begin("2.0.0", 0)
			b.start().connected()
			b.fares(wire.SupervisorReady)
			var steps [2]string
			var jobs [2]wire.Assignment
			for i := range jobs {
				steps[i] = filepath.Join(t.TempDir(), "step")
				jobs[i] = script("echo on\n" + until(steps[i]) + "echo more\n" + until(steps[i]+"2") + "echo off")
				b.s.assign(jobs[i])
				b.s.await("it runs", func() bool { return string(b.s.jobs[jobs[i].JobRef].log) == "on\n" })
			}

			var spoken atomic.Bool
			const why = "no protocol version in common"
			b.cfg.Managed = managed
			b.cfg.Resupervise = func(ctx context.Context) (supervisor.Jobs, error) {
				if spoken.Load() {
					return supervisor.Await(ctx, f.dir)
				}
				return nil, wire.Errorf(wire.Unimplemented, why)
			}
			b.restart()
			b.fares(wire.SupervisorIncompatible)
			if st := b.r.Status().Supervisor; st.Problem != why || st.Dir != b.cfg.Dir {
				t.Errorf("status %+v", st)
			}
			b.s.await("it is back with its jobs, and wants no others", func() bool {
				n := len(b.s.begins)
				return n > 1 && b.s.begins[n-1].Draining && len(b.s.begins[n-1].Held) == 2
			})
			late := script("echo on")
			b.s.assign(late)
			b.s.await("it is given back", func() bool { return len(b.s.nacks) == 1 })
			b.s.await("it says why", func() bool {
				return slices.ContainsFunc(b.s.waits, func(w wire.Wait) bool { return w.Job == "" && strings.Contains(w.For, "another release") })
			})

			// What they write and how they end.
			let(t, steps[0])
			b.s.await("output comes", func() bool { return string(b.s.jobs[jobs[0].JobRef].log) == "on\nmore\n" })
			let(t, steps[0]+"2")
			j := b.s.ended(jobs[0].JobRef)
			want(t, j, wire.Success, "")
			if string(j.log) != "on\nmore\noff\n" {
				t.Errorf("output %q", j.log)
			}
			// A cancel waits, for that end or for another supervisor.
			b.s.order(wire.WorkOrder{Cancel: &wire.CancelJob{JobRef: jobs[1].JobRef}})
			b.s.await("it says what the cancel waits for", func() bool {
				return slices.ContainsFunc(b.s.waits, func(w wire.Wait) bool {
					return w.JobRef == jobs[1].JobRef && strings.Contains(w.For, "a supervisor to end it")
				})
			})
			let(t, steps[1])
			let(t, steps[1]+"2")
			want(t, b.s.ended(jobs[1].JobRef), wire.Success, "")

			f.leave()
			f.end()
			f.begin("2.0.0", 0)
			spoken.Store(true)
			b.fares(wire.SupervisorReady)
			b.s.await("it says what it can do", func() bool { return !b.s.begins[len(b.s.begins)-1].Draining })
			next := script("echo on")
			b.s.assign(next)
			want(t, b.s.ended(next.JobRef), wire.Success, "")
		})
	}
}
