package daemon

import (
	"context"
	"fmt"
	"maps"
	"sync"
	"time"

	"github.com/waypointd/waypoint/daemon/store"
	"github.com/waypointd/waypoint/mux/wire"
)

const (
	// accountsFresh is how long what was read of a token and its user is
	// believed where nothing is heard of another server of the database that
	// changes it: its notice was lost, or none can come.
	accountsFresh = 5 * time.Second
	// accountsKept bounds how many are remembered: past it all are read anew.
	accountsKept = 10_000
	// usesEvery is how exact the time of a token's last use is: one commit for
	// all that were used meanwhile.
	usesEvery = time.Minute
)

// accounts is what this process knows of the tokens that are shown to it and of
// the users behind them. The store has them; a change is known at once to the
// server that has made it.
type accounts struct {
	read func(ctx context.Context, c wire.Claims) (store.UserTokenRecord, store.UserRecord, error)
	keep func(uses map[int64]time.Time)

	keeping sync.Mutex // held by flush, so that who has waited for it finds all kept

	mu    sync.Mutex
	fresh time.Duration       // accountsFresh; guarded by mu, as is what follows
	known map[int64]account   // by serial
	edits int                 // changes that were heard of
	uses  map[int64]time.Time // not in the store yet, by serial
	timer *time.Timer         // that keeps them; nil: not running
}

// account is a user as a token of his shows him.
type account struct {
	store.UserRecord
	token store.UserTokenRecord
	at    time.Time // when it was read
}

func newAccounts(read func(context.Context, wire.Claims) (store.UserTokenRecord, store.UserRecord, error), keep func(map[int64]time.Time)) *accounts {
	return &accounts{read: read, keep: keep, fresh: accountsFresh, known: map[int64]account{}, uses: map[int64]time.Time{}}
}

// find is whose a token is whose claims have been proved, and notes its use.
// Unauthenticated where the token or its user has come to an end; else the error
// is the store's.
func (a *accounts) find(ctx context.Context, c wire.Claims, now time.Time) (account, error) {
	found, err := a.look(ctx, c)
	if err == nil && c.Kind == wire.UserToken {
		a.used(c.Serial, now)
	}
	return found, err
}

// look is find for who does not use the token.
func (a *accounts) look(ctx context.Context, c wire.Claims) (account, error) {
	for {
		a.mu.Lock()
		found, ok := a.known[c.Serial]
		edits, fresh := a.edits, a.fresh
		a.mu.Unlock()
		if ok && time.Since(found.at) < fresh {
			return found, found.judge()
		}
		began := time.Now()
		t, u, err := a.read(ctx, c)
		if wire.KindOf(err) == wire.NotFound {
			return account{}, unknownToken(c)
		}
		if err != nil {
			return account{}, err
		}
		found = account{UserRecord: u, token: t, at: began}
		a.mu.Lock()
		current := a.edits == edits
		if current {
			if len(a.known) >= accountsKept {
				clear(a.known)
			}
			a.known[c.Serial] = found
		}
		a.mu.Unlock()
		if current {
			return found, found.judge()
		}
	}
}

const askForToken = "make a new one on the server's host (waypoint user token), or ask an admin for an invite, then: waypoint login"

// judge reports what has become of a token.
func (found account) judge() error {
	t := found.token
	switch {
	case !found.DeletedAt.IsZero(), t.Serial < found.Since && !t.RevokedAt.IsZero() && t.RevokedAt.Before(found.CreatedAt):
		return wire.Errorf(wire.Unauthenticated, "the user %s has been deleted", found.Name).WithHint("ask an admin for an invite: waypoint user invite %s", found.Name)
	case t.Serial < found.Since && t.RevokedAt.IsZero():
		return wire.Errorf(wire.Unauthenticated, "the token %d is from before there was this user %s, or from before all of his were revoked", t.Serial, found.Name).
			WithHint("%s", askForToken)
	case !t.RevokedAt.IsZero():
		return wire.Errorf(wire.Unauthenticated, "the token %d was revoked at %s by %s", t.Serial, stamp(t.RevokedAt), t.RevokedBy).WithHint("%s", askForToken)
	case t.Kind == wire.InviteToken && !t.UsedAt.IsZero():
		return wire.Errorf(wire.Unauthenticated, "the invite was used at %s", stamp(t.UsedAt)).WithHint("ask an admin for another one: waypoint user invite %s", found.Name)
	}
	return nil
}

