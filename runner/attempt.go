package runner

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/waypointd/waypoint/mux/wire"
	"github.com/waypointd/waypoint/runner/supervisor"
)

// stage is how far an attempt has come; its directory says the same.
type stage int

const (
	recorded stage = iota // assignment.json; waits for the server's Start
	started               // confirmed by the server: may be prepared, also again
	given                 // to a supervisor: never again
	ended                 // end.json
)

// What ends an attempt's contexts.
var (
	errDropped  = errors.New("the attempt has been dropped")
	errCanceled = errors.New("the job has been canceled")
	errGivenUp  = errors.New("the server has given the job up")
	errOver     = errors.New("the attempt is over")
)

// errUnbegun says that the supervisor that was to run it has not begun.
var errUnbegun = errors.New("the supervisor has not begun the attempt")

// attempt is one assignment in this runner's hands.
type attempt struct {
	r     *Runner
	job   wire.Assignment
	dir   string
	log   *slog.Logger
	again bool // taken up by this agent: what was prepared before is made anew

	earlier bool   // from before the host's last start
	damaged string // why its record is of no use; "": it is

	ctx      context.Context // ended by a drop, by the Run's end, and when it is over
	stop     context.CancelCauseFunc
	work     context.Context // preparing and finishing: ended by a cancel as well
	stopWork context.CancelCauseFunc

	permitted gate // opened by permit: the server has said Start, or Keep of one that had it
	exited    gate // opened by supervised: the supervisor says that it has ended
	bereaved  gate // opened by bereave: the supervisor that had it is gone
	shipped   gate // opened by ship when it returns
	givenUp   gate // opened by giveUp: the server has given it up; it is ended, and reported late

	cancels chan struct{} // one token: a cancel has come
	unheld  chan struct{} // one token: no supervisor has begun it, nor will
	wake    chan struct{} // one token: the log has grown, or the result is there

	mu     sync.Mutex
	stage  stage             // guarded by mu
	asking bool              // the supervisor is being asked to run it; guarded by mu
	force  bool              // guarded by mu
	result *wire.Result      // guarded by mu
	sent   bool              // the result is on its way: the server may see it end any moment; guarded by mu
	acked  bool              // the server has the result; guarded by mu
	gone   bool              // dropped; guarded by mu
	waits  [waitKinds]string // guarded by mu
	back   bool              // given back on this session, which is to say Drop: no Start counts; guarded by mu
}

func (r *Runner) newAttempt(job wire.Assignment, dir string, s stage) *attempt {
	a := &attempt{
		r: r, job: job, dir: dir, stage: s,
		log:       r.log.With("job", job.Job, "attempt", job.Attempt, "runner", r.name()),
		permitted: newGate(), exited: newGate(), bereaved: newGate(), shipped: newGate(), givenUp: newGate(),
		cancels: make(chan struct{}, 1), unheld: make(chan struct{}, 1), wake: make(chan struct{}, 1),
	}
	a.ctx, a.stop = context.WithCancelCause(r.ctx)
	a.work, a.stopWork = context.WithCancelCause(a.ctx)
	return a
}

// standing is what the server is told of it: whether its start was confirmed,
// and whether it is held at all.
func (a *attempt) standing() (confirmed, live bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.stage > recorded, !a.gone && !a.acked
}

// busy reports whether it takes one of the runner's places. The server counts
// it as ended from the moment it has read the result, before this side knows.
func (a *attempt) busy() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return !a.gone && !a.givenUp.opened() && !a.sent && !a.force
}

// dormant reports whether it waits for nothing but the server.
func (a *attempt) dormant() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.stage == recorded || a.result != nil
}

// permit lets it start: once the server has said so on any session.
func (a *attempt) permit() {
	a.mu.Lock()
	back := a.back
	if a.stage == recorded && !back {
		a.stage = started
	}
	a.mu.Unlock()
	if !back {
		a.permitted.open()
	}
}

// askAgain forgets that it was given back: what the server has not heard on a
// session that was lost it does not heed.
func (a *attempt) askAgain() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.back = false
}

// cancel asks for its end, at once with force.
func (a *attempt) cancel(force bool) {
	a.mu.Lock()
	a.force = a.force || force
	a.mu.Unlock()
	a.log.Info("job is being canceled", "force", force)
	a.stopWork(errCanceled)
	poke(a.cancels)
}

