package runner

import (
	"context"
	"time"

	"github.com/waypointd/waypoint/mux/wire"
)

// handOver ends the Run of a managed agent: its jobs go on under the
// supervisor. It takes nothing more, gives back what the server has not
// confirmed, and gives what is under way a moment to be given to the supervisor or
// reported. What is not settled by then is on disk, for the next agent.
func (r *Runner) handOver() {
	r.log.Info("handing over: the running jobs go on without this agent", "jobs", r.count())
	r.setDrain(&r.stopping, true)
	r.tellDrain()
	r.retell()
	r.passOrders()
	for _, a := range r.all() {
		r.giveBack(a)
	}
	ctx, cancel := context.WithTimeout(r.ctx, r.waits.handOver)
	defer cancel()
	look := time.NewTicker(max(r.waits.handOver/200, time.Millisecond))
	defer look.Stop()
	for r.unsettled() {
		select {
		case <-look.C:
			continue
		case <-ctx.Done():
		}
		break
	}
	r.end(errDrained)
}

// giveBack offers an attempt to the server that it has not let start. It stays
// held until the server says Drop: the answer may be lost, and with the server the
// start may be on record, so that nobody else would start it. Then the next
// agent asks again.
func (r *Runner) giveBack(a *attempt) {
	r.mu.Lock()
	w := r.work
	r.mu.Unlock()
	if w == nil {
		return // the next agent asks again whether it may start
	}
	a.mu.Lock()
	waiting := a.stage == recorded && !a.gone && !a.back
	a.back = a.back || waiting
	a.mu.Unlock()
	if !waiting {
		return
	}
	a.log.Info("job given back before its start")
	w.send(wire.WorkEvent{Nack: &wire.Nack{JobRef: a.job.JobRef, Error: "the runner is being stopped or started anew"}})
}

// unsettled reports whether a moment more may bring an attempt further.
func (r *Runner) unsettled() bool {
	takes, up := r.unsupervised() == "", r.uplink.up()
	for _, a := range r.all() {
		if a.unsettled(takes, up) {
			return true
		}
	}
	return false
}

// unsettled reports whether it is about to be given to the supervisor, if that
// takes it; to be reported, if there is a server; or to be removed.
func (a *attempt) unsettled(takes, up bool) bool {
	ends := a.exited.opened()
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case a.gone:
		return a.stage != given
	case a.back:
		return up
	case a.stage == started, a.asking:
		return takes
	case a.stage == ended, ends:
		return up
	}
	return false
}