// changed makes the next calls read anew: something was changed, here or on
// another server.
func (a *accounts) changed() {
	a.mu.Lock()
	defer a.mu.Unlock()
	clear(a.known)
	a.edits++
}

// used notes that a token has been used, to be kept with others.
func (a *accounts) used(serial int64, now time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.uses[serial] = now
	if a.timer == nil {
		a.timer = time.AfterFunc(usesEvery, a.flush)
	}
}

// flush keeps what has been noted, also by one that the timer has begun.
func (a *accounts) flush() {
	a.keeping.Lock()
	defer a.keeping.Unlock()
	a.mu.Lock()
	if a.timer != nil {
		a.timer.Stop()
		a.timer = nil
	}
	uses := a.uses
	a.uses = map[int64]time.Time{}
	a.mu.Unlock()
	if len(uses) > 0 {
		a.keep(uses)
	}
}

// lastUses are those that are not in the store yet.
func (a *accounts) lastUses() map[int64]time.Time {
	a.mu.Lock()
	defer a.mu.Unlock()
	return maps.Clone(a.uses)
}

// keepUses writes when tokens were used last. What cannot be written is not
// tried again: the next use comes, or is of no matter.
func (s *Server) keepUses(uses map[int64]time.Time) {
	if err := s.update(func(tx *store.Tx) error {
		for serial, at := range uses {
			if err := tx.UseUserToken(serial, at); err != nil {
				return err
			}
		}
		return nil
	}); err != nil && s.ctx.Err() == nil {
		s.log.Warn("last use of tokens not recorded", "error", err)
	}
}

// confirm asks the store, in the transaction that changes what outlasts the call
// (a token, a key, a user, a decision about a runner), for its caller: what is believed
// of him may be older than what another server has done to his token or his role.
func (s *Server) confirm(tx *store.Tx, by caller) error { return s.confirmBy(tx.Bearer, by) }

// confirmBy is confirm with what the store has of a token asked of find.
func (s *Server) confirmBy(find func(serial int64, user string) (store.UserTokenRecord, store.UserRecord, error), by caller) error {
	if by.login == nil || by.login.claims.Kind != wire.UserToken {
		return nil
	}
	c := by.login.claims
	t, u, err := find(c.Serial, c.User)
	if wire.KindOf(err) == wire.NotFound {
		return unknownToken(c)
	}
	if err != nil {
		return err
	}
	if err := (account{UserRecord: u, token: t}).judge(); err != nil {
		return err
	}
	if u.Role != by.role || u.Limits.String() != by.limits.String() {
		s.accounts.changed()
		return wire.Errorf(wire.Denied, "what %s may do was changed a moment ago: %s is %s now%s", u.Name, u.Name, article(u.Role), limitWords(u.Limits)).
			WithHint("where that is enough, run the command again")
	}
	return nil
}

// unknownToken is what a token is told of which the store knows nothing.
func unknownToken(c wire.Claims) error {
	return wire.Errorf(wire.Unauthenticated, "the token %d is not, or no longer, known here", c.Serial).
		WithHint("%s", askForToken)
}

