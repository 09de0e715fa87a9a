package daemon

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"database/sql"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/waypointd/waypoint/daemon/store/storetest"
	dialer "github.com/waypointd/waypoint/mux/client"
	"github.com/waypointd/waypoint/mux/wire"
)

// as is a client by TCP that shows a token.
func (s *site) as(t testing.TB, text string) *dialer.Client {
	t.Helper()
	return s.clientBy(t, "tcp", text)
}

func (s *site) clientBy(t testing.TB, network, text string) *dialer.Client {
	t.Helper()
	c, err := dialer.Dial(t.Context(), dialer.Config{
		Dial:  func(context.Context) (net.Conn, error) { return s.dial(network) },
		Token: func() string { return text },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func jobOf(project, workspace string) wire.JobSpec {
	return wire.JobSpec{Operation: wire.OpRun, Command: []string{"true"}, Project: project, Workspace: workspace, Target: wire.Target{Any: true}}
}

// mustQueue queues jobs that have to be queued.
func mustQueue(t testing.TB, c *dialer.Client, specs ...wire.JobSpec) []wire.Job {
	t.Helper()
	jobs, err := c.Submit(t.Context(), specs...)
	if err != nil {
		t.Fatal(err)
	}
	return jobs
}

// drainStream reads a job's stream to its end, as far as there is one.
func drainStream(t testing.TB, c *dialer.Client, id string) error {
	t.Helper()
	for _, err := range c.Stream(t.Context(), wire.StreamRequest{ID: id}) {
		if err != nil {
			return err
		}
	}
	return nil
}

// Jobs outside of somebody's limits are not there for him, whatever he asks.
func TestLimitsHideJobs(t *testing.T) {
	s := newSite(t, Config{})
	admin := s.clientBy(t, "memory", "")
	limited := s.as(t, s.account(t, "olga", wire.Operator, wire.Limits{Projects: []string{"shop", "site"}, Workspaces: []string{"default"}}))
	ours := mustQueue(t, limited, jobOf("shop", ""), func() wire.JobSpec { j := jobOf("site", "default"); j.IdempotencyKey = "again"; return j }())
	other := mustQueue(t, admin, jobOf("bank", "default"), jobOf("shop", "staging"), jobOf("", ""))
	for _, j := range ours {
		if j.QueuedBy != "olga" {
			t.Errorf("job queued by %q", j.QueuedBy)
		}
		if got, err := limited.Job(t.Context(), j.ID); err != nil || got.ID != j.ID || got.QueuedBy != "olga" {
			t.Errorf("%+v, %v", got, err)
		}
		if _, err := limited.Why(t.Context(), j.ID); err != nil {
			t.Error(err)
		}
	}
	for _, j := range other {
		for what, call := range map[string]func() error{
			"get":    func() error { _, err := limited.Job(t.Context(), j.ID); return err },
			"why":    func() error { _, err := limited.Why(t.Context(), j.ID); return err },
			"wait":   func() error { _, err := limited.Wait(t.Context(), j.ID); return err },
			"cancel": func() error { _, err := limited.Cancel(t.Context(), j.ID, true); return err },
			"retry":  func() error { _, err := limited.Retry(t.Context(), j.ID); return err },
			"stream": func() error { return drainStream(t, limited, j.ID) },
			"page":   func() error { _, err := limited.Jobs(t.Context(), wire.JobFilter{After: j.ID}); return err },
		} {
			unknown := strings.Replace(wire.Errorf(wire.NotFound, "job %q not found", j.ID).Message, j.ID, "", 1)
			err := call()
			if wire.KindOf(err) != wire.NotFound || strings.Replace(err.Error(), j.ID, "", 1) != unknown {
				t.Errorf("%s of a job of project %q in %q: %v", what, j.Project, j.Workspace, err)
			}
		}
		if got, err := admin.Job(t.Context(), j.ID); err != nil || got.State != wire.Queued {
			t.Errorf("it is %+v, %v", got, err)
		}
		// Not as something to wait for, either.
		spec := jobOf("shop", "")
		spec.DependsOn = []string{j.ID}
		_, err := limited.Submit(t.Context(), spec)
		is(t, err, wire.NotFound, "there is no job", "")
		// Nor is it told by what is said about something else first, of one that is not there.
		for what, edit := range map[string]func(*wire.JobSpec){
			"a spec that is none":  func(spec *wire.JobSpec) { spec.Priority = 1 << 40 },
			"an input of others":   func(spec *wire.JobSpec) { spec.Stdin = blob("bank").Digest },
			"a job that is queued": func(spec *wire.JobSpec) { spec.IdempotencyKey = "again" },
		} {
			var says []string
			for _, id := range []string{j.ID, strings.ToLower(j.ID)} {
				spec := jobOf("shop", "")
				edit(&spec)
				spec.DependsOn = []string{id}
				jobs, err := limited.Submit(t.Context(), spec)
				says = append(says, strings.ReplaceAll(fmt.Sprint(len(jobs), err), id, "it"))
			}
			if says[0] != says[1] {
				t.Errorf("%s: %q, and of one that is not there %q", what, says[0], says[1])
			}
		}
	}
	list, err := limited.Jobs(t.Context(), wire.JobFilter{})
	if err != nil || len(list) != 2 {
		t.Errorf("%d jobs are listed, %v", len(list), err)
	}
	if list, err = limited.Jobs(t.Context(), wire.JobFilter{Project: "bank"}); err != nil || len(list) != 0 {
		t.Errorf("%d jobs of another project are listed, %v", len(list), err)
	}
	status, err := limited.ServerStatus(t.Context())
	if err != nil || status.Jobs["queued"] != 2 || status.QueueDepth != 2 {
		t.Errorf("status counts %v, %v", status.Jobs, err)
	}
	if status, err = admin.ServerStatus(t.Context()); err != nil || status.Jobs["queued"] != 5 {
		t.Errorf("status counts %v, %v", status.Jobs, err)
	}

	// What is asked for must be inside.
	for _, c := range []struct {
		spec       wire.JobSpec
		says, hint string
	}{
		{jobOf("bank", ""), `project "bank"`, "--project"},
		{jobOf("shop", "staging"), `workspace "staging"`, "--workspace"},
		{jobOf("", ""), "without a project", "--project"},
	} {
		_, err := limited.Submit(t.Context(), jobOf("shop", ""), c.spec)
		is(t, err, wire.Denied, c.says, c.hint)
	}
	if list, err := admin.Jobs(t.Context(), wire.JobFilter{}); err != nil || len(list) != 5 {
		t.Errorf("%d jobs, %v", len(list), err)
	}
}

// A singleton's name and an idempotency key are everybody's: they must not be a
// way into other projects.
func TestLimitsAndSharedNames(t *testing.T) {
	s := newSite(t, Config{})
	admin := s.clientBy(t, "memory", "")
	limited := s.as(t, s.account(t, "olga", wire.Operator, wire.Limits{Projects: []string{"shop"}}))
	theirs := jobOf("bank", "")
	theirs.Singleton, theirs.IdempotencyKey = "nightly", "key"
	job := mustQueue(t, admin, theirs)[0]
	mine := jobOf("shop", "")
	mine.Singleton = "nightly"
	_, err := limited.Submit(t.Context(), mine)
	is(t, err, wire.Denied, `singleton "nightly" is in use`, "another name")
	if got, err := admin.Job(t.Context(), job.ID); err != nil || got.State != wire.Queued {
		t.Errorf("%+v, %v", got, err)
	}
	mine = jobOf("shop", "")
	mine.IdempotencyKey = "key"
	_, err = limited.Submit(t.Context(), mine)
	is(t, err, wire.Denied, "idempotency key is in use", "another key")
	mine.Singleton, mine.IdempotencyKey = "hourly", "other"
	first := mustQueue(t, limited, mine)[0]
	if again := mustQueue(t, limited, mine)[0]; again.ID != first.ID {
		t.Errorf("queued again as %s", again.ID)
	}
}

// A job that somebody may see names none that he may not: not as what it depends
// on, nor as what it waits for, nor as what has ended it.
func TestLimitsHideNames(t *testing.T) {
	s := newSite(t, Config{})
	ctx := t.Context()
	admin := s.clientBy(t, "memory", "")
	limited := s.as(t, s.account(t, "olga", wire.Operator, wire.Limits{Projects: []string{"shop"}}))
	next := works(t, s.mustHello(t, "tcp", remote("r1", s.runnerToken(t, time.Hour))))
	queue := func(project, singleton string, dependsOn ...string) wire.Job {
		t.Helper()
		spec := jobOf(project, "")
		spec.Singleton, spec.DependsOn = singleton, dependsOn
		return mustQueue(t, admin, spec)[0]
	}
	theirs := queue("bank", "nightly")
	await(t, next, func(o wire.WorkOrder) bool { return o.Assign != nil && o.Assign.Job == theirs.ID }) // it is in the way
	mine := queue("shop", "")
	behind := queue("shop", "nightly")
	dependent := queue("shop", "", theirs.ID, mine.ID)
	superseded := queue("shop", "hourly")
	superseder := queue("bank", "hourly")

	why := func(c *dialer.Client, id string) string {
		t.Helper()
		w, err := c.Why(ctx, id)
		if err != nil {
			t.Fatal(err)
		}
		return w.Sentence
	}
	for _, c := range []struct {
		about       string
		job         wire.Job
		named, seen string // to who may see all, and to who is limited
	}{
		{"the singleton in the way", behind, "it waits for job " + theirs.ID, "it waits for a job outside of your limits"},
		{"the dependencies", dependent, "it waits for job " + theirs.ID, "it waits for job " + mine.ID + " (run, queued), a job outside of your limits"},
		{"the one that took its place", superseded, "job " + superseder.ID + " of the same", "a job outside of your limits of the same singleton took its place"},
	} {
		if got := why(admin, c.job.ID); !strings.Contains(got, c.named) {
			t.Errorf("%s: an admin is told %q", c.about, got)
		}
		if got := why(limited, c.job.ID); !strings.Contains(got, c.seen) {
			t.Errorf("%s: the limited one is told %q", c.about, got)
		}
	}
	if _, err := admin.Cancel(ctx, theirs.ID, true); err != nil {
		t.Fatal(err)
	}
	failed, err := limited.Wait(ctx, dependent.ID)
	if err != nil || failed.Error != "a job outside of your limits that it depends on did not succeed" {
		t.Errorf("%q, %v", failed.Error, err)
	}
	if failed, err = admin.Job(ctx, dependent.ID); err != nil || !strings.Contains(failed.Error, "job "+theirs.ID+" (run) that") || len(failed.DependsOn) != 2 {
		t.Errorf("an admin sees %+v, %v", failed, err)
	}

	// However they are asked for.
	retried, err := limited.Retry(ctx, dependent.ID)
	if err != nil {
		t.Fatal(err)
	}
	listed, err := limited.Jobs(ctx, wire.JobFilter{})
	if err != nil {
		t.Fatal(err)
	}
	answers := map[string]any{"retry": retried, "list": listed}
	for _, j := range []wire.Job{mine, behind, dependent, superseded, retried} {
		canceled, err := limited.Cancel(ctx, j.ID, true) // so that there is an end to wait for
		if err != nil {
			t.Fatal(err)
		}
		answers["cancel of "+j.ID] = canceled
		for what, call := range map[string]func() (any, error){
			"get":  func() (any, error) { return limited.Job(ctx, j.ID) },
			"why":  func() (any, error) { return limited.Why(ctx, j.ID) },
			"wait": func() (any, error) { return limited.Wait(ctx, j.ID) },
			"stream": func() (any, error) {
				var events []any
				for item, err := range limited.Stream(ctx, wire.StreamRequest{ID: j.ID, Follow: true}) {
					if err != nil {
						return nil, err
					}
					events = append(events, item.Event)
				}
				return events, nil
			},
		} {
			answer, err := call()
			if err != nil {
				t.Errorf("%s of job %s: %v", what, j.ID, err)
			}
			answers[what+" of "+j.ID] = answer
		}
	}
	for what, answer := range answers {
		text, err := json.Marshal(answer)
		if err != nil {
			t.Fatal(err)
		}
		for _, other := range []wire.Job{theirs, superseder} {
			if strings.Contains(string(text), other.ID) {
				t.Errorf("%s names job %s of project %q: %s", what, other.ID, other.Project, text)
			}
		}
	}
}

func blob(text string) dialer.Blob {
	return dialer.Blob{
		BlobHeader: wire.BlobHeader{Digest: fmt.Sprintf("sha256:%x", sha256.Sum256([]byte(text))), Size: int64(len(text))},
		Open:       func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(text)), nil },
	}
}

func get(ctx context.Context, c *dialer.Client, digest string) (string, error) {
	var text bytes.Buffer
	err := c.GetBlobs(ctx, []string{digest}, func(_ wire.BlobHeader, r io.Reader) error {
		_, err := io.Copy(&text, r)
		return err
	})
	return text.String(), err
}

// Who is limited uses a blob only where he has its content: to know a digest is
// not enough, be it asked for, named as a source, or named by one.
func TestLimitsAndBlobs(t *testing.T) {
	s := newSite(t, Config{})
	admin := s.clientBy(t, "memory", "")
	token := s.account(t, "olga", wire.Operator, wire.Limits{Projects: []string{"shop"}})
	limited := s.as(t, token)
	session := s.mustHello(t, "tcp", operator(token))
	missing := func(digests ...string) []string {
		t.Helper()
		var reply wire.BlobDigests
		if err := session.Call(t.Context(), wire.MethodBlobMissing, wire.BlobDigests{Digests: digests}, &reply); err != nil {
			t.Fatal(err)
		}
		return reply.Digests
	}
	get := func(digest string) (string, error) { return get(t.Context(), limited, digest) }
	secret, own := blob("the bank's secret"), blob("the shop's own")
	tree := func(files ...dialer.Blob) dialer.Blob {
		var entries []string
		for i, f := range files {
			entries = append(entries, fmt.Sprintf(`{"path":"f%d","type":"file","size":%d,"digest":"%s"}`, i, f.Size, f.Digest))
		}
		return blob(`{"version":1,"entries":[` + strings.Join(entries, ",") + `]}`)
	}
	theirs, ours, mixed := tree(secret), tree(own), tree(own, secret)
	if err := admin.PutBlobs(t.Context(), []dialer.Blob{secret, theirs}); err != nil {
		t.Fatal(err)
	}
	if got := missing(secret.Digest, theirs.Digest, own.Digest); len(got) != 3 {
		t.Errorf("missing are %v: he learns what others have", got)
	}
	_, err := get(secret.Digest)
	is(t, err, wire.NotFound, "not found", "")
	if err := limited.PutBlobs(t.Context(), []dialer.Blob{own, ours, mixed}); err != nil {
		t.Fatal(err)
	}
	if got := missing(own.Digest, ours.Digest, secret.Digest); !slices.Equal(got, []string{secret.Digest}) {
		t.Errorf("missing are %v", got)
	}
	if text, err := get(own.Digest); err != nil || text != "the shop's own" {
		t.Errorf("%q, %v", text, err)
	}
	with := func(source, stdin string) wire.JobSpec {
		spec := jobOf("shop", "")
		spec.Stdin = stdin
		if source != "" {
			spec.Source = &wire.Source{Tree: source}
		}
		return spec
	}
	mustQueue(t, limited, with(ours.Digest, own.Digest))
	for what, spec := range map[string]wire.JobSpec{
		"source": with(theirs.Digest, ""), "a source that names it": with(mixed.Digest, ""), "input": with("", secret.Digest),
	} {
		_, err := limited.Submit(t.Context(), spec)
		if wire.KindOf(err) != wire.Denied || !strings.Contains(err.Error(), "is not what olga has sent") {
			t.Errorf("%s: %v", what, err)
		}
	}
	bad := blob(`[]`)
	if err := limited.PutBlobs(t.Context(), []dialer.Blob{bad}); err != nil {
		t.Fatal(err)
	}
	if _, err := limited.Submit(t.Context(), with(bad.Digest, "")); wire.KindOf(err) != wire.BadUsage {
		t.Errorf("a source that is none: %v", err)
	}
	// Who has its content may use it, and who is not limited anything.
	if err := limited.PutBlobs(t.Context(), []dialer.Blob{secret}); err != nil {
		t.Fatal(err)
	}
	mustQueue(t, limited, with(mixed.Digest, secret.Digest))
	mustQueue(t, s.as(t, s.account(t, "otto", wire.Operator, wire.Limits{})), with(theirs.Digest, ""))
}

// What somebody has sent is his on every server of the store, and after a restart;
// it is nobody's who is called like him later.
func TestLimitsAndBlobsElsewhere(t *testing.T) {
	for name, dsn := range map[string]func() string{
		"sqlite":   func() string { return filepath.Join(t.TempDir(), "shared.db") },
		"postgres": func() string { return storetest.Database(t) },
	} {
		t.Run(name, func(t *testing.T) {
			cfg := Config{StoreDSN: dsn()}
			a, b := newSite(t, cfg), newSite(t, cfg)
			limits := wire.Limits{Projects: []string{"shop"}}
			token, other := a.account(t, "olga", wire.Operator, limits), a.account(t, "otto", wire.Operator, limits)
			own := blob("the shop's own")
			files := make([]string, 600)
			for i := range files {
				files[i] = fmt.Sprintf(`{"path":"f%d","type":"file","size":%d,"digest":"%s"}`, i, own.Size, own.Digest)
			}
			source := blob(`{"version":1,"entries":[` + strings.Join(files, ",") + `]}`)
			if err := a.as(t, token).PutBlobs(t.Context(), []dialer.Blob{own, source}); err != nil {
				t.Fatal(err)
			}
			spec := jobOf("shop", "")
			spec.Stdin, spec.Source = own.Digest, &wire.Source{Tree: source.Digest}
			mustQueue(t, b.as(t, token), spec)
			if text, err := get(t.Context(), b.as(t, token), own.Digest); err != nil || text != "the shop's own" {
				t.Errorf("%q, %v", text, err)
			}
			_, err := b.as(t, other).Submit(t.Context(), spec)
			is(t, err, wire.Denied, "is not what otto has sent", "run the command again")
			if err := b.root(t).Call(t.Context(), wire.MethodUserDelete, wire.UserRequest{User: "olga"}, nil); err != nil {
				t.Fatal(err)
			}
			_, err = b.as(t, b.account(t, "olga", wire.Operator, limits)).Submit(t.Context(), spec)
			is(t, err, wire.Denied, "is not what olga has sent", "run the command again")
		})
	}
}

// Where it is not known any more what somebody has sent, a job that is queued
// is found again all the same, and its runner gets its input.
func TestLimitsAndForgottenBlobs(t *testing.T) {
	s := newSite(t, Config{})
	token := s.account(t, "olga", wire.Operator, wire.Limits{Projects: []string{"shop"}})
	limited := s.as(t, token)
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	own, err := s.helloAs(t, "tcp", local(token), key)
	if err != nil {
		t.Fatal(err)
	}
	work, err := own.Open(ctx, wire.MethodWork, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer work.Close()
	if err := work.Send(wire.WorkEvent{Begin: &wire.WorkBegin{Concurrency: 1}}); err != nil {
		t.Fatal(err)
	}
	input := blob("the shop's own")
	if err := limited.PutBlobs(ctx, []dialer.Blob{input}); err != nil {
		t.Fatal(err)
	}
	spec := jobOf("shop", "")
	spec.Stdin, spec.IdempotencyKey = input.Digest, "key"
	spec.Target = wire.Target{ID: localID(key.Public().(ed25519.PublicKey))}
	first := mustQueue(t, limited, spec)[0]
	for {
		var o wire.WorkOrder
		if err := work.RecvMsg(&o); err != nil {
			t.Fatal(err)
		}
		if o.Assign != nil {
			break
		}
	}
	db, err := sql.Open("sqlite", s.dir.Path(storeFile))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.ExecContext(ctx, `PRAGMA busy_timeout = 10000; DELETE FROM proofs`); err != nil {
		t.Fatal(err)
	}
	if again := mustQueue(t, limited, spec)[0]; again.ID != first.ID {
		t.Errorf("queued again as %s", again.ID)
	}
	spec.IdempotencyKey = "another"
	_, err = limited.Submit(ctx, spec)
	is(t, err, wire.Denied, "the input of the job is not what olga has sent", "run the command again")
	_, err = get(ctx, limited, input.Digest)
	is(t, err, wire.NotFound, "not found", "")
	st, err := own.Open(ctx, wire.MethodBlobGet, wire.BlobDigests{Digests: []string{input.Digest}})
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	var h wire.BlobHeader
	if err := st.RecvMsg(&h); err != nil || h.Digest != input.Digest {
		t.Errorf("%+v, %v", h, err)
	}
}

// A command line's own runner runs jobs as its user, with his environment: nobody
// else may give it any.
func TestOwnRunnerIsItsOwnersAlone(t *testing.T) {
	s := newSite(t, Config{})
	ada, otto := s.account(t, "ada", wire.Admin, wire.Limits{}), s.account(t, "otto", wire.Operator, wire.Limits{})
	session := s.mustHello(t, "tcp", local(ada))
	mustWork(t, session)
	list, err := s.as(t, otto).Runners(t.Context(), wire.RunnerFilter{})
	if err != nil || len(list) != 1 {
		t.Fatalf("%+v, %v", list, err)
	}
	spec := jobOf("", "")
	spec.Target = wire.Target{ID: list[0].ID}
	for _, c := range []*dialer.Client{s.as(t, otto), s.clientBy(t, "memory", "")} {
		_, err = c.Submit(t.Context(), spec)
		is(t, err, wire.Denied, "is of the command line of user ada", "")
	}
	if _, err := s.as(t, ada).Submit(t.Context(), spec); err != nil {
		t.Error(err)
	}
}
