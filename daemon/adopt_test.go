package daemon_test

import (
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/waypointd/waypoint/daemon"
	"github.com/waypointd/waypoint/daemon/daemontest"
	"github.com/waypointd/waypoint/mux/client"
	"github.com/waypointd/waypoint/mux/wire"
)

// connected is a runner that has connected, shown these tokens and begun to work.
func connected(t *testing.T, s *daemontest.Server, id string, labels map[string]string, tokens ...string) *daemontest.Runner {
	t.Helper()
	r := s.Runner(t, id, labels)
	r.Show(tokens...)
	r.MustConnect()
	r.MustBegin()
	return r
}

// inspect is a runner as operators see it.
func inspect(t *testing.T, c *client.Client, id string) wire.Runner {
	t.Helper()
	r, err := c.Runner(t.Context(), id)
	if err != nil {
		t.Fatalf("inspect %s: %v", id, err)
	}
	return r
}

// back has a runner come back after its session was cut.
func back(t *testing.T, r *daemontest.Runner, held ...wire.Held) {
	t.Helper()
	r.Disconnect()
	r.MustConnect()
	r.MustBegin(held...)
}

// gets has a job queued for the runner and run by it.
func gets(t *testing.T, c *client.Client, r *daemontest.Runner) {
	t.Helper()
	job := submit(t, c, run(func(j *wire.JobSpec) { j.Target = wire.Target{ID: r.Hello.ID} }))[0]
	a := *r.AwaitOrder(func(o wire.WorkOrder) bool { return o.Assign != nil }).Assign
	if a.Job != job.ID {
		t.Fatalf("runner %s was given job %s, want %s", r.Hello.ID, a.Job, job.ID)
	}
	r.Say(wire.WorkEvent{Ack: &a.JobRef})
	r.AwaitOrder(func(o wire.WorkOrder) bool { return o.Start != nil })
	r.MustFinish(a.JobRef, "", daemontest.Succeeded())
}

// getsNothing has a job queued that only this runner could take.
func getsNothing(t *testing.T, c *client.Client, r *daemontest.Runner, code string) {
	t.Helper()
	job := submit(t, c, run(func(j *wire.JobSpec) { j.Target = wire.Target{ID: r.Hello.ID} }))[0]
	for {
		o, ok := r.Order(20 * time.Millisecond)
		if !ok {
			break
		}
		if o.Assign != nil {
			t.Errorf("runner %s is given %s", r.Hello.ID, o.Assign.Job)
		}
	}
	if why, err := c.Why(t.Context(), job.ID); err != nil || why.Code != code {
		t.Errorf("why: %+v, %v; want %s", why, err, code)
	}
	if ok, err := c.Match(t.Context(), wire.Target{ID: r.Hello.ID}); err != nil || ok {
		t.Errorf("runner %s matches: %v, %v", r.Hello.ID, ok, err)
	}
	if _, err := c.Cancel(t.Context(), job.ID, true); err != nil {
		t.Fatal(err)
	}
}

var zone = map[string]string{"zone": "east"}

// Row: connects, no usable token, from none or pending.
func TestConnectsWithoutAUsableToken(t *testing.T) {
	s := daemontest.Start(t, slowly)
	c := s.Client(t)
	spent := s.Token(t, wire.RunnerTokenRequest{ExpiresIn: wire.Duration(time.Second)})
	tokens := map[wire.Problem][]string{
		wire.NoToken:      nil,
		wire.TokenInvalid: {"wprun_nonsense"},
		wire.OtherID:      {s.Token(t, wire.RunnerTokenRequest{ID: "somebody"})},
		wire.OtherLabels:  {s.Token(t, wire.RunnerTokenRequest{Labels: map[string]string{"zone": "west"}})},
	}
	expires, err := wire.ReadToken(spent)
	if err != nil {
		t.Fatal(err)
	}
	<-time.After(time.Until(expires.Expiry))
	tokens[wire.TokenExpired] = []string{spent}
	for problem, shown := range tokens {
		id := strings.ReplaceAll(string(problem), "_", "-")
		r := connected(t, s, id, zone, shown...)
		for _, when := range []string{"none", "pending"} {
			st := r.Standing
			if st.State != wire.Pending || st.Admitted || st.Problem != problem || st.Detail == "" {
				t.Errorf("from %s: standing %+v", when, st)
			}
			if len(shown) == 1 && (len(st.Refused) != 1 || st.Refused[0].Problem != problem || st.Refused[0].Source != wire.SourceFile) {
				t.Errorf("from %s: refused %+v", when, st.Refused)
			}
			if got := inspect(t, c, id); got.State != wire.Pending || got.Problem != problem || got.Detail != st.Detail || got.TokenSource != "" {
				t.Errorf("from %s: record %+v", when, got)
			}
			getsNothing(t, c, r, "runners_pending")
			back(t, r)
		}
		r.MustAdopt()
		gets(t, c, r)
		if got := inspect(t, c, id); got.State != wire.Adopted || got.Problem != "" || got.TokenSource != wire.SourceFile || !got.TokenExpiry.After(time.Now().Add(29*24*time.Hour)) {
			t.Errorf("adopted: %+v", got)
		}
	}
	page, err := c.Runners(t.Context(), wire.RunnerFilter{State: wire.Adopted})
	if err != nil || len(page) != len(tokens) {
		t.Errorf("%d adopted runners, %v", len(page), err)
	}
}

