package daemon

import (
	"context"
	"time"

	"github.com/waypointd/waypoint/daemon/store"
	"github.com/waypointd/waypoint/mux"
	"github.com/waypointd/waypoint/mux/wire"
)

// maxSubmit bounds the jobs of one submit.
const maxSubmit = 1000

// jobSubmit answers once the jobs are durable.
func (s *Server) jobSubmit(ctx context.Context, _ *mux.Peer, req wire.SubmitRequest) (reply wire.SubmitReply, err error) {
	if len(req.Jobs) == 0 {
		return reply, wire.Errorf(wire.BadUsage, "no job to queue")
	}
	if len(req.Jobs) > maxSubmit {
		return reply, wire.Errorf(wire.TooLarge, "%d jobs are more than the %d of one request", len(req.Jobs), maxSubmit)
	}
	err = s.store.Update(ctx, func(tx *store.Tx) (err error) {
		reply.Jobs, err = tx.Submit(req.Jobs, time.Now())
		return err
	})
	if err != nil {
		return wire.SubmitReply{}, err
	}
	for _, j := range reply.Jobs {
		s.log.Info("job queued", "job", j.ID, "operation", j.Operation)
		if !j.ExpiresAt.IsZero() {
			s.wakeClock()
		}
	}
	return reply, nil
}

func (s *Server) jobGet(ctx context.Context, _ *mux.Peer, req wire.JobRequest) (wire.Job, error) {
	return s.store.Job(ctx, req.ID)
}

func (s *Server) jobList(ctx context.Context, _ *mux.Peer, f wire.JobFilter) (wire.JobPage, error) {
	jobs, err := s.store.Jobs(ctx, f)
	return wire.JobPage{Jobs: jobs}, err
}

func (s *Server) recordList(ctx context.Context, _ *mux.Peer, f wire.RecordFilter) (wire.RecordPage, error) {
	records, err := s.store.Records(ctx, f)
	return wire.RecordPage{Records: records}, err
}

// jobCancel asks for an end. A job that has ended stays as it is; one that
// runs is canceled by its runner, or with force here and now.
func (s *Server) jobCancel(ctx context.Context, _ *mux.Peer, req wire.CancelRequest) (job wire.Job, err error) {
	err = s.store.Update(ctx, func(tx *store.Tx) (err error) {
		job, err = tx.Cancel(req.ID, req.Force, time.Now())
		return err
	})
	if err != nil {
		return wire.Job{}, err
	}
	s.log.Info("job cancel requested", "job", job.ID, "force", req.Force, "state", job.State)
	if job.State.Ended() {
		if job.Attempt > 0 {
			s.fleet.end(wire.JobRef{Job: job.ID, Attempt: job.Attempt}, true)
			s.store.Kick()
		}
		return job, nil
	}
	s.fleet.cancel(job.ID, req.Force)
	return job, nil
}

// jobRetry queues the same as a new job.
func (s *Server) jobRetry(ctx context.Context, _ *mux.Peer, req wire.JobRequest) (job wire.Job, err error) {
	err = s.store.Update(ctx, func(tx *store.Tx) (err error) {
		job, err = tx.Retry(req.ID, time.Now())
		return err
	})
	if err == nil && !job.ExpiresAt.IsZero() {
		s.wakeClock()
	}
	return job, err
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
		if err != nil || job.State.Ended() {
			return job, err
		}
		select {
		case <-w.c:
		case <-poll.C:
		case <-ctx.Done():
			return wire.Job{}, context.Cause(ctx)
		}
	}
}
