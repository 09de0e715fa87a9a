package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/waypointd/waypoint/cmd/internal/output"
	"github.com/waypointd/waypoint/cmd/internal/systemd"
	"github.com/waypointd/waypoint/mux/wire"
	"github.com/waypointd/waypoint/runner/supervisor"
)

// runnerSupervisor is `waypoint runner supervisor`: the process that is the
// parent of a runner's jobs and outlives it. A runner that finds none starts
// one, if it is not managed; a service manager may run it beside the runner.
type runnerSupervisor struct {
	Dir          string        `required:"" placeholder:"DIR" from:"WAYPOINT_RUNNER_JOBS_DIR" help:"The jobs directory, that of the runner's --jobs-dir."`
	JobUser      string        `placeholder:"USER" from:"WAYPOINT_RUNNER_JOB_USER" help:"Whom jobs run as (default this process's own user). Takes root, or the capabilities setuid, setgid, kill and chown."`
	DrainTimeout time.Duration `placeholder:"D" from:"WAYPOINT_RUNNER_DRAIN_TIMEOUT" help:"On a signal: how long running jobs may go on before they are asked to end (default not at all)."`
	Isolation    string        `placeholder:"KIND" help:"cgroup or process-group (default the best that can be had)."`
	Controllers  bool          `help:"This process's own cgroup is delegated to it: account for the memory of each job."`
	IdleExit     time.Duration `placeholder:"D" help:"End after so long without a job and without a runner (default never)."`
	LogLevel     string        `placeholder:"LEVEL" from:"WAYPOINT_LOG_LEVEL" help:"debug, info, warn or error (default info)."`
	LogFormat    string        `placeholder:"FORMAT" from:"WAYPOINT_LOG_FORMAT" help:"text, json or journal (default journal where stderr goes to the journal, else text)."`
}

func (*runnerSupervisor) Help() string {
	return `It runs what the runner's agent asks for, through a socket in the jobs directory, and outlives it: an agent that is restarted,
upgraded or killed finds its jobs again. waypoint runner agent starts one by itself; with --managed a service manager does.

The first SIGTERM or SIGINT starts no more jobs and waits up to --drain-timeout for the running ones; the second ends that wait.
Jobs that run then get SIGTERM, ten seconds later SIGKILL, and how each ended is recorded before this command is done.
Exit codes: 0 ended on request, idle or retired, 2 wrong usage, 6 another one has this directory, 1 anything else.`
}

func (c *runnerSupervisor) Run(a *app) error {
	if c.DrainTimeout < 0 || c.IdleExit < 0 {
		return wire.Errorf(wire.BadUsage, "parse arguments: --drain-timeout and --idle-exit are not negative")
	}
	dir, err := filepath.Abs(c.Dir)
	if err != nil {
		return fmt.Errorf("find jobs directory: %w", err)
	}
	log, _, err := programLog(a, jobsIdentifier, c.LogLevel, c.LogFormat)
	if err != nil {
		return err
	}
	ctx, leave := context.WithCancelCause(a.ctx)
	defer leave(nil)
	// A signal is how it is ended, which is a good end.
	hurry := make(chan struct{})
	hurried := sync.OnceFunc(func() { close(hurry) })
	defer a.signals.handle(func(s os.Signal) {
		if ctx.Err() != nil {
			hurried()
		}
		leave(interrupted{s})
	})()
	watched, unwatch := context.WithCancel(context.WithoutCancel(ctx))
	var watchdog sync.WaitGroup
	defer watchdog.Wait()
	defer unwatch()
	says := &jobsSay{serving: func() {
		watchdog.Go(func() {
			systemd.Watchdog(watched, func(ctx context.Context) error { return supervisor.Probe(ctx, dir) }, log)
		})
	}}
	err = supervisor.Run(ctx, supervisor.ProcessConfig{
		Dir: dir, Isolation: c.Isolation, Controllers: c.Controllers, IdleExit: c.IdleExit, JobUser: c.JobUser,
		Drain: c.DrainTimeout, Hurry: hurry, Version: number, Logger: log, Notify: says.notify,
	})
	switch {
	case err == nil, ctx.Err() != nil && errors.Is(err, context.Cause(ctx)):
		return nil
	case wire.KindOf(err) == wire.Conflict, wire.KindOf(err) == wire.BadUsage:
		return fmt.Errorf("run supervisor: %w", err)
	}
	return withCode{fmt.Errorf("run supervisor: %w", err), exitFailed}
}

