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

// UserToken makes a token of the caller's own.
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
