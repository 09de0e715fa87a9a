package queue

import (
	"fmt"
	"strings"
	"time"

	"github.com/waypointd/waypoint/mux/wire"
)

// Assign gives a ready job to a runner: a new attempt.
func (j *Job) Assign(runner string, now time.Time) error {
	if j.State != wire.Queued || j.Blocked != Ready {
		return j.refuse("assign")
	}
	if j.IsExpired(now) {
		return wire.Errorf(wire.Conflict, "assign job %s: it has expired", j.ID)
	}
	j.State = wire.Assigned
	j.Attempt++
	j.RunnerID = runner
	j.AssignedAt = j.moment(now)
	return nil
}

// Ack records that the runner has the attempt and may start it.
func (j *Job) Ack(attempt int, runner string, now time.Time) error {
	if err := j.check("acknowledge", attempt, runner); err != nil {
		return err
	}
	if j.State != wire.Assigned {
		return j.refuse("acknowledge")
	}
	j.State = wire.Running
	j.StartedAt = j.moment(now)
	return nil
}

// Requeue takes back an attempt that was not started. A job whose end was
// asked for in the meantime ends instead.
func (j *Job) Requeue(attempt int, runner string, now time.Time) error {
	if err := j.check("requeue", attempt, runner); err != nil {
		return err
	}
	if j.State != wire.Assigned {
		return j.refuse("requeue")
	}
	if !j.CancelRequested.IsZero() {
		j.End(wire.Canceled, wire.ReasonCanceled, "canceled before it was started", now)
		return nil
	}
	j.State = wire.Queued
	j.RunnerID = ""
	j.AssignedAt = time.Time{}
	return nil
}

// Finish ends an attempt with its runner's result. A success stays one
// although the job's end was asked for.
func (j *Job) Finish(attempt int, runner string, r wire.Result, now time.Time) error {
	if err := j.check("finish", attempt, runner); err != nil {
		return err
	}
	if !j.Active() {
		return j.refuse("finish")
	}
	if !r.State.Ended() {
		return wire.Errorf(wire.BadUsage, "finish job %s: %q is not the state of a result", j.ID, r.State)
	}
	if j.StartedAt.IsZero() {
		j.StartedAt = j.moment(now)
	}
	j.ExitCode, j.Signal = r.ExitCode, r.Signal
	j.Outputs, j.Usage = r.Outputs, r.Usage
	j.End(r.State, reasonOf(r), r.Error, now)
	return nil
}

// reasonOf is the reason of a result, made one that fits its state.
func reasonOf(r wire.Result) wire.Reason {
	switch r.State {
	case wire.Success:
		return ""
	case wire.Canceled:
		return wire.ReasonCanceled
	}
	switch r.Reason {
	case wire.ReasonTimeout, wire.ReasonOOM, wire.ReasonRunnerLost:
		return r.Reason
	}
	return wire.ReasonFailed
}

// Lose ends an attempt whose runner is gone, or has it no more.
func (j *Job) Lose(attempt int, why string, now time.Time) error {
	if j.Attempt != attempt {
		return j.stale("lose", attempt)
	}
	if !j.Active() {
		return j.refuse("lose")
	}
	j.End(wire.Failed, wire.ReasonRunnerLost, why, now)
	return nil
}

// Cancel asks for the job's end. A queued job ends at once; one that a runner
// has is marked, and with force ends at once; one that has ended stays as it
// is. It reports whether anything changed.
func (j *Job) Cancel(force bool, now time.Time) bool {
	if j.State.Ended() {
		return false
	}
	changed := j.CancelRequested.IsZero()
	if changed {
		j.CancelRequested = j.moment(now)
	}
	switch {
	case j.State == wire.Queued:
		j.End(wire.Canceled, wire.ReasonCanceled, "canceled while it was queued", now)
		return true
	case force:
		j.End(wire.Canceled, wire.ReasonCanceled, "canceled by force", now)
		return true
	}
	return changed
}

// Supersede ends a queued job whose singleton has a newer one, by.
func (j *Job) Supersede(by string, now time.Time) error {
	if j.State != wire.Queued {
		return j.refuse("supersede")
	}
	j.End(wire.Canceled, wire.ReasonSuperseded, fmt.Sprintf(textSuperseded, jobName(by)), now)
	return nil
}

