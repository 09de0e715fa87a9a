package torture

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/waypointd/waypoint/mux/client"
	"github.com/waypointd/waypoint/mux/wire"
)

// A job is a register that some set and others read. What clients were told while
// server, agent and network broke again and again, each between the call and its
// return, and when the job's own process began, must be what one register says
// when all of it happens at moments in an order (linearisability):
//
//   - submits of one key name one job;
//   - state and attempt go on and never back, but from assigned to queued; an
//     end stays as it is;
//   - an end that was asked for stays asked for, and by force it is one;
//   - the output only grows, and not behind the end, but of a job that was ended
//     by force, and of one that was lost until its late result is there;
//   - only what was lost has a late result, which then stays;
//   - the process of an attempt begins while that attempt is the job's, and it
//     is the only one that ever does: what has begun never goes back to the queue.
type registerCall struct {
	what    string // submit, get, cancel, kill, read, start
	key     string
	attempt int // of start
}

// register is a job as it is told; also what a call returns of it.
type register struct {
	id      string
	state   wire.State
	reason  wire.Reason
	attempt int
	asked   bool
	length  int64
	late    bool // there is a late result
	begun   int  // the attempt whose process has begun, 0: none; nobody is told
}

func registerOf(j wire.Job) register {
	return register{id: j.ID, state: j.State, reason: j.Reason, attempt: j.Attempt, asked: !j.CancelRequested.IsZero(), length: j.LogBytes, late: j.LateResult != nil}
}

// progress orders states within an attempt.
func progress(s wire.State) int {
	switch s {
	case wire.Queued:
		return 0
	case wire.Assigned:
		return 1
	case wire.Running:
		return 2
	}
	return 3
}

// lost reports whether the job was ended because its runner was out of reach.
func (r register) lost() bool { return r.state == wire.Failed && r.reason == wire.ReasonRunnerLost }

// grows reports whether there may be more output.
func (r register) grows() bool {
	return !r.state.Ended() || r.state == wire.Canceled || r.lost() && !r.late
}

// follows reports whether a job can be seen as next after it was like this.
func (r register) follows(next register) bool {
	switch {
	case r.id != next.id, next.late && !next.lost():
		return false
	case r.state.Ended():
		return r.state == next.state && r.reason == next.reason && r.attempt == next.attempt && r.asked == next.asked &&
			(r.length == next.length || r.length < next.length && r.grows()) && (next.late || !r.late)
	case r.asked && !next.asked && !next.state.Ended(), r.asked && next.attempt > r.attempt:
		return false
	case r.begun != 0 && (next.attempt != r.begun || next.state == wire.Queued):
		return false
	case next.attempt == r.attempt:
		back := r.state == wire.Assigned && next.state == wire.Queued
		return (progress(next.state) >= progress(r.state) || back) && next.length >= r.length
	}
	return next.attempt > r.attempt && r.state != wire.Running // what runs is the last attempt
}

var jobModel = porcupine.Model{
	Partition: func(history []porcupine.Operation) [][]porcupine.Operation {
		by := map[string]int{}
		var parts [][]porcupine.Operation
		for _, op := range history {
			key := op.Input.(registerCall).key
			n, ok := by[key]
			if !ok {
				n = len(parts)
				by[key], parts = n, append(parts, nil)
			}
			parts[n] = append(parts[n], op)
		}
		return parts
	},
	Init: func() any { return register{state: wire.Queued} },
	Step: func(state, input, output any) (bool, any) {
		r, in := state.(register), input.(registerCall)
		if in.what == "start" {
			switch {
			case r.begun != 0: // whether it is live or not
				return false, r
			case r.attempt > in.attempt, r.state.Ended() && r.state != wire.Canceled && !r.lost(), (r.state == wire.Running || r.asked) && r.attempt != in.attempt:
				return false, r
			case r.state.Ended(): // by force, or lost, while it was on its way
				r.begun = in.attempt
				return r.attempt == in.attempt, r
			case r.attempt < in.attempt:
				r.length = 0
			}
			r.begun = in.attempt
			if r.attempt < in.attempt || r.state == wire.Queued {
				r.state = wire.Assigned
			}
			r.attempt = in.attempt
			return true, r
		}
		out := output.(register)
		if in.what == "submit" && r.id == "" {
			// It may have begun to run for a submit whose answer was lost.
			if r.id = out.id; r.id == "" {
				return false, r
			}
		}
		if in.what == "read" {
			ok := r.id == out.id && (r.attempt != out.attempt || r.length == out.length || r.length < out.length && r.grows())
			if ok && r.attempt == out.attempt {
				r.length = out.length
			}
			return ok, r
		}
		ok := r.follows(out)
		out.begun = r.begun
		switch in.what {
		case "cancel":
			ok = ok && (out.asked || out.state.Ended())
		case "kill":
			ok = ok && out.state.Ended()
		}
		return ok, out
	},
	DescribeOperation: func(input, output any) string { return fmt.Sprintf("%+v: %+v", input, output) },
}

