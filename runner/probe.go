package runner

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/waypointd/waypoint/mux/wire"
)

// callLimit is longer than anything takes that the loop of Run does in one
// turn, be it on the network, where each step has a limit of its own, or on the disk.
const callLimit = 2 * time.Minute

// pulse is when a loop is to have turned again.
type pulse struct {
	at atomic.Int64 // since started, in nanoseconds; 0: it does not run
}

// began is what pulses are counted from: the host's clock may be set.
var began = time.Now()

// due promises that the loop turns again within d.
func (p *pulse) due(d time.Duration) { p.at.Store(int64(time.Since(began) + d)) }

// late is how long the loop is overdue.
func (p *pulse) late() time.Duration {
	at := time.Duration(p.at.Load())
	if at == 0 {
		return 0
	}
	return max(time.Since(began)-at, 0)
}

// Probe finds out whether the runner is alive: the loop that connects and
// reads the server's orders turns, and what all of its parts need for a moment is not
// held for ever. A server that is not there is no failure, nor is a supervisor.
func (r *Runner) Probe(ctx context.Context) error {
	if late := r.pulse.late(); late > 0 {
		return wire.Errorf(wire.Internal, "the runner's work loop is overdue by %s", late.Round(time.Second))
	}
	at := make(chan string, 16) // what is being waited for; never full
	free := make(chan struct{})
	go func() {
		defer close(free)
		try := func(what string, mu *sync.Mutex) {
			at <- what
			mu.Lock()
			//lint:ignore SA2001 whether it can be had is all that is asked
			mu.Unlock()
		}
		try("the taking of jobs", &r.intake)
		try("the list of jobs", &r.mu)
		try("the supervisor", &r.parent.mu)
		try("the session", &r.uplink.mu)
		try("the tokens", &r.tokens.mu)
		try("the standing", &r.standing.mu)
		for _, a := range r.all() {
			a.at()
		}
	}()
	select {
	case <-free:
		return nil
	case <-ctx.Done():
	}
	what := ""
	for {
		select {
		case what = <-at:
			continue
		default:
		}
		return fmt.Errorf("probe runner: %s is held for too long: %w", what, context.Cause(ctx))
	}
}
