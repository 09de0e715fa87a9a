package main

import (
	"context"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/waypointd/waypoint/cmd/internal/output"
	"github.com/waypointd/waypoint/mux/wire"
)

// runnerDrain is `waypoint runner drain`.
type runnerDrain struct {
	ID       string `arg:"" optional:"" help:"The runner; without one, the agent on this host, also while its server is down."`
	Wait     bool   `help:"Wait until its running jobs have ended."`
	StateDir string `placeholder:"DIR" help:"Without an id: the agent's state directory ($$WAYPOINT_RUNNER_STATE_DIR)."`
}

func (*runnerDrain) Help() string {
	return `It gets no further job until waypoint runner resume, however often it or the server is started anew. A drain through
the server and one on the agent's host do not undo each other: each is resumed where it was made.`
}

func (c *runnerDrain) Run(a *app) error {
	if c.ID == "" {
		return a.withAgent(c.StateDir, func(ctx context.Context, ag *agentHere) error {
			s, err := ag.drain(ctx, true)
			if err != nil {
				return fmt.Errorf("drain agent: %w", err)
			}
			if c.Wait {
				s, err = awaitIdle(a, s.ID, len(s.Jobs), ag.wait, func(ctx context.Context) (int, error) {
					s, err := ag.status(ctx)
					return len(s.Jobs), err
				})
				if err != nil {
					return fmt.Errorf("wait for agent: %w", err)
				}
			}
			return a.print(s, func(w io.Writer) error { return sayDrained(w, s.ID, len(s.Jobs)) })
		})
	}
	if err := checkServerSide(c.StateDir); err != nil {
		return err
	}
	return a.withServer(func(ctx context.Context, conn *connection) error {
		r, err := conn.Drain(ctx, c.ID, true)
		if err != nil {
			return fmt.Errorf("drain runner: %w", err)
		}
		if c.Wait {
			wait := func(ctx context.Context) (wire.Runner, error) { return conn.WaitIdle(ctx, c.ID) }
			r, err = awaitIdle(a, r.ID, r.RunningJobs, wait, func(ctx context.Context) (int, error) {
				r, err := conn.Runner(ctx, c.ID)
				return r.RunningJobs, err
			})
			if err != nil {
				return fmt.Errorf("wait for runner: %w", err)
			}
		}
		return a.print(scripted(r)[0], func(w io.Writer) error { return sayDrained(w, r.ID, r.RunningJobs) })
	})
}

func sayDrained(w io.Writer, id string, jobs int) error {
	if jobs > 0 {
		_, err := fmt.Fprintf(w, "Runner %q draining, %s running.\n", id, output.Count(jobs, "job"))
		return err
	}
	_, err := fmt.Fprintf(w, "Runner %q drained.\n", id)
	return err
}

// runnerResume is `waypoint runner resume`.
type runnerResume struct {
	ID       string `arg:"" optional:"" help:"The runner; without one, the agent on this host, also while its server is down."`
	StateDir string `placeholder:"DIR" help:"Without an id: the agent's state directory ($$WAYPOINT_RUNNER_STATE_DIR)."`
}

func (c *runnerResume) Run(a *app) error {
	resumed := func(id string) func(io.Writer) error {
		return func(w io.Writer) error {
			_, err := fmt.Fprintf(w, "Runner %q resumed.\n", id)
			return err
		}
	}
	if c.ID == "" {
		return a.withAgent(c.StateDir, func(ctx context.Context, ag *agentHere) error {
			s, err := ag.drain(ctx, false)
			if err != nil {
				return fmt.Errorf("resume agent: %w", err)
			}
			return a.print(s, resumed(s.ID))
		})
	}
	if err := checkServerSide(c.StateDir); err != nil {
		return err
	}
	return a.withServer(func(ctx context.Context, conn *connection) error {
		r, err := conn.Drain(ctx, c.ID, false)
		if err != nil {
			return fmt.Errorf("resume runner: %w", err)
		}
		return a.print(scripted(r)[0], resumed(r.ID))
	})
}

// checkServerSide finds a state directory beside an id, of which one is too
// much.
func checkServerSide(stateDir string) error {
	if stateDir == "" {
		return nil
	}
	return wire.Errorf(wire.BadUsage, "parse arguments: an id is of a runner at the server, --state-dir is of the agent on this host").
		WithHint("leave out one of them")
}

// countEvery is how often the number of jobs that are waited for is looked
// at, for people who watch.
const countEvery = time.Second

// awaitIdle waits until a runner has no job, however long that takes, and
// shows on a terminal how many are left.
func awaitIdle[T any](a *app, id string, jobs int, wait func(context.Context) (T, error), count func(context.Context) (int, error)) (T, error) {
	ctx, cancel := context.WithCancel(a.ctx)
	var show sync.WaitGroup
	switch {
	case a.fancy():
		meter := a.meter()
		show.Go(func() {
			defer meter.Clear()
			tick := time.NewTicker(countEvery)
			defer tick.Stop()
			for {
				meter.Say("waiting for %s of runner %s", output.Count(jobs, "job"), id)
				select {
				case <-ctx.Done():
					return
				case <-tick.C:
				}
				if n, err := count(ctx); err == nil {
					jobs = n
				}
			}
		})
	case jobs > 0:
		a.note("waiting for %s of runner %s", output.Count(jobs, "job"), id)
	}
	last, err := wait(ctx)
	cancel()
	show.Wait()
	return last, err
}