// Row: connects, usable token, from none, pending, preadopted; a token that
// binds no labels is good for any.
func TestConnectsWithAUsableToken(t *testing.T) {
	s := daemontest.Start(t, slowly)
	c := s.Client(t)
	for name, req := range map[string]wire.RunnerTokenRequest{
		"any": {}, "id": {ID: "id"}, "labels": {Labels: zone}, "both": {ID: "both", Labels: zone},
	} {
		r := connected(t, s, name, map[string]string{"zone": "east", "os": "linux", "arch": "arm64", "hostname": "h"}, s.Token(t, req))
		for range 2 {
			if st := r.Standing; st.State != wire.Preadopted || !st.Admitted || st.Problem != "" || st.Source != wire.SourceFile || st.Expiry.IsZero() || st.Issued.IsZero() {
				t.Errorf("%s: standing %+v", name, st)
			}
			if got := inspect(t, c, name); got.State != wire.Preadopted || got.Problem != "" || got.TokenSource != wire.SourceFile || got.TokenExpiry != r.Standing.Expiry {
				t.Errorf("%s: record %+v", name, got)
			}
			gets(t, c, r)
			back(t, r)
		}
	}
	pending := connected(t, s, "late", nil)
	pending.Show(s.Token(t, wire.RunnerTokenRequest{}))
	if st := pending.MustAuthenticate(false); st.State != wire.Preadopted || !st.Admitted {
		t.Errorf("pending, shows a token over its session: %+v", st)
	}
	pending.AwaitStanding(func(st wire.Standing) bool { return st.Admitted })
	gets(t, c, pending)
}

// Row: connects, usable token, adopted. An operator's token does not take the
// adoption away.
func TestAdoptedStaysAdopted(t *testing.T) {
	s := daemontest.Start(t, slowly)
	c := s.Client(t)
	r := s.Adopted(t, "r1", nil)
	r.Show(s.Token(t, wire.RunnerTokenRequest{}))
	back(t, r)
	if r.Standing.State != wire.Adopted || !r.Standing.Admitted {
		t.Errorf("standing %+v", r.Standing)
	}
	gets(t, c, r)
}

