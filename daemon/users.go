package daemon

import (
	"context"
	"strconv"
	"time"

	"github.com/waypointd/waypoint/daemon/store"
	"github.com/waypointd/waypoint/mux"
	"github.com/waypointd/waypoint/mux/wire"
)

// userSelf is who the caller is.
func (s *Server) userSelf(ctx context.Context, _ *mux.Peer, _ wire.SelfRequest) (wire.Self, error) {
	c := callOf(ctx).by
	self := wire.Self{User: c.name, Role: c.role, Limits: c.limits, By: c.by}
	if c.login.shown() {
		self.TokenID, self.Expiry = strconv.FormatInt(c.login.claims.Serial, 10), c.login.claims.Expiry
	}
	return self, nil
}

// userToken makes a token: anybody one of his own, admins one of somebody else's
// as well. A user of the host who comes without a token gets an account of his
// name, with the role that he has there.
func (s *Server) userToken(ctx context.Context, peer *mux.Peer, req wire.UserTokenRequest) (wire.TokenReply, error) {
	by := callOf(ctx).by
	name := req.User
	if name == "" {
		name = by.name
	}
	about(ctx, name)
	own := wire.UserKey(name) == wire.UserKey(by.name)
	if !own && by.role != wire.Admin {
		return wire.TokenReply{}, wire.Errorf(wire.Denied, "a token of %s is for an admin to make, and %s is %s (by %s)", name, by.name, article(by.role), by.by).
			WithHint("leave --user out for a token of your own")
	}
	if (req.Role != "" || !req.Limits.None()) && by.role != wire.Admin {
		return wire.TokenReply{}, wire.Errorf(wire.Denied, "what %s may do is for an admin to say", name).WithHint("leave --role and the limits out")
	}
	return s.issueUser(ctx, wire.UserToken, time.Duration(req.ExpiresIn), wire.DefaultTokenLife, by, func(tx *store.Tx, now time.Time) (store.UserRecord, error) {
		if req.User != "" || by.login.shown() {
			return wanted(tx, name, req.Role, req.Limits, by.who, now)
		}
		u, found, err := tx.User(name)
		switch {
		case err != nil:
			return u, err
		case !found || !u.DeletedAt.IsZero():
			if req.Role != "" {
				return fresh(tx, name, req.Role, req.Limits, by.login.uid(), by.who, now)
			}
			return fresh(tx, name, by.role, wire.Limits{}, by.login.uid(), by.who, now)
		case by.role == wire.Admin:
		case u.UID != by.login.uid():
			return u, wire.Errorf(wire.Denied, "there is a user %s, who is not uid %d of this host", u.Name, by.login.uid()).
				WithHint("an admin can make the token: waypoint user token --user %s", u.Name)
		case !by.role.AtLeast(u.Role):
			return u, wire.Errorf(wire.Denied, "the user %s is %s, and uid %d of this host %s (by %s): nobody gets more than he has",
				u.Name, article(u.Role), by.login.uid(), article(by.role), by.by).WithHint("an admin can make the token: waypoint user token --user %s", u.Name)
		}
		return u, nil
	})
}

// userInvite makes an invite, and the user if there is none of that name.
func (s *Server) userInvite(ctx context.Context, peer *mux.Peer, req wire.InviteRequest) (wire.TokenReply, error) {
	about(ctx, req.User)
	by := callOf(ctx).by
	return s.issueUser(ctx, wire.InviteToken, time.Duration(req.ExpiresIn), wire.DefaultInviteLife, by, func(tx *store.Tx, now time.Time) (store.UserRecord, error) {
		if req.Role == "" {
			if u, found, err := tx.User(req.User); err != nil || found && u.DeletedAt.IsZero() {
				if err != nil {
					return u, err
				}
			} else {
				req.Role = wire.Viewer
			}
		}
		return wanted(tx, req.User, req.Role, req.Limits, by.who, now)
	})
}

