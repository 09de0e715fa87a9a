package daemon

import (
	"context"
	"errors"
	"time"

	"github.com/waypointd/waypoint/daemon/queue"
	"github.com/waypointd/waypoint/mux"
	"github.com/waypointd/waypoint/mux/wire"
)

// ifAdmitted keeps a method from runners that may not have jobs, and have none
// left.
func (s *Server) ifAdmitted(h mux.Handler) mux.Handler {
	return func(ctx context.Context, st *mux.Stream) error {
		if v, ok := st.Peer().Data.(*visitor); ok && !s.fleet.permitted(v) {
			err := wire.Errorf(wire.Denied, "runner %q is not adopted", v.id)
			pace(ctx, callOf(ctx), st, err)
			return err
		}
		return h(ctx, st)
	}
}

// runnerList merges the records with who is connected; command lines' own
// runners, of which there is no record, come first.
func (s *Server) runnerList(ctx context.Context, _ *mux.Peer, f wire.RunnerFilter) (page wire.RunnerPage, err error) {
	page.Runners = []wire.Runner{}
	views, err := s.everywhere(ctx)
	if err != nil {
		return page, err
	}
	connected := make(map[string]memberView, len(views))
	for _, v := range views {
		connected[v.id] = v
	}
	if f.After == "" {
		for _, v := range views {
			if v.kind == wire.KindLocal && matches(f, v.runner(wire.Runner{}, s.now())) {
				page.Runners = append(page.Runners, v.runner(wire.Runner{}, s.now()))
			}
		}
	}
	records, err := s.store.Runners(ctx, f)
	if err != nil {
		return page, err
	}
	count := s.fleet.count
	if s.store.Shared() {
		held, err := s.store.Held(ctx)
		if err != nil {
			return page, err
		}
		count = func(id string) int { return held[id] }
	}
	for _, r := range records {
		r.RunningJobs = count(r.ID)
		if v, ok := connected[r.ID]; ok {
			r.Runner = v.runner(r.Runner, s.now())
		}
		page.Runners = append(page.Runners, r.Runner)
	}
	n := fitting(page.Runners)
	page.Runners, page.More = page.Runners[:n], n < len(page.Runners)
	return page, nil
}

// matches applies a filter to a runner that is not in the store.
func matches(f wire.RunnerFilter, r wire.Runner) bool {
	if f.State != "" && f.State != r.State {
		return false
	}
	for k, v := range f.Labels {
		if r.Labels[k] != v {
			return false
		}
	}
	return true
}

// withSession adds to a record what only its session knows.
func (s *Server) withSession(ctx context.Context, r wire.Runner) wire.Runner {
	r.RunningJobs = s.jobsOf(ctx, r.ID)
	if v, ok := s.connected(ctx, r.ID); ok {
		return v.runner(r, s.now())
	}
	return r
}

// runner is the member as operators see it, over its record.
func (v memberView) runner(r wire.Runner, now time.Time) wire.Runner {
	now = now.UTC()
	if r.ID == "" { // a command line's own
		r = wire.Runner{
			ID: v.id, Kind: v.kind, State: v.standing.State, Labels: v.labels, Version: v.version, Peer: v.peer,
			Hostname: v.hello.Hostname, OS: v.hello.OS, Arch: v.hello.Arch, Isolation: v.hello.Isolation,
			FirstSeen: now,
		}
	}
	r.Online, r.Admitted, r.LastSeen = true, v.admitted, now
	r.RunningJobs, r.Concurrency = v.held, v.concurrency
	r.Draining = r.Draining || v.draining
	r.Problem, r.Detail = v.problem, v.detail
	return r
}

func (s *Server) runnerInspect(ctx context.Context, _ *mux.Peer, req wire.RunnerRequest) (wire.Runner, error) {
	if v, ok := s.connected(ctx, req.ID); ok && v.kind == wire.KindLocal {
		return v.runner(wire.Runner{}, s.now()), nil
	}
	record, err := s.store.Runner(ctx, req.ID)
	if err != nil {
		return wire.Runner{}, err
	}
	r := s.withSession(ctx, record.Runner)
	// It names jobs, which may be none of a limited user's.
	if v, ok := s.connected(ctx, req.ID); ok && callOf(ctx).by.limits.None() {
		r.Waits = v.waits
	}
	return r, nil
}

// runnerMatch reports whether a job of this target could run remotely now.
func (s *Server) runnerMatch(ctx context.Context, _ *mux.Peer, req wire.MatchRequest) (wire.MatchReply, error) {
	views, err := s.everywhere(ctx)
	if err != nil {
		return wire.MatchReply{}, err
	}
	for _, v := range views {
		if v.kind == wire.KindRemote && v.available && queue.Match(req.Target, v.candidate()) {
			return wire.MatchReply{Match: true}, nil
		}
	}
	return wire.MatchReply{}, nil
}

func (v memberView) candidate() queue.Runner {
	return queue.Runner{ID: v.id, Labels: v.labels, ByIDOnly: v.kind == wire.KindLocal, Free: v.concurrency - v.held}
}

// offering is the runner with the labels that it offers now.
func (v memberView) offering() queue.Runner {
	return queue.Runner{ID: v.id, Labels: v.hello.Labels, ByIDOnly: v.kind == wire.KindLocal}
}

// serverStatus is the answer to `waypoint server status`.
func (s *Server) serverStatus(ctx context.Context, _ *mux.Peer, _ wire.ServerStatusRequest) (wire.ServerStatus, error) {
	st := wire.ServerStatus{
		ID: s.id, Version: s.cfg().Software, StartedAt: s.started.UTC(),
		UptimeSeconds: int64(time.Since(s.started).Seconds()),
		Store:         s.store.Describe(), StateDir: s.dir.Path(),
		Runners: map[string]int{}, Jobs: map[string]int{},
		ProtocolMin: wire.VersionMin, ProtocolMax: wire.VersionMax, Limits: s.limits(),
	}
	probing, cancel := context.WithTimeoutCause(ctx, healthWithin, errors.New("no answer within "+healthWithin.String()))
	defer cancel()
	if err := s.Probe(probing); err != nil {
		st.Problem = err.Error()
	}
	st.StoreReserve, st.StoreFree, _ = s.store.Reserved()
	st.StoreProblem = s.storeProblem()
	s.mu.Lock()
	st.Listeners = append([]wire.Listener{}, s.listeners...)
	s.mu.Unlock()
	if c := s.shown(); c != nil {
		st.Fingerprint, st.CertExpiry = c.fingerprint(), c.expiry(ctx)
	}
	jobs, err := s.store.JobCountsWithin(ctx, callOf(ctx).by.limits)
	if err != nil {
		return st, err
	}
	for state, n := range jobs {
		st.Jobs[string(state)] = n
	}
	st.QueueDepth = jobs[wire.Queued]
	runners, err := s.store.RunnerCounts(ctx)
	if err != nil {
		return st, err
	}
	for state, n := range runners {
		st.Runners[string(state)] = n
	}
	views, err := s.everywhere(ctx)
	if err != nil {
		return st, err
	}
	for _, v := range views {
		st.RunnersOnline++
		if v.kind == wire.KindLocal {
			st.Runners[string(v.standing.State)]++
		}
	}
	return st, nil
}

// storeProblem is what the store is short of, "" for nothing.
func (s *Server) storeProblem() wire.StoreProblem {
	if s.store.Full() {
		return wire.StoreFull
	}
	if _, _, short := s.store.Reserved(); short {
		return wire.StoreReserve
	}
	return ""
}
