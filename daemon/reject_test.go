package daemon_test

import (
	"testing"

	"github.com/waypointd/waypoint/daemon/daemontest"
	"github.com/waypointd/waypoint/mux/client"
	"github.com/waypointd/waypoint/mux/wire"
)

func reject(t *testing.T, c *client.Client, id string) {
	t.Helper()
	if got, err := c.Reject(t.Context(), id); err != nil || got.State != wire.Rejected {
		t.Fatalf("reject %s: %+v, %v", id, got, err)
	}
}

// refused reports that a runner may not connect.
func refused(t *testing.T, r *daemontest.Runner) {
	t.Helper()
	wantKind(t, r.Connect(), wire.Denied)
}

// Row: reject, from any state, of one that has nothing to do: it is told, its
// work stream ends, and it comes in no more, over restarts.
func TestReject(t *testing.T) {
	s := daemontest.Start(t, slowly)
	c := s.Client(t)
	pre := s.Token(t, wire.RunnerTokenRequest{ID: "preadopted"})
	for _, make := range []func() *daemontest.Runner{
		func() *daemontest.Runner { return connected(t, s, "pending", nil) },
		func() *daemontest.Runner { return connected(t, s, "preadopted", nil, pre) },
		func() *daemontest.Runner { return s.Adopted(t, "adopted", nil) },
	} {
		r := make()
		reject(t, c, r.Hello.ID)
		r.AwaitStanding(func(st wire.Standing) bool { return st.State == wire.Rejected && !st.Admitted })
		wantKind(t, r.AwaitEnd(), wire.Denied)
		refused(t, r)
		s.Restart()
		c = s.Client(t)
		refused(t, r)
		if got := inspect(t, c, r.Hello.ID); got.State != wire.Rejected {
			t.Errorf("record %+v", got)
		}
		job := submit(t, c, run(func(j *wire.JobSpec) { j.Target = wire.Target{ID: r.Hello.ID} }))[0]
		if why, err := c.Why(t.Context(), job.ID); err != nil || why.Code != "runners_rejected" {
			t.Errorf("why: %+v, %v", why, err)
		}
	}
	_, err := c.Reject(t.Context(), "nobody")
	wantKind(t, err, wire.NotFound)
	st, err := c.ServerStatus(t.Context())
	if err != nil || st.Runners["rejected"] != 3 {
		t.Errorf("status %+v, %v", st, err)
	}
}

// Row: reject while a job runs: it ends normally and is reported, over sessions
// and restarts of the server; nothing more comes.
func TestRejectWhileAJobRuns(t *testing.T) {
	s := daemontest.Start(t, slowly)
	c := s.Client(t)
	r := s.Adopted(t, "r1", nil)
	r.Hello.Concurrency = 2
	back(t, r)
	job := submit(t, c, run())[0]
	a := r.MustStart()
	s.AwaitJob(t, job.ID, running)
	reject(t, c, "r1")
	r.AwaitStanding(func(st wire.Standing) bool { return st.State == wire.Rejected })
	getsNothing(t, c, r, "runners_rejected")
	held := wire.Held{JobRef: a.JobRef, Started: true}
	back(t, r, held)
	s.Restart()
	r.MustConnect()
	if b := r.MustBegin(held); len(b.Keep) != 1 {
		t.Fatalf("begun %+v", b)
	}
	if r.Standing.State != wire.Rejected {
		t.Errorf("standing %+v", r.Standing)
	}
	// What the end of a job may need, it may still have.
	if err := r.Session.Call(t.Context(), wire.MethodBlobMissing, wire.BlobDigests{}, nil); err != nil {
		t.Errorf("blobs for the job that it still has: %v", err)
	}
	r.MustFinish(a.JobRef, "done\n", daemontest.Succeeded())
	if j := s.AwaitJob(t, job.ID, ended); j.State != wire.Success {
		t.Errorf("job ended as %+v", j)
	}
	wantKind(t, r.AwaitEnd(), wire.Denied)
	refused(t, r)
}