// Row: connects, no usable token, its own key, preadopted or adopted: nothing of
// the record changes but its problem, and a usable token heals it.
func TestAdmittedWithoutAUsableToken(t *testing.T) {
	s := daemontest.Start(t, slowly)
	c := s.Client(t)
	operators := s.Token(t, wire.RunnerTokenRequest{Labels: zone})
	runners := map[wire.RunnerState]*daemontest.Runner{
		wire.Preadopted: connected(t, s, "preadopted", zone, operators), wire.Adopted: s.Adopted(t, "adopted", zone),
	}
	for state, r := range runners {
		good := r.Offers[0].Token
		before := inspect(t, c, r.Hello.ID)
		other := map[string]string{"zone": "west", "disk": "ssd"}
		for _, tt := range []struct {
			labels map[string]string
			tokens []string
			want   wire.Problem
		}{
			{zone, nil, wire.NoToken},
			{other, []string{good}, wire.OtherLabels},
			{nil, []string{good}, wire.OtherLabels},
			{zone, []string{s.Token(t, wire.RunnerTokenRequest{ID: "somebody"})}, wire.OtherID},
		} {
			r.Hello.Labels = tt.labels
			r.Show(tt.tokens...)
			back(t, r)
			if st := r.Standing; st.State != state || st.Admitted || st.Problem != tt.want {
				t.Errorf("%s, %s: standing %+v", state, tt.want, st)
			}
			got := inspect(t, c, r.Hello.ID)
			if got.State != state || got.Problem != tt.want || !maps.Equal(got.Labels, zone) || got.TokenExpiry != before.TokenExpiry {
				t.Errorf("%s, %s: record %+v", state, tt.want, got)
			}
			offers := tt.labels
			if maps.Equal(offers, zone) {
				offers = nil // as on record
			}
			if !maps.Equal(got.Offered, offers) {
				t.Errorf("%s, %s: offers %v", state, tt.want, got.Offered)
			}
			getsNothing(t, c, r, "runners_token")
		}
		s.Restart()
		c = s.Client(t)
		if got := inspect(t, c, r.Hello.ID); got.State != state || got.Problem != wire.OtherID || got.Online {
			t.Errorf("%s, after a restart: %+v", state, got)
		}
		r.Show(good)
		r.MustConnect()
		r.MustBegin()
		gets(t, c, r)
		if got := inspect(t, c, r.Hello.ID); got.Problem != "" || got.Detail != "" || got.Offered != nil {
			t.Errorf("%s, healed: %+v", state, got)
		}
	}
}

// A token for any labels admits changed ones: jobs are matched with them.
func TestUsableTokenAdmitsNewLabels(t *testing.T) {
	s := daemontest.Start(t, slowly)
	c := s.Client(t)
	r := connected(t, s, "r1", zone, s.Token(t, wire.RunnerTokenRequest{}))
	r.Hello.Labels = map[string]string{"zone": "west"}
	back(t, r)
	if got := inspect(t, c, "r1"); got.Labels["zone"] != "west" || got.Offered != nil {
		t.Errorf("record %+v", got)
	}
	submit(t, c, run(func(j *wire.JobSpec) { j.Target = wire.Target{Labels: map[string]string{"zone": "west"}} }))
	r.MustStart()
}

// A pending record takes the labels that are offered now.
func TestPendingTakesTheLabelsOfNow(t *testing.T) {
	s := daemontest.Start(t, slowly)
	c := s.Client(t)
	r := connected(t, s, "r1", zone)
	r.Hello.Labels = map[string]string{"zone": "west"}
	back(t, r)
	if got := inspect(t, c, "r1"); got.Labels["zone"] != "west" || got.Offered != nil {
		t.Errorf("record %+v", got)
	}
}

// Row: adopt, from any state, with the labels that the runner offers now.
func TestAdopt(t *testing.T) {
	s := daemontest.Start(t, slowly)
	c := s.Client(t)
	pending := connected(t, s, "pending", zone)
	preadopted := connected(t, s, "preadopted", zone, s.Token(t, wire.RunnerTokenRequest{Labels: zone}))
	adopted := s.Adopted(t, "adopted", zone)
	west := map[string]string{"zone": "west"}
	for _, r := range []*daemontest.Runner{pending, preadopted, adopted} {
		r.Hello.Labels = west
		back(t, r)
		got, err := c.Adopt(t.Context(), r.Hello.ID, inspect(t, c, r.Hello.ID).Fingerprint)
		if err != nil || got.State != wire.Adopted || got.Offered != nil || got.Labels["zone"] != "west" {
			t.Fatalf("%+v, %v", got, err)
		}
		if st := r.AwaitStanding(func(st wire.Standing) bool { return st.State == wire.Adopted }); !st.Granted || st.Admitted {
			t.Errorf("%s is told %+v before its token comes", r.Hello.ID, st)
		}
		token := r.TakeGrant()
		says, err := wire.ReadToken(token)
		if err != nil || says.ID != r.Hello.ID || says.Key != got.Fingerprint || !maps.Equal(says.Labels, west) || says.Expiry.Sub(says.Issued) != wire.DefaultTokenLife {
			t.Errorf("granted %+v, %v", says, err)
		}
		gets(t, c, r)
		back(t, r) // what was granted is good for later sessions
		gets(t, c, r)
	}
	// It is good for nobody else.
	other := connected(t, s, "other", west, adopted.Offers[0].Token)
	if other.Standing.Problem != wire.OtherID {
		t.Errorf("another id with a granted token: %+v", other.Standing)
	}
	_, err := c.Adopt(t.Context(), "nobody", "")
	wantKind(t, err, wire.NotFound)
}

