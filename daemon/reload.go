package daemon

import (
	"context"
	"errors"
	"strings"

	"github.com/waypointd/waypoint/mux"
	"github.com/waypointd/waypoint/mux/wire"
)

// Reload makes cfg the server's configuration, as far as it can change while
// the server runs; StateDir, StoreDSN, Software, Logger, Plain, Metrics and Reload stay as
// they are. An error changes nothing; without one all of it holds when Reload
// returns, a heartbeat for the sessions that begin from now on, an
// acknowledgement for the jobs that are handed out from now on. The files of a
// certificate are read again; renewed tells whether another one is shown now.
func (s *Server) Reload(ctx context.Context, cfg Config) (renewed bool, err error) {
	s.reloading.Lock()
	defer s.reloading.Unlock()
	old := s.cfg()
	cfg.StateDir, cfg.StoreDSN, cfg.Software = old.StateDir, old.StoreDSN, old.Software
	cfg.Metrics = old.Metrics
	cfg.Logger, cfg.Plain, cfg.Reload = old.Logger, old.Plain, old.Reload
	cfg.now, cfg.faults, cfg.free = old.now, old.faults, old.free
	cfg, err = cfg.withDefaults()
	if err != nil {
		return false, err
	}
	before, after := s.shown(), (*certificate)(nil)
	var was, is string
	if before != nil {
		if after, err = s.certify(ctx, &cfg); err != nil {
			return false, err
		}
		if after.same(before) {
			after = before // with what it has made and noticed
		}
		was, is = before.pinned(), after.pinned()
	}
	s.mu.Lock()
	s.config.Store(&cfg)
	s.certificate = after
	s.mu.Unlock()
	s.host.Store(s.hostRoles(cfg.Access))
	if was != is {
		warnOfKey(s.log, was, is)
	}
	s.store.SetReserve(cfg.StoreReserve)
	s.unread.Set(cfg.Limits.Unread)
	if cfg.Limits.Handshakes != old.Limits.Handshakes {
		s.handshakes.Store(new(make(chan struct{}, cfg.Limits.Handshakes)))
	}
	s.wakeClock() // a lease may end sooner now
	return after != before, nil
}

// serverReload is the answer to `waypoint server reload`. Whatever is wrong with
// the configuration is BadUsage, so that it is told from what is wrong with the call.
func (s *Server) serverReload(ctx context.Context, peer *mux.Peer, _ wire.ReloadRequest) (wire.Reloaded, error) {
	reload := s.cfg().Reload
	if reload == nil {
		return wire.Reloaded{}, wire.Errorf(wire.Unimplemented, "this server has no configuration to read again")
	}
	done, err := reload(ctx, loginOf(peer).String())
	if err != nil && wire.KindOf(err) != wire.BadUsage {
		wrong := wire.Errorf(wire.BadUsage, "%v", err)
		if e, ok := errors.AsType[*wire.Error](err); ok {
			wrong.Hint = e.Hint
		}
		err = wrong
	}
	if err == nil {
		note(ctx, "changed", strings.Join(done.Changed, " "))
		c := callOf(ctx)
		_, c.kept = s.keep(ctx, wire.AuditDone)
		c.lost = !c.kept
	}
	return done, err
}