// userAccept exchanges the invite that was shown for a token.
func (s *Server) userAccept(ctx context.Context, peer *mux.Peer, _ wire.AcceptRequest) (wire.TokenReply, error) {
	by := callOf(ctx).by
	about(ctx, by.name)
	if err := by.login.calls.Wait(ctx); err != nil {
		return wire.TokenReply{}, wire.Errorf(wire.Unavailable, "the invite is shown too often")
	}
	invite := by.login.claims
	reply, err := s.issueUser(ctx, wire.UserToken, 0, wire.DefaultTokenLife, by, func(tx *store.Tx, now time.Time) (store.UserRecord, error) {
		t, u, err := tx.Bearer(invite.Serial, invite.User) // as it is in this transaction: of two who come at once, one is late
		if err != nil {
			return u, err
		}
		if err := (account{UserRecord: u, token: t}).judge(); err != nil {
			return u, err
		}
		tx.Announce(store.NewsUsers) // the invite is good for nothing more
		return u, tx.UseUserToken(invite.Serial, now)
	})
	if err == nil {
		s.accounts.changed()
	}
	return reply, err
}

// issueUser makes a token of a user, whom whose finds in the transaction.
func (s *Server) issueUser(ctx context.Context, kind wire.TokenKind, life, usual time.Duration, by caller, whose func(tx *store.Tx, now time.Time) (store.UserRecord, error)) (reply wire.TokenReply, err error) {
	most := s.cfg().Access.TokenLife
	if life == 0 {
		life = min(usual, most)
	}
	if err := checkLife(life); err != nil {
		return reply, err
	}
	if life > most {
		return reply, wire.Errorf(wire.BadUsage, "a token of a user may be good for %s at most here, not %s", most, life).
			WithHint("ask for less with --expires-in; access.token_life in the server's configuration is the most")
	}
	var (
		made wire.Claims
		u    store.UserRecord
	)
	err = s.act(ctx, func(tx *store.Tx) (err error) {
		if err := s.confirm(tx, by); err != nil {
			return err
		}
		now := s.now()
		if u, err = whose(tx, now); err != nil {
			return err
		}
		if by.role != "" && by.role != wire.Admin {
			if err := roomForToken(tx, u.Name); err != nil {
				return err
			}
		}
		if reply.Token, made, err = s.mint(tx, wire.Claims{Kind: kind, User: u.Name}, life, now); err != nil {
			return err
		}
		about(ctx, u.Name)
		note(ctx, "role", string(u.Role))
		noteToken(ctx, made)
		return tx.AddUserToken(store.UserTokenRecord{
			Serial: made.Serial, Kind: kind, User: u.Name, CreatedAt: made.Issued, CreatedBy: by.who, Expiry: made.Expiry,
		})
	})
	if err != nil {
		return wire.TokenReply{}, err
	}
	s.accounts.changed()
	s.minted(by.who, made)
	reply.ID = strconv.FormatInt(made.Serial, 10)
	reply.User, reply.Role, reply.Limits = u.Name, u.Role, u.Limits
	reply.Expiry, reply.Fingerprint = made.Expiry, made.Pin
	return reply, nil
}

// maxUserTokens bounds the tokens on record of one user that he may make himself, or who
// only sees could fill the store.
const maxUserTokens = 10_000

func roomForToken(tx *store.Tx, user string) error {
	n, err := tx.CountUserTokens(user)
	if err == nil && n >= maxUserTokens {
		err = wire.Errorf(wire.Conflict, "%d tokens of %s are on record, which is as many as he may make", n, user).
			WithHint("a token goes off the record %d days after it has expired; until then an admin can make one: waypoint user token --user %s", int(keepTokens.Hours()/24), user)
	}
	return err
}

// userTokens lists tokens: one's own, and to admins everybody's.
func (s *Server) userTokens(ctx context.Context, _ *mux.Peer, req wire.UserFilter) (page wire.UserTokenPage, err error) {
	by := callOf(ctx).by
	about(ctx, req.User)
	if by.role != wire.Admin {
		if req.User != "" && wire.UserKey(req.User) != wire.UserKey(by.name) {
			return page, wire.Errorf(wire.Denied, "the tokens of %s are for an admin to see, and %s is %s (by %s)", req.User, by.name, article(by.role), by.by)
		}
		req.User = by.name
		if !by.login.shown() { // whose account of that name it is, nobody knows
			return wire.UserTokenPage{Tokens: []wire.UserTokenInfo{}}, nil
		}
	}
	records, err := s.store.UserTokens(ctx, req.User)
	if err != nil {
		return page, err
	}
	uses := s.accounts.lastUses()
	page.Tokens = []wire.UserTokenInfo{}
	for _, r := range records {
		page.Tokens = append(page.Tokens, used(r, uses).Info())
	}
	n := fitting(page.Tokens)
	page.Tokens, page.More = page.Tokens[:n], n < len(page.Tokens)
	return page, nil
}

