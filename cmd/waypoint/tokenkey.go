package main

import (
	"context"
	"fmt"
	"io"
)

// serverBootstrap is `waypoint server bootstrap`.
type serverBootstrap struct{}

func (serverBootstrap) Help() string {
	return `The first admin of a fresh server, and a token of his, for those who will connect over TCP. It is all that stdout
says, and said once: a second time is exit code 6. It is asked for on the server's Unix socket, by root or the
server's own user.`
}

func (serverBootstrap) Run(a *app) error {
	if err := a.needServer("bootstrap server"); err != nil {
		return err
	}
	return a.withServer(func(ctx context.Context, conn *connection) error {
		reply, err := conn.Bootstrap(ctx)
		if err != nil {
			return fmt.Errorf("bootstrap server: %w", err)
		}
		return a.printToken(reply)
	})
}

// tokenKeyRotate is `waypoint server token-key rotate`.
type tokenKeyRotate struct {
	Revoke bool `help:"The old keys verify nothing more, from now on: every token there is becomes invalid. For a key that has leaked."`
}

func (*tokenKeyRotate) Help() string {
	return `A new key signs the tokens that are made from now on. The ones before it verify until the last of their tokens has
expired, so nobody has to log in again.`
}

func (c *tokenKeyRotate) Run(a *app) error {
	if err := a.needServer("rotate token key"); err != nil {
		return err
	}
	return a.withServer(func(ctx context.Context, conn *connection) error {
		reply, err := conn.RotateTokenKey(ctx, c.Revoke)
		if err != nil {
			return fmt.Errorf("rotate token key: %w", err)
		}
		if c.Revoke {
			a.note("every token that was made before is invalid: who comes over TCP has to log in anew, and runners wait until waypoint runner adopt, or a new token")
		}
		return a.print(reply, func(w io.Writer) error {
			if _, err := fmt.Fprintf(w, "Key %s signs from now on.\n", reply.KeyID); err != nil {
				return err
			}
			for _, k := range reply.Retired {
				if _, err := fmt.Fprintf(w, "Key %s verifies until %s.\n", k.ID, instant(k.Until)); err != nil {
					return err
				}
			}
			return nil
		})
	})
}
