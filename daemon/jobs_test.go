package daemon_test

import (
	"bytes"
	"context"
	"strings"
	"testing"
	"time"

	"github.com/waypointd/waypoint/daemon"
	"github.com/waypointd/waypoint/daemon/daemontest"
	"github.com/waypointd/waypoint/mux/client"
	"github.com/waypointd/waypoint/mux/wire"
)

// run is a job for any runner.
func run(edit ...func(*wire.JobSpec)) wire.JobSpec {
	spec := wire.JobSpec{Operation: wire.OpRun, Command: []string{"true"}, Target: wire.Target{Any: true}}
	for _, e := range edit {
		e(&spec)
	}
	return spec
}

func submit(t testing.TB, c *client.Client, specs ...wire.JobSpec) []wire.Job {
	t.Helper()
	jobs, err := c.Submit(t.Context(), specs...)
	if err != nil {
		t.Fatalf("submit: %v", err)
	}
	return jobs
}

func ended(j wire.Job) bool { return j.State.Ended() }

func running(j wire.Job) bool { return j.State == wire.Running }

func queued(attempt int) func(wire.Job) bool {
	return func(j wire.Job) bool { return j.State == wire.Queued && j.Attempt == attempt }
}

func wantKind(t *testing.T, err error, kind wire.Kind) {
	t.Helper()
	if wire.KindOf(err) != kind {
		t.Fatalf("error %v is of kind %q, want %q", err, wire.KindOf(err), kind)
	}
}

// slowly never comes to a deadline by itself within a test.
var slowly = daemon.Config{AckTimeout: time.Hour, Lease: time.Hour}

// What is ready, and more than one transaction hands out, does not wait for anything else.
func TestManyReadyAtOnce(t *testing.T) {
	s := daemontest.Start(t, slowly)
	c := s.Client(t)
	r := s.Adopted(t, "r1", nil)
	r.Hello.Concurrency = 300
	back(t, r)
	specs := make([]wire.JobSpec, r.Hello.Concurrency)
	for i := range specs {
		specs[i] = run()
	}
	submit(t, c, specs...)
	for range specs {
		r.MustAssign()
	}
}

func TestJobOnItsWay(t *testing.T) {
	s := daemontest.Start(t, slowly)
	c := s.Client(t)
	r := s.Adopted(t, "r1", nil)
	job := submit(t, c, run())[0]
	if job.State != wire.Queued && job.State != wire.Assigned || job.ID == "" {
		t.Fatalf("submitted job is %+v", job)
	}
	a := r.MustAssign()
	if a.Job != job.ID || a.Attempt != 1 || a.LogLimit != 1<<30 {
		t.Fatalf("assignment %+v", a)
	}
	if j, err := c.Job(t.Context(), job.ID); err != nil || j.State != wire.Assigned || j.RunnerID != "r1" || j.AssignedAt.IsZero() {
		t.Fatalf("assigned job is %+v, %v", j, err)
	}
	r.Say(wire.WorkEvent{Ack: &a.JobRef})
	if o := r.MustOrder(); o.Start == nil {
		t.Fatalf("order %+v, want start", o)
	}
	s.AwaitJob(t, job.ID, running)
	r.MustFinish(a.JobRef, "hello\n", daemontest.Succeeded())
	j, err := c.Wait(t.Context(), job.ID)
	if err != nil || j.State != wire.Success || j.LogBytes != 6 || j.ExitCode == nil || *j.ExitCode != 0 {
		t.Fatalf("ended job is %+v, %v", j, err)
	}
	if j.QueuedAt.After(j.AssignedAt) || j.AssignedAt.After(j.StartedAt) || j.StartedAt.After(j.FinishedAt) {
		t.Errorf("times are out of order: %+v", j)
	}
}

// A job that ends before "running" was worth a commit is as complete as any.
func TestQuickJobHasItsStart(t *testing.T) {
	s := daemontest.Start(t, slowly)
	c := s.Client(t)
	r := s.Adopted(t, "r1", nil)
	job := submit(t, c, run())[0]
	r.MustFinish(r.MustStart().JobRef, "", daemontest.FailedWith(7))
	j, err := c.Wait(t.Context(), job.ID)
	if err != nil || j.State != wire.Failed || j.Reason != wire.ReasonFailed || *j.ExitCode != 7 || j.StartedAt.IsZero() {
		t.Fatalf("ended job is %+v, %v", j, err)
	}
}

