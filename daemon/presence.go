package daemon

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/waypointd/waypoint/daemon/store"
	"github.com/waypointd/waypoint/mux/wire"
)

// Over a store that several servers share, each counts its beats there, and
// each looks at the others': one that has not counted for missedBeats of its own
// time is missed, by the clock of the one that looks. Who misses a server takes
// over what it kept. A server that was missed and lives (it was stopped, or cut
// off) finds its row gone, says again who is connected to it, and takes back
// what those runners hold.

const (
	beatLongest  = 3 * time.Second
	beatLeast    = 20 * time.Millisecond // of tests
	missedBeats  = 5
	callPause    = 20 * time.Millisecond // between two looks that something has asked for
	answerWithin = 2 * time.Second       // a server that does not say that it has seen a claim is not there
	leaveWithin  = 2 * time.Second       // a server that ends does not wait longer for the database
)

// beatEvery is three times in a heartbeat's time.
func (c *Config) beatEvery() time.Duration {
	return max(beatLeast, min(beatLongest, c.Heartbeat*3/10))
}

// presence is what this server knows of the others.
type presence struct {
	mu        sync.Mutex
	seen      map[string]sighting // by instance; guarded by mu
	looked    time.Time           // last; guarded by mu
	written   map[string]string   // how the store describes the runners connected here; guarded by mu
	answering map[string]bool     // runners that another server claims; guarded by mu
}

// sighting is another server as it was seen last.
type sighting struct {
	store.Instance
	moved time.Time // when its beats had changed, by this process's clock
}

func newPresence() *presence {
	return &presence{seen: map[string]sighting{}, written: map[string]string{}, answering: map[string]bool{}}
}

// observe takes note of the servers there are, and returns the beats of those
// that are missed. Of the time in which this process did not look nothing
// follows: everybody is observed anew.
func (p *presence) observe(list []store.Instance, own string, every time.Duration, now time.Time) map[string]int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	anew := now.Sub(p.looked) > 2*every+clockLate
	p.looked = now
	seen, missed := map[string]sighting{}, map[string]int64{}
	for _, i := range list {
		was, ok := p.seen[i.ID]
		is := sighting{Instance: i, moved: was.moved}
		if !ok || anew || was.Beats != i.Beats {
			is.moved = now
		}
		seen[i.ID] = is
		if i.ID != own && now.Sub(is.moved) > missedBeats*i.Every {
			missed[i.ID] = i.Beats
		}
	}
	p.seen = seen
	return missed
}

// there reports whether a server is known and not missed.
func (p *presence) there(id string, now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	s, ok := p.seen[id]
	return ok && now.Sub(s.moved) <= missedBeats*s.Every
}

// wrote notes how a runner is described in the store; "" where it is not.
func (p *presence) wrote(runner, view string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if view == "" {
		delete(p.written, runner)
	} else {
		p.written[runner] = view
	}
}

// callRoll has the server look at once who is where.
func (s *Server) callRoll() {
	select {
	case s.roll <- struct{}{}:
	default:
	}
}

// beat counts, and looks, until the server ends.
func (s *Server) beat() {
	timer := time.NewTimer(s.cfg().beatEvery())
	defer timer.Stop()
	next := s.now().Add(s.cfg().beatEvery())
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-timer.C:
		case <-s.roll:
		}
		now := s.now()
		beats := !now.Before(next)
		if beats {
			next = now.Add(s.cfg().beatEvery())
		}
		if err := s.look(s.ctx, now, beats); err != nil && s.ctx.Err() == nil {
			s.log.Warn("other servers not seen, trying again", "error", err)
		}
		timer.Reset(max(callPause, next.Sub(s.now())))
		select { // however much there is to see
		case <-s.ctx.Done():
			return
		case <-time.After(callPause):
		}
	}
}

// look brings the store up to date with who is connected here, and this server
// with who is elsewhere.
func (s *Server) look(ctx context.Context, now time.Time, beat bool) error {
	here := s.fleet.places()
	servers, err := s.store.Servers(ctx)
	if err != nil {
		return err
	}
	sessions, err := s.store.Sessions(ctx)
	if err != nil {
		return err
	}
	own := s.store.Instance()
	missed := s.presence.observe(servers, own, s.cfg().beatEvery(), now)
	s.store.Announce(len(servers) > 1)
	r := s.sort(here, sessions, now)
	if err := s.note(ctx, r, beat); err != nil {
		return err
	}
	for _, p := range r.moved {
		if s.fleet.depart(p.m) {
			s.log.Info("runner is connected to another server", "runner", p.m.id)
			s.tell()
		}
	}
	for runner, by := range r.claimed {
		s.answer(runner, by)
	}
	return s.takeFrom(ctx, servers, missed)
}