// Expire ends a queued job whose time has come.
func (j *Job) Expire(now time.Time) error {
	if j.State != wire.Queued {
		return j.refuse("expire")
	}
	if !j.IsExpired(now) {
		return wire.Errorf(wire.Conflict, "expire job %s: its time has not come", j.ID)
	}
	j.End(wire.Failed, wire.ReasonExpired, "no runner took it in time", now)
	return nil
}

// Abandon ends a queued job that nobody will ever take.
func (j *Job) Abandon(why string, now time.Time) error {
	if j.State != wire.Queued {
		return j.refuse("abandon")
	}
	j.End(wire.Failed, wire.ReasonRunnerLost, why, now)
	return nil
}

// Unassignable ends a ready job that cannot be handed to anybody, why.
func (j *Job) Unassignable(why string, now time.Time) error {
	if j.State != wire.Queued || j.Blocked != Ready {
		return j.refuse("hand out")
	}
	j.End(wire.Failed, wire.ReasonFailed, why, now)
	return nil
}

// DependencyFailed ends a queued job that needed dep's success.
func (j *Job) DependencyFailed(dep *Job, now time.Time) error {
	if j.State != wire.Queued {
		return j.refuse("end for its dependency")
	}
	j.End(wire.Failed, wire.ReasonDependency,
		fmt.Sprintf(textDependency, jobName(dep.ID)+" ("+string(dep.Operation)+")", dep.outcome()), now)
	return nil
}

// The ends of a job that another one is to blame for.
const (
	textSuperseded = "%s of the same singleton took its place"
	textDependency = "%s that it depends on did not succeed: %s"
)

func jobName(id string) string { return "job " + id }

// Blamed is the job that the text of an end names, "" for none.
func Blamed(j *wire.Job) string {
	if j.Reason != wire.ReasonSuperseded && j.Reason != wire.ReasonDependency {
		return ""
	}
	rest, _ := strings.CutPrefix(j.Error, jobName(""))
	id, _, _ := strings.Cut(rest, " ")
	return id
}

// Unnamed is the text of an end of which another job is to blame, without saying
// which: other takes its place.
func Unnamed(j *wire.Job, other string) string {
	if j.Reason == wire.ReasonSuperseded {
		return fmt.Sprintf(textSuperseded, other)
	}
	text, _, _ := strings.Cut(fmt.Sprintf(textDependency, other, ""), ":")
	return text
}

// outcome is the end of a job in a few words.
func (j *Job) outcome() string {
	if j.Reason == "" || string(j.Reason) == string(j.State) {
		return string(j.State)
	}
	return string(j.State) + ", " + string(j.Reason)
}

// moment is now, or where the clock has been set back the last moment of the
// job's that is on record: nothing takes less than no time.
func (j *Job) moment(now time.Time) time.Time {
	for _, t := range []time.Time{j.QueuedAt, j.AssignedAt, j.StartedAt, j.CancelRequested} {
		if t.After(now) {
			now = t
		}
	}
	return now
}

// End is the one way for a job to end.
func (j *Job) End(state wire.State, reason wire.Reason, text string, now time.Time) {
	j.State, j.Reason, j.Error = state, reason, shorten(text)
	j.FinishedAt = j.moment(now)
	j.Blocked, j.Waiting = Ready, 0
}

// maxError bounds the text of an end, in bytes: it may name a command that is
// as long as a spec may be, and a job has to fit into a message with it.
const maxError = 4 << 10

func shorten(text string) string {
	if len(text) <= maxError {
		return text
	}
	return strings.ToValidUTF8(text[:maxError], "") + " …"
}

// check refuses a message about another attempt or from another runner.
func (j *Job) check(verb string, attempt int, runner string) error {
	if j.Attempt != attempt {
		return j.stale(verb, attempt)
	}
	if j.RunnerID != runner {
		return wire.Errorf(wire.Conflict, "%s job %s: runner %q does not have it", verb, j.ID, runner)
	}
	return nil
}

func (j *Job) stale(verb string, attempt int) error {
	return wire.Errorf(wire.Conflict, "%s job %s: attempt %d is not the present one (%d)", verb, j.ID, attempt, j.Attempt)
}

func (j *Job) refuse(verb string) error {
	what := string(j.State)
	if j.State == wire.Queued && j.Blocked != Ready {
		what += ", blocked: " + string(j.Blocked)
	}
	return wire.Errorf(wire.Conflict, "%s job %s: it is %s", verb, j.ID, what)
}