func TestIdleRunnerIsWokenByAJob(t *testing.T) {
	s := daemontest.Start(t, slowly)
	r := s.Adopted(t, "r1", nil)
	if o, ok := r.Order(10 * time.Millisecond); ok {
		t.Fatalf("order %+v with nothing queued", o)
	}
	job := submit(t, s.Client(t), run())[0]
	if a := r.MustAssign(); a.Job != job.ID {
		t.Fatalf("assigned %s, want %s", a.Job, job.ID)
	}
}

func TestConcurrencyIsRespected(t *testing.T) {
	s := daemontest.Start(t, slowly)
	c := s.Client(t)
	r := s.Adopted(t, "r1", nil)
	jobs := submit(t, c, run(), run())
	a := r.MustStart()
	if a.Job != jobs[0].ID {
		t.Fatalf("the older job is not first")
	}
	if o, ok := r.Order(20 * time.Millisecond); ok {
		t.Fatalf("order %+v while the only slot is taken", o)
	}
	r.MustFinish(a.JobRef, "", daemontest.Succeeded())
	if a := r.MustAssign(); a.Job != jobs[1].ID {
		t.Fatalf("assigned %s, want %s", a.Job, jobs[1].ID)
	}
}

func TestTargets(t *testing.T) {
	s := daemontest.Start(t, slowly)
	c := s.Client(t)
	east := s.Adopted(t, "east", map[string]string{"zone": "east", "arch": "arm64"})
	to := func(target wire.Target) func(*wire.JobSpec) { return func(j *wire.JobSpec) { j.Target = target } }
	submit(t, c,
		run(to(wire.Target{ID: "west"})),
		run(to(wire.Target{Labels: map[string]string{"zone": "west"}})),
		run(to(wire.Target{Labels: map[string]string{"zone": "east", "gpu": "yes"}})),
	)
	if o, ok := east.Order(20 * time.Millisecond); ok {
		t.Fatalf("order %+v for a job of another's", o)
	}
	mine := submit(t, c, run(to(wire.Target{Labels: map[string]string{"zone": "east"}})))[0]
	if a := east.MustAssign(); a.Job != mine.ID {
		t.Fatalf("assigned %s, want %s", a.Job, mine.ID)
	}
	west := s.Adopted(t, "west", map[string]string{"zone": "west"})
	west.Hello.Concurrency = 1
	if a := west.MustAssign(); a.Spec.Target.ID != "west" {
		t.Fatalf("assigned %+v, want the older one for west by id", a)
	}
}

func TestLocalRunnerTakesOnlyItsOwn(t *testing.T) {
	s := daemontest.Start(t, slowly)
	c := s.Client(t)
	r := s.Runner(t, "", nil)
	r.Hello.Kind = wire.KindLocal
	r.MustConnect()
	r.MustBegin()
	id := r.Session.Welcome().RunnerID
	submit(t, c, run())
	if o, ok := r.Order(20 * time.Millisecond); ok {
		t.Fatalf("order %+v for any runner came to a command line's own", o)
	}
	if match, err := c.Match(t.Context(), wire.Target{Any: true}); err != nil || match {
		t.Fatalf("a local runner matches: %v, %v", match, err)
	}
	mine := submit(t, c, run(func(j *wire.JobSpec) { j.Target = wire.Target{ID: id} }))[0]
	if a := r.MustAssign(); a.Job != mine.ID {
		t.Fatalf("assigned %s, want %s", a.Job, mine.ID)
	}
	if list, err := c.Runners(t.Context(), wire.RunnerFilter{}); err != nil || len(list) != 1 || list[0].Kind != wire.KindLocal || !list[0].Online {
		t.Fatalf("runners %+v, %v", list, err)
	}
	// The same key has the same id again, also after a restart.
	s.Restart()
	r.MustConnect()
	if again := r.Session.Welcome().RunnerID; again != id {
		t.Fatalf("id %q after a restart, was %q", again, id)
	}
}

func TestLocalRunnerGoneEndsItsQueue(t *testing.T) {
	s := daemontest.Start(t, daemon.Config{Lease: 50 * time.Millisecond})
	c := s.Client(t)
	r := s.Runner(t, "", nil)
	r.Hello.Kind = wire.KindLocal
	r.MustConnect()
	r.MustBegin()
	to := func(j *wire.JobSpec) { j.Target = wire.Target{ID: r.Session.Welcome().RunnerID} }
	jobs := submit(t, c, run(to), run(to))
	r.MustStart()
	r.Disconnect()
	for _, j := range jobs {
		if j := s.AwaitJob(t, j.ID, ended); j.Reason != wire.ReasonRunnerLost {
			t.Errorf("job ended as %+v", j)
		}
	}
}

