package store

import (
	"context"
	"fmt"
	"math/rand/v2"
	"runtime"
	"runtime/debug"
	"time"

	"github.com/waypointd/waypoint/mux/wire"
)

const (
	maxBatch   = 256 // callers in one transaction
	maxRepeats = 10  // of a batch that others made roll back
)

// op is what one caller wants done.
type op struct {
	ctx  context.Context
	f    func(tx *Tx) error
	raw  func(c *session) error // instead of f: outside of a transaction
	err  error                  // of the present try
	done chan error             // room for one; the committer sends, once
}

// Update runs f in a transaction with others waiting, each in its own
// savepoint; durable when nil is returned. f must be a pure function of the
// transaction: it may be run again, and what it leaves in variables counts
// only when Update has returned nil. A caller whose context ends before its
// turn has changed nothing; if it ends later Update returns at once, and f may
// still be running and be committed. A full disk is Unavailable ("no space
// left …"), and rolled back.
func (s *Store) Update(ctx context.Context, f func(tx *Tx) error) error {
	return s.submit(ctx, &op{ctx: ctx, f: f, done: make(chan error, 1)})
}

func (s *Store) submit(ctx context.Context, o *op) error {
	if err := s.deadErr(); err != nil {
		return err
	}
	select {
	case s.ops <- o:
	case <-s.quit:
		return wire.Errorf(wire.Unavailable, "store is closed")
	case <-ctx.Done():
		return fmt.Errorf("wait for the store: %w", context.Cause(ctx))
	}
	select {
	case err := <-o.done:
		return err
	case <-ctx.Done():
		select {
		case err := <-o.done:
			return err
		default:
			return fmt.Errorf("wait for the store: %w", context.Cause(ctx))
		}
	}
}

// committer takes what callers want and commits it, a batch at a time.
type committer struct {
	s *Store
	c *session // nil until connected
}

func (c *committer) run() {
	defer func() {
		if c.c != nil {
			c.c.close()
		}
	}()
	batch := make([]*op, 0, maxBatch)
	for {
		clear(batch)
		batch = batch[:0]
		match := false
		select {
		case o := <-c.s.ops:
			batch = append(batch, o)
		case <-c.s.kick:
			match = true
		case <-c.s.quit:
			return
		}
		// Let those run whom the last commit has just answered: what they ask
		// for next then shares this transaction.
		if f := c.s.cfg.Faults; f != nil {
			f.Gather()
		} else {
			runtime.Gosched()
		}
	gather:
		for len(batch) < maxBatch {
			select {
			case o := <-c.s.ops:
				batch = append(batch, o)
			case <-c.s.kick:
				match = true
			default:
				break gather
			}
		}
		c.commit(batch, match)
	}
}

// commit answers every op.
func (c *committer) commit(batch []*op, match bool) {
	ops := batch[:0]
	for _, o := range batch {
		if o.raw != nil {
			o.done <- c.runRaw(o)
			continue
		}
		ops = append(ops, o)
	}
	if len(ops) > 0 || match {
		c.transact(ops, match, true)
	}
}

func (c *committer) runRaw(o *op) error {
	if err := c.connect(); err != nil {
		return err
	}
	if err := o.raw(c.c); err != nil {
		switch v := c.s.engine.judge(err); v {
		case fatal:
			return c.s.fail(err)
		case callersOwn:
			return err
		default:
			return c.s.refusal(v, err)
		}
	}
	return nil
}

// transact runs ops in transactions until each has its answer.
func (c *committer) transact(ops []*op, match, mayMatch bool) {
	for repeats := 0; ; repeats++ {
		v, err, byMatch := c.try(ops, match, mayMatch)
		if err == nil {
			if match && len(ops) == 1 && ops[0].err != nil {
				// A lone caller's failure has taken the transaction with it.
				c.transact(nil, match, mayMatch)
			}
			c.s.hasRoom(time.Now())
			return
		}
		if v == noSpace {
			c.s.isFull(time.Now(), err)
		}
		switch {
		case v == fatal:
			err = c.s.fail(err)
		case byMatch && v == noSpace:
			// The callers must not suffer for it; what is ready stays so.
			mayMatch, match = false, false
			if len(ops) == 0 {
				return
			}
			continue
		case v == noSpace && len(ops) > 1:
			// The small ones may still find room: the end of a job beside a
			// megabyte of output.
			for i, o := range ops {
				c.transact([]*op{o}, match && i == len(ops)-1, mayMatch)
			}
			return
		case (v == repeat || v == reconnect) && repeats < maxRepeats:
			if v == reconnect && c.c != nil {
				c.c.discard()
				c.c = nil
			}
			select {
			case <-time.After(time.Duration(1+rand.Int64N(10<<min(repeats, 5))) * time.Millisecond):
				continue
			case <-c.s.quit:
				err = c.s.refusal(v, err)
			}
		default:
			err = c.s.refusal(v, err)
		}
		for _, o := range ops {
			o.done <- err
		}
		return
	}
}

