package daemon_test

import (
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/waypointd/waypoint/daemon"
	"github.com/waypointd/waypoint/daemon/daemontest"
	"github.com/waypointd/waypoint/mux/client"
	"github.com/waypointd/waypoint/mux/wire"
)

// situation is a server, a runner r1 and a job in some trouble.
type situation struct {
	t   *testing.T
	cfg daemon.Config
	s   *daemontest.Server
	c   *client.Client
	r   *daemontest.Runner
	job string
	ref wire.JobRef
}

// runs gives the job to the runner, which starts it.
func (x *situation) runs() {
	x.t.Helper()
	x.job = submit(x.t, x.c, run(func(j *wire.JobSpec) { j.Target = wire.Target{ID: "r1"} }))[0].ID
	x.ref = x.r.MustStart().JobRef
	x.s.AwaitJob(x.t, x.job, running)
}

// away ends the runner's session, and waits until the server has noticed.
func (x *situation) away() {
	x.t.Helper()
	x.r.Disconnect()
	for end := time.Now().Add(daemontest.Patience); inspect(x.t, x.c, "r1").Online; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			x.t.Fatal("the runner stays online")
		}
	}
}

func (x *situation) back() {
	x.t.Helper()
	x.r.MustConnect()
	x.r.MustBegin(wire.Held{JobRef: x.ref, Started: true})
}

func (x *situation) restart() {
	x.t.Helper()
	x.s.Restart()
	x.c = x.s.Client(x.t)
}

// waits has the runner say what its jobs wait for.
func (x *situation) waits(waits ...wire.Wait) {
	x.t.Helper()
	x.r.Say(wire.WorkEvent{Holds: &wire.WorkHolds{Jobs: []wire.JobRef{x.ref}, Waits: waits}})
	for end := time.Now().Add(daemontest.Patience); len(inspect(x.t, x.c, "r1").Waits) != min(len(waits), 1); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			x.t.Fatal("what its jobs wait for is not known")
		}
	}
}

// reserve makes everything the disk has the server's reserve.
func (x *situation) reserve(bytes int64) {
	x.t.Helper()
	x.s.Reload(func(c *daemon.Config) { c.StoreReserve = bytes })
}

// small is a directory of few megabytes.
func small(t *testing.T) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("SKIPPED: only root can mount a small file system")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=16m,mode=0700"); err != nil {
		t.Skipf("SKIPPED: mount: %v", err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}

// fill takes all the room of the store, until the server knows.
func (x *situation) fill() {
	x.t.Helper()
	f, err := os.Create(filepath.Join(x.cfg.StateDir, "ballast"))
	if err != nil {
		x.t.Fatal(err)
	}
	defer f.Close()
	page := make([]byte, os.Getpagesize())
	for err == nil {
		_, err = f.Write(page)
	}
	much := run(func(j *wire.JobSpec) {
		j.Target, j.Script, j.Command = wire.Target{ID: "r9"}, "# "+strings.Repeat("x", 100_000), nil
	})
	for end := time.Now().Add(daemontest.Patience); ; {
		if _, err := x.c.Submit(x.t.Context(), much); err != nil && wire.KindOf(err) != wire.Unavailable {
			x.t.Fatal(err)
		}
		if st, err := x.c.ServerStatus(x.t.Context()); err == nil && st.StoreProblem == wire.StoreFull {
			return
		}
		if time.Now().After(end) {
			x.t.Fatal("the store is never full")
		}
	}
}

// empty gives the room back, until the server knows.
func (x *situation) empty() {
	x.t.Helper()
	if err := os.Remove(filepath.Join(x.cfg.StateDir, "ballast")); err != nil {
		x.t.Fatal(err)
	}
	for end := time.Now().Add(daemontest.Patience); ; time.Sleep(time.Millisecond) {
		if st, err := x.c.ServerStatus(x.t.Context()); err == nil && st.StoreProblem == "" {
			return
		}
		if time.Now().After(end) {
			x.t.Fatal("the store stays full")
		}
	}
}

