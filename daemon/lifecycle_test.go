package daemon_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/waypointd/waypoint/daemon"
	"github.com/waypointd/waypoint/daemon/daemontest"
	"github.com/waypointd/waypoint/mux/wire"
)

// A runner that waits gets a job the moment its dependency has ended, and its
// dependents end with one that failed.
func TestDependentJobs(t *testing.T) {
	s := daemontest.Start(t, slowly)
	c := s.Client(t)
	r, idle := s.Adopted(t, "r1", nil), s.Adopted(t, "r2", nil)
	after := func(j *wire.JobSpec) { j.DependsOn = []string{"#0"} }
	allowing := func(j *wire.JobSpec) { after(j); j.AllowDependencyFailure = true }
	to := func(id string) func(*wire.JobSpec) {
		return func(j *wire.JobSpec) { j.Target = wire.Target{ID: id} }
	}
	jobs := submit(t, c, run(to("r1")), run(after, to("r2")))
	a := r.MustStart()
	if o, ok := idle.Order(20 * time.Millisecond); ok {
		t.Fatalf("order %+v before the dependency has ended", o)
	}
	r.MustFinish(a.JobRef, "", daemontest.Succeeded())
	b := idle.MustStart()
	if b.Job != jobs[1].ID {
		t.Fatalf("assigned %s, want %s", b.Job, jobs[1].ID)
	}
	idle.MustFinish(b.JobRef, "", daemontest.Succeeded())

	for _, end := range []func(ref wire.JobRef){
		func(ref wire.JobRef) { r.MustFinish(ref, "", daemontest.FailedWith(1)) },
		func(ref wire.JobRef) {
			if _, err := c.Cancel(t.Context(), ref.Job, true); err != nil {
				t.Fatal(err)
			}
			if o := r.MustOrder(); o.Drop == nil {
				t.Fatalf("order %+v, want drop", o)
			}
		},
	} {
		jobs = submit(t, c, run(to("r1")), run(after, to("r2")), run(allowing, to("r2")))
		end(r.MustStart().JobRef)
		if j := s.AwaitJob(t, jobs[1].ID, ended); j.Reason != wire.ReasonDependency || j.Attempt != 0 {
			t.Fatalf("dependent ended as %+v", j)
		}
		b := idle.MustStart()
		if b.Job != jobs[2].ID {
			t.Fatalf("assigned %s, want the one that allows it", b.Job)
		}
		idle.MustFinish(b.JobRef, "", daemontest.Succeeded())
	}
}

// While its runner is heard, a job outlives any number of leases; a refusal
// before leaves no timer behind that would end it.
func TestHeartbeatsKeepAJob(t *testing.T) {
	const lease = 300 * time.Millisecond
	s := daemontest.Start(t, daemon.Config{Heartbeat: lease, Lease: lease, AckTimeout: lease})
	c := s.Client(t)
	r, other := s.Adopted(t, "r1", nil), s.Runner(t, "r2", nil)
	stop := make(chan struct{})
	var talk sync.WaitGroup
	beat := func(r *daemontest.Runner) {
		talk.Go(func() {
			for {
				select {
				case <-stop:
					return
				case <-time.After(10 * time.Millisecond):
					r.Say(wire.WorkEvent{Heartbeat: true})
				}
			}
		})
	}
	job := submit(t, c, run())[0]
	first := r.MustAssign()
	r.Say(wire.WorkEvent{Nack: &wire.Nack{JobRef: first.JobRef, Error: "not now"}})
	beat(r)
	other.MustConnect()
	other.MustBegin()
	other.MustAdopt()
	a := other.MustStart()
	beat(other)
	ctx, cancel := context.WithTimeout(t.Context(), 2*lease)
	defer cancel()
	if j, err := c.Wait(ctx, job.ID); wire.KindOf(err) != wire.Timeout {
		t.Errorf("the job ended while its runner was heard: %+v, %v", j, err)
	}
	close(stop)
	talk.Wait()
	other.MustFinish(a.JobRef, "", daemontest.Succeeded())
	if j := s.AwaitJob(t, job.ID, ended); j.State != wire.Success || j.Attempt != 2 {
		t.Errorf("job ended as %+v", j)
	}
}

