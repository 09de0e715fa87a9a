package daemon

import (
	"bytes"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"time"

	"github.com/waypointd/waypoint/daemon/queue"
	"github.com/waypointd/waypoint/mux/wire"
)

// nameOf is a job's name, which unlike its id the seed says.
func (w *world) nameOf(j wire.Job) string {
	if name := w.names[j.ID]; name != "" {
		return name
	}
	name := j.Command[0]
	if j.RetryOf != "" {
		name = fmt.Sprintf("%sr%d", w.names[j.RetryOf], w.retries[j.RetryOf])
		w.retries[j.RetryOf]++
	}
	for id, other := range w.names {
		if _, gone := w.gone[id]; other == name && !gone {
			w.violate("job %s is two on record: %s and %s", name, w.seen[id].State, j.State)
		}
	}
	w.names[j.ID] = name
	return name
}

// job is a job on record, or as it was when it was removed.
func (w *world) job(id string) wire.Job {
	if j, ok := w.seen[id]; ok {
		return j
	}
	return w.gone[id]
}

// ref is an attempt, as the history has it.
func (w *world) ref(ref wire.JobRef) string {
	return fmt.Sprintf("%s/%d", w.names[ref.Job], ref.Attempt)
}

func rank(s wire.State) int {
	return slices.Index([]wire.State{wire.Queued, wire.Assigned, wire.Running}, s) // -1: ended
}

// observe compares the record with what it was.
func (w *world) observe(jobs []wire.Job, now time.Time) {
	there := map[string]wire.Job{}
	for _, j := range jobs {
		there[j.ID] = j
	}
	for _, id := range slices.Sorted(maps.Keys(w.seen)) {
		if _, ok := there[id]; ok {
			continue
		}
		if why := w.mayGo(w.seen[id], there); why != "" {
			w.violate("job %s was on record (%s) and is not: %s", w.names[id], w.seen[id].State, why)
		}
		w.say("record: %s is removed", w.names[id])
		w.count["removed"]++
	}
	maps.DeleteFunc(w.seen, func(id string, j wire.Job) bool {
		_, ok := there[id]
		if !ok {
			w.gone[id] = j
		}
		return !ok
	})
	for _, j := range jobs {
		name := w.nameOf(j)
		w.checkMoments(name, j)
		was, known := w.seen[j.ID]
		w.seen[j.ID] = j
		if !known {
			w.count["job"]++
			was = wire.Job{State: wire.Queued}
		} else {
			w.checkStep(name, was, j)
		}
		if known && was.State == j.State && was.Attempt == j.Attempt {
			continue
		}
		text := fmt.Sprintf("record: %s is %s", name, j.State)
		if j.Attempt > 0 {
			text += fmt.Sprintf(", attempt %d of %s", j.Attempt, j.RunnerID)
		}
		if j.State.Ended() {
			text += fmt.Sprintf(" %s, %d bytes", j.Reason, j.LogBytes)
		}
		w.say("%s", text)
		if j.State == wire.Assigned && j.Attempt > was.Attempt {
			w.checkAssigned(name, j)
		}
		if j.State.Ended() && !was.State.Ended() {
			w.count[string(j.State)]++
			w.checkEnding(name, j, now)
		}
	}
	w.checkTogether(jobs)
}

// mayGo says why a job may not be removed, "" where it may; there is what is on record.
func (w *world) mayGo(j wire.Job, there map[string]wire.Job) string {
	keep, now := w.keep, w.life.clock.now()
	before := w.life.lookedAt.IsZero() // it was the life before, by its clock
	if before {
		keep = w.kept
	}
	switch {
	case !j.State.Ended():
		return "it has not ended"
	case keep == 0:
		return "nothing is removed"
	case !before && now.Before(j.FinishedAt.Add(keep)):
		return fmt.Sprintf("it ended %s ago, and is kept for %s", now.Round(0).Sub(j.FinishedAt), keep)
	}
	for _, id := range slices.Sorted(maps.Keys(there)) {
		o := there[id]
		if o.State.Ended() {
			continue
		}
		if slices.Contains(o.DependsOn, j.ID) {
			return fmt.Sprintf("%s depends on it", w.nameOf(o))
		}
		for of := o.RetryOf; of != ""; of = w.job(of).RetryOf {
			if of == j.ID {
				return fmt.Sprintf("%s is a retry of it", w.nameOf(o))
			}
		}
	}
	return ""
}

