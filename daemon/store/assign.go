package store

import (
	"cmp"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/waypointd/waypoint/daemon/queue"
	"github.com/waypointd/waypoint/mux/wire"
)

const (
	// A loose index scan: one step of the index for each target, however many
	// jobs have it.
	selectTargets = `WITH RECURSIVE t(target) AS (
	SELECT (SELECT target FROM jobs WHERE state = 'queued' AND blocked = '' ORDER BY target LIMIT 1)
	UNION ALL
	SELECT (SELECT j.target FROM jobs j WHERE j.state = 'queued' AND j.blocked = '' AND j.target > t.target
		ORDER BY j.target LIMIT 1) FROM t WHERE t.target IS NOT NULL)
	SELECT target FROM t WHERE target IS NOT NULL`

	selectHead = `SELECT ` + jobColumns + `, spec FROM jobs
	WHERE state = 'queued' AND blocked = '' AND target = $1 AND (expires_at = 0 OR expires_at > $2)
	ORDER BY priority DESC, place LIMIT 1`

	nextSequence = `INSERT INTO sequences (operation, project, app, workspace, last) VALUES ($1, $2, $3, $4, 1)
	ON CONFLICT (operation, project, app, workspace) DO UPDATE SET last = sequences.last + 1 RETURNING last`
)

// Assigned is one assignment made by AssignReady.
type Assigned struct {
	RunnerID string
	QueuedAt time.Time // of the job
	wire.Assignment
}

// head is the job of one target that is handed out next, and who may take it.
type head struct {
	target  string
	runners []*queue.Runner // that match
	job     *row            // nil: none
	spec    wire.JobSpec
}

// AssignReady hands ready jobs to runners (called only if there are ready
// jobs; Free is counted down): best priority first, then oldest place; a job
// goes to the matching runner with the most free slots. Expired jobs are
// skipped; one that can never run (a deploy without anything to deploy) ends.
// At most max.
func (tx *Tx) AssignReady(runners func() []queue.Runner, now time.Time, max int) ([]Assigned, error) {
	if max <= 0 {
		return nil, nil
	}
	targets, err := strs(tx, selectTargets)
	if err != nil {
		return nil, fmt.Errorf("look for ready jobs: %w", err)
	}
	if len(targets) == 0 {
		return nil, nil
	}
	if err := tx.lockRules(); err != nil {
		return nil, err
	}
	now = stamp(now)
	idle := runners()
	var out []Assigned
	for rescan := true; rescan; {
		// A job that ends for want of something to work on may set free
		// others, of any target.
		rescan = false
		heads, err := tx.heads(targets, idle, now)
		if err != nil {
			return nil, err
		}
		for len(out) < max && !rescan {
			h, runner := best(heads)
			if h == nil {
				break
			}
			a, err := tx.assign(h, runner, now)
			if err != nil {
				return nil, err
			}
			if a == nil {
				rescan = true
				break
			}
			out = append(out, *a)
			runner.Free--
			if !h.room() {
				h.job = nil
			} else if err := tx.fill(h, now); err != nil {
				return nil, err
			}
		}
		if rescan {
			if targets, err = strs(tx, selectTargets); err != nil {
				return nil, fmt.Errorf("look for ready jobs: %w", err)
			}
		}
	}
	return out, nil
}

// heads are the first ready jobs of the targets that an idle runner matches.
func (tx *Tx) heads(targets []string, idle []queue.Runner, now time.Time) ([]*head, error) {
	var heads []*head
	for _, text := range targets {
		target, err := queue.ParseTarget(text)
		if err != nil {
			return nil, err
		}
		h := &head{target: text}
		for i := range idle {
			if idle[i].Free > 0 && queue.Match(target, idle[i]) {
				h.runners = append(h.runners, &idle[i])
			}
		}
		if len(h.runners) == 0 {
			continue
		}
		if err := tx.fill(h, now); err != nil {
			return nil, err
		}
		if h.job != nil {
			heads = append(heads, h)
		}
	}
	return heads, nil
}

// room reports whether a runner that matches has a place left.
func (h *head) room() bool {
	return slices.ContainsFunc(h.runners, func(r *queue.Runner) bool { return r.Free > 0 })
}

// fill reads the head of a target.
func (tx *Tx) fill(h *head, now time.Time) error {
	h.job = nil
	var text string
	err := each(tx, selectHead, []any{h.target, micro(now)}, func(rows *sql.Rows) (err error) {
		h.job, err = scanJob(rows, &text)
		return err
	})
	if err != nil {
		return fmt.Errorf("read ready job: %w", err)
	}
	if h.job == nil {
		return nil
	}
	h.spec = wire.JobSpec{}
	if err := json.Unmarshal([]byte(text), &h.spec); err != nil {
		return fmt.Errorf("read spec of job %s: %w", h.job.ID, err)
	}
	return nil
}

// best is the head that comes first of those that a runner has room for, and
// that runner.
func best(heads []*head) (*head, *queue.Runner) {
	var (
		first *head
		with  *queue.Runner
	)
	for _, h := range heads {
		if h.job == nil || first != nil && !h.job.Before(&first.job.Job) {
			continue
		}
		free := slices.MaxFunc(h.runners, func(a, b *queue.Runner) int {
			return cmp.Or(cmp.Compare(a.Free, b.Free), cmp.Compare(b.ID, a.ID))
		})
		if free.Free > 0 {
			first, with = h, free
		}
	}
	return first, with
}