// Adopted while it is away: the grant waits for it, over restarts.
func TestAdoptWhileOffline(t *testing.T) {
	s := daemontest.Start(t, slowly)
	r := connected(t, s, "r1", nil)
	r.Disconnect()
	if _, err := s.Client(t).Adopt(t.Context(), "r1", ""); err != nil {
		t.Fatal(err)
	}
	s.Restart()
	r.MustConnect()
	r.MustBegin()
	if r.Standing.State != wire.Adopted || r.Standing.Admitted {
		t.Errorf("standing %+v", r.Standing)
	}
	r.TakeGrant()
	gets(t, s.Client(t), r)
}

// Whoever dies, and when: the grant is handed out until it is stored, always the
// same, also when it is adopted again; and no more after that.
func TestGrantUntilStored(t *testing.T) {
	s := daemontest.Start(t, slowly)
	r := connected(t, s, "r1", zone)
	adopt := func() {
		t.Helper()
		if _, err := s.Client(t).Adopt(t.Context(), "r1", ""); err != nil {
			t.Fatal(err)
		}
	}
	adopt()
	token := r.AwaitGrant()
	again := func(when string) {
		t.Helper()
		if got := r.AwaitGrant(); got != token {
			t.Errorf("%s: another token is granted", when)
		}
	}
	adopt()
	again("adopted again")
	back(t, r)
	again("the runner died before it had stored it")
	s.Restart()
	r.MustConnect()
	r.MustBegin()
	again("the server died")
	adopt()
	again("adopted again after a restart")
	r.Show(token)
	back(t, r)
	if !r.Standing.Admitted {
		t.Errorf("standing with the granted token: %+v", r.Standing)
	}
	again("the runner died before it had said that it is stored")
	if st := r.MustAuthenticate(false); !st.Admitted {
		t.Errorf("used from memory: %+v", st)
	}
	back(t, r)
	again("it could not be stored")
	if st := r.MustAuthenticate(true); !st.Admitted {
		t.Errorf("stored: %+v", st)
	}
	s.Restart()
	r.MustConnect()
	r.MustBegin()
	gets(t, s.Client(t), r)
	adopt()
	if r.AwaitGrant() == token {
		t.Error("what has been stored is granted again")
	}
}

// Saying that something else is stored does not take the grant off the record,
// and labels that have changed since make another one.
func TestGrantOfOtherLabels(t *testing.T) {
	s := daemontest.Start(t, slowly)
	c := s.Client(t)
	r := connected(t, s, "r1", zone)
	if _, err := c.Adopt(t.Context(), "r1", ""); err != nil {
		t.Fatal(err)
	}
	first := r.AwaitGrant()
	r.Show(s.Token(t, wire.RunnerTokenRequest{}))
	r.MustAuthenticate(true)
	r.Hello.Labels = nil
	back(t, r)
	if r.AwaitGrant() != first {
		t.Error("what is handed out is not what was granted")
	}
	if _, err := c.Adopt(t.Context(), "r1", ""); err != nil {
		t.Fatal(err)
	}
	second := r.AwaitGrant()
	if says, err := wire.ReadToken(second); err != nil || says.Labels == nil || len(says.Labels) != 0 {
		t.Errorf("granted to a runner without labels: %+v, %v", says, err)
	}
}

// A grant that expired before it was stored is handed out no more; another
// decision heals.
func TestGrantExpires(t *testing.T) {
	t.Parallel()
	s := daemontest.Start(t, daemon.Config{GrantLife: time.Second, Lease: time.Hour})
	c := s.Client(t)
	r := connected(t, s, "r1", nil)
	if _, err := c.Adopt(t.Context(), "r1", ""); err != nil {
		t.Fatal(err)
	}
	token := r.AwaitGrant()
	says, _ := wire.ReadToken(token)
	<-time.After(time.Until(says.Expiry))
	back(t, r)
	for {
		o, ok := r.Order(20 * time.Millisecond)
		if !ok {
			break
		}
		if o.Grant != nil {
			t.Error("an expired token is granted")
		}
	}
	if got := inspect(t, c, "r1"); got.State != wire.Adopted || got.Problem != wire.NoToken {
		t.Errorf("record %+v", got)
	}
	if _, err := c.Adopt(t.Context(), "r1", ""); err != nil {
		t.Fatal(err)
	}
	if r.AwaitGrant() == token {
		t.Error("the expired token is granted again")
	}
}

