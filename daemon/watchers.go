package daemon

import (
	"context"
	"sync"
	"sync/atomic"

	"github.com/waypointd/waypoint/daemon/store"
	"github.com/waypointd/waypoint/mux/wire"
)

// watchers wakes those who wait for a job or its output. A wake-up says only
// "look again": followers read the store, so none can be missed or be wrong. A
// job that has ended changes no more and comes with the wake-up, so that it
// need not be read by each of them.
type watchers struct {
	mu   sync.Mutex
	jobs map[string]map[*watch]struct{} // guarded by mu
}

// watch is one who waits for one job.
type watch struct {
	job   string
	c     chan struct{} // one token; sent by changed, never closed
	ended atomic.Pointer[wire.Job]
}

func newWatchers() *watchers { return &watchers{jobs: map[string]map[*watch]struct{}{}} }

// watch starts waiting; look at the store after this, not before.
func (w *watchers) watch(job string) *watch {
	s := &watch{job: job, c: make(chan struct{}, 1)}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.jobs[job] == nil {
		w.jobs[job] = map[*watch]struct{}{}
	}
	w.jobs[job][s] = struct{}{}
	return s
}

// look returns the job as it is now.
func (s *watch) look(ctx context.Context, st *store.Store) (wire.Job, error) {
	if job := s.ended.Load(); job != nil {
		return *job, nil
	}
	return st.Job(ctx, s.job)
}

func (w *watchers) unwatch(s *watch) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.jobs[s.job], s)
	if len(w.jobs[s.job]) == 0 {
		delete(w.jobs, s.job)
	}
}

// all wakes everybody: nobody knows what has changed.
func (w *watchers) all() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, those := range w.jobs {
		for s := range those {
			select {
			case s.c <- struct{}{}:
			default:
			}
		}
	}
}

// changed is called by the committer after each commit.
func (w *watchers) changed(c store.Changes) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := range c.Ended {
		for s := range w.jobs[c.Ended[i].ID] {
			s.ended.Store(&c.Ended[i])
		}
	}
	for _, ids := range [][]string{c.Jobs, c.Logs} {
		for _, id := range ids {
			for s := range w.jobs[id] {
				select {
				case s.c <- struct{}{}:
				default:
				}
			}
		}
	}
}