// tape is a history in the making.
type tape struct {
	mu   sync.Mutex
	ops  []porcupine.Operation // guarded by mu
	lost map[string]time.Time  // when, as the server says, by key; guarded by mu
}

func (h *tape) add(client int, in registerCall, out register, from, to time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ops = append(h.ops, porcupine.Operation{ClientId: client, Input: in, Output: out, Call: from.UnixNano(), Return: to.UnixNano()})
}

// The model refuses what must not be; else TestHistory would say nothing.
func TestHistoryModel(t *testing.T) {
	queued := register{id: "a", state: wire.Queued}
	running := register{id: "a", state: wire.Running, attempt: 1, length: 5}
	done := register{id: "a", state: wire.Success, attempt: 1, length: 9}
	doneLate := register{id: "a", state: wire.Success, attempt: 1, length: 9, late: true}
	killed := register{id: "a", state: wire.Canceled, reason: wire.ReasonCanceled, asked: true}
	assigned := register{id: "a", state: wire.Assigned, attempt: 1}
	back := register{id: "a", state: wire.Queued, attempt: 1}
	second := register{id: "a", state: wire.Assigned, attempt: 2}
	lost := register{id: "a", state: wire.Failed, reason: wire.ReasonRunnerLost, attempt: 1, length: 5}
	late := register{id: "a", state: wire.Failed, reason: wire.ReasonRunnerLost, attempt: 1, length: 9, late: true}
	cut := register{id: "a", state: wire.Canceled, reason: wire.ReasonCanceled, attempt: 1, asked: true}
	type step struct {
		what    string
		attempt int
		out     register
	}
	for name, c := range map[string]struct {
		steps []step
		good  bool
	}{
		"a job's way":        {[]step{{"submit", 0, queued}, {"start", 1, register{}}, {"get", 0, running}, {"submit", 0, running}, {"get", 0, done}, {"read", 0, done}}, true},
		"canceled at once":   {[]step{{"submit", 0, queued}, {"kill", 0, killed}, {"get", 0, killed}}, true},
		"a key that is two":  {[]step{{"submit", 0, queued}, {"submit", 0, register{id: "b", state: wire.Queued}}}, false},
		"lost":               {[]step{{"submit", 0, queued}, {"get", 0, register{}}}, false},
		"an end that goes":   {[]step{{"submit", 0, queued}, {"get", 0, done}, {"get", 0, running}}, false},
		"two ends":           {[]step{{"submit", 0, queued}, {"get", 0, done}, {"get", 0, killed}}, false},
		"given back":         {[]step{{"submit", 0, queued}, {"get", 0, assigned}, {"get", 0, back}, {"start", 2, register{}}, {"get", 0, second}}, true},
		"started once more":  {[]step{{"submit", 0, queued}, {"get", 0, running}, {"start", 2, register{}}}, false},
		"started when over":  {[]step{{"submit", 0, queued}, {"kill", 0, killed}, {"start", 1, register{}}}, false},
		"two live":           {[]step{{"submit", 0, queued}, {"start", 1, register{}}, {"get", 0, assigned}, {"start", 2, register{}}}, false},
		"two of an attempt":  {[]step{{"submit", 0, queued}, {"start", 1, register{}}, {"start", 1, register{}}}, false},
		"two after the end":  {[]step{{"submit", 0, queued}, {"start", 1, register{}}, {"kill", 0, cut}, {"start", 1, register{}}}, false},
		"live and queued":    {[]step{{"submit", 0, queued}, {"start", 1, register{}}, {"get", 0, back}}, false},
		"live and another's": {[]step{{"submit", 0, queued}, {"start", 1, register{}}, {"get", 0, second}}, false},
		"output that goes":   {[]step{{"submit", 0, queued}, {"get", 0, running}, {"read", 0, register{id: "a", attempt: 1, length: 4}}}, false},
		"lost, and late":     {[]step{{"submit", 0, queued}, {"get", 0, running}, {"get", 0, lost}, {"read", 0, register{id: "a", attempt: 1, length: 7}}, {"get", 0, late}, {"read", 0, late}}, true},
		"lost on its way":    {[]step{{"submit", 0, queued}, {"get", 0, lost}, {"start", 1, register{}}, {"get", 0, late}}, true},
		"lost, and again":    {[]step{{"submit", 0, queued}, {"get", 0, running}, {"get", 0, lost}, {"start", 2, register{}}}, false},
		"lost, and queued":   {[]step{{"submit", 0, queued}, {"get", 0, running}, {"get", 0, lost}, {"get", 0, back}}, false},
		"lost, and done":     {[]step{{"submit", 0, queued}, {"get", 0, running}, {"get", 0, lost}, {"get", 0, done}}, false},
		"done, and lost":     {[]step{{"submit", 0, queued}, {"get", 0, done}, {"get", 0, late}}, false},
		"late, and no more":  {[]step{{"submit", 0, queued}, {"get", 0, late}, {"get", 0, lost}}, false},
		"later than late":    {[]step{{"submit", 0, queued}, {"get", 0, late}, {"read", 0, register{id: "a", attempt: 1, length: 10}}}, false},
		"late, and not lost": {[]step{{"submit", 0, queued}, {"get", 0, running}, {"get", 0, doneLate}}, false},
		"more than all":      {[]step{{"submit", 0, queued}, {"get", 0, done}, {"read", 0, register{id: "a", attempt: 1, length: 10}}}, false},
		"an end not given":   {[]step{{"submit", 0, queued}, {"kill", 0, running}}, false},
		"an end not noticed": {[]step{{"submit", 0, queued}, {"cancel", 0, running}}, false},
	} {
		var h tape
		at := time.Unix(0, 0)
		for _, s := range c.steps {
			h.add(0, registerCall{what: s.what, key: "k", attempt: s.attempt}, s.out, at, at.Add(1))
			at = at.Add(2)
		}
		if got := porcupine.CheckOperations(jobModel, h.ops); got != c.good {
			t.Errorf("%s: %v, want %v", name, got, c.good)
		}
	}
}