// counted compares what the server's status counts with what there is.
func (x *situation) counted(st wire.ServerStatus) {
	x.t.Helper()
	const most = 500
	list, err := x.c.Jobs(x.t.Context(), wire.JobFilter{Limit: most})
	if err != nil || len(list) == most {
		x.t.Fatalf("%d jobs, %v", len(list), err)
	}
	jobs := map[string]int{}
	for _, j := range list {
		jobs[string(j.State)]++
	}
	fleet, err := x.c.Runners(x.t.Context(), wire.RunnerFilter{})
	if err != nil {
		x.t.Fatal(err)
	}
	runners, online := map[string]int{}, 0
	for _, r := range fleet {
		runners[string(r.State)]++
		if inspect(x.t, x.c, r.ID).Online {
			online++
		}
	}
	none := func(_ string, n int) bool { return n == 0 }
	maps.DeleteFunc(st.Jobs, none)
	maps.DeleteFunc(st.Runners, none)
	if !maps.Equal(st.Jobs, jobs) || st.QueueDepth != jobs[string(wire.Queued)] {
		x.t.Errorf("status counts jobs %v, %d in the queue; there are %v", st.Jobs, st.QueueDepth, jobs)
	}
	if !maps.Equal(st.Runners, runners) || st.RunnersOnline != online || len(fleet) == 0 {
		x.t.Errorf("status counts runners %v, %d online; there are %v, %d online", st.Runners, st.RunnersOnline, runners, online)
	}
}

