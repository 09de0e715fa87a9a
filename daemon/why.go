package daemon

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/waypointd/waypoint/daemon/queue"
	"github.com/waypointd/waypoint/daemon/store"
	"github.com/waypointd/waypoint/mux"
	"github.com/waypointd/waypoint/mux/wire"
)

// jobWhy says in one sentence why a job is where it is, from the same data
// that matching uses.
func (s *Server) jobWhy(ctx context.Context, _ *mux.Peer, req wire.JobRequest) (wire.Why, error) {
	facts, err := s.store.QueueFacts(ctx, req.ID)
	if err != nil {
		return wire.Why{}, err
	}
	if facts.Job, err = s.asSeenOne(ctx, facts.Job, nil); err != nil {
		return wire.Why{}, err
	}
	w := wire.Why{Job: facts.Job}
	w.Code, w.Sentence = s.why(ctx, facts)
	return w, nil
}

func (s *Server) why(ctx context.Context, f store.QueueFacts) (code, sentence string) {
	j := f.Job
	switch {
	case j.State.Ended():
		return "ended", whyEnded(j)
	case j.State == wire.Running:
		return "running", s.whyActive(ctx, j, "it is running on runner %q since %s", j.StartedAt)
	case j.State == wire.Assigned:
		return "assigned", s.whyActive(ctx, j, "it was given to runner %q at %s, which has not confirmed it yet", j.AssignedAt)
	}
	switch f.Blocked {
	case queue.ByDependency:
		return "dependency", "it waits for " + jobNames(f.By, callOf(ctx).by.limits)
	case queue.BySerial:
		return "serialized", fmt.Sprintf("deploy, release and destroy of %s in workspace %s run one at a time: it waits behind %s",
			j.Project+"/"+j.App, j.Workspace, jobNames(f.By, callOf(ctx).by.limits))
	case queue.BySingleton:
		return "singleton", fmt.Sprintf("singleton %q runs one at a time: it waits for %s", j.Singleton, jobNames(f.By, callOf(ctx).by.limits))
	}
	code, sentence = s.whyNoRunner(ctx, f)
	problem, room := s.storeProblem(), ""
	switch problem {
	case wire.StoreFull:
		room = "the server's store has no room, so no job is handed out until there is some: see waypoint server status"
	case wire.StoreReserve:
		room = "the server's store has only its reserve left, which is kept for jobs that run, so no job is handed out until there is more room: see waypoint server status"
	default:
		return code, sentence
	}
	if code != "next" {
		room += "; besides, " + sentence
	}
	return "store_" + string(problem), room
}

// whyNoRunner is for a job that could be handed out now.
func (s *Server) whyNoRunner(ctx context.Context, f store.QueueFacts) (code, sentence string) {
	var busy, draining, unusable, unadopted, rejected []string
	views, err := s.everywhere(ctx)
	if err != nil {
		views = s.fleet.online()
	}
	for _, v := range views {
		switch {
		case !queue.Match(f.Job.Target, v.candidate()) && !queue.Match(f.Job.Target, v.offering()):
		case v.standing.State == wire.Pending:
			unadopted = append(unadopted, v.id)
		case v.standing.State == wire.Rejected:
			rejected = append(rejected, v.id)
		case !v.admitted:
			unusable = append(unusable, whyUnusable(v.id, v.problem, v.detail))
		case !queue.Match(f.Job.Target, v.candidate()):
		case v.draining:
			draining = append(draining, whyDraining(v))
		case v.available && v.candidate().Free > 0:
			return "next", fmt.Sprintf("it is about to be given to runner %q", v.id)
		case v.available:
			busy = append(busy, fmt.Sprintf("%s (%d of %d jobs)", v.id, v.held, v.concurrency))
		}
	}
	wants := "any runner"
	switch t := f.Job.Target; {
	case t.ID != "":
		wants = fmt.Sprintf("runner %q", t.ID)
	case len(t.Labels) > 0:
		wants = "a runner with the labels " + labelText(t.Labels)
	}
	switch {
	case len(busy) > 0:
		return "runners_busy", fmt.Sprintf("it wants %s, and all that match are busy: %s; %s before it",
			wants, enumerate(busy), jobsAre(f.Ahead))
	case len(draining) > 0:
		return "runners_draining", fmt.Sprintf("it wants %s, and all that match are draining: %s", wants, enumerate(draining))
	case len(unusable) > 0:
		return "runners_token", fmt.Sprintf("it wants %s, and the only ones that match have no usable token: %s", wants, enumerate(unusable))
	case len(unadopted) > 0:
		return "runners_pending", fmt.Sprintf("it wants %s, and the only ones that match wait for adoption: %s", wants, enumerate(unadopted))
	}
	return s.whyOffline(ctx, f, wants, rejected)
}

func jobsAre(n int) string {
	if n == 1 {
		return "1 job is"
	}
	return fmt.Sprintf("%d jobs are", n)
}

// whyDraining says what keeps a runner from taking jobs, where it is not that somebody
// has drained it.
func whyDraining(v memberView) string {
	if what := v.waitsFor(wire.JobRef{}); what != "" {
		return fmt.Sprintf("%s (it waits for %s)", v.id, what)
	}
	return v.id
}

// whyUnusable says what keeps a runner from jobs.
func whyUnusable(id string, p wire.Problem, detail string) string {
	if p == "" {
		p = wire.TokenExpired // at this moment: it has not been told yet
	}
	words := strings.ReplaceAll(string(p), "_", " ")
	if detail == "" || p == wire.NoToken { // of which there is no more to say
		return fmt.Sprintf("%s (%s)", id, words)
	}
	return fmt.Sprintf("%s (%s: %s)", id, words, detail)
}