// TestHistory breaks server, agent and network under clients that submit, look, read and
// cancel the same jobs at the same time, for longer than the lease as well, and
// checks what all of them were told.
func TestHistory(t *testing.T) {
	rounds, during, seed := number(t, "TORTURE_ROUNDS", 6), given(t), seed(t)
	ctx := bounded(t, 3*time.Minute+2*during+time.Duration(rounds)*3*time.Second)
	s, a := newBreakable(ctx, t, 8, seed)
	h := tape{lost: map[string]time.Time{}}
	starts := filepath.Join(s.dir, "history")
	over := make(chan struct{})
	var clients sync.WaitGroup
	var also atomic.Pointer[string]
	for n := range 5 {
		c := s.client(ctx)
		clients.Go(func() { (&historian{s.site, c, &h, n, starts, seed, &also}).work(ctx, over) })
	}
	own := &historian{s.site, s.operator, &h, 5, starts, seed, &also}
	var absences []absent
	a.run(ctx, a.faults(), rounds, during, func(round int) {
		if round%8 == 0 { // let it come to itself: progress is promised too
			s.awaitServer(ctx)
		}
		if round%20 == 3 {
			absences = append(absences, own.lose(ctx, s, a, fmt.Sprintf("%s%d", awaitedKey, round)))
		}
	})
	close(over)
	clients.Wait()
	s.awaitServer(ctx)
	own.awaitEnds(ctx)
	for key, at := range h.lost {
		if !slices.ContainsFunc(absences, func(x absent) bool { return !at.Before(x.from) && !at.After(x.to) }) {
			t.Errorf("job %s was lost at %s, and its runner was not away for as long as the lease", key, at)
		}
	}
	began := readBeginnings(t, starts, &h)
	kinds := map[string]int{}
	for _, op := range h.ops {
		kinds[op.Input.(registerCall).what]++
	}
	t.Logf("%s; %d calls: %v; %d times the runner was away for longer than the lease, and %d jobs were lost", a.figures(), len(h.ops), kinds, len(absences), len(h.lost))
	for _, part := range jobModel.Partition(h.ops) {
		switch result := porcupine.CheckOperationsTimeout(jobModel, part, 20*time.Second); result {
		case porcupine.Ok:
		default:
			var text strings.Builder
			for _, op := range part {
				fmt.Fprintf(&text, "%d to %d by %d: %s\n", op.Call, op.Return, op.ClientId, jobModel.DescribeOperation(op.Input, op.Output))
			}
			t.Errorf("history of job %s: %s\n%s", part[0].Input.(registerCall).key, result, text.String())
		}
	}
	if began == 0 || kinds["kill"] == 0 || a.rounds == 0 || a.rounds >= 3 && len(h.lost) == 0 {
		t.Errorf("nothing was proved")
	}
	s.checkNothingLeft(ctx)
}

