package store

import (
	"bytes"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/waypointd/waypoint/daemon/queue"
	"github.com/waypointd/waypoint/daemon/token"
	"github.com/waypointd/waypoint/mux/wire"
)

// oldJobs are the jobs of every old store: how each stands, by its command.
var oldJobs = map[string]struct {
	state   wire.State
	reason  wire.Reason
	blocked queue.Blocked
	since   int // the schema whose store is the first to have it
}{
	"built":           {wire.Success, "", "", 0},
	"deployed":        {wire.Success, "", "", 0},
	"released":        {wire.Success, "", "", 0},
	"failed":          {wire.Failed, wire.ReasonFailed, "", 0},
	"canceled":        {wire.Canceled, wire.ReasonCanceled, "", 0},
	"killed":          {wire.Failed, wire.ReasonFailed, "", 4},
	"lost, it failed": {wire.Failed, wire.ReasonRunnerLost, "", 4},
	"lost":            {wire.Failed, wire.ReasonRunnerLost, "", 0},
	"expired":         {wire.Failed, wire.ReasonExpired, "", 0},
	"running":         {wire.Running, "", "", 0},
	"assigned":        {wire.Assigned, "", "", 0},
	"ready":           {wire.Queued, "", "", 0},
	"ready labels":    {wire.Queued, "", "", 0},
	"waits for job":   {wire.Queued, "", queue.ByDependency, 0},
	"deploying":       {wire.Running, "", "", 0},
	"deploys next":    {wire.Queued, "", queue.BySerial, 0},
	"again":           {wire.Success, "", "", 0},
}

const (
	oldOutput = "one line\nanother: ä, €, '; --\x00\x01 and no text\n"
	oldBlob   = "\x00\x01\xfe\xff of a tree\n"
	oldID     = "7LD2B4XW3TQJ5VY6MKHN2RPCFA"
	oldServer = "MZ3RCKWQ6YV5TB2H7NLXJ4PGDA"
	oldUser   = "Zoë"
)

var oldSeed = []byte("0123456789abcdef0123456789abcdef")