func TestExpiryWithoutARunner(t *testing.T) {
	s := daemontest.Start(t, slowly)
	job := submit(t, s.Client(t), run(func(j *wire.JobSpec) { j.ExpiresIn = wire.Duration(time.Millisecond) }))[0]
	j := s.AwaitJob(t, job.ID, ended)
	if j.State != wire.Failed || j.Reason != wire.ReasonExpired || j.Attempt != 0 {
		t.Fatalf("job ended as %+v", j)
	}
}

func TestCancel(t *testing.T) {
	s := daemontest.Start(t, slowly)
	c := s.Client(t)
	ctx := t.Context()
	t.Run("queued", func(t *testing.T) {
		job := submit(t, c, run())[0]
		j, err := c.Cancel(ctx, job.ID, false)
		if err != nil || j.State != wire.Canceled || j.Reason != wire.ReasonCanceled {
			t.Fatalf("%+v, %v", j, err)
		}
		if again, err := c.Cancel(ctx, job.ID, true); err != nil || again.State != wire.Canceled || !again.FinishedAt.Equal(j.FinishedAt) {
			t.Fatalf("canceled again: %+v, %v", again, err)
		}
	})
	r := s.Adopted(t, "r1", nil)
	t.Run("assigned", func(t *testing.T) {
		job := submit(t, c, run())[0]
		a := r.MustAssign()
		j, err := c.Cancel(ctx, job.ID, false)
		if err != nil || j.State != wire.Assigned || j.CancelRequested.IsZero() {
			t.Fatalf("%+v, %v", j, err)
		}
		if o := r.MustOrder(); o.Cancel == nil || o.Cancel.JobRef != a.JobRef || o.Cancel.Force {
			t.Fatalf("order %+v", o)
		}
		r.Say(wire.WorkEvent{Ack: &a.JobRef})
		r.MustOrder()
		r.MustFinish(a.JobRef, "", wire.Result{State: wire.Canceled, Reason: wire.ReasonCanceled})
		if j := s.AwaitJob(t, job.ID, ended); j.State != wire.Canceled {
			t.Fatalf("%+v", j)
		}
	})
	t.Run("running, and it succeeds all the same", func(t *testing.T) {
		job := submit(t, c, run())[0]
		a := r.MustStart()
		if _, err := c.Cancel(ctx, job.ID, false); err != nil {
			t.Fatal(err)
		}
		r.MustOrder()
		r.MustFinish(a.JobRef, "", daemontest.Succeeded())
		if j := s.AwaitJob(t, job.ID, ended); j.State != wire.Success || j.CancelRequested.IsZero() {
			t.Fatalf("%+v", j)
		}
	})
	t.Run("forced", func(t *testing.T) {
		job := submit(t, c, run())[0]
		a := r.MustStart()
		j, err := c.Cancel(ctx, job.ID, true)
		if err != nil || j.State != wire.Canceled {
			t.Fatalf("%+v, %v", j, err)
		}
		if o := r.MustOrder(); o.Drop == nil || *o.Drop != a.JobRef {
			t.Fatalf("order %+v, want drop", o)
		}
		wantKind(t, r.Finish(a.JobRef, "", daemontest.Succeeded()), wire.Conflict)
	})
	_, err := c.Cancel(ctx, "01ARZ3NDEKTSV4RRFFQ69G5FAV", false)
	wantKind(t, err, wire.NotFound)
}

