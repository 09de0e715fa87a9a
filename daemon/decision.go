package daemon

import (
	"context"

	"github.com/waypointd/waypoint/daemon/adoption"
	"github.com/waypointd/waypoint/daemon/store"
	"github.com/waypointd/waypoint/mux"
	"github.com/waypointd/waypoint/mux/wire"
)

// decide has f change a runner's record as an operator wants it, and brings its
// living session up to date: first the store, then the runner. What the record
// was is handed to f; NotFound where there is none.
func (s *Server) decide(ctx context.Context, id string, f func(tx *store.Tx, r *store.RunnerRecord) error) (store.RunnerRecord, error) {
	var r store.RunnerRecord
	if v, ok := s.connected(ctx, id); ok && v.kind == wire.KindLocal {
		return r, wire.Errorf(wire.Conflict, "runner %q is a command line's own: it is there as long as that", id)
	}
	done, err := s.turns.take(ctx, id)
	if err != nil {
		return r, err
	}
	defer done()
	if err := s.act(ctx, func(tx *store.Tx) (err error) {
		if err := s.confirm(tx, callOf(ctx).by); err != nil {
			return err
		}
		if r, err = tx.Runner(id); err != nil {
			return err
		}
		if err := f(tx, &r); err != nil {
			return err
		}
		if err := tx.PutRunner(r); err != nil {
			return err
		}
		note(ctx, "fingerprint", r.Fingerprint)
		return s.countDecision(tx)
	}); err != nil {
		return r, err
	}
	if v, tokens := s.fleet.present(id); v != nil {
		// The decision is durable; what follows from it must not depend on a
		// caller that has left.
		now := s.now()
		tokens = again(v, tokens, now)
		if after, _, err := s.arrive(context.WithoutCancel(ctx), v, tokens, ""); err == nil {
			r = after
		} else { // the decision stands, whatever else cannot be recorded now
			s.log.Warn("runner's standing not recorded", "runner", id, "error", err)
			s.fleet.stand(v, adoption.Arrive(adopted(r), v.runner(), offersOf(tokens)), r.Labels, tokens, now)
		}
		s.handOver(v, r)
	}
	s.wakeClock()
	s.store.Kick()
	return r, nil
}

// present is the session of a runner that is connected, and the tokens that it
// has shown.
func (f *fleet) present(id string) (*visitor, []shown) {
	f.mu.Lock()
	defer f.mu.Unlock()
	m := f.members[id]
	if m == nil {
		return nil, nil
	}
	return m.visitor, m.shown
}

// tokens are what a session has shown, and whether it has to end.
func (f *fleet) tokens(v *visitor) (tokens []shown, over bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return v.shown, v.over
}

// runnerAdopt admits a runner: it is granted a token for its id, its key and
// the labels that it offers. The grant stays on record until it is stored.
func (s *Server) runnerAdopt(ctx context.Context, peer *mux.Peer, req wire.AdoptRequest) (wire.Runner, error) {
	var granted wire.Claims
	outstanding := s.outstanding(ctx, req.ID)
	r, err := s.decide(ctx, req.ID, func(tx *store.Tx, r *store.RunnerRecord) error {
		rec, err := adopted(*r).Adopt(r.ID, req.Fingerprint)
		if err != nil {
			return err
		}
		r.State, r.RejectedSerial = rec.State, rec.Rejection
		if r.Offered != nil {
			r.Labels, r.Offered = r.Offered, nil
		}
		runner := adoption.Runner{ID: r.ID, Labels: adoption.Bound(r.Labels), Key: r.Fingerprint}
		if r.Grant != "" && r.Grant == outstanding.text {
			if problem, _ := adoption.Judge(outstanding.Claims, nil, runner, s.now()); problem == "" {
				return nil // it is handed out again
			}
		}
		r.Grant, granted, err = s.mint(tx, adoption.Grant(runner), s.cfg().GrantLife, s.now())
		return err
	})
	if err != nil {
		return wire.Runner{}, err
	}
	s.log.Info("runner adopted", "runner", r.ID, "fingerprint", r.Fingerprint, "by", loginOf(peer).String(), "peer", peer)
	if granted.Serial != 0 {
		s.minted("adoption", granted)
	}
	return s.withSession(ctx, r.Runner), nil
}

