package daemon_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/waypointd/waypoint/daemon"
	"github.com/waypointd/waypoint/daemon/daemontest"
	"github.com/waypointd/waypoint/mux/client"
	"github.com/waypointd/waypoint/mux/wire"
)

// Clients and runners do at random what they may do, refuse, fall silent,
// come and go, and the server is restarted under them. Whatever happens:
//
//   - every job ends, once, and stays as it ended;
//   - of every job one attempt at most is ever started, and not before what it
//     depends on has ended;
//   - a job succeeds only where its runner said so, and always where the
//     runner was told that this is recorded;
//   - its output is what its runner sent: all of it if it succeeded, else a
//     part from the beginning.
//
// STORM_DURATION makes it longer; STORM_STORE is an empty database to do it on.
func TestStorm(t *testing.T) {
	duration := 1500 * time.Millisecond
	if text := os.Getenv("STORM_DURATION"); text != "" {
		var err error
		if duration, err = time.ParseDuration(text); err != nil {
			t.Fatal(err)
		}
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	w := &weather{
		t: t, started: map[string]int{}, said: map[wire.JobRef]wire.State{},
		recorded: map[wire.JobRef]bool{},
		server: daemontest.Start(t, daemon.Config{
			Logger: slog.New(slog.DiscardHandler), StoreDSN: os.Getenv("STORM_STORE"),
		}),
	}
	w.client = w.server.Client(t)
	over := make(chan struct{})
	var runners, others sync.WaitGroup
	var crew []*stormRunner
	for i := range 5 {
		r := w.server.Runner(t, fmt.Sprintf("r%d", i), map[string]string{"parity": fmt.Sprint(i % 2)})
		r.Hello.Concurrency = 3
		r.MustConnect()
		r.MustBegin()
		r.MustAdopt()
		r.Disconnect()
		crew = append(crew, &stormRunner{w: w, r: r, rng: rand.New(rand.NewPCG(seed, uint64(i))), held: map[wire.JobRef]*stormJob{}})
	}
	w.server.Reload(func(cfg *daemon.Config) {
		cfg.AckTimeout, cfg.Lease, cfg.Heartbeat = 100*time.Millisecond, 300*time.Millisecond, 50*time.Millisecond
	})
	for _, r := range crew {
		runners.Go(func() { r.run(over) })
	}
	c := w.client
	calm := time.AfterFunc(duration, func() { w.calm.Store(true) })
	defer calm.Stop()
	for i := range 3 {
		others.Go(func() { w.submitter(c, rand.New(rand.NewPCG(seed, uint64(100+i)))) })
		others.Go(func() { w.meddler(c, rand.New(rand.NewPCG(seed, uint64(200+i)))) })
	}
	others.Go(func() {
		for rng := rand.New(rand.NewPCG(seed, 300)); !w.calm.Load(); {
			time.Sleep(time.Duration(100+rng.IntN(400)) * time.Millisecond)
			w.server.Restart()
		}
	})
	others.Wait()
	ctx, cancel := context.WithTimeout(t.Context(), daemontest.Patience+duration)
	defer cancel()
	ends := map[string]wire.Job{}
	for _, id := range w.ids {
		job, err := c.Wait(ctx, id)
		if err != nil {
			job, _ = c.Job(t.Context(), id)
			why, _ := c.Why(t.Context(), id)
			t.Fatalf("job %+v does not end: %v (%s)", job, err, why.Sentence)
		}
		ends[id] = job
	}
	close(over)
	runners.Wait()
	w.server.Restart()
	states := map[string]int{}
	for id, job := range ends {
		states[string(job.State)+" "+string(job.Reason)]++
		w.check(c, id, job)
	}
	t.Logf("%d jobs: %v", len(ends), states)
}

// weather is what all have in common, and what is known of each job.
type weather struct {
	t      *testing.T
	server *daemontest.Server
	client *client.Client
	calm   atomic.Bool // all do what they should from now on

	mu       sync.Mutex
	ids      []string                   // guarded by mu
	started  map[string]int             // job -> the attempt that was started; guarded by mu
	said     map[wire.JobRef]wire.State // the result that a runner has sent, perhaps in vain; guarded by mu
	recorded map[wire.JobRef]bool       // the server said that it has it; guarded by mu
}

// any is a job that was submitted, "" if there is none.
func (w *weather) any(rng *rand.Rand) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.ids) == 0 {
		return ""
	}
	return w.ids[rng.IntN(len(w.ids))]
}