// trouble logs what the job's record says as well, which is how a person who
// waits for a job in this process is told.
func (a *attempt) trouble(what string, args ...any) {
	level := slog.LevelWarn
	if a.r.local() {
		level = slog.LevelInfo
	}
	a.log.Log(context.Background(), level, what, args...)
}

// giveUp ends what runs of it, as the server has given it up. If it was lost and
// this is the first that is heard of it, the server takes what there is to
// say: see ship. Before its start there is nothing.
func (a *attempt) giveUp(why string) {
	a.mu.Lock()
	begun, over := a.stage > recorded, a.gone || a.acked || a.givenUp.opened()
	a.mu.Unlock()
	switch {
	case over:
	case !begun:
		a.drop(why)
	default:
		a.trouble("job given up by the server", "why", why)
		a.givenUp.open()
		a.stopWork(errGivenUp)
		poke(a.cancels)
		a.permitted.open() // for one that had been confirmed to an agent before this one
	}
}

// drop gives it up: it is killed, forgotten and removed, and nothing is said.
func (a *attempt) drop(why string) {
	a.mu.Lock()
	was := a.gone || a.acked
	a.gone = true
	a.mu.Unlock()
	if !was {
		a.trouble("job dropped", "why", why)
		a.stop(errDropped)
	}
}

// supervised takes an event of the supervisor's.
func (a *attempt) supervised(ev supervisor.Event) {
	if ev.Waits != "" {
		ev.Waits = "room on the runner's disk to go on: " + ev.Waits
	}
	a.waitsFor(waitParent, ev.Waits)
	if ev.Ended {
		a.exited.open()
	}
	poke(a.wake)
}

// isGiven reports whether a supervisor was given it and has taken it, as far as
// this side knows.
func (a *attempt) isGiven() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.stage == given && !a.asking
}

// bereave says that the supervisor that had it is gone and no other has it.
func (a *attempt) bereave() { a.bereaved.open() }

// gate is a channel that is closed once, by whoever is first.
type gate struct {
	once *sync.Once
	c    chan struct{}
}

func newGate() gate { return gate{once: new(sync.Once), c: make(chan struct{})} }

func (g gate) open() { g.once.Do(func() { close(g.c) }) }

func (g gate) opened() bool {
	select {
	case <-g.c:
		return true
	default:
		return false
	}
}

// poke leaves a token for whoever waits on c.
func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

func (a *attempt) at() stage {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.stage
}

func (a *attempt) reach(s stage) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.stage = s
}

// live takes the attempt from where it is to its end, or to that of the Run.
// Then it stays held: what this agent says with its last breath is not that it
// has nothing.
func (a *attempt) live() {
	defer a.stop(errOver)
	end, err := a.execute()
	if err == nil {
		err = a.deliver(end)
	}
	switch {
	case err == nil:
		if a.givenUp.opened() {
			a.log.Info("late result handed in")
		}
		a.erase(a.r.ctx)
		a.r.release(a)
		if a.r.cfg.Once {
			a.r.end(errOnce)
		}
	case errors.Is(context.Cause(a.ctx), errDropped):
		if a.discard() {
			a.r.release(a)
		}
	}
}

// execute runs it, or waits for the end of its run. An error means that the
// attempt was dropped or the Run has ended.
func (a *attempt) execute() (*supervisor.End, error) {
	switch at := a.at(); {
	case a.damaged != "":
		a.r.attempts.Go(a.ship)
		return a.condemn()
	case at == ended:
		a.r.attempts.Go(a.ship)
		return a.readEnd()
	case at == given:
		a.r.attempts.Go(a.ship)
		if end, err := a.awaitExit(); !errors.Is(err, errUnbegun) {
			return end, err
		}
		a.reach(started)
	default:
		select {
		case <-a.permitted.c:
		case <-a.ctx.Done():
			return nil, context.Cause(a.ctx)
		}
		a.r.attempts.Go(a.ship)
	}
	for {
		end, err := a.begin()
		if !errors.Is(err, errUnbegun) {
			return end, err
		}
		a.log.Info("job was not begun by its supervisor: it is given to one again")
		a.reach(started)
		a.again = true // the next one's jobs may be another user's
	}
}

