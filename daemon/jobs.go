package daemon

import (
	"cmp"
	"context"
	"encoding/json"
	"strings"
	"time"

	"github.com/waypointd/waypoint/daemon/store"
	"github.com/waypointd/waypoint/mux"
	"github.com/waypointd/waypoint/mux/wire"
)

// The bounds of one submit, which is one transaction: all others wait for it.
const (
	maxSubmit     = 1000   // jobs
	maxSubmitDeps = 10_000 // jobs that these depend on, each time that one is named
)

// jobSubmit answers once the jobs are durable.
func (s *Server) jobSubmit(ctx context.Context, peer *mux.Peer, req wire.SubmitRequest) (reply wire.SubmitReply, err error) {
	if len(req.Jobs) == 0 {
		return reply, wire.Errorf(wire.BadUsage, "no job to queue")
	}
	if len(req.Jobs) > maxSubmit {
		return reply, wire.Errorf(wire.TooLarge, "%d jobs are more than the %d of one request", len(req.Jobs), maxSubmit)
	}
	deps := 0
	for i := range req.Jobs {
		deps += len(req.Jobs[i].DependsOn)
	}
	if deps > maxSubmitDeps {
		return reply, wire.Errorf(wire.TooLarge, "%d dependencies are more than the %d of one request", deps, maxSubmitDeps)
	}
	c := callOf(ctx)
	unfed, err := s.mayQueueAll(ctx, c, req.Jobs)
	if err != nil {
		return reply, err
	}
	err = s.act(ctx, func(tx *store.Tx) (err error) {
		for i, refused := range unfed {
			// Who asks again, as the answer was lost, may find that what he has sent is gone.
			if known, err := tx.Known(req.Jobs[i].IdempotencyKey); err != nil || !known {
				return cmp.Or(err, refused)
			}
		}
		if err := c.maySupersede(tx, req.Jobs); err != nil {
			return err
		}
		if reply.Jobs, err = tx.SubmitBy(c.by.name, req.Jobs, s.now()); err != nil {
			return err
		}
		ids := make([]string, len(reply.Jobs))
		for i, j := range reply.Jobs {
			ids[i] = j.ID
		}
		about(ctx, strings.Join(ids, " "))
		note(ctx, "operation", string(reply.Jobs[0].Operation))
		note(ctx, "project", reply.Jobs[0].Project)
		if err := c.maySee(reply.Jobs); err != nil || len(reply.Jobs) == 1 {
			return err
		}
		// Nobody is to be refused the answer about jobs that are queued.
		if text, err := json.Marshal(reply); err != nil || len(text) > wire.MaxMsg {
			return wire.Errorf(wire.TooLarge, "the answer about these %d jobs would have more than %d bytes", len(req.Jobs), wire.MaxMsg).
				WithHint("queue them in several requests")
		}
		return nil
	})
	if err != nil {
		return wire.SubmitReply{}, err
	}
	for _, j := range reply.Jobs {
		s.queued(j, peer)
	}
	reply.Jobs, err = s.asSeen(ctx, reply.Jobs...)
	return reply, err
}

// queued follows up a job that has been queued.
func (s *Server) queued(j wire.Job, peer *mux.Peer) {
	s.log.Info("job queued", "job", j.ID, "operation", j.Operation, "by", loginOf(peer).String(), "peer", peer)
	s.fleet.expect(j.Target.ID, s.now())
	s.wakeClock()
}

// update is store.Update for what has consequences outside of the store: it
// does not leave when its caller does, so that they follow. Where nobody knows
// whether it was committed no answer is right: the caller hears of the end of this
// process, which is about to come, and asks the next one.
func (s *Server) update(f func(*store.Tx) error) error {
	err := s.store.Update(context.Background(), f)
	if err == nil || s.store.Trusted() {
		return err
	}
	return s.unanswered(context.Background(), err)
}

// unanswered waits, while ctx lasts, for the end of a process whose store is not
// trusted any more, and is what there is to say until then.
func (s *Server) unanswered(ctx context.Context, err error) error {
	select {
	case <-s.ctx.Done():
	case <-ctx.Done():
	case <-time.After(endWithin):
	}
	return wire.Errorf(wire.Unavailable, "the server begins anew: %v", err)
}

// endWithin is how long an answer waits for a process that ends at once.
const endWithin = 5 * time.Second