// checkStep holds what may become of one job.
func (w *world) checkStep(name string, was, is wire.Job) {
	switch {
	case was.State.Ended():
		if is.Reason == wire.ReasonRunnerLost && was.LateResult == nil && is.LogBytes > was.LogBytes {
			w.count["late output"]++
			was.LogBytes = is.LogBytes
		}
		if is.LateResult != nil && was.LateResult == nil {
			w.checkLate(name, is)
		} else if !reflect.DeepEqual(is.LateResult, was.LateResult) {
			w.violate("job %s had the late result %+v and has %+v", name, was.LateResult, is.LateResult)
		}
		if is.State != was.State || is.Reason != was.Reason || !is.FinishedAt.Equal(was.FinishedAt) || is.Attempt != was.Attempt || is.LogBytes != was.LogBytes {
			w.violate("job %s ended as %s %s, attempt %d, %d bytes at %s and is %s %s, attempt %d, %d bytes at %s", name, was.State, was.Reason,
				was.Attempt, was.LogBytes, was.FinishedAt, is.State, is.Reason, is.Attempt, is.LogBytes, is.FinishedAt)
		}
	case is.Attempt < was.Attempt:
		w.violate("job %s was at attempt %d and is at %d", name, was.Attempt, is.Attempt)
	case was.State == wire.Running && (is.Attempt != was.Attempt || rank(is.State) >= 0 && rank(is.State) < rank(was.State)):
		w.violate("job %s ran as attempt %d and is %s, attempt %d", name, was.Attempt, is.State, is.Attempt)
	case !was.CancelRequested.IsZero() && (is.State == wire.Queued || is.Attempt > was.Attempt):
		w.violate("the end of job %s was asked for, and it is %s, attempt %d", name, is.State, is.Attempt)
	}
}

// checkMoments holds that time does not go backwards for a job.
func (w *world) checkMoments(name string, j wire.Job) {
	last := j.QueuedAt
	for _, at := range []time.Time{j.AssignedAt, j.StartedAt, j.FinishedAt} {
		if at.IsZero() {
			continue
		}
		if at.Before(last) {
			w.violate("job %s: queued %s, assigned %s, started %s, ended %s", name, j.QueuedAt, j.AssignedAt, j.StartedAt, j.FinishedAt)
		}
		last = at
	}
	if at := j.CancelRequested; !at.IsZero() && (at.Before(j.QueuedAt) || j.State.Ended() && at.After(j.FinishedAt)) {
		w.violate("job %s: queued %s, its end asked for %s, ended %s", name, j.QueuedAt, at, j.FinishedAt)
	}
	if r := j.LateResult; r != nil && r.ReportedAt.Before(j.FinishedAt) {
		w.violate("job %s: lost %s, its late result reported %s", name, j.FinishedAt, r.ReportedAt)
	}
}

// checkTime holds that what time ends is ended. There may be no room to record
// that; and the server looks at the host's clock every half minute only, and at its
// own, while it waits for somebody, with each heartbeat.
func (l *life) checkTime() {
	w := l.w
	if w.full.Load() || l.dead.Load() || l.dying.Load() {
		l.overdue, l.unsure = map[string]time.Time{}, map[string]stay{}
		return
	}
	beat, lease := l.s.cfg().Heartbeat, l.s.cfg().Lease
	now := l.clock.now()
	for id, j := range w.seen {
		if j.State != wire.Queued || j.ExpiresAt.IsZero() || now.Before(j.ExpiresAt) {
			delete(l.overdue, id)
		} else if since, ok := l.overdue[id]; !ok {
			l.overdue[id] = time.Now()
		} else if time.Since(since) > clockPoll+2*clockRetry && time.Since(l.filled) > clockPoll+2*clockRetry {
			w.violate("job %s is queued, its time is over since %s", w.names[id], time.Since(since))
		}
		if j.State.Ended() || j.State == wire.Queued || w.orphans[wire.JobRef{Job: id, Attempt: j.Attempt}] {
			continue
		}
		k, is := l.worker(j.RunnerID), l.unsure[id]
		if j.State != wire.Assigned || k == nil {
			delete(l.unsure, id)
		} else if is.k != k || is.attempt != j.Attempt {
			l.unsure[id] = stay{k, j.Attempt, time.Now()}
		} else if late := l.s.cfg().AckTimeout + beat + 2*clockRetry; time.Since(is.since) > late && time.Since(l.filled) > late {
			w.violate("job %s is assigned to %s, which is there, for %s", w.names[id], j.RunnerID, time.Since(is.since))
		}
		for _, r := range w.runners {
			if r.id == j.RunnerID && time.Since(r.heard) > lease+beat+2*clockRetry && time.Since(l.filled) > beat+2*clockRetry {
				w.violate("job %s is %s, and %s was not heard of for %s", w.names[id], j.State, r.id, time.Since(r.heard))
			}
		}
	}
}

