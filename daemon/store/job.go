package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/waypointd/waypoint/daemon/queue"
	"github.com/waypointd/waypoint/mux/wire"
)

// jobColumns are all of a job's but its spec, as scanJob reads them. The
// output of a job that has not ended is as long as its chunks say.
const jobColumns = `id, operation, state, reason, error, exit_code, signal, project, app, workspace, profile,
	target, runner_id, attempt, retry_of, queued_at, assigned_at, started_at, finished_at, cancel_at, expires_at,
	CASE WHEN finished_at > 0 THEN log_bytes ELSE COALESCE((SELECT c.start + length(c.data) FROM log_chunks c
		WHERE c.job_id = jobs.id AND c.attempt = jobs.attempt ORDER BY c.start DESC LIMIT 1), 0) END,
	depends_on, singleton, priority, command, outputs, usage, sequence, place, blocked, waiting, allow_failure,
	idempotency_key, uses, late, queued_by`

const (
	selectJob  = `SELECT ` + jobColumns + ` FROM jobs WHERE id = $1`
	selectSpec = `SELECT spec FROM jobs WHERE id = $1`

	insertJob = `INSERT INTO jobs (id, operation, state, reason, error, exit_code, signal, project, app, workspace,
	profile, target, runner_id, attempt, retry_of, queued_at, assigned_at, started_at, finished_at, cancel_at,
	expires_at, log_bytes, depends_on, singleton, priority, command, outputs, usage, sequence, place, blocked,
	waiting, allow_failure, serial_key, idempotency_key, uses, queued_by, spec)
	VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22,
	$23, $24, $25, $26, $27, $28, $29, $30, $31, $32, $33, $34, $35, $36, $37, $38)`

	// The last condition is the compare-and-set: nothing may have happened to
	// the job since it was read.
	updateJob = `UPDATE jobs SET state = $1, reason = $2, error = $3, exit_code = $4, signal = $5, runner_id = $6,
	attempt = $7, assigned_at = $8, started_at = $9, finished_at = $10, cancel_at = $11, log_bytes = $12,
	outputs = $13, usage = $14, sequence = $15, place = $16, blocked = $17, waiting = $18, uses = $19,
	keeper = CASE WHEN $1 = 'assigned' AND state = 'queued' THEN $20 ELSE keeper END,
	spool = CASE WHEN $1 = 'assigned' AND state = 'queued' THEN $21 ELSE spool END
	WHERE id = $22 AND state = $23 AND attempt = $24`
)

// row is a job with the state and attempt that it was read with.
type row struct {
	queue.Job
	wasState   wire.State
	wasAttempt int
	spool      string // of the runner that it is being assigned to
}

// scanJob reads jobColumns and what the query selects behind them.
func scanJob(rows *sql.Rows, more ...any) (*row, error) {
	var (
		r                                                row
		code                                             sql.NullInt64
		target, dependsOn, command, outputs, usage, late string
		queued, assigned, started, finished, cancel, ex  int64
	)
	j := &r.Job
	dest := []any{&j.ID, &j.Operation, &j.State, &j.Reason, &j.Error, &code, &j.Signal, &j.Project, &j.App,
		&j.Workspace, &j.Profile, &target, &j.RunnerID, &j.Attempt, &j.RetryOf, &queued, &assigned, &started,
		&finished, &cancel, &ex, &j.LogBytes, &dependsOn, &j.Singleton, &j.Priority, &command, &outputs, &usage,
		&j.Sequence, &j.Place, &j.Blocked, &j.Waiting, &j.AllowDependencyFailure, &j.IdempotencyKey, &j.Uses,
		&late, &j.QueuedBy}
	err := rows.Scan(append(dest, more...)...)
	if err != nil {
		return nil, fmt.Errorf("read job: %w", err)
	}
	if code.Valid {
		j.ExitCode = new(int(code.Int64))
	}
	if j.Target, err = queue.ParseTarget(target); err != nil {
		return nil, err
	}
	j.QueuedAt, j.AssignedAt, j.StartedAt = fromMicro(queued), fromMicro(assigned), fromMicro(started)
	j.FinishedAt, j.CancelRequested, j.ExpiresAt = fromMicro(finished), fromMicro(cancel), fromMicro(ex)
	j.DependsOn = splitIDs(dependsOn)
	if err := errors.Join(fromJSON(command, &j.Command), fromJSON(outputs, &j.Outputs), fromJSON(usage, &j.Usage),
		fromJSON(late, &j.LateResult)); err != nil {
		return nil, fmt.Errorf("read job %s: %w", j.ID, err)
	}
	r.wasState, r.wasAttempt = j.State, j.Attempt
	return &r, nil
}

// readJobs reads the jobs that a query selects with jobColumns.
func readJobs(q querier, text string, args ...any) ([]*row, error) {
	var out []*row
	err := each(q, text, args, func(rows *sql.Rows) error {
		r, err := scanJob(rows)
		if err != nil {
			return err
		}
		out = append(out, r)
		return nil
	})
	return out, err
}

