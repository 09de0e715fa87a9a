package store

import (
	"errors"
	"fmt"
	"time"

	"github.com/waypointd/waypoint/daemon/queue"
	"github.com/waypointd/waypoint/mux/wire"
)

const (
	selectActiveSingleton = `SELECT id FROM jobs
	WHERE singleton = $1 AND singleton <> '' AND finished_at = 0 AND state IN ('assigned', 'running') AND id <> $2 LIMIT 1`
	selectQueuedSingleton = `SELECT ` + jobColumns + ` FROM jobs
	WHERE singleton = $1 AND singleton <> '' AND finished_at = 0 AND state = 'queued' AND id <> $2 LIMIT 1`
	// The one of a serial key that is assigned, running or ready: there is at
	// most one.
	selectHolder = `SELECT ` + jobColumns + ` FROM jobs
	WHERE serial_key = $1 AND serial_key <> '' AND finished_at = 0 AND blocked = '' AND id <> $2 LIMIT 1`
	selectNextSerial = `SELECT ` + jobColumns + ` FROM jobs
	WHERE serial_key = $1 AND serial_key <> '' AND finished_at = 0 AND blocked = 'serialized'
	ORDER BY priority DESC, place LIMIT 1`
	selectDependents = `SELECT job_id FROM dependencies WHERE dependency_id = $1 ORDER BY job_id`
)

// decide sets what blocks a queued job, from its Waiting and from the others.
// It may take the right to go next from another one of its serial key. The
// caller writes j.
func (tx *Tx) decide(j *queue.Job) error {
	if j.Waiting > 0 {
		j.Blocked = queue.ByDependency
		return nil
	}
	if j.Singleton != "" {
		var id string
		switch err := one(tx, selectActiveSingleton, []any{j.Singleton, j.ID}, &id); {
		case err == nil:
			j.Blocked = queue.BySingleton
			return nil
		case !errors.Is(err, errNoRow):
			return fmt.Errorf("look for singleton %q: %w", j.Singleton, err)
		}
	}
	j.Blocked = queue.Ready
	key := j.SerialKey()
	if key == "" {
		return nil
	}
	holder, err := readJob(tx, selectHolder, key, j.ID)
	if err != nil {
		return fmt.Errorf("look for what is in progress: %w", err)
	}
	if holder == nil {
		return nil
	}
	if holder.State != wire.Queued || holder.Before(j) {
		j.Blocked = queue.BySerial
		return nil
	}
	holder.Blocked = queue.BySerial
	return tx.update(holder)
}

// redecide is decide for a job that is stored.
func (tx *Tx) redecide(r *row) error {
	if err := tx.decide(&r.Job); err != nil {
		return err
	}
	tx.ready = tx.ready || r.Blocked == queue.Ready
	return tx.update(r)
}

// supersede ends the queued job of j's singleton, if there is one, and gives
// j its place.
func (tx *Tx) supersede(j *queue.Job, now time.Time) error {
	old, err := readJob(tx, selectQueuedSingleton, j.Singleton, j.ID)
	if err != nil {
		return fmt.Errorf("look for singleton %q: %w", j.Singleton, err)
	}
	if old == nil {
		return nil
	}
	j.Place = min(j.Place, old.Place)
	return tx.end(old, func() error { return old.Supersede(j.ID, now) })
}

// end applies a transition that ends a job, writes it, and does what follows
// from its end: the jobs that depend on it end too or come nearer, the next
// one of its serial key and the one waiting for its singleton may go.
func (tx *Tx) end(r *row, transition func() error) error {
	active := r.Active()
	if err := transition(); err != nil {
		return err
	}
	if !r.State.Ended() {
		return fmt.Errorf("end job %s: it is still %s", r.ID, r.State)
	}
	if err := tx.update(r); err != nil {
		return err
	}
	tx.ready = tx.ready || active // its runner has room now
	ended := []*row{r}            // and written; what follows is still to be done
	for len(ended) > 0 {
		more, err := tx.follow(ended[0])
		if err != nil {
			return err
		}
		ended = append(ended[1:], more...)
	}
	return nil
}

// follow does what directly follows from the end of r. It returns the
// dependents that it has ended and written.
func (tx *Tx) follow(r *row) (ended []*row, err error) {
	// First, so that one of its serial key always has the right to go next
	// while others wait for it: decide relies on that.
	if err := tx.promote(r); err != nil {
		return nil, err
	}
	dependents, err := strs(tx, selectDependents, r.ID)
	if err != nil {
		return nil, fmt.Errorf("read dependents of job %s: %w", r.ID, err)
	}
	for _, id := range dependents {
		// Read one at a time: what is done for one may change the next.
		d, err := readJob(tx, selectJob, id)
		if err != nil {
			return nil, err
		}
		if d == nil || d.State != wire.Queued {
			continue
		}
		if r.State != wire.Success && !d.AllowDependencyFailure {
			if err := d.DependencyFailed(&r.Job, r.FinishedAt); err != nil {
				return nil, err
			}
			if err := tx.update(d); err != nil {
				return nil, err
			}
			ended = append(ended, d)
			continue
		}
		if d.Waiting > 0 {
			d.Waiting--
		}
		if err := tx.redecide(d); err != nil {
			return nil, err
		}
	}
	return ended, nil
}

// promote lets go who waited for r, which has ended: first the next one of its
// serial key, so that decide, for the one waiting for its singleton, finds who
// has the right to go next.
func (tx *Tx) promote(r *row) error {
	if err := tx.promoteSerial(r); err != nil {
		return err
	}
	if r.Singleton == "" {
		return nil
	}
	next, err := readJob(tx, selectQueuedSingleton, r.Singleton, r.ID)
	if err != nil {
		return fmt.Errorf("look for singleton %q: %w", r.Singleton, err)
	}
	if next == nil || next.Blocked != queue.BySingleton {
		return nil
	}
	return tx.redecide(next)
}

func (tx *Tx) promoteSerial(r *row) error {
	key := r.SerialKey()
	if key == "" {
		return nil
	}
	holder, err := readJob(tx, selectHolder, key, r.ID)
	if err != nil {
		return fmt.Errorf("look for what is in progress: %w", err)
	}
	if holder != nil {
		return nil
	}
	next, err := readJob(tx, selectNextSerial, key)
	if err != nil {
		return fmt.Errorf("look for what comes next: %w", err)
	}
	if next == nil {
		return nil
	}
	return tx.redecide(next)
}
