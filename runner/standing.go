package runner

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/waypointd/waypoint/mux/wire"
)

// standing is what the server has said of this runner.
type standing struct {
	order sync.Mutex    // held while one is taken, so that they are told in the order in which they came
	fresh chan struct{} // one token: there is another

	mu     sync.Mutex
	last   *wire.Standing // nil before the first; guarded by mu
	taken  int            // so far; guarded by mu
	online bool           // it is of the session in use; guarded by mu
	low    int            // see Event.Low; guarded by mu
}

// now is the last one, and whether it is of a session that lives.
func (s *standing) now() (last *wire.Standing, online bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.last, s.online
}

func (s *standing) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.taken
}

// offline says that the session has ended.
func (s *standing) offline() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.online = false
}

// put takes another and returns the one before. With asked, the count when a
// call was made whose answer this is, it is refused where the work stream has
// brought another meanwhile: that one is newer, or the same.
func (s *standing) put(st wire.Standing, asked *int) (before *wire.Standing, was, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if asked != nil && *asked != s.taken {
		return nil, false, false
	}
	before, was = s.last, s.online
	s.last, s.online = &st, true
	s.taken++
	return before, was, true
}

// stand takes what the server makes of this runner, from the work stream or,
// with asked, as the answer to a call.
func (r *Runner) stand(st wire.Standing, asked *int) {
	r.standing.order.Lock()
	defer r.standing.order.Unlock()
	before, was, ok := r.standing.put(st, asked)
	if !ok {
		return
	}
	r.tokens.judged(st)
	if !was {
		r.log.Info("runner connected", "runner", r.name(), "state", st.State, "server", r.cfg.Server)
	}
	r.sayStanding(before, st)
	poke(r.standing.fresh)
	r.notify(Event{State: st.State})
	if before != nil && before.Admitted && !st.Admitted {
		r.Reload() // a source that is not watched may have a new one
	}
	if st.State == wire.Rejected && r.cfg.Once && r.count() == 0 {
		r.end(wire.Errorf(wire.Denied, "runner %q was rejected by an operator", r.name()))
	}
}

// sayStanding logs what has changed. What a person can do about it is for
// whoever is notified to say, or to give for a hint.
func (r *Runner) sayStanding(before *wire.Standing, st wire.Standing) {
	first := before == nil
	if first {
		before = &wire.Standing{State: st.State}
	}
	for _, x := range st.Refused {
		if !slices.Contains(before.Refused, x) {
			r.log.Warn("token refused", "runner", r.name(), "source", x.Source, "problem", x.Problem, "detail", x.Detail)
		}
	}
	if st.State != before.State {
		r.log.Info("runner's state has changed", "runner", r.name(), "state", st.State, "before", before.State)
	}
	switch {
	case st.Admitted:
		if st.Source != "" && (!before.Admitted || st.Source != before.Source || !st.Expiry.Equal(before.Expiry)) {
			r.log.Info("token in use", "runner", r.name(), "source", st.Source, "expires_at", st.Expiry)
		}
	case st.Granted: // a token is under way
	case !first && st.State == before.State && st.Problem == before.Problem && st.Detail == before.Detail && !before.Admitted:
	case st.State == wire.Pending:
		r.log.Info("runner pending", "runner", r.name(), "state", st.State, "problem", st.Problem, "detail", st.Detail, r.remedy(st))
	default:
		r.log.Warn("runner gets no jobs", "runner", r.name(), "state", st.State, "problem", st.Problem, "detail", st.Detail, r.remedy(st))
	}
	if st.Draining != before.Draining {
		r.log.Info("runner's drain has changed", "runner", r.name(), "draining", st.Draining, "by", "operator")
	}
}

// remedy is what helps a runner without jobs as an attribute of the log, which leaves an
// empty one out: where nobody has said.
func (r *Runner) remedy(st wire.Standing) slog.Attr {
	if r.cfg.Remedy == nil {
		return slog.Attr{}
	}
	return slog.String("hint", r.cfg.Remedy(r.name(), st))
}

// A token's life is watched at the wall's clock, which may be set and goes on
// while the host sleeps: so it is looked at now and then, whatever is left.
const (
	lifeCheckMin = 10 * time.Millisecond
	lifeCheckMax = 5 * time.Minute
)

// watchLife warns when the token in use has a quarter and a tenth of its life
// left, until ctx ends. What happens at its end is the server's to say.
func (r *Runner) watchLife(ctx context.Context) {
	var of wire.Standing // the token that low is of
	low := 0
	timer := time.NewTimer(time.Hour)
	timer.Stop()
	defer timer.Stop()
	for {
		select {
		case <-r.standing.fresh:
		case <-timer.C:
		case <-ctx.Done():
			return
		}
		timer.Stop()
		last, _ := r.standing.now()
		now := r.waits.now()
		if !last.Issued.Equal(of.Issued) || !last.Expiry.Equal(of.Expiry) || last.Source == "" {
			of, low = *last, 0
		}
		next, level := lifeLeft(last.Issued, last.Expiry, now)
		if last.Source == "" {
			next, level = 0, 0
		}
		if level != 0 && (low == 0 || level < low) {
			low = level
			r.log.Warn("token expires soon", "runner", r.name(), "source", last.Source, "expires_at", last.Expiry,
				"left", last.Expiry.Sub(now).Round(time.Second), "hint", "put a new one of `waypoint runner token` into "+r.cfg.Tokens.file()+", or: waypoint runner adopt "+r.name())
		}
		r.standing.mu.Lock()
		r.standing.low = level
		r.standing.mu.Unlock()
		r.retell()
		if next > 0 {
			timer.Reset(min(max(next, lifeCheckMin), lifeCheckMax))
		}
	}
}

// lifeLeft is when to look again at a token's life, 0 never, and of how many
// percent, 25 or 10, it has less left; 0 where it has more.
func lifeLeft(issued, expiry, now time.Time) (next time.Duration, low int) {
	life, left := expiry.Sub(issued), expiry.Sub(now)
	switch {
	case life <= 0:
		return 0, 0
	case left > life/4:
		return left - life/4, 0
	case left > life/10:
		return left - life/10, 25
	case left > 0:
		return left, 10
	}
	return 0, 10
}