// fillOldStore writes what oldJobs says, and something of everything else.
func fillOldStore(t *testing.T, path string) {
	b := newBench(t, path, queue.Runner{ID: "r1", Free: 1, Spool: "spool-1"})
	b.putOldRunners()
	command := func(name string) func(*wire.JobSpec) {
		return func(s *wire.JobSpec) {
			s.Command = []string{name}
			s.Env = map[string]string{"QUOTED": `it's "so"`, "LINES": "a\nb"}
		}
	}
	given := func(name string, spec wire.JobSpec) string {
		id := b.one(spec)
		command(name)(&spec)
		b.given(id)
		return id
	}
	ended := func(name string, spec wire.JobSpec, res wire.Result) string {
		command(name)(&spec)
		id := given(name, spec)
		b.ack(id)
		b.do(id, func(tx *Tx, ref wire.JobRef, r string) error {
			n, err := tx.AppendLog(ref, r, []wire.Data{{Bytes: []byte(oldOutput[:9]), Stream: wire.Stdout, Time: b.now},
				{Offset: 9, Bytes: []byte(oldOutput[9:]), Stream: wire.Stderr, Time: b.now}})
			res.LogBytes = n
			return err
		})
		b.finish(id, res)
		return id
	}
	good := wire.Result{State: wire.Success, ExitCode: new(int), Usage: &wire.Usage{MaxRSSBytes: 1 << 20}}
	build := good
	build.Artifact, build.Outputs = &wire.BlobHeader{Digest: "sha256:ab", Size: int64(len(oldBlob))}, map[string]string{"url": "https://example.org/?a='b'"}
	ended("built", operation(wire.OpBuild, "web"), build)
	ended("deployed", operation(wire.OpDeploy, "web"), good)
	ended("released", operation(wire.OpRelease, "web", idempotent("key-1")), good)
	ended("failed", run(), wire.Result{State: wire.Failed, Reason: wire.ReasonFailed, Error: "it's exit status 3", ExitCode: new(3)})
	ended("killed", run(allowFailure, func(s *wire.JobSpec) { s.Profile = "it's" }), wire.Result{State: wire.Failed, Reason: wire.ReasonFailed, Signal: "SIGKILL"})
	b.cancel(b.one(run(command("canceled"))), false)
	lost := given("lost", run(command("lost")))
	b.ack(lost)
	b.do(lost, func(tx *Tx, ref wire.JobRef, _ string) error {
		return tx.Lost(ref, "its runner did not come back", b.now)
	})
	told := given("lost, it failed", run(command("lost, it failed")))
	b.ack(told)
	update(t, b.Store, func(tx *Tx) error { return tx.PutSetting(OwnerSetting("r1"), "of r1 before") })
	b.do(told, func(tx *Tx, ref wire.JobRef, r string) error {
		return tx.Lost(ref, "its runner was forgotten", b.now)
	})
	b.do(told, func(tx *Tx, ref wire.JobRef, r string) error {
		n, err := tx.AppendLate(ref, r, "of r1 before", []wire.Data{{Bytes: []byte(oldOutput), Stream: wire.Stdout, Time: b.now}})
		if err != nil {
			return err
		}
		return tx.FinishLate(ref, r, "of r1 before", wire.Result{State: wire.Failed, Reason: wire.ReasonFailed, ExitCode: new(4), LogBytes: n, FinishedAt: b.now}, b.now)
	})
	b.one(run(command("expired"), forRunner("nobody"), expiresIn(time.Second)))
	b.now = b.now.Add(time.Minute)
	update(t, b.Store, func(tx *Tx) error { _, err := tx.Expire(b.now); return err })
	first := ended("again", run(singleton("nightly")), good)
	if _, err := b.trySubmit(run(command("again"), singleton("nightly"), idempotent("key-2"))); err != nil {
		t.Fatal(err)
	}
	b.cancel(b.jobsOf("again", wire.Queued)[0], false)
	update(t, b.Store, func(tx *Tx) error { _, err := tx.Retry(first, b.now); return err })
	b.cancel(b.jobsOf("again", wire.Queued)[0], false)

	running := given("running", run(command("running"), priority(3)))
	b.ack(running)
	b.do(running, func(tx *Tx, ref wire.JobRef, r string) error {
		_, err := tx.AppendLog(ref, r, []wire.Data{{Bytes: []byte(oldOutput[:9]), Stream: wire.Stdout, Time: b.now}})
		return err
	})
	deploying := given("deploying", operation(wire.OpDeploy, "web", command("deploying")))
	b.ack(deploying)
	given("assigned", run(command("assigned")))
	b.one(operation(wire.OpDeploy, "web", command("deploys next")))
	b.one(run(command("waits for job"), dependsOn(running)))
	update(t, b.Store, func(tx *Tx) error {
		_, err := tx.SubmitBy(oldUser, []wire.JobSpec{run(command("ready"), forRunner("r1"), priority(-1))}, b.now)
		return err
	})
	b.one(run(command("ready labels"), forLabels(map[string]string{"zone": "eu", "arch": "arm64"}), expiresIn(100*365*24*time.Hour)))

	key, retired := token.KeyFromSeed(oldSeed, b.now), token.KeyFromSeed(bytes.Repeat([]byte{7}, 32), b.now.Add(-time.Hour))
	retired.Retired, retired.Until = b.now, b.now.Add(time.Hour)
	update(t, b.Store, func(tx *Tx) error {
		for _, k := range []token.Key{key, retired} {
			if err := tx.PutTokenKey(k); err != nil {
				return err
			}
		}
		if err := tx.PutBlobChunk("u1", 0, []byte(oldBlob)); err != nil {
			return err
		}
		if err := tx.SealBlob("u1", "sha256:ab", int64(len(oldBlob)), b.now); err != nil {
			return err
		}
		for i, text := range []string{"of an upload ", "that is not over"} {
			if err := tx.PutBlobChunk("u2", int64(i*len("of an upload ")), []byte(text)); err != nil {
				return err
			}
		}
		return tx.PutSetting("server_id", oldID)
	})
	b.putOldServer()
	b.putOldUsers()
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
}

