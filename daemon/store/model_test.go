package store

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/waypointd/waypoint/daemon/queue"
	"github.com/waypointd/waypoint/mux/wire"
)

// The model says what the store must hold, in the plainest way: all jobs in a
// slice, and what blocks one is worked out anew from all others each time.

type modelJob struct {
	id, place, runner  string
	spec               wire.JobSpec
	state              wire.State
	reason             wire.Reason
	attempt            int
	cancel             bool
	expires            time.Time
	sequence, artifact int64
}

type model struct {
	jobs      []*modelJob
	sequences map[string]int64
	artifacts map[string][]int64 // numbers, by app
	made      map[string]int64   // artifact by job
}

func (m *model) find(id string) *modelJob {
	for _, j := range m.jobs {
		if j.id == id {
			return j
		}
	}
	return nil
}

func (j *modelJob) active() bool { return j.state == wire.Assigned || j.state == wire.Running }
func (j *modelJob) serial() string {
	switch j.spec.Operation {
	case wire.OpDeploy, wire.OpDestroy:
		return j.spec.App
	}
	return ""
}
func (j *modelJob) before(k *modelJob) bool {
	return j.spec.Priority > k.spec.Priority || j.spec.Priority == k.spec.Priority && j.place < k.place
}

// early is what blocks a queued job besides its serial key.
func (m *model) early(j *modelJob) queue.Blocked {
	for _, d := range j.spec.DependsOn {
		if !m.find(d).state.Ended() {
			return queue.ByDependency
		}
	}
	for _, k := range m.jobs {
		if k != j && j.spec.Singleton != "" && k.spec.Singleton == j.spec.Singleton && k.active() {
			return queue.BySingleton
		}
	}
	return queue.Ready
}

func (m *model) blocked(j *modelJob) queue.Blocked {
	if j.state != wire.Queued {
		return queue.Ready
	}
	if b := m.early(j); b != queue.Ready {
		return b
	}
	if j.serial() == "" {
		return queue.Ready
	}
	for _, k := range m.jobs {
		if k == j || k.serial() != j.serial() {
			continue
		}
		if k.active() || k.state == wire.Queued && m.early(k) == queue.Ready && k.before(j) {
			return queue.BySerial
		}
	}
	return queue.Ready
}

func (m *model) end(j *modelJob, state wire.State, reason wire.Reason) {
	j.state, j.reason = state, reason
	if state == wire.Success {
		return
	}
	for _, k := range m.jobs {
		if k.state == wire.Queued && !k.spec.AllowDependencyFailure && slices.Contains(k.spec.DependsOn, j.id) {
			m.end(k, wire.Failed, wire.ReasonDependency)
		}
	}
}

func (m *model) submit(id string, spec wire.JobSpec, now time.Time) {
	j := &modelJob{id: id, place: id, spec: spec, state: wire.Queued}
	if spec.ExpiresIn > 0 {
		j.expires = now.Add(time.Duration(spec.ExpiresIn))
	}
	bad := func() bool {
		for _, d := range spec.DependsOn {
			if s := m.find(d).state; s.Ended() && s != wire.Success && !spec.AllowDependencyFailure {
				return true
			}
		}
		return false
	}
	if !bad() && spec.Singleton != "" {
		for _, k := range m.jobs {
			if k.state == wire.Queued && k.spec.Singleton == spec.Singleton {
				j.place = min(j.place, k.place)
				m.end(k, wire.Canceled, wire.ReasonSuperseded)
			}
		}
	}
	if bad() {
		j.state, j.reason = wire.Failed, wire.ReasonDependency
	}
	m.jobs = append(m.jobs, j)
}

func (m *model) requeue(j *modelJob) {
	if j.cancel {
		m.end(j, wire.Canceled, wire.ReasonCanceled)
		return
	}
	j.state, j.runner = wire.Queued, ""
	for _, k := range m.jobs {
		if k != j && j.spec.Singleton != "" && k.state == wire.Queued && k.spec.Singleton == j.spec.Singleton {
			k.place = min(k.place, j.place)
			m.end(j, wire.Canceled, wire.ReasonSuperseded)
			return
		}
	}
}

// artifact is what a deploy works on; 0 is nothing.
func (m *model) artifact(j *modelJob) int64 {
	if j.artifact != 0 {
		return j.artifact
	}
	seen := slices.Clone(j.spec.DependsOn)
	for i := 0; i < len(seen); i++ {
		d := m.find(seen[i])
		if n := m.made[d.id]; n != 0 && d.spec.App == j.spec.App {
			return n
		}
		for _, id := range d.spec.DependsOn {
			if !slices.Contains(seen, id) {
				seen = append(seen, id)
			}
		}
	}
	if l := m.artifacts[j.spec.App]; len(l) > 0 {
		return slices.Max(l)
	}
	return 0
}

