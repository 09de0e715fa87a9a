package daemon

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/waypointd/waypoint/daemon/store"
	"github.com/waypointd/waypoint/mux/wire"
)

// keepOwner keeps who a runner is, in the transaction that forgets it.
func (s *Server) keepOwner(tx *store.Tx, r store.RunnerRecord) error {
	if !s.fleet.mayReport(r.ID) {
		if !s.store.Shared() || s.fleet.hasOrphans(r.ID) {
			return nil // it has no attempts, or they are of one before it
		}
		if held, err := tx.Holds(r.ID); err != nil || len(held) == 0 {
			return err
		}
		if owner, err := tx.Setting(store.OwnerSetting(r.ID)); err != nil || owner != "" {
			return err
		}
	}
	return tx.PutSetting(store.OwnerSetting(r.ID), r.Fingerprint)
}

// inherit ends, in the transaction that admits a runner, the orphans under its
// id that are another identity's: that one cannot come back for them any more.
// Its own it gets back.
func (s *Server) inherit(tx *store.Tx, v *visitor, now time.Time) (lost []wire.JobRef, err error) {
	lost = s.fleet.foreign(v)
	if s.store.Shared() {
		// They may be in another server's fleet.
		owner, err := tx.Setting(store.OwnerSetting(v.id))
		if err != nil {
			return nil, err
		}
		if owner != "" && owner != v.key {
			held, err := tx.Holds(v.id)
			if err != nil {
				return nil, err
			}
			for _, a := range held {
				if !slices.Contains(lost, a.JobRef) {
					lost = append(lost, a.JobRef)
				}
			}
		}
	}
	for _, ref := range lost {
		err := tx.Lost(ref, "its runner has been forgotten, and another has its id", now)
		if k := wire.KindOf(err); err != nil && k != wire.Conflict && k != wire.NotFound {
			return nil, err
		}
	}
	return lost, tx.DropSetting(store.OwnerSetting(v.id))
}

// orphaned are the runners with active jobs that have been forgotten, and not
// admitted again since: their record, if there is one, has never had a token in
// use, or is another's. The values are the fingerprints of their keys.
func (s *Server) orphaned(ctx context.Context, active []store.Active) (map[string]string, error) {
	orphaned, seen := map[string]string{}, map[string]bool{}
	for _, a := range active {
		if seen[a.RunnerID] || strings.HasPrefix(a.RunnerID, localPrefix) {
			continue
		}
		seen[a.RunnerID] = true
		r, err := s.store.Runner(ctx, a.RunnerID)
		if err != nil && wire.KindOf(err) != wire.NotFound {
			return nil, fmt.Errorf("read the runner of an active job: %w", err)
		}
		owner, err := s.store.Setting(ctx, store.OwnerSetting(a.RunnerID))
		if err != nil {
			return nil, err
		}
		if r.TokenExpiry.IsZero() || owner != "" && owner != r.Fingerprint {
			orphaned[a.RunnerID] = owner
		}
	}
	return orphaned, nil
}

// orphaned reports whether a runner's attempts were given to one that has been
// forgotten since, and that has not been admitted again: whoever shows its id
// has no part in them.
func (f *fleet) orphaned(runner string) bool {
	for _, a := range f.held[runner] {
		return a.orphan // all of them, or none: only the admitted get more
	}
	return false
}

// hasOrphans is orphaned for whoever does not hold the lock.
func (f *fleet) hasOrphans(runner string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.orphaned(runner)
}

// disown makes orphans of a runner's attempts.
func (f *fleet) disown(runner, fingerprint string, now time.Time) {
	if f.orphaned(runner) { // forgotten before: their lease goes on
		return
	}
	for _, a := range f.held[runner] {
		a.orphan, a.owner = true, fingerprint
		f.away[runner] = now
	}
}

// foreign are the orphans under a runner's id that are not its own. What has
// not started is not among them: it goes back to the queue.
func (f *fleet) foreign(v *visitor) (refs []wire.JobRef) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, a := range f.held[v.id] {
		if a.orphan && !a.recalled && a.owner != v.key {
			refs = append(refs, a.JobRef)
		}
	}
	return refs
}

// errAnew is why the work stream of a runner ends that gets its attempts back.
var errAnew = wire.Errorf(wire.Unavailable, "the runner has been admitted again: begin anew with what it holds")

// readmit gives an admitted runner the attempts back that it had before it was
// forgotten. What it holds of them it has to say anew.
func (f *fleet) readmit(m *member) {
	if !f.orphaned(m.id) {
		return
	}
	for _, a := range f.held[m.id] {
		a.orphan, a.owner = false, ""
	}
	delete(f.away, m.id)
	if m.working {
		m.orders.end(errAnew)
	}
}
