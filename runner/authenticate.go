package runner

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/waypointd/waypoint/mux"
	"github.com/waypointd/waypoint/mux/wire"
)

// Reload looks at the tokens now: one that is new is shown to the server.
func (r *Runner) Reload() { poke(r.tokens.stir) }

// watchTokens looks at the tokens whenever their file changes, until ctx ends;
// also while there is no session: a new token ends a pause.
func (r *Runner) watchTokens(ctx context.Context) {
	if err := r.cfg.Tokens.Dir.WatchToken(ctx, r.Reload); err != nil && ctx.Err() == nil {
		r.log.Error("token file is not watched any more", "error", err, "hint", "send SIGHUP after a change of it")
	}
}

// look reads the sources, and says what is wrong with them where that is new.
func (r *Runner) look() sighting {
	s := r.cfg.Tokens.look()
	c := &r.tokens
	c.mu.Lock()
	said := c.said
	c.mu.Unlock()
	said = s.say(r.log, said)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.said = said
	return s
}

// granted takes the token of an adoption or of its renewal.
func (r *Runner) granted(g wire.Grant) {
	claims, err := wire.ReadToken(g.Token)
	if err == nil && claims.Kind != wire.RunnerToken {
		err = wire.Errorf(wire.BadUsage, "it is no runner's")
	}
	if err != nil {
		r.log.Error("server has granted a token that is none", "error", err)
		return
	}
	r.tokens.granted(g.Token)
	poke(r.tokens.stir)
}

// tend keeps the server's view of the tokens up to date for as long as a
// session lives: it stores what is granted, shows what is new, and tries again
// what did not succeed. Jobs and streams go on meanwhile. What the server could
// not use it is asked about again now and then: its clock may have been set.
func (r *Runner) tend(ctx context.Context, s *mux.Session) {
	call := backoff{min: r.waits.retryMin, max: r.waits.retryMax}
	disk := backoff{min: r.waits.storeMin, max: r.waits.storeMax}
	timer := time.NewTimer(time.Hour)
	timer.Stop()
	defer timer.Stop()
	pause := func() time.Duration { return r.waits.anew + rand.N(r.waits.anew/4+1) }
	anew := time.NewTimer(pause())
	defer anew.Stop()
	if r.tokens.unstored() {
		poke(r.tokens.stir)
	}
	for {
		select {
		case <-r.tokens.stir:
		case <-timer.C:
		case <-anew.C:
			anew.Reset(pause())
			if st, _ := r.standing.now(); st == nil || st.Admitted || !r.tokens.owe() {
				continue
			}
		case <-ctx.Done():
			return
		}
		var again time.Duration
		seen, err := r.store(r.look())
		if err != nil {
			again = disk.next()
		} else {
			disk.last = 0
		}
		switch err := r.authenticate(ctx, s, seen); {
		case err == nil:
			call.last = 0
		case ctx.Err() != nil || s.Err() != nil:
			return // the next hello does it
		case wire.KindOf(err) == wire.Unavailable, wire.KindOf(err) == wire.Timeout, wire.KindOf(err) == wire.Internal:
			pause := call.next()
			r.log.Warn("tokens cannot be shown to the server now", "error", err, "again_in", pause)
			if again == 0 || pause < again {
				again = pause
			}
		default:
			r.tokens.settled()
			r.log.Error("server does not look at tokens", because(err)...)
		}
		if timer.Stop(); again > 0 {
			timer.Reset(again)
		}
	}
}

// store writes a grant that is not stored yet to the token file, and returns
// what the sources hold then. An error means that it is used from memory, and
// to be tried again.
func (r *Runner) store(s sighting) (sighting, error) {
	file := s.text(wire.SourceFile)
	text := r.tokens.toStore(file)
	if text == "" {
		return s, nil
	}
	err := error(wire.Errorf(wire.BadUsage, "this runner has no state directory for its token"))
	if r.cfg.Tokens.Dir != nil {
		err = r.cfg.Tokens.Dir.WriteToken(text)
	}
	r.tokens.placed(text, file, err)
	if err != nil {
		r.log.Error("granted token cannot be stored: it is used from memory, and lost when this process ends", because(err)...)
		return s, err
	}
	r.log.Info("granted token stored", "runner", r.name())
	return r.look(), nil
}

// authenticate shows the tokens to the server, where there is something that
// it has not seen. An error means that they are still to be shown.
func (r *Runner) authenticate(ctx context.Context, s *mux.Session, seen sighting) error {
	req := r.tokens.request(seen)
	if req == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, r.waits.call)
	defer cancel()
	before := r.standing.count()
	var st wire.Standing
	if err := s.Call(ctx, wire.MethodAuthenticate, req, &st); err != nil {
		return err
	}
	r.tokens.settled()
	r.stand(st, &before)
	return nil
}
