package client

import (
	"context"

	"github.com/waypointd/waypoint/mux/wire"
)

// Bootstrap makes the first operator token of a fresh server; Conflict where
// that has been done.
func (c *Client) Bootstrap(ctx context.Context) (wire.TokenReply, error) {
	return once[wire.TokenReply](ctx, c, wire.MethodServerBootstrap, wire.BootstrapRequest{})
}

// Self asks who the caller is to the server, and what he may do there.
func (c *Client) Self(ctx context.Context) (wire.Self, error) {
	return read[wire.Self](ctx, c, wire.MethodUserSelf, wire.SelfRequest{})
}

// UserToken makes a token of the caller's own, or an admin one of somebody else's.
func (c *Client) UserToken(ctx context.Context, req wire.UserTokenRequest) (wire.TokenReply, error) {
	return once[wire.TokenReply](ctx, c, wire.MethodUserToken, req)
}

// RunnerToken makes a token for a runner.
func (c *Client) RunnerToken(ctx context.Context, req wire.RunnerTokenRequest) (wire.TokenReply, error) {
	return once[wire.TokenReply](ctx, c, wire.MethodRunnerToken, req)
}

// RotateTokenKey makes a new signing key.
func (c *Client) RotateTokenKey(ctx context.Context, revoke bool) (wire.RotateReply, error) {
	return once[wire.RotateReply](ctx, c, wire.MethodTokenKeyRotate, wire.RotateRequest{Revoke: revoke})
}

// Invite makes an invite.
func (c *Client) Invite(ctx context.Context, req wire.InviteRequest) (wire.TokenReply, error) {
	return once[wire.TokenReply](ctx, c, wire.MethodUserInvite, req)
}

// Accept exchanges the invite that this client shows for a token.
func (c *Client) Accept(ctx context.Context) (wire.TokenReply, error) {
	return once[wire.TokenReply](ctx, c, wire.MethodUserAccept, wire.AcceptRequest{})
}

// Users returns the users, or the one of a name.
func (c *Client) Users(ctx context.Context, name string) ([]wire.User, error) {
	page, err := read[wire.UserPage](ctx, c, wire.MethodUserList, wire.UserFilter{User: name})
	return page.Users, err
}

// UserTokens returns the tokens that the caller may see, or those of one user.
func (c *Client) UserTokens(ctx context.Context, name string) ([]wire.UserTokenInfo, error) {
	page, err := read[wire.UserTokenPage](ctx, c, wire.MethodUserTokens, wire.UserFilter{User: name})
	return page.Tokens, err
}

// SetUser changes what a user may do.
func (c *Client) SetUser(ctx context.Context, req wire.UserSetRequest) (wire.User, error) {
	return read[wire.User](ctx, c, wire.MethodUserSet, req)
}

// DeleteUser ends a user with all tokens, and returns him as he was.
func (c *Client) DeleteUser(ctx context.Context, name string) (wire.User, error) {
	return once[wire.User](ctx, c, wire.MethodUserDelete, wire.UserRequest{User: name})
}

// RevokeTokens ends one token, or all of a user.
func (c *Client) RevokeTokens(ctx context.Context, req wire.RevokeRequest) ([]wire.UserTokenInfo, error) {
	page, err := once[wire.UserTokenPage](ctx, c, wire.MethodUserRevoke, req)
	return page.Tokens, err
}
