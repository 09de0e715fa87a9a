package daemon

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/waypointd/waypoint/daemon/store"
	"github.com/waypointd/waypoint/mux/wire"
)

// Probe reports whether the server does what it is for: a transaction through
// the committer, and an answer of the clock, before ctx ends. A store that
// refuses for a reason that may pass (a full disk, a database out of reach) has
// answered: a new process would be refused as well. One that is not trusted any
// more, or does not answer, has not.
func (s *Server) Probe(ctx context.Context) error {
	err := s.probe(ctx)
	if !errors.Is(ctx.Err(), context.Canceled) { // who asked is gone
		s.metrics.Probed(err)
	}
	return err
}

func (s *Server) probe(ctx context.Context) error {
	err := s.store.Update(ctx, func(tx *store.Tx) error {
		if !s.store.Full() {
			return nil // it begins and commits, and writes nothing
		}
		return tx.PutSetting("probe", s.now().UTC().Format(time.RFC3339)) // is there room again?
	})
	if err != nil && (ctx.Err() != nil || wire.KindOf(err) != wire.Unavailable) {
		return fmt.Errorf("commit: %w", err)
	}
	answered := make(chan struct{})
	select {
	case s.pulse <- answered:
		<-answered
	case <-ctx.Done():
		return fmt.Errorf("ask the clock: %w", context.Cause(ctx))
	case <-s.ctx.Done():
		return context.Cause(s.ctx)
	}
	return nil
}

// Summary is what a server does, in a few numbers.
type Summary struct {
	Listeners int
	Online    int  // runners
	Running   int  // jobs, assigned ones included
	Queued    int  // jobs
	Full      bool // the store has no room
	Short     bool // it has its reserve left
}

// Summary is as of now.
func (s *Server) Summary(ctx context.Context) (Summary, error) {
	live, err := s.store.LiveCounts(ctx)
	if err != nil {
		return Summary{}, err
	}
	sum := Summary{
		Online: s.fleet.size(), Running: live[wire.Assigned] + live[wire.Running], Queued: live[wire.Queued],
		Full: s.store.Full(),
	}
	_, _, sum.Short = s.store.Reserved()
	s.mu.Lock()
	defer s.mu.Unlock()
	sum.Listeners = len(s.listeners)
	return sum, nil
}

// News receives when Summary may have changed. It is for one reader.
func (s *Server) News() <-chan struct{} { return s.news }

func (s *Server) tell() {
	select {
	case s.news <- struct{}{}:
	default: // one is enough
	}
}

// changed is called by the committer after each commit.
func (s *Server) changed(c store.Changes) {
	s.watchers.changed(c)
	s.countEnded(c.Ended)
	if len(c.Jobs) > 0 {
		s.tell()
	}
}
