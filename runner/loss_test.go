package runner

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/waypointd/waypoint/mux/wire"
	"github.com/waypointd/waypoint/runner/supervisor"
)

// line is a connection to a supervisor that can break.
type line struct {
	supervisor.Jobs
	once   sync.Once
	broken chan struct{}
	before func(spec supervisor.Spec) // called by Start
	refuse error                      // what Start answers
}

var errLine = wire.Errorf(wire.Unavailable, "the supervisor is gone")

func newLine(to supervisor.Jobs) *line { return &line{Jobs: to, broken: make(chan struct{})} }

func (l *line) cut() { l.once.Do(func() { close(l.broken) }) }

func (l *line) err() error {
	select {
	case <-l.broken:
		return errLine
	default:
		return nil
	}
}

func (l *line) Start(ctx context.Context, spec supervisor.Spec) error {
	if l.before != nil {
		l.before(spec)
	}
	if err := l.err(); err != nil {
		return err
	}
	if l.refuse != nil {
		return l.refuse
	}
	return l.Jobs.Start(ctx, spec)
}

func (l *line) Stop(ctx context.Context, ref wire.JobRef, force bool) error {
	if err := l.err(); err != nil {
		return err
	}
	return l.Jobs.Stop(ctx, ref, force)
}

func (l *line) List(ctx context.Context) ([]supervisor.Status, error) {
	if err := l.err(); err != nil {
		return nil, err
	}
	return l.Jobs.List(ctx)
}

func (l *line) Forget(ctx context.Context, ref wire.JobRef) error {
	if err := l.err(); err != nil {
		return err
	}
	return l.Jobs.Forget(ctx, ref)
}

func (l *line) Watch(ctx context.Context, f func(supervisor.Event)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-l.broken:
			cancel()
		case <-ctx.Done():
		}
	}()
	err := l.Jobs.Watch(ctx, f)
	if l.err() != nil {
		return errLine
	}
	return err
}

func (l *line) Close() error { return nil }

// A connection to the supervisor that is lost and made anew loses nothing.
func TestSupervisorReconnect(t *testing.T) {
	var jobs supervisor.Jobs
	var first *line
	b := newBench(t, func(c *Config) {
		jobs = newSupervisor(t, c.Dir)
		first = newLine(jobs)
		c.Supervisor = first
		c.Resupervise = func(context.Context) (supervisor.Jobs, error) { return newLine(jobs), nil }
	}).start().connected()
	step := filepath.Join(t.TempDir(), "step")
	a, c := script("echo on\n"+until(step)+"echo off"), script("echo on; sleep 1000")
	b.s.assign(a)
	b.s.assign(c)
	b.s.await("they run", func() bool { return len(b.s.jobs[a.JobRef].log) > 0 && len(b.s.jobs[c.JobRef].log) > 0 })
	first.cut()
	b.s.order(wire.WorkOrder{Cancel: &wire.CancelJob{JobRef: c.JobRef}})
	want(t, b.s.ended(c.JobRef), wire.Canceled, wire.ReasonCanceled)
	let(t, step)
	j := b.s.ended(a.JobRef)
	want(t, j, wire.Success, "")
	if string(j.log) != "on\noff\n" {
		t.Errorf("output %q", j.log)
	}
}

// A supervisor that is killed takes its jobs with it: they end at once, with
// the output there is, none of their processes is left, and the next supervisor
// is used for the next job.
func TestSupervisorKilled(t *testing.T) {
	p := &process{t: t}
	b := newBench(t, func(c *Config) {
		p.dir = c.Dir
		t.Cleanup(p.kill)
		jobs, err := p.connect()
		if err != nil {
			t.Fatal(err)
		}
		c.Supervisor = jobs
		c.Resupervise = func(context.Context) (supervisor.Jobs, error) { return p.connect() }
	}).start().connected()
	pid := filepath.Join(t.TempDir(), "pid")
	a := script("echo on; (trap '' TERM; sh -c 'echo $$' >" + pid + ".new; mv " + pid + ".new " + pid + "; exec sleep 86399) & sleep 86399")
	b.s.assign(a)
	b.s.await("it runs", func() bool { return len(b.s.jobs[a.JobRef].log) > 0 })
	awaitFile(t, pid)
	p.kill()
	j := b.s.ended(a.JobRef)
	want(t, j, wire.Failed, wire.ReasonRunnerLost)
	if string(j.log) != "on\n" || j.result.Error == "" {
		t.Errorf("output %q, error %q", j.log, j.result.Error)
	}
	next := script("ps -eo args | grep '[s]leep 86399' || :; echo next")
	b.s.assign(next)
	j = b.s.ended(next.JobRef)
	want(t, j, wire.Success, "")
	if string(j.log) != "next\n" {
		t.Errorf("left behind: %q", j.log)
	}
}

