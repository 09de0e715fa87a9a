package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/waypointd/waypoint/cmd/internal/output"
	"github.com/waypointd/waypoint/mux/wire"
)

// runnerToken is `waypoint runner token`.
type runnerToken struct {
	ID        string        `name:"id" placeholder:"ID" help:"Only for the runner with this id."`
	Label     []string      `sep:"none" placeholder:"K=V" help:"Only for a runner with exactly these labels besides os, arch and hostname; repeatable."`
	ExpiresIn time.Duration `default:"720h" placeholder:"D" help:"How long it is good for, from 1s to ten years (default 720h)."`
}

func (*runnerToken) Help() string {
	return `The token is all that stdout says; when it expires goes to stderr. Put it into the file "token" in the runner's state
directory, or give it to the agent as $WAYPOINT_SERVER_TOKEN: a runner that starts with it is not asked for, it gets
jobs at once. It is for admins to make. It cannot be revoked; waypoint runner reject keeps its runner from jobs. Nobody renews it.`
}

func (c *runnerToken) Run(a *app) error {
	labels, err := pairs("--label", c.Label)
	if err != nil {
		return err
	}
	if err := checkLife(c.ExpiresIn); err != nil {
		return err
	}
	ch, err := a.server()
	if err != nil {
		return err
	}
	if ch.local {
		return wire.Errorf(wire.BadUsage, "make runner token: there is no server that a runner could connect to").
			WithHint("name a server with --server-addr")
	}
	return a.withServer(func(ctx context.Context, conn *connection) error {
		reply, err := conn.RunnerToken(ctx, wire.RunnerTokenRequest{ID: c.ID, Labels: labels, ExpiresIn: wire.Duration(c.ExpiresIn)})
		if err != nil {
			return fmt.Errorf("make runner token: %w", err)
		}
		a.note("it expires at %s, %s; it is for %s", instant(reply.Expiry), untilOrAgo(time.Now(), reply.Expiry), c.bearer(labels))
		return a.print(reply, func(w io.Writer) error {
			_, err := fmt.Fprintln(w, reply.Token)
			return err
		})
	})
}

// checkLife finds a life that no token may have.
func checkLife(d time.Duration) error {
	switch {
	case d < wire.MinTokenLife:
		return wire.Errorf(wire.BadUsage, "parse arguments: --expires-in %s is too short: the least is %s", d, wire.MinTokenLife)
	case d > wire.MaxTokenLife:
		return wire.Errorf(wire.BadUsage, "parse arguments: --expires-in %s is too long: the most is %s, ten years", d, wire.MaxTokenLife)
	}
	return nil
}

// bearer says who may use the token.
func (c *runnerToken) bearer(labels map[string]string) string {
	who := "any runner"
	if c.ID != "" {
		who = fmt.Sprintf("the runner %q", c.ID)
	}
	if len(labels) > 0 {
		return who + " with the labels " + output.Pairs(labels)
	}
	return who
}
