package daemon

import (
	"context"
	"errors"
	"io"
	"sync/atomic"
	"time"

	"github.com/waypointd/waypoint/daemon/store"
	"github.com/waypointd/waypoint/mux"
	"github.com/waypointd/waypoint/mux/wire"
)

// missedHeartbeats is how many may fail to come before a session is given up.
const missedHeartbeats = 3

// errReplaced is why a work stream ends whose runner has come back on another.
var errReplaced = wire.Errorf(wire.Conflict, "the runner has connected anew").
	WithHint("each agent needs a state directory of its own")

// runnerWork serves a runner's work stream: what it holds is sorted first,
// then orders go down and events come up until one side is gone.
func (s *Server) runnerWork(ctx context.Context, st *mux.Stream) error {
	st.Forget() // there is nothing in the body
	var first wire.WorkEvent
	if err := st.RecvMsg(&first); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if first.Begin == nil {
		return wire.Errorf(wire.Conflict, "a work stream begins with what the runner holds")
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	v := st.Peer().Data.(*visitor)
	if err := v.calls.Wait(ctx); err != nil {
		return wire.Errorf(wire.Unavailable, "runner %q begins to work too often", v.id)
	}
	m := &member{visitor: v, orders: newOrders(), replaced: cancel, heartbeat: s.cfg().Heartbeat}
	if err := s.ask(ctx, m); err != nil {
		return err
	}
	m.heard.Store(s.uptime())
	if err := s.enter(ctx, m); err != nil {
		return err
	}
	defer s.exit(m)
	if err := s.begin(ctx, m, *first.Begin); err != nil {
		return err
	}
	events := make(chan error, 1)
	s.work.Go(func() { events <- s.hear(ctx, st, m) })
	err := s.speak(ctx, st, m, events)
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return err
}

// enter makes the runner a member. Where its id has a session already, that
// one has half again a heartbeat's time to be heard: if it is, the newcomer is
// a copy and refused; if not, it is replaced.
func (s *Server) enter(ctx context.Context, m *member) error {
	deadline := time.NewTimer(m.heartbeat * 3 / 2)
	defer deadline.Stop()
	poll := time.NewTicker(min(max(m.heartbeat/20, time.Millisecond), time.Second))
	defer poll.Stop()
	since, late := s.uptime(), false
	for {
		other := s.fleet.join(m)
		if other == nil {
			break
		}
		if other.heard.Load() > since {
			return wire.Errorf(wire.Conflict, "runner %q is connected already", m.id).
				WithHint("each agent needs a state directory of its own")
		}
		if late { // also one that has only just taken the place of another
			other.replaced(errReplaced)
			s.fleet.leave(other, s.now())
			continue
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-poll.C:
		case <-deadline.C:
			late = true
		}
	}
	if s.fleet.isOver(m.visitor) { // it has been replaced itself, or forgotten, while it waited
		s.fleet.leave(m, s.now())
		return m.why
	}
	s.tell()
	attrs := []any{"runner", m.id, "kind", m.kind, "peer", m.peer}
	if s.fleet.pending(m.visitor) {
		s.strangers.of(m.peerGroup).Info("runner connected", attrs...)
	} else {
		s.log.Info("runner connected", attrs...)
	}
	return nil
}

// exit makes the runner away, and keeps when it was last seen.
func (s *Server) exit(m *member) {
	now := s.now()
	s.fleet.leave(m, now)
	s.wakeClock()
	s.callRoll()
	s.tell()
	if m.kind == wire.KindRemote {
		// Also of a server that is ending, which closes its store after this.
		if err := s.store.Update(context.WithoutCancel(s.ctx), func(tx *store.Tx) error { return tx.SeenRunner(m.id, now) }); err != nil {
			s.log.Warn("runner's leave not recorded", "runner", m.id, "error", err)
		}
	}
	if s.fleet.pending(m.visitor) {
		s.strangers.of(m.peerGroup).Info("runner disconnected", "runner", m.id)
	} else {
		s.log.Info("runner disconnected", "runner", m.id)
	}
}

// begin sorts what the runner holds and what the store gave it.
func (s *Server) begin(ctx context.Context, m *member, b wire.WorkBegin) error {
	if len(b.Spool) > wire.MaxSpool {
		return wire.Errorf(wire.BadUsage, "the name of a spool has %d bytes; %d are allowed", len(b.Spool), wire.MaxSpool)
	}
	d, err := s.welcome(ctx, m, b)
	if err != nil {
		return err
	}
	err = errors.Join(
		s.requeue(d.requeue, "its runner does not have it"),
		s.lose(d.lost, "its runner does not have it any more"),
		s.lose(d.forgotten, "its runner has lost its records, so nobody knows whether it was started"),
	)
	for _, ref := range d.started {
		s.settleSoon(ref, m.id)
	}
	s.wakeClock()
	s.store.Kick()
	return err
}

// welcome says how the runner stands and what it goes on with, and hands over
// what was granted to it. All of that may have changed since its hello.
func (s *Server) welcome(ctx context.Context, m *member, b wire.WorkBegin) (d differences, err error) {
	if m.kind == wire.KindLocal {
		if err := s.takeIn(ctx, m); err != nil {
			return d, err
		}
		return s.fleet.reconcile(m, b, m.heartbeat, s.now()), nil
	}
	done, err := s.turns.take(ctx, m.id)
	if err != nil {
		return d, err
	}
	defer done()
	tokens, over := s.fleet.tokens(m.visitor)
	if over {
		return d, errForgotten
	}
	rec, out, err := s.arrive(ctx, m.visitor, again(m.visitor, tokens, s.now()), "")
	if err != nil {
		return d, err
	}
	if err := s.takeIn(ctx, m); err != nil {
		return d, err
	}
	if out.Refused != nil && !s.fleet.mayReport(m.id) {
		return d, out.Refused
	}
	d = s.fleet.reconcile(m, b, m.heartbeat, s.now())
	s.handOver(m.visitor, rec)
	return d, nil
}

// speak sends orders and heartbeats until the stream, the runner or the server ends.
func (s *Server) speak(ctx context.Context, st *mux.Stream, m *member, events <-chan error) error {
	beat := time.NewTicker(m.heartbeat)
	defer beat.Stop()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case err := <-events:
			return err
		case <-m.orders.ready:
			said, over := m.orders.take()
			for _, o := range said {
				if err := st.Send(o); err != nil {
					return err
				}
			}
			if over != nil {
				return over
			}
		case <-beat.C:
			// Of one that is merely slow the heartbeat waits behind its jobs' output.
			if silence := min(time.Duration(s.uptime()-m.heard.Load()), st.Silence()); silence > missedHeartbeats*m.heartbeat {
				return wire.Errorf(wire.Timeout, "nothing heard from the runner for %s", silence.Round(time.Millisecond))
			}
			if err := st.Send(wire.WorkOrder{Heartbeat: true}); err != nil {
				return err
			}
		}
	}
}