// readJob reads the one job that a query selects, or nil.
func readJob(q querier, text string, args ...any) (*row, error) {
	list, err := readJobs(q, text, args...)
	if err != nil || len(list) == 0 {
		return nil, err
	}
	return list[0], nil
}

// getJob is the job of an id, or NotFound.
func getJob(q querier, id string) (*row, error) {
	r, err := readJob(q, selectJob, id)
	if err != nil {
		return nil, err
	}
	if r == nil {
		return nil, notFound("job", id)
	}
	return r, nil
}

// Job is the job of an id, or NotFound.
func (s *Store) Job(ctx context.Context, id string) (wire.Job, error) {
	r, err := getJob(s.read(ctx), id)
	if err != nil {
		return wire.Job{}, err
	}
	return r.Job.Job, nil
}

// Spec is what a job was queued as.
func (s *Store) Spec(ctx context.Context, id string) (wire.JobSpec, error) {
	return getSpec(s.read(ctx), id)
}

func getSpec(q querier, id string) (spec wire.JobSpec, err error) {
	var text string
	if err := one(q, selectSpec, []any{id}, &text); errors.Is(err, errNoRow) {
		return spec, notFound("job", id)
	} else if err != nil {
		return spec, fmt.Errorf("read spec of job %s: %w", id, err)
	}
	if err := json.Unmarshal([]byte(text), &spec); err != nil {
		return spec, fmt.Errorf("read spec of job %s: %w", id, err)
	}
	return spec, nil
}

// insert queues a job, unless there is no room for new work.
func (tx *Tx) insert(j *queue.Job, specText string) error {
	if err := tx.s.newWork(); err != nil {
		return err
	}
	_, err := tx.exec(insertJob, j.ID, string(j.Operation), string(j.State), string(j.Reason), j.Error,
		nullInt(j.ExitCode), j.Signal, j.Project, j.App, j.Workspace, j.Profile, queue.TargetText(j.Target),
		j.RunnerID, j.Attempt, j.RetryOf, micro(j.QueuedAt), micro(j.AssignedAt), micro(j.StartedAt),
		micro(j.FinishedAt), micro(j.CancelRequested), micro(j.ExpiresAt), j.LogBytes,
		strings.Join(j.DependsOn, " "), j.Singleton, j.Priority, toJSON(j.Command, len(j.Command)),
		toJSON(j.Outputs, len(j.Outputs)), "", j.Sequence, j.Place, string(j.Blocked), j.Waiting,
		toInt(j.AllowDependencyFailure), j.SerialKey(), j.IdempotencyKey, j.Uses, j.QueuedBy, specText)
	if err != nil {
		return fmt.Errorf("queue job: %w", err)
	}
	tx.jobs.add(j.ID)
	return nil
}

// update writes what may change of a job.
func (tx *Tx) update(r *row) error {
	j := &r.Job
	usage := ""
	if j.Usage != nil {
		usage = toJSON(j.Usage, 1)
	}
	n, err := tx.exec(updateJob, string(j.State), string(j.Reason), j.Error, nullInt(j.ExitCode), j.Signal, j.RunnerID,
		j.Attempt, micro(j.AssignedAt), micro(j.StartedAt), micro(j.FinishedAt), micro(j.CancelRequested), j.LogBytes,
		toJSON(j.Outputs, len(j.Outputs)), usage, j.Sequence, j.Place, string(j.Blocked), j.Waiting, j.Uses,
		tx.s.instance, r.spool, j.ID, string(r.wasState), r.wasAttempt)
	if err != nil {
		return fmt.Errorf("update job %s: %w", j.ID, err)
	}
	if n != 1 {
		return wire.Errorf(wire.Conflict, "update job %s: it was changed by another server", j.ID)
	}
	if j.State.Ended() && !r.wasState.Ended() {
		tx.ended = append(tx.ended, j.Job)
	}
	r.wasState, r.wasAttempt = j.State, j.Attempt
	tx.jobs.add(j.ID)
	return nil
}

func micro(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMicro()
}

func fromMicro(us int64) time.Time {
	if us == 0 {
		return time.Time{}
	}
	return time.UnixMicro(us).UTC()
}

func toInt(b bool) int64 {
	if b {
		return 1
	}
	return 0
}

func nullInt(p *int) sql.NullInt64 {
	if p == nil {
		return sql.NullInt64{}
	}
	return sql.NullInt64{Int64: int64(*p), Valid: true}
}

// toJSON is v's text, or "" when it has nothing in it.
func toJSON(v any, n int) string {
	if n == 0 {
		return ""
	}
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // plain data always has a text
	}
	return string(b)
}

func fromJSON(text string, v any) error {
	if text == "" {
		return nil
	}
	return json.Unmarshal([]byte(text), v)
}

func splitIDs(text string) []string {
	if text == "" {
		return nil
	}
	return strings.Split(text, " ")
}