// used is a token with its use that is not in the store yet.
func used(t store.UserTokenRecord, uses map[int64]time.Time) store.UserTokenRecord {
	if at := uses[t.Serial]; at.After(t.UsedAt) {
		t.UsedAt = at.UTC().Truncate(time.Microsecond)
	}
	return t
}

// userList lists the users.
func (s *Server) userList(ctx context.Context, _ *mux.Peer, req wire.UserFilter) (page wire.UserPage, err error) {
	about(ctx, req.User)
	records, err := s.store.Users(ctx)
	if err != nil {
		return page, err
	}
	tokens, err := s.store.UserTokens(ctx, req.User)
	if err != nil {
		return page, err
	}
	uses, now := s.accounts.lastUses(), s.now()
	page.Users = []wire.User{}
	for _, r := range records {
		if req.User != "" && wire.UserKey(req.User) != wire.UserKey(r.Name) {
			continue
		}
		page.Users = append(page.Users, userOf(r, tokens, uses, now))
	}
	return page, nil
}

// userOf is a user as people see him, with those of tokens that are his.
func userOf(r store.UserRecord, tokens []store.UserTokenRecord, uses map[int64]time.Time, now time.Time) wire.User {
	u := wire.User{Name: r.Name, Role: r.Role, Limits: r.Limits, CreatedAt: r.CreatedAt, CreatedBy: r.CreatedBy}
	for _, t := range tokens {
		if t.User != wire.UserKey(r.Name) || t.Serial < r.Since {
			continue
		}
		t = used(t, uses)
		if t.Info().Usable(now) {
			u.Tokens++
		}
		if t.Kind == wire.UserToken && t.UsedAt.After(u.LastUsed) {
			u.LastUsed = t.UsedAt
		}
	}
	return u
}

// userSet changes what a user may do.
func (s *Server) userSet(ctx context.Context, peer *mux.Peer, req wire.UserSetRequest) (reply wire.User, err error) {
	about(ctx, req.User)
	by := callOf(ctx).by
	var before, u store.UserRecord
	err = s.act(ctx, func(tx *store.Tx) (err error) {
		if err := s.confirm(tx, by); err != nil {
			return err
		}
		if u, err = existing(tx, req.User); err != nil {
			return err
		}
		before = u
		if req.Role != "" {
			u.Role = req.Role
		}
		if req.Limits != nil {
			u.Limits = *req.Limits
		}
		if err := checkAccount(u.Name, u.Role, u.Limits); err != nil {
			return err
		}
		if before.Role == wire.Admin && u.Role != wire.Admin {
			if err := notLast(tx, u.Name); err != nil {
				return err
			}
		}
		tokens, err := tx.UserTokens(u.Name)
		if err != nil {
			return err
		}
		reply = userOf(u, tokens, s.accounts.lastUses(), s.now())
		note(ctx, "role", string(u.Role))
		note(ctx, "limits", u.Limits.String())
		note(ctx, "was", string(before.Role)+limitWords(before.Limits))
		return tx.PutUser(u)
	})
	if err != nil {
		return wire.User{}, err
	}
	s.accounts.changed()
	s.log.Info("user changed", "user", u.Name, "role", u.Role, "limits", u.Limits.String(), "was", string(before.Role)+limitWords(before.Limits),
		"by", loginOf(peer).String(), "peer", peer)
	return reply, nil
}

// existing is a user that has not been deleted, or NotFound.
func existing(tx *store.Tx, name string) (store.UserRecord, error) {
	u, found, err := tx.User(name)
	if err == nil && (!found || !u.DeletedAt.IsZero()) {
		err = wire.Errorf(wire.NotFound, "user %q not found", name).WithHint("waypoint user list")
	}
	return u, err
}

// notLast is a Conflict where an admin is the last one.
func notLast(tx *store.Tx, name string) error {
	n, err := tx.Admins()
	if err == nil && n <= 1 {
		err = wire.Errorf(wire.Conflict, "%s is the last admin", name).WithHint("make another one first: waypoint user invite NAME --role admin")
	}
	return err
}