// An identity that is not the id's learns that it is in use and nothing else,
// whatever it shows, and changes nothing.
func TestStranger(t *testing.T) {
	s := daemontest.Start(t, slowly)
	c := s.Client(t)
	runners := []*daemontest.Runner{connected(t, s, "pending", zone), s.Adopted(t, "adopted", zone),
		connected(t, s, "preadopted", zone, s.Token(t, wire.RunnerTokenRequest{ID: "preadopted"})), connected(t, s, "rejected", zone)}
	if _, err := c.Reject(t.Context(), "rejected"); err != nil {
		t.Fatal(err)
	}
	for _, r := range runners {
		before := inspect(t, c, r.Hello.ID)
		tokens := []string{s.Token(t, wire.RunnerTokenRequest{ID: r.Hello.ID})}
		if len(r.Offers) > 0 {
			tokens = append(tokens, r.Offers[0].Token) // copied
		}
		for _, token := range tokens {
			stranger := s.Runner(t, r.Hello.ID, map[string]string{"evil": "yes"})
			stranger.Show(token)
			err := stranger.Connect()
			wantKind(t, err, wire.Conflict)
			if want := `runner id "` + r.Hello.ID + `" is in use by another identity`; err.Error() != want {
				t.Errorf("a stranger is told %q", err)
			}
		}
		after := inspect(t, c, r.Hello.ID)
		before.LastSeen, after.LastSeen = time.Time{}, time.Time{}
		if !slices.Equal([]any{before.State, before.Fingerprint, before.Problem, before.Labels["zone"], before.Online}, []any{after.State, after.Fingerprint, after.Problem, after.Labels["zone"], after.Online}) {
			t.Errorf("%+v became %+v", before, after)
		}
	}
	gets(t, c, runners[1])
}

// The first of several tokens that is usable is used; the others are named.
func TestSeveralOffers(t *testing.T) {
	s := daemontest.Start(t, slowly)
	c := s.Client(t)
	good := s.Token(t, wire.RunnerTokenRequest{})
	r := connected(t, s, "r1", nil, "garbage", s.Token(t, wire.RunnerTokenRequest{ID: "r2"}), good)
	if st := r.Standing; !st.Admitted || len(st.Refused) != 2 || st.Refused[0].Problem != wire.TokenInvalid || st.Refused[1].Problem != wire.OtherID {
		t.Errorf("standing %+v", st)
	}
	if got := inspect(t, c, "r1"); got.Problem != wire.TokenInvalid || got.State != wire.Preadopted {
		t.Errorf("record %+v", got)
	}
	gets(t, c, r)
	// A new one that is refused leaves the old one in use: it is offered last.
	r.Show("garbage", good)
	if st := r.MustAuthenticate(false); !st.Admitted || len(st.Refused) != 1 {
		t.Errorf("standing %+v", st)
	}
	gets(t, c, r)
	r.Show(slices.Repeat([]string{good}, wire.MaxOffers+1)...)
	_, err := r.Authenticate(false)
	wantKind(t, err, wire.BadUsage)
	user, err := c.UserToken(t.Context(), wire.UserTokenRequest{})
	if err != nil {
		t.Fatal(err)
	}
	r.Show(user.Token)
	if st := r.MustAuthenticate(false); st.Admitted || st.Problem != wire.TokenInvalid {
		t.Errorf("a user's token: %+v", st)
	}
}

// What was granted with a revoked key would do a runner no good: it is not
// handed out, and an adoption grants another.
func TestRevokedGrant(t *testing.T) {
	s := daemontest.Start(t, slowly)
	c := s.Client(t)
	r := connected(t, s, "r1", zone)
	if _, err := c.Adopt(t.Context(), "r1", ""); err != nil {
		t.Fatal(err)
	}
	revoked := r.AwaitGrant()
	if _, err := c.RotateTokenKey(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	c = s.Client(t) // whoever revokes is asked anew, too
	back(t, r)
	if st := r.Standing; st.State != wire.Adopted || st.Granted || st.Problem != wire.NoToken {
		t.Errorf("after the revocation: %+v", st)
	}
	if _, err := c.Adopt(t.Context(), "r1", ""); err != nil {
		t.Fatal(err)
	}
	if token := r.TakeGrant(); token == revoked {
		t.Error("the revoked token is granted again")
	}
	gets(t, c, r)
}
