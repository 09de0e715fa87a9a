package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/waypointd/waypoint/mux/wire"
)

// A lost attempt may go on under a runner that nobody hears. Its late result is
// what that runner says of it afterwards: the rest of the output, and how it
// went. The job's end stays what it was, and so does all that came of it.

// OwnerSetting is the setting with the fingerprint of a runner that has been
// forgotten at work: its id is anybody's then, its attempts are not.
func OwnerSetting(runnerID string) string { return ownerSetting + runnerID }

const ownerSetting = "owner_of_attempts_of_"

const (
	updateLostBy = `UPDATE jobs SET lost_by = COALESCE((SELECT value FROM settings WHERE name = $1),
	(SELECT fingerprint FROM runners WHERE id = $2), $2) WHERE id = $3`
	selectLost = `SELECT state, reason, runner_id, lost_by, attempt, late, finished_at,
	COALESCE((SELECT c.start FROM log_chunks c WHERE c.job_id = jobs.id AND c.attempt = jobs.attempt
		ORDER BY c.start DESC LIMIT 1), 0),
	COALESCE((SELECT length(c.data) FROM log_chunks c WHERE c.job_id = jobs.id AND c.attempt = jobs.attempt
		ORDER BY c.start DESC LIMIT 1), 0)
	FROM jobs WHERE id = $1`
	// What else is true of the job was read in the same transaction.
	updateLateLog = `UPDATE jobs SET log_bytes = $1 WHERE id = $2 AND attempt = $3 AND late = ''`
	updateLate    = `UPDATE jobs SET late = $1 WHERE id = $2 AND attempt = $3 AND late = ''`
)

// Late is how much output is stored of an attempt whose late result is still
// to come. It is Conflict for one that was not lost, is not this runner's, by
// id and key (the id again where it is made of the key), or has its late result; and NotFound
// where the job is not kept any more.
func (s *Store) Late(ctx context.Context, ref wire.JobRef, runner, key string) (length int64, err error) {
	start, tail, _, err := lost(s.read(ctx), ref, runner, key)
	return start + tail, err
}

// lost returns where the last row of the output starts, its length, and when the
// attempt was lost.
func lost(q querier, ref wire.JobRef, runner, key string) (start, tail int64, at time.Time, err error) {
	var (
		state        wire.State
		reason       wire.Reason
		holder, by   string
		attempt      int
		late, refuse string
		finished     int64
	)
	switch err := one(q, selectLost, []any{ref.Job}, &state, &reason, &holder, &by, &attempt, &late, &finished, &start, &tail); {
	case errors.Is(err, errNoRow):
		return 0, 0, at, notFound("job", ref.Job)
	case err != nil:
		return 0, 0, at, fmt.Errorf("read lost job %s: %w", ref.Job, err)
	}
	switch {
	case attempt != ref.Attempt || holder != runner:
		refuse = "it is not runner " + runner + "'s"
	case state != wire.Failed || reason != wire.ReasonRunnerLost:
		refuse = "the job is " + string(state)
	case by != key:
		refuse = "it was another runner's of the same id"
	case late != "":
		refuse = "its late result is there already"
	default:
		return start, tail, fromMicro(finished), nil
	}
	return 0, 0, at, wire.Errorf(wire.Conflict, "late result of attempt %d of job %s: %s", ref.Attempt, ref.Job, refuse)
}

// AppendLate is AppendLog for an attempt that was lost: see Late.
func (tx *Tx) AppendLate(ref wire.JobRef, runner, key string, chunks []wire.Data) (int64, error) {
	start, tail, _, err := lost(tx, ref, runner, key)
	if err != nil {
		return 0, err
	}
	length, err := tx.appendChunks(ref, start, tail, chunks)
	if err != nil || length == start+tail {
		return length, err
	}
	if err := tx.updateLost(ref, updateLateLog, length); err != nil {
		return 0, err
	}
	tx.jobs.add(ref.Job)
	return length, nil
}

// FinishLate keeps how a lost attempt went: see Late. That it comes before all
// of the output is a Conflict.
func (tx *Tx) FinishLate(ref wire.JobRef, runner, key string, res wire.Result, now time.Time) error {
	start, tail, at, err := lost(tx, ref, runner, key)
	if err != nil {
		return err
	}
	if now = stamp(now); now.Before(at) { // the clock has been set back
		now = at
	}
	length := start + tail
	if length < res.LogBytes {
		return wire.Errorf(wire.Conflict, "late result of job %s: %d of %d bytes of its output are stored", ref.Job, length, res.LogBytes)
	}
	late := wire.LateResult{
		Attempt: ref.Attempt, State: res.State, Reason: res.Reason, ExitCode: res.ExitCode, Signal: res.Signal,
		LogBytes: length, FinishedAt: stamp(res.FinishedAt), ReportedAt: now,
	}
	if err := tx.updateLost(ref, updateLate, toJSON(late, 1)); err != nil {
		return err
	}
	tx.jobs.add(ref.Job)
	return nil
}

func (tx *Tx) updateLost(ref wire.JobRef, text string, value any) error {
	n, err := tx.exec(text, value, ref.Job, ref.Attempt)
	if err != nil {
		return fmt.Errorf("late result of job %s: %w", ref.Job, err)
	}
	if n != 1 {
		return wire.Errorf(wire.Conflict, "late result of job %s: it was changed by another server", ref.Job)
	}
	return nil
}

// lostBy keeps whose a lost attempt is.
func (tx *Tx) lostBy(id, runner string) error {
	if _, err := tx.exec(updateLostBy, OwnerSetting(runner), runner, id); err != nil {
		return fmt.Errorf("keep whose job %s was: %w", id, err)
	}
	return nil
}
