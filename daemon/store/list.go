package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/waypointd/waypoint/daemon/queue"
	"github.com/waypointd/waypoint/mux/wire"
)

// Jobs are the jobs that a filter selects, newest first. An unknown After is
// NotFound.
func (s *Store) Jobs(ctx context.Context, f wire.JobFilter) ([]wire.Job, error) {
	return s.JobsWithin(ctx, f, wire.Limits{})
}

// JobsWithin is Jobs for whom there are no others than those within limits.
func (s *Store) JobsWithin(ctx context.Context, f wire.JobFilter, l wire.Limits) ([]wire.Job, error) {
	limit, err := pageLimit(f.Limit)
	if err != nil {
		return nil, err
	}
	q := s.read(ctx)
	var w where
	if f.After != "" {
		var project, workspace string
		switch err := one(q, `SELECT project, workspace FROM jobs WHERE id = $1`, []any{f.After}, &project, &workspace); {
		case errors.Is(err, errNoRow), err == nil && !l.Allow(project, workspace):
			return nil, notFound("job", f.After)
		case err != nil:
			return nil, fmt.Errorf("list jobs: %w", err)
		}
		w.add("id < ", f.After)
	}
	// The literal conditions are those of the partial indexes.
	switch f.State {
	case "":
	case wire.Queued:
		w.addLiteral("finished_at = 0 AND state = 'queued' AND runner_id = ''")
	case wire.Assigned, wire.Running:
		w.addLiteral("finished_at = 0")
		w.add("state = ", string(f.State))
	case wire.Success, wire.Failed, wire.Canceled:
		w.addLiteral("finished_at > 0")
		w.add("state = ", string(f.State))
	default:
		return nil, wire.Errorf(wire.BadUsage, "%q is not the state of a job", f.State)
	}
	if f.Runner != "" {
		w.addLiteral("runner_id <> ''")
		w.add("runner_id = ", f.Runner)
	}
	if f.Project != "" {
		w.addLiteral("project <> ''")
		w.add("project = ", f.Project)
	}
	w.addText("operation = ", string(f.Operation))
	w.addText("app = ", f.App)
	w.addText("workspace = ", f.Workspace)
	w.within(l)
	rows, err := readJobs(q, `SELECT `+jobColumns+` FROM jobs`+w.String()+` ORDER BY id DESC LIMIT `+w.param(limit), w.args...)
	if err != nil {
		return nil, fmt.Errorf("list jobs: %w", err)
	}
	return plain(rows), nil
}

func plain(rows []*row) []wire.Job {
	out := make([]wire.Job, len(rows))
	for i, r := range rows {
		out[i] = r.Job.Job
	}
	return out
}

const (
	countLive  = `SELECT state, COUNT(*) FROM jobs WHERE finished_at = 0 GROUP BY state`
	countEnded = `SELECT state, COUNT(*) FROM jobs WHERE finished_at > 0 GROUP BY state`
)

// LiveCounts is JobCounts of the jobs that have not ended.
func (s *Store) LiveCounts(ctx context.Context) (map[wire.State]int, error) {
	counts := map[wire.State]int{}
	if err := count(s.read(ctx), countLive, counts); err != nil {
		return nil, fmt.Errorf("count jobs: %w", err)
	}
	return counts, nil
}

// JobCounts is how many jobs there are of each state that has any.
func (s *Store) JobCounts(ctx context.Context) (map[wire.State]int, error) {
	counts := map[wire.State]int{}
	for _, text := range []string{countLive, countEnded} {
		if err := count(s.read(ctx), text, counts); err != nil {
			return nil, fmt.Errorf("count jobs: %w", err)
		}
	}
	return counts, nil
}

func count[K ~string](q querier, text string, counts map[K]int) error {
	return each(q, text, nil, func(rows *sql.Rows) error {
		var (
			k K
			n int
		)
		if err := rows.Scan(&k, &n); err != nil {
			return err
		}
		counts[k] += n
		return nil
	})
}

// Waiting are queued jobs that wait for the same.
type Waiting struct {
	Blocked queue.Blocked
	Target  wire.Target // of ready ones
	Jobs    int
	Oldest  time.Time // when the first of them was queued
}

const (
	countReady   = `SELECT target, COUNT(*), MIN(queued_at) FROM jobs WHERE state = 'queued' AND blocked = '' GROUP BY target`
	countBlocked = `SELECT blocked, COUNT(*), MIN(queued_at) FROM jobs WHERE state = 'queued' AND blocked <> '' GROUP BY blocked`
)