// whyOffline is for a job that no connected runner matches, but for those that
// are rejected.
func (s *Server) whyOffline(ctx context.Context, f store.QueueFacts, wants string, rejected []string) (code, sentence string) {
	var offline []string
	filter := wire.RunnerFilter{Labels: f.Job.Target.Labels, Limit: 500}
	records, err := s.store.Runners(ctx, filter)
	if err != nil {
		return "no_runner_matches", fmt.Sprintf("it wants %s, and none is connected", wants)
	}
	for _, r := range records {
		switch {
		case !queue.Match(f.Job.Target, queue.Runner{ID: r.ID, Labels: r.Labels}):
		case r.State != wire.Rejected:
			offline = append(offline, fmt.Sprintf("%s (last seen %s)", r.ID, stamp(r.LastSeen)))
		case !slices.Contains(rejected, r.ID):
			rejected = append(rejected, r.ID)
		}
	}
	if len(offline) > 0 {
		return "runners_offline", fmt.Sprintf("it wants %s, and all that match are offline: %s", wants, enumerate(offline))
	}
	if len(rejected) > 0 {
		return "runners_rejected", fmt.Sprintf("it wants %s, and all that match have been rejected: %s", wants, enumerate(rejected))
	}
	return "no_runner_matches", fmt.Sprintf("it wants %s, and no such runner is known", wants)
}

// whyActive names runner and time, and says what is wrong: with its runner, with
// the store, that its end was asked for.
func (s *Server) whyActive(ctx context.Context, j wire.Job, format string, at time.Time) string {
	text := fmt.Sprintf(format, j.RunnerID, stamp(at))
	ref := wire.JobRef{Job: j.ID, Attempt: j.Attempt}
	v, online := s.connected(ctx, j.RunnerID)
	switch a, known := s.fleet.awaited(ref); {
	case known && a.orphan:
		text += fmt.Sprintf("; the runner was forgotten, and the job ends as %s at %s unless it is admitted again by then", wire.ReasonRunnerLost, stamp(a.until))
	case online:
		if what := v.waitsFor(ref); what != "" {
			text += "; it waits for " + what
		}
	case known && a.restored:
		text += fmt.Sprintf("; the server was started at %s and the runner has not come back since: the job ends as %s at %s unless it does by then",
			stamp(a.since), wire.ReasonRunnerLost, stamp(a.until))
	case known:
		text += fmt.Sprintf("; the runner is out of contact since %s, and the job ends as %s at %s unless it is back by then",
			stamp(a.since), wire.ReasonRunnerLost, stamp(a.until))
	default: // another server waits for it, or it has just left
		text += fmt.Sprintf("; the runner is out of contact, and the job ends as %s when that has lasted %s", wire.ReasonRunnerLost, s.cfg().Lease)
	}
	if s.storeProblem() == wire.StoreFull {
		text += "; the server's store has no room, so its output and its end wait at the runner until there is some"
	}
	if !j.CancelRequested.IsZero() {
		text += "; its cancel was requested at " + stamp(j.CancelRequested)
	}
	return text
}

func whyEnded(j wire.Job) string {
	text := fmt.Sprintf("it ended at %s as %s", stamp(j.FinishedAt), j.State)
	if j.Reason != "" && string(j.Reason) != string(j.State) {
		text += " (" + string(j.Reason) + ")"
	}
	if j.Error != "" && j.Error != string(j.State) {
		text += ": " + j.Error
	}
	if j.LateResult != nil {
		text += "; " + whyLate(*j.LateResult)
	}
	return text
}

// whyLate says what the runner of a lost job has said of it since.
func whyLate(l wire.LateResult) string {
	text := fmt.Sprintf("its runner said later, at %s, that ", stamp(l.ReportedAt))
	switch {
	case l.Reason == wire.ReasonRunnerLost:
		return text + "it had lost it too"
	case l.State == wire.Canceled:
		text += "it had been stopped"
	default:
		text += "it had ended by itself"
	}
	if l.ExitCode != nil {
		text += fmt.Sprintf(" with exit code %d", *l.ExitCode)
	}
	if l.Signal != "" {
		text += " by " + l.Signal
	}
	if l.Reason == wire.ReasonTimeout || l.Reason == wire.ReasonOOM {
		text += " (" + string(l.Reason) + ")"
	}
	if !l.FinishedAt.IsZero() {
		text += " at " + stamp(l.FinishedAt)
	}
	return text
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// jobNames names jobs, but for those outside of the limits of who asks.
func jobNames(jobs []wire.Job, l wire.Limits) string {
	var names []string
	outside := 0
	for _, j := range jobs {
		if !l.Allow(j.Project, j.Workspace) {
			outside++
			continue
		}
		names = append(names, fmt.Sprintf("job %s (%s, %s)", j.ID, j.Operation, j.State))
	}
	switch {
	case outside == 1:
		names = append(names, outsideJob)
	case outside > 1:
		names = append(names, fmt.Sprintf("%d jobs outside of your limits", outside))
	}
	return enumerate(names)
}

// enumerate joins names, the first few of many.
func enumerate(names []string) string {
	const few = 5
	if len(names) > few {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:few], ", "), len(names)-few)
	}
	return strings.Join(names, ", ")
}

func labelText(labels map[string]string) string {
	pairs := make([]string, 0, len(labels))
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		pairs = append(pairs, k+"="+labels[k])
	}
	return strings.Join(pairs, ",")
}
