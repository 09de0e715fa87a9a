package daemon

import (
	"crypto/ed25519"
	"reflect"
	"testing"
	"time"

	"github.com/waypointd/waypoint/daemon/store"
	"github.com/waypointd/waypoint/mux"
	"github.com/waypointd/waypoint/mux/wire"
)

// What somebody can do who has guessed a runner's id, copied its token, or both,
// and has not its key: nothing, and he does not change its record.
func TestStranger(t *testing.T) {
	s := newSite(t, Config{})
	owner := s.mustHello(t, "unix", operator(""))
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	victim := func(text string) (*mux.Session, error) { return s.helloAs(t, "tcp", remote("r1", text), key) }
	if _, err := victim(""); err != nil {
		t.Fatal(err)
	}
	if err := owner.Call(t.Context(), wire.MethodRunnerAdopt, wire.AdoptRequest{ID: "r1"}, nil); err != nil {
		t.Fatal(err)
	}
	record := func() store.RunnerRecord {
		t.Helper()
		r, err := s.store.Runner(t.Context(), "r1")
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	granted := record().Grant
	if granted == "" {
		t.Fatal("nothing was granted")
	}
	mine, err := victim(granted)
	if err != nil {
		t.Fatal(err)
	}
	standing := func(session *mux.Session, tokens ...string) (st wire.Standing) {
		t.Helper()
		req := wire.AuthenticateRequest{}
		for _, text := range tokens {
			req.Offers = append(req.Offers, wire.TokenOffer{Source: wire.SourceFile, Token: text})
		}
		if err := session.Call(t.Context(), wire.MethodAuthenticate, req, &st); err != nil {
			t.Fatal(err)
		}
		return st
	}
	if st := standing(mine, granted); !st.Admitted || st.State != wire.Adopted {
		t.Fatalf("the victim itself: %+v", st)
	}
	before := record()

	any := s.runnerToken(t, time.Hour)
	for name, text := range map[string]string{"no token": "", "its token": granted, "a token for any": any, "a user's": s.userToken(t, time.Hour)} {
		_, err := s.hello(t, "tcp", remote("r1", text))
		is(t, err, wire.Conflict, "in use by another identity", "forget it")
		if after := record(); !reflect.DeepEqual(after, before) {
			t.Errorf("%s: the record was %+v, is %+v", name, before, after)
		}
	}

	for _, c := range []struct {
		name, id, text string
		problem        wire.Problem
	}{
		{"its token under another id", "r2", granted, wire.OtherID},
		{"a user's token", "r3", s.userToken(t, time.Hour), wire.TokenInvalid},
		{"a token bound to its key", "r4", s.issueAt(t, wire.Claims{Kind: wire.RunnerToken, Key: before.Fingerprint}, time.Hour, time.Now()), wire.OtherKey},
		{"a token for labels it has not", "r5", s.issueAt(t, wire.Claims{Kind: wire.RunnerToken, Labels: map[string]string{"zone": "b"}}, time.Hour, time.Now()), wire.OtherLabels},
	} {
		session := s.mustHello(t, "tcp", remote(c.id, c.text))
		if st := standing(session, c.text); st.Admitted || st.State != wire.Pending || st.Problem != c.problem || st.Detail == "" {
			t.Errorf("%s: %+v", c.name, st)
		}
		if err := session.Call(t.Context(), wire.MethodBlobMissing, wire.BlobDigests{}, nil); wire.KindOf(err) != wire.Denied {
			t.Errorf("%s: blobs: %v", c.name, err)
		}
	}

	// Rejected, the runner itself comes back neither with what it had, nor with
	// a token for any; nor with one for its id that is older than the rejection.
	older := s.issueAt(t, wire.Claims{Kind: wire.RunnerToken, ID: "r1"}, time.Hour, time.Now())
	if err := owner.Call(t.Context(), wire.MethodRunnerReject, wire.RunnerRequest{ID: "r1"}, nil); err != nil {
		t.Fatal(err)
	}
	back := s.issueAt(t, wire.Claims{Kind: wire.RunnerToken}, time.Hour, time.Now().Add(time.Second))
	for _, text := range []string{"", granted, any, older, back} {
		_, err := victim(text)
		is(t, err, wire.Denied, "rejected by an operator", "waypoint runner token --id r1")
	}
	// And with a clock that was set back the serial still tells after from before.
	anew := s.issueAt(t, wire.Claims{Kind: wire.RunnerToken, ID: "r1"}, 48*time.Hour, time.Now().Add(-24*time.Hour))
	mine, err = victim(anew)
	if err != nil {
		t.Fatal(err)
	}
	if st := standing(mine, anew); !st.Admitted || st.State != wire.Preadopted {
		t.Errorf("%+v", st)
	}
}
