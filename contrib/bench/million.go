package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/waypointd/waypoint/daemon/queue"
	"github.com/waypointd/waypoint/daemon/store"
	"github.com/waypointd/waypoint/mux/wire"
)

const (
	many     = 1_000_000
	fillStep = 1000 // jobs in one transaction
)

// measureMillion fills a store with ended jobs, as the server's own code
// would, and then starts the server on it.
func (b *bench) measureMillion(ctx context.Context) (err error) {
	jobs := many
	if b.quick {
		jobs = many / 20
	}
	dir := b.path("server")
	if err := makeDir(dir); err != nil {
		return err
	}
	took, err := b.fill(ctx, dir+"/waypoint.db", jobs)
	if err != nil {
		return fmt.Errorf("fill store: %w", err)
	}
	b.report.plain(fmt.Sprintf("%s jobs put into the store", number(float64(jobs))), fmt.Sprintf("%.0f s", took.Seconds()), "")
	bytes, err := size(dir)
	if err != nil {
		return err
	}
	b.report.plain("size of the store", megabytes(bytes), "")

	// As many as there are must be kept.
	settings := b.path("server.toml")
	if err := os.WriteFile(settings, fmt.Appendf(nil, "retain_jobs = %d\n", 2*jobs), 0o600); err != nil {
		return fmt.Errorf("write configuration: %w", err)
	}
	floor, err := repeat(ctx, b.span(300*time.Millisecond), func() error { return b.command([]string{b.binary, "version"}) })
	if err != nil {
		return err
	}
	// The first start may find the journal of the fill.
	for _, what := range []string{"server start → answers, first", "server start → answers"} {
		start, err := b.startServer(ctx, dir, "--config", settings)
		if err != nil {
			return err
		}
		b.report.took(what, start, floor.p50(), "waypoint version", "< 100 ms")
		if err := b.askMillion(ctx); err != nil {
			return fmt.Errorf("%w%s", err, b.lastWords())
		}
		if err := b.server.stop(); err != nil {
			return err
		}
	}
	return nil
}

// askMillion has the running server list jobs, and run one.
func (b *bench) askMillion(ctx context.Context) (err error) {
	c, err := b.client(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	for _, ask := range []struct {
		what   string
		filter wire.JobFilter
	}{
		{"newest 50", wire.JobFilter{Limit: 50}},
		{"newest 50 of a state", wire.JobFilter{Limit: 50, State: wire.Success}},
		{"newest 50 of a project", wire.JobFilter{Limit: 50, Project: "project-7"}},
		{"newest 50 of a project's failures", wire.JobFilter{Limit: 50, Project: "project-7", State: wire.Failed}},
	} {
		s, err := repeat(ctx, b.span(300*time.Millisecond), func() error {
			jobs, err := c.Jobs(ctx, ask.filter)
			if err == nil && len(jobs) != 50 {
				err = fmt.Errorf("%d of 50 came", len(jobs))
			}
			return err
		})
		if err != nil {
			return fmt.Errorf("list jobs: %w", err)
		}
		b.report.took(ask.what+", p50", s.p50(), 0, "", "< 5 ms")
		b.report.took(ask.what+", p99", s.p99(), 0, "", "")
	}
	began := time.Now()
	if _, err := c.ServerStatus(ctx); err != nil {
		return fmt.Errorf("ask server: %w", err)
	}
	b.report.took("server status", time.Since(began), 0, "", "")
	now, most, err := memory(b.server.cmd.Process.Pid)
	if err != nil {
		return err
	}
	b.report.plain("resident: server", megabytes(now), "(most so far "+megabytes(most)+")")
	b.wide, err = b.startAgent(ctx, onWide.ID, 64)
	if err != nil {
		return err
	}
	s, err := repeat(ctx, b.span(time.Second), func() error { return oneByWait(ctx, c, onWide) })
	if err != nil {
		return err
	}
	b.report.took("one job, waited for, p50", s.p50(), 0, "", "as with none")
	return b.stopAgents()
}

// fill puts ended jobs into a store.
func (b *bench) fill(ctx context.Context, path string, jobs int) (took time.Duration, err error) {
	began := time.Now()
	s, err := store.Open(ctx, path, store.Config{})
	if err != nil {
		return 0, err
	}
	defer func() {
		if cerr := s.Close(); err == nil {
			err = cerr
		}
	}()
	for n := 0; n < jobs; n += fillStep {
		if err := s.Update(ctx, func(tx *store.Tx) error { return fillSome(tx, n, min(fillStep, jobs-n)) }); err != nil {
			return 0, err
		}
	}
	return time.Since(began), nil
}

// fillSome queues, assigns and ends jobs; one of twenty fails.
func fillSome(tx *store.Tx, from, n int) error {
	now := time.Now()
	specs := make([]wire.JobSpec, n)
	for i := range specs {
		specs[i] = command(wire.Target{Any: true}, "/bin/sh", "-c", fmt.Sprintf("make release NUMBER=%d", from+i))
		specs[i].Project = fmt.Sprintf("project-%d", (from+i)%50)
		specs[i].App = "web"
		specs[i].Env = map[string]string{"CI": "true", "BRANCH": fmt.Sprintf("feature/%d", from+i)}
	}
	if _, err := tx.Submit(specs, now); err != nil {
		return err
	}
	runner := fmt.Sprintf("runner-%d", from/fillStep%20)
	idle := func() []queue.Runner { return []queue.Runner{{ID: runner, Free: n}} }
	made, err := tx.AssignReady(idle, now, n)
	if err != nil {
		return err
	}
	if len(made) != n {
		return fmt.Errorf("%d of %d jobs were assigned", len(made), n)
	}
	for i, a := range made {
		res := wire.Result{State: wire.Success, ExitCode: new(0), Usage: &wire.Usage{CPUSeconds: 1.5, MaxRSSBytes: 80 << 20, WallSeconds: 2}}
		if (from+i)/50%20 == 0 {
			res.State, res.Reason, res.Error, res.ExitCode = wire.Failed, wire.ReasonFailed, "exit status 2", new(2)
		}
		if err := tx.FinishStarted(a.JobRef, runner, res, now, now); err != nil {
			return err
		}
	}
	return nil
}