func (w *weather) submitter(c *client.Client, rng *rand.Rand) {
	for !w.calm.Load() {
		specs := make([]wire.JobSpec, 1+rng.IntN(8))
		for i := range specs {
			specs[i] = w.spec(rng, i)
		}
		jobs, err := c.Submit(w.t.Context(), specs...)
		if err != nil {
			w.t.Errorf("submit: %v", err)
			return
		}
		w.mu.Lock()
		for _, j := range jobs {
			w.ids = append(w.ids, j.ID)
		}
		w.mu.Unlock()
		time.Sleep(time.Duration(rng.IntN(30)) * time.Millisecond)
	}
}

func (w *weather) spec(rng *rand.Rand, place int) wire.JobSpec {
	return run(func(j *wire.JobSpec) {
		j.Priority = rng.IntN(3)
		switch rng.IntN(6) {
		case 0:
			j.Target = wire.Target{ID: fmt.Sprintf("r%d", rng.IntN(5))}
		case 1:
			j.Target = wire.Target{Labels: map[string]string{"parity": fmt.Sprint(rng.IntN(2))}}
		}
		if place > 0 && rng.IntN(2) == 0 {
			j.DependsOn = []string{fmt.Sprintf("#%d", rng.IntN(place))}
			j.AllowDependencyFailure = rng.IntN(3) == 0
		}
		switch rng.IntN(8) {
		case 0:
			j.Operation, j.Project, j.App = wire.OpDestroy, "shop", "web"
		case 1:
			j.Singleton = fmt.Sprint("s", rng.IntN(2))
		case 2:
			j.ExpiresIn = wire.Duration(time.Duration(1+rng.IntN(300)) * time.Millisecond)
		}
	})
}

// meddler cancels, reads and asks.
func (w *weather) meddler(c *client.Client, rng *rand.Rand) {
	for !w.calm.Load() {
		time.Sleep(time.Duration(rng.IntN(20)) * time.Millisecond)
		id := w.any(rng)
		if id == "" {
			continue
		}
		ctx, cancel := context.WithTimeout(w.t.Context(), time.Duration(1+rng.IntN(50))*time.Millisecond)
		switch rng.IntN(8) {
		case 0:
			if job, err := c.Cancel(ctx, id, true); err == nil {
				if !job.State.Ended() {
					w.t.Errorf("job canceled with force is %s", job.State)
				}
			}
		case 1:
			c.Cancel(ctx, id, false)
		case 2, 3, 4:
			w.read(ctx, c, wire.StreamRequest{ID: id, Follow: true, Offset: int64(rng.IntN(100))})
		case 5:
			c.Why(ctx, id)
		case 6:
			c.Jobs(ctx, wire.JobFilter{Limit: 500})
		case 7:
			c.Wait(ctx, id)
		}
		cancel()
	}
}

// read reads a job's output, which must be its runner's, and its last event.
func (w *weather) read(ctx context.Context, c *client.Client, req wire.StreamRequest) (last *wire.Job, got []byte, err error) {
	attempt := 0
	for item, err := range c.Stream(ctx, req) {
		if err != nil {
			return nil, got, err
		}
		if item.Event == nil {
			got = append(got, item.Data.Bytes...)
			continue
		}
		attempt = item.Event.Job.Attempt
		if item.Event.Last {
			last = &item.Event.Job
		}
	}
	if all := stormOutput(wire.JobRef{Job: req.ID, Attempt: attempt}); len(got) > 0 && !bytes.HasPrefix(all[min(req.Offset, int64(len(all))):], got) {
		w.t.Errorf("job %s attempt %d from %d: output %q is not its runner's", req.ID, attempt, req.Offset, got)
	}
	return last, got, nil
}