// Which runners count for the question whether a job could run remotely.
func TestMatch(t *testing.T) {
	s := daemontest.Start(t, slowly)
	c := s.Client(t)
	any, byID := wire.Target{Any: true}, wire.Target{ID: "r1"}
	labels := func(kv ...string) wire.Target {
		to := wire.Target{Labels: map[string]string{}}
		for i := 0; i < len(kv); i += 2 {
			to.Labels[kv[i]] = kv[i+1]
		}
		return to
	}
	match := func(when string, to wire.Target, want bool) {
		t.Helper()
		if got, err := c.Match(t.Context(), to); err != nil || got != want {
			t.Errorf("%s, %+v: %v, %v; want %v", when, to, got, err, want)
		}
	}
	match("no runner", any, false)
	r := s.Runner(t, "r1", map[string]string{"zone": "east", "disk": "ssd"})
	r.MustConnect()
	r.MustBegin()
	match("pending", any, false)
	match("pending", byID, false)
	if _, err := c.Adopt(t.Context(), "r1", ""); err != nil {
		t.Fatal(err)
	}
	match("adopted, its token not taken yet", any, false)
	r.TakeGrant()
	match("adopted", any, true)
	match("adopted", byID, true)
	match("adopted", wire.Target{ID: "r2"}, false)
	match("adopted", labels("zone", "east", "disk", "ssd"), true)
	match("adopted", labels("zone", "east"), true)
	match("adopted", labels("zone", "west"), false)
	match("adopted", labels("zone", "east", "gpu", "yes"), false)
	match("adopted", wire.Target{}, false)
	submit(t, c, run())
	r.MustStart()
	match("busy", any, true)
}

// A reader of a job that ends without having run is told so; another that
// leaves hinders nobody.
func TestReadersOfAQueuedJob(t *testing.T) {
	s := daemontest.Start(t, slowly)
	c := s.Client(t)
	job := submit(t, c, run(func(j *wire.JobSpec) { j.ExpiresIn = wire.Duration(100 * time.Millisecond) }))[0]
	ctx, leave := context.WithCancel(t.Context())
	defer leave()
	for item, err := range c.Stream(ctx, wire.StreamRequest{ID: job.ID, Follow: true}) {
		if err != nil {
			break
		}
		if item.Event.Job.State != wire.Queued {
			t.Errorf("event %+v", item.Event)
		}
		leave()
	}
	var last wire.StreamEvent
	for item, err := range c.Stream(t.Context(), wire.StreamRequest{ID: job.ID, Follow: true}) {
		if err != nil {
			t.Fatal(err)
		}
		last = *item.Event
	}
	if !last.Last || last.Job.Reason != wire.ReasonExpired || last.Job.Attempt != 0 {
		t.Errorf("last event %+v", last)
	}
}

// A runner that drains is given nothing more and keeps what it has.
func TestDrain(t *testing.T) {
	s := daemontest.Start(t, slowly)
	c := s.Client(t)
	r := s.Adopted(t, "r1", nil)
	has := submit(t, c, run())[0]
	a := r.MustStart()
	yes, no := true, false
	r.Say(wire.WorkEvent{Drain: &yes})
	for {
		got, err := c.Runner(t.Context(), "r1")
		if err != nil {
			t.Fatal(err)
		}
		if got.Draining {
			break
		}
	}
	r.MustFinish(a.JobRef, "", daemontest.Succeeded())
	if j := s.AwaitJob(t, has.ID, ended); j.State != wire.Success {
		t.Fatalf("job ended as %+v", j)
	}
	next := submit(t, c, run())[0]
	if o, ok := r.Order(20 * time.Millisecond); ok {
		t.Fatalf("order %+v while it drains", o)
	}
	if why, err := c.Why(t.Context(), next.ID); err != nil || why.Code != "runners_draining" {
		t.Errorf("why: %+v, %v", why, err)
	}
	if match, err := c.Match(t.Context(), wire.Target{Any: true}); err != nil || match {
		t.Errorf("a draining runner matches: %v, %v", match, err)
	}
	r.Say(wire.WorkEvent{Drain: &no})
	if a := r.MustStart(); a.Job != next.ID {
		t.Errorf("assigned %s, want %s", a.Job, next.ID)
	}
}

// A runner that is lost with many jobs has all of them ended.
func TestManyJobsLost(t *testing.T) {
	s := daemontest.Start(t, slowly)
	c := s.Client(t)
	r := s.Runner(t, "r1", nil)
	r.Hello.Concurrency = 200
	r.MustConnect()
	r.MustBegin()
	r.MustAdopt()
	specs := make([]wire.JobSpec, 200)
	for i := range specs {
		specs[i] = run()
	}
	jobs := submit(t, c, specs...)
	for range jobs {
		o := r.MustOrder()
		if o.Start != nil {
			o = r.MustOrder()
		}
		for o.Assign == nil {
			o = r.MustOrder()
		}
		r.Say(wire.WorkEvent{Ack: &o.Assign.JobRef})
	}
	s.AwaitJob(t, jobs[199].ID, running)
	r.Disconnect()
	r.MustConnect()
	if b := r.MustBegin(); len(b.Keep)+len(b.Drop) != 0 {
		t.Errorf("begun %+v", b)
	}
	for _, job := range jobs {
		if j, err := c.Wait(t.Context(), job.ID); err != nil || j.Reason != wire.ReasonRunnerLost {
			t.Fatalf("job ended as %+v, %v", j, err)
		}
	}
}