// begin prepares it and has a supervisor run it to its end. errUnbegun: that
// supervisor has done nothing of it, and it is to begin again.
func (a *attempt) begin() (*supervisor.End, error) {
	spec, jobs, err := a.ready()
	switch {
	case err == nil:
	case a.ctx.Err() != nil:
		return nil, context.Cause(a.ctx)
	case a.work.Err() != nil:
		return a.conclude(canceledEnd()), nil
	default:
		a.trouble("job cannot be prepared", "error", err)
		a.say("==> " + err.Error())
		return a.conclude(failedEnd(err)), nil
	}
	if end, err := a.submit(jobs, spec); end != nil || err != nil {
		return end, err
	}
	return a.awaitExit()
}

// ready prepares what the supervisor needs, and marks the attempt as given to it.
// The supervisor is chosen before that: from the mark on, only this one can have it.
func (a *attempt) ready() (spec supervisor.Spec, jobs supervisor.Jobs, err error) {
	if a.needsPreparation() {
		if err := a.mark(markStarted); err != nil {
			return spec, nil, err
		}
	}
	for {
		if jobs, err = a.r.parent.taker(a.work); err != nil {
			return spec, nil, err
		}
		user := jobs.User()
		const doing = "prepare the job"
		waited, err := a.untilRoom(doing, a.unprepare, func() (err error) {
			spec, err = a.prepare(a.work)
			return err
		})
		if err != nil {
			return spec, nil, err
		}
		if waited > 0 {
			spec.Notice = waitedText(doing, waited)
		}
		if jobs, err = a.r.parent.taker(a.work); err != nil {
			return spec, nil, err
		}
		if jobs.User() == user {
			break
		}
		a.again = true // it was prepared for another user's jobs
	}
	if err := context.Cause(a.work); err != nil {
		return spec, nil, err
	}
	if err := a.mark(markRunning); err != nil {
		return spec, nil, err
	}
	a.mu.Lock()
	a.stage, a.asking = given, true
	a.mu.Unlock()
	return spec, jobs, nil
}

// asked says that what has become of the question to the supervisor is known.
func (a *attempt) asked() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.asking = false
}

// submit gives the attempt to the supervisor. An end means that it refused.
func (a *attempt) submit(jobs supervisor.Jobs, spec supervisor.Spec) (*supervisor.End, error) {
	defer a.asked()
	// Not the attempt's context: a drop must find it started or not, nothing between.
	err := jobs.Start(a.r.ctx, spec)
	a.waitsFor(waitAgent, "")
	if err == nil {
		a.log.Info("job started")
		return nil, nil
	}
	if errors.Is(err, supervisor.ErrLeaving) {
		a.r.left(jobs)
		return nil, errUnbegun
	}
	list, lost := jobs.List(a.r.ctx)
	switch {
	case a.r.ctx.Err() != nil:
		return nil, context.Cause(a.r.ctx)
	case lost != nil:
		// It may have started it or not, and is taken to have.
		a.log.Warn("supervisor lost while it was given a job", "error", err)
		return nil, a.reclaim(jobs)
	case a.isIn(list):
		return nil, nil
	case wire.KindOf(err) == wire.Unavailable:
		// A full disk, or too many open files: it is there, and cannot now.
		a.r.spoolFailed(err)
		a.log.Warn("job waits: its supervisor cannot start it now", "error", err)
		a.waitsFor(waitAgent, "its supervisor, which cannot start it now: "+err.Error())
		sleep(a.work, a.r.waits.spool)
		switch {
		case a.ctx.Err() != nil:
			return nil, context.Cause(a.ctx)
		case a.work.Err() != nil:
			return a.conclude(canceledEnd()), nil
		}
		return nil, errUnbegun
	}
	a.trouble("job cannot be started", "error", err)
	a.say("==> " + err.Error())
	return a.conclude(failedEnd(err)), nil
}

// isIn reports whether a supervisor's list has it.
func (a *attempt) isIn(list []supervisor.Status) bool {
	return slices.ContainsFunc(list, func(s supervisor.Status) bool { return s.JobRef == a.job.JobRef })
}