// place is a runner that works here.
type place struct {
	m    *member
	view string
}

// rollCall is what has to be written or done about who is connected where.
type rollCall struct {
	put     map[string]place  // not in the store, or with a server that is gone
	view    map[string]place  // they look different now
	drop    []string          // they have left
	moved   []place           // they are connected elsewhere
	claimed map[string]string // another server says that they have come to it
}

func (s *Server) sort(here map[string]place, sessions []store.Session, now time.Time) rollCall {
	r := rollCall{put: map[string]place{}, view: map[string]place{}, claimed: map[string]string{}}
	own := s.store.Instance()
	stored := map[string]bool{}
	for _, at := range sessions {
		p, works := here[at.Runner]
		switch {
		case at.Server == own && works:
			stored[at.Runner] = true
			s.presence.mu.Lock()
			if s.presence.written[at.Runner] != p.view {
				r.view[at.Runner] = p
			}
			s.presence.mu.Unlock()
		case at.Server == own:
			if !s.fleet.joined(at.Runner) {
				r.drop = append(r.drop, at.Runner)
			}
		case works && s.presence.there(at.Server, now):
			stored[at.Runner] = true
			r.moved = append(r.moved, p)
		}
		if at.Server == own && at.Claim != "" && !strings.HasPrefix(at.Claim, store.Seen) {
			r.claimed[at.Runner] = at.Claim
		}
	}
	for id, p := range here {
		if !stored[id] {
			r.put[id] = p
		}
	}
	return r
}

// note writes a roll call, and a beat, in one commit; jobs of runners that are
// here come back from those who had taken them over.
func (s *Server) note(ctx context.Context, r rollCall, beat bool) error {
	strays, err := s.store.Strays(ctx)
	if err != nil {
		return err
	}
	if !beat && strays == 0 && len(r.put)+len(r.view)+len(r.drop) == 0 {
		return nil
	}
	var (
		back []store.Active
		put  map[string]bool
	)
	host, _ := os.Hostname() // for people
	if err := s.store.Update(ctx, func(tx *store.Tx) error {
		back, put = nil, map[string]bool{}
		if _, err := tx.Beat(host, s.cfg().beatEvery(), s.started); err != nil {
			return err
		}
		for id, p := range r.put {
			ok, err := tx.ReturnSession(id, p.view, func(server string) bool { return s.presence.there(server, s.now()) })
			if err != nil {
				return err
			}
			put[id] = ok
		}
		for id, p := range r.view {
			if err := tx.ViewSession(id, p.view); err != nil {
				return err
			}
		}
		for _, id := range r.drop {
			if s.fleet.joined(id) {
				continue // it has come back since, and may be in the store anew
			}
			if err := tx.DropSession(id); err != nil {
				return err
			}
		}
		if strays > 0 || len(r.put) > 0 {
			back, err = tx.TakeBack()
		}
		return err
	}); err != nil {
		return err
	}
	for id, p := range r.put {
		if put[id] {
			s.presence.wrote(id, p.view)
		}
	}
	for id, p := range r.view {
		s.presence.wrote(id, p.view)
	}
	for _, id := range r.drop {
		s.presence.wrote(id, "")
	}
	return s.takeUp(ctx, back)
}

// takeFrom takes over what servers kept that are gone.
func (s *Server) takeFrom(ctx context.Context, servers []store.Instance, missed map[string]int64) error {
	keepers, err := s.store.Keepers(ctx)
	if err != nil {
		return err
	}
	stray := slices.ContainsFunc(keepers, func(k string) bool {
		return !slices.ContainsFunc(servers, func(i store.Instance) bool { return i.ID == k })
	})
	if len(missed) == 0 && !stray {
		return nil
	}
	var (
		taken   []store.Active
		removed []store.Instance
	)
	if err := s.store.Update(ctx, func(tx *store.Tx) (err error) {
		taken, removed, err = tx.TakeFrom(missed)
		return err
	}); err != nil {
		return err
	}
	for _, i := range removed {
		s.log.Warn("another server is missed", "server", i.ID, "hostname", i.Host)
	}
	if len(taken) > 0 {
		s.log.Warn("jobs of another server are kept here now", "count", len(taken))
	}
	if err := s.takeUp(ctx, taken); err != nil {
		return err
	}
	if len(removed) == 0 {
		return nil
	}
	// Of a command line that went with its server nobody else would ask.
	awaited, err := s.store.Awaited(ctx)
	if err != nil {
		return err
	}
	s.fleet.await(awaited, s.now())
	s.wakeClock()
	return nil
}