// stormOutput is what an attempt writes.
func stormOutput(ref wire.JobRef) []byte {
	var sum byte
	for i := range len(ref.Job) {
		sum = sum*31 + ref.Job[i]
	}
	return []byte(strings.Repeat(fmt.Sprintf("%s-%d\n", ref.Job, ref.Attempt), int(sum)*4))
}

// check compares what became of a job with what is known of it.
func (w *weather) check(c *client.Client, id string, was wire.Job) {
	last, got, err := w.read(w.t.Context(), c, wire.StreamRequest{ID: id})
	if err != nil || last == nil {
		w.t.Errorf("read job %s: %v", id, err)
		return
	}
	if last.State != was.State || last.Reason != was.Reason || !last.FinishedAt.Equal(was.FinishedAt) || last.Attempt != was.Attempt {
		w.t.Errorf("job ended as %+v and is %+v now", was, last)
	}
	ref := wire.JobRef{Job: id, Attempt: last.Attempt}
	w.mu.Lock()
	defer w.mu.Unlock()
	if attempt, ok := w.started[id]; ok && attempt != last.Attempt && last.Reason != wire.ReasonCanceled {
		w.t.Errorf("job %+v: attempt %d was started", last, attempt)
	}
	if last.State == wire.Success && w.said[ref] != wire.Success {
		w.t.Errorf("job %+v: its runner said %q", last, w.said[ref])
	}
	if w.recorded[ref] && last.State != w.said[ref] {
		w.t.Errorf("job %+v: %q was recorded", last, w.said[ref])
	}
	if all := stormOutput(ref); last.State == wire.Success && len(got) != len(all) {
		w.t.Errorf("job %+v: %d bytes of output, want %d", last, len(got), len(all))
	}
}

// stormJob is an attempt that a runner has.
type stormJob struct {
	spec    wire.JobSpec
	started bool
	cancel  bool
}

// stormRunner is a runner in bad weather.
type stormRunner struct {
	w    *weather
	r    *daemontest.Runner
	rng  *rand.Rand
	held map[wire.JobRef]*stormJob
}

// chance is true once in n times, and never when it is calm.
func (sr *stormRunner) chance(n int) bool { return !sr.w.calm.Load() && sr.rng.IntN(n) == 0 }

func (sr *stormRunner) run(over chan struct{}) {
	for {
		select {
		case <-over:
			return
		default:
		}
		if sr.r.Connect() == nil {
			if begun, err := sr.begin(); err == nil {
				for _, ref := range begun.Drop {
					delete(sr.held, ref)
				}
				sr.work(over)
			}
			sr.r.Disconnect()
		}
		pause := 5 * time.Millisecond
		if sr.chance(20) {
			pause = 400 * time.Millisecond // longer than the lease
		}
		time.Sleep(pause)
	}
}

func (sr *stormRunner) begin() (*wire.WorkBegun, error) {
	var held []wire.Held
	for ref, j := range sr.held {
		held = append(held, wire.Held{JobRef: ref, Started: j.started})
	}
	return sr.r.Begin(held...)
}

// work is one session.
func (sr *stormRunner) work(over chan struct{}) {
	for ref, j := range sr.held {
		if !j.started && sr.r.TrySay(wire.WorkEvent{Ack: &ref}) != nil {
			return
		}
	}
	for {
		select {
		case <-over:
			return
		case <-sr.r.Session.Done():
			return
		default:
		}
		if o, ok := sr.r.Order(time.Duration(1+sr.rng.IntN(8)) * time.Millisecond); ok {
			if !sr.obey(o) {
				return
			}
			continue
		}
		say := wire.WorkEvent{Heartbeat: true}
		if sr.rng.IntN(3) == 0 {
			say = wire.WorkEvent{Holds: &wire.WorkHolds{Jobs: []wire.JobRef{}}}
			for ref := range sr.held {
				say.Holds.Jobs = append(say.Holds.Jobs, ref)
			}
		}
		if sr.r.TrySay(say) != nil || sr.chance(60) {
			return
		}
		for ref, j := range sr.held {
			if j.started && sr.rng.IntN(2) == 0 {
				sr.report(ref, j)
			}
		}
	}
}

