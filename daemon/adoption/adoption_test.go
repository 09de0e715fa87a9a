package adoption_test

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/waypointd/waypoint/daemon/adoption"
	"github.com/waypointd/waypoint/mux/wire"
)

var (
	noon   = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	r1     = adoption.Runner{ID: "r1", Labels: map[string]string{"zone": "east"}, Key: "SHA256:mine"}
	labels = map[string]string{"zone": "east"}
	day    = 24 * time.Hour
)

// claims are of a token made an hour ago, good for a day, for anybody.
func claims(edit ...func(*wire.Claims)) wire.Claims {
	c := wire.Claims{Kind: wire.RunnerToken, Serial: 10, Issued: noon.Add(-time.Hour), Expiry: noon.Add(23 * time.Hour)}
	for _, f := range edit {
		f(&c)
	}
	return c
}

// show is an offer, judged.
func show(source wire.TokenSource, c wire.Claims) adoption.Offer {
	o := adoption.Offer{Source: source, Claims: c}
	o.Problem, o.Detail = adoption.Judge(c, nil, r1, noon)
	return o
}

var (
	forR1    = func(c *wire.Claims) { c.ID = "r1" }
	forOther = func(c *wire.Claims) { c.ID = "r2" }
	expired  = func(c *wire.Claims) { c.Expiry = noon }
	serial   = func(n int64) func(*wire.Claims) { return func(c *wire.Claims) { c.Serial = n } }
)

func TestJudge(t *testing.T) {
	invalid := wire.Errorf(wire.Unauthenticated, "the token is not valid: it is cut off")
	late := wire.Errorf(wire.Expired, "the token expired")
	for _, tt := range []struct {
		name   string
		claims wire.Claims
		err    error
		want   wire.Problem
		says   string
	}{
		{"for any id and any labels", claims(), nil, "", ""},
		{"for this id", claims(forR1), nil, "", ""},
		{"for these labels", claims(func(c *wire.Claims) { c.Labels = labels }), nil, "", ""},
		{"for this key", claims(func(c *wire.Claims) { c.Key = r1.Key }), nil, "", ""},
		{"cut off", wire.Claims{}, invalid, wire.TokenInvalid, "cut off"},
		{"a user's", claims(func(c *wire.Claims) { c.Kind = wire.UserToken }), nil, wire.TokenInvalid, "not a runner's"},
		{"a user's, expired", claims(expired, func(c *wire.Claims) { c.Kind = wire.UserToken }), late, wire.TokenInvalid, "not a runner's"},
		{"expired, says its verification", claims(expired), late, wire.TokenExpired, "2026-11-21T12:00:00Z"},
		{"expired since", claims(expired), nil, wire.TokenExpired, "2026-11-21T12:00:00Z"},
		{"not expired yet", claims(func(c *wire.Claims) { c.Expiry = noon.Add(1) }), nil, "", ""},
		{"for another id", claims(forOther), nil, wire.OtherID, `"r2"`},
		{"for another key", claims(func(c *wire.Claims) { c.Key = "SHA256:other" }), nil, wire.OtherKey, "key"},
		{"for other labels", claims(func(c *wire.Claims) { c.Labels = map[string]string{"zone": "west"} }), nil, wire.OtherLabels, "zone=west, and the runner offers the labels zone=east"},
		{"for more labels", claims(func(c *wire.Claims) { c.Labels = map[string]string{"zone": "east", "a": "b"} }), nil, wire.OtherLabels, "a=b,zone=east"},
		{"for no labels", claims(func(c *wire.Claims) { c.Labels = map[string]string{} }), nil, wire.OtherLabels, "no labels"},
		{"expired comes before another id", claims(expired, forOther), late, wire.TokenExpired, ""},
		{"another id before another key", claims(forOther, func(c *wire.Claims) { c.Key = "x" }), nil, wire.OtherID, ""},
		{"another key before other labels", claims(func(c *wire.Claims) { c.Key, c.Labels = "x", map[string]string{} }), nil, wire.OtherKey, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, detail := adoption.Judge(tt.claims, tt.err, r1, noon)
			if got != tt.want || !strings.Contains(detail, tt.says) || (got == "") != (detail == "") {
				t.Errorf("%q, %q; want %q", got, detail, tt.want)
			}
		})
	}
	// No labels at all are labels as well.
	none := adoption.Runner{ID: "r1", Labels: adoption.Bound(map[string]string{"os": "linux", "arch": "arm64", "hostname": "h"})}
	if p, _ := adoption.Judge(claims(func(c *wire.Claims) { c.Labels = map[string]string{} }), nil, none, noon); p != "" {
		t.Errorf("a token for no labels, shown by a runner without: %s", p)
	}
}

