package runner

import (
	"context"
	"time"

	"github.com/waypointd/waypoint/mux/wire"
)

// drainFlag is the flag in the state directory that says that this host's
// people want no jobs here. It outlives the agent.
const drainFlag = "draining"

// loadDrain takes up the drain of an agent before this one. Where that cannot
// be known, no jobs are taken: to resume is one command.
func (r *Runner) loadDrain() {
	if r.cfg.Tokens.Dir == nil {
		return
	}
	on, err := r.cfg.Tokens.Dir.Flag(drainFlag)
	if err != nil {
		r.log.Error("it cannot be known whether this host is drained: no jobs are taken", "error", err, "hint", "waypoint runner resume")
		on = true
	}
	if on {
		r.log.Warn("this host is drained: no jobs are taken", "hint", "waypoint runner resume")
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.drained = on
}

// drainHost stops the taking of jobs on this host, or lets it go on, durably.
// Conflict: it is resumed here, and an operator has drained it at the server.
func (r *Runner) drainHost(on bool) error {
	if r.cfg.Tokens.Dir == nil {
		return wire.Errorf(wire.BadUsage, "drain runner: it has no state directory")
	}
	r.draining.Lock()
	defer r.draining.Unlock()
	if err := r.cfg.Tokens.Dir.SetFlag(drainFlag, on); err != nil {
		return err
	}
	if r.setDrain(&r.drained, on) {
		r.log.Info("runner's drain has changed", "runner", r.name(), "draining", on, "by", "host")
	}
	r.tellDrain()
	r.retell()
	if st, online := r.standing.now(); !on && online && st.Draining {
		return wire.Errorf(wire.Conflict, "resume runner %q: an operator has drained it at the server as well", r.name()).
			WithHint("waypoint runner resume %s", r.name())
	}
	return nil
}

// setDrain sets one of the marks that keep jobs away, and reports whether that
// changed it. When it returns, no job is being taken that the mark forbids.
func (r *Runner) setDrain(mark *bool, on bool) bool {
	r.intake.Lock()
	defer r.intake.Unlock()
	r.mu.Lock()
	defer r.mu.Unlock()
	was := *mark
	*mark = on
	return was != on
}

// wantsNothing reports whether the server is to give nothing more for now.
func (r *Runner) wantsNothing() bool {
	unsupervised := r.unsupervised() != ""
	r.mu.Lock()
	defer r.mu.Unlock()
	return unsupervised || r.stopping || r.drained || r.sick != nil || r.cfg.Once && len(r.held) > 0
}

// tellDrain tells the server whether to give nothing more, where that has changed.
func (r *Runner) tellDrain() {
	r.mu.Lock()
	w := r.work
	r.mu.Unlock()
	if w != nil {
		w.sayDrain(r)
	}
}

// stop takes nothing more and ends the Run once no attempt is left; or, where
// there is no session for a while, once none is left that runs: what has ended
// is reported, and what has not begun is settled, by the next agent on this
// directory.
func (r *Runner) stop() {
	if r.cfg.Managed {
		r.handOver()
		return
	}
	r.setDrain(&r.stopping, true)
	r.tellDrain()
	r.retell()
	r.passOrders()
	look := time.NewTicker(max(r.waits.apart/10, time.Millisecond))
	defer look.Stop()
	var apart time.Time // since when there has been no session; zero while there is one
	for {
		r.mu.Lock()
		n, released := len(r.held), r.released
		r.mu.Unlock()
		switch {
		case n == 0:
			r.end(errDrained)
			return
		case r.uplink.up():
			apart = time.Time{}
		case apart.IsZero():
			apart = time.Now()
		case time.Since(apart) >= r.waits.apart && r.cfg.Kind == wire.KindRemote && r.dormant():
			r.log.Warn("stopping without the server: what it has not been told is kept and told at the next start", "jobs", n)
			r.end(errDrained)
			return
		}
		select {
		case <-released:
		case <-look.C:
		case <-r.ctx.Done():
			return
		}
	}
}

// dormant reports whether nothing that is held runs: it has ended, and its
// result is on disk, or it may not start before the server has said so.
func (r *Runner) dormant() bool {
	for _, a := range r.all() {
		if !a.dormant() {
			return false
		}
	}
	return true
}

// awaitIdle waits until no attempt is held.
func (r *Runner) awaitIdle(ctx context.Context) error {
	for {
		r.mu.Lock()
		n, released := len(r.held), r.released
		r.mu.Unlock()
		if n == 0 {
			return nil
		}
		select {
		case <-released:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// passOrders gives assignments that were under way when Drain was said the time
// to arrive and be given back: they come before the answer to a ping. It is a
// courtesy, so it is bounded; the server's acknowledgement deadline is behind it.
func (r *Runner) passOrders() {
	ctx, cancel := context.WithTimeout(r.ctx, time.Second)
	defer cancel()
	r.mu.Lock()
	connected := r.work != nil
	r.mu.Unlock()
	if !connected {
		return
	}
	if s, err := r.uplink.wait(ctx); err == nil {
		s.Call(ctx, wire.MethodPing, nil, nil)
	}
}