// bearer is what the store has of a token, whose claims have been proved. Tokens
// from before there were accounts come without a row: their claims say whose they
// are, and whoever had one could do all there was, so he is an admin.
func (s *Server) bearer(ctx context.Context, c wire.Claims) (t store.UserTokenRecord, u store.UserRecord, err error) {
	t, u, err = s.store.Bearer(ctx, c.Serial, c.User)
	if wire.KindOf(err) != wire.NotFound || c.Kind != wire.UserToken {
		return t, u, err
	}
	missing := err
	err = s.store.Update(ctx, func(tx *store.Tx) error {
		last, err := tx.ClaimedSerial()
		if err != nil {
			return err
		}
		if c.Serial > last {
			return missing
		}
		if _, err := tx.UserToken(c.Serial); wire.KindOf(err) != wire.NotFound {
			return missing // of another user
		}
		known, found, err := tx.User(c.User)
		if err != nil {
			return err
		}
		if !found {
			known = store.UserRecord{Name: c.User, Role: wire.Admin, UID: -1, CreatedAt: c.Issued, CreatedBy: "a token of before there were roles"}
			if err := tx.PutUser(known); err != nil {
				return err
			}
		}
		t, u = store.UserTokenRecord{Serial: c.Serial, Kind: c.Kind, User: c.User, CreatedAt: c.Issued, Expiry: c.Expiry}, known
		if known.Since > c.Serial { // somebody else by now
			return nil
		}
		return tx.AddUserToken(t)
	})
	if err == nil && t.Serial >= u.Since {
		s.log.Info("token of before there were roles taken over", "user", u.Name, "serial", c.Serial, "role", u.Role)
	}
	return t, u, err
}

// hostRoles are a configuration's, with a word about names that are not known.
func (s *Server) hostRoles(a Access) *hostRoles {
	return newHostRoles(a, func(what, name string) {
		s.log.Warn("access of a name that this host does not know is passed over", "kind", what, "name", name)
	})
}

// fresh is a new user, or one in the place of a deleted one.
func fresh(tx *store.Tx, name string, r wire.UserRole, l wire.Limits, uid int, by string, now time.Time) (store.UserRecord, error) {
	if err := checkAccount(name, r, l); err != nil {
		return store.UserRecord{}, err
	}
	since, err := tx.NextSerial(now)
	if err != nil {
		return store.UserRecord{}, err
	}
	u := store.UserRecord{
		Name: name, Role: r, Limits: l, UID: uid, Since: since, CreatedAt: now.UTC().Truncate(time.Microsecond), CreatedBy: by,
	}
	return u, tx.PutUser(u)
}

// checkAccount reports what no user can be.
func checkAccount(name string, r wire.UserRole, l wire.Limits) error {
	if err := wire.CheckUserName(name); err != nil {
		return err
	}
	if err := wire.CheckUserRole(r); err != nil {
		return err
	}
	if err := wire.CheckLimits(l); err != nil {
		return err
	}
	if r == wire.Admin && !l.None() {
		return wire.Errorf(wire.BadUsage, "an admin cannot be limited: he could end his limits himself").WithHint("make %s an operator", name)
	}
	return nil
}

// wanted is the user of a name, who is made where there is none and a role was
// given. One that exists is not changed by this, and has to be as was asked for.
func wanted(tx *store.Tx, name string, r wire.UserRole, l wire.Limits, by string, now time.Time) (store.UserRecord, error) {
	u, found, err := tx.User(name)
	switch {
	case err != nil:
		return u, err
	case !found || !u.DeletedAt.IsZero():
		if r == "" {
			return u, wire.Errorf(wire.NotFound, "user %q not found", name).
				WithHint("have him in with: waypoint user invite %s --role ROLE; waypoint user list shows who is there", name)
		}
		return fresh(tx, name, r, l, -1, by, now)
	case r != "" && r != u.Role || !l.None() && l.String() != u.Limits.String():
		return u, wire.Errorf(wire.Conflict, "there is a user %s already, %s%s", u.Name, article(u.Role), limitWords(u.Limits)).
			WithHint("change that with: waypoint user set %s", u.Name)
	}
	return u, nil
}

func limitWords(l wire.Limits) string {
	if l.None() {
		return ""
	}
	return fmt.Sprintf(" limited to %s", l)
}
