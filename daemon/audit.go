package daemon

import (
	"context"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/waypointd/waypoint/daemon/store"
	"github.com/waypointd/waypoint/mux"
	"github.com/waypointd/waypoint/mux/wire"
)

// What is recorded besides calls.
const (
	auditLogin   = "login"          // the hello of a person
	auditConnect = "runner.connect" // that of a runner, where it is refused
	auditResume  = "runner.resume"  // a runner.drain that ends one
)

const (
	// auditWindow is how long what is like an entry is counted there: what is
	// refused, and in auditLogins each login that is well.
	auditWindow = time.Minute
	auditLogins = time.Hour
	// How many such entries are open at once: of those of whom nothing is known,
	// and of all others. What is beyond is counted in one.
	maxStrangerWindows = 64
	maxWindows         = 2048
	// auditBatch is how many entries are kept in one commit.
	auditBatch = 256
)

// act is update for a call that is recorded: what it has done and that it has
// are one commit, so the answer never says what nobody can read of. Where the
// store has no room for both, the action goes first, and only the log has the
// entry. f says by about and note what there is to say.
func (s *Server) act(ctx context.Context, f func(*store.Tx) error) error {
	c := callOf(ctx)
	if !c.audited {
		return s.update(f)
	}
	err := s.update(func(tx *store.Tx) error {
		if err := f(tx); err != nil {
			return err
		}
		_, err := tx.Audit(c.entry(wire.AuditDone, nil, s.now()))
		return err
	})
	c.kept = err == nil
	if wire.KindOf(err) == wire.Unavailable && s.store.Full() {
		if err = s.update(f); err == nil {
			c.lost = true
		}
	}
	return err
}

// note says something more, for the audit, of what a call does: never a secret.
func note(ctx context.Context, key, value string) {
	c := callOf(ctx)
	if value == "" {
		return
	}
	if c.detail == nil {
		c.detail = map[string]string{}
	}
	c.detail[key] = value
}

// entry is what is to be said of a call. The detail is that of a call that was
// well: of others only what they were about is known for certain.
func (c *call) entry(outcome string, err error, now time.Time) wire.AuditEntry {
	e := wire.AuditEntry{
		At: utc(now), By: c.by.by, Role: c.by.role, Peer: c.peer.String(), Method: c.method, Object: secretless(c.object), Outcome: outcome,
	}
	if c.verb != "" {
		e.Method = c.verb
	}
	e.ActorKind, e.Actor = actor(c.peer, c.by)
	if err != nil {
		e.Object, e.Reason = plain(e.Object), plain(secretless(err.Error()))
		return e
	}
	for k, v := range c.detail {
		if e.Detail == nil {
			e.Detail = make(map[string]string, len(c.detail))
		}
		e.Detail[k] = plain(secretless(v))
	}
	return e
}

// actor is who it was that came by a peer.
func actor(p *mux.Peer, by caller) (wire.ActorKind, string) {
	if v, ok := p.Data.(*visitor); ok {
		return wire.ActorRunner, v.id
	}
	return actorOf(by.login, by.name)
}

func actorOf(l *login, name string) (wire.ActorKind, string) {
	switch {
	case l == nil, l.forRunners():
		return wire.ActorAnonymous, ""
	case l.shown():
		if name == "" {
			name = l.claims.User
		}
		return wire.ActorUser, name
	}
	if name == "" {
		name = l.name()
	}
	return wire.ActorHost, name
}

var tokenText = regexp.MustCompile(`(wp(?:run|usr|inv)_)[0-9A-Za-z_-]*`)

// secretless is a text without the tokens that somebody has put where they do
// not belong, such as in the place of a job's id.
func secretless(text string) string {
	if !strings.Contains(text, "wp") {
		return text
	}
	return tokenText.ReplaceAllString(text, "$1…")
}

// isRefusal reports whether an error says that somebody may not.
func isRefusal(err error) bool {
	switch wire.KindOf(err) {
	case wire.Denied, wire.Unauthenticated, wire.Expired:
		return true
	}
	return false
}

// concluded comes after every call, whether it was let through or not: who
// called what, of what, and how it has come out (nil is well).
func (s *Server) concluded(c *call, err error) {
	now := s.now()
	switch {
	case !c.audited:
	case c.kept:
		s.audited(c.entry(wire.AuditDone, nil, now), true)
	case c.lost:
		s.audited(c.entry(wire.AuditDone, nil, now), false)
	case err == nil:
		s.audit.add(auditKey{}, 0, c.entry(wire.AuditDone, nil, now))
	}
	if err == nil || !c.audited && !isRefusal(err) {
		return
	}
	s.audit.refused(c.peer, c.entry(string(wire.KindOf(err)), err, now))
}

