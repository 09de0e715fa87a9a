package runner

import (
	"testing"

	"github.com/waypointd/waypoint/mux/wire"
	"github.com/waypointd/waypoint/runner/supervisor"
)

// An agent that dies between its mark and the supervisor's start leaves a job
// that was never begun: the next agent starts it, once.
func TestKilledBeforeStart(t *testing.T) {
	var jobs supervisor.Jobs
	var b *bench
	b = newBench(t, func(c *Config) {
		jobs = newSupervisor(t, c.Dir)
		to := newLine(jobs)
		to.before = func(supervisor.Spec) { b.kill() }
		to.refuse = errLine
		c.Supervisor = to
	}).start().connected()
	a := script("echo on")
	b.s.assign(a)
	b.wait()
	b.cfg.Supervisor = jobs
	b.start()
	j := b.s.ended(a.JobRef)
	want(t, j, wire.Success, "")
	if string(j.log) != "on\n" {
		t.Errorf("output %q", j.log)
	}
}
