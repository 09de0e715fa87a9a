// Package adoption is the rules of who a runner is and whether it gets jobs.
// It knows no clock, no store and no session: what it needs is handed in, and
// what follows is handed back.
//
//	state       meaning                                            gets jobs
//	pending     known, no usable token; waits for an operator      no
//	preadopted  came with a usable token made beforehand           while its token is usable
//	adopted     admitted by an operator; was granted a token       while its token is usable
//	rejected    refused by an operator; stays on record            no
//	(none)      no record                                          no
//
//	            ┌───────────── usable token ─────────────┐
//	            │                                        ▼
//	(none) ─ connects ─▶ pending ─── usable token ─▶ preadopted
//	   ▲                    │                            │   ▲
//	   │                    └───────── adopt ──┐  adopt ─┘   │ token made for this very id
//	forget (any)                               ▼             │ after the rejection
//	                       adopted ◀─ adopt ─ rejected ──────┘
//	                                             ▲
//	                                        reject (any)
//
// A token is usable if it is valid, unexpired, for this id (or any), for these
// labels (or any) and, where it is bound to one, for this identity key. An id
// is bound to the key that used it first: whoever shows another key is refused,
// whatever token comes with it, and nothing of the record changes.
//
// The labels os, arch and hostname are what every runner says of its host; no
// token binds them.
package adoption

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/waypointd/waypoint/mux/wire"
)

// Runner is one that has proved its key.
type Runner struct {
	ID     string
	Labels map[string]string // those offered, without the host's: see Bound
	Key    string            // the fingerprint of its identity key
}

// Bound are the labels that a token can bind: all but os, arch and hostname.
// It is never nil.
func Bound(labels map[string]string) map[string]string {
	bound := map[string]string{}
	for k, v := range labels {
		if !IsHostLabel(k) {
			bound[k] = v
		}
	}
	return bound
}

// IsHostLabel reports whether every runner has this label by itself.
func IsHostLabel(key string) bool { return key == "os" || key == "arch" || key == "hostname" }

// Offer is a token that a runner shows, as far as it has been judged.
type Offer struct {
	Source  wire.TokenSource
	Claims  wire.Claims  // zero where it is invalid
	Problem wire.Problem // "": it is usable
	Detail  string       // a clause for people
}

// Judge says what keeps one token from being used by r, "" for nothing. err
// is what its verification said: Expired comes with the claims, of any other
// the claims are nothing.
func Judge(c wire.Claims, err error, r Runner, now time.Time) (problem wire.Problem, detail string) {
	switch k := wire.KindOf(err); {
	case k != "" && k != wire.Expired:
		return wire.TokenInvalid, err.Error()
	case c.Kind != wire.RunnerToken:
		return wire.TokenInvalid, "it is not a runner's token"
	case k == wire.Expired || !now.Before(c.Expiry):
		return wire.TokenExpired, "it expired at " + stamp(c.Expiry)
	case c.ID != "" && c.ID != r.ID:
		return wire.OtherID, fmt.Sprintf("it was made for runner %q", c.ID)
	case c.Key != "" && c.Key != r.Key:
		return wire.OtherKey, "it was made for another identity key"
	case c.Labels != nil && !maps.Equal(c.Labels, r.Labels):
		return wire.OtherLabels, fmt.Sprintf("it was made for %s, and the runner offers %s", labelText(c.Labels), labelText(r.Labels))
	}
	return "", ""
}

// Record is what is kept of an id; the zero Record is that of an id that is
// not known.
type Record struct {
	State     wire.RunnerState // "": there is no record
	Key       string           // the fingerprint that the id is bound to
	Rejection int64            // the serial drawn when it was rejected; tokens of greater ones were made after it
	Draining  bool             // by an operator
}

// Outcome is what becomes of a runner that has connected, or that has shown
// its tokens anew.
type Outcome struct {
	// Refused is Conflict for another key: nothing else is set then, and
	// nothing may be written. It is Denied for one that is rejected: it may
	// still report the jobs that it runs.
	Refused  error
	Standing wire.Standing // its State is the record's from now on
	Problem  wire.Problem  // the record's: with a token in use, of the first that was passed over for it
	Detail   string
	Used     *Offer // the token in use; nil: none, what was in use last stays on record
	Relabel  bool   // the record's labels become those offered
}