// awaitExit waits until the supervisor says that it has ended, or is gone, and
// passes cancels on.
func (a *attempt) awaitExit() (*supervisor.End, error) {
	for {
		select {
		case <-a.exited.c:
			return a.readEnd()
		case <-a.bereaved.c:
			return a.mourn()
		case <-a.unheld:
			return nil, errUnbegun
		case <-a.cancels:
			a.mu.Lock()
			force := a.force
			a.mu.Unlock()
			a.kill(force)
		case <-a.ctx.Done():
			return nil, context.Cause(a.ctx)
		}
	}
}

// kill stops it in its supervisor: one that is lost is waited for, as the job
// may live on under it. It reports whether an end will follow.
func (a *attempt) kill(force bool) bool {
	for {
		jobs, err := a.supervisor()
		if errors.Is(err, errOver) {
			return true
		}
		if err != nil {
			return false
		}
		err = jobs.Stop(a.r.ctx, a.job.JobRef, force)
		switch k := wire.KindOf(err); {
		case err == nil, a.r.ctx.Err() != nil:
			return true
		case k == wire.NotFound:
			return false
		case k != wire.Unavailable:
			a.log.Error("job cannot be stopped", "error", err)
			return true
		}
		if !a.r.parent.left(a.r.ctx, jobs) {
			return false
		}
	}
}

// supervisor is the one in use; while there is none it waits, and errOver is that the attempt
// has ended meanwhile.
func (a *attempt) supervisor() (supervisor.Jobs, error) {
	ctx, cancel := context.WithCancelCause(a.r.ctx)
	defer cancel(nil)
	jobs := a.r.parent.now()
	if jobs != nil {
		return jobs, nil
	}
	waited := make(chan struct{})
	defer close(waited)
	go func() {
		select {
		case <-a.exited.c:
			cancel(errOver)
		case <-waited:
		}
	}()
	return a.r.parent.wait(ctx)
}

// deliver makes the result and waits until the server has it.
func (a *attempt) deliver(end *supervisor.End) error {
	result, err := a.finish(end)
	if err != nil {
		return err
	}
	result.Error = withRefusal(result.Error, a.refusedText()) // of an agent before this one
	a.log.Info("job ended", "state", result.State, "reason", result.Reason)
	a.mu.Lock()
	a.result = result
	a.mu.Unlock()
	poke(a.wake)
	<-a.shipped.c
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.acked {
		return context.Cause(a.ctx)
	}
	return nil
}

// discard ends a dropped attempt: what runs is killed first. False means that
// the Run has ended before; the next agent is told to drop it again.
func (a *attempt) discard() bool {
	if a.at() == given && a.kill(true) {
		select {
		case <-a.exited.c:
		case <-a.bereaved.c:
			a.killLeftovers()
		case <-a.r.ctx.Done():
		}
	}
	if a.r.ctx.Err() != nil {
		return false
	}
	a.erase(a.r.ctx)
	return true
}

// erase forgets the attempt: in the supervisor, then on disk.
func (a *attempt) erase(ctx context.Context) {
	if a.at() >= given {
		if jobs := a.r.parent.now(); jobs != nil {
			err := jobs.Forget(ctx, a.job.JobRef)
			if k := wire.KindOf(err); k != "" && k != wire.NotFound && k != wire.Unavailable && ctx.Err() == nil {
				a.log.Warn("supervisor does not forget a job", "error", err)
			}
		}
	}
	if a.isWithheld() {
		if err := a.putAway(ctx); err == nil || ctx.Err() != nil {
			return
		}
	}
	if err := a.r.freeSlot(a.dir); err != nil && ctx.Err() == nil {
		a.log.Error("attempt's directory cannot be removed", "dir", a.dir, "error", err)
	}
}

// canceledEnd is the end of a job that was canceled before it ran.
func canceledEnd() *supervisor.End {
	return &supervisor.End{State: wire.Canceled, Reason: wire.ReasonCanceled, At: time.Now().UTC()}
}

// failedEnd is the end of a job that could not be run.
func failedEnd(err error) *supervisor.End {
	return &supervisor.End{State: wire.Failed, Reason: wire.ReasonFailed, Error: err.Error(), At: time.Now().UTC()}
}
