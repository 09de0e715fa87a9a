package daemon

import (
	"context"
	"errors"
	"maps"
	"reflect"
	"time"

	"github.com/waypointd/waypoint/daemon/adoption"
	"github.com/waypointd/waypoint/daemon/store"
	"github.com/waypointd/waypoint/daemon/token"
	"github.com/waypointd/waypoint/mux"
	"github.com/waypointd/waypoint/mux/wire"
)

// judge looks at each token that a runner offers. An error is the store's, or
// of too many offers.
func (s *Server) judge(ctx context.Context, v *visitor, offers []wire.TokenOffer) ([]shown, error) {
	if len(offers) > wire.MaxOffers {
		return nil, wire.Errorf(wire.BadUsage, "%d tokens are more than the %d a runner may offer at once", len(offers), wire.MaxOffers)
	}
	judged := make([]shown, 0, len(offers))
	now, r := s.now(), v.runner()
	for _, o := range offers {
		c, err := s.verify(ctx, o.Token, now)
		if token.Ahead(c, now) != nil && adoption.Granted(c, r) {
			// It was granted while the clock of a server was ahead, or this one's
			// is behind: that must not cost an adopted runner its jobs until
			// then. It is good for its own key alone, and renewed at once.
			err = token.Expired(c, now)
		}
		t := shown{Offer: adoption.Offer{Source: o.Source, Claims: c}}
		switch wire.KindOf(err) {
		case "", wire.Expired:
			t.text = o.Token
		case wire.Unauthenticated:
		default:
			return nil, err
		}
		t.Problem, t.Detail = adoption.Judge(c, err, r, now)
		judged = append(judged, t)
	}
	return judged, nil
}

// again judges tokens anew whose claims have been proved before.
func again(v *visitor, tokens []shown, now time.Time) []shown {
	judged := make([]shown, 0, len(tokens))
	for _, t := range tokens {
		if t.text != "" {
			t.Problem, t.Detail = adoption.Judge(t.Claims, nil, v.runner(), now)
		}
		judged = append(judged, t)
	}
	return judged
}

// arrive decides about a runner that shows these tokens, and brings record,
// session and the runner itself up to date. Whoever calls it has the runner's
// turn. stored is a granted token that is safe with the runner. An outcome
// that is Conflict has changed nothing.
func (s *Server) arrive(ctx context.Context, v *visitor, tokens []shown, stored string) (rec store.RunnerRecord, out adoption.Outcome, err error) {
	now := s.now()
	offers := offersOf(tokens)
	was, err := s.store.Runner(ctx, v.id)
	if err != nil && wire.KindOf(err) != wire.NotFound {
		return was, out, err
	}
	out = adoption.Arrive(adopted(was), v.runner(), offers)
	if wire.KindOf(out.Refused) == wire.Conflict {
		return was, out, out.Refused
	}
	rec = v.record(was, out, stored, now)
	out.Standing.Granted = granting(rec, out, now)
	if was.ID != "" && s.fleet.elsewhere(v) {
		// The record is that of the session there is. Whether this one takes its
		// place is found out when it begins to work.
		s.fleet.stand(v, out, was.Labels, tokens, now)
		return was, out, nil
	}
	if was.ID == "" {
		if err := s.roomOfToken(v, out, func(issued, expiry time.Time) (int, error) { return s.store.Preadopted(ctx, issued, expiry) }); err != nil {
			return was, out, err
		}
		if err := s.room(v, func(g string) ([]string, error) { return s.store.Pending(ctx, g) },
			func() (int, error) { return s.store.PendingCount(ctx) }, out, nil); err != nil {
			return was, out, err
		}
	}
	admits := out.Used != nil && (was.TokenExpiry.IsZero() || s.fleet.hasOrphans(v.id))
	if admits || !reflect.DeepEqual(rec, was) {
		var (
			lost []wire.JobRef
			gone string
		)
		// What was read may be old by now where other servers share the store.
		if err := s.update(func(tx *store.Tx) (err error) {
			if was, err = tx.Runner(v.id); err != nil && wire.KindOf(err) != wire.NotFound {
				return err
			}
			if out = adoption.Arrive(adopted(was), v.runner(), offers); wire.KindOf(out.Refused) == wire.Conflict {
				return out.Refused
			}
			gone = ""
			if was.ID == "" {
				if err := s.roomOfToken(v, out, tx.Preadopted); err != nil {
					return err
				}
				if err := s.room(v, tx.Pending, tx.PendingCount, out, func(id string) error {
					gone = id
					return errors.Join(tx.DeleteRunner(id), s.countDecision(tx))
				}); err != nil {
					return err
				}
			}
			rec = v.record(was, out, stored, now)
			out.Standing.Granted = granting(rec, out, now)
			if admits {
				if lost, err = s.inherit(tx, v, now); err != nil {
					return err
				}
			}
			return tx.PutRunner(rec)
		}); err != nil {
			return was, out, err
		}
		for _, ref := range lost {
			s.log.Warn("job lost", "job", ref.Job, "attempt", ref.Attempt, "runner", v.id,
				"why", "its runner has been forgotten, and another has its id")
			s.fleet.end(ref, false)
		}
		s.fleet.evict(gone)
		s.logStanding(was, rec, out.Standing.Admitted)
	}
	s.fleet.stand(v, out, rec.Labels, tokens, now)
	s.wakeClock()
	s.callRoll()
	if out.Standing.Admitted {
		s.store.Kick()
	}
	return rec, out, nil
}

