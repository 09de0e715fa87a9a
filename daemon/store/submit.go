package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/waypointd/waypoint/daemon/queue"
	"github.com/waypointd/waypoint/mux/wire"
)

const (
	maxSubmit = 1000      // jobs in a batch
	maxSpec   = 512 << 10 // bytes of a spec's JSON
)

const (
	selectIdempotent = `SELECT ` + jobColumns + ` FROM jobs WHERE idempotency_key = $1 AND idempotency_key <> ''`
	insertDependency = `INSERT INTO dependencies (dependency_id, job_id) VALUES ($1, $2)`
)

// Submit queues jobs, all or none, and returns them in the same order; for a
// known idempotency key the existing job. They may depend on one another by
// "#N". BadUsage, TooLarge, NotFound (unknown dependency, artifact or
// deployment), Conflict (cycle).
func (tx *Tx) Submit(specs []wire.JobSpec, now time.Time) ([]wire.Job, error) {
	return tx.SubmitBy("", specs, now)
}

// Known reports whether there is a job of an idempotency key, which Submit would find again.
func (tx *Tx) Known(key string) (bool, error) {
	if err := tx.lockRules(); err != nil || key == "" {
		return false, err
	}
	r, err := readJob(tx, selectIdempotent, key)
	if err != nil {
		return false, fmt.Errorf("look for idempotency key: %w", err)
	}
	return r != nil, nil
}

// SubmitBy is Submit for a user, whose name stays with the jobs.
func (tx *Tx) SubmitBy(by string, specs []wire.JobSpec, now time.Time) ([]wire.Job, error) {
	return tx.submit(specs, origin{by: by}, now)
}

// origin is where a job is from.
type origin struct {
	by      string // the user's name
	retryOf string // the job that it repeats
}

func (tx *Tx) submit(specs []wire.JobSpec, from origin, now time.Time) ([]wire.Job, error) {
	if len(specs) == 0 {
		return nil, wire.Errorf(wire.BadUsage, "no job")
	}
	if len(specs) > maxSubmit {
		return nil, wire.Errorf(wire.TooLarge, "%d jobs are more than %d", len(specs), maxSubmit)
	}
	within := make([][]int, len(specs)) // the jobs of the batch that each depends on
	for i := range specs {
		if err := queue.CheckSpec(&specs[i]); err != nil {
			return nil, err
		}
		for _, dep := range specs[i].DependsOn {
			n, ok, err := queue.ParseBatchRef(dep, len(specs))
			if err != nil {
				return nil, err
			}
			if ok {
				within[i] = append(within[i], n)
			}
		}
	}
	order, err := queue.Order(within)
	if err != nil {
		return nil, err
	}
	if err := tx.lockRules(); err != nil {
		return nil, err
	}
	ids := make([]string, len(specs)) // place in the queue is place in the batch
	for i := range ids {
		ids[i] = tx.s.ids.next(now)
	}
	for _, i := range order {
		spec := specs[i]
		if spec.IdempotencyKey != "" {
			known, err := readJob(tx, selectIdempotent, spec.IdempotencyKey)
			if err != nil {
				return nil, fmt.Errorf("look for idempotency key: %w", err)
			}
			if known != nil {
				ids[i] = known.ID
				continue
			}
		}
		if spec.Workspace == "" {
			spec.Workspace = "default"
		}
		spec.DependsOn = resolve(spec.DependsOn, ids)
		if err := tx.checkNamed(&spec); err != nil {
			return nil, err
		}
		j, err := tx.enqueue(ids[i], spec, from, now)
		if err != nil {
			return nil, err
		}
		if len(specs) == 1 {
			return []wire.Job{j.Job}, nil
		}
	}
	jobs := make([]wire.Job, len(ids))
	for i, id := range ids {
		r, err := getJob(tx, id)
		if err != nil {
			return nil, err
		}
		jobs[i] = r.Job.Job
	}
	return jobs, nil
}

// resolve replaces "#N" by ids and drops repetitions.
func resolve(deps, ids []string) []string {
	var out []string
	for _, dep := range deps {
		if n, ok, _ := queue.ParseBatchRef(dep, len(ids)); ok {
			dep = ids[n]
		}
		if !slices.Contains(out, dep) {
			out = append(out, dep)
		}
	}
	return out
}

