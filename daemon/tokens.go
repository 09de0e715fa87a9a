package daemon

import (
	"context"
	"encoding/hex"
	"strings"
	"time"

	"github.com/waypointd/waypoint/daemon/adoption"
	"github.com/waypointd/waypoint/daemon/store"
	"github.com/waypointd/waypoint/daemon/token"
	"github.com/waypointd/waypoint/mux"
	"github.com/waypointd/waypoint/mux/wire"
)

// firstUser is whose the first token of a server is.
const firstUser = "admin"

// serverBootstrap makes the first admin of a fresh server and a token of his,
// once, for who is on its host.
func (s *Server) serverBootstrap(ctx context.Context, peer *mux.Peer, _ wire.BootstrapRequest) (wire.TokenReply, error) {
	if !vouched(peer) {
		return wire.TokenReply{}, wire.Errorf(wire.Denied, "that is done on its host, over its Unix socket").
			WithHint("run there: waypoint server bootstrap")
	}
	const name = "bootstrapped_at"
	by := callOf(ctx).by
	return s.issueUser(ctx, wire.UserToken, 0, wire.DefaultTokenLife, by, func(tx *store.Tx, now time.Time) (u store.UserRecord, err error) {
		u, found, err := tx.User(firstUser) // which takes the lock
		if err != nil {
			return u, err
		}
		at, err := tx.Setting(name)
		if err != nil {
			return u, err
		}
		if at != "" {
			return u, wire.Errorf(wire.Conflict, "it has been bootstrapped already, at %s", at).
				WithHint("make a token of your own on the server's host with: waypoint user token")
		}
		if err := tx.PutSetting(name, now.UTC().Format(time.RFC3339)); err != nil {
			return u, err
		}
		if !found || !u.DeletedAt.IsZero() {
			return fresh(tx, firstUser, wire.Admin, wire.Limits{}, -1, by.who, now)
		}
		u.Role, u.Limits = wire.Admin, wire.Limits{}
		return u, tx.PutUser(u)
	})
}

// runnerToken makes a token with which a runner is admitted unasked.
func (s *Server) runnerToken(ctx context.Context, peer *mux.Peer, req wire.RunnerTokenRequest) (wire.TokenReply, error) {
	c := wire.Claims{Kind: wire.RunnerToken, ID: req.ID}
	if req.ID != "" {
		if err := wire.CheckID(req.ID); err != nil {
			return wire.TokenReply{}, err
		}
		if strings.HasPrefix(req.ID, localPrefix) {
			return wire.TokenReply{}, wire.Errorf(wire.BadUsage, "runner id %q: ids that begin with %q are the server's to give", req.ID, localPrefix)
		}
	}
	if len(req.Labels) > wire.MaxLabels {
		return wire.TokenReply{}, wire.Errorf(wire.BadUsage, "%d labels are more than the %d a runner may have", len(req.Labels), wire.MaxLabels)
	}
	for k, v := range req.Labels {
		if err := wire.CheckLabel(k, v); err != nil {
			return wire.TokenReply{}, err
		}
		if adoption.IsHostLabel(k) {
			return wire.TokenReply{}, wire.Errorf(wire.BadUsage, "label %s: a runner has that by itself, a token cannot bind it", k).
				WithHint("leave it out; --id binds the token to one runner")
		}
	}
	if len(req.Labels) > 0 {
		c.Labels = req.Labels
	}
	about(ctx, req.ID)
	return s.issue(ctx, peer, c, time.Duration(req.ExpiresIn), callOf(ctx).by)
}

// issue makes a runner token for a caller.
func (s *Server) issue(ctx context.Context, peer *mux.Peer, c wire.Claims, life time.Duration, by caller) (reply wire.TokenReply, err error) {
	if err := checkLife(life); err != nil {
		return reply, err
	}
	var made wire.Claims
	err = s.act(ctx, func(tx *store.Tx) (err error) {
		if err := s.confirm(tx, by); err != nil {
			return err
		}
		reply.Token, made, err = s.mint(tx, c, life, s.now())
		noteToken(ctx, made)
		return err
	})
	if err != nil {
		return wire.TokenReply{}, err
	}
	s.minted(loginOf(peer).String(), made)
	reply.Expiry, reply.Fingerprint = made.Expiry, made.Pin
	return reply, nil
}

// tokenKeyRotate makes a new signing key.
func (s *Server) tokenKeyRotate(ctx context.Context, peer *mux.Peer, req wire.RotateRequest) (reply wire.RotateReply, err error) {
	var (
		made    token.Key
		retired []token.Key
	)
	err = s.act(ctx, func(tx *store.Tx) (err error) {
		if err := s.confirm(tx, callOf(ctx).by); err != nil {
			return err
		}
		if made, retired, err = rotate(tx, req.Revoke, s.now()); err == nil && req.Revoke {
			err = tx.DropGrants() // signed with a key that verifies no more
			note(ctx, "revoked", "true")
		}
		note(ctx, "key", hex.EncodeToString(made.ID[:]))
		return err
	})
	if err != nil {
		return reply, err
	}
	s.keys.changed()
	if req.Revoke {
		s.endRevoked(ctx, peer)
	}
	reply.KeyID = hex.EncodeToString(made.ID[:])
	for _, k := range retired {
		reply.Retired = append(reply.Retired, wire.TokenKey{ID: hex.EncodeToString(k.ID[:]), Until: k.Until})
	}
	s.log.Warn("token key rotated", "by", loginOf(peer).String(), "peer", peer, "key", reply.KeyID, "retired", len(retired), "revoked", req.Revoke)
	return reply, nil
}
