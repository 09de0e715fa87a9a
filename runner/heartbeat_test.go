package runner

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/waypointd/waypoint/mux/wire"
)

// A session lasts longer than a silence may, as long as heartbeats come.
func TestHeartbeatsKeepSession(t *testing.T) {
	b := newBench(t, nil)
	b.s.heartbeat = 200 * time.Millisecond
	b.waits = func(w *waits) { w.silence = 3 * time.Second } // on a busy machine they are late
	b.start().connected()
	b.s.await("heartbeats come", func() bool { return b.s.beats > 20 })
	if n := len(b.s.begins); n != 1 {
		t.Errorf("%d sessions", n)
	}
}

// A server that is silent loses the runner's session, and nothing of its jobs.
func TestSilentServer(t *testing.T) {
	b := newBench(t, nil)
	b.s.heartbeat = 20 * time.Millisecond
	b.waits = func(w *waits) { w.silence = 0 }
	b.start().connected()
	step := filepath.Join(t.TempDir(), "step")
	a := script("echo on\n" + until(step) + "echo off")
	b.s.assign(a)
	b.s.await("it runs", func() bool { return len(b.s.jobs[a.JobRef].log) > 0 })
	sessions := 0
	b.s.change(func() { b.s.deaf, sessions = true, len(b.s.begins) })
	b.s.await("it has connected anew", func() bool { return len(b.s.begins) > sessions })
	b.s.change(func() { b.s.deaf = false })
	let(t, step)
	j := b.s.ended(a.JobRef)
	want(t, j, wire.Success, "")
	if string(j.log) != "on\noff\n" {
		t.Errorf("output %q", j.log)
	}
}