// stay is an attempt that is assigned while one session of its runner's works.
type stay struct {
	k       *simLink
	attempt int
	since   time.Time
}

// worker is the session of a runner's that works, nil for none.
func (l *life) worker(id string) *simLink {
	for _, k := range l.links {
		if k.m != nil && k.r.id == id && l.s.fleet.member(id) == k.m {
			return k
		}
	}
	return nil
}

// checkAssigned holds to whom a job may be given, and until when.
func (w *world) checkAssigned(name string, j wire.Job) {
	w.checkTarget(name, j)
	if k := w.life.worker(j.RunnerID); k != nil {
		w.spools[wire.JobRef{Job: j.ID, Attempt: j.Attempt}] = k.spool
		if k.drain {
			w.violate("job %s is given to %s, which is drained on its host", name, k.r.id)
		}
	}
	if !j.ExpiresAt.IsZero() && !j.AssignedAt.Before(j.ExpiresAt) {
		w.violate("job %s expired at %s, and was assigned at %s", name, j.ExpiresAt, j.AssignedAt)
	}
	for _, r := range w.runners {
		switch {
		case r.id != j.RunnerID:
		case r.rejected:
			w.violate("job %s is given to %s, which has been rejected", name, r.id)
		case r.drained:
			w.violate("job %s is given to %s, which is drained", name, r.id)
		case !w.life.lookedAt.Before(r.lasts):
			w.violate("job %s is given to %s after %s, whose last token was good until %s", name, r.id, w.life.lookedAt, r.lasts)
		}
	}
}

// checkTold holds that a runner whose session has begun, and which has followed
// all its orders, knows what is to become of what it runs, or waits to start.
func (r *simRunner) checkTold() {
	w := r.w
	k := r.link
	if k == nil || k.over || k.ctx.Err() != nil || k.begun.IsZero() || len(k.down) > 0 || len(k.up) > 0 || len(w.life.calls) > 0 || w.life.dead.Load() {
		return
	}
	for _, a := range r.has() {
		j := w.job(a.Job)
		switch {
		case a.started && !a.alive || w.orphans[a.JobRef] || a.report != nil && a.report.busy:
		case j.State.Ended() || j.State == wire.Queued || j.Attempt != a.Attempt:
			w.violate("%s has %s, which is %s at attempt %d, and has not been told", r.id, w.ref(a.JobRef), j.State, j.Attempt)
		case !j.CancelRequested.IsZero() && !a.cancel:
			w.violate("%s has %s, whose end was asked for, and has not been told", r.id, w.ref(a.JobRef))
		case a.alive && j.State == wire.Assigned && !w.full.Load() && time.Since(w.life.filled) > time.Minute && time.Since(k.begun) > time.Minute && time.Since(a.since) > time.Minute:
			w.violate("%s runs %s for %s, and the record says that it is assigned", r.id, w.ref(a.JobRef), time.Since(a.since))
		}
	}
}

