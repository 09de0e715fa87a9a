// Package queue holds the rules of the queue: job states, matching, ordering,
// what blocks a job, endings. It is pure: no clock (time is an argument), no
// I/O, no goroutine, no lock. Package store applies it to rows.
//
// # States
//
//	          Assign              Ack
//	queued ───────────▶ assigned ─────▶ running
//	 │  ▲                │   │            │
//	 │  └───── Requeue ──┘   │            │ Finish: success, error or canceled
//	 │                       │            │ Lose:   error, runner_lost
//	 │ Cancel, Supersede     │            │ Cancel with force: canceled
//	 │ Expire, Abandon       │            │
//	 │ DependencyFailed      ▼            ▼
//	 └──────────────────▶ success | error | canceled
//
// What moves a job on: queued, a runner that matches and has room (or its
// expiry, or an operator); assigned, the runner's acknowledgement, or its
// refusal or silence, which put it back (the next assignment is a new
// attempt); running, the runner's result, or the end of its lease. A result
// is also taken from an assigned job: "running" is recorded lazily, and a
// result proves it.
//
// An end is final. Every end goes through [Job.End], and nothing else sets an
// ended state.
//
// # What blocks a queued job
//
// In this order, the first that applies:
//
//   - a dependency that has not ended;
//   - a job of the same singleton that is assigned or running. (One that is
//     queued is superseded: it ends, and the newer one gets its place.);
//   - for deploy, release and destroy, another one of the same project, app
//     and workspace that is assigned or running, or that would itself be
//     ready and comes first.
//
// A job that nothing blocks is ready. Ready jobs are handed out by priority,
// higher first, then by place, older first.
package queue

import (
	"time"

	"github.com/waypointd/waypoint/mux/wire"
)

// Blocked says what keeps a queued job from being handed out; "" is nothing.
type Blocked string

// What may block a job.
const (
	Ready        Blocked = ""
	ByDependency Blocked = "dependency" // a job it depends on has not ended
	BySerial     Blocked = "serialized" // another deploy, release or destroy of this app and workspace is in progress or before it
	BySingleton  Blocked = "singleton"  // one of the same singleton is assigned or running
)

// Job is a job and what the queue needs to know of it besides.
type Job struct {
	wire.Job

	// Place is the position in the queue: the job's own id, or that of the
	// oldest job of its singleton that it replaced.
	Place string

	Blocked                Blocked // of a queued job; Ready in any other state
	Waiting                int     // dependencies that have not ended
	AllowDependencyFailure bool
	IdempotencyKey         string

	// Uses is the job whose record (artifact, deployment) this one works on,
	// known from its first assignment on.
	Uses string
}

// New makes the queued job of a spec. The spec's dependencies must be ids by
// now. Blocked and Waiting are for the caller to set.
func New(id string, spec wire.JobSpec, now time.Time) *Job {
	j := &Job{
		Job: wire.Job{
			ID:        id,
			Operation: spec.Operation,
			State:     wire.Queued,
			Project:   spec.Project,
			App:       spec.App,
			Workspace: spec.Workspace,
			Profile:   spec.Profile,
			Target:    spec.Target,
			QueuedAt:  now,
			DependsOn: spec.DependsOn,
			Singleton: spec.Singleton,
			Priority:  spec.Priority,
			Command:   spec.Command,
		},
		Place:                  id,
		AllowDependencyFailure: spec.AllowDependencyFailure,
		IdempotencyKey:         spec.IdempotencyKey,
	}
	if spec.ExpiresIn > 0 {
		j.ExpiresAt = now.Add(time.Duration(spec.ExpiresIn))
	}
	return j
}

// SerialKey is what the job's operation does one at a time; "" is nothing.
func (j *Job) SerialKey() string {
	switch j.Operation {
	case wire.OpDeploy, wire.OpRelease, wire.OpDestroy:
		// No name has a line feed in it (see CheckSpec).
		return j.Project + "\n" + j.App + "\n" + j.Workspace
	}
	return ""
}

// Active reports whether a runner has the job: it is assigned or running.
func (j *Job) Active() bool { return j.State == wire.Assigned || j.State == wire.Running }

// IsExpired reports whether a queued job's time has come.
func (j *Job) IsExpired(now time.Time) bool {
	return j.State == wire.Queued && !j.ExpiresAt.IsZero() && !j.ExpiresAt.After(now)
}

// Before reports whether j is handed out before k when both are ready.
func (j *Job) Before(k *Job) bool {
	if j.Priority != k.Priority {
		return j.Priority > k.Priority
	}
	return j.Place < k.Place
}
