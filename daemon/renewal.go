package daemon

import (
	"errors"
	"sync"
	"time"

	"github.com/waypointd/waypoint/daemon/adoption"
	"github.com/waypointd/waypoint/daemon/store"
	"github.com/waypointd/waypoint/mux/wire"
)

// lapse deals with runners whose token has expired while they are connected:
// from that moment on they are given no job (candidates looks at the clock
// itself); here they are told, and it is recorded. Another of the tokens that
// they have shown may still be good.
func (s *Server) lapse(runners []*visitor) error {
	return together(runners, func(v *visitor) error {
		done, err := s.turns.take(s.ctx, v.id)
		if err != nil {
			return err
		}
		defer done()
		tokens, _ := s.fleet.tokens(v)
		now := s.now()
		tokens = again(v, tokens, now)
		if _, _, err = s.arrive(s.ctx, v, tokens, ""); err == nil || s.ctx.Err() != nil {
			return nil
		}
		// Told all the same; the record follows when the runner shows its
		// tokens again.
		s.log.Warn("expiry of a runner's token not recorded", "runner", v.id, "error", err)
		s.fleet.lapse(v, tokens, now)
		s.wakeClock()
		return nil
	})
}

// lapse is stand from what the session alone knows.
func (f *fleet) lapse(v *visitor, tokens []shown, now time.Time) {
	f.mu.Lock()
	rec := adoption.Record{State: v.standing.State, Key: v.key, Draining: v.standing.Draining}
	labels := v.labels
	f.mu.Unlock()
	f.stand(v, adoption.Arrive(rec, v.runner(), offersOf(tokens)), labels, tokens, now)
}

func offersOf(tokens []shown) []adoption.Offer {
	offers := make([]adoption.Offer, len(tokens))
	for i, t := range tokens {
		offers[i] = t.Offer
	}
	return offers
}

// renewRetry is when a renewal is tried again that the store refused.
const renewRetry = time.Minute

// renew grants adopted runners the token that follows the one in use. It is
// handed out until it is stored, like that of an adoption.
func (s *Server) renew(runners []*visitor) error {
	if s.cfg().NoTokenRenew {
		return nil
	}
	return together(runners, func(v *visitor) error {
		err := s.renewOne(v)
		if err != nil && s.ctx.Err() == nil {
			s.log.Warn("runner's token not renewed, trying again", "runner", v.id, "error", err)
			s.fleet.renewLater(v, s.now().Add(renewRetry))
		}
		return nil
	})
}

func (s *Server) renewOne(v *visitor) error {
	done, err := s.turns.take(s.ctx, v.id)
	if err != nil {
		return err
	}
	defer done()
	using, ok := s.fleet.inUse(v)
	if !ok {
		return nil
	}
	var (
		rec     store.RunnerRecord
		granted wire.Claims
	)
	if err := s.update(func(tx *store.Tx) (err error) {
		rec, err = tx.Runner(v.id)
		if wire.KindOf(err) == wire.NotFound {
			return nil
		}
		if err != nil || rec.State != wire.Adopted || rec.Fingerprint != v.key {
			return err
		}
		if c, err := wire.ReadToken(rec.Grant); err == nil && c.Serial > using.Serial {
			return nil // it has been handed out already
		}
		if rec.Grant, granted, err = s.mint(tx, adoption.Grant(v.runner()), s.cfg().GrantLife, s.now()); err != nil {
			return err
		}
		return tx.PutRunner(rec)
	}); err != nil {
		return err
	}
	if granted.Serial == 0 {
		return nil
	}
	s.minted("renewal", granted)
	s.handOver(v, rec)
	return nil
}

// inUse is the token that a connected runner uses.
func (f *fleet) inUse(v *visitor) (wire.Claims, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	m := f.members[v.id]
	if m == nil || m.visitor != v || !v.standing.Admitted {
		return wire.Claims{}, false
	}
	return v.using, true
}

func (f *fleet) renewLater(v *visitor, at time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	v.renewAt = at
}

// together calls f for each, many at a time, so that they share commits.
func together[T any](list []T, f func(T) error) error {
	errs := make([]error, len(list))
	var all sync.WaitGroup
	turn := make(chan struct{}, giveAtOnce)
	for i, v := range list {
		turn <- struct{}{}
		all.Go(func() {
			defer func() { <-turn }()
			errs[i] = f(v)
		})
	}
	all.Wait()
	return errors.Join(errs...)
}
