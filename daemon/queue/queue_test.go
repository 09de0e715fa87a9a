package queue

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/waypointd/waypoint/mux/wire"
)

var t0 = time.UnixMicro(1_700_000_000_000_000).UTC()

func conflict(t *testing.T, err error) {
	t.Helper()
	if !errors.Is(err, &wire.Error{Kind: wire.Conflict}) {
		t.Fatalf("got %v, want a conflict", err)
	}
}

func job(state wire.State) *Job {
	j := New("J", wire.JobSpec{Operation: wire.OpRun, Target: wire.Target{Any: true}}, t0)
	switch state {
	case wire.Queued:
	case wire.Assigned, wire.Running:
		j.State, j.Attempt, j.RunnerID, j.AssignedAt = state, 1, "r1", t0
	default:
		j.Attempt, j.RunnerID = 1, "r1"
		j.End(state, "", "", t0)
	}
	return j
}

// Every transition is tried from every state; only those of the picture at
// the top may succeed.
func TestTransitionsRefuseWrongStates(t *testing.T) {
	states := []wire.State{wire.Queued, wire.Assigned, wire.Running, wire.Success, wire.Failed, wire.Canceled}
	late := t0.Add(time.Hour)
	tests := []struct {
		name string
		from []wire.State
		do   func(*Job) error
		to   wire.State
	}{
		{"assign", []wire.State{wire.Queued}, func(j *Job) error { return j.Assign("r1", t0) }, wire.Assigned},
		{"ack", []wire.State{wire.Assigned}, func(j *Job) error { return j.Ack(1, "r1", t0) }, wire.Running},
		{"requeue", []wire.State{wire.Assigned}, func(j *Job) error { return j.Requeue(1, "r1", t0) }, wire.Queued},
		{"finish", []wire.State{wire.Assigned, wire.Running}, func(j *Job) error {
			return j.Finish(1, "r1", wire.Result{State: wire.Success}, t0)
		}, wire.Success},
		{"lose", []wire.State{wire.Assigned, wire.Running}, func(j *Job) error { return j.Lose(1, "gone", t0) }, wire.Failed},
		{"supersede", []wire.State{wire.Queued}, func(j *Job) error { return j.Supersede("K", t0) }, wire.Canceled},
		{"expire", []wire.State{wire.Queued}, func(j *Job) error { j.ExpiresAt = late; return j.Expire(late) }, wire.Failed},
		{"abandon", []wire.State{wire.Queued}, func(j *Job) error { return j.Abandon("gone", t0) }, wire.Failed},
		{"unassignable", []wire.State{wire.Queued}, func(j *Job) error { return j.Unassignable("no artifact", t0) }, wire.Failed},
		{"dependency", []wire.State{wire.Queued}, func(j *Job) error { return j.DependencyFailed(job(wire.Failed), t0) }, wire.Failed},
	}
	for _, tt := range tests {
		for _, from := range states {
			j := job(from)
			if tt.name != "assign" && from == wire.Queued {
				j.Attempt, j.RunnerID = 1, "r1" // so that only the state is wrong
			}
			err := tt.do(j)
			if slices.Contains(tt.from, from) {
				if err != nil || j.State != tt.to {
					t.Errorf("%s from %s: %v, state %s; want %s", tt.name, from, err, j.State, tt.to)
				}
				if j.State.Ended() == j.FinishedAt.IsZero() {
					t.Errorf("%s from %s: ended %v, finished at %v", tt.name, from, j.State.Ended(), j.FinishedAt)
				}
				continue
			}
			if !errors.Is(err, &wire.Error{Kind: wire.Conflict}) || j.State != from {
				t.Errorf("%s from %s: %v, state %s; want a conflict and no change", tt.name, from, err, j.State)
			}
		}
	}
}

func TestStaleAttemptsAndForeignRunnersAreRefused(t *testing.T) {
	for name, do := range map[string]func(j *Job, attempt int, runner string) error{
		"ack":     func(j *Job, a int, r string) error { return j.Ack(a, r, t0) },
		"requeue": func(j *Job, a int, r string) error { return j.Requeue(a, r, t0) },
		"finish":  func(j *Job, a int, r string) error { return j.Finish(a, r, wire.Result{State: wire.Success}, t0) },
	} {
		t.Run(name, func(t *testing.T) {
			j := job(wire.Assigned)
			conflict(t, do(j, 2, "r1"))
			conflict(t, do(j, 0, "r1"))
			conflict(t, do(j, 1, "r2"))
			if j.State != wire.Assigned {
				t.Fatalf("state %s", j.State)
			}
		})
	}
	j := job(wire.Running)
	conflict(t, j.Lose(2, "gone", t0))
}