// adopted is what adoption knows of a record.
func adopted(r store.RunnerRecord) adoption.Record {
	if r.ID == "" {
		return adoption.Record{}
	}
	return adoption.Record{State: r.State, Key: r.Fingerprint, Rejection: r.RejectedSerial, Draining: r.Draining}
}

// record is what is to be kept after an outcome.
func (v *visitor) record(r store.RunnerRecord, out adoption.Outcome, stored string, now time.Time) store.RunnerRecord {
	if r.ID == "" {
		r.ID, r.Kind, r.Key, r.Fingerprint = v.id, v.kind, v.peer.Key, v.key
		r.FirstSeen = utc(now)
		r.LastSeen = r.FirstSeen
	}
	r.State, r.Problem, r.Detail = out.Standing.State, out.Problem, out.Detail
	if r.State != wire.Rejected {
		r.RejectedSerial = 0
	}
	if out.Relabel {
		r.Labels = v.hello.Labels
	}
	if len(r.Labels) == 0 {
		r.Labels = nil // as the store returns it
	}
	r.Offered = nil
	if !maps.Equal(v.hello.Labels, r.Labels) {
		r.Offered = v.hello.Labels
		if r.Offered == nil {
			r.Offered = map[string]string{}
		}
	}
	if out.Used != nil {
		r.TokenSource, r.TokenIssued, r.TokenExpiry = out.Standing.Source, utc(out.Standing.Issued), utc(out.Standing.Expiry)
	}
	if stored != "" && stored == r.Grant {
		r.Grant = ""
	}
	r.Hostname, r.OS, r.Arch = v.hello.Hostname, v.hello.OS, v.hello.Arch
	r.Isolation, r.Concurrency, r.Version = v.hello.Isolation, v.hello.Concurrency, v.version
	r.Peer, r.PeerGroup = v.peerName, v.peerGroup
	return r
}

// granting reports whether a runner that has no usable token is about to be
// handed one.
func granting(r store.RunnerRecord, out adoption.Outcome, now time.Time) bool {
	return !out.Standing.Admitted && grantOf(r, now) != ""
}

// grantOf is the token to hand to a runner, "" for none: one that has expired
// is not.
func grantOf(r store.RunnerRecord, now time.Time) string {
	if r.Grant == "" || r.State != wire.Adopted {
		return ""
	}
	if c, err := wire.ReadToken(r.Grant); err != nil || !now.Before(c.Expiry) {
		return ""
	}
	return r.Grant
}

// utc is a time as the store returns it.
func utc(t time.Time) time.Time { return t.UTC().Truncate(time.Microsecond) }

// logStanding says how a runner stands now, if that is news.
func (s *Server) logStanding(was, is store.RunnerRecord, admitted bool) {
	if was.State == is.State && was.Problem == is.Problem && was.Detail == is.Detail &&
		was.TokenSource == is.TokenSource && was.TokenExpiry.Equal(is.TokenExpiry) {
		return
	}
	attrs := []any{"runner", is.ID, "state", is.State, "peer", is.Peer}
	if is.Problem != "" {
		attrs = append(attrs, "problem", is.Problem, "detail", is.Detail)
	}
	if !is.TokenExpiry.IsZero() {
		attrs = append(attrs, "source", is.TokenSource, "expires_at", is.TokenExpiry)
	}
	switch {
	case is.State == wire.Pending:
		s.strangers.of(is.PeerGroup).Info("runner pending", attrs...)
	case !admitted && is.Problem != "":
		s.log.Warn("runner gets no jobs", attrs...)
	default:
		s.log.Info("runner's standing", attrs...)
	}
}