func (m *model) assign(runners []queue.Runner, now time.Time) (given []string) {
	for {
		var best *modelJob
		var to *queue.Runner
		for _, j := range m.jobs {
			if j.state != wire.Queued || m.blocked(j) != queue.Ready || !j.expires.IsZero() && !j.expires.After(now) ||
				best != nil && !j.before(best) {
				continue
			}
			var r *queue.Runner
			for i := range runners {
				if k := &runners[i]; k.Free > 0 && queue.Match(j.spec.Target, *k) && (r == nil || k.Free > r.Free) {
					r = k
				}
			}
			if r != nil {
				best, to = j, r
			}
		}
		if best == nil {
			return given
		}
		if best.spec.Operation == wire.OpDeploy {
			if best.artifact = m.artifact(best); best.artifact == 0 {
				m.end(best, wire.Failed, wire.ReasonFailed)
				continue
			}
		}
		if best.sequence == 0 && (best.spec.Operation == wire.OpDeploy || best.spec.Operation == wire.OpBuild) {
			key := string(best.spec.Operation) + best.spec.App
			m.sequences[key]++
			best.sequence = m.sequences[key]
		}
		best.state, best.runner = wire.Assigned, to.ID
		best.attempt++
		to.Free--
		given = append(given, fmt.Sprintf("%s to %s, artifact %d", best.id, to.ID, best.artifact))
	}
}

func TestModel(t *testing.T) {
	onBoth(t, func(t *testing.T, dsn string) {
		seed := uint64(time.Now().UnixNano())
		if v := os.Getenv("STORE_TEST_SEED"); v != "" {
			seed, _ = strconv.ParseUint(v, 10, 64)
		}
		b := newBench(t, dsn)
		steps := 700
		if strings.HasPrefix(dsn, "postgres") || testing.Short() {
			steps = 200
		}
		// Seeds that once found something, and a new one.
		for _, seed := range []uint64{1795291508545969108, 1795292808116502071, seed} {
			t.Logf("STORE_TEST_SEED=%d", seed)
			update(t, b.Store, wipe)
			walk(t, b, rand.New(rand.NewPCG(seed, 1)), steps)
		}
	})
}

// wipe empties the store of jobs.
func wipe(tx *Tx) error {
	for _, table := range []string{"jobs", "dependencies", "records", "sequences"} {
		if _, err := tx.exec("DELETE FROM " + table); err != nil {
			return err
		}
	}
	return nil
}