func TestBlockedJobIsNotAssigned(t *testing.T) {
	for _, b := range []Blocked{ByDependency, BySerial, BySingleton} {
		j := job(wire.Queued)
		j.Blocked = b
		err := j.Assign("r1", t0)
		conflict(t, err)
		if !strings.Contains(err.Error(), string(b)) {
			t.Errorf("%v does not name %s", err, b)
		}
	}
	j := job(wire.Queued)
	j.ExpiresAt = t0
	conflict(t, j.Assign("r1", t0))
}

func TestRequeueClearsTheRunnerAndKeepsTheAttempt(t *testing.T) {
	j := job(wire.Assigned)
	if err := j.Requeue(1, "r1", t0); err != nil {
		t.Fatal(err)
	}
	if j.RunnerID != "" || !j.AssignedAt.IsZero() || j.Attempt != 1 {
		t.Fatalf("%+v", j.Job)
	}
	if err := j.Assign("r2", t0); err != nil || j.Attempt != 2 {
		t.Fatalf("%v, attempt %d", err, j.Attempt)
	}
	conflict(t, j.Ack(1, "r1", t0))

	j = job(wire.Assigned)
	j.Cancel(false, t0)
	if err := j.Requeue(1, "r1", t0); err != nil || j.State != wire.Canceled {
		t.Fatalf("%v, state %s; want canceled", err, j.State)
	}
}

func TestCancel(t *testing.T) {
	j := job(wire.Queued)
	if !j.Cancel(false, t0) || j.State != wire.Canceled || j.Reason != wire.ReasonCanceled {
		t.Fatalf("queued: %+v", j.Job)
	}
	for _, s := range []wire.State{wire.Assigned, wire.Running} {
		j := job(s)
		if !j.Cancel(false, t0) || j.State != s || !j.CancelRequested.Equal(t0) {
			t.Fatalf("%s: %+v", s, j.Job)
		}
		if j.Cancel(false, t0.Add(1)) || !j.CancelRequested.Equal(t0) {
			t.Fatalf("%s again: %+v", s, j.Job)
		}
		if !j.Cancel(true, t0) || j.State != wire.Canceled {
			t.Fatalf("%s forced: %+v", s, j.Job)
		}
		if j.Cancel(true, t0.Add(1)) || !j.FinishedAt.Equal(t0) {
			t.Fatalf("ended: %+v", j.Job)
		}
	}
}

func TestFinish(t *testing.T) {
	code := 3
	tests := []struct {
		name     string
		canceled bool
		r        wire.Result
		state    wire.State
		reason   wire.Reason
	}{
		{"success", false, wire.Result{State: wire.Success}, wire.Success, ""},
		{"success although canceled", true, wire.Result{State: wire.Success, Reason: wire.ReasonFailed}, wire.Success, ""},
		{"canceled", true, wire.Result{State: wire.Canceled}, wire.Canceled, wire.ReasonCanceled},
		{"failed", false, wire.Result{State: wire.Failed, ExitCode: &code}, wire.Failed, wire.ReasonFailed},
		{"timeout", false, wire.Result{State: wire.Failed, Reason: wire.ReasonTimeout}, wire.Failed, wire.ReasonTimeout},
		{"oom", false, wire.Result{State: wire.Failed, Reason: wire.ReasonOOM}, wire.Failed, wire.ReasonOOM},
		{"a reason that is not a runner's", false, wire.Result{State: wire.Failed, Reason: wire.ReasonExpired}, wire.Failed, wire.ReasonFailed},
	}
	for _, tt := range tests {
		j := job(wire.Running)
		if tt.canceled {
			j.Cancel(false, t0)
		}
		if err := j.Finish(1, "r1", tt.r, t0); err != nil {
			t.Fatalf("%s: %v", tt.name, err)
		}
		if j.State != tt.state || j.Reason != tt.reason || j.ExitCode != tt.r.ExitCode {
			t.Errorf("%s: %s %s", tt.name, j.State, j.Reason)
		}
		if tt.canceled == j.CancelRequested.IsZero() {
			t.Errorf("%s: cancel requested at %v", tt.name, j.CancelRequested)
		}
	}
	j := job(wire.Running)
	if err := j.Finish(1, "r1", wire.Result{State: wire.Queued}, t0); wire.KindOf(err) != wire.BadUsage {
		t.Fatalf("got %v", err)
	}
}