func (s *Server) jobGet(ctx context.Context, _ *mux.Peer, req wire.JobRequest) (wire.Job, error) {
	job, err := s.store.Job(ctx, req.ID)
	return s.asSeenOne(ctx, job, err)
}

func (s *Server) jobList(ctx context.Context, _ *mux.Peer, f wire.JobFilter) (wire.JobPage, error) {
	jobs, err := s.store.JobsWithin(ctx, f, callOf(ctx).by.limits)
	if err != nil {
		return wire.JobPage{}, err
	}
	if jobs, err = s.asSeen(ctx, jobs...); err != nil {
		return wire.JobPage{}, err
	}
	n := fitting(jobs)
	return wire.JobPage{Jobs: jobs[:n], More: n < len(jobs)}, nil
}

func (s *Server) recordList(ctx context.Context, _ *mux.Peer, f wire.RecordFilter) (wire.RecordPage, error) {
	records, err := s.store.RecordsWithin(ctx, f, callOf(ctx).by.limits)
	if err != nil {
		return wire.RecordPage{}, err
	}
	n := fitting(records)
	return wire.RecordPage{Records: records[:n], More: n < len(records)}, nil
}

// pageBytes is how long the text of a page becomes at most, so that it is one message.
const pageBytes = wire.MaxMsg - 64<<10

// fitting is how many of a list make one page, at least one.
func fitting[T any](list []T) int {
	size := 0
	for i := range list {
		text, err := json.Marshal(list[i])
		if err != nil {
			return i
		}
		if size += len(text) + 1; i > 0 && size > pageBytes {
			return i
		}
	}
	return len(list)
}

// jobCancel asks for an end. A job that has ended stays as it is; one that
// runs is canceled by its runner, or with force here and now.
func (s *Server) jobCancel(ctx context.Context, peer *mux.Peer, req wire.CancelRequest) (job wire.Job, err error) {
	if req.Force {
		note(ctx, "force", "true")
	}
	err = s.act(ctx, func(tx *store.Tx) (err error) {
		job, err = tx.Cancel(req.ID, req.Force, s.now())
		return err
	})
	if err != nil {
		return wire.Job{}, err
	}
	s.log.Info("job cancel requested", "job", job.ID, "force", req.Force, "state", job.State, "by", loginOf(peer).String(), "peer", peer)
	s.store.Matched() // an assignment that has been seen is the fleet's by now
	if job.State.Ended() {
		if job.Attempt > 0 {
			s.fleet.end(wire.JobRef{Job: job.ID, Attempt: job.Attempt}, true)
			s.fleet.settleRejected(job.RunnerID)
			s.store.Kick()
		}
		return s.asSeenOne(ctx, job, nil)
	}
	s.fleet.cancel(job.ID, req.Force)
	return s.asSeenOne(ctx, job, nil)
}

// jobRetry queues the same as a new job.
func (s *Server) jobRetry(ctx context.Context, peer *mux.Peer, req wire.JobRequest) (job wire.Job, err error) {
	old, err := s.store.Job(ctx, req.ID)
	if err != nil {
		return job, err
	}
	c := callOf(ctx)
	if err := s.mayTarget(ctx, c, old.Target); err != nil {
		return job, err
	}
	err = s.act(ctx, func(tx *store.Tx) (err error) {
		if err := c.maySupersede(tx, []wire.JobSpec{{Singleton: old.Singleton}}); err != nil {
			return err
		}
		job, err = tx.RetryBy(c.by.name, req.ID, s.now())
		about(ctx, strings.TrimSpace(req.ID+" "+job.ID))
		return err
	})
	if err == nil {
		s.queued(job, peer)
	}
	return s.asSeenOne(ctx, job, err)
}

// watchPoll is the safety net behind wake-ups.
const watchPoll = 5 * time.Second

// jobWait answers once the job has ended.
func (s *Server) jobWait(ctx context.Context, _ *mux.Peer, req wire.JobRequest) (wire.Job, error) {
	w := s.watchers.watch(req.ID)
	defer s.watchers.unwatch(w)
	poll := time.NewTicker(watchPoll)
	defer poll.Stop()
	for {
		job, err := w.look(ctx, s.store)
		if wire.KindOf(err) != wire.Unavailable && (err != nil || job.State.Ended()) { // a database that is out of reach comes back
			return s.asSeenOne(ctx, job, err)
		}
		select {
		case <-w.c:
		case <-poll.C:
		case <-ctx.Done():
			return wire.Job{}, context.Cause(ctx)
		}
	}
}
