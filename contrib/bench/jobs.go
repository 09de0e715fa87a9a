package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/waypointd/waypoint/mux/client"
	"github.com/waypointd/waypoint/mux/wire"
)

// onWide and onPlain name the runner that is to take a job; onNobody names
// one that does not exist.
var (
	onWide   = wire.Target{ID: "wide"}
	onPlain  = wire.Target{ID: "plain"}
	onNobody = wire.Target{ID: "nobody"}
)

func command(target wire.Target, words ...string) wire.JobSpec {
	return wire.JobSpec{Operation: wire.OpRun, Command: words, Target: target}
}

func submit(ctx context.Context, c *client.Client, spec wire.JobSpec) (wire.Job, error) {
	jobs, err := c.Submit(ctx, spec)
	if err != nil {
		return wire.Job{}, fmt.Errorf("queue job: %w", err)
	}
	if len(jobs) != 1 {
		return wire.Job{}, fmt.Errorf("queue job: %d answers", len(jobs))
	}
	return jobs[0], nil
}

// succeeded is an error where a job is no success.
func succeeded(j wire.Job) error {
	if j.State == wire.Success && j.ExitCode != nil && *j.ExitCode == 0 {
		return nil
	}
	return fmt.Errorf("job %s of runner %s ended as %s %s: %s", j.ID, j.RunnerID, j.State, j.Reason, j.Error)
}

// oneByWait has a job done and learns of its end.
func oneByWait(ctx context.Context, c *client.Client, target wire.Target) error {
	j, err := submit(ctx, c, command(target, "/bin/true"))
	if err != nil {
		return err
	}
	if j, err = c.Wait(ctx, j.ID); err != nil {
		return fmt.Errorf("wait for job: %w", err)
	}
	return succeeded(j)
}

// oneByStream has a job done and follows its output to the end, as `run` does.
func oneByStream(ctx context.Context, c *client.Client, target wire.Target) error {
	j, err := submit(ctx, c, command(target, "/bin/true"))
	if err != nil {
		return err
	}
	last, err := follow(ctx, c, j.ID, func([]byte) error { return nil })
	if err != nil {
		return err
	}
	return succeeded(last)
}

// follow hands a job's output to f and returns the job as it ended.
func follow(ctx context.Context, c *client.Client, id string, f func([]byte) error) (wire.Job, error) {
	for item, err := range c.Stream(ctx, wire.StreamRequest{ID: id, Follow: true}) {
		switch {
		case err != nil:
			return wire.Job{}, fmt.Errorf("follow job: %w", err)
		case item.Event != nil && item.Event.Last:
			return item.Event.Job, nil
		case item.Event == nil:
			if err := f(item.Data.Bytes); err != nil {
				return wire.Job{}, err
			}
		}
	}
	return wire.Job{}, fmt.Errorf("follow job: the stream of %s ended without an end", id)
}