// hear takes a runner's events until its stream ends. One that others are told of
// waits for its turn: a runner may say another thing with each.
func (s *Server) hear(ctx context.Context, st *mux.Stream, m *member) error {
	for {
		var e wire.WorkEvent
		if err := st.RecvMsg(&e); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		m.heard.Store(s.uptime())
		if m.orders.waiting() > maxOrders {
			st.Close() // its sender waits for the runner to read
			return wire.Errorf(wire.TooLarge, "the runner does not read its orders")
		}
		switch {
		case e.Ack != nil:
			s.acknowledged(m, *e.Ack)
		case e.Nack != nil:
			s.refused(m, *e.Nack)
		case e.Drain != nil:
			if !s.fleet.drain(m, *e.Drain) {
				continue
			}
			if err := m.calls.Wait(ctx); err != nil {
				return err
			}
			s.callRoll()
			attrs := []any{"runner", m.id, "draining", *e.Drain, "by", "host"}
			if s.fleet.pending(m.visitor) {
				s.strangers.of(m.peerGroup).Info("runner's drain has changed", attrs...)
			} else {
				s.log.Info("runner's drain has changed", attrs...)
			}
			s.store.Kick()
		case e.Holds != nil:
			if s.fleet.wait(m, e.Holds.Waits) {
				if err := m.calls.Wait(ctx); err != nil {
					return err
				}
				s.callRoll()
			}
			if err := s.lose(s.fleet.missing(m, e.Holds.Jobs), "its runner does not have it any more"); err != nil {
				s.log.Warn("lost jobs not ended yet", "runner", m.id, "error", err)
			}
		case e.Begin != nil:
			return wire.Errorf(wire.Conflict, "the work stream has begun already")
		}
	}
}

