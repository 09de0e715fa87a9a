package daemon

import (
	"errors"
	"strings"
	"time"

	"github.com/waypointd/waypoint/daemon/store"
	"github.com/waypointd/waypoint/mux/wire"
)

const (
	clockPoll  = 30 * time.Second // a safety net: whatever brings a deadline nearer rings the alarm, whatever makes a job ready has it matched
	clockRetry = time.Second      // after the store refused (a full disk)
	clockLate  = time.Second      // a process that is merely busy may be as late
)

// wakeClock has the clock look again.
func (s *Server) wakeClock() {
	select {
	case s.alarm <- struct{}{}:
	default:
	}
}

// clock ends what time ends: queued jobs that expire, assignments that nobody
// acknowledges, attempts whose runner stays away. That it answers Probe tells
// that it still does.
//
// While a runner is away it looks at each heartbeat, so as to know when this
// process did not run (SIGSTOP, a host that swaps): nobody could come back
// meanwhile, so whoever is away has a whole lease as behind a restart.
func (s *Server) clock() {
	timer := time.NewTimer(0)
	defer timer.Stop()
	planned := s.now()
	for {
		select {
		case <-s.ctx.Done():
			return
		case answered := <-s.pulse:
			close(answered)
			continue
		case <-s.alarm:
		case <-timer.C:
			s.store.Kick()
		}
		now := s.now()
		if late := now.Sub(planned); late > max(s.cfg().Heartbeat, clockLate) && s.fleet.resume(now) {
			s.log.Warn("the server did not run for a while: leases of absent runners begin anew", "late", late.Round(time.Millisecond).String())
		}
		next, err := s.tick(now)
		wait := clockPoll
		if err != nil && s.ctx.Err() == nil {
			s.log.Warn("deadlines could not be kept, trying again", "error", err)
			wait = clockRetry
		} else if !next.IsZero() {
			wait = min(wait, max(0, next.Sub(now)))
		}
		if s.fleet.waits() {
			wait = min(wait, s.cfg().Heartbeat)
		}
		planned = s.now().Add(wait)
		timer.Reset(wait)
	}
}

// tick does what is due now and returns when the next thing will be.
func (s *Server) tick(now time.Time) (time.Time, error) {
	d := s.fleet.due(now)
	if d.rested {
		s.store.Kick()
	}
	if err := errors.Join(
		s.requeue(d.requeue, "not acknowledged"),
		s.lose(d.lost, "its runner was out of contact for longer than "+s.cfg().Lease.String()),
		s.abandon(d.gone, now),
		s.lapse(d.lapsed),
		s.renew(d.renew),
	); err != nil {
		return time.Time{}, err
	}
	for {
		expiry, err := s.store.NextExpiry(s.ctx)
		if err != nil {
			return time.Time{}, err
		}
		if expiry.IsZero() || now.Before(expiry) {
			if d.next.IsZero() || !expiry.IsZero() && expiry.Sub(now) < d.next.Sub(now) { // one by the host's clock, the other perhaps not
				return expiry, nil
			}
			return d.next, nil
		}
		n := 0
		if err := s.store.Update(s.ctx, func(tx *store.Tx) (err error) {
			n, err = tx.Expire(now)
			return err
		}); err != nil {
			return time.Time{}, err
		}
		if n == 0 {
			return now.Add(clockRetry), nil // whatever it is, do not spin on it
		}
		s.log.Info("jobs expired", "count", n)
	}
}

// requeue gives attempts that have not started back to the queue.
func (s *Server) requeue(refs []wire.JobRef, why string) error {
	return s.give(refs, func(tx *store.Tx, ref wire.JobRef) error {
		return tx.Requeue(ref, s.fleet.runnerOf(ref), s.now())
	}, func(ref wire.JobRef, runner string) {
		s.log.Warn("job given back to the queue", "job", ref.Job, "attempt", ref.Attempt, "runner", runner, "why", why)
	})
}

// lose ends attempts that nobody knows anything of any more. One of a command
// line's own runner went with the command, which somebody has killed.
func (s *Server) lose(refs []wire.JobRef, why string) error {
	var remote, local []wire.JobRef
	for _, ref := range refs {
		if strings.HasPrefix(s.fleet.runnerOf(ref), localPrefix) {
			local = append(local, ref)
		} else {
			remote = append(remote, ref)
		}
	}
	const gone = "the command line that ran it is gone"
	return errors.Join(
		s.give(remote, func(tx *store.Tx, ref wire.JobRef) error {
			return tx.Lost(ref, why, s.now())
		}, func(ref wire.JobRef, runner string) {
			s.log.Warn("job lost", "job", ref.Job, "attempt", ref.Attempt, "runner", runner, "why", why)
		}),
		s.give(local, func(tx *store.Tx, ref wire.JobRef) error {
			return tx.Lost(ref, gone, s.now())
		}, func(ref wire.JobRef, runner string) {
			s.log.Info("job lost", "job", ref.Job, "attempt", ref.Attempt, "runner", runner, "why", gone)
		}),
	)
}

// give takes attempts from their runners: f in the store, said in the log, then here. An
// attempt that is not live in the store either is only forgotten here; so is one
// that another server keeps by now, and its runner is told nothing: where that is
// connected here all the same, the keeper is about to change (note), and the
// error is Unavailable.
func (s *Server) give(refs []wire.JobRef, f func(*store.Tx, wire.JobRef) error, said func(ref wire.JobRef, runner string)) error {
	err := together(refs, func(ref wire.JobRef) error {
		runner := s.fleet.runnerOf(ref)
		err := s.store.Update(s.ctx, func(tx *store.Tx) error {
			if err := tx.Keeps(ref.Job); err != nil {
				return err
			}
			return f(tx, ref)
		})
		if errors.Is(err, store.ErrNotKept) {
			s.callRoll()
			if s.fleet.isHere(runner) {
				return wire.Errorf(wire.Unavailable, "job %s is not kept by this server yet", ref.Job)
			}
			s.fleet.disclaim(ref)
			return nil
		}
		switch wire.KindOf(err) {
		case "":
			said(ref, runner)
		case wire.Conflict, wire.NotFound:
		default:
			return err
		}
		s.fleet.end(ref, true)
		s.fleet.settleRejected(runner)
		return nil
	})
	if len(refs) > 0 {
		s.store.Kick()
	}
	return err
}

// giveAtOnce is how many attempts are taken from their runners at a time, so
// that they share commits: a lost network loses all of them together.
const giveAtOnce = 64

// abandon ends the queued jobs of local runners that did not come back: no
// other may take them. One that is connected to another server has come.
func (s *Server) abandon(gone []absence, now time.Time) error {
	for _, g := range gone {
		if s.store.Shared() && strings.HasPrefix(g.runner, localPrefix) {
			at, err := s.store.Session(s.ctx, g.runner)
			if err != nil {
				return err
			}
			if at.Server != s.store.Instance() && s.presence.there(at.Server, now) {
				s.fleet.forget(g)
				continue
			}
		}
		for more := strings.HasPrefix(g.runner, localPrefix) && s.fleet.isAway(g); more; {
			if err := s.store.Update(s.ctx, func(tx *store.Tx) error {
				n, err := tx.Abandon(g.runner, "the command line that was to run it is gone", now)
				more = n > 0
				return err
			}); err != nil {
				return err
			}
		}
		s.fleet.forget(g)
	}
	return nil
}