// outstanding is what a runner has been granted and has not stored yet, if it
// can still be used: its text is "" otherwise.
func (s *Server) outstanding(ctx context.Context, id string) (t shown) {
	rec, err := s.store.Runner(ctx, id)
	if err != nil || rec.Grant == "" {
		return t
	}
	c, err := s.verify(ctx, rec.Grant, s.now())
	if err != nil {
		return t
	}
	return shown{Offer: adoption.Offer{Claims: c}, text: rec.Grant}
}

// handOver gives a runner that is connected what it has been granted and has
// not stored yet. One whose grant has expired waits for another decision.
func (s *Server) handOver(v *visitor, r store.RunnerRecord) {
	if token := grantOf(r, s.now()); token != "" {
		s.fleet.grant(v, wire.Grant{Token: token})
	}
}

// grant hands a token to a runner that is connected.
func (f *fleet) grant(v *visitor, g wire.Grant) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if m := f.members[v.id]; m != nil && m.visitor == v {
		f.tell(v.id, wire.WorkOrder{Grant: &g})
	}
}

// runnerReject refuses a runner: no further job, what it runs ends as usual.
func (s *Server) runnerReject(ctx context.Context, peer *mux.Peer, req wire.RunnerRequest) (wire.Runner, error) {
	r, err := s.decide(ctx, req.ID, func(tx *store.Tx, r *store.RunnerRecord) error {
		serial, err := tx.NextSerial(s.now())
		if err != nil {
			return err
		}
		rec := adopted(*r).Reject(serial)
		r.State, r.RejectedSerial, r.Grant = rec.State, rec.Rejection, ""
		return nil
	})
	if err != nil {
		return wire.Runner{}, err
	}
	s.log.Info("runner rejected", "runner", r.ID, "fingerprint", r.Fingerprint, "by", loginOf(peer).String(), "peer", peer)
	return s.withSession(ctx, r.Runner), nil
}

// runnerForget removes a runner's record and ends its session. What it runs
// goes on under the lease.
func (s *Server) runnerForget(ctx context.Context, peer *mux.Peer, req wire.RunnerRequest) (wire.Runner, error) {
	if v, ok := s.connected(ctx, req.ID); ok && v.kind == wire.KindLocal {
		return wire.Runner{}, wire.Errorf(wire.Conflict, "runner %q is a command line's own: it goes with that", req.ID)
	}
	done, err := s.turns.take(ctx, req.ID)
	if err != nil {
		return wire.Runner{}, err
	}
	defer done()
	var r store.RunnerRecord
	if err := s.act(ctx, func(tx *store.Tx) (err error) {
		if err := s.confirm(tx, callOf(ctx).by); err != nil {
			return err
		}
		if r, err = tx.Runner(req.ID); err != nil {
			return err
		}
		if err := s.keepOwner(tx, r); err != nil {
			return err
		}
		if err := tx.DeleteRunner(req.ID); err != nil {
			return err
		}
		note(ctx, "fingerprint", r.Fingerprint)
		return s.countDecision(tx)
	}); err != nil {
		return wire.Runner{}, err
	}
	was := s.withSession(ctx, r.Runner)
	s.dismiss(req.ID, r.Fingerprint)
	s.log.Info("runner forgotten", "runner", r.ID, "fingerprint", r.Fingerprint, "by", loginOf(peer).String(), "peer", peer)
	return was, nil
}

// dismiss ends the sessions of a runner whose record is gone.
func (s *Server) dismiss(id, fingerprint string) {
	s.store.Matched() // an assignment that was under way is the fleet's by now
	s.fleet.dismiss(id, fingerprint, s.now())
	s.wakeClock()
}