// What `job why`, `job inspect`, `runner inspect` and `server status` say in each trouble, and in
// several at once, is what is so.
func TestSituations(t *testing.T) {
	const all = 1 << 60 // bytes, more than any disk has free
	for _, tt := range []struct {
		name    string
		cfg     daemon.Config
		arrange func(x *situation)
		code    string
		says    []string
		not     []string
		job     func(j wire.Job) bool
		runner  func(r wire.Runner) bool
		store   wire.StoreProblem
		small   bool // the server's disk is one that can be filled
	}{
		{
			name: "runs", arrange: func(x *situation) { x.runs() },
			code: "running", says: []string{`on runner "r1"`}, not: []string{"contact", "back", ";"},
			runner: func(r wire.Runner) bool { return r.Online && r.Admitted && r.RunningJobs == 1 },
		},
		{
			name: "its runner is away", arrange: func(x *situation) { x.runs(); x.away() },
			code: "running", says: []string{"out of contact since 20", "ends as runner_lost at 20", "unless it is back by then"},
			runner: func(r wire.Runner) bool { return !r.Online && r.RunningJobs == 1 && !r.LastSeen.IsZero() },
		},
		{
			name: "the server was restarted, and its runner is not back", arrange: func(x *situation) { x.runs(); x.restart() },
			code: "running", says: []string{"the server was started at 20", "has not come back since", "ends as runner_lost at 20"}, not: []string{"out of contact"},
			runner: func(r wire.Runner) bool { return !r.Online && r.RunningJobs == 1 },
		},
		{
			name: "and back", arrange: func(x *situation) { x.runs(); x.restart(); x.back() },
			code: "running", not: []string{"contact", "back", ";"},
			runner: func(r wire.Runner) bool { return r.Online && r.RunningJobs == 1 },
		},
		{
			name: "away, canceled, and no room for new work", arrange: func(x *situation) {
				x.runs()
				x.away()
				if _, err := x.c.Cancel(x.t.Context(), x.job, false); err != nil {
					x.t.Fatal(err)
				}
				x.reserve(all)
			},
			code: "running", says: []string{"out of contact since 20", "its cancel was requested at 20"}, not: []string{"no room"},
			job:   func(j wire.Job) bool { return !j.CancelRequested.IsZero() && j.RunnerID == "r1" },
			store: wire.StoreReserve,
		},
		{
			name: "its runner was forgotten, and a stranger has its id", arrange: func(x *situation) {
				x.runs()
				forget(x.t, x.c, "r1")
				other := x.s.Runner(x.t, "r1", nil)
				other.MustConnect()
				other.MustBegin()
			},
			code: "running", says: []string{"the runner was forgotten", "ends as runner_lost at 20", "unless it is admitted again"},
			runner: func(r wire.Runner) bool { return r.Online && r.State == wire.Pending && !r.Admitted },
		},
		{
			name: "its runner's disk is full", arrange: func(x *situation) {
				x.runs()
				x.waits(wire.Wait{JobRef: x.ref, For: "room on the runner's disk\nto go on"})
			},
			code: "running", says: []string{"; it waits for room on the runner's disk?to go on"}, not: []string{"contact"},
			runner: func(r wire.Runner) bool {
				return r.Online && len(r.Waits) == 1 && r.Waits[0].For == "room on the runner's disk?to go on"
			},
		},
		{
			name: "a newer release than its runner's has its directory", arrange: func(x *situation) {
				x.runs()
				x.restart()
				x.back()
				x.waits(wire.Wait{JobRef: x.ref, For: "the newer release that wrote its directory"})
			},
			code: "running", says: []string{`on runner "r1"`, "; it waits for the newer release that wrote its directory"}, not: []string{"contact", "back"},
			runner: func(r wire.Runner) bool { return r.Online && r.RunningJobs == 1 && len(r.Waits) == 1 },
		},
		{
			name: "its runner's disk has room again", arrange: func(x *situation) {
				x.runs()
				x.waits(wire.Wait{JobRef: x.ref, For: "room"}, wire.Wait{JobRef: wire.JobRef{Job: "another", Attempt: 1}, For: "nothing of its own"})
				x.waits()
			},
			code: "running", not: []string{"waits", ";"},
			runner: func(r wire.Runner) bool { return r.Online && len(r.Waits) == 0 },
		},
		{
			name: "lost", cfg: briefly, arrange: func(x *situation) {
				x.job = loseJob(x.t, x.s, x.r, "on\n").Job
			},
			code: "ended", says: []string{"as error (runner_lost)", "out of contact for longer than"}, not: []string{"later"},
			job: func(j wire.Job) bool {
				return j.State == wire.Failed && j.Reason == wire.ReasonRunnerLost && j.LateResult == nil && !j.FinishedAt.IsZero()
			},
		},
		{
			name: "lost, and it had failed", cfg: briefly, arrange: func(x *situation) {
				a := loseJob(x.t, x.s, x.r, "on\n")
				x.job = a.Job
				x.r.MustBegin(wire.Held{JobRef: a.JobRef, Started: true})
				if err := x.r.FinishLate(a.JobRef, "on\noff\n", daemontest.FailedWith(3)); err != nil {
					x.t.Fatal(err)
				}
			},
			code: "ended", says: []string{"(runner_lost)", "its runner said later, at 20", "it had ended by itself with exit code 3"},
			job: func(j wire.Job) bool {
				l := j.LateResult
				return j.Reason == wire.ReasonRunnerLost && l != nil && l.State == wire.Failed && l.ExitCode != nil && *l.ExitCode == 3
			},
		},
		{
			name: "lost, and it was stopped", cfg: briefly, arrange: func(x *situation) {
				a := loseJob(x.t, x.s, x.r, "on\n")
				x.job = a.Job
				x.r.MustBegin(wire.Held{JobRef: a.JobRef, Started: true})
				res := wire.Result{State: wire.Canceled, Reason: wire.ReasonCanceled, Signal: "SIGTERM"}
				if err := x.r.FinishLate(a.JobRef, "on\n", res); err != nil {
					x.t.Fatal(err)
				}
			},
			code: "ended", says: []string{"(runner_lost)", "it had been stopped by SIGTERM"},
			job: func(j wire.Job) bool {
				l := j.LateResult
				return j.Reason == wire.ReasonRunnerLost && l != nil && l.State == wire.Canceled && l.Signal == "SIGTERM"
			},
		},
		{
			name: "its supervisor is gone", arrange: func(x *situation) {
				x.runs()
				x.r.MustFinish(x.ref, "", wire.Result{State: wire.Failed, Reason: wire.ReasonRunnerLost, Error: "the supervisor of the job is gone"})
			},
			code: "ended", says: []string{"(runner_lost): the supervisor of the job is gone"}, not: []string{"contact"},
			job: func(j wire.Job) bool { return j.Error == "the supervisor of the job is gone" && j.LateResult == nil },
		},
		{
			name: "its runner was never there", arrange: func(x *situation) {
				x.job = submit(x.t, x.c, run(func(j *wire.JobSpec) { j.Target = wire.Target{ID: "r9"} }))[0].ID
			},
			code: "no_runner_matches", says: []string{`runner "r9"`},
		},
		{
			name: "queued, and its runner's agent was stopped", arrange: func(x *situation) {
				x.away()
				x.job = submit(x.t, x.c, run(func(j *wire.JobSpec) { j.Target = wire.Target{ID: "r1"} }))[0].ID
			},
			code: "runners_offline", says: []string{"r1 (last seen 20"}, runner: func(r wire.Runner) bool { return !r.Online && r.RunningJobs == 0 },
		},
		{
			name: "queued, and its runner drains on its host", arrange: func(x *situation) {
				x.r.Say(wire.WorkEvent{Drain: new(true)})
				for end := time.Now().Add(daemontest.Patience); !inspect(x.t, x.c, "r1").Draining; time.Sleep(time.Millisecond) {
					if time.Now().After(end) {
						x.t.Fatal("no drain")
					}
				}
				x.job = submit(x.t, x.c, run(func(j *wire.JobSpec) { j.Target = wire.Target{ID: "r1"} }))[0].ID
			},
			code: "runners_draining", says: []string{"draining: r1"}, runner: func(r wire.Runner) bool { return r.Online && r.Draining },
		},
		{
			name: "queued, and its runner cannot write its disk", arrange: func(x *situation) {
				x.r.Say(wire.WorkEvent{Drain: new(true)})
				x.r.Say(wire.WorkEvent{Holds: &wire.WorkHolds{Waits: []wire.Wait{{For: "its disk to be writable again: no space"}}}})
				for end := time.Now().Add(daemontest.Patience); len(inspect(x.t, x.c, "r1").Waits) == 0; time.Sleep(time.Millisecond) {
					if time.Now().After(end) {
						x.t.Fatal("what it waits for is not known")
					}
				}
				x.job = submit(x.t, x.c, run(func(j *wire.JobSpec) { j.Target = wire.Target{ID: "r1"} }))[0].ID
			},
			code: "runners_draining", says: []string{"draining: r1 (it waits for its disk to be writable again: no space)"},
			runner: func(r wire.Runner) bool { return r.Online && r.Draining && len(r.Waits) == 1 && r.Waits[0].Job == "" },
		},
		{
			name: "queued, the store has its reserve left, and no runner is there", arrange: func(x *situation) {
				x.away()
				x.job = submit(x.t, x.c, run())[0].ID
				x.reserve(all)
			},
			code: "store_reserve", says: []string{"only its reserve left", "waypoint server status", "besides, it wants any runner, and all that match are offline"}, store: wire.StoreReserve,
		},
		{
			name: "queued, and there is room again", arrange: func(x *situation) {
				x.away()
				x.job = submit(x.t, x.c, run())[0].ID
				x.reserve(all)
				x.reserve(-1)
			},
			code: "runners_offline", not: []string{"reserve"},
		},
		{
			name: "runs, and the store is full", small: true, arrange: func(x *situation) { x.runs(); x.fill() },
			code: "running", says: []string{"the server's store has no room", "wait at the runner until there is some"}, not: []string{"contact"},
			job:    func(j wire.Job) bool { return j.RunnerID == "r1" && j.CancelRequested.IsZero() },
			runner: func(r wire.Runner) bool { return r.Online && r.Admitted && r.RunningJobs == 1 }, store: wire.StoreFull,
		},
		{
			name: "runs, its runner is away, and the store is full", small: true, arrange: func(x *situation) { x.runs(); x.away(); x.fill() },
			code: "running", says: []string{"out of contact since 20", "ends as runner_lost at 20", "the server's store has no room"},
			runner: func(r wire.Runner) bool { return !r.Online && r.RunningJobs == 1 }, store: wire.StoreFull,
		},
		{
			name: "runs, and the store has room again", small: true, arrange: func(x *situation) { x.runs(); x.fill(); x.empty() },
			code: "running", not: []string{"room", ";"},
			runner: func(r wire.Runner) bool { return r.Online && r.RunningJobs == 1 },
		},
		{
			name: "queued, and the store is full", small: true, arrange: func(x *situation) {
				x.away()
				x.job = submit(x.t, x.c, run(func(j *wire.JobSpec) { j.Target = wire.Target{ID: "r1"} }))[0].ID
				x.fill()
			},
			code: "store_full", says: []string{"has no room, so no job is handed out", "waypoint server status", "besides, it wants runner \"r1\""},
			job:    func(j wire.Job) bool { return j.RunnerID == "" && j.Attempt == 0 },
			runner: func(r wire.Runner) bool { return !r.Online }, store: wire.StoreFull,
		},
		{
			name: "runs, and both disks are full", small: true, arrange: func(x *situation) {
				x.runs()
				x.waits(wire.Wait{JobRef: x.ref, For: "room on the runner's disk"})
				x.fill()
			},
			code: "running", says: []string{"it waits for room on the runner's disk", "the server's store has no room"},
			runner: func(r wire.Runner) bool { return len(r.Waits) == 1 }, store: wire.StoreFull,
		},
		{
			name: "waits for a job whose runner is away", arrange: func(x *situation) {
				x.runs()
				before := x.job
				x.away()
				x.job = submit(x.t, x.c, run(func(j *wire.JobSpec) { j.DependsOn = []string{before} }))[0].ID
			},
			code: "dependency", says: []string{"(run, running)"},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg := tt.cfg
			if cfg.Lease == 0 {
				cfg = slowly
			}
			if tt.small {
				cfg.StateDir, cfg.StoreReserve = small(t), -1
			}
			s := daemontest.Start(t, cfg)
			x := &situation{t: t, cfg: cfg, s: s, c: s.Client(t), r: s.Adopted(t, "r1", nil)}
			tt.arrange(x)
			w, err := x.c.Why(t.Context(), x.job)
			if err != nil || w.Code != tt.code {
				t.Fatalf("why: %q %q, %v; want %s", w.Code, w.Sentence, err, tt.code)
			}
			t.Log(w.Sentence)
			for _, text := range tt.says {
				if !strings.Contains(w.Sentence, text) {
					t.Errorf("why does not say %q: %s", text, w.Sentence)
				}
			}
			for _, text := range tt.not {
				if strings.Contains(w.Sentence, text) {
					t.Errorf("why says %q: %s", text, w.Sentence)
				}
			}
			j, err := x.c.Job(t.Context(), x.job)
			if err != nil {
				t.Fatal(err)
			}
			if was := w.Job; j.State != was.State || j.Reason != was.Reason || j.Error != was.Error || j.RunnerID != was.RunnerID || j.Attempt != was.Attempt {
				t.Errorf("why tells of %+v, inspect of %+v", was, j)
			}
			if is := map[string]bool{"ended": j.State.Ended(), "running": j.State == wire.Running}; !is[tt.code] && (is["ended"] || is["running"]) {
				t.Errorf("why says %s, inspect %s", tt.code, j.State)
			}
			if tt.job != nil && !tt.job(j) {
				t.Errorf("job %+v", j)
			}
			if r := inspect(t, x.c, "r1"); tt.runner != nil && !tt.runner(r) {
				t.Errorf("runner %+v", r)
			}
			st, err := x.c.ServerStatus(t.Context())
			if err != nil || st.StoreProblem != tt.store {
				t.Errorf("status %+v, %v", st, err)
			}
			x.counted(st)
		})
	}
}