// putOldRunners writes a runner of each state.
func (b *bench) putOldRunners() {
	b.t.Helper()
	update(b.t, b.Store, func(tx *Tx) error {
		for i, state := range []wire.RunnerState{wire.Adopted, wire.Pending, wire.Rejected, wire.Preadopted} {
			r := RunnerRecord{Key: []byte{byte(i), 0, 255}, PeerGroup: "192.0.2.1", RejectedSerial: int64(i), Grant: "token",
				Runner: wire.Runner{ID: fmt.Sprint("r", i+1), State: state, Kind: wire.KindRemote, Labels: map[string]string{"os": "it's"},
					FirstSeen: b.now, LastSeen: b.now, Fingerprint: "F", Hostname: "h.example", OS: "linux", Arch: "arm64",
					Offered: map[string]string{"os": "linux"}, Version: "1.2.3", Isolation: "cgroup", Problem: wire.NoToken, Detail: "it's none",
					Concurrency: 4, Draining: i == 0, TokenSource: "file", TokenIssued: b.now, TokenExpiry: b.now.Add(time.Hour), Peer: "192.0.2.1"}}
			if i == 3 {
				r.Key = nil
			}
			if err := tx.PutRunner(r); err != nil {
				return err
			}
		}
		return nil
	})
}

// putOldServer writes that there was one of several servers, which kept what is under way.
func (b *bench) putOldServer() {
	b.t.Helper()
	update(b.t, b.Store, func(tx *Tx) error {
		for _, q := range []struct {
			text string
			args []any
		}{
			{insertServer, []any{oldServer, "h.example", micro(b.now), time.Second.Microseconds()}},
			{upsertSession, []any{"r1", oldServer, `{"id":"r1"}`}},
			{claim, []any{"another", "r1", oldServer}},
			{`UPDATE jobs SET keeper = $1 WHERE state IN ('assigned', 'running')`, []any{oldServer}},
		} {
			if _, err := tx.exec(q.text, q.args...); err != nil {
				return err
			}
		}
		return nil
	})
}

// putOldUsers writes users, their tokens, what they have sent and what was done.
func (b *bench) putOldUsers() {
	b.t.Helper()
	update(b.t, b.Store, func(tx *Tx) error {
		for _, u := range []UserRecord{
			{Name: oldUser, Role: wire.Operator, UID: -1, Limits: wire.Limits{Projects: []string{"shop", "it's"}, Workspaces: []string{"default"}},
				CreatedAt: b.now, CreatedBy: "uid 0"},
			{Name: "gone", Role: wire.Admin, UID: 1000, Since: 9, CreatedAt: b.now, DeletedAt: b.now.Add(time.Minute)},
		} {
			if err := tx.PutUser(u); err != nil {
				return err
			}
		}
		serial, err := tx.NextSerial(b.now)
		if err != nil {
			return err
		}
		for i, kind := range []wire.TokenKind{wire.UserToken, wire.InviteToken} {
			if err := tx.AddUserToken(UserTokenRecord{Serial: serial + int64(i), Kind: kind, User: wire.UserKey(oldUser), CreatedAt: b.now, CreatedBy: "uid 0", Expiry: b.now.Add(100 * 365 * 24 * time.Hour)}); err != nil {
				return err
			}
		}
		if err := tx.UseUserToken(serial, b.now); err != nil {
			return err
		}
		if err := tx.RevokeUserToken(serial+1, "uid 0", b.now); err != nil {
			return err
		}
		if err := tx.Prove(wire.UserKey(oldUser), "sha256:ab"); err != nil {
			return err
		}
		for _, e := range []wire.AuditEntry{
			{At: b.now, ActorKind: wire.ActorUser, Actor: oldUser, By: fmt.Sprint("token ", serial), Role: wire.Operator, Peer: "192.0.2.1",
				Method: wire.MethodJobSubmit, Object: "one two", Outcome: wire.AuditDone, Detail: map[string]string{"project": "it's"}},
			{At: b.now, LastAt: b.now.Add(time.Minute), Count: 7, ActorKind: wire.ActorAnonymous, Peer: "192.0.2.2",
				Method: "login", Outcome: string(wire.Denied), Reason: "no token; it's said"},
		} {
			if _, err := tx.Audit(e); err != nil {
				return err
			}
		}
		return nil
	})
}

