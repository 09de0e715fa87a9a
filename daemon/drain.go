package daemon

import (
	"context"
	"time"

	"github.com/waypointd/waypoint/daemon/store"
	"github.com/waypointd/waypoint/mux"
	"github.com/waypointd/waypoint/mux/wire"
)

// runnerDrain stops the giving of jobs to a runner, or lets it go on; this
// outlives sessions and both processes. A runner that is drained on its host
// is so until it is resumed there: to resume it here takes back what an
// operator did, and is a Conflict that says so.
func (s *Server) runnerDrain(ctx context.Context, peer *mux.Peer, req wire.DrainRequest) (wire.Runner, error) {
	if req.ID == "" {
		return wire.Runner{}, wire.Errorf(wire.BadUsage, "drain runner: it is not named")
	}
	if !req.Drain {
		callOf(ctx).verb = auditResume
	}
	var was bool
	r, err := s.decide(ctx, req.ID, func(_ *store.Tx, r *store.RunnerRecord) error {
		was, r.Draining = r.Draining, req.Drain
		return nil
	})
	if err != nil {
		return wire.Runner{}, err
	}
	if was != req.Drain {
		s.log.Info("runner's drain has changed", "runner", r.ID, "draining", req.Drain, "by", loginOf(peer).String(), "peer", peer)
	}
	if v, ok := s.connected(ctx, req.ID); ok && v.onHost && !req.Drain {
		// The operator's own drain is over all the same: else each of the two
		// would wait for the other.
		return wire.Runner{}, wire.Errorf(wire.Conflict, "runner %q is drained on its own host", r.ID).
			WithHint("on that host: waypoint runner resume")
	}
	return s.withSession(ctx, r.Runner), nil
}

// runnerWait answers once a runner has no job.
func (s *Server) runnerWait(ctx context.Context, peer *mux.Peer, req wire.RunnerRequest) (wire.Runner, error) {
	poll := time.NewTicker(watchPoll)
	defer poll.Stop()
	for {
		r, err := s.runnerInspect(ctx, peer, req)
		if err != nil {
			return wire.Runner{}, err
		}
		s.store.Matched() // an assignment that was under way is the fleet's by now
		idle := s.fleet.idle(req.ID)
		if idle == nil && (!s.store.Shared() || r.RunningJobs == 0) {
			r.RunningJobs = 0
			return r, nil
		}
		select {
		case <-idle:
		case <-poll.C:
		case <-ctx.Done():
			return wire.Runner{}, context.Cause(ctx)
		}
	}
}

// idle is closed when the runner has no attempt any more; nil: it has none.
func (f *fleet) idle(runner string) <-chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.held[runner]) == 0 {
		return nil
	}
	c := f.waiters[runner]
	if c == nil {
		c = make(chan struct{})
		f.waiters[runner] = c
	}
	return c
}

// count is how many attempts a runner has.
func (f *fleet) count(runner string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.held[runner])
}