// welcomed comes after every hello of a person, and those of runners that are
// refused. A login that is well is one where a token was shown: who is known by
// the kernel is named with each call.
func (s *Server) welcomed(ctx context.Context, peer *mux.Peer, l *login, runner string, err error) {
	if err != nil && !isRefusal(err) && !(runner != "" && wire.KindOf(err) == wire.Conflict) {
		return
	}
	now := s.now()
	e := wire.AuditEntry{At: utc(now), Peer: peer.String(), Method: auditLogin, Outcome: wire.AuditDone}
	if l != nil && !l.forRunners() {
		by, _ := s.caller(ctx, l, now)
		e.By, e.Role = by.by, by.role
		e.ActorKind, e.Actor = actorOf(l, by.name)
	} else {
		e.ActorKind = wire.ActorAnonymous // an id that is said proves nothing
	}
	if runner != "" {
		e.Method, e.Object = auditConnect, plain(secretless(runner))
	}
	if err != nil {
		e.Outcome, e.Reason = string(wire.KindOf(err)), plain(secretless(err.Error()))
		s.audit.refused(peer, e)
		return
	}
	if l == nil || !l.shown() || l.forRunners() {
		return
	}
	_, group := peerOf(peer)
	s.audit.add(auditKey{group: group, actor: e.Who() + e.By, method: e.Method}, auditLogins, e)
}

// audited is the line of the log for an entry; kept tells whether the store has
// it. What it has not is said whatever the configuration is.
func (s *Server) audited(e wire.AuditEntry, kept bool) {
	attrs := []any{"actor", e.Who(), "role", string(e.Role), "peer", e.Peer, "method", e.Method, "object", e.Object, "outcome", e.Outcome}
	if e.Reason != "" {
		attrs = append(attrs, "reason", e.Reason)
	}
	if e.Count > 1 {
		attrs = append(attrs, "count", e.Count)
	}
	switch {
	case !kept:
		s.log.Error("audit entry is in this log only", attrs...)
	case !s.cfg().NoAuditLog:
		s.log.Info("audit", attrs...)
	}
}

// auditor keeps what no transaction of its own keeps: refusals, logins, and what
// is done outside of the store. What is alike is counted, so that a flood costs
// little of the disk, and of memory no more than a bounded part.
type auditor struct {
	wake  chan struct{} // room for one
	write func(ctx context.Context, entries []*auditItem)

	writing sync.Mutex // held by flush, so that who has waited for it finds all

	mu      sync.Mutex
	pending []*auditItem            // not in the store yet; guarded by mu, as is what follows
	windows map[auditKey]*auditItem // what is counted
	strange int                     // windows of those of whom nothing is known
}

// auditKey is the same of what is counted as one.
type auditKey struct {
	group   string // of the peer
	actor   string
	method  string
	outcome string
}

// auditItem is an entry on its way to the store, or there with something to add.
type auditItem struct {
	wire.AuditEntry
	until   time.Time // the end of its window, by the clock that nobody sets
	pending bool      // waits to be written for the first time
	said    int64     // the Count that has been written
	gone    bool      // the store could not keep it
}

func newAuditor(write func(ctx context.Context, entries []*auditItem)) *auditor {
	return &auditor{write: write, wake: make(chan struct{}, 1), windows: map[auditKey]*auditItem{}}
}

// refused records a refusal.
func (a *auditor) refused(p *mux.Peer, e wire.AuditEntry) {
	_, group := peerOf(p)
	k := auditKey{group: group, method: e.Method, outcome: e.Outcome}
	if e.ActorKind == wire.ActorUser || e.ActorKind == wire.ActorHost { // whose names are not his to choose
		k.actor = e.Who()
	}
	a.add(k, auditWindow, e)
}