func (b *bench) jobsOf(command string, state wire.State) []string {
	b.t.Helper()
	jobs, err := b.Jobs(b.t.Context(), wire.JobFilter{State: state})
	if err != nil {
		b.t.Fatal(err)
	}
	var ids []string
	for _, j := range jobs {
		if j := b.job(j.ID); j.Command[0] == command {
			ids = append(ids, j.ID)
		}
	}
	return ids
}

// hasOldLate wants the late result that there was, and gives the one that was still to come.
func (b *bench) hasOldLate(ids map[string]string) {
	b.t.Helper()
	if l := b.job(ids["lost, it failed"]).LateResult; l == nil || l.State != wire.Failed || l.ExitCode == nil || *l.ExitCode != 4 || l.LogBytes != int64(len(oldOutput)) {
		b.t.Errorf("the late result is %+v", l)
	}
	b.do(ids["lost"], func(tx *Tx, ref wire.JobRef, r string) error {
		n, err := tx.AppendLate(ref, r, "F", []wire.Data{{Bytes: []byte(oldOutput), Stream: wire.Stdout, Time: b.now}})
		if err != nil {
			return err
		}
		return tx.FinishLate(ref, r, "F", wire.Result{State: wire.Success, LogBytes: n, FinishedAt: b.now}, b.now)
	})
	if l := b.job(ids["lost"]).LateResult; l == nil || l.State != wire.Success {
		b.t.Errorf("the late result has become %+v", l)
	}
}

// hasOldServer wants the server that there was, if the schema had servers, and takes
// over what it kept, or what nobody did.
func (b *bench) hasOldServer(there bool) {
	b.t.Helper()
	list, err := b.Servers(b.t.Context())
	if err != nil || there != (len(list) == 1) {
		b.t.Fatalf("%+v, %v", list, err)
	}
	missed := map[string]int64{}
	if there {
		keepers, err := b.Keepers(b.t.Context())
		if err != nil || !slices.Equal(keepers, []string{oldServer}) {
			b.t.Errorf("keepers are %v, %v", keepers, err)
		}
		if s, err := b.Session(b.t.Context(), "r1"); err != nil || s.Server != oldServer || s.Claim != "another" || s.View != `{"id":"r1"}` {
			b.t.Errorf("%+v, %v", s, err)
		}
		missed[oldServer] = list[0].Beats
	}
	update(b.t, b.Store, func(tx *Tx) error {
		taken, removed, err := tx.TakeFrom(missed)
		if len(taken) != 3 || len(removed) != len(missed) {
			b.t.Errorf("taken over is %+v of %+v", taken, removed)
		}
		return err
	})
	if keepers, err := b.Keepers(b.t.Context()); err != nil || !slices.Equal(keepers, []string{b.Instance()}) {
		b.t.Errorf("keepers have become %v, %v", keepers, err)
	}
}

// hasOldUsers wants the users that there were, their tokens and what they queued.
func (b *bench) hasOldUsers(ids map[string]string) {
	b.t.Helper()
	users, err := b.Users(b.t.Context())
	if err != nil || len(users) != 1 || users[0].Name != oldUser || users[0].Role != wire.Operator || users[0].UID != -1 ||
		!slices.Equal(users[0].Limits.Projects, []string{"shop", "it's"}) || !slices.Equal(users[0].Limits.Workspaces, []string{"default"}) {
		b.t.Errorf("%+v, %v", users, err)
	}
	tokens, err := b.UserTokens(b.t.Context(), oldUser)
	if err != nil || len(tokens) != 2 || tokens[0].UsedAt.IsZero() || !tokens[0].RevokedAt.IsZero() || tokens[1].RevokedBy != "uid 0" {
		b.t.Fatalf("%+v, %v", tokens, err)
	}
	if _, u, err := b.Bearer(b.t.Context(), tokens[0].Serial, oldUser); err != nil || u.Name != oldUser {
		b.t.Errorf("%+v, %v", u, err)
	}
	if by := b.job(ids["ready"]).QueuedBy; by != oldUser {
		b.t.Errorf("a job of %q", by)
	}
}
