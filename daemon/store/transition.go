package store

import (
	"fmt"
	"time"

	"github.com/waypointd/waypoint/daemon/queue"
	"github.com/waypointd/waypoint/mux/wire"
)

// Ack records that the runner may start the attempt: assigned -> running. As
// with all that name an attempt, one that is not the job's present one, or a
// runner that is not the job's, is refused with Conflict, an unknown job with
// NotFound.
func (tx *Tx) Ack(ref wire.JobRef, runner string, now time.Time) error {
	r, err := tx.lockJob(ref.Job)
	if err != nil {
		return err
	}
	if err := r.Ack(ref.Attempt, runner, stamp(now)); err != nil {
		return err
	}
	return tx.update(r)
}

// Requeue takes back an attempt that was not started (refused, not
// acknowledged in time, not held any more): assigned -> queued. It ends as
// canceled if that was asked for, or superseded if its singleton has a newer
// one by now.
func (tx *Tx) Requeue(ref wire.JobRef, runner string, now time.Time) error {
	r, err := tx.lockJob(ref.Job)
	if err != nil {
		return err
	}
	now = stamp(now)
	if !r.CancelRequested.IsZero() {
		return tx.end(r, func() error { return r.Requeue(ref.Attempt, runner, now) })
	}
	if err := r.Requeue(ref.Attempt, runner, now); err != nil {
		return err
	}
	tx.ready = true
	if r.Singleton != "" {
		newer, err := readJob(tx, selectQueuedSingleton, r.Singleton, r.ID)
		if err != nil {
			return fmt.Errorf("look for singleton %q: %w", r.Singleton, err)
		}
		if newer != nil {
			newer.Place = min(newer.Place, r.Place)
			if err := tx.update(newer); err != nil {
				return err
			}
			return tx.end(r, func() error { return r.Supersede(newer.ID, now) })
		}
	}
	if err := tx.update(r); err != nil {
		return err
	}
	// It keeps the right to go next of its serial key, unless one that came
	// while it was assigned is to go first.
	if key := r.SerialKey(); key != "" {
		next, err := readJob(tx, selectNextSerial, key)
		if err != nil {
			return fmt.Errorf("look for what comes next: %w", err)
		}
		if next != nil && next.Before(&r.Job) {
			return tx.redecide(next)
		}
	}
	return nil
}

// Finish ends an attempt with its runner's result, makes the record of a
// successful build, deploy or release, and ends or frees what depends on the
// job. A result that comes before all of its output is a Conflict.
func (tx *Tx) Finish(ref wire.JobRef, runner string, res wire.Result, now time.Time) error {
	return tx.FinishStarted(ref, runner, res, time.Time{}, now)
}

// FinishStarted is Ack, where the attempt's start is not recorded yet, and
// Finish in one. A zero time of the start is not known.
func (tx *Tx) FinishStarted(ref wire.JobRef, runner string, res wire.Result, started, now time.Time) error {
	r, err := tx.lockJob(ref.Job)
	if err != nil {
		return err
	}
	now = stamp(now)
	stored := r.LogBytes
	return tx.end(r, func() error {
		if r.State == wire.Assigned && !started.IsZero() {
			if err := r.Ack(ref.Attempt, runner, stamp(started)); err != nil {
				return err
			}
		}
		if err := r.Finish(ref.Attempt, runner, res, now); err != nil {
			return err
		}
		if stored < res.LogBytes {
			return wire.Errorf(wire.Conflict, "finish job %s: %d of %d bytes of its output are stored", r.ID, stored, res.LogBytes)
		}
		if r.State == wire.Success {
			return tx.putRecord(r, res.Artifact, now)
		}
		return nil
	})
}

// Lost ends an attempt whose runner is gone: assigned or running -> error,
// runner_lost. Whose it was is kept for a late result.
func (tx *Tx) Lost(ref wire.JobRef, why string, now time.Time) error {
	r, err := tx.lockJob(ref.Job)
	if err != nil {
		return err
	}
	if err := tx.end(r, func() error { return r.Lose(ref.Attempt, why, stamp(now)) }); err != nil {
		return err
	}
	return tx.lostBy(r.ID, r.RunnerID)
}

// Cancel asks for a job's end: queued -> canceled; assigned or running ->
// cancel requested, with force -> canceled at once; ended -> unchanged, no
// error.
func (tx *Tx) Cancel(id string, force bool, now time.Time) (wire.Job, error) {
	r, err := tx.lockJob(id)
	if err != nil {
		return wire.Job{}, err
	}
	now = stamp(now)
	switch {
	case r.State.Ended():
	case r.State == wire.Queued || force:
		err = tx.end(r, func() error { r.Cancel(force, now); return nil })
	case r.Cancel(false, now):
		err = tx.update(r)
	}
	return r.Job.Job, err
}

const (
	selectExpired = `SELECT id FROM jobs WHERE state = 'queued' AND expires_at > 0 AND expires_at <= $1 ORDER BY expires_at LIMIT 256`
	selectQueued  = `SELECT id FROM jobs WHERE state = 'queued' AND blocked IN ('', 'dependency', 'serialized', 'singleton')
	AND target = $1 ORDER BY id LIMIT 256`
)

// Expire ends queued jobs whose time has come, some at a time, as others wait
// for the transaction: it is over when there is none left.
func (tx *Tx) Expire(now time.Time) (n int, err error) {
	now = stamp(now)
	return tx.endQueued(func(r *row) error { return r.Expire(now) }, selectExpired, micro(now))
}

// Abandon ends the jobs queued for one runner that is gone for good, some at a
// time, like Expire.
func (tx *Tx) Abandon(runnerID, why string, now time.Time) (int, error) {
	now = stamp(now)
	return tx.endQueued(func(r *row) error { return r.Abandon(why, now) }, selectQueued,
		queue.TargetText(wire.Target{ID: runnerID}))
}

// endQueued ends the jobs whose ids a query selects, and counts them. One
// that ended as a dependent of another is not counted.
func (tx *Tx) endQueued(transition func(r *row) error, text string, args ...any) (n int, err error) {
	if err := tx.lockRules(); err != nil {
		return 0, err
	}
	ids, err := strs(tx, text, args...)
	if err != nil {
		return 0, fmt.Errorf("read queued jobs: %w", err)
	}
	for _, id := range ids {
		r, err := getJob(tx, id)
		if err != nil {
			return n, err
		}
		if r.State != wire.Queued {
			continue
		}
		if err := tx.end(r, func() error { return transition(r) }); err != nil {
			return n, err
		}
		n++
	}
	return n, nil
}

// lockJob reads a job that is about to change.
func (tx *Tx) lockJob(id string) (*row, error) {
	if err := tx.lockRules(); err != nil {
		return nil, err
	}
	return getJob(tx, id)
}

// stamp is a time as the store keeps it.
func stamp(t time.Time) time.Time { return t.Truncate(time.Microsecond).UTC() }