// Whatever the clock does, no moment of a job is before an earlier one.
func TestMomentsOfAClockThatIsSetBack(t *testing.T) {
	queued := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	back := queued.Add(-24 * time.Hour)
	j := &Job{Job: wire.Job{ID: "j", State: wire.Queued, QueuedAt: queued}}
	if err := errors.Join(j.Assign("r", back), j.Ack(1, "r", back.Add(time.Second)), j.Finish(1, "r", wire.Result{State: wire.Success}, back.Add(time.Minute))); err != nil {
		t.Fatal(err)
	}
	if j.AssignedAt.Before(queued) || j.StartedAt.Before(j.AssignedAt) || j.FinishedAt.Before(j.StartedAt) {
		t.Errorf("queued %s, assigned %s, started %s, finished %s", queued, j.AssignedAt, j.StartedAt, j.FinishedAt)
	}
	j = &Job{Job: wire.Job{ID: "k", State: wire.Running, QueuedAt: queued, AssignedAt: queued, StartedAt: queued, Attempt: 1, RunnerID: "r"}}
	j.Cancel(false, back)
	if !j.CancelRequested.Equal(queued) {
		t.Errorf("queued %s, canceled %s", queued, j.CancelRequested)
	}
	j.CancelRequested = queued.Add(time.Hour)
	if err := j.Finish(1, "r", wire.Result{State: wire.Canceled}, queued.Add(time.Minute)); err != nil || j.FinishedAt.Before(j.CancelRequested) {
		t.Errorf("canceled %s, finished %s, %v", j.CancelRequested, j.FinishedAt, err)
	}
}

func TestMatch(t *testing.T) {
	any := wire.Target{Any: true}
	id := func(s string) wire.Target { return wire.Target{ID: s} }
	labels := func(kv ...string) wire.Target {
		m := map[string]string{}
		for i := 0; i < len(kv); i += 2 {
			m[kv[i]] = kv[i+1]
		}
		return wire.Target{Labels: m}
	}
	r := Runner{ID: "r1", Labels: map[string]string{"os": "linux", "zone": "eu", "empty": ""}}
	own := Runner{ID: "cli", ByIDOnly: true, Labels: map[string]string{"os": "linux"}}
	tests := []struct {
		name string
		t    wire.Target
		r    Runner
		want bool
	}{
		{"any", any, r, true},
		{"any, by-id-only runner", any, own, false},
		{"by id", id("r1"), r, true},
		{"by another id", id("r2"), r, false},
		{"by id, by-id-only runner", id("cli"), own, true},
		{"labels equal", labels("os", "linux", "zone", "eu"), r, true},
		{"labels subset", labels("zone", "eu"), r, true},
		{"another value", labels("zone", "us"), r, false},
		{"missing label", labels("os", "linux", "gpu", "yes"), r, false},
		{"missing label, empty value", labels("gpu", ""), r, false},
		{"empty value", labels("empty", ""), r, true},
		{"labels, by-id-only runner", labels("os", "linux"), own, false},
		{"nothing", wire.Target{}, r, false},
	}
	for _, tt := range tests {
		if got := Match(tt.t, tt.r); got != tt.want {
			t.Errorf("%s: %v", tt.name, got)
		}
	}
}