// assign gives the head's job to a runner; nil if it has ended instead.
func (tx *Tx) assign(h *head, runner *queue.Runner, now time.Time) (*Assigned, error) {
	r := h.job
	used, why, err := tx.resolve(r, &h.spec)
	if err != nil {
		return nil, err
	}
	if why != "" {
		return nil, tx.end(r, func() error { return r.Unassignable(why, now) })
	}
	if used != nil {
		r.Uses = used.JobID
	}
	if r.Sequence == 0 {
		switch r.Operation {
		case wire.OpBuild, wire.OpDeploy, wire.OpRelease:
			if err := one(tx, nextSequence, []any{string(r.Operation), r.Project, r.App, r.Workspace}, &r.Sequence); err != nil {
				return nil, fmt.Errorf("number job %s: %w", r.ID, err)
			}
		}
	}
	if err := r.Assign(runner.ID, now); err != nil {
		return nil, err
	}
	r.spool = runner.Spool
	if err := tx.update(r); err != nil {
		return nil, err
	}
	return &Assigned{RunnerID: runner.ID, QueuedAt: r.QueuedAt, Assignment: assignment(r, h.spec, used)}, nil
}

func assignment(r *row, spec wire.JobSpec, used *wire.Record) wire.Assignment {
	a := wire.Assignment{
		JobRef:   wire.JobRef{Job: r.ID, Attempt: r.Attempt},
		Spec:     spec,
		Sequence: r.Sequence,
	}
	if used != nil {
		switch used.Kind {
		case wire.RecordArtifact:
			a.Artifact = used
		case wire.RecordDeployment:
			a.Deployment = used
		}
	}
	return a
}

// resolve finds the record that a job works on: for a deploy an artifact, for
// a release a deployment. why says that there is none.
func (tx *Tx) resolve(r *row, spec *wire.JobSpec) (used *wire.Record, why string, err error) {
	var (
		kind   wire.RecordKind
		number int64
		first  string // what to do when there is none
	)
	switch r.Operation {
	case wire.OpDeploy:
		kind, number, first = wire.RecordArtifact, spec.Artifact, "build first"
	case wire.OpRelease:
		kind, number, first = wire.RecordDeployment, spec.Deployment, "deploy first"
	default:
		return nil, "", nil
	}
	if r.Uses != "" { // of an earlier attempt
		used, err = readRecord(tx, selectRecordOfJob, r.Uses)
		if err != nil || used != nil {
			return used, "", err
		}
	}
	where := fmt.Sprintf("%s in workspace %s", appName(r.Project, r.App), r.Workspace)
	if number != 0 {
		used, err = readRecord(tx, selectRecord, string(kind), r.Project, r.App, r.Workspace, number)
		if err == nil && used == nil {
			why = fmt.Sprintf("no %s %d of %s", kind, number, where)
		}
		return used, why, err
	}
	if used, err = tx.madeBefore(r, kind); err != nil || used != nil {
		return used, "", err
	}
	used, err = readRecord(tx, selectNewestRecord, string(kind), r.Project, r.App, r.Workspace)
	if err == nil && used == nil {
		why = fmt.Sprintf("no %s of %s: %s", kind, where, first)
	}
	return used, why, err
}

// checkNamed refuses a deploy of an artifact, or a release of a deployment,
// with a number that there is not. A job with dependencies may mean what they
// are going to make: it is resolved when it is handed out, like one that names
// no number.
func (tx *Tx) checkNamed(spec *wire.JobSpec) error {
	var kind wire.RecordKind
	var number int64
	switch spec.Operation {
	case wire.OpDeploy:
		kind, number = wire.RecordArtifact, spec.Artifact
	case wire.OpRelease:
		kind, number = wire.RecordDeployment, spec.Deployment
	}
	if number == 0 || len(spec.DependsOn) > 0 {
		return nil
	}
	rec, err := readRecord(tx, selectRecord, string(kind), spec.Project, spec.App, spec.Workspace, number)
	if err != nil || rec != nil {
		return err
	}
	return wire.Errorf(wire.NotFound, "no %s %d of %s in workspace %s", kind, number, appName(spec.Project, spec.App), spec.Workspace).
		WithHint("waypoint %s list", kind)
}

// appName names an app for people: PROJECT/APP.
func appName(project, app string) string {
	if app == "" {
		return project
	}
	return project + "/" + app
}

// maxChain bounds the search through a job's dependencies.
const maxChain = 1000

const selectDependsOn = `SELECT depends_on FROM jobs WHERE id = $1`

// madeBefore is the record of a kind, of r's app, made by the nearest job that
// r depends on, directly or through others. Of another workspace it may be what r
// depends on directly, which who queued r may see; of the others that is not known.
func (tx *Tx) madeBefore(r *row, kind wire.RecordKind) (*wire.Record, error) {
	seen := set{}
	for _, id := range r.DependsOn {
		seen.add(id)
	}
	for i := 0; i < len(seen.list) && i < maxChain; i++ {
		id := seen.list[i]
		rec, err := readRecord(tx, selectRecordOfJob, id)
		if err != nil {
			return nil, err
		}
		if rec != nil && rec.Kind == kind && rec.Project == r.Project && rec.App == r.App &&
			(i < len(r.DependsOn) || rec.Workspace == r.Workspace) {
			return rec, nil
		}
		var deps string
		switch err := one(tx, selectDependsOn, []any{id}, &deps); {
		case errors.Is(err, errNoRow): // pruned
			continue
		case err != nil:
			return nil, fmt.Errorf("read dependencies of job %s: %w", id, err)
		}
		for _, dep := range splitIDs(deps) {
			seen.add(dep)
		}
	}
	return nil, nil
}