// The rows of the two tables, in their order.
func TestArrive(t *testing.T) {
	good, bad := show(wire.SourceFile, claims()), show(wire.SourceFile, claims(expired))
	offers := func(o ...adoption.Offer) []adoption.Offer { return o }
	states := func(s ...wire.RunnerState) []wire.RunnerState { return s }
	for _, tt := range []struct {
		name    string
		from    []wire.RunnerState
		offers  []adoption.Offer
		to      wire.RunnerState // "": unchanged
		admits  bool
		refused wire.Kind
		problem wire.Problem
		relabel bool
	}{
		{"pending: connects without a token", states("", wire.Pending), nil, wire.Pending, false, "", wire.NoToken, true},
		{"pending: connects with an unusable token", states("", wire.Pending), offers(bad), wire.Pending, false, "", wire.TokenExpired, true},
		{"connects without a token, its own key", states(wire.Preadopted, wire.Adopted), nil, "", false, "", wire.NoToken, false},
		{"connects with an unusable token, its own key", states(wire.Preadopted, wire.Adopted), offers(bad), "", false, "", wire.TokenExpired, false},
		{"connects without a token, rejected", states(wire.Rejected), nil, "", false, wire.Denied, "", false},
		{"connects with an unusable token, rejected", states(wire.Rejected), offers(bad), "", false, wire.Denied, wire.TokenExpired, false},
		{"connects with a usable token", states("", wire.Pending, wire.Preadopted), offers(good), wire.Preadopted, true, "", "", true},
		{"connects with a usable token, adopted", states(wire.Adopted), offers(good), "", true, "", "", true},
		{"connects with a token issued before the rejection", states(wire.Rejected), offers(show(wire.SourceFile, claims(forR1, serial(49)))), "", false, wire.Denied, "", false},
		{"connects with the serial of the rejection", states(wire.Rejected), offers(show(wire.SourceFile, claims(forR1, serial(50)))), "", false, wire.Denied, "", false},
		{"connects with a token for this id issued after the rejection", states(wire.Rejected), offers(show(wire.SourceFile, claims(forR1, serial(51)))), wire.Preadopted, true, "", "", true},
		{"connects with a token for any id issued after the rejection", states(wire.Rejected), offers(show(wire.SourceFile, claims(serial(51)))), "", false, wire.Denied, "", false},
		{"the second token lifts the rejection", states(wire.Rejected), offers(show(wire.SourceFile, claims(serial(51))), show(wire.SourceEnvironment, claims(forR1, serial(52)))), wire.Preadopted, true, "", "", true},
	} {
		for _, from := range tt.from {
			t.Run(fmt.Sprintf("%s, from %q", tt.name, from), func(t *testing.T) {
				rec := adoption.Record{State: from, Key: r1.Key, Draining: true}
				if from == "" {
					rec = adoption.Record{}
				}
				if from == wire.Rejected {
					rec.Rejection = 50
				}
				want := tt.to
				if want == "" {
					want = from
				}
				out := adoption.Arrive(rec, r1, tt.offers)
				if out.Standing.State != want || out.Standing.Admitted != tt.admits || wire.KindOf(out.Refused) != tt.refused ||
					out.Problem != tt.problem || out.Relabel != tt.relabel || (out.Used != nil) != tt.admits {
					t.Errorf("%+v", out)
				}
				if out.Standing.Draining != rec.Draining {
					t.Error("the operator's drain is lost")
				}
			})
		}
	}
}

func TestAnotherKeyIsRefusedWhateverItShows(t *testing.T) {
	good := show(wire.SourceFile, claims(forR1, serial(99)))
	for _, state := range []wire.RunnerState{wire.Pending, wire.Preadopted, wire.Adopted, wire.Rejected} {
		out := adoption.Arrive(adoption.Record{State: state, Key: "SHA256:other", Rejection: 50}, r1, []adoption.Offer{good})
		if wire.KindOf(out.Refused) != wire.Conflict || out.Standing.State != "" || out.Used != nil || out.Relabel || out.Problem != "" {
			t.Errorf("%s: %+v", state, out)
		}
		if text := out.Refused.Error(); text != `runner id "r1" is in use by another identity` {
			t.Errorf("%s: a stranger is told %q", state, text)
		}
	}
}

