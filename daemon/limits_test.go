package daemon_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/waypointd/waypoint/daemon"
	"github.com/waypointd/waypoint/daemon/daemontest"
	"github.com/waypointd/waypoint/daemon/store/storetest"
	"github.com/waypointd/waypoint/mux/wire"
)

// Whatever stands in a request, the answer is an error of the right kind, and
// the server goes on.
func TestExtremeValues(t *testing.T) {
	t.Run("SQLite", func(t *testing.T) { extremeValues(t, slowly) })
	t.Run("PostgreSQL", func(t *testing.T) { // which takes no NUL in a text
		cfg := slowly
		cfg.StoreDSN = storetest.Database(t)
		extremeValues(t, cfg)
	})
}

func extremeValues(t *testing.T, cfg daemon.Config) {
	s := daemontest.Start(t, cfg)
	c := s.Client(t)
	call := func(kind wire.Kind, method string, body any) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), daemontest.Patience)
		defer cancel()
		if err := c.Call(ctx, method, body, nil); wire.KindOf(err) != kind {
			text, _ := json.Marshal(body)
			t.Errorf("%s %.200q: got %.200q, want kind %q", method, text, fmt.Sprint(err), kind)
		}
	}
	raw := func(text string) json.RawMessage { return json.RawMessage(text) }
	one := func(edit func(*wire.JobSpec)) wire.SubmitRequest {
		return wire.SubmitRequest{Jobs: []wire.JobSpec{run(edit)}}
	}
	target := func(to wire.Target) wire.SubmitRequest { return one(func(j *wire.JobSpec) { j.Target = to }) }
	many := map[string]string{}
	for i := range 10_000 {
		many[fmt.Sprintf("k%d", i)] = "v"
	}
	for _, j := range []func(*wire.JobSpec){
		func(j *wire.JobSpec) { j.Priority = math.MaxInt },
		func(j *wire.JobSpec) { j.Priority = math.MinInt },
		func(j *wire.JobSpec) { j.Timeout = math.MinInt64 },
		func(j *wire.JobSpec) { j.ExpiresIn = -1 },
		func(j *wire.JobSpec) { j.Artifact = math.MinInt64 },
		func(j *wire.JobSpec) { j.Project = "a\x00b" },
		func(j *wire.JobSpec) { j.Workspace = "two words" },
		func(j *wire.JobSpec) { j.Singleton = strings.Repeat("x", 10_000) },
		func(j *wire.JobSpec) { j.IdempotencyKey = "line\nfeed" },
		func(j *wire.JobSpec) { j.Operation = "explode" },
		func(j *wire.JobSpec) { j.DependsOn = []string{"#-1"} },
		func(j *wire.JobSpec) { j.DependsOn = []string{"#99999999999999999999"} },
		func(j *wire.JobSpec) { j.DependsOn = make([]string, 1001) },
	} {
		call(wire.BadUsage, wire.MethodJobSubmit, one(j))
	}
	call(wire.Conflict, wire.MethodJobSubmit, one(func(j *wire.JobSpec) { j.DependsOn = []string{"#0"} }))
	call(wire.NotFound, wire.MethodJobSubmit, one(func(j *wire.JobSpec) { j.DependsOn = []string{"", " ", "\x00"} }))
	call(wire.BadUsage, wire.MethodJobSubmit, target(wire.Target{}))
	call(wire.BadUsage, wire.MethodJobSubmit, target(wire.Target{Any: true, ID: "r1"}))
	call(wire.BadUsage, wire.MethodJobSubmit, target(wire.Target{ID: "\x00"}))
	call(wire.BadUsage, wire.MethodJobSubmit, target(wire.Target{Labels: many}))
	call(wire.BadUsage, wire.MethodJobSubmit, wire.SubmitRequest{})
	call(wire.TooLarge, wire.MethodJobSubmit, wire.SubmitRequest{Jobs: make([]wire.JobSpec, 1001)})
	chained := make([]wire.JobSpec, 11)
	for i := range chained {
		chained[i].DependsOn = make([]string, 910)
	}
	call(wire.TooLarge, wire.MethodJobSubmit, wire.SubmitRequest{Jobs: chained})
	call(wire.TooLarge, wire.MethodJobSubmit, one(func(j *wire.JobSpec) { j.Env = map[string]string{"BIG": strings.Repeat("x", 600<<10)} }))
	call(wire.TooLarge, wire.MethodJobSubmit, one(func(j *wire.JobSpec) { j.Env = map[string]string{"BIG": strings.Repeat("x", 1<<20)} }))
	for _, text := range []string{
		`{"jobs":[{"operation":"run","target":{"any":true},"timeout":"999999999999h"}]}`,
		`{"jobs":[{"operation":"run","target":{"any":true},"timeout":5}]}`,
		`{"jobs":[{"operation":"run","target":{"any":true},"priority":1e99}]}`,
		`{"jobs":{}}`, `[]`, `7`, `"x"`,
	} {
		call(wire.BadUsage, wire.MethodJobSubmit, raw(text))
	}
	call("", wire.MethodJobSubmit, one(func(j *wire.JobSpec) {
		j.Timeout, j.ExpiresIn, j.Target = math.MaxInt64, math.MaxInt64, wire.Target{ID: "nobody"}
		j.Command, j.Script, j.Env = []string{"nul\x00", "\xff"}, "\x00", map[string]string{"": "\x00"}
	}))

	call(wire.BadUsage, wire.MethodJobList, wire.JobFilter{Limit: -1})
	call("", wire.MethodJobList, wire.JobFilter{Limit: math.MaxInt})
	call(wire.BadUsage, wire.MethodJobList, wire.JobFilter{State: "\x00"})
	call(wire.NotFound, wire.MethodJobList, wire.JobFilter{After: "\x00"})
	call("", wire.MethodJobList, wire.JobFilter{Project: "\x00", Runner: "\xff"})
	call(wire.BadUsage, wire.MethodRunnerList, wire.RunnerFilter{Limit: math.MinInt})
	call("", wire.MethodRunnerList, wire.RunnerFilter{After: "\x00", Labels: many})
	call(wire.BadUsage, wire.MethodRecordList, wire.RecordFilter{Kind: "song"})
	call(wire.BadUsage, wire.MethodRecordList, wire.RecordFilter{Kind: wire.RecordRelease, Limit: -1})
	for _, method := range []string{wire.MethodJobGet, wire.MethodJobWhy, wire.MethodJobWait, wire.MethodJobCancel, wire.MethodJobRetry, wire.MethodJobStream, wire.MethodRunnerInspect, wire.MethodRunnerAdopt} {
		for _, id := range []string{"", "\x00", "\xff", strings.Repeat("x", 900<<10)} {
			call(wire.NotFound, method, wire.JobRequest{ID: id})
		}
	}
	job := submit(t, c, run(func(j *wire.JobSpec) { j.Target = wire.Target{ID: "nobody"} }))[0]
	call(wire.BadUsage, wire.MethodJobStream, wire.StreamRequest{ID: job.ID, Offset: -1})
	call(wire.BadUsage, wire.MethodJobStream, wire.StreamRequest{ID: job.ID, Attempt: math.MinInt})
	call(wire.NotFound, wire.MethodJobStream, wire.StreamRequest{ID: job.ID, Attempt: math.MaxInt})
	call("", wire.MethodJobStream, wire.StreamRequest{ID: job.ID, Offset: math.MaxInt64})
	call("", wire.MethodBlobMissing, wire.BlobDigests{Digests: []string{"", "\x00"}})
	call(wire.TooLarge, wire.MethodBlobMissing, wire.BlobDigests{Digests: make([]string, 4097)})
	call(wire.NotFound, wire.MethodBlobGet, wire.BlobDigests{Digests: []string{"\x00"}})
	if _, err := c.ServerStatus(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// A list is never too long for a message: it comes in several.
func TestLongLists(t *testing.T) {
	if testing.Short() {
		t.Skip("short: it connects 260 runners with all their labels")
	}
	s := daemontest.Start(t, slowly)
	c := s.Client(t)
	nobody := func(j *wire.JobSpec) {
		j.Target = wire.Target{ID: "nobody"}
		j.Command = []string{strings.Repeat("x", 400<<10)}
	}
	var ids []string
	for range 12 {
		ids = append(ids, submit(t, c, run(nobody))[0].ID)
	}
	for limit, want := range map[int]int{0: 12, 500: 12, 5: 5} {
		jobs, err := c.Jobs(t.Context(), wire.JobFilter{Limit: limit})
		if err != nil || len(jobs) != want {
			t.Fatalf("limit %d: %d jobs, %v; want %d", limit, len(jobs), err, want)
		}
		for i, j := range jobs {
			if j.ID != ids[len(ids)-1-i] {
				t.Fatalf("limit %d: job %d is another", limit, i)
			}
		}
	}
	labels := map[string]string{}
	for i := range wire.MaxLabels {
		labels[fmt.Sprintf("%063d", i)] = strings.Repeat("v", 63)
	}
	for i := range 260 {
		r := s.Runner(t, fmt.Sprintf("r%03d", i), labels)
		r.MustConnect()
		r.Disconnect()
	}
	if runners, err := c.Runners(t.Context(), wire.RunnerFilter{Limit: 500}); err != nil || len(runners) != 260 || runners[259].ID != "r259" {
		t.Fatalf("%d runners, %v", len(runners), err)
	}
}

// Jobs whose answer would be too long are not queued: their client would take
// them for refused, and queue them again.
func TestSubmitWithoutAnAnswer(t *testing.T) {
	s := daemontest.Start(t, slowly)
	c := s.Client(t)
	specs := make([]wire.JobSpec, 1000)
	for i := range specs {
		specs[i] = run(func(j *wire.JobSpec) { j.Command = []string{strings.Repeat("x", 850)} })
	}
	_, err := c.Submit(t.Context(), specs...)
	wantKind(t, err, wire.TooLarge)
	if st, err := c.ServerStatus(t.Context()); err != nil || st.QueueDepth != 0 {
		t.Fatalf("%d jobs are queued, %v", st.QueueDepth, err)
	}
	for i := range specs {
		specs[i].Command = []string{"true"}
	}
	if jobs := submit(t, c, specs...); len(jobs) != 1000 {
		t.Fatalf("%d jobs", len(jobs))
	}
}

// The end of a long chain's first job ends all of it, in a time that holds
// nobody up for long.
func TestLongChain(t *testing.T) {
	s := daemontest.Start(t, slowly)
	c := s.Client(t)
	n := 2000
	if testing.Short() {
		n = 200
	}
	var ids []string
	for len(ids) < n {
		batch := make([]wire.JobSpec, min(200, n-len(ids)))
		for i := range batch {
			batch[i] = run(func(j *wire.JobSpec) {
				j.Target = wire.Target{ID: "nobody"}
				switch {
				case i > 0:
					j.DependsOn = []string{fmt.Sprintf("#%d", i-1)}
				case len(ids) > 0:
					j.DependsOn = ids[len(ids)-1:]
				}
			})
		}
		for _, j := range submit(t, c, batch...) {
			ids = append(ids, j.ID)
		}
	}
	began := time.Now()
	if _, err := c.Cancel(t.Context(), ids[0], false); err != nil {
		t.Fatal(err)
	}
	t.Logf("a chain of %d ended in %s", n, time.Since(began))
	if j, err := c.Wait(t.Context(), ids[n-1]); err != nil || j.Reason != wire.ReasonDependency {
		t.Fatalf("the last job is %+v, %v", j, err)
	}
	if st, err := c.ServerStatus(t.Context()); err != nil || st.QueueDepth != 0 {
		t.Fatalf("%d jobs are still queued, %v", st.QueueDepth, err)
	}
}

// Whatever a runner says of a job's end, the job can be shown.
func TestLongResults(t *testing.T) {
	s := daemontest.Start(t, slowly)
	c := s.Client(t)
	r := s.Adopted(t, "r1", nil)
	long := strings.Repeat("ü", 200<<10)
	job := submit(t, c, run(func(j *wire.JobSpec) { j.Command = []string{long} }))[0]
	a := r.MustStart()
	result := wire.Result{State: wire.Failed, Reason: wire.ReasonFailed, Error: "command not found: " + long, Outputs: map[string]string{"k": long}}
	wantKind(t, r.Finish(a.JobRef, "", result), wire.TooLarge)
	result.Outputs = nil
	r.MustFinish(a.JobRef, "", result)
	j, err := c.Job(t.Context(), job.ID)
	if err != nil || j.Command[0] != long || !strings.HasPrefix(j.Error, "command not found: üü") || len(j.Error) > 5000 {
		t.Fatalf("%v: error %.100q of %d bytes", err, j.Error, len(j.Error))
	}
	if list, err := c.Jobs(t.Context(), wire.JobFilter{}); err != nil || len(list) != 1 {
		t.Fatalf("%d jobs, %v", len(list), err)
	}
}

// What a runner says of a job's end is kept as text that no terminal obeys, and what
// cannot be so is refused.
func TestHostileResults(t *testing.T) {
	var log lines
	cfg := slowly
	cfg.Logger = slog.New(slog.NewTextHandler(&log, nil))
	s := daemontest.Start(t, cfg)
	c := s.Client(t)
	r := s.Adopted(t, "r1", nil)
	refused := submit(t, c, run())[0]
	r.Say(wire.WorkEvent{Nack: &wire.Nack{JobRef: r.MustAssign().JobRef, Error: strings.Repeat("no", 300_000)}})
	s.AwaitJob(t, refused.ID, func(j wire.Job) bool { return j.State == wire.Queued })
	if text := log.String(); !strings.Contains(text, "job refused") || len(text) > 100_000 {
		t.Errorf("why a runner refuses a job makes %d bytes of the log", len(text))
	}
	if _, err := c.Cancel(t.Context(), refused.ID, false); err != nil {
		t.Fatal(err)
	}
	job := submit(t, c, run(func(j *wire.JobSpec) { j.Operation, j.Project, j.App = wire.OpBuild, "p", "a" }))[0]
	a := r.MustStart()
	digest := "sha256:" + strings.Repeat("0", 64)
	for _, bad := range []wire.Result{
		{State: wire.Success, Artifact: &wire.BlobHeader{Digest: "\x1b[2J"}},
		{State: wire.Success, Artifact: &wire.BlobHeader{Digest: strings.ToUpper(digest)}},
		{State: wire.Success, Artifact: &wire.BlobHeader{Digest: digest, Size: -1}},
		{State: wire.Success, Reason: wire.ReasonOOM},
		{State: wire.Failed, Reason: "\x1b[2J"},
		{State: wire.Failed, Reason: wire.ReasonExpired},
		{State: wire.Running},
		{State: "\x00"},
	} {
		wantKind(t, r.Finish(a.JobRef, "", bad), wire.BadUsage)
	}
	far := time.Date(9999, 12, 31, 23, 59, 59, 0, time.FixedZone("", -3600)) // there it has a text, in UTC it has none
	wantKind(t, r.Finish(a.JobRef, "", wire.Result{State: wire.Success, FinishedAt: far}), wire.BadUsage)
	r.MustFinish(a.JobRef, "", wire.Result{
		State: wire.Failed, Reason: wire.ReasonFailed,
		Error: "a\x1b[2J\nb\u009bc\u202ed\x00", Signal: strings.Repeat("\x1b", 1000),
	})
	got, err := c.Job(t.Context(), job.ID)
	if err != nil || got.Error != "a?[2J b?c?d?" || got.Signal != strings.Repeat("?", 255) {
		t.Errorf("error %q, signal %q, %v", got.Error, got.Signal, err)
	}
	if why, err := c.Why(t.Context(), job.ID); err != nil || !strings.HasSuffix(why.Sentence, ": a?[2J b?c?d?") {
		t.Errorf("%q, %v", why.Sentence, err)
	}
}

// However a runner reports, and however often, no more of a job's output is stored
// than it was told to keep, and a little that it may say itself.
func TestOutputWithoutEnd(t *testing.T) {
	const limit = 10 << 10
	s := daemontest.Start(t, daemon.Config{LogLimit: limit, Lease: 50 * time.Millisecond})
	c := s.Client(t)
	r := s.Adopted(t, "r1", nil)
	full := strings.Repeat("x", limit+(4<<20))
	job := submit(t, c, run())[0]
	a := r.MustStart()
	wantKind(t, r.Finish(a.JobRef, full+"y", daemontest.Succeeded()), wire.TooLarge)
	st, _, err := r.Report(a.JobRef)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range []wire.Data{{Offset: 1<<63 - 2, Bytes: []byte("xyz")}, {Bytes: []byte("x")}} {
		if err := st.SendData(d); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(st.Flush(), st.RecvMsg(&wire.ReportOrder{})); wire.KindOf(err) != wire.TooLarge {
		t.Errorf("far behind the end: %v", err)
	}
	r.Disconnect()
	s.AwaitJob(t, job.ID, ended)
	r.MustConnect()
	r.MustBegin(wire.Held{JobRef: a.JobRef, Started: true})
	wantKind(t, r.FinishLate(a.JobRef, full+"y", daemontest.Succeeded()), wire.TooLarge)
	if err := r.FinishLate(a.JobRef, full, daemontest.Succeeded()); err != nil {
		t.Error(err)
	}
	if j, err := c.Job(t.Context(), job.ID); err != nil || j.LogBytes != int64(len(full)) {
		t.Errorf("%d bytes are kept, %v", j.LogBytes, err)
	}
}