// Arrive decides about r, which shows these offers.
func Arrive(rec Record, r Runner, offers []Offer) Outcome {
	if rec.State != "" && rec.Key != r.Key {
		return Outcome{Refused: wire.Errorf(wire.Conflict, "runner id %q is in use by another identity", r.ID).
			WithHint("forget it on the server first, or give this runner another --id")}
	}
	out := Outcome{Standing: wire.Standing{State: rec.State, Draining: rec.Draining}}
	st := &out.Standing
	for i, o := range offers {
		if o.Problem == "" && (rec.State != wire.Rejected || lifts(rec, r, o)) {
			out.Used = &offers[i]
			break
		}
		if o.Problem != "" {
			st.Refused = append(st.Refused, wire.TokenRefusal{Source: o.Source, Problem: o.Problem, Detail: o.Detail})
		}
	}
	if len(st.Refused) > 0 {
		out.Problem, out.Detail = st.Refused[0].Problem, st.Refused[0].Detail
	}
	switch {
	case out.Used != nil:
		if rec.State != wire.Adopted {
			st.State = wire.Preadopted
		}
		st.Admitted, out.Relabel = true, true
		st.Source, st.Issued, st.Expiry = out.Used.Source, out.Used.Claims.Issued, out.Used.Claims.Expiry
		return out
	case rec.State == wire.Rejected:
		out.Refused = Denied(r.ID)
		if out.Problem == "" {
			out.Detail = "an operator has rejected it, and no token has been made for this id since"
		}
	case len(offers) == 0:
		out.Problem, out.Detail = wire.NoToken, "it has no token"
	}
	st.Problem, st.Detail = out.Problem, out.Detail
	if rec.State == "" {
		st.State = wire.Pending
	}
	out.Relabel = st.State == wire.Pending
	return out
}

// lifts reports whether a usable token ends a rejection: it must have been
// made for this very id, and after the rejection.
func lifts(rec Record, r Runner, o Offer) bool {
	return o.Claims.ID == r.ID && o.Claims.Serial > rec.Rejection
}

// Denied is what a rejected runner is told.
func Denied(id string) error {
	return wire.Errorf(wire.Denied, "runner %q has been rejected by an operator", id).
		WithHint("adopt it on the server, or make a new token for it: waypoint runner token --id %s", id)
}

// Adopt admits the runner on record. With a fingerprint its key must have it:
// else Conflict.
func (rec Record) Adopt(id, fingerprint string) (Record, error) {
	if fingerprint != "" && fingerprint != rec.Key {
		return rec, wire.Errorf(wire.Conflict, "runner %q has another key: its fingerprint is %s", id, rec.Key).
			WithHint("compare it with what the agent printed on its host")
	}
	rec.State, rec.Rejection = wire.Adopted, 0
	return rec, nil
}

// Reject refuses the runner on record; serial is drawn at this moment.
func (rec Record) Reject(serial int64) Record {
	rec.State, rec.Rejection = wire.Rejected, serial
	return rec
}

// Grant is what the token of an adoption, or of its renewal, says.
func Grant(r Runner) wire.Claims {
	return wire.Claims{Kind: wire.RunnerToken, ID: r.ID, Labels: Bound(r.Labels), Key: r.Key}
}

// Granted reports whether c is of a token that adoption granted to r.
func Granted(c wire.Claims, r Runner) bool {
	return c.Kind == wire.RunnerToken && c.ID == r.ID && c.Key == r.Key && r.Key != ""
}

// RenewAt is when the token in use of a runner is to be renewed: when a third
// of its life is left, or a little later, so that those adopted together are
// not renewed together. It is zero for a token that is not: of a runner that
// nobody adopted, or made by an operator.
func RenewAt(state wire.RunnerState, c wire.Claims, r Runner) time.Time {
	if state != wire.Adopted || !Granted(c, r) {
		return time.Time{}
	}
	const spread = 20 // of its life, at most a twentieth later: before anybody is warned
	life := c.Expiry.Sub(c.Issued)
	var sum uint32 = 2166136261 // FNV-1a
	for i := range len(r.ID) {
		sum = (sum ^ uint32(r.ID[i])) * 16777619
	}
	jitter := time.Duration(float64(life) / spread * float64(sum) / (1 << 32))
	return c.Expiry.Add(jitter - life/3)
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

func labelText(labels map[string]string) string {
	if len(labels) == 0 {
		return "no labels"
	}
	pairs := make([]string, 0, len(labels))
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		pairs = append(pairs, k+"="+labels[k])
	}
	return "the labels " + strings.Join(pairs, ",")
}