// obey follows an order; false ends the session.
func (sr *stormRunner) obey(o wire.WorkOrder) bool {
	switch {
	case o.Assign != nil:
		ref := o.Assign.JobRef
		switch {
		case sr.chance(20):
			return sr.r.TrySay(wire.WorkEvent{Nack: &wire.Nack{JobRef: ref, Error: "storm"}}) == nil
		case sr.chance(20): // not heard
			return true
		}
		sr.held[ref] = &stormJob{spec: o.Assign.Spec}
		if sr.chance(20) {
			return false
		}
		if sr.chance(10) {
			time.Sleep(time.Duration(80+sr.rng.IntN(40)) * time.Millisecond) // about when it is taken back
		}
		return sr.r.TrySay(wire.WorkEvent{Ack: &ref}) == nil
	case o.Start != nil:
		if j := sr.held[*o.Start]; j != nil && !j.started {
			j.started = true
			sr.start(*o.Start, j.spec)
		}
		return !sr.chance(30)
	case o.Drop != nil:
		delete(sr.held, *o.Drop)
	case o.Cancel != nil:
		if j := sr.held[o.Cancel.JobRef]; j != nil {
			j.cancel = true
		}
	}
	return true
}

// start notes that an attempt may run now.
func (sr *stormRunner) start(ref wire.JobRef, spec wire.JobSpec) {
	w := sr.w
	for _, id := range spec.DependsOn {
		if dep, err := w.client.Job(w.t.Context(), id); err != nil || !dep.State.Ended() || dep.State != wire.Success && !spec.AllowDependencyFailure {
			w.t.Errorf("job %s was started while its dependency is %+v, %v", ref.Job, dep, err)
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if before, ok := w.started[ref.Job]; ok && before != ref.Attempt {
		w.t.Errorf("job %s was started as attempt %d and as %d", ref.Job, before, ref.Attempt)
	}
	w.started[ref.Job] = ref.Attempt
}

// report sends some of an attempt's output, or all of it and the result.
func (sr *stormRunner) report(ref wire.JobRef, j *stormJob) {
	all := stormOutput(ref)
	if sr.chance(3) {
		sr.part(ref, all)
		return
	}
	result := daemontest.Succeeded()
	switch {
	case j.cancel && sr.rng.IntN(3) > 0:
		result = wire.Result{State: wire.Canceled, Reason: wire.ReasonCanceled}
	case sr.rng.IntN(8) == 0:
		result = daemontest.FailedWith(1)
	}
	sr.w.mu.Lock()
	if said, ok := sr.w.said[ref]; ok { // a result does not change
		result.State = said
		switch said {
		case wire.Success:
			result = daemontest.Succeeded()
		case wire.Failed:
			result = daemontest.FailedWith(1)
		case wire.Canceled:
			result = wire.Result{State: wire.Canceled, Reason: wire.ReasonCanceled}
		}
	}
	sr.w.said[ref] = result.State
	sr.w.mu.Unlock()
	err := sr.r.Finish(ref, string(all), result)
	switch {
	case err == nil:
		sr.w.mu.Lock()
		sr.w.recorded[ref] = true
		sr.w.mu.Unlock()
		delete(sr.held, ref)
	case wire.KindOf(err) == wire.Conflict, wire.KindOf(err) == wire.NotFound:
		delete(sr.held, ref)
	case wire.KindOf(err) != wire.Unavailable && !errors.Is(err, context.Canceled):
		sr.w.t.Errorf("finish %+v: %v", ref, err)
	}
}

// part is a report that is cut.
func (sr *stormRunner) part(ref wire.JobRef, all []byte) {
	st, offset, err := sr.r.Report(ref)
	if err != nil {
		if k := wire.KindOf(err); k == wire.Conflict || k == wire.NotFound {
			delete(sr.held, ref)
		}
		return
	}
	defer st.Close()
	rest := all[offset:]
	rest = rest[:sr.rng.IntN(len(rest)+1)]
	for len(rest) > 0 {
		n := min(len(rest), 1+sr.rng.IntN(2000))
		if st.SendData(wire.Data{Offset: offset, Time: time.Now(), Stream: wire.Stdout, Bytes: rest[:n]}) != nil {
			return
		}
		offset, rest = offset+int64(n), rest[n:]
	}
	st.Flush()
}