// What was given to it and not started goes back.
func TestRejectBeforeTheStart(t *testing.T) {
	s := daemontest.Start(t, slowly)
	c := s.Client(t)
	r := s.Adopted(t, "r1", nil)
	job := submit(t, c, run())[0]
	a := r.MustAssign()
	reject(t, c, "r1")
	s.AwaitJob(t, job.ID, func(j wire.Job) bool { return j.State == wire.Queued })
	r.AwaitOrder(func(o wire.WorkOrder) bool { return o.Drop != nil && *o.Drop == a.JobRef })
	wantKind(t, r.AwaitEnd(), wire.Denied)
	other := s.Adopted(t, "r2", nil)
	if b := other.MustStart(); b.Job != job.ID || b.Attempt != 2 {
		t.Errorf("started %+v", b.JobRef)
	}
}

// Rows: tokens made before the rejection never lift it, nor do those for any
// id; one made for this very id after it does.
func TestTokensAndRejection(t *testing.T) {
	s := daemontest.Start(t, slowly)
	c := s.Client(t)
	before := s.Token(t, wire.RunnerTokenRequest{ID: "r1"})
	r := s.Adopted(t, "r1", nil)
	granted := r.Offers[0].Token
	reject(t, c, "r1")
	r.AwaitEnd()
	anybodys := s.Token(t, wire.RunnerTokenRequest{})
	r.Show(before, granted, anybodys)
	refused(t, r)
	after := s.Token(t, wire.RunnerTokenRequest{ID: "r1"})
	reject(t, c, "r1") // once more: what was made until now is from before
	r.Show(after)
	refused(t, r)
	s.Restart()
	c = s.Client(t)
	r.Show(anybodys, s.Token(t, wire.RunnerTokenRequest{ID: "r1"}))
	r.MustConnect()
	r.MustBegin()
	if r.Standing.State != wire.Preadopted || !r.Standing.Admitted {
		t.Errorf("standing %+v", r.Standing)
	}
	gets(t, c, r)
	// The rejection is over: any usable token is one again.
	r.Show(before)
	back(t, r)
	gets(t, c, r)
}

// A session that is still there when it is rejected is let in again by a token
// that lifts it.
func TestRejectionIsLiftedOverTheSession(t *testing.T) {
	s := daemontest.Start(t, slowly)
	c := s.Client(t)
	r := s.Adopted(t, "r1", nil)
	reject(t, c, "r1")
	wantKind(t, r.AwaitEnd(), wire.Denied)
	r.Show(s.Token(t, wire.RunnerTokenRequest{ID: "r1"}))
	if st := r.MustAuthenticate(false); st.State != wire.Preadopted || !st.Admitted {
		t.Fatalf("standing %+v", st)
	}
	r.MustBegin()
	gets(t, c, r)
}

// Row: adopt after reject, with the labels that it offered last.
func TestAdoptAfterReject(t *testing.T) {
	s := daemontest.Start(t, slowly)
	c := s.Client(t)
	r := s.Adopted(t, "r1", zone)
	reject(t, c, "r1")
	r.AwaitEnd()
	r.Hello.Labels = map[string]string{"zone": "west"}
	refused(t, r)
	if got, err := c.Adopt(t.Context(), "r1", ""); err != nil || got.State != wire.Adopted || got.Labels["zone"] != "west" {
		t.Fatalf("%+v, %v", got, err)
	}
	r.MustConnect()
	r.MustBegin()
	r.TakeGrant()
	gets(t, c, r)
}

// What was granted and not stored goes with the rejection.
func TestRejectTakesTheGrantBack(t *testing.T) {
	s := daemontest.Start(t, slowly)
	c := s.Client(t)
	r := connected(t, s, "r1", nil)
	if _, err := c.Adopt(t.Context(), "r1", ""); err != nil {
		t.Fatal(err)
	}
	first := r.AwaitGrant()
	reject(t, c, "r1")
	r.AwaitEnd()
	r.Show(first)
	refused(t, r)
	if _, err := c.Adopt(t.Context(), "r1", ""); err != nil {
		t.Fatal(err)
	}
	r.MustConnect()
	r.MustBegin()
	if r.TakeGrant() == first {
		t.Error("the token from before the rejection is granted again")
	}
}