// room refuses a newcomer that would have to wait for adoption where too many
// do, of its peer or in all. The one that is offline and was seen longest ago
// makes room for it.
func (s *Server) room(v *visitor, pending func(group string) ([]string, error), count func() (int, error), out adoption.Outcome, remove func(id string) error) error {
	if out.Standing.State != wire.Pending {
		return nil
	}
	full := func(limit string, most, n int, of string) error {
		s.tally.note(limit, v.peerGroup, most)
		return wire.Errorf(wire.Unavailable, "%d runners%s are waiting for adoption already", n, of).
			WithHint("adopt or reject some on the server: waypoint runner list --pending")
	}
	ids, err := pending(v.peerGroup)
	if err != nil {
		return err
	}
	gone := ""
	if most := s.cfg().MaxPendingPerPeer; len(ids) >= most {
		if gone = s.fleet.firstOffline(ids); gone == "" {
			return full("max_pending_per_peer", most, len(ids), " of this peer")
		}
	}
	n, err := count()
	if err != nil {
		return err
	}
	if most := s.cfg().MaxPending; gone == "" && n >= most {
		if ids, err = pending(""); err != nil {
			return err
		}
		if gone = s.fleet.firstOffline(ids); gone == "" {
			return full("max_pending", most, n, "")
		}
	}
	if gone == "" || remove == nil {
		return nil
	}
	return remove(gone)
}

// roomOfToken refuses a newcomer whose token, which is for any id, has brought as
// many runners as one may: its bearer could go on for ever.
func (s *Server) roomOfToken(v *visitor, out adoption.Outcome, preadopted func(issued, expiry time.Time) (int, error)) error {
	if out.Used == nil || out.Used.Claims.ID != "" {
		return nil
	}
	c, most := out.Used.Claims, s.cfg().Limits.RunnersPerToken
	n, err := preadopted(c.Issued, c.Expiry)
	if err != nil || n < most {
		return err
	}
	s.tally.note("runners_per_token", v.peerGroup, most)
	return wire.Errorf(wire.Unavailable, "%d runners have come with this token, which is as many as may", n).
		WithHint("make another one on the server with waypoint runner token, forget runners that are gone, or raise limits.runners_per_token")
}

// firstOffline is the first of the runners that is not connected, "" for none.
func (f *fleet) firstOffline(ids []string) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, id := range ids {
		if f.members[id] == nil {
			return id
		}
	}
	return ""
}

// authenticate judges the tokens that a runner shows over its living session:
// its jobs and streams go on.
func (s *Server) authenticate(ctx context.Context, peer *mux.Peer, req wire.AuthenticateRequest) (wire.Standing, error) {
	v := peer.Data.(*visitor)
	if v.kind != wire.KindRemote {
		return wire.Standing{}, wire.Errorf(wire.Denied, "a command line's own runner has no token of its own")
	}
	if err := v.calls.Wait(ctx); err != nil {
		return wire.Standing{}, wire.Errorf(wire.Unavailable, "runner %q shows its tokens too often", v.id)
	}
	judged, err := s.judge(ctx, v, req.Offers)
	if err != nil {
		return wire.Standing{}, err
	}
	done, err := s.turns.take(ctx, v.id)
	if err != nil {
		return wire.Standing{}, err
	}
	defer done()
	if s.fleet.isOver(v) {
		return wire.Standing{}, errForgotten
	}
	rec, err := s.store.Runner(ctx, v.id)
	if err != nil && wire.KindOf(err) != wire.NotFound {
		return wire.Standing{}, err
	}
	stored := ""
	for _, t := range judged {
		if req.Stored && t.text != "" && t.text == rec.Grant {
			stored = t.text
		}
	}
	_, out, err := s.arrive(ctx, v, judged, stored)
	return out.Standing, err
}

// elsewhere reports whether the runner is connected by another session.
func (f *fleet) elsewhere(v *visitor) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	m := f.members[v.id]
	return m != nil && m.visitor != v
}

// isOver reports whether the session has to end.
func (f *fleet) isOver(v *visitor) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return v.over
}