// enqueue adds a job whose dependencies are ids. It may end at once, if one
// of them has already ended badly.
func (tx *Tx) enqueue(id string, spec wire.JobSpec, from origin, now time.Time) (*queue.Job, error) {
	text, err := json.Marshal(&spec)
	if err != nil {
		return nil, fmt.Errorf("write job: %w", err)
	}
	if len(text) > maxSpec {
		return nil, wire.Errorf(wire.TooLarge, "a job of %d bytes is over the limit of %d", len(text), maxSpec)
	}
	j := queue.New(id, spec, now.Truncate(time.Microsecond))
	j.RetryOf, j.QueuedBy = from.retryOf, from.by
	deps, failed, err := tx.dependencies(j)
	if err != nil {
		return nil, err
	}
	if failed == nil && j.Singleton != "" {
		if err := tx.supersede(j, now); err != nil {
			return nil, err
		}
		// The one that was superseded may have been a dependency.
		if deps, failed, err = tx.dependencies(j); err != nil {
			return nil, err
		}
	}
	if failed != nil {
		if err := j.DependencyFailed(failed, now); err != nil {
			return nil, err
		}
	} else {
		j.Waiting = len(deps)
		if err := tx.decide(j); err != nil {
			return nil, err
		}
		tx.ready = tx.ready || j.Blocked == queue.Ready
	}
	if err := tx.insert(j, string(text)); err != nil {
		return nil, err
	}
	if j.State.Ended() {
		return j, nil
	}
	for _, dep := range j.DependsOn { // also those that have ended: they are not pruned before j
		if _, err := tx.exec(insertDependency, dep, id); err != nil {
			return nil, fmt.Errorf("queue job: %w", err)
		}
	}
	return j, nil
}

// dependencies are the jobs that j waits for, and one that has ended badly if
// j minds.
func (tx *Tx) dependencies(j *queue.Job) (waiting []string, failed *queue.Job, err error) {
	for _, id := range j.DependsOn {
		dep, err := readJob(tx, selectJob, id)
		if err != nil {
			return nil, nil, err
		}
		switch {
		case dep == nil:
			return nil, nil, wire.Errorf(wire.NotFound, "there is no job %q to depend on", id)
		case !dep.State.Ended():
			waiting = append(waiting, id)
		case dep.State != wire.Success && !j.AllowDependencyFailure && failed == nil:
			failed = &dep.Job
		}
	}
	return waiting, failed, nil
}

const selectRetry = `SELECT id FROM jobs WHERE retry_of = $1 AND retry_of <> '' ORDER BY id DESC LIMIT 1`

// Retry queues the job of an ended one's spec anew. A dependency that did not
// succeed is replaced by its own newest retry; if there is none, or that one
// failed too, it is left out, since the operator asks for this job alone. (A
// deploy whose build is left out takes the newest artifact.) The idempotency
// key is not taken over. A job that has not ended is a Conflict.
func (tx *Tx) Retry(id string, now time.Time) (wire.Job, error) { return tx.RetryBy("", id, now) }

// RetryBy is Retry for a user, whose name stays with the job.
func (tx *Tx) RetryBy(by, id string, now time.Time) (wire.Job, error) {
	if err := tx.lockRules(); err != nil {
		return wire.Job{}, err
	}
	old, err := getJob(tx, id)
	if err != nil {
		return wire.Job{}, err
	}
	if !old.State.Ended() {
		return wire.Job{}, wire.Errorf(wire.Conflict, "job %s has not ended, it is %s", id, old.State).
			WithHint("waypoint job wait %s, or end it with: waypoint job cancel %s", id, id)
	}
	spec, err := getSpec(tx, id)
	if err != nil {
		return wire.Job{}, err
	}
	spec.IdempotencyKey = ""
	var deps []string
	for _, dep := range spec.DependsOn {
		dep, err := tx.retriedDependency(dep, spec.AllowDependencyFailure)
		if err != nil {
			return wire.Job{}, err
		}
		if dep != "" {
			deps = append(deps, dep)
		}
	}
	spec.DependsOn = deps
	jobs, err := tx.submit([]wire.JobSpec{spec}, origin{by: by, retryOf: id}, now)
	if err != nil {
		return wire.Job{}, err
	}
	return jobs[0], nil
}

// retriedDependency is what a retried job depends on in place of id; "" is
// nothing.
func (tx *Tx) retriedDependency(id string, allowFailure bool) (string, error) {
	for {
		dep, err := readJob(tx, selectJob, id)
		if err != nil {
			return "", err
		}
		if dep == nil {
			return "", nil // pruned
		}
		if !dep.State.Ended() || dep.State == wire.Success {
			return id, nil
		}
		var next string
		switch err := one(tx, selectRetry, []any{id}, &next); {
		case errors.Is(err, errNoRow):
			if allowFailure {
				return id, nil
			}
			return "", nil
		case err != nil:
			return "", fmt.Errorf("look for a retry of job %s: %w", id, err)
		}
		id = next
	}
}
