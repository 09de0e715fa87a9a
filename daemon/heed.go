package daemon

import (
	"context"
	"strconv"
	"time"

	"github.com/waypointd/waypoint/daemon/store"
	"github.com/waypointd/waypoint/mux/wire"
)

// decisionsSetting counts what operators have decided about runners, on all
// servers of the store.
const decisionsSetting = "runner_decisions"

// heedEvery is between two looks at what other servers have decided.
const heedEvery = 5 * time.Second

// countDecision lets the other servers of the store see that there is one.
func (s *Server) countDecision(tx *store.Tx) error {
	n, err := tx.Setting(decisionsSetting)
	if err != nil {
		return err
	}
	last, _ := strconv.Atoi(n) // 0 at first
	return tx.PutSetting(decisionsSetting, strconv.Itoa(last+1))
}

// heed brings the runners that are connected here up to date with what has
// been decided about them on other servers of the store.
func (s *Server) heed() {
	tick := time.NewTicker(heedEvery)
	defer tick.Stop()
	var seen string
	for first := true; ; first = false {
		n, err := s.store.Setting(s.ctx, decisionsSetting)
		if err == nil && n != seen {
			if !first {
				err = s.heedAll(s.ctx)
			}
			if err == nil {
				seen = n
			}
		}
		if err != nil && s.ctx.Err() == nil {
			s.log.Warn("decisions of other servers not heeded, trying again", "error", err)
		}
		select {
		case <-s.ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// heedAll looks at the record of each connected runner.
func (s *Server) heedAll(ctx context.Context) error {
	var remote []string
	for _, v := range s.fleet.online() {
		if v.kind == wire.KindRemote {
			remote = append(remote, v.id)
		}
	}
	return together(remote, func(id string) error { return s.heedOne(ctx, id) })
}

func (s *Server) heedOne(ctx context.Context, id string) error {
	done, err := s.turns.take(ctx, id)
	if err != nil {
		return err
	}
	defer done()
	v, tokens := s.fleet.present(id)
	if v == nil {
		return nil
	}
	r, err := s.store.Runner(ctx, id)
	if err == nil {
		r, _, err = s.arrive(ctx, v, again(v, tokens, time.Now()), "")
	}
	switch wire.KindOf(err) {
	case "":
		s.handOver(v, r)
	case wire.NotFound, wire.Conflict: // the id may be another's by now
		if r.TokenExpiry.IsZero() { // nobody has been admitted since
			if err := s.update(func(tx *store.Tx) error {
				return s.keepOwner(tx, store.RunnerRecord{Runner: wire.Runner{ID: id, Fingerprint: v.key}})
			}); err != nil {
				return err
			}
		}
		s.dismiss(id, v.key)
		s.log.Info("runner forgotten on another server", "runner", id)
	default:
		return err
	}
	return nil
}
