package daemon_test

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/waypointd/waypoint/daemon"
	"github.com/waypointd/waypoint/daemon/daemontest"
	"github.com/waypointd/waypoint/daemon/store"
	"github.com/waypointd/waypoint/daemon/token"
	"github.com/waypointd/waypoint/mux/wire"
)

// A token that expires during the session: no further job from then on, the
// runner is told, the job that runs ends and is reported, and a new token heals.
func TestExpiryDuringTheSession(t *testing.T) {
	t.Parallel()
	s := daemontest.Start(t, slowly)
	c := s.Client(t)
	brief := s.Token(t, wire.RunnerTokenRequest{ExpiresIn: wire.Duration(time.Second)})
	r := s.Runner(t, "r1", nil)
	r.Hello.Concurrency = 2
	r.Show(brief)
	r.MustConnect()
	r.MustBegin()
	job := submit(t, c, run())[0]
	a := r.MustStart()
	st := r.AwaitStanding(func(st wire.Standing) bool { return !st.Admitted })
	if st.State != wire.Preadopted || st.Problem != wire.TokenExpired || st.Detail == "" {
		t.Errorf("standing %+v", st)
	}
	if says, _ := wire.ReadToken(brief); time.Since(says.Expiry) > daemontest.Patience/4 || time.Now().Before(says.Expiry) {
		t.Errorf("told %s after its end", time.Since(says.Expiry))
	}
	getsNothing(t, c, r, "runners_token")
	for inspect(t, c, "r1").Problem != wire.TokenExpired {
	}
	r.MustFinish(a.JobRef, "", daemontest.Succeeded())
	if j := s.AwaitJob(t, job.ID, ended); j.State != wire.Success {
		t.Errorf("job ended as %+v", j)
	}
	waiting := submit(t, c, run())[0]
	r.Show(s.Token(t, wire.RunnerTokenRequest{}))
	if st := r.MustAuthenticate(false); !st.Admitted {
		t.Errorf("standing %+v", st)
	}
	if b := r.AwaitOrder(func(o wire.WorkOrder) bool { return o.Assign != nil }); b.Assign.Job != waiting.ID {
		t.Errorf("given %+v", b.Assign.JobRef)
	}
}

// Where another of the tokens that were shown is still good, it is the one in
// use from then on.
func TestExpiryLeavesTheNextToken(t *testing.T) {
	t.Parallel()
	s := daemontest.Start(t, slowly)
	c := s.Client(t)
	r := connected(t, s, "r1", nil, s.Token(t, wire.RunnerTokenRequest{ExpiresIn: wire.Duration(time.Second)}), s.Token(t, wire.RunnerTokenRequest{}))
	st := r.AwaitStanding(func(wire.Standing) bool { return true })
	if !st.Admitted || len(st.Refused) != 1 || st.Refused[0].Problem != wire.TokenExpired {
		t.Errorf("standing %+v", st)
	}
	gets(t, c, r)
}

// An adopted runner's token is renewed over its session when a third of its
// life is left, and handed out until it is stored; one that an operator made is not.
func TestRenewal(t *testing.T) {
	t.Parallel()
	const life = 3 * time.Second
	s := daemontest.Start(t, daemon.Config{GrantLife: life, Lease: time.Hour})
	r := s.Adopted(t, "r1", zone)
	first, _ := wire.ReadToken(r.Offers[0].Token)
	operators := connected(t, s, "r2", nil, s.Token(t, wire.RunnerTokenRequest{ExpiresIn: wire.Duration(life)}))
	token := r.AwaitGrant()
	if left := time.Until(first.Expiry); left > life/3 {
		t.Errorf("renewed when %s are left", left)
	}
	second, err := wire.ReadToken(token)
	if err != nil || second.Serial <= first.Serial || second.Key != first.Key || second.Labels["zone"] != "east" || !second.Expiry.After(first.Expiry) {
		t.Errorf("renewed as %+v, %v", second, err)
	}
	back(t, r) // it died before it had stored it
	if again := r.AwaitGrant(); again != token {
		t.Error("another token is granted")
	}
	r.Show(token)
	if st := r.MustAuthenticate(true); !st.Admitted || st.State != wire.Adopted || !st.Expiry.Equal(second.Expiry) {
		t.Errorf("standing %+v", st)
	}
	if third := r.AwaitGrant(); third == token {
		t.Error("the renewed token is not renewed")
	}
	for {
		o, ok := operators.Order(time.Millisecond)
		if !ok {
			break
		}
		if o.Grant != nil {
			t.Error("an operator's token is renewed")
		}
	}
}

// A grant of a clock that was ahead, and has been set right since, is good for the
// runner that it was granted to, and is renewed at once. A token that an
// operator made then is not good yet.
func TestGrantAheadOfTheClock(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := daemontest.Start(t, daemon.Config{StateDir: dir, Lease: time.Hour})
	adopted := s.Adopted(t, "r1", zone)
	open := s.Token(t, wire.RunnerTokenRequest{})
	s.Stop()
	db, err := store.Open(t.Context(), filepath.Join(dir, "waypoint.db"), store.Config{})
	if err != nil {
		t.Fatal(err)
	}
	keys, err := db.TokenKeys(t.Context())
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	ahead := func(text string) string {
		c, err := wire.ReadToken(text)
		if err != nil {
			t.Fatal(err)
		}
		c.Issued, c.Expiry = c.Issued.Add(24*time.Hour), c.Expiry.Add(24*time.Hour)
		if text, err = token.Mint(keys[len(keys)-1], c); err != nil {
			t.Fatal(err)
		}
		return text
	}
	early := ahead(adopted.Offers[0].Token)
	s.Restart()

	adopted.Show(early)
	adopted.MustConnect()
	adopted.MustBegin()
	right, err := wire.ReadToken(adopted.AwaitGrant())
	if err != nil || right.Issued.After(time.Now()) || right.Key == "" {
		t.Errorf("renewed as %+v, %v", right, err)
	}
	c := s.Client(t)
	gets(t, c, adopted)

	other := s.Runner(t, "r2", nil)
	other.Show(ahead(open))
	other.MustConnect()
	other.MustBegin()
	if is := inspect(t, c, "r2"); is.State != wire.Pending || is.Problem != wire.TokenInvalid || !strings.Contains(is.Detail, "ahead of this server's clock") {
		t.Errorf("one with an operator's token %+v", is)
	}
	// Another runner's grant stays another's.
	thief := s.Runner(t, "r3", zone)
	thief.Show(early)
	thief.MustConnect()
	thief.MustBegin()
	if is := inspect(t, c, "r3"); is.State != wire.Pending || is.Problem == "" {
		t.Errorf("one with another's grant %+v", is)
	}
}

// Renewal can be turned off.
func TestNoRenewal(t *testing.T) {
	t.Parallel()
	s := daemontest.Start(t, daemon.Config{GrantLife: time.Second, NoTokenRenew: true, Lease: time.Hour})
	r := s.Adopted(t, "r1", nil)
	for {
		o := r.MustOrder()
		if o.Grant != nil {
			t.Fatal("renewed")
		}
		if o.Standing != nil && o.Standing.Problem == wire.TokenExpired {
			break
		}
	}
}