// settleDelay is how long "running" may wait for a commit of something else
// to ride along with: a job that ends within it costs no commit for it.
const settleDelay = 50 * time.Millisecond

// acknowledged lets a runner start an attempt, unless it has been taken back.
func (s *Server) acknowledged(m *member, ref wire.JobRef) {
	start, drop, durable := s.fleet.ack(m, ref, s.now())
	if drop {
		m.orders.put(wire.WorkOrder{Drop: &ref})
	}
	if !start {
		return
	}
	m.orders.put(wire.WorkOrder{Start: &ref})
	s.log.Info("job started", "job", ref.Job, "attempt", ref.Attempt, "runner", m.id)
	if !durable {
		s.settleSoon(ref, m.id)
	}
}

func (s *Server) settleSoon(ref wire.JobRef, runner string) {
	time.AfterFunc(settleDelay, func() { s.settle(ref, runner) })
}

// settle makes "running" durable if nothing else has by now.
func (s *Server) settle(ref wire.JobRef, runner string) {
	if _, pending := s.fleet.started(ref); !pending {
		return
	}
	err := s.store.Update(s.ctx, func(tx *store.Tx) error {
		kept, err := s.settleIn(tx, ref, runner)
		if err == nil && !kept {
			return wire.Errorf(wire.Unavailable, "job %s is not kept by this server", ref.Job)
		}
		return err
	})
	if err != nil && s.ctx.Err() == nil {
		s.log.Warn("job start not recorded yet", "job", ref.Job, "attempt", ref.Attempt, "runner", runner, "error", err)
		if wire.KindOf(err) == wire.Unavailable {
			time.AfterFunc(clockRetry, func() { s.settle(ref, runner) })
		}
		return
	}
	s.fleet.settled(ref)
}

// settleIn is settle as part of another transaction. A Conflict is none of its
// business: the timer and a report may both come to it, even in one
// transaction, and the second finds the job running; whether the attempt is
// still the runner's is for what follows to find out. Where another server keeps
// the job (its runner may have begun anew there, and not have it) nothing is
// written, and kept is false.
func (s *Server) settleIn(tx *store.Tx, ref wire.JobRef, runner string) (kept bool, err error) {
	at, pending := s.fleet.started(ref)
	if !pending {
		return true, nil
	}
	if err := tx.Keeps(ref.Job); err != nil {
		if errors.Is(err, store.ErrNotKept) {
			return false, nil
		}
		return true, err
	}
	if err := tx.Ack(ref, runner, at); wire.KindOf(err) != wire.Conflict {
		return true, err
	}
	return true, nil
}

// refused gives an assignment back to the queue. A runner that refuses rests
// for a while, longer each time, so that a broken one does not spin the queue.
// What it does not have is not its to refuse. One that has acknowledged it keeps
// it until it is told to drop it: where its start is on record, it stays the
// runner's, which is to start it or not to have it.
func (s *Server) refused(m *member, n wire.Nack) {
	ok, acked := s.fleet.returned(m, n.JobRef)
	if !ok {
		return
	}
	s.log.Warn("job refused", "job", n.Job, "attempt", n.Attempt, "runner", m.id, "why", plain(n.Error))
	s.fleet.rest(m, s.now())
	err := s.store.Update(s.ctx, func(tx *store.Tx) error {
		if err := tx.Keeps(n.Job); err != nil { // the runner may have said to another server that it has it
			return err
		}
		return tx.Requeue(n.JobRef, m.id, s.now())
	})
	if k := wire.KindOf(err); k != "" && k != wire.NotFound {
		s.fleet.kept(n.JobRef)
		s.log.Warn("job not given back yet", "job", n.Job, "attempt", n.Attempt, "runner", m.id, "error", err)
		return // still live here: due at its deadline, told missing by a heartbeat, or started after all
	}
	s.fleet.end(n.JobRef, acked)
	s.store.Kick()
	s.wakeClock()
}

// heardAt is when a member last said something, as uptime.
type heardAt = atomic.Int64

// uptime is how long the server runs, in nanoseconds. The host's clock may be
// set; this one is not.
func (s *Server) uptime() int64 { return int64(time.Since(s.started)) }