// The first usable offer is used; the record's problem is the first one's that
// was passed over, and what comes behind the one in use was not asked.
func TestWhichOfSeveral(t *testing.T) {
	file, env := show(wire.SourceFile, claims(expired)), show(wire.SourceEnvironment, claims(forOther))
	usable := show(wire.SourceCredential, claims(forR1))
	rec := adoption.Record{State: wire.Adopted, Key: r1.Key}

	out := adoption.Arrive(rec, r1, []adoption.Offer{file, env})
	if out.Standing.Problem != wire.TokenExpired || out.Problem != wire.TokenExpired || len(out.Standing.Refused) != 2 {
		t.Errorf("none is usable: %+v", out)
	}
	out = adoption.Arrive(rec, r1, []adoption.Offer{env, usable, file})
	want := wire.Standing{
		State: wire.Adopted, Admitted: true, Source: wire.SourceCredential, Issued: usable.Claims.Issued, Expiry: usable.Claims.Expiry,
		Refused: []wire.TokenRefusal{{Source: wire.SourceEnvironment, Problem: wire.OtherID, Detail: env.Detail}},
	}
	if !reflect.DeepEqual(out.Standing, want) || out.Problem != wire.OtherID || out.Used.Source != wire.SourceCredential {
		t.Errorf("the second is usable: %+v", out)
	}
	if out = adoption.Arrive(rec, r1, []adoption.Offer{usable, file}); out.Problem != "" || out.Standing.Refused != nil {
		t.Errorf("the first is usable: %+v", out)
	}
}

func TestDecisions(t *testing.T) {
	for _, state := range []wire.RunnerState{wire.Pending, wire.Preadopted, wire.Adopted, wire.Rejected} {
		t.Run(string(state), func(t *testing.T) {
			rec := adoption.Record{State: state, Key: r1.Key, Rejection: 7, Draining: true}
			got, err := rec.Adopt("r1", "")
			if err != nil || got != (adoption.Record{State: wire.Adopted, Key: r1.Key, Draining: true}) {
				t.Errorf("adopt: %+v, %v", got, err)
			}
			if got, err = rec.Adopt("r1", r1.Key); err != nil || got.State != wire.Adopted {
				t.Errorf("adopt by fingerprint: %+v, %v", got, err)
			}
			if got, err = rec.Adopt("r1", "SHA256:other"); wire.KindOf(err) != wire.Conflict || got != rec {
				t.Errorf("adopt by a foreign fingerprint: %+v, %v", got, err)
			}
			if got := rec.Reject(50); got != (adoption.Record{State: wire.Rejected, Key: r1.Key, Rejection: 50, Draining: true}) {
				t.Errorf("reject: %+v", got)
			}
		})
	}
}

// What adoption grants is usable by the runner it was made for and by nobody else.
func TestGrant(t *testing.T) {
	offered := adoption.Runner{ID: "r1", Labels: map[string]string{"zone": "east", "os": "linux"}, Key: r1.Key}
	c := adoption.Grant(offered)
	c.Issued, c.Expiry = noon, noon.Add(30*day)
	if p, why := adoption.Judge(c, nil, r1, noon); p != "" {
		t.Errorf("%s: %s", p, why)
	}
	for want, r := range map[wire.Problem]adoption.Runner{
		wire.OtherID:     {ID: "r2", Labels: labels, Key: r1.Key},
		wire.OtherKey:    {ID: "r1", Labels: labels, Key: "SHA256:other"},
		wire.OtherLabels: {ID: "r1", Key: r1.Key},
	} {
		if p, _ := adoption.Judge(c, nil, r, noon); p != want {
			t.Errorf("shown by %+v: %q", r, p)
		}
	}
	if bare := adoption.Grant(adoption.Runner{ID: "r1", Key: "k"}); bare.Labels == nil {
		t.Error("a grant to a runner without labels is good for any")
	}
}

func TestRenewAt(t *testing.T) {
	c := adoption.Grant(r1)
	c.Issued, c.Expiry = noon, noon.Add(30*day)
	seen := map[time.Time]bool{}
	for i := range 100 {
		r := adoption.Runner{ID: fmt.Sprintf("r%d", i), Labels: labels, Key: r1.Key}
		c := c
		c.ID = r.ID
		at := adoption.RenewAt(wire.Adopted, c, r)
		if left := c.Expiry.Sub(at); left > 10*day || left <= 30*day/4 {
			t.Errorf("%s is renewed when %s are left", r.ID, left)
		}
		if at != adoption.RenewAt(wire.Adopted, c, r) {
			t.Errorf("%s is renewed at another time each time", r.ID)
		}
		seen[at] = true
	}
	if len(seen) < 90 {
		t.Errorf("of 100 runners adopted together, only %d are renewed at times of their own", len(seen))
	}
	operators := claims(forR1)
	for name, at := range map[string]time.Time{
		"of a preadopted runner": adoption.RenewAt(wire.Preadopted, c, r1),
		"of a rejected runner":   adoption.RenewAt(wire.Rejected, c, r1),
		"made by an operator":    adoption.RenewAt(wire.Adopted, operators, r1),
	} {
		if !at.IsZero() {
			t.Errorf("a token %s is renewed", name)
		}
	}
}
