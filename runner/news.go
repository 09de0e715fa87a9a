package runner

import (
	"context"
	"reflect"
	"sync"

	"github.com/waypointd/waypoint/mux/wire"
)

// Event is one thing Notify is told.
type Event struct {
	State wire.RunnerState // of adoption, "" while not connected
	ID    string
	Err   error // why it is not connected
	Again bool  // connected again, and stands as it did before: in that state, with or without jobs

	// Standing is the server's last word, also while not connected; nil before
	// the first. It is shared, and not to be changed.
	Standing *wire.Standing
	// Low is of how many percent, 25 or 10, the token in use has less of its
	// life left; 0 where it has more, where there is none, and where it has no end.
	Low int

	Jobs     int  // held here; a change of nothing else is told at most once a second
	Draining bool // by `runner drain` on this host; see Standing for the operator's
	Stopping bool // it ends when its jobs have ended, or when it has handed over

	Supervisor wire.SupervisorState
}

// news is what Notify was told.
type news struct {
	mu       sync.Mutex     // held while Notify is called
	last     *Event         // nil before the first; guarded by mu
	standing *wire.Standing // when it was connected last; guarded by mu
}

// notify tells of a change of adoption or connection, if it is one.
func (r *Runner) notify(ev Event) {
	n := &r.news
	n.mu.Lock()
	defer n.mu.Unlock()
	r.tell(ev)
}

// retell tells of changes of all but adoption and connection.
func (r *Runner) retell() {
	n := &r.news
	n.mu.Lock()
	defer n.mu.Unlock()
	standing, _ := r.standing.now()
	switch {
	case n.last != nil && n.last.Err != nil && n.last.Standing != standing: // a session has begun, and is told of next
	case n.last != nil:
		r.tell(Event{State: n.last.State, Err: n.last.Err})
	case r.unsupervised() != "": // said before the server has been asked anything
		r.tell(Event{})
	}
}

// tellCounts tells of changes in the number of jobs until ctx ends.
func (r *Runner) tellCounts(ctx context.Context) {
	for {
		select {
		case <-r.counted:
		case <-ctx.Done():
			return
		}
		r.retell()
		if !sleep(ctx, r.waits.counts) {
			return
		}
	}
}

// tell completes the event and calls Notify, if it differs from the last;
// news.mu is held.
func (r *Runner) tell(ev Event) {
	n := &r.news
	ev.ID, ev.Jobs, ev.Supervisor = r.name(), r.count(), r.parent.state()
	if ev.Standing, _ = r.standing.now(); ev.State != "" && ev.Standing != nil {
		ev.State = ev.Standing.State // which may have changed since the last was told
	}
	r.standing.mu.Lock()
	ev.Low = r.standing.low
	r.standing.mu.Unlock()
	r.mu.Lock()
	ev.Draining, ev.Stopping = r.drained, r.stopping
	r.mu.Unlock()
	if last := n.last; last != nil {
		same := *last
		same.Again = false
		if text(ev.Err) == text(same.Err) {
			same.Err = ev.Err
		}
		if reflect.DeepEqual(ev, same) {
			return
		}
	}
	if ev.State != "" && ev.Standing != nil {
		ev.Again = n.standing != nil && n.standing.State == ev.State &&
			n.standing.Admitted == ev.Standing.Admitted && n.standing.Problem == ev.Standing.Problem
		n.standing = ev.Standing
	}
	n.last = &ev
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