func TestTargetText(t *testing.T) {
	for text, target := range map[string]wire.Target{
		"any":                    {Any: true},
		"id:r1":                  {ID: "r1"},
		"labels:arch=arm64,z=eu": {Labels: map[string]string{"z": "eu", "arch": "arm64"}},
		"labels:a=":              {Labels: map[string]string{"a": ""}},
	} {
		if err := CheckTarget(target); err != nil {
			t.Errorf("%s: %v", text, err)
		}
		if got := TargetText(target); got != text {
			t.Errorf("got %s, want %s", got, text)
		}
		back, err := ParseTarget(text)
		if err != nil || TargetText(back) != text {
			t.Errorf("%s: %v, %v", text, back, err)
		}
	}
	for _, bad := range []wire.Target{
		{}, {Any: true, ID: "x"}, {ID: "a b"}, {ID: "id:x,y=z"}, {ID: strings.Repeat("x", 64)},
		{Labels: map[string]string{"a": "b,c=d"}}, {Labels: map[string]string{"": "x"}}, {Labels: map[string]string{"a=b": "x"}},
		{Any: true, Labels: map[string]string{"a": "b"}},
	} {
		if err := CheckTarget(bad); wire.KindOf(err) != wire.BadUsage {
			t.Errorf("%+v: %v", bad, err)
		}
	}
	if _, err := ParseTarget("nonsense"); err == nil {
		t.Error("nonsense was parsed")
	}
}

func TestOrder(t *testing.T) {
	got, err := Order([][]int{{2}, {0}, {}, {1, 2}})
	if err != nil || !slices.Equal(got, []int{2, 0, 1, 3}) {
		t.Fatalf("%v, %v", got, err)
	}
	for _, tt := range []struct {
		deps [][]int
		want string
	}{
		{[][]int{{0}}, "#0 -> #0"},
		{[][]int{{1}, {2}, {1}}, "#1 -> #2 -> #1"},
		{[][]int{{2}, {0}, {1}}, "#0 -> #2 -> #1 -> #0"},
	} {
		_, err := Order(tt.deps)
		conflict(t, err)
		if !strings.HasSuffix(err.Error(), ": "+tt.want) {
			t.Errorf("%v: %v, want %s", tt.deps, err, tt.want)
		}
	}
	chain := make([][]int, 100_000)
	for i := 1; i < len(chain); i++ {
		chain[i-1] = []int{i}
	}
	if got, err := Order(chain); err != nil || got[0] != len(chain)-1 {
		t.Fatalf("chain: %v", err)
	}
}

func TestParseBatchRef(t *testing.T) {
	if n, ok, err := ParseBatchRef("#2", 3); n != 2 || !ok || err != nil {
		t.Fatal(n, ok, err)
	}
	if _, ok, err := ParseBatchRef("01J", 3); ok || err != nil {
		t.Fatal(ok, err)
	}
	for _, bad := range []string{"#3", "#-1", "#", "#x"} {
		if _, ok, err := ParseBatchRef(bad, 3); !ok || wire.KindOf(err) != wire.BadUsage {
			t.Errorf("%s: %v %v", bad, ok, err)
		}
	}
}

func TestCheckSpec(t *testing.T) {
	good := wire.JobSpec{Operation: wire.OpDeploy, Project: "shop", App: "web-1", Workspace: "my_ws", Target: wire.Target{Any: true}}
	if err := CheckSpec(&good); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*wire.JobSpec){
		"operation":         func(s *wire.JobSpec) { s.Operation = "dance" },
		"workspace, space":  func(s *wire.JobSpec) { s.Workspace = "a b" },
		"project, newline":  func(s *wire.JobSpec) { s.Project = "a\nb" },
		"app, long":         func(s *wire.JobSpec) { s.App = strings.Repeat("x", 129) },
		"app, not UTF-8":    func(s *wire.JobSpec) { s.App = "\xff" },
		"singleton, NUL":    func(s *wire.JobSpec) { s.Singleton = "a\x00" },
		"priority":          func(s *wire.JobSpec) { s.Priority = MaxPriority + 1 },
		"time-out":          func(s *wire.JobSpec) { s.Timeout = -1 },
		"expiry":            func(s *wire.JobSpec) { s.ExpiresIn = -1 },
		"artifact":          func(s *wire.JobSpec) { s.Artifact = -1 },
		"target":            func(s *wire.JobSpec) { s.Target = wire.Target{} },
		"many dependencies": func(s *wire.JobSpec) { s.DependsOn = make([]string, MaxDependencies+1) },
	} {
		s := good
		change(&s)
		if err := CheckSpec(&s); wire.KindOf(err) != wire.BadUsage {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestOrderOfJobs(t *testing.T) {
	a := &Job{Place: "1"}
	b := &Job{Place: "2"}
	c := &Job{Place: "3"}
	c.Priority = 1
	if !a.Before(b) || b.Before(a) || !c.Before(a) || a.Before(c) {
		t.Fatal("priority first, then place")
	}
}
