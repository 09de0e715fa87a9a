package supervisor

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/waypointd/waypoint/mux/wire"
)

// watcher is one Watch: which attempts it has to be told about. What an event
// says is looked up when it is delivered, so a slow watcher gets fewer, never
// stale or missing ones.
type watcher struct {
	wake chan struct{} // one token; sent by mark and close
	gone chan struct{} // closed when the Watch has returned

	mu      sync.Mutex
	dirty   map[*attempt]struct{}
	leaving bool // to be told; set once
	closed  bool
}

func (w *watcher) mark(a *attempt) {
	w.mu.Lock()
	w.dirty[a] = struct{}{}
	w.mu.Unlock()
	w.poke()
}

func (w *watcher) leave() {
	w.mu.Lock()
	w.leaving = true
	w.mu.Unlock()
	w.poke()
}

func (w *watcher) close() {
	w.mu.Lock()
	w.closed = true
	w.mu.Unlock()
	w.poke()
}

func (w *watcher) poke() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// tellLimit is how long the end of all Watches is waited for: who listens is told
// of the last ends before the process goes, who does not holds nobody up.
const tellLimit = time.Second

// closeWatchers has every Watch tell what there is still to tell, and return.
func (s *Supervisor) closeWatchers() {
	s.mu.Lock()
	all := slices.Collect(maps.Keys(s.watchers))
	s.mu.Unlock()
	for _, w := range all {
		w.close()
	}
	limit := time.After(tellLimit)
	for _, w := range all {
		select {
		case <-w.gone:
		case <-limit:
			return
		}
	}
}

// take is what is to be told now.
func (w *watcher) take() (dirty map[*attempt]struct{}, leaving, closed bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	dirty, w.dirty = w.dirty, map[*attempt]struct{}{}
	leaving, w.leaving = w.leaving, false
	return dirty, leaving, w.closed
}

// changed tells all watchers about an attempt.
func (s *Supervisor) changed(a *attempt) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for w := range s.watchers {
		w.mark(a)
	}
}

// Watch calls f with an Event for each held attempt at once and then for each change, until
// ctx ends (its cause is returned) or the supervisor is closed (Unavailable). That it is
// leaving is said once.
func (s *Supervisor) Watch(ctx context.Context, f func(Event)) error {
	w := &watcher{wake: make(chan struct{}, 1), gone: make(chan struct{}), dirty: map[*attempt]struct{}{}}
	s.mu.Lock()
	for _, a := range s.attempts {
		w.dirty[a] = struct{}{}
	}
	w.leaving = s.leaving
	w.closed = s.closed && s.running == 0
	s.watchers[w] = struct{}{}
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.watchers, w)
		s.mu.Unlock()
		close(w.gone)
	}()
	for {
		dirty, leaving, closed := w.take()
		if leaving {
			f(Event{Leaving: true})
		}
		for a := range dirty {
			if e, held := s.event(a); held {
				f(e)
			}
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
		}
		if closed {
			return wire.Errorf(wire.Unavailable, "the supervisor has ended")
		}
		select {
		case <-w.wake:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// event is an attempt as it is now; held is false for one that was forgotten.
func (s *Supervisor) event(a *attempt) (e Event, held bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e = Event{JobRef: a.spec.JobRef, Ended: a.end != nil}
	if a.end != nil {
		e.LogBytes = a.end.LogBytes
	} else {
		e.LogBytes = a.written.Load()
		if why := a.waits.Load(); why != nil {
			e.Waits = *why
		}
	}
	return e, s.attempts[a.spec.JobRef] == a
}
