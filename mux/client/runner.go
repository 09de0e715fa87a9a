package client

import (
	"context"

	"github.com/waypointd/waypoint/mux/wire"
)

// Runners returns one page of runners in the order of their ids, command lines'
// own before the first; in several messages where it is too long for one.
func (c *Client) Runners(ctx context.Context, f wire.RunnerFilter) (runners []wire.Runner, err error) {
	f.Limit = pageLimit(f.Limit)
	for {
		page, err := read[wire.RunnerPage](ctx, c, wire.MethodRunnerList, f)
		if err != nil {
			return nil, err
		}
		runners = append(runners, page.Runners...)
		if f.Limit -= len(page.Runners); f.Limit <= 0 || !page.More || len(page.Runners) == 0 {
			return runners, nil
		}
		f.After = runners[len(runners)-1].ID
	}
}

// Runner returns a runner as it is now.
func (c *Client) Runner(ctx context.Context, id string) (wire.Runner, error) {
	return read[wire.Runner](ctx, c, wire.MethodRunnerInspect, wire.RunnerRequest{ID: id})
}

// Adopt admits a runner; with a fingerprint, only if its key has it.
func (c *Client) Adopt(ctx context.Context, id, fingerprint string) (wire.Runner, error) {
	return once[wire.Runner](ctx, c, wire.MethodRunnerAdopt, wire.AdoptRequest{ID: id, Fingerprint: fingerprint})
}

// Reject refuses a runner: it gets no further job, and what it runs ends as
// usual.
func (c *Client) Reject(ctx context.Context, id string) (wire.Runner, error) {
	return once[wire.Runner](ctx, c, wire.MethodRunnerReject, wire.RunnerRequest{ID: id})
}

// Forget removes a runner's record and returns it as it was.
func (c *Client) Forget(ctx context.Context, id string) (wire.Runner, error) {
	return once[wire.Runner](ctx, c, wire.MethodRunnerForget, wire.RunnerRequest{ID: id})
}

// Drain stops the giving of jobs to a runner, or lets it go on.
func (c *Client) Drain(ctx context.Context, id string, on bool) (wire.Runner, error) {
	return read[wire.Runner](ctx, c, wire.MethodRunnerDrain, wire.DrainRequest{ID: id, Drain: on})
}

// WaitIdle waits until a runner has no job.
func (c *Client) WaitIdle(ctx context.Context, id string) (wire.Runner, error) {
	return read[wire.Runner](ctx, c, wire.MethodRunnerWait, wire.RunnerRequest{ID: id})
}

// Match reports whether an admitted remote runner that is online could take a
// job of the target.
func (c *Client) Match(ctx context.Context, t wire.Target) (bool, error) {
	reply, err := read[wire.MatchReply](ctx, c, wire.MethodRunnerMatch, wire.MatchRequest{Target: t})
	return reply.Match, err
}