// try is one transaction. With a nil error all is committed and answered;
// otherwise all is rolled back and the verdict says what follows. byMatch
// tells that Match was to blame.
func (c *committer) try(ops []*op, match, mayMatch bool) (v verdict, err error, byMatch bool) {
	s := c.s
	if err := s.deadErr(); err != nil {
		return callersOwn, err, false
	}
	if err := c.connect(); err != nil {
		return s.engine.judge(err), err, false
	}
	if f := s.cfg.Faults; f != nil {
		if err := f.Begin(len(ops)); err != nil {
			return noSpace, err, false
		}
	}
	began := time.Now()
	if err := c.c.command(s.engine.begin()); err != nil {
		return s.engine.judge(err), err, false
	}
	var (
		changed Changes
		jobs    set
		logs    set
		news    set
		locked  bool
		kept    int
		done    func(bool)
	)
	ready := match
	matching := false
	abort := func() {
		// A transaction that the database has already rolled back gives an
		// error here, which says nothing new.
		c.c.command("ROLLBACK")
		if done != nil {
			done(false)
		}
		if matching {
			s.matchMu.Unlock()
		}
	}
	alone := len(ops) == 1 // needs no savepoint: there is nobody else to protect
	for _, o := range ops {
		o.err = nil
		if o.ctx != nil && o.ctx.Err() != nil {
			o.err = fmt.Errorf("wait for the store: %w", context.Cause(o.ctx))
			continue
		}
		tx := &Tx{s: s, c: c.c, locked: locked}
		v, err := c.savepoint(tx, alone, func() error { return o.f(tx) })
		if v != callersOwn {
			abort()
			return v, err, false
		}
		locked = tx.locked && (err == nil || locked) // a lock taken behind a savepoint goes with it
		if err != nil {
			o.err = err
			continue
		}
		kept++
		ready = ready || tx.ready
		for _, id := range tx.jobs.list {
			jobs.add(id)
		}
		for _, id := range tx.logs.list {
			logs.add(id)
		}
		for _, what := range tx.news.list {
			news.add(what)
		}
		changed.Ended = append(changed.Ended, tx.ended...)
	}
	if alone && ops[0].err != nil {
		abort()
		ops[0].done <- ops[0].err
		return callersOwn, nil, false
	}
	if ready && mayMatch && s.cfg.Match != nil && !s.isShort() {
		tx := &Tx{s: s, c: c.c, locked: locked}
		// The database's lock first, as others that wait for matchMu hold it.
		if err := tx.lockRules(); err != nil {
			abort()
			return s.engine.judge(tx.err), err, false
		}
		s.matchMu.Lock()
		matching = true
		v, err := c.savepoint(tx, false, func() (err error) {
			done, err = s.cfg.Match(tx)
			return err
		})
		if v != callersOwn {
			abort()
			return v, err, true
		}
		if err != nil {
			s.cfg.Logger.Error("hand out jobs", "error", err)
			if done != nil {
				done(false)
				done = nil
			}
		} else {
			for _, id := range tx.jobs.list {
				jobs.add(id)
			}
			changed.Ended = append(changed.Ended, tx.ended...)
			kept++
		}
	}
	if kept == 0 {
		abort()
	} else {
		if v, err := c.notify(Notice{Jobs: jobs.list, Logs: logs.list, News: news.list}, ready); err != nil {
			abort()
			return v, err, false
		}
		var err error
		made := s.cfg.Faults != nil && s.cfg.Faults.Commit != nil
		if made {
			err = s.cfg.Faults.Commit()
		}
		if err == nil {
			made, err = false, c.c.command("COMMIT")
		}
		if err != nil {
			v := s.engine.judge(err)
			if made || v == reconnect || v == callersOwn {
				v, err = fatal, fmt.Errorf("outcome of a commit is unknown: %w", err)
			}
			abort()
			return v, err, false
		}
		if done != nil {
			done(true)
		}
		if matching {
			s.matchMu.Unlock()
		}
		if s.cfg.Counted != nil {
			s.cfg.Counted(len(ops), time.Since(began))
		}
		changed.Jobs, changed.Logs = jobs.list, logs.list
		if s.cfg.Changed != nil && (len(changed.Jobs) > 0 || len(changed.Logs) > 0) {
			s.tellMu.Lock()
			s.cfg.Changed(changed)
			s.tellMu.Unlock()
		}
	}
	for _, o := range ops {
		o.done <- o.err
	}
	return callersOwn, nil, false
}

