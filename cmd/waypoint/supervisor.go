package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/waypointd/waypoint/runner/supervisor"
	"github.com/waypointd/waypoint/statedir"
)

// runnerSupervisor is `waypoint runner supervisor`: the process that is the
// parent of a runner's jobs and outlives it. A runner that finds none starts
// one; a service manager may run it beside the runner.
type runnerSupervisor struct {
	Dir         string        `required:"" placeholder:"DIR" help:"The runner's state directory."`
	IdleExit    time.Duration `placeholder:"D" help:"End after so long without a job and without a runner (default never)."`
	Isolation   string        `placeholder:"KIND" help:"cgroup or process-group (default the best that can be had)."`
	Controllers bool          `help:"This process's own cgroup is delegated to it: account for the memory of each job."`
	LogLevel    string        `placeholder:"LEVEL" from:"WAYPOINT_LOG_LEVEL" help:"debug, info, warn or error (default info)."`
	LogFormat   string        `placeholder:"FORMAT" from:"WAYPOINT_LOG_FORMAT" help:"text, json or journal (default journal where stderr goes to the journal, else text)."`
}

func (c *runnerSupervisor) Run(a *app) error {
	log, _, err := programLog(a, jobsIdentifier, c.LogLevel, c.LogFormat)
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancelCause(a.ctx)
	defer stop(nil)
	// A signal is how it is ended, which is a good end.
	defer a.signals.handle(func(s os.Signal) { stop(interrupted{s}) })()
	err = supervisor.Run(ctx, supervisor.ProcessConfig{
		Dir: c.Dir, Isolation: c.Isolation, Controllers: c.Controllers, IdleExit: c.IdleExit, Logger: log,
	})
	if err != nil && ctx.Err() == nil {
		return fmt.Errorf("run supervisor: %w", err)
	}
	return nil
}

// ensureSupervisor connects to the parent of the runner's jobs, starting this
// program as one if there is none.
func ensureSupervisor(ctx context.Context, dir *statedir.Dir) (supervisor.Jobs, error) {
	self, err := os.Executable()
	if err == nil {
		_, err = os.Stat(self)
	}
	if err != nil {
		// The file has been replaced; the kernel still has it.
		self = "/proc/self/exe"
	}
	return supervisor.Ensure(ctx, dir.Path(), []string{
		self, "runner", "supervisor", "--dir", dir.Path(), "--idle-exit", supervisor.IdleExit.String(),
	})
}
