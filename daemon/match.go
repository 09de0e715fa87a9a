package daemon

import (
	"errors"

	"github.com/waypointd/waypoint/daemon/queue"
	"github.com/waypointd/waypoint/daemon/store"
)

// matchBatch bounds the assignments of one transaction, so that a long queue
// and many idle runners do not hold up those who wait for the commit.
const matchBatch = 256

// match hands ready jobs to idle runners in the committer's transaction, so
// that a job that finds a runner at once costs no commit of its own. What it
// decided is told to the runners only when it is durable.
func (s *Server) match(tx *store.Tx) (func(committed bool), error) {
	now := s.now()
	var countErr error
	made, err := tx.AssignReady(func() []queue.Runner {
		held, err := tx.Held()
		if err != nil {
			countErr = err
			return nil
		}
		return s.fleet.candidates(held, now)
	}, now, matchBatch)
	if err := errors.Join(err, countErr); err != nil {
		return nil, err
	}
	return func(committed bool) {
		if !committed || len(made) == 0 {
			return
		}
		for i := range made {
			made[i].LogLimit = s.cfg().LogLimit
		}
		s.fleet.assign(made, now)
		for _, a := range made {
			s.log.Info("job assigned", "job", a.Job, "attempt", a.Attempt, "runner", a.RunnerID)
			s.metrics.Assigned(now.Sub(a.QueuedAt))
		}
		s.wakeClock()
		if len(made) == matchBatch {
			s.store.Kick()
		}
	}, nil
}