// takeUp makes attempts this server's that the store has given to it.
func (s *Server) takeUp(ctx context.Context, taken []store.Active) error {
	if len(taken) == 0 {
		return nil
	}
	orphaned, err := s.orphaned(ctx, taken)
	if err != nil {
		return err
	}
	s.store.Matched()
	s.fleet.takeUp(taken, orphaned, s.now())
	s.wakeClock()
	return nil
}

// settleDown makes this server one of those of the store, and returns the
// active jobs that are its own now: those that nobody keeps who is there. Of the
// process before it on the same state directory the lock says that it is gone.
func (s *Server) settleDown(ctx context.Context) (active []store.Active, err error) {
	const name = "instance"
	before, err := os.ReadFile(s.dir.Path(name))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if err := s.dir.WriteFile(name, []byte(s.store.Instance()), 0o600); err != nil {
		return nil, err
	}
	host, _ := os.Hostname()
	err = s.store.Update(ctx, func(tx *store.Tx) error {
		if id := strings.TrimSpace(string(before)); id != "" {
			if err := tx.DropServer(id); err != nil {
				return err
			}
		}
		if _, err := tx.Beat(host, s.cfg().beatEvery(), s.started); err != nil {
			return err
		}
		active, _, err = tx.TakeFrom(nil)
		return err
	})
	return active, err
}

// moveOut has the others take over at once what this server kept.
func (s *Server) moveOut() {
	if !s.store.Shared() {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), leaveWithin)
	defer cancel()
	if err := s.store.Update(ctx, func(tx *store.Tx) error { return tx.DropServer(s.store.Instance()) }); err != nil {
		s.log.Warn("other servers not told of this one's end", "error", err)
	}
}