func TestStreamEventsComeInOrder(t *testing.T) {
	s := daemontest.Start(t, slowly)
	c := s.Client(t)
	job := submit(t, c, run())[0]
	seen := make(chan string, 100)
	go func() {
		defer close(seen)
		for item, err := range c.Stream(t.Context(), wire.StreamRequest{ID: job.ID, Follow: true}) {
			switch {
			case err != nil:
				seen <- err.Error()
			case item.Event != nil && item.Event.Last:
				seen <- "last:" + string(item.Event.Job.State)
			case item.Event != nil:
				seen <- string(item.Event.Job.State)
			default:
				seen <- "data:" + string(item.Data.Bytes)
			}
		}
	}()
	next := func(want string) {
		t.Helper()
		select {
		case got := <-seen:
			if got != want {
				t.Fatalf("stream says %q, want %q", got, want)
			}
		case <-time.After(daemontest.Patience):
			t.Fatalf("stream says nothing, want %q", want)
		}
	}
	next("queued")
	r := s.Adopted(t, "r1", nil)
	a := r.MustAssign()
	next("assigned")
	r.Say(wire.WorkEvent{Nack: &wire.Nack{JobRef: a.JobRef, Error: "no room"}})
	next("queued")
	r = s.Adopted(t, "r2", nil) // the first one rests
	a = r.MustAssign()
	next("assigned")
	r.Say(wire.WorkEvent{Ack: &a.JobRef})
	r.MustOrder()
	next("running")
	r.MustFinish(a.JobRef, "out", daemontest.Succeeded())
	next("data:out")
	next("last:success")
	if got, ok := <-seen; ok {
		t.Fatalf("after the last: %q", got)
	}
}

// read is a job's output as a client gets it.
func read(ctx context.Context, t *testing.T, c *client.Client, req wire.StreamRequest) string {
	t.Helper()
	var b bytes.Buffer
	for item, err := range c.Stream(ctx, req) {
		if err != nil {
			t.Fatalf("stream: %v", err)
		}
		if item.Event == nil {
			if item.Data.Offset != req.Offset+int64(b.Len()) {
				t.Fatalf("chunk at %d, want %d", item.Data.Offset, req.Offset+int64(b.Len()))
			}
			b.Write(item.Data.Bytes)
		}
	}
	return b.String()
}

func TestOutputLateAndFromAnOffset(t *testing.T) {
	s := daemontest.Start(t, slowly)
	c := s.Client(t)
	r := s.Adopted(t, "r1", nil)
	job := submit(t, c, run())[0]
	text := strings.Repeat("0123456789abcdef", 10_000)
	r.MustFinish(r.MustStart().JobRef, text, daemontest.Succeeded())
	for _, follow := range []bool{false, true} {
		for _, offset := range []int64{0, 1, 99_999, int64(len(text))} {
			if got := read(t.Context(), t, c, wire.StreamRequest{ID: job.ID, Offset: offset, Follow: follow}); got != text[offset:] {
				t.Errorf("output from %d has %d bytes, want %d", offset, len(got), len(text)-int(offset))
			}
		}
	}
	_, err := c.Job(t.Context(), "nonsense")
	wantKind(t, err, wire.NotFound)
}

// The report of a broken stream goes on where the server's copy ends.
func TestReportGoesOnAtTheOffset(t *testing.T) {
	s := daemontest.Start(t, slowly)
	c := s.Client(t)
	r := s.Adopted(t, "r1", nil)
	job := submit(t, c, run())[0]
	a := r.MustStart()
	st, offset, err := r.Report(a.JobRef)
	if err != nil || offset != 0 {
		t.Fatalf("report at %d, %v", offset, err)
	}
	if err := st.SendData(wire.Data{Stream: wire.Stderr, Time: time.Now(), Bytes: []byte("hello ")}); err != nil {
		t.Fatal(err)
	}
	if err := st.Flush(); err != nil {
		t.Fatal(err)
	}
	var o wire.ReportOrder
	if err := st.RecvMsg(&o); err != nil || o.Offset != 6 {
		t.Fatalf("acknowledged %+v, %v", o, err)
	}
	s.Restart()
	r.MustConnect()
	if b := r.MustBegin(wire.Held{JobRef: a.JobRef, Started: true}); len(b.Keep) != 1 || len(b.Drop) != 0 {
		t.Fatalf("begun %+v, want to keep the job", b)
	}
	r.MustFinish(a.JobRef, "hello world", daemontest.Succeeded())
	if got := read(t.Context(), t, c, wire.StreamRequest{ID: job.ID}); got != "hello world" {
		t.Fatalf("output %q", got)
	}
}

func TestResultWithMissingOutputIsRefused(t *testing.T) {
	s := daemontest.Start(t, slowly)
	r := s.Adopted(t, "r1", nil)
	submit(t, s.Client(t), run())
	a := r.MustStart()
	st, _, err := r.Report(a.JobRef)
	if err != nil {
		t.Fatal(err)
	}
	result := daemontest.Succeeded()
	result.LogBytes = 5
	if err := st.Send(result); err != nil {
		t.Fatal(err)
	}
	var o wire.ReportOrder
	wantKind(t, st.RecvMsg(&o), wire.Conflict)
}