// The agent and its supervisor are both killed, and come back.
func TestBothKilled(t *testing.T) {
	p := &process{t: t}
	b := newBench(t, func(c *Config) {
		p.dir = c.Dir
		t.Cleanup(p.kill)
		jobs, err := p.connect()
		if err != nil {
			t.Fatal(err)
		}
		c.Supervisor = jobs
	}).start().connected()
	a := script("echo on; sleep 1001")
	b.s.assign(a)
	b.s.await("it runs", func() bool { return len(b.s.jobs[a.JobRef].log) > 0 })
	b.kill()
	b.wait()
	p.kill()
	var err error
	if b.cfg.Supervisor, err = p.connect(); err != nil {
		t.Fatal(err)
	}
	b.start()
	j := b.s.ended(a.JobRef)
	want(t, j, wire.Failed, wire.ReasonRunnerLost)
	if string(j.log) != "on\n" {
		t.Errorf("output %q", j.log)
	}
}

// A supervisor dies while it is given a job. One that it has begun, or may have, is not
// started again; one that it has not is for the next supervisor.
func TestSupervisorLostAtStart(t *testing.T) {
	for name, begun := range map[string]bool{"begun": true, "unbegun": false} {
		t.Run(name, func(t *testing.T) {
			next := newSupervisor(t, t.TempDir())
			var first *line
			b := newBench(t, func(c *Config) {
				first = newLine(newSupervisor(t, c.Dir))
				first.before = func(spec supervisor.Spec) {
					if begun {
						write(t, filepath.Join(spec.Dir, supervisor.LogFile), "")
					}
					first.cut()
				}
				c.Supervisor = first
				c.Resupervise = func(context.Context) (supervisor.Jobs, error) { return newLine(next), nil }
			}).start().connected()
			a := script("echo on")
			b.s.assign(a)
			j := b.s.ended(a.JobRef)
			if begun {
				want(t, j, wire.Failed, wire.ReasonRunnerLost)
				if len(j.log) > 0 {
					t.Errorf("output %q", j.log)
				}
			} else {
				want(t, j, wire.Success, "")
				if string(j.log) != "on\n" {
					t.Errorf("output %q", j.log)
				}
			}
			again := script("echo on")
			b.s.assign(again)
			want(t, b.s.ended(again.JobRef), wire.Success, "")
		})
	}
}

// A start that is refused ends the job with the reason.
func TestStartRefused(t *testing.T) {
	b := newBench(t, func(c *Config) {
		to := newLine(newSupervisor(t, c.Dir))
		to.refuse = wire.Errorf(wire.Denied, "make output of attempt: read-only file system")
		c.Supervisor = to
	}).start().connected()
	a := script("echo on")
	b.s.assign(a)
	j := b.s.ended(a.JobRef)
	want(t, j, wire.Failed, wire.ReasonFailed)
	if !strings.Contains(j.result.Error, "read-only") || !strings.Contains(string(j.log), "read-only") {
		t.Errorf("error %q, output %q", j.result.Error, j.log)
	}
	b.gone(a.JobRef)
}

// full is a supervisor that cannot start jobs for want of room, until it is told otherwise.
type full struct {
	supervisor.Jobs
	asked chan struct{}
	room  chan struct{}
}

func (f *full) Start(ctx context.Context, spec supervisor.Spec) error {
	select {
	case f.asked <- struct{}{}:
	default:
	}
	select {
	case <-f.room:
		return f.Jobs.Start(ctx, spec)
	default:
		return wire.Errorf(wire.Unavailable, "make output of attempt: no space left on device")
	}
}

