package daemon

import (
	"context"
	"maps"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/waypointd/waypoint/daemon/store"
	"github.com/waypointd/waypoint/mux/wire"
)

// decisionsSetting counts what operators have decided about runners, on all
// servers of the store.
const decisionsSetting = "runner_decisions"

// Safety nets behind the notices of other servers.
const (
	heedEvery   = 5 * time.Second  // between two looks at what others have decided
	reviewEvery = 30 * time.Second // between two looks at all attempts here
)

// countDecision lets the other servers of the store see that there is one.
func (s *Server) countDecision(tx *store.Tx) error {
	n, err := tx.Setting(decisionsSetting)
	if err != nil {
		return err
	}
	last, _ := strconv.Atoi(n) // 0 at first
	tx.Announce(store.NewsDecisions)
	return tx.PutSetting(decisionsSetting, strconv.Itoa(last+1))
}

// gossip is what other servers have told and heed has not dealt with.
type gossip struct {
	more chan struct{} // one token

	mu   sync.Mutex
	jobs map[string]bool // guarded by mu, as is what follows
	all  bool            //
	ends bool            // of tokens, users or keys, maybe
}

func newGossip() *gossip { return &gossip{more: make(chan struct{}, 1), jobs: map[string]bool{}} }

func (g *gossip) put(n store.Notice) {
	g.mu.Lock()
	for _, id := range n.Jobs {
		g.jobs[id] = true
	}
	g.all = g.all || n.All
	g.ends = g.ends || n.Has(store.NewsUsers) || n.Has(store.NewsKeys)
	g.mu.Unlock()
	select {
	case g.more <- struct{}{}:
	default:
	}
}

func (g *gossip) take() (jobs []string, all, ends bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	jobs, all, ends = slices.Collect(maps.Keys(g.jobs)), g.all, g.ends
	g.jobs, g.all, g.ends = map[string]bool{}, false, false
	return jobs, all, ends
}

// listen passes on what other servers tell, until the server ends.
func (s *Server) listen() {
	said := false
	s.store.Listen(s.ctx, func(n store.Notice) {
		said = false
		s.told(n)
	}, func(err error) {
		if !said {
			s.log.Warn("other servers are not heard, looking now and then", "error", err)
		}
		said = true
	})
}

// told wakes whom a change on another server concerns.
func (s *Server) told(n store.Notice) {
	if n.All {
		s.watchers.all()
	} else {
		s.watchers.changed(store.Changes{Jobs: n.Jobs, Logs: n.Logs})
	}
	if n.All || len(n.Jobs) > 0 {
		s.tell()
	}
	if n.Has(store.NewsServers) {
		s.callRoll()
	}
	if n.Has(store.NewsReady) && s.fleet.hasRoom(s.now()) {
		s.store.Kick()
	}
	users, keys := n.Has(store.NewsUsers), n.Has(store.NewsKeys)
	if users {
		s.accounts.changed()
	}
	if keys {
		s.keys.stale()
	}
	if users || keys || n.Has(store.NewsDecisions) || len(s.fleet.mine(n.Jobs, n.All)) > 0 {
		s.gossip.put(n)
	}
}

// heed brings the runners that are connected here up to date with what has
// been decided about them on other servers of the store, the attempts here with
// what has become of them, and ends the sessions of people whose tokens have
// ended there.
func (s *Server) heed() {
	tick := time.NewTicker(heedEvery)
	defer tick.Stop()
	var (
		seen     string
		reviewed time.Time
		strange  = map[wire.JobRef]bool{}
	)
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
		jobs, all, ends := s.gossip.take()
		if ends {
			s.heedEnds()
		}
		all = all || s.now().Sub(reviewed) > reviewEvery
		if err = s.review(s.ctx, jobs, all); err == nil && all {
			reviewed = s.now()
			strange, err = s.findStrange(s.ctx, strange)
		}
		if err != nil && s.ctx.Err() == nil {
			s.log.Warn("changes of other servers not heeded, trying again", "error", err)
			s.gossip.put(store.Notice{All: true}) // at the next tick
			select {
			case <-s.gossip.more:
			default:
			}
		}
		select {
		case <-s.ctx.Done():
			return
		case <-s.gossip.more:
		case <-tick.C:
			s.heedEnds() // asks the store for what has been believed for long
		}
	}
}

// heedEnds ends the sessions whose tokens, users or keys have come to an end on
// another server. What the store does not answer is asked again.
func (s *Server) heedEnds() {
	if err := s.keys.renew(s.ctx); err != nil && s.ctx.Err() == nil {
		s.log.Warn("token keys not read, trying again", "error", err)
	}
	s.endLogins(s.ctx, nil)
}

// review compares attempts here with the store: what has ended or gone back to
// the queue is dropped, a cancel is passed on, what another server keeps is
// forgotten. The attempts are looked up first, so what is read of them is not older.
func (s *Server) review(ctx context.Context, jobs []string, all bool) error {
	refs := s.fleet.mine(jobs, all)
	if len(refs) == 0 {
		return nil
	}
	var (
		list []store.Active
		err  error
	)
	if all {
		list, err = s.store.Active(ctx)
	} else {
		ids := make([]string, len(refs))
		for i, ref := range refs {
			ids[i] = ref.Job
		}
		list, err = s.store.Kept(ctx, ids)
	}
	if err != nil {
		return err
	}
	is := make(map[string]store.Active, len(list))
	for _, a := range list {
		is[a.Job] = a
	}
	freed := false
	for _, ref := range refs {
		a, ok := is[ref.Job]
		switch {
		case !ok, a.Attempt != ref.Attempt, a.State != wire.Assigned && a.State != wire.Running:
			runner := s.fleet.runnerOf(ref)
			s.fleet.end(ref, true)
			s.fleet.settleRejected(runner)
			freed = true
		case a.Keeper != s.store.Instance():
			s.fleet.disclaim(ref)
		case a.CancelRequested:
			s.fleet.pass(ref)
		}
	}
	if freed {
		s.store.Kick()
	}
	return nil
}

// findStrange takes up jobs that are this server's by the store, and of which it
// knows nothing twice: whatever was lost here, no job stays for ever. seen are
// those of the look before.
func (s *Server) findStrange(ctx context.Context, seen map[wire.JobRef]bool) (map[wire.JobRef]bool, error) {
	active, err := s.store.Active(ctx)
	if err != nil {
		return seen, err
	}
	found, again := map[wire.JobRef]bool{}, []store.Active(nil)
	for _, a := range s.fleet.strange(active, s.store.Instance()) {
		if found[a.JobRef] = true; seen[a.JobRef] {
			again = append(again, a)
		}
	}
	return found, s.takeUp(ctx, again)
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
		r, _, err = s.arrive(ctx, v, again(v, tokens, s.now()), "")
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