// Waiting counts all queued jobs. It takes longer the more there are.
func (s *Store) Waiting(ctx context.Context) (list []Waiting, err error) {
	q := s.read(ctx)
	for _, text := range []string{countReady, countBlocked} {
		err := each(q, text, nil, func(rows *sql.Rows) (err error) {
			var (
				key    string
				w      Waiting
				oldest int64
			)
			if err := rows.Scan(&key, &w.Jobs, &oldest); err != nil {
				return err
			}
			w.Oldest = fromMicro(oldest)
			if text == countBlocked {
				w.Blocked = queue.Blocked(key)
			} else if w.Target, err = queue.ParseTarget(key); err != nil {
				return err
			}
			list = append(list, w)
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("count queued jobs: %w", err)
		}
	}
	return list, nil
}

const selectNextExpiry = `SELECT expires_at FROM jobs WHERE state = 'queued' AND expires_at > 0 ORDER BY expires_at LIMIT 1`

// NextExpiry is when the next queued job expires; zero: none.
func (s *Store) NextExpiry(ctx context.Context) (time.Time, error) {
	var at int64
	switch err := one(s.read(ctx), selectNextExpiry, nil, &at); {
	case errors.Is(err, errNoRow):
		return time.Time{}, nil
	case err != nil:
		return time.Time{}, fmt.Errorf("read next expiry: %w", err)
	}
	return fromMicro(at), nil
}

// Active is an assigned or running job.
type Active struct {
	wire.JobRef
	RunnerID        string
	State           wire.State
	CancelRequested bool
	Keeper          string // the server whose lease it has; "" where the store is not shared
	Spool           string // see queue.Runner, of when it was assigned
}

// activeColumns are those of Active, as readActive reads them.
const activeColumns = `id, attempt, runner_id, state, cancel_at, keeper, spool`

const (
	selectActive = `SELECT ` + activeColumns + ` FROM jobs
	WHERE finished_at = 0 AND state IN ('assigned', 'running') ORDER BY id`
	countHeld = `SELECT runner_id, COUNT(*) FROM jobs
	WHERE finished_at = 0 AND state IN ('assigned', 'running') GROUP BY runner_id`
	selectAwaited = `SELECT DISTINCT target FROM jobs WHERE state = 'queued' AND target >= 'id:' AND target < 'id;' ORDER BY target`
)

// Held is how many jobs each runner has, as of this transaction: those that
// have ended in it count no more.
func (tx *Tx) Held() (map[string]int, error) {
	held := map[string]int{}
	if err := count(tx, countHeld, held); err != nil {
		return nil, fmt.Errorf("count jobs in progress: %w", err)
	}
	return held, nil
}

// Held is Tx.Held as of now.
func (s *Store) Held(ctx context.Context) (map[string]int, error) {
	held := map[string]int{}
	if err := count(s.read(ctx), countHeld, held); err != nil {
		return nil, fmt.Errorf("count jobs in progress: %w", err)
	}
	return held, nil
}

// Awaited are the runners that queued jobs want by their ids.
func (s *Store) Awaited(ctx context.Context) (ids []string, err error) {
	targets, err := strs(s.read(ctx), selectAwaited)
	if err != nil {
		return nil, fmt.Errorf("read targets of queued jobs: %w", err)
	}
	for _, text := range targets {
		target, err := queue.ParseTarget(text)
		if err != nil {
			return nil, err
		}
		ids = append(ids, target.ID)
	}
	return ids, nil
}

// Active are the assigned and running jobs.
func (s *Store) Active(ctx context.Context) ([]Active, error) {
	out, err := readActive(s.read(ctx), selectActive)
	if err != nil {
		return nil, fmt.Errorf("read jobs in progress: %w", err)
	}
	return out, nil
}

// QueueFacts is what `job why` needs of a queued job.
type QueueFacts struct {
	Job     wire.Job
	Blocked queue.Blocked
	By      []wire.Job // the unfinished dependencies, or the job in the way
	Ahead   int        // ready jobs of the same target before it
}

const (
	// Dependencies that a list names; there may be a thousand.
	selectUnfinished = `SELECT ` + jobColumns + ` FROM jobs WHERE finished_at = 0 AND id IN
	(SELECT dependency_id FROM dependencies WHERE job_id = $1) ORDER BY id LIMIT 20`
	selectInTheWay = `SELECT ` + jobColumns + ` FROM jobs
	WHERE singleton = $1 AND singleton <> '' AND finished_at = 0 AND state IN ('assigned', 'running') ORDER BY id LIMIT 1`
	countAhead = `SELECT COUNT(*) FROM jobs WHERE state = 'queued' AND blocked = '' AND target = $1
	AND (priority > $2 OR priority = $2 AND place < $3)`
)

// QueueFacts says what the queue knows of a job; of one that is not queued
// only the job itself.
func (s *Store) QueueFacts(ctx context.Context, id string) (QueueFacts, error) {
	q := s.read(ctx)
	r, err := getJob(q, id)
	if err != nil {
		return QueueFacts{}, err
	}
	f := QueueFacts{Job: r.Job.Job, Blocked: r.Blocked}
	if r.State != wire.Queued {
		return f, nil
	}
	var by []*row
	switch r.Blocked {
	case queue.ByDependency:
		by, err = readJobs(q, selectUnfinished, id)
	case queue.BySingleton:
		by, err = readJobs(q, selectInTheWay, r.Singleton)
	case queue.BySerial:
		by, err = readJobs(q, selectHolder, r.SerialKey(), id)
	case queue.Ready:
		err = one(q, countAhead, []any{queue.TargetText(r.Target), r.Priority, r.Place}, &f.Ahead)
	}
	if err != nil {
		return QueueFacts{}, fmt.Errorf("read what is before job %s: %w", id, err)
	}
	f.By = plain(by)
	return f, nil
}