// measureLatency times one job after another over one connection.
func measureLatency(ctx context.Context, b *bench) error {
	c, err := b.client(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	a, err := b.newAppender()
	if err != nil {
		return err
	}
	defer a.close()
	durable := func() error {
		if err := a.append(); err != nil {
			return err
		}
		if err := forkExec(); err != nil {
			return err
		}
		return a.append()
	}
	kinds := []func() error{
		durable,
		func() error { return oneByWait(ctx, c, onWide) },
		func() error { return oneByStream(ctx, c, onWide) },
	}
	all := make([]samples, len(kinds))
	for round := range b.rounds() + 1 {
		for i, do := range kinds {
			s, err := repeat(ctx, b.span(time.Second), do)
			if err != nil {
				return err
			}
			if round > 0 { // the first one warms up
				all[i] = append(all[i], s...)
			}
		}
	}
	floor, wait, stream := all[0], all[1], all[2]
	const what = "fork+exec + 2 fdatasync"
	b.report.took(fmt.Sprintf("one job, waited for, p50 (n=%d)", len(wait)), wait.p50(), floor.p50(), what, "≤ 2.00")
	b.report.took("one job, waited for, p99", wait.p99(), floor.p99(), what, "≤ 5 × p50 = "+ms(5*wait.p50()))
	b.report.took("one job, followed, p50", stream.p50(), floor.p50(), what, "≤ 2.00")
	b.report.took("one job, followed, p99", stream.p99(), floor.p99(), what, "≤ 5 × p50 = "+ms(5*stream.p50()))
	return nil
}

// measureRate counts jobs in a second with several in flight.
func measureRate(ctx context.Context, b *bench) error {
	for _, r := range []struct {
		clients int
		target  wire.Target
		ways    int
		wanted  string
	}{
		{1, onWide, 1, ""},
		{8, onWide, 4, ""},
		{64, onWide, 4, "≥ 0.50"},
		{64, onPlain, 4, ""},
	} {
		workers, done, err := b.clients(ctx, r.clients, func(c *client.Client) error { return oneByWait(ctx, c, r.target) })
		if err != nil {
			return err
		}
		times := map[string]time.Duration{}
		if _, err := b.processorTimes(times); err != nil {
			return err
		}
		jobs := 0.0
		measured, floor, err := turns(b.rounds(),
			func() (float64, error) { return b.forkRate(ctx, r.ways) },
			func() (float64, error) {
				began := time.Now()
				v, err := rateOf(ctx, b.span(time.Second), workers)
				jobs += v * time.Since(began).Seconds()
				return v, err
			})
		done()
		if err != nil {
			return err
		}
		b.report.rate(fmt.Sprintf("jobs, %d in flight, runner %s", r.clients, r.target.ID), measured, floor,
			"/s", fmt.Sprintf("fork+exec, %d at once", r.ways), r.wanted)
		if r.target.ID != onWide.ID {
			continue
		}
		used, err := b.processorTimes(times)
		if err != nil {
			return err
		}
		var text strings.Builder
		for _, p := range b.residents() {
			fmt.Fprintf(&text, "%s %s  ", p.name, ms(time.Duration(float64(used[p.name])/jobs)))
		}
		b.report.plain("   processor time for each job", "", text.String())
	}
	return nil
}

// clients makes workers with a connection each.
func (b *bench) clients(ctx context.Context, n int, do func(*client.Client) error) (workers []func() error, done func(), err error) {
	var open []*client.Client
	done = func() {
		for _, c := range open {
			c.Close()
		}
	}
	for range n {
		c, err := b.client(ctx)
		if err != nil {
			done()
			return nil, nil, err
		}
		open = append(open, c)
		workers = append(workers, func() error { return do(c) })
	}
	return workers, done, nil
}

// measureEnqueue counts durable submits of jobs that nobody takes, and then
// what it costs others that so many wait.
func measureEnqueue(ctx context.Context, b *bench) error {
	spec := command(onNobody, "/bin/true")
	for _, r := range []struct {
		clients, writers int
		wanted           string
	}{{1, 1, ""}, {64, 4, "≥ 8,000/s"}} {
		workers, done, err := b.clients(ctx, r.clients, func(c *client.Client) error {
			_, err := submit(ctx, c, spec)
			return err
		})
		if err != nil {
			return err
		}
		measured, floor, err := turns(b.rounds(),
			func() (float64, error) { return b.syncRate(ctx, r.writers) },
			func() (float64, error) { return rateOf(ctx, b.span(time.Second), workers) })
		done()
		if err != nil {
			return err
		}
		b.report.rate(fmt.Sprintf("durable submits, %d clients", r.clients), measured, floor,
			"/s", fmt.Sprintf("fdatasync, %d writers", r.writers), r.wanted)
	}
	c, err := b.client(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	status, err := c.ServerStatus(ctx)
	if err != nil {
		return fmt.Errorf("ask server: %w", err)
	}
	floor, err := repeat(ctx, b.span(500*time.Millisecond), forkExec)
	if err != nil {
		return err
	}
	s, err := repeat(ctx, b.span(time.Second), func() error { return oneByWait(ctx, c, onWide) })
	if err != nil {
		return err
	}
	b.report.took(fmt.Sprintf("one job, %s others queued, p50", number(float64(status.QueueDepth))),
		s.p50(), floor.p50(), "fork+exec /bin/true", "as with none")
	s, err = repeat(ctx, b.span(300*time.Millisecond), func() error { return newest(ctx, c) })
	if err != nil {
		return err
	}
	b.report.took("newest 50 jobs, p50", s.p50(), 0, "", "< 5 ms")
	return nil
}

// newest lists the newest jobs.
func newest(ctx context.Context, c *client.Client) error {
	jobs, err := c.Jobs(ctx, wire.JobFilter{Limit: 50})
	if err != nil {
		return fmt.Errorf("list jobs: %w", err)
	}
	if len(jobs) != 50 {
		return fmt.Errorf("list jobs: %d of 50 came", len(jobs))
	}
	return nil
}
