package client

import (
	"context"
	"slices"

	"github.com/oklog/ulid/v2"

	"github.com/waypointd/waypoint/mux"
	"github.com/waypointd/waypoint/mux/wire"
)

// read is a unary call that is safe to repeat.
func read[Reply any](ctx context.Context, c *Client, method string, req any) (Reply, error) {
	var reply Reply
	err := c.repeat(ctx, func(s *mux.Session) error {
		var fresh Reply // a reply that was half decoded leaves nothing behind
		err := s.Call(ctx, method, req, &fresh)
		if err == nil {
			reply = fresh
		}
		return err
	})
	return reply, err
}

// once is a unary call that is not safe to repeat.
func once[Reply any](ctx context.Context, c *Client, method string, req any) (Reply, error) {
	var reply Reply
	err := c.Call(ctx, method, req, &reply)
	return reply, err
}

// ServerStatus asks the server about itself.
func (c *Client) ServerStatus(ctx context.Context) (wire.ServerStatus, error) {
	return read[wire.ServerStatus](ctx, c, wire.MethodServerStatus, wire.ServerStatusRequest{})
}

// ServerReload has the server read its configuration again, and returns when it
// has. BadUsage is a configuration that was refused: the old one stays.
func (c *Client) ServerReload(ctx context.Context) (wire.Reloaded, error) {
	return read[wire.Reloaded](ctx, c, wire.MethodServerReload, wire.ReloadRequest{})
}

// Submit queues jobs, all or none, exactly once even over a loss: a job
// without an idempotency key is given one.
func (c *Client) Submit(ctx context.Context, specs ...wire.JobSpec) ([]wire.Job, error) {
	specs = slices.Clone(specs)
	for i := range specs {
		if specs[i].IdempotencyKey == "" {
			specs[i].IdempotencyKey = ulid.Make().String()
		}
	}
	reply, err := read[wire.SubmitReply](ctx, c, wire.MethodJobSubmit, wire.SubmitRequest{Jobs: specs})
	return reply.Jobs, err
}

// Job returns a job as it is now.
func (c *Client) Job(ctx context.Context, id string) (wire.Job, error) {
	return read[wire.Job](ctx, c, wire.MethodJobGet, wire.JobRequest{ID: id})
}

// Jobs returns one page of jobs, the newest first; in several messages where
// it is too long for one.
func (c *Client) Jobs(ctx context.Context, f wire.JobFilter) (jobs []wire.Job, err error) {
	f.Limit = pageLimit(f.Limit)
	for {
		page, err := read[wire.JobPage](ctx, c, wire.MethodJobList, f)
		if err != nil {
			return nil, err
		}
		jobs = append(jobs, page.Jobs...)
		if f.Limit -= len(page.Jobs); f.Limit <= 0 || !page.More || len(page.Jobs) == 0 {
			return jobs, nil
		}
		f.After = jobs[len(jobs)-1].ID
	}
}

// pageLimit is what the server makes of a filter's limit; wrong ones are for it to refuse.
func pageLimit(n int) int {
	if n == 0 {
		return 50
	}
	return min(n, 500)
}

// Why says why a job is where it is.
func (c *Client) Why(ctx context.Context, id string) (wire.Why, error) {
	return read[wire.Why](ctx, c, wire.MethodJobWhy, wire.JobRequest{ID: id})
}

// Wait returns the job once it has ended.
func (c *Client) Wait(ctx context.Context, id string) (wire.Job, error) {
	return read[wire.Job](ctx, c, wire.MethodJobWait, wire.JobRequest{ID: id})
}

// Cancel asks for a job's end, gracefully or at once.
func (c *Client) Cancel(ctx context.Context, id string, force bool) (wire.Job, error) {
	return read[wire.Job](ctx, c, wire.MethodJobCancel, wire.CancelRequest{ID: id, Force: force})
}

// Retry queues an ended job anew.
func (c *Client) Retry(ctx context.Context, id string) (wire.Job, error) {
	return once[wire.Job](ctx, c, wire.MethodJobRetry, wire.JobRequest{ID: id})
}

// Records returns artifacts, deployments or releases, the newest first.
func (c *Client) Records(ctx context.Context, f wire.RecordFilter) ([]wire.Record, error) {
	page, err := read[wire.RecordPage](ctx, c, wire.MethodRecordList, f)
	return page.Records, err
}