// extension is how much time the service manager is asked for while jobs end,
// several times in each such span.
const extension = 20 * time.Second

// jobsSay tells the service manager how the supervisor fares.
type jobsSay struct {
	serving func() // called once it can be connected to
	ready   bool
	leaving bool
	line    string
}

// notify is told of each change by the supervisor, from one goroutine.
func (s *jobsSay) notify(st supervisor.ProcessStatus) {
	if !s.ready {
		s.ready = true
		systemd.Ready() // without anybody who listens it runs all the same
		s.serving()
	}
	if st.Leaving {
		if !s.leaving {
			s.leaving = true
			systemd.Stopping()
		}
		// Not once for all: who is stuck is not to be waited for.
		systemd.Extend(extension)
	}
	if line := jobsLine(st); line != s.line {
		s.line = line
		systemd.Status(line)
	}
}

// jobsLine is STATUS.
func jobsLine(st supervisor.ProcessStatus) string {
	jobs := output.Count(st.Running, "job")
	switch {
	case st.Leaving && st.Left > 0:
		return fmt.Sprintf("Draining: %s, at most %s more.", jobs, roundUp(st.Left))
	case st.Leaving && st.Running > 0:
		return fmt.Sprintf("Ending %s.", jobs)
	case st.Leaving:
		return "Stopping, no job is left."
	}
	line := fmt.Sprintf("%s running, isolation %s", jobs, st.Isolation)
	if st.User != "" {
		line += ", as " + st.User
	}
	return line + "."
}

// roundUp is a time that is left, in whole seconds: 1m30s, 40s.
func roundUp(d time.Duration) string {
	text := ((d + time.Second - 1) / time.Second * time.Second).String()
	if strings.HasSuffix(text, "m0s") {
		text = strings.TrimSuffix(text, "0s")
	}
	return text
}

// supervisor connects to the parent of the runner's jobs, starting this program
// as one if there is none. One that is managed may come later: nil until then. So it is where the one
// that is there cannot be spoken with, whose jobs the agent looks after until it has gone.
func (cfg *runnerConfig) supervisor(ctx context.Context, managed bool) (jobs supervisor.Jobs, err error) {
	if managed {
		if err := os.MkdirAll(cfg.JobsDir, 0o711); err != nil {
			return nil, fmt.Errorf("make jobs directory: %w", err)
		}
		jobs, err = supervisor.Connect(ctx, filepath.Join(cfg.JobsDir, supervisor.SocketFile))
	} else {
		jobs, err = cfg.resupervise(ctx, false)
	}
	if k := wire.KindOf(err); k == wire.Unimplemented || managed && k == wire.Unavailable {
		return nil, nil
	}
	return jobs, err
}

// resupervise is supervisor, but waits for one that is managed.
func (cfg *runnerConfig) resupervise(ctx context.Context, managed bool) (supervisor.Jobs, error) {
	if managed {
		return supervisor.Await(ctx, cfg.JobsDir)
	}
	self, err := os.Executable()
	if err == nil {
		_, err = os.Stat(self)
	}
	if err != nil {
		// The file has been replaced; the kernel still has it.
		self = "/proc/self/exe"
	}
	argv := []string{self, "runner", "supervisor", "--dir", cfg.JobsDir, "--idle-exit", supervisor.IdleExit.String()}
	if cfg.JobUser != "" {
		argv = append(argv, "--job-user", cfg.JobUser)
	}
	if cfg.DrainTimeout > 0 {
		argv = append(argv, "--drain-timeout", time.Duration(cfg.DrainTimeout).String())
	}
	return supervisor.Ensure(ctx, cfg.JobsDir, argv)
}