// savepoint runs f so that its error, or one of the database that it met,
// undoes what it did and nothing else. A verdict other than callersOwn means
// that the whole transaction is lost.
func (c *committer) savepoint(tx *Tx, alone bool, f func() error) (verdict, error) {
	judge := func(err error) (verdict, error) { return c.s.engine.judge(err), err }
	if !alone {
		if err := c.c.command("SAVEPOINT caller"); err != nil {
			return judge(err)
		}
	}
	err := survive(f)
	if tx.err != nil {
		if v := c.s.engine.judge(tx.err); v != callersOwn {
			return v, tx.err
		}
		if err == nil {
			err = tx.err
		}
	}
	if alone {
		return callersOwn, err
	}
	if err != nil {
		if rerr := c.c.command("ROLLBACK TO SAVEPOINT caller"); rerr != nil {
			return judge(rerr)
		}
	}
	if rerr := c.c.command("RELEASE SAVEPOINT caller"); rerr != nil {
		return judge(rerr)
	}
	return callersOwn, err
}

// survive makes an error of a panic in what one caller wants done, as a call does
// of one in its handler: the others, whom this process is for as well, go on.
func survive(f func() error) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("panicked: %v\n%s", v, debug.Stack())
		}
	}()
	return f()
}

func (c *committer) connect() error {
	if c.c != nil {
		return nil
	}
	session, err := newSession(context.Background(), c.s.writer)
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	c.c = session
	return nil
}

// refusal is what callers are told of a verdict.
func (s *Store) refusal(v verdict, err error) error {
	switch v {
	case noSpace:
		return wire.Errorf(wire.Unavailable, "no space left for the store (%s)", s.engine.describe()).
			WithHint("make room; what was stored is safe")
	case busy:
		return wire.Errorf(wire.Unavailable, "store is busy: %v", err)
	case repeat:
		return wire.Errorf(wire.Unavailable, "store could not place the change among others: %v", err)
	case reconnect:
		return wire.Errorf(wire.Unavailable, "database is out of reach: %v", err)
	}
	return err
}

// roomAfter is how long nothing was refused for want of room when the log says
// that there is some again: small changes fit in between.
const roomAfter = 10 * time.Second

// isFull says, once, that there is no room.
func (s *Store) isFull(now time.Time, err error) {
	if s.fullAt.Swap(&now) == nil {
		s.cfg.Logger.Error("store is full: jobs and output wait for room", "store", s.engine.describe(), "error", err)
		s.roomChanged()
	}
}

// hasRoom says, once, that there is room again.
func (s *Store) hasRoom(now time.Time) {
	if at := s.fullAt.Load(); at != nil && now.Sub(*at) > roomAfter && s.fullAt.CompareAndSwap(at, nil) {
		s.saysRoom()
	}
}

func (s *Store) roomChanged() {
	if s.cfg.Room != nil {
		s.cfg.Room()
	}
}

// Full reports whether writes are refused for want of room, or were a moment ago.
func (s *Store) Full() bool { return s.fullAt.Load() != nil }

// fail ends the store's life: nothing is written or read any more.
func (s *Store) fail(cause error) error {
	s.deadOnce.Do(func() {
		var err error = wire.Errorf(wire.Internal, "store is not trusted any more: %v", cause)
		s.dead.Store(&err)
		s.cfg.Logger.Error("store is not trusted any more", "error", cause)
		if s.cfg.Fatal != nil {
			s.cfg.Fatal(cause)
		}
	})
	return s.deadErr()
}

// Trusted reports whether nothing fatal has happened.
func (s *Store) Trusted() bool { return s.deadErr() == nil }

func (s *Store) deadErr() error {
	if p := s.dead.Load(); p != nil {
		return *p
	}
	return nil
}