// A job that a supervisor has no room to start waits, also through a new agent;
// no other is taken meanwhile. One that is canceled does not wait.
func TestStartWithoutRoom(t *testing.T) {
	var f *full
	b := newBench(t, func(c *Config) {
		f = &full{newSupervisor(t, c.Dir), make(chan struct{}, 1), make(chan struct{})}
		c.Supervisor = f
	}).start().connected()
	a, c := script("echo on"), script("echo on")
	b.s.assign(c)
	<-f.asked
	b.s.await("no jobs are wanted", func() bool { return len(b.s.drains) > 0 && b.s.drains[0] })
	b.s.order(wire.WorkOrder{Cancel: &wire.CancelJob{JobRef: c.JobRef}})
	want(t, b.s.ended(c.JobRef), wire.Canceled, wire.ReasonCanceled)
	b.s.await("jobs are wanted", func() bool { return !b.s.drains[len(b.s.drains)-1] })
	b.s.assign(a)
	<-f.asked
	b.restart()
	<-f.asked
	close(f.room)
	j := b.s.ended(a.JobRef)
	want(t, j, wire.Success, "")
	if string(j.log) != "on\n" {
		t.Errorf("output %q", j.log)
	}
	b.gone(a.JobRef)
}

// Without a way to another supervisor the loss ends the runner.
func TestSupervisorLostForGood(t *testing.T) {
	var only *line
	b := newBench(t, func(c *Config) {
		only = newLine(newSupervisor(t, c.Dir))
		c.Supervisor = only
	}).start().connected()
	only.cut()
	if err := b.wait(); wire.KindOf(err) != wire.Unavailable {
		t.Errorf("Run returned %v", err)
	}
}

// fileEnd is the supervisor's.
const fileEnd = "end.json"

// spool writes an attempt's directory as an agent before this one left it.
func (b *bench) spool(a wire.Assignment, boot string, files map[string]string) string {
	b.t.Helper()
	dir := filepath.Join(b.cfg.Dir, a.Job+"-1")
	body, err := json.Marshal(spooled{Boot: boot, Assignment: a})
	if err != nil {
		b.t.Fatal(err)
	}
	var record strings.Builder
	record.WriteString(string(body) + "\n")
	for name, text := range files {
		if name == markStarted || name == markRunning {
			record.WriteString(`{"reached":"` + name + `"}` + "\n")
			continue
		}
		write(b.t, filepath.Join(dir, name), text)
	}
	write(b.t, filepath.Join(dir, fileAssignment), record.String())
	b.s.jobs[a.JobRef] = &testJob{Assignment: a, byKind: map[wire.StreamID][]byte{}, started: true}
	return dir
}

