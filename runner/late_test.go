package runner

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/waypointd/waypoint/mux/wire"
)

// lose has the server lose an attempt while the runner is away.
func (b *bench) lose(ref wire.JobRef) {
	b.s.change(func() { b.s.down = true })
	b.s.cut()
	b.s.change(func() { b.s.jobs[ref].lost = true })
}

func (b *bench) back() { b.s.change(func() { b.s.down = false }) }

// A job that ended while the server had given it up is reported late, whole.
func TestLateResultOfOneThatEnded(t *testing.T) {
	b := newBench(t, nil).start().connected()
	dir := t.TempDir()
	step, done := filepath.Join(dir, "step"), filepath.Join(dir, "done")
	a := script(lines(1000) + "\n" + until(step) + lines(2000) + "\ntouch " + done + "; exit 3")
	b.s.assign(a)
	b.s.await("some output is there", func() bool { return b.s.jobs[a.JobRef].length >= int64(len(lineText(1000))) })
	b.lose(a.JobRef)
	let(t, step)
	awaitFile(t, filepath.Join(b.r.attemptDir(a.JobRef), fileEnd))
	b.back()
	j := b.s.ended(a.JobRef)
	want(t, j, wire.Failed, wire.ReasonFailed)
	if j.result.ExitCode == nil || *j.result.ExitCode != 3 || j.result.FinishedAt.IsZero() {
		t.Errorf("result %+v", j.result)
	}
	if string(j.log) != lineText(1000)+lineText(2000) {
		t.Errorf("output differs: %d bytes", len(j.log))
	}
	b.gone(a.JobRef)
}

// One that still runs is ended, by TERM first, and reported as canceled.
func TestLateResultOfOneThatRuns(t *testing.T) {
	b := newBench(t, nil).start().connected()
	a := script("trap 'echo bye; exit 9' TERM; echo on; while :; do sleep 0.01; done")
	b.s.assign(a)
	b.s.await("it runs", func() bool { return b.s.jobs[a.JobRef].length > 0 })
	b.lose(a.JobRef)
	b.back()
	j := b.s.ended(a.JobRef)
	want(t, j, wire.Canceled, wire.ReasonCanceled)
	if got := j.byKind[wire.Stdout]; string(got) != "on\nbye\n" {
		t.Errorf("output %q", got)
	}
	b.gone(a.JobRef)
}

// Neither the agent's death nor broken sessions make it more than once, or less.
func TestLateResultSurvives(t *testing.T) {
	b := newBench(t, nil).start().connected()
	step := filepath.Join(t.TempDir(), "step")
	const n = 20000
	a := script("echo on; " + until(step) + lines(n))
	b.s.assign(a)
	b.s.await("it runs", func() bool { return b.s.jobs[a.JobRef].length > 0 })
	b.lose(a.JobRef)
	let(t, step)
	awaitFile(t, filepath.Join(b.r.attemptDir(a.JobRef), fileEnd))
	all := len("on\n") + len(lineText(n))
	for i := 1; i < 5; i++ {
		from := int64(all * i / 5)
		b.s.change(func() { b.s.cutAfter = max(1, int(from-b.s.jobs[a.JobRef].length)) })
		b.back()
		b.s.await("more of it is there", func() bool { return b.s.jobs[a.JobRef].length >= from })
		b.restart()
	}
	j := b.s.ended(a.JobRef)
	want(t, j, wire.Success, "")
	if string(j.log) != "on\n"+lineText(n) {
		t.Errorf("output differs: %d bytes", len(j.log))
	}
	if j.lates < 3 {
		t.Errorf("%d late reports: it was hardly broken", j.lates)
	}
	b.gone(a.JobRef)
}

// A report that is refused before the drop has come is tried late.
func TestLateResultAfterARefusedReport(t *testing.T) {
	b := newBench(t, nil).start().connected()
	step := filepath.Join(t.TempDir(), "step")
	a := script("echo on; " + until(step) + "echo off; sleep 1000")
	b.s.assign(a)
	b.s.await("it runs", func() bool { return b.s.jobs[a.JobRef].length > 0 })
	b.s.change(func() { b.s.jobs[a.JobRef].lost = true })
	let(t, step)
	j := b.s.ended(a.JobRef)
	want(t, j, wire.Canceled, wire.ReasonCanceled)
	if got := j.byKind[wire.Stdout]; string(got) != "on\noff\n" {
		t.Errorf("output %q", got)
	}
	b.gone(a.JobRef)
}

// What is given up takes none of the runner's places while it is being ended.
func TestLateTakesNoPlace(t *testing.T) {
	b := newBench(t, func(c *Config) { c.Concurrency = 1 }).start().connected()
	hold := filepath.Join(t.TempDir(), "hold")
	a := script("trap '" + strings.TrimSpace(until(hold)) + "; exit' TERM; echo on; while :; do sleep 0.01; done")
	b.s.assign(a)
	b.s.await("it runs", func() bool { return b.s.jobs[a.JobRef].length > 0 })
	b.lose(a.JobRef)
	b.back()
	b.connected()
	b.s.await("it is reported late", func() bool { return b.s.jobs[a.JobRef].lates > 0 })
	next := script("echo next")
	b.s.assign(next)
	want(t, b.s.ended(next.JobRef), wire.Success, "")
	let(t, hold)
	b.s.ended(a.JobRef)
	b.gone(a.JobRef)
	if len(b.s.nacks) > 0 {
		t.Errorf("refused: %+v", b.s.nacks)
	}
}

// A server that knows of no late reports, has the late result, or the job no more, refuses:
// then it is forgotten.
func TestLateResultRefused(t *testing.T) {
	b := newBench(t, nil).start().connected()
	for _, kept := range []bool{true, false} {
		a := script("trap '' TERM; echo on; while :; do sleep 0.1; done")
		b.s.assign(a)
		b.s.await("it runs", func() bool { return b.s.jobs[a.JobRef].length > 0 })
		b.s.change(func() { b.s.down = true })
		b.s.cut()
		j := b.s.jobs[a.JobRef]
		b.s.change(func() {
			if j.stale = true; !kept {
				delete(b.s.jobs, a.JobRef)
			}
		})
		b.back()
		b.gone(a.JobRef)
		if j.result != nil || kept && j.lates != 1 {
			t.Errorf("%d late reports, result %+v", j.lates, j.result)
		}
	}
}

// One that an agent before this one was preparing is given up by the next.
func TestLateResultOfOneThatWasPrepared(t *testing.T) {
	b := newBench(t, nil).start().connected()
	a := script("cat")
	a.Spec.Stdin = b.s.put([]byte("x\n"))
	hold := make(chan struct{})
	b.s.change(func() { b.s.blobHold = hold })
	b.s.assign(a)
	b.s.await("it is being prepared", func() bool { return b.s.gets > 0 })
	b.kill()
	b.wait()
	b.s.change(func() { b.s.jobs[a.JobRef].lost = true })
	close(hold)
	b.start()
	want(t, b.s.ended(a.JobRef), wire.Canceled, wire.ReasonCanceled)
	b.gone(a.JobRef)
}