// checkEnding holds why one job may end.
func (w *world) checkEnding(name string, j wire.Job, now time.Time) {
	a := w.tries[wire.JobRef{Job: j.ID, Attempt: j.Attempt}]
	said := func(state wire.State) bool { return a != nil && a.offered && a.result.State == state }
	switch {
	case j.State == wire.Success && !said(wire.Success), j.Reason == wire.ReasonFailed && !said(wire.Failed):
		w.violate("job %s is %s, and its runner did not say so", name, j.State)
	case (j.State == wire.Success || j.Reason == wire.ReasonFailed) && j.LogBytes != int64(len(a.out)):
		w.violate("job %s has %d bytes of output on record and wrote %d", name, j.LogBytes, len(a.out))
	case j.Reason == wire.ReasonExpired && (j.ExpiresAt.IsZero() || j.FinishedAt.Before(j.ExpiresAt) ||
		!w.life.lookedAt.IsZero() && w.life.clock.now().Before(j.ExpiresAt)): // the life before had another clock
		w.violate("job %s has expired at %s, and has time until %s", name, j.FinishedAt, j.ExpiresAt)
	case j.Reason == wire.ReasonRunnerLost:
		w.count["lost"]++
		lease, lost := w.life.s.cfg().Lease, now
		if !w.life.lookedAt.IsZero() {
			lost = j.FinishedAt.Add(-time.Duration(w.life.clock.shift.Load()))
		}
		for _, r := range w.runners {
			if r.id == j.RunnerID && !(a != nil && !a.held) && !(a != nil && a.offered && a.result.Reason == wire.ReasonRunnerLost) && now.Sub(r.since(lost)) < lease {
				ref := wire.JobRef{Job: j.ID, Attempt: j.Attempt}
				if w.orphans[ref] && !r.forgot.IsZero() && r.nobody(false) && now.Sub(r.forgot) < lease {
					w.violate("job %s is lost, and %s was forgotten %s ago and nobody admitted since", name, r.id, now.Sub(r.forgot))
				}
				if w.orphans[ref] || a == nil && w.spools[ref] != r.spool() {
					continue // its runner has been forgotten since, or does not know whether it was given it
				}
				w.violate("job %s is lost (%s), and %s had contact %s ago", name, j.Error, r.id, now.Sub(r.since(lost)))
			}
		}
	}
}

// checkTogether holds what jobs must not be at the same moment.
func (w *world) checkTogether(jobs []wire.Job) {
	active, waiting, serial, held := map[string]string{}, map[string]string{}, map[string]string{}, map[string]int{}
	once := func(m map[string]string, key, name, what string) {
		if other := m[key]; other != "" {
			w.violate("jobs %s and %s are both %s of %q", other, name, what, key)
		}
		m[key] = name
	}
	for _, j := range jobs {
		name := w.names[j.ID]
		going := j.State == wire.Assigned || j.State == wire.Running
		if j.Singleton != "" && going {
			once(active, j.Singleton, name, "active")
		}
		if j.Singleton != "" && j.State == wire.Queued {
			once(waiting, j.Singleton, name, "queued")
		}
		if key := (&queue.Job{Job: j}).SerialKey(); key != "" && going {
			once(serial, key, name, "at work")
		}
		if going {
			held[j.RunnerID]++
		}
		if !going && j.State != wire.Success {
			continue
		}
		for _, id := range j.DependsOn {
			if dep := w.job(id); !dep.State.Ended() || dep.State != wire.Success && !w.mayFail(name) {
				w.violate("job %s is %s, and %s that it depends on is %s", name, j.State, w.names[id], dep.State)
			}
		}
	}
	for _, r := range w.runners {
		if held[r.id] > r.slots() {
			w.violate("%s has %d jobs, and room for %d", r.id, held[r.id], r.slots())
		}
	}
}

// checkTarget holds that a job is given to whom it is for.
func (w *world) checkTarget(name string, j wire.Job) {
	for _, r := range w.runners {
		parity := j.Target.Labels["parity"]
		if r.id == j.RunnerID && (j.Target.ID != "" && j.Target.ID != r.id || parity != "" && parity != fmt.Sprint(r.n%2)) {
			w.violate("job %s is for %v, and is given to %s", name, j.Target, r.id)
		}
	}
}