// What an agent before this one has left is taken up, ended or removed.
func TestLoad(t *testing.T) {
	b := newBench(t, nil)
	boot := bootID()
	prepared, unbegun := script("echo prepared"), script("echo unbegun")
	gone, over := script("echo never"), script("echo never")
	earlier, earlierStarted := script("echo never"), script("echo never")
	b.spool(prepared, boot, map[string]string{markStarted: ""})
	b.spool(unbegun, boot, map[string]string{markStarted: "", markRunning: ""})
	b.spool(gone, boot, map[string]string{markRunning: "", fileLog: ""})
	b.spool(over, boot, map[string]string{markRunning: "", fileEnd: `{"state":"success","log_bytes":0,"at":"2026-01-02T03:04:05Z"}`})
	unkept, kept, others := script("echo never"), script("echo never"), script("echo never")
	success := `{"state":"success","log_bytes":0,"at":"2026-01-02T03:04:05Z"}`
	log, err := os.ReadFile(filepath.Join("testdata", "attempts", "1", "running-1", "log"))
	if err != nil {
		t.Fatal(err)
	}
	whole := strings.Replace(success, `"log_bytes":0`, `"log_bytes":13`, 1)
	b.spool(unkept, "another boot", map[string]string{markRunning: "", fileLog: string(log), fileEnd: whole})
	cutOff, cutShort := script("echo never"), script("echo never")
	b.spool(cutOff, "another boot", map[string]string{markRunning: "", fileLog: string(log)})
	b.spool(cutShort, "another boot", map[string]string{markRunning: "", fileLog: string(log[:len(log)-4])})
	b.spool(kept, "another boot", map[string]string{markRunning: "", fileEnd: success, "kept": kept.Job + "-1"})
	b.spool(others, "another boot", map[string]string{markRunning: "", fileEnd: success, "kept": kept.Job + "-1"})
	earlierDir := b.spool(earlier, "another boot", nil)
	b.spool(earlierStarted, "another boot", map[string]string{markStarted: ""})
	torn := b.spool(script("echo never"), boot, nil)
	write(t, filepath.Join(torn, fileAssignment), `{"boot":"`)
	foreign := b.spool(script("echo never"), boot, nil)
	if err := os.Rename(foreign, foreign+"x"); err != nil {
		t.Fatal(err)
	}
	strange := filepath.Join(b.cfg.Dir, "strange")
	write(t, filepath.Join(strange, "file"), "somebody's")
	b.start()
	want(t, b.s.ended(prepared.JobRef), wire.Success, "")
	want(t, b.s.ended(unbegun.JobRef), wire.Success, "")
	want(t, b.s.ended(gone.JobRef), wire.Failed, wire.ReasonRunnerLost)
	want(t, b.s.ended(over.JobRef), wire.Success, "")
	want(t, b.s.ended(earlierStarted.JobRef), wire.Failed, wire.ReasonRunnerLost)
	want(t, b.s.ended(unkept.JobRef), wire.Failed, wire.ReasonRunnerLost)
	want(t, b.s.ended(kept.JobRef), wire.Success, "")
	want(t, b.s.ended(others.JobRef), wire.Failed, wire.ReasonRunnerLost)
	for ref, log := range map[wire.JobRef]string{ // what the host's last boot has left of it is not lost with the job
		unkept.JobRef: "err\nout\nhalf\n", cutOff.JobRef: "err\nout\nhalf\n", cutShort.JobRef: "err\n",
	} {
		j := b.s.ended(ref)
		want(t, j, wire.Failed, wire.ReasonRunnerLost)
		if string(j.log) != log || j.result.LogBytes != int64(len(log)) {
			t.Errorf("output %q, and %d bytes of it are told of; want %q", j.log, j.result.LogBytes, log)
		}
		b.gone(ref)
	}
	for _, ref := range []wire.JobRef{prepared.JobRef, unbegun.JobRef, gone.JobRef, over.JobRef, earlierStarted.JobRef} {
		b.gone(ref)
	}
	for _, dir := range []string{earlierDir, torn, foreign + "x"} {
		if _, err := os.Stat(dir); !os.IsNotExist(err) {
			t.Errorf("%s is still there: %v", dir, err)
		}
	}
	if _, err := os.Stat(filepath.Join(strange, "file")); err != nil {
		t.Errorf("what is no attempt's was touched: %v", err)
	}
	if n := len(b.s.begins[0].Held); n != 10 {
		t.Errorf("%d attempts held: %+v", n, b.s.begins[0].Held)
	}
}

// A job that only the supervisor knows is stopped and forgotten.
func TestOrphan(t *testing.T) {
	b := newBench(t, nil)
	dir := filepath.Join(t.TempDir(), "elsewhere")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	ref := wire.JobRef{Job: "orphan", Attempt: 1}
	err := b.cfg.Supervisor.Start(t.Context(), supervisor.Spec{
		JobRef: ref, Dir: dir, WorkDir: dir, Env: os.Environ(),
		Steps: []supervisor.Step{{Argv: []string{"sleep", "1000"}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	b.start().connected()
	awaitFile(t, filepath.Join(dir, fileEnd))
	a := script("true")
	b.s.assign(a)
	b.s.ended(a.JobRef)
	b.gone(a.JobRef)
	b.stop()
	b.wait()
	b.gone(ref)
}

// Output that was written and is gone is said in the output itself.
func TestDamagedLog(t *testing.T) {
	b := newBench(t, nil)
	a := script("echo never")
	b.spool(a, bootID(), map[string]string{
		markRunning: "", fileLog: "this is no log at all, but long enough to look at",
		fileEnd: `{"state":"success","log_bytes":77,"at":"2026-01-02T03:04:05Z"}`,
	})
	b.start()
	j := b.s.ended(a.JobRef)
	want(t, j, wire.Success, "")
	if !strings.Contains(string(j.byKind[wire.Notice]), "77 bytes of output are missing") {
		t.Errorf("output %q", j.log)
	}
}