// ask returns when a runner that has come here is not connected to another
// server any more: that one is asked, and hears the runner or gives it up. A
// Conflict is a runner that is there and alive, so this one is a copy.
func (s *Server) ask(ctx context.Context, m *member) error {
	if !s.store.Shared() || m.kind == wire.KindLocal {
		return nil
	}
	own := s.store.Instance()
	at, err := s.store.Session(ctx, m.id)
	if err != nil {
		return err
	}
	there := at.Server
	if there == "" || there == own || !s.presence.there(there, s.now()) {
		return nil
	}
	if err := s.update(func(tx *store.Tx) error { return tx.Claim(m.id, there) }); err != nil {
		return err
	}
	began := s.now()
	poll := time.NewTicker(50 * time.Millisecond)
	defer poll.Stop()
	for {
		if at, err = s.store.Session(ctx, m.id); err != nil {
			return err
		}
		waited := s.now().Sub(began)
		switch {
		case at.Server != there:
			return nil
		case at.Claim != own && at.Claim != store.Seen+own:
			return wire.Errorf(wire.Conflict, "runner %q is connected already, to another server", m.id).
				WithHint("each agent needs a state directory of its own")
		case at.Claim == own && waited > answerWithin, waited > 2*m.heartbeat+answerWithin:
			return nil
		}
		select {
		case <-poll.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// answer says whether a runner that another server claims is alive here.
func (s *Server) answer(runner, by string) {
	s.presence.mu.Lock()
	busy := s.presence.answering[runner]
	s.presence.answering[runner] = true
	s.presence.mu.Unlock()
	if busy {
		return
	}
	s.work.Go(func() {
		defer func() {
			s.presence.mu.Lock()
			delete(s.presence.answering, runner)
			s.presence.mu.Unlock()
		}()
		if err := s.answerClaim(runner, by); err != nil && s.ctx.Err() == nil {
			s.log.Warn("another server not answered", "runner", runner, "error", err)
		}
	})
}

func (s *Server) answerClaim(runner, by string) error {
	since, late := s.uptime(), false
	if err := s.store.Update(s.ctx, func(tx *store.Tx) error { return tx.SeeClaim(runner, by) }); err != nil {
		return err
	}
	for m := s.fleet.member(runner); m != nil && !late; m = s.fleet.member(runner) {
		if m.heard.Load() > since {
			return s.store.Update(s.ctx, func(tx *store.Tx) error { return tx.Refuse(runner, by) })
		}
		late = time.Duration(s.uptime()-since) > m.heartbeat*3/2
		if late {
			m.replaced(errReplaced)
			s.fleet.leave(m, s.now())
			break
		}
		select {
		case <-s.ctx.Done():
			return context.Cause(s.ctx)
		case <-time.After(min(max(m.heartbeat/20, time.Millisecond), time.Second)):
		}
	}
	s.presence.wrote(runner, "")
	return s.store.Update(s.ctx, func(tx *store.Tx) error { return tx.YieldSession(runner, by) })
}

// takeIn makes this server the keeper of all that a runner holds which begins
// to work here, wherever it was before. Where the store is not shared all is
// this server's since its start.
func (s *Server) takeIn(ctx context.Context, m *member) error {
	if !s.store.Shared() {
		return nil
	}
	view := s.fleet.describe(m)
	var held []store.Active
	if err := s.update(func(tx *store.Tx) (err error) {
		if held, err = tx.TakeOver(m.id); err != nil {
			return err
		}
		return tx.PutSession(m.id, view)
	}); err != nil {
		return err
	}
	s.presence.wrote(m.id, view)
	orphaned, err := s.orphaned(ctx, held)
	if err != nil {
		return err
	}
	s.store.Matched()
	s.fleet.takeIn(m, held, s.store.Instance(), orphaned)
	return nil
}

// view is how the store describes a runner to other servers.
type view struct {
	Kind        wire.RunnerKind   `json:"kind"`
	Standing    wire.Standing     `json:"standing"`
	Problem     wire.Problem      `json:"problem,omitempty"`
	Detail      string            `json:"detail,omitempty"`
	Labels      map[string]string `json:"labels,omitempty"`
	Hello       wire.RunnerHello  `json:"hello"`
	Version     string            `json:"version"`
	Peer        string            `json:"peer"`
	Draining    bool              `json:"draining,omitempty"`
	OnHost      bool              `json:"on_host,omitempty"`
	Concurrency int               `json:"concurrency"`
	Waits       []wire.Wait       `json:"waits,omitempty"`
	Owner       string            `json:"owner,omitempty"` // see login.owner; of a command line's own
}

func (v memberView) text() string {
	text, err := json.Marshal(view{
		Kind: v.kind, Standing: v.standing, Problem: v.problem, Detail: v.detail, Labels: v.labels, Hello: v.hello,
		Version: v.version, Peer: v.peer, Draining: v.draining, OnHost: v.onHost, Concurrency: v.concurrency, Owner: v.owner, Waits: v.waits,
	})
	if err != nil {
		panic(err) // plain data always has a text
	}
	return string(text)
}

// readView is what text describes; false where it cannot be read (of another release).
func readView(id, text string, held int, now time.Time) (memberView, bool) {
	var d view
	if json.Unmarshal([]byte(text), &d) != nil {
		return memberView{}, false
	}
	v := memberView{
		id: id, kind: d.Kind, standing: d.Standing, problem: d.Problem, detail: d.Detail, labels: d.Labels, hello: d.Hello,
		version: d.Version, peer: d.Peer, draining: d.Draining, onHost: d.OnHost, concurrency: d.Concurrency, held: held, owner: d.Owner, waits: d.Waits,
	}
	v.admitted = d.Standing.Admitted && (d.Standing.Expiry.IsZero() || now.Before(d.Standing.Expiry))
	v.available = v.admitted && !v.draining
	return v, true
}

// everywhere are the runners that are connected to any server of the store, in
// the order of their ids.
func (s *Server) everywhere(ctx context.Context) ([]memberView, error) {
	views := s.fleet.online()
	if !s.store.Shared() {
		return views, nil
	}
	elsewhere, err := s.store.Elsewhere(ctx)
	if err != nil || len(elsewhere) == 0 {
		return views, err
	}
	held, err := s.store.Held(ctx)
	if err != nil {
		return nil, err
	}
	here, now := map[string]bool{}, s.now()
	for _, v := range views {
		here[v.id] = true
	}
	for _, at := range elsewhere {
		if here[at.Runner] || !s.presence.there(at.Server, now) {
			continue
		}
		if v, ok := readView(at.Runner, at.View, held[at.Runner], now); ok {
			views = append(views, v)
		}
	}
	slices.SortFunc(views, func(a, b memberView) int { return cmp.Compare(a.id, b.id) })
	return views, nil
}

// connected is one of everywhere.
func (s *Server) connected(ctx context.Context, id string) (memberView, bool) {
	if v, ok := s.fleet.get(id); ok || !s.store.Shared() {
		return v, ok
	}
	at, err := s.store.Session(ctx, id)
	now := s.now()
	if err != nil || at.Server == s.store.Instance() || !s.presence.there(at.Server, now) {
		return memberView{}, false
	}
	return readView(id, at.View, s.jobsOf(ctx, id), now)
}

// jobsOf is how many active jobs a runner has.
func (s *Server) jobsOf(ctx context.Context, id string) int {
	if s.store.Shared() {
		if held, err := s.store.Held(ctx); err == nil {
			return held[id]
		}
	}
	return s.fleet.count(id)
}

// mayReport reports whether a runner that gets no jobs has some to report.
func (s *Server) mayReport(ctx context.Context, id string) bool {
	return s.fleet.mayReport(id) || s.store.Shared() && !s.fleet.hasOrphans(id) && s.jobsOf(ctx, id) > 0
}
