package runner

import (
	"context"
	"sync"

	"github.com/waypointd/waypoint/mux/wire"
)

// Event is one thing Notify is told.
type Event struct {
	State wire.RunnerState // of adoption, "" while not connected
	ID    string
	Err   error // why it is not connected
	Jobs  int   // held here; a change of nothing else is told at most once a second
	Again bool  // connected again, in the state it had before
}

// news is what Notify was told.
type news struct {
	mu    sync.Mutex       // held while Notify is called
	last  *Event           // nil before the first; guarded by mu
	state wire.RunnerState // last known, also while not connected; guarded by mu
}

// notify tells of a change of adoption or connection, if it is one.
func (r *Runner) notify(ev Event) {
	n := &r.news
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.last != nil && ev.State == n.last.State && text(ev.Err) == text(n.last.Err) {
		return
	}
	if ev.State != "" {
		ev.Again = ev.State == n.state
		n.state = ev.State
	}
	r.tell(ev)
}

// tellCounts tells of changes in the number of jobs until ctx ends.
func (r *Runner) tellCounts(ctx context.Context) {
	for {
		select {
		case <-r.counted:
		case <-ctx.Done():
			return
		}
		n := &r.news
		n.mu.Lock()
		if last := n.last; last != nil && last.Jobs != r.count() {
			r.tell(Event{State: last.State, Err: last.Err})
		}
		n.mu.Unlock()
		if !sleep(ctx, r.waits.counts) {
			return
		}
	}
}

// tell calls Notify; news.mu is held.
func (r *Runner) tell(ev Event) {
	ev.ID, ev.Jobs = r.name(), r.count()
	r.news.last = &ev
	if r.cfg.Notify != nil {
		r.cfg.Notify(ev)
	}
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