func walk(t *testing.T, b *bench, rnd *rand.Rand, steps int) {
	m := &model{sequences: map[string]int64{}, artifacts: map[string][]int64{}, made: map[string]int64{}}
	runners := []queue.Runner{
		{ID: "a", Labels: map[string]string{"z": "1"}},
		{ID: "b", Labels: map[string]string{"z": "1", "y": "2"}},
		{ID: "c", ByIDOnly: true},
	}
	targets := []wire.Target{{Any: true}, {Any: true}, {ID: "a"}, {ID: "c"}, {Labels: map[string]string{"z": "1"}}, {Labels: map[string]string{"y": "2"}}}
	ops := []wire.Operation{wire.OpRun, wire.OpBuild, wire.OpDeploy, wire.OpDestroy}
	pick := func(keep func(j *modelJob) bool) *modelJob {
		var l []*modelJob
		for _, j := range m.jobs {
			if keep(j) {
				l = append(l, j)
			}
		}
		if len(l) == 0 {
			return nil
		}
		return l[rnd.IntN(len(l))]
	}
	for step := range steps {
		b.now = b.now.Add(time.Millisecond)
		now := b.now
		what := ""
		switch n := rnd.IntN(20); {
		case n < 6: // submit
			spec := wire.JobSpec{
				Operation: ops[rnd.IntN(len(ops))], Project: "p", App: []string{"x", "y"}[rnd.IntN(2)],
				Target: targets[rnd.IntN(len(targets))], Priority: rnd.IntN(3),
				AllowDependencyFailure: rnd.IntN(3) == 0,
			}
			if rnd.IntN(3) == 0 {
				spec.Singleton = []string{"s", "t"}[rnd.IntN(2)]
			}
			if rnd.IntN(6) == 0 {
				spec.ExpiresIn = wire.Duration(time.Duration(1+rnd.IntN(10)) * time.Millisecond)
			}
			for range rnd.IntN(3) {
				// The newest are the ones that have not ended.
				if n := len(m.jobs); n > 0 {
					if id := m.jobs[max(0, n-1-rnd.IntN(8))].id; !slices.Contains(spec.DependsOn, id) {
						spec.DependsOn = append(spec.DependsOn, id)
					}
				}
			}
			var jobs []wire.Job
			update(t, b.Store, func(tx *Tx) (err error) { jobs, err = tx.Submit([]wire.JobSpec{spec}, now); return err })
			m.submit(jobs[0].ID, spec, now)
			what = fmt.Sprintf("submit %s %+v", jobs[0].ID, spec)
		case n < 11: // assign
			var mine, theirs []queue.Runner
			for _, r := range runners {
				r.Free = rnd.IntN(3)
				mine, theirs = append(mine, r), append(theirs, r)
			}
			var got []string
			update(t, b.Store, func(tx *Tx) error {
				got = nil
				out, err := tx.AssignReady(func() []queue.Runner { return theirs }, now, 1000)
				for _, a := range out {
					n := int64(0)
					if a.Artifact != nil {
						n = a.Artifact.Number
					}
					got = append(got, fmt.Sprintf("%s to %s, artifact %d", a.Job, a.RunnerID, n))
				}
				return err
			})
			want := m.assign(mine, now)
			what = fmt.Sprintf("assign %v", want)
			if !slices.Equal(got, want) {
				t.Fatalf("step %d: handed out\n%v, want\n%v", step, got, want)
			}
		case n < 13: // acknowledge
			if j := pick(func(j *modelJob) bool { return j.state == wire.Assigned }); j != nil {
				update(t, b.Store, func(tx *Tx) error { return tx.Ack(wire.JobRef{Job: j.id, Attempt: j.attempt}, j.runner, now) })
				j.state = wire.Running
				what = "ack " + j.id
			}
		case n < 14: // requeue
			if j := pick(func(j *modelJob) bool { return j.state == wire.Assigned }); j != nil {
				what = "requeue " + j.id
				update(t, b.Store, func(tx *Tx) error {
					return tx.Requeue(wire.JobRef{Job: j.id, Attempt: j.attempt}, j.runner, now)
				})
				m.requeue(j)
			}
		case n < 17: // finish
			if j := pick(func(j *modelJob) bool { return j.state == wire.Running }); j != nil {
				res := wire.Result{State: wire.Success}
				if rnd.IntN(3) == 0 {
					res.State = wire.Failed
				} else if rnd.IntN(6) == 0 {
					res.State = wire.Canceled
				}
				what = fmt.Sprintf("finish %s %s", j.id, res.State)
				update(t, b.Store, func(tx *Tx) error {
					return tx.Finish(wire.JobRef{Job: j.id, Attempt: j.attempt}, j.runner, res, now)
				})
				m.end(j, res.State, map[wire.State]wire.Reason{wire.Failed: wire.ReasonFailed, wire.Canceled: wire.ReasonCanceled}[res.State])
				if j.spec.Operation == wire.OpBuild && res.State == wire.Success {
					m.artifacts[j.spec.App] = append(m.artifacts[j.spec.App], j.sequence)
					m.made[j.id] = j.sequence
				}
			}
		case n < 18: // cancel
			if j := pick(func(j *modelJob) bool { return true }); j != nil && rnd.IntN(2) == 0 {
				force := rnd.IntN(2) == 0
				what = fmt.Sprintf("cancel %s %v", j.id, force)
				update(t, b.Store, func(tx *Tx) error { _, err := tx.Cancel(j.id, force, now); return err })
				if !j.state.Ended() {
					j.cancel = true
					if j.state == wire.Queued || force {
						m.end(j, wire.Canceled, wire.ReasonCanceled)
					}
				}
			}
		case n < 19: // lost
			if j := pick(func(j *modelJob) bool { return j.active() }); j != nil {
				what = "lost " + j.id
				update(t, b.Store, func(tx *Tx) error { return tx.Lost(wire.JobRef{Job: j.id, Attempt: j.attempt}, "gone", now) })
				m.end(j, wire.Failed, wire.ReasonRunnerLost)
			}
		default: // expire
			update(t, b.Store, func(tx *Tx) error { _, err := tx.Expire(now); return err })
			var due []*modelJob
			for _, j := range m.jobs {
				if j.state == wire.Queued && !j.expires.IsZero() && !j.expires.After(now) {
					due = append(due, j)
				}
			}
			slices.SortStableFunc(due, func(a, b *modelJob) int { return a.expires.Compare(b.expires) })
			for _, j := range due {
				if j.state == wire.Queued {
					m.end(j, wire.Failed, wire.ReasonExpired)
				}
			}
			what = "expire"
		}
		if what != "" {
			compare(t, b, m, step, what)
		}
	}
}

// compare wants every job that has not ended long ago to be as the model has it.
func compare(t *testing.T, b *bench, m *model, step int, what string) {
	t.Helper()
	rows, err := readJobs(b.read(t.Context()), `SELECT `+jobColumns+` FROM jobs ORDER BY id DESC LIMIT 200`)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range rows {
		j := m.find(r.ID)
		got := fmt.Sprintf("%s/%s blocked %q place %s attempt %d runner %s sequence %d", r.State, r.Reason, r.Blocked, r.Place, r.Attempt, r.RunnerID, r.Sequence)
		want := fmt.Sprintf("%s/%s blocked %q place %s attempt %d runner %s sequence %d", j.state, j.reason, m.blocked(j), j.place, j.attempt, j.runner, j.sequence)
		if got != want {
			for _, k := range m.jobs {
				if !k.state.Ended() && k.serial() == j.serial() {
					t.Logf("%s of %s: %s, blocked %q, priority %d, place %s", k.id, k.spec.App, k.state, m.blocked(k), k.spec.Priority, k.place)
				}
			}
			t.Fatalf("step %d, %s: job %s %s%s is\n%s, want\n%s", step, what, r.ID, r.Operation, r.DependsOn, got, want)
		}
	}
}
