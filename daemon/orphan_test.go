package daemon_test

import (
	"testing"

	"github.com/waypointd/waypoint/daemon/daemontest"
	"github.com/waypointd/waypoint/mux/wire"
)

// Another identity that is admitted under a forgotten id gets nothing of what
// the old one runs: the job is lost, for its runner cannot come back for it.
func TestForgottenAndAnotherAdmitted(t *testing.T) {
	for name, admit := range map[string]func(*daemontest.Server, *daemontest.Runner){
		"by a token": func(s *daemontest.Server, r *daemontest.Runner) {
			r.Show(s.Token(t, wire.RunnerTokenRequest{}))
			r.MustConnect()
		},
		"by a token, shown over its session": func(s *daemontest.Server, r *daemontest.Runner) {
			r.MustConnect()
			r.MustBegin()
			r.Show(s.Token(t, wire.RunnerTokenRequest{}))
			r.MustAuthenticate(false)
		},
		"by adoption": func(_ *daemontest.Server, r *daemontest.Runner) {
			r.MustConnect()
			r.MustBegin()
			r.MustAdopt()
		},
		"behind a restart": func(s *daemontest.Server, r *daemontest.Runner) {
			r.MustConnect()
			s.Restart()
			r.Show(s.Token(t, wire.RunnerTokenRequest{}))
			r.MustConnect()
		},
		"before a restart": func(s *daemontest.Server, r *daemontest.Runner) {
			r.Show(s.Token(t, wire.RunnerTokenRequest{}))
			r.MustConnect()
			s.Restart()
			r.MustConnect()
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := daemontest.Start(t, slowly)
			_, job, held := forgottenAtWork(t, s, s.Client(t))
			other := s.Runner(t, "r1", nil)
			admit(s, other)
			back(t, other, held)
			_, _, err := other.Report(held.JobRef)
			wantKind(t, err, wire.Conflict)
			if j := s.AwaitJob(t, job, ended); j.Reason != wire.ReasonRunnerLost {
				t.Errorf("job is %+v", j)
			}
			back(t, other)
			gets(t, s.Client(t), other)
		})
	}
}

// Who it was that has been forgotten at work outlives the server, but not that
// runner's return.
func TestForgottenAndBackTwice(t *testing.T) {
	s := daemontest.Start(t, slowly)
	r, job, held := forgottenAtWork(t, s, s.Client(t))
	s.Runner(t, "r1", nil).MustConnect()
	forget(t, s.Client(t), "r1") // another, who had none of it
	s.Restart()
	r.MustConnect()
	if b := r.MustBegin(held); len(b.Keep) != 1 {
		t.Fatalf("begun %+v", b)
	}
	r.MustFinish(held.JobRef, "", daemontest.Succeeded())
	s.AwaitJob(t, job, ended)
	forget(t, s.Client(t), "r1")
	other := connected(t, s, "r1", nil, s.Token(t, wire.RunnerTokenRequest{}))
	c := s.Client(t)
	job = submit(t, c, run(func(j *wire.JobSpec) { j.Target = wire.Target{ID: "r1"} }))[0].ID
	a := other.MustStart()
	s.AwaitJob(t, job, running)
	s.Restart()
	other.MustConnect()
	if b := other.MustBegin(wire.Held{JobRef: a.JobRef, Started: true}); len(b.Keep) != 1 {
		t.Fatalf("begun %+v", b)
	}
	other.MustFinish(a.JobRef, "", daemontest.Succeeded())
}