// mayFail reports whether what a job depends on may fail.
func (w *world) mayFail(name string) bool {
	for _, k := range w.wishes {
		if i := slices.Index(k.names, name); i >= 0 {
			return k.specs[i].AllowDependencyFailure
		}
	}
	return true // a retry: it does without what has failed
}

// checkLate holds what may come late of a job that was lost.
func (w *world) checkLate(name string, j wire.Job) {
	w.count["late result"]++
	w.say("record: %s has a late result, %s, %d bytes", name, j.LateResult.State, j.LateResult.LogBytes)
	a := w.tries[wire.JobRef{Job: j.ID, Attempt: j.Attempt}]
	if r := j.LateResult; j.Reason != wire.ReasonRunnerLost || a == nil || !a.offered || r.State != a.result.State || r.Attempt != j.Attempt || r.LogBytes != int64(len(a.out)) || j.LogBytes != r.LogBytes {
		w.violate("job %s, %s %s with %d bytes, has the late result %+v", name, j.State, j.Reason, j.LogBytes, r)
	}
}

// recordedLate holds what a runner was told of its late result.
func (w *world) recordedLate(a *simTry) {
	w.say("%s: knows that the late result of %s is recorded", a.r.id, w.ref(a.JobRef))
	if j := w.job(a.Job); j.LateResult == nil || j.LateResult.State != a.result.State || j.LogBytes != int64(len(a.out)) {
		w.violate("%s was told that the late result of %s is recorded; on record is %+v", a.r.id, w.ref(a.JobRef), j.LateResult)
	}
	a.held, a.alive = false, false
}

// recorded holds what a runner was told of its result.
func (w *world) recorded(a *simTry) {
	w.say("%s: knows that %s is recorded", a.r.id, w.ref(a.JobRef))
	if a.r.nobody(false) {
		w.violate("the result of %s is recorded, and %s was forgotten and not admitted again", w.ref(a.JobRef), a.r.id)
	}
	if j := w.job(a.Job); j.State != a.result.State || j.Attempt != a.Attempt || a.safe != int64(len(a.out)) {
		w.violate("%s was told that %s is recorded as %s with %d bytes; on record is %s, attempt %d, %d bytes",
			a.r.id, w.ref(a.JobRef), a.result.State, len(a.out), j.State, j.Attempt, a.safe)
	}
	a.held, a.alive = false, false
}

// checkRead holds what a reader of output was given.
func (w *world) checkRead(ref wire.JobRef, chunks []wire.Data, length int64) {
	a, at := w.tries[ref], w.read[ref]
	if length < at {
		w.violate("output of %s was read up to %d and has %d bytes", w.ref(ref), at, length)
	}
	for _, c := range chunks {
		end := c.Offset + int64(len(c.Bytes))
		if c.Offset != at || a == nil || end > int64(len(a.out)) || !bytes.Equal(c.Bytes, a.out[c.Offset:end]) {
			w.violate("output of %s from %d on is %q at %d", w.ref(ref), at, c.Bytes, c.Offset)
			return
		}
		at = end
	}
	w.read[ref] = at
}

// checkAll holds what is left in the end.
func (w *world) checkAll() {
	for _, name := range slices.Sorted(maps.Keys(w.ids)) {
		if w.job(w.ids[name]).ID == "" {
			w.violate("job %s was acknowledged and is not on record", name)
		}
	}
	for _, id := range slices.Sorted(maps.Keys(w.seen)) {
		j := w.seen[id]
		if !j.State.Ended() {
			w.violate("job %s is %s in the end", w.names[id], j.State)
		}
		if j.Attempt == 0 {
			continue
		}
		ref := wire.JobRef{Job: id, Attempt: j.Attempt}
		w.read[ref] = 0
		chunks, length, err := w.life.s.store.Log(w.life.ctx, id, j.Attempt, 0, 1<<20)
		if err != nil || length != j.LogBytes {
			w.violate("output of %s: %d bytes, %d on record, %v", w.ref(ref), length, j.LogBytes, err)
			continue
		}
		w.checkRead(ref, chunks, length)
		if w.read[ref] != length {
			w.violate("output of %s: %d of %d bytes can be read", w.ref(ref), w.read[ref], length)
		}
	}
}