// add records an entry, or counts it where one of its key is there; the zero
// key is nothing's.
func (a *auditor) add(k auditKey, window time.Duration, e wire.AuditEntry) {
	a.mu.Lock()
	defer a.mu.Unlock()
	item := &auditItem{AuditEntry: e}
	if k != (auditKey{}) {
		if w := a.windows[k]; w == nil && a.crowded(e) {
			k = auditKey{actor: "others", method: string(e.ActorKind)}
			item.AuditEntry = wire.AuditEntry{At: e.At, ActorKind: e.ActorKind, Peer: "many", Method: "any", Outcome: e.Outcome,
				Reason: "too many peers at once to tell them apart"}
			window = auditWindow
		}
		if w := a.windows[k]; w != nil {
			w.Count = max(w.Count, 1) + 1
			w.LastAt = e.At
			return
		}
		item.until = time.Now().Add(window)
		a.windows[k] = item
		if unproved(e) {
			a.strange++
		}
	}
	item.pending = true
	a.pending = append(a.pending, item)
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

// unproved reports whether an entry is of somebody who may call himself anything.
func unproved(e wire.AuditEntry) bool {
	return e.ActorKind == wire.ActorAnonymous || e.ActorKind == wire.ActorRunner
}

func (a *auditor) crowded(e wire.AuditEntry) bool {
	if unproved(e) {
		return a.strange >= maxStrangerWindows
	}
	return len(a.windows)-a.strange >= maxWindows
}

// take returns what is to be written: what is new, and with the windows that
// have ended by now what was counted in them.
func (a *auditor) take(now time.Time, all bool) (items []*auditItem, next time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	items, a.pending = a.pending, nil
	for k, w := range a.windows {
		if !all && now.Before(w.until) {
			if next.IsZero() || w.until.Before(next) {
				next = w.until
			}
			continue
		}
		delete(a.windows, k)
		if unproved(w.AuditEntry) {
			a.strange--
		}
		if !w.pending && w.Count != w.said {
			items = append(items, w)
		}
	}
	for _, item := range items {
		item.pending = false
	}
	return items, next
}

// flush writes what there is to write; all ends all windows. It returns when the
// next one ends, the zero time for none.
func (a *auditor) flush(ctx context.Context, all bool) (next time.Time) {
	a.writing.Lock()
	defer a.writing.Unlock()
	items, next := a.take(time.Now(), all)
	for len(items) > 0 {
		n := min(len(items), auditBatch)
		a.write(ctx, items[:n])
		items = items[n:]
	}
	return next
}

// keepAudit is the one goroutine that writes what others have recorded.
func (s *Server) keepAudit() {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		select {
		case <-s.audit.wake:
		case <-timer.C:
		case <-s.ctx.Done():
			return
		}
		if next := s.audit.flush(s.ctx, false); !next.IsZero() {
			timer.Reset(max(time.Until(next), time.Second))
		}
	}
}

// writeAudit brings entries to the store, or where that takes no more to the log.
// While only the reserve is left it takes none: that is for what is under way.
func (s *Server) writeAudit(ctx context.Context, items []*auditItem) {
	ids := make([]string, len(items))
	entries := make([]wire.AuditEntry, len(items))
	s.audit.mu.Lock() // others count meanwhile
	for i, item := range items {
		entries[i] = item.AuditEntry
	}
	s.audit.mu.Unlock()
	var err error = errNoRoomForAudit
	if s.storeProblem() == "" {
		err = s.store.Update(context.WithoutCancel(ctx), func(tx *store.Tx) (err error) {
			for i, e := range entries {
				switch {
				case items[i].gone:
				case e.ID == "":
					ids[i], err = tx.Audit(e)
				default:
					err = tx.CountAudit(e.ID, e.Count, e.LastAt)
				}
				if err != nil {
					return err
				}
			}
			return nil
		})
	}
	for i, item := range items {
		item.gone = item.gone || err != nil
		s.audited(entries[i], !item.gone)
	}
	s.audit.mu.Lock()
	defer s.audit.mu.Unlock()
	for i, item := range items {
		item.said = entries[i].Count
		if err == nil && ids[i] != "" {
			item.ID = ids[i]
		}
	}
}

var errNoRoomForAudit = wire.Errorf(wire.Unavailable, "no space left for the audit")

// auditList is one page of the audit, with all that was recorded before the call.
func (s *Server) auditList(ctx context.Context, _ *mux.Peer, f wire.AuditFilter) (page wire.AuditPage, err error) {
	s.audit.flush(ctx, false)
	if page.Entries, page.Next, err = s.store.AuditEntries(ctx, f); err != nil {
		return wire.AuditPage{}, err
	}
	if n := fitting(page.Entries); n < len(page.Entries) {
		page.Entries, page.More, page.Next = page.Entries[:n], true, ""
	}
	return page, nil
}

// noteToken says of a token that is made which one it is.
func noteToken(ctx context.Context, c wire.Claims) {
	note(ctx, "token", strconv.FormatInt(c.Serial, 10))
	note(ctx, "expires_at", c.Expiry.UTC().Format(time.RFC3339))
}

// keep records what a call that is no transaction of the store does, in one of
// its own; it reports whether there was room.
func (s *Server) keep(ctx context.Context, outcome string) (e wire.AuditEntry, kept bool) {
	e = callOf(ctx).entry(outcome, nil, s.now())
	err := s.store.Update(context.WithoutCancel(ctx), func(tx *store.Tx) error {
		_, err := tx.Audit(e)
		return err
	})
	return e, err == nil
}
