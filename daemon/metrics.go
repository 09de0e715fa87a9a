package daemon

import (
	"context"
	"net"
	"strings"
	"time"

	"github.com/waypointd/waypoint/daemon/metrics"
	"github.com/waypointd/waypoint/daemon/queue"
	"github.com/waypointd/waypoint/mux"
	"github.com/waypointd/waypoint/mux/wire"
)

// ServeMetrics tells whoever connects to l, which it owns, what Config.Metrics
// has had counted, and how the server is, until ctx ends.
func (s *Server) ServeMetrics(ctx context.Context, l net.Listener) error {
	if s.metrics == nil {
		l.Close()
		return wire.Errorf(wire.BadUsage, "serve metrics: nothing was counted")
	}
	a := l.Addr()
	s.log.Info("metrics are told", "address", a.Network()+"://"+a.String())
	if tcp, ok := a.(*net.TCPAddr); ok && !tcp.IP.IsLoopback() {
		s.log.Warn("metrics are told to whoever can connect: nobody is asked for a token there", "address", "tcp://"+a.String())
	}
	return s.metrics.Serve(ctx, l, metrics.Source{Read: s.measure, Health: s.health}, s.log)
}

// healthWithin is how long a server has to show that it does what it is for.
const healthWithin = 5 * time.Second

// health is what Probe says, and what is short without a new start being of use.
func (s *Server) health(ctx context.Context) (notes []string, err error) {
	switch s.storeProblem() {
	case wire.StoreFull:
		notes = append(notes, "store is full: jobs and output wait for room")
	case wire.StoreReserve:
		notes = append(notes, "store has its reserve left: no new work is taken")
	}
	return notes, s.Probe(ctx)
}

// countCommits is what the store calls for each; nil where nothing is counted.
func (s *Server) countCommits() func(callers int, took time.Duration) {
	if s.metrics == nil {
		return nil
	}
	return s.metrics.Committed
}

func (s *Server) countEnded(jobs []wire.Job) {
	for _, j := range jobs {
		kind := wire.KindRemote
		if strings.HasPrefix(j.RunnerID, localPrefix) || strings.HasPrefix(j.Target.ID, localPrefix) {
			kind = wire.KindLocal
		}
		s.metrics.Ended(j, kind)
	}
}

// counted counts the calls of a table.
func (s *Server) counted(t mux.Table) mux.Table {
	if s.metrics == nil {
		return t
	}
	for name, call := range t {
		t[name] = func(ctx context.Context, st *mux.Stream) error {
			s.metrics.Began()
			err := call(ctx, st)
			s.metrics.Answered(err)
			return err
		}
	}
	return t
}

// measure is what is, for a scrape.
func (s *Server) measure(ctx context.Context) (snap metrics.Snapshot, err error) {
	views, err := s.everywhere(ctx)
	if err != nil {
		return snap, err
	}
	snap.Online = map[wire.RunnerState]int{}
	for _, v := range views {
		if v.kind != wire.KindRemote {
			continue
		}
		snap.Online[v.standing.State]++
		if v.admitted {
			snap.Admitted++
		}
		if v.available {
			snap.Taking++
			snap.Places += v.concurrency
			snap.Taken += v.held
		}
	}
	if snap.Runners, err = s.store.RunnerCounts(ctx); err != nil {
		return snap, err
	}
	if snap.Active, err = s.store.LiveCounts(ctx); err != nil {
		return snap, err
	}
	snap.Reserve, snap.StoreFree, snap.StoreShort = s.store.Reserved()
	snap.StoreFull = s.store.Full()
	if snap.StoreSize, err = s.store.Size(ctx); err != nil {
		return snap, err
	}
	if snap.Queue, err = s.waiting(ctx, views, snap.StoreShort); err != nil {
		return snap, err
	}
	snap.Sessions = s.entrance.count()
	snap.Tokens = s.fleet.tokenTimes(s.now())
	return snap, nil
}

// waiting sorts the queued jobs by why they wait, as `job why` would.
func (s *Server) waiting(ctx context.Context, views []memberView, short bool) (map[metrics.Why]metrics.Waiting, error) {
	list, err := s.store.Waiting(ctx)
	if err != nil {
		return nil, err
	}
	sorted := map[metrics.Why]metrics.Waiting{}
	for _, w := range list {
		why := metrics.ForRunner
		switch w.Blocked {
		case queue.ByDependency:
			why = metrics.ForDependency
		case queue.BySerial:
			why = metrics.ForSerial
		case queue.BySingleton:
			why = metrics.ForSingleton
		default:
			for _, v := range views {
				if v.available && queue.Match(w.Target, v.candidate()) {
					why = metrics.ForPlace
					break
				}
			}
			if short {
				why = metrics.ForRoom
			}
		}
		sum := sorted[why]
		sum.Jobs += w.Jobs
		if sum.Oldest.IsZero() || w.Oldest.Before(sum.Oldest) {
			sum.Oldest = w.Oldest
		}
		sorted[why] = sum
	}
	return sorted, nil
}

// tokenTimes are those of the tokens that the admitted runners here use and that expire.
func (f *fleet) tokenTimes(now time.Time) (list []metrics.Token) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, m := range f.members {
		if c := m.using; m.kind == wire.KindRemote && m.admitted(now) && !c.Expiry.IsZero() {
			list = append(list, metrics.Token{Issued: c.Issued, Expiry: c.Expiry})
		}
	}
	return list
}