// userDelete ends a user, his tokens and his sessions.
func (s *Server) userDelete(ctx context.Context, peer *mux.Peer, req wire.UserRequest) (reply wire.User, err error) {
	about(ctx, req.User)
	by := callOf(ctx).by
	err = s.act(ctx, func(tx *store.Tx) error {
		if err := s.confirm(tx, by); err != nil {
			return err
		}
		u, err := existing(tx, req.User)
		if err != nil {
			return err
		}
		if u.Role == wire.Admin {
			if err := notLast(tx, u.Name); err != nil {
				return err
			}
		}
		tokens, err := tx.UserTokens(u.Name)
		if err != nil {
			return err
		}
		now := s.now()
		reply = userOf(u, tokens, s.accounts.lastUses(), now)
		for _, t := range tokens {
			if err := tx.RevokeUserToken(t.Serial, by.who, now); err != nil {
				return err
			}
		}
		u.DeletedAt = now
		return tx.PutUser(u)
	})
	if err != nil {
		return wire.User{}, err
	}
	s.accounts.changed()
	s.log.Info("user deleted", "user", reply.Name, "role", reply.Role, "tokens", reply.Tokens, "by", by.who, "peer", peer)
	s.endLogins(ctx, peer)
	return reply, nil
}

// userRevoke ends a token, or all of a user: one's own, and for admins anybody's.
func (s *Server) userRevoke(ctx context.Context, peer *mux.Peer, req wire.RevokeRequest) (page wire.UserTokenPage, err error) {
	by := callOf(ctx).by
	about(ctx, req.ID+req.User)
	if (req.ID == "") == (req.User == "") {
		return page, wire.Errorf(wire.BadUsage, "name a token by its id, or a user all of whose tokens are to end")
	}
	var serial int64
	if req.ID != "" {
		if serial, err = strconv.ParseInt(req.ID, 10, 64); err != nil {
			return page, wire.Errorf(wire.NotFound, "token %q not found", req.ID).WithHint("waypoint user list --tokens")
		}
	}
	mine := func(user string) bool {
		return by.role == wire.Admin || by.login.shown() && wire.UserKey(user) == wire.UserKey(by.name)
	}
	err = s.act(ctx, func(tx *store.Tx) error {
		if err := s.confirm(tx, by); err != nil {
			return err
		}
		page.Tokens = []wire.UserTokenInfo{}
		var tokens []store.UserTokenRecord
		if req.User != "" {
			if !mine(req.User) {
				return wire.Errorf(wire.Denied, "the tokens of %s are for an admin to revoke, and %s is %s (by %s)", req.User, by.name, article(by.role), by.by)
			}
			u, err := existing(tx, req.User)
			if err != nil {
				return err
			}
			if tokens, err = tx.UserTokens(u.Name); err != nil {
				return err
			}
			// Those of before tokens had rows, which nobody can name, are among all.
			last, err := tx.ClaimedSerial()
			if err != nil {
				return err
			}
			if u.Since <= last {
				u.Since = last + 1
				if err := tx.PutUser(u); err != nil {
					return err
				}
			}
		} else {
			t, err := tx.UserToken(serial)
			if err == nil && !mine(t.User) {
				err = wire.Errorf(wire.NotFound, "token %s not found", req.ID)
			}
			if err != nil {
				return err
			}
			tokens = append(tokens, t)
		}
		now := s.now()
		for _, t := range tokens {
			if req.User != "" && !t.Info().Usable(now) {
				continue
			}
			if t.RevokedAt.IsZero() {
				t.RevokedAt, t.RevokedBy = now.UTC().Truncate(time.Microsecond), by.who
				if err := tx.RevokeUserToken(t.Serial, t.RevokedBy, t.RevokedAt); err != nil {
					return err
				}
			}
			page.Tokens = append(page.Tokens, t.Info())
		}
		note(ctx, "tokens", strconv.Itoa(len(page.Tokens)))
		if req.ID != "" {
			note(ctx, "user", page.Tokens[0].User)
		}
		return nil
	})
	if err != nil {
		return wire.UserTokenPage{}, err
	}
	s.accounts.changed()
	for _, t := range page.Tokens {
		s.log.Info("user token revoked", "serial", t.ID, "user", t.User, "by", by.who, "peer", peer)
	}
	s.endLogins(ctx, peer)
	return page, nil
}
