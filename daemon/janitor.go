package daemon

import (
	"time"

	"github.com/waypointd/waypoint/daemon/store"
	"github.com/waypointd/waypoint/mux/wire"
)

// Retention runs a while after start, so that a restart is quick, and then
// regularly.
const (
	firstPrune = time.Minute
	pruneEvery = 10 * time.Minute
)

// clockStep is how much further than this process the host's clock may go
// between two rounds of retention: one that was set, perhaps wrongly and not for
// long, is believed with the next round.
const clockStep = 5 * time.Minute

// steady reports whether the clock has gone on as this process has. Neither
// time has a reading of the monotonic clock; ran is by that.
func steady(was, is time.Time, ran time.Duration) bool {
	return (is.Sub(was) - ran).Abs() <= clockStep
}

// keepTokens is how long tokens of users are listed that have expired.
const keepTokens = 30 * 24 * time.Hour

// janitor removes what need not be kept.
func (s *Server) janitor() {
	timer := time.NewTimer(firstPrune)
	defer timer.Stop()
	last := s.now()
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-timer.C:
		}
		now := s.now()
		set := !steady(last.Round(0), now.Round(0), now.Sub(last))
		last = now
		if set {
			s.log.Warn("clock was set: nothing is removed for its age before the next look", "again_in", pruneEvery.String())
			timer.Reset(pruneEvery)
			continue
		}
		n, err := s.store.Prune(s.ctx, s.cfg().RetainFor, s.cfg().RetainJobs, s.now())
		if err != nil && s.ctx.Err() == nil {
			s.log.Warn("retention failed, trying again later", "error", err)
		}
		if n > 0 {
			s.log.Info("old jobs removed", "count", n)
		}
		if _, err := s.store.PruneAudit(s.ctx, s.cfg().AuditFor, s.cfg().AuditEntries, s.now()); err != nil && s.ctx.Err() == nil {
			s.log.Warn("old entries of the audit could not be removed, trying again later", "error", err)
		}
		if err := s.prunePending(s.now()); err != nil && s.ctx.Err() == nil {
			s.log.Warn("pending runners could not be removed, trying again later", "error", err)
		}
		if err := s.dropTokenKeys(s.ctx, s.now()); err != nil && s.ctx.Err() == nil {
			s.log.Warn("old token keys could not be removed, trying again later", "error", err)
		}
		if err := s.store.Update(s.ctx, func(tx *store.Tx) error { return tx.PruneUserTokens(s.now().Add(-keepTokens)) }); err != nil && s.ctx.Err() == nil {
			s.log.Warn("old tokens of users could not be removed, trying again later", "error", err)
		}
		timer.Reset(pruneEvery)
	}
}

// prunePending forgets the runners that wait for adoption and have not been
// here for too long. Those that are connected are noted as seen, also for the
// other servers of the database.
func (s *Server) prunePending(now time.Time) error {
	n := 0
	if err := s.update(func(tx *store.Tx) (err error) {
		for _, v := range s.fleet.online() {
			if v.kind == wire.KindRemote && v.standing.State == wire.Pending {
				if err := tx.SeenRunner(v.id, now); err != nil {
					return err
				}
			}
		}
		n, err = tx.PrunePending(now.Add(-s.cfg().PendingFor))
		return err
	}); err != nil {
		return err
	}
	if n > 0 {
		s.log.Info("pending runners removed", "count", n, "unseen_for", s.cfg().PendingFor)
	}
	return nil
}
