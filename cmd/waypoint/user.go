package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/waypointd/waypoint/mux/wire"
)

// userToken is `waypoint user token`.
type userToken struct {
	ExpiresIn time.Duration `default:"720h" placeholder:"D" help:"How long it is good for, from 1s to ten years (default 720h)."`
}

func (*userToken) Help() string {
	return `A token of your own, to log in with from another machine; it is all that stdout says. When it expires, and the
fingerprint of the server's certificate, which it carries, go to stderr.

  waypoint login ADDR --token-file FILE`
}

func (c *userToken) Run(a *app) error {
	if err := checkLife(c.ExpiresIn); err != nil {
		return err
	}
	if err := a.needServer("make user token"); err != nil {
		return err
	}
	return a.withServer(func(ctx context.Context, conn *connection) error {
		reply, err := conn.UserToken(ctx, wire.UserTokenRequest{ExpiresIn: wire.Duration(c.ExpiresIn)})
		if err != nil {
			return fmt.Errorf("make user token: %w", err)
		}
		return a.printToken(reply)
	})
}

// needServer refuses local mode, where nobody could use what is asked for.
func (a *app) needServer(doing string) error {
	ch, err := a.server()
	if err == nil && ch.local {
		err = wire.Errorf(wire.BadUsage, "%s: there is no server to use it with", doing).
			WithHint("name a server with --server-addr")
	}
	return err
}

// printToken answers with a token of a person, alone on stdout.
func (a *app) printToken(reply wire.TokenReply) error {
	a.note("it expires at %s, %s", instant(reply.Expiry), untilOrAgo(time.Now(), reply.Expiry))
	if reply.Fingerprint != "" {
		a.note("the server's certificate has the fingerprint %s, which the token carries", reply.Fingerprint)
	}
	return a.print(reply, func(w io.Writer) error {
		_, err := fmt.Fprintln(w, reply.Token)
		return err
	})
}