// absent is a time in which the lease was short and the runner away.
type absent struct{ from, to time.Time }

// lose has the runner out of reach for longer than a lease, which is short
// meanwhile, under a job that all clients look at: it is lost by rule, and its late result comes.
func (w *historian) lose(ctx context.Context, s *remote, a *adversary, key string) absent {
	t := s.t
	t.Helper()
	s.awaitServer(ctx)
	s.awaitRunner(ctx, s.operator)
	var id string
	get := func() (wire.Job, error) { return w.c.Job(ctx, id) }
	if id = w.do(registerCall{what: "submit", key: key}, func() (wire.Job, error) { return w.submit(ctx, key) }); id == "" {
		t.FailNow()
	}
	await(ctx, t, "job "+key+" to run", func() error {
		if j := w.told(registerCall{what: "get", key: key}, get); j.State != wire.Running || j.LogBytes == 0 {
			return fmt.Errorf("it is %s with %d bytes of output", j.State, j.LogBytes)
		}
		return nil
	})
	x := absent{from: time.Now()}
	s.setLease(ctx, time.Second)
	mend := func() { s.agent.signal(syscall.SIGCONT) }
	if how := a.r.IntN(4); how == 3 || s.n == nil {
		s.agent.signal(syscall.SIGSTOP)
	} else {
		s.n.damage([]rule{cutBoth, cutUp, cutDown}[how], atRunner)
		mend = s.n.heal
	}
	ends := a.r.IntN(2) == 0 // by itself, while the runner is away
	w.also.Store(&key)
	if j := w.told(registerCall{what: "get", key: key}, func() (wire.Job, error) { return w.c.Wait(ctx, id) }); !registerOf(j).lost() {
		t.Errorf("job %s, whose runner is away for longer than the lease, ended as %s %q: %s", key, j.State, j.Reason, j.Error)
	}
	if ends {
		if err := os.WriteFile(w.gate(key), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	mend()
	await(ctx, t, "the late result of "+key, func() error {
		if j := w.told(registerCall{what: "get", key: key}, get); j.LateResult == nil {
			return fmt.Errorf("it is %s %s with %d bytes of output", j.State, j.Reason, j.LogBytes)
		}
		return nil
	})
	s.setLease(ctx, forever)
	w.also.Store(nil)
	x.to = time.Now()
	return x
}

// awaitEnds waits for the end of each job, and has it in the history.
func (w *historian) awaitEnds(ctx context.Context) {
	ids := map[string]string{}
	for _, op := range w.h.ops {
		ids[op.Input.(registerCall).key] = op.Output.(register).id
	}
	for key, id := range ids {
		w.do(registerCall{what: "get", key: key}, func() (wire.Job, error) { return w.c.Wait(ctx, id) })
	}
}

// historian is one client. All of them work on the same jobs.
type historian struct {
	s      *site
	c      *client.Client
	h      *tape
	n      int
	starts string
	seed   uint64
	also   *atomic.Pointer[string] // the key of another job to work on, nil: none
}

// awaitedKey is what the keys of jobs begin with that do not end before their gate
// is open.
const awaitedKey = "awaited"

// work goes from job to job; the others do too.
func (w *historian) work(ctx context.Context, over <-chan struct{}) {
	r := rand.New(rand.NewPCG(w.seed, uint64(10+w.n)))
	for job := 0; ; job++ {
		select {
		case <-over:
			return
		default:
		}
		key := fmt.Sprintf("h%d", job)
		if k := w.also.Load(); k != nil && r.IntN(2) == 0 {
			key = *k
		}
		id := w.do(registerCall{what: "submit", key: key}, func() (wire.Job, error) { return w.submit(ctx, key) })
		if id == "" {
			return
		}
		for range 2 + r.IntN(6) {
			what := []string{"get", "get", "read", "submit", "cancel", "kill"}[r.IntN(6)]
			if what == "cancel" || what == "kill" {
				if r.IntN(3) > 0 {
					what = "get"
				}
			}
			if what == "kill" && strings.HasPrefix(key, awaitedKey) {
				what = "cancel" // which does not end it
			}
			ok := w.do(registerCall{what: what, key: key}, func() (wire.Job, error) {
				switch what {
				case "get":
					return w.c.Job(ctx, id)
				case "read":
					return w.read(ctx, id, key)
				case "submit":
					return w.submit(ctx, key)
				}
				return w.c.Cancel(ctx, id, what == "kill")
			})
			if ok == "" {
				return
			}
		}
	}
}

// do makes a call and notes it. An error is a broken promise: the client library
// repeats over every loss.
func (w *historian) do(in registerCall, f func() (wire.Job, error)) (id string) {
	return w.told(in, f).ID
}

// told is do; it returns what the call did.
func (w *historian) told(in registerCall, f func() (wire.Job, error)) wire.Job {
	from := time.Now()
	j, err := f()
	if err != nil {
		w.s.t.Errorf("%s %s: %v", in.what, in.key, err)
		return wire.Job{}
	}
	w.h.add(w.n, in, registerOf(j), from, time.Now())
	if in.what != "read" && registerOf(j).lost() {
		w.h.mu.Lock()
		defer w.h.mu.Unlock()
		w.h.lost[in.key] = j.FinishedAt
	}
	return j
}

func (w *historian) submit(ctx context.Context, key string) (wire.Job, error) {
	jobs, err := w.c.Submit(ctx, w.spec(key))
	if err != nil {
		return wire.Job{}, err
	}
	return jobs[0], nil
}

const historyLines = 30

func (w *historian) gate(key string) string { return filepath.Join(w.s.dir, key+".gate") }

func (w *historian) spec(key string) wire.JobSpec {
	first, wait := historyLines/2, ""
	if strings.HasPrefix(key, awaitedKey) {
		wait = fmt.Sprintf("until [ -e %s ]; do sleep 0.02; done; ", w.gate(key))
	}
	text := fmt.Sprintf("echo \"%[1]s $WAYPOINT_ATTEMPT $(date +%%s%%N)\" >>%[2]s; seq -f '%[1]s %%.0f' 1 %[3]d; %[4]sseq -f '%[1]s %%.0f' %[5]d %[6]d",
		key, w.starts, first, wait, first+1, historyLines)
	return wire.JobSpec{
		Operation: wire.OpRun, IdempotencyKey: "history " + key, Target: wire.Target{Any: true}, Command: []string{"sh", "-c", text},
	}
}

// read is a job with the output that can be read of it.
func (w *historian) read(ctx context.Context, id, key string) (j wire.Job, err error) {
	var got []byte
	for item, err := range w.c.Stream(ctx, wire.StreamRequest{ID: id}) {
		if err != nil {
			return j, err
		}
		if item.Event != nil {
			j = item.Event.Job
			continue
		}
		got = append(got, item.Data.Bytes...)
	}
	if want := numbered(key+" %d\n", historyLines); !bytes.HasPrefix(want, got) {
		return j, fmt.Errorf("output is %q", got)
	}
	j.LogBytes = int64(len(got))
	return j, nil
}

// readBeginnings adds what the jobs' processes have noted.
func readBeginnings(t *testing.T, path string, h *tape) (n int) {
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) != 3 {
			t.Fatalf("read %s: line %q", path, line)
		}
		attempt, err1 := strconv.Atoi(f[1])
		at, err2 := strconv.ParseInt(f[2], 10, 64)
		if err1 != nil || err2 != nil {
			t.Fatalf("read %s: line %q", path, line)
		}
		// Its process began before it could note it.
		h.add(100, registerCall{what: "start", key: f[0], attempt: attempt}, register{}, time.Unix(0, at).Add(-time.Second), time.Unix(0, at))
		n++
	}
	return n
}
