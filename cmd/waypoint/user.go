package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/waypointd/waypoint/cmd/internal/output"
	"github.com/waypointd/waypoint/mux/wire"
)

// rights are the flags that say what a user may do.
type rights struct {
	Role          string   `placeholder:"ROLE" help:"What the user may do: viewer, operator or admin."`
	OnlyProject   []string `sep:"none" placeholder:"NAME" help:"Limit the user to this project; repeatable. Jobs without a project are in none."`
	OnlyWorkspace []string `sep:"none" placeholder:"NAME" help:"Limit the user to this workspace; repeatable."`
}

func (r *rights) read() (wire.UserRole, wire.Limits, error) {
	l := wire.Limits{Projects: r.OnlyProject, Workspaces: r.OnlyWorkspace}
	if err := wire.CheckLimits(l); err != nil {
		return "", l, fmt.Errorf("parse arguments: %w", err)
	}
	role := wire.UserRole(r.Role)
	if role == "" {
		return "", l, nil
	}
	if err := wire.CheckUserRole(role); err != nil {
		return "", l, fmt.Errorf("parse arguments: --role: %w", err)
	}
	return role, l, nil
}

// lifeFlag is a token's life as it was asked for; 0: as the server has it.
func lifeFlag(d *time.Duration) (wire.Duration, error) {
	if d == nil {
		return 0, nil
	}
	return wire.Duration(*d), checkLife(*d)
}

// userToken is `waypoint user token`.
type userToken struct {
	User      string         `placeholder:"NAME" help:"The user, where it is not for yourself: for admins. One that is not there is made where --role says what he may do."`
	ExpiresIn *time.Duration `placeholder:"D" help:"How long it is good for, from 1s to ten years (default 720h, or the longest that the server allows)."`
	rights
}

func (*userToken) Help() string {
	return `A token of your own, to log in with from another machine; it is all that stdout says. Its id, when it expires,
whose it is, and the fingerprint of the server's certificate, which it carries, go to stderr. What it is good for is
what its user may do at each moment. waypoint user revoke ends it.

  waypoint login ADDR --token-file FILE`
}

func (c *userToken) Run(a *app) error {
	life, err := lifeFlag(c.ExpiresIn)
	if err != nil {
		return err
	}
	role, limits, err := c.read()
	if err != nil {
		return err
	}
	if err := a.needServer("make user token"); err != nil {
		return err
	}
	return a.withServer(func(ctx context.Context, conn *connection) error {
		reply, err := conn.UserToken(ctx, wire.UserTokenRequest{ExpiresIn: life, User: c.User, Role: role, Limits: limits})
		if err != nil {
			return fmt.Errorf("make user token: %w", err)
		}
		return a.printToken(reply)
	})
}

// userInvite is `waypoint user invite`.
type userInvite struct {
	Name      string         `arg:"" help:"The user; unique, ignoring case."`
	ExpiresIn *time.Duration `placeholder:"D" help:"How long it can be used (default 72h)."`
	rights
}

func (*userInvite) Help() string {
	return `An invite, which is all that stdout says: text to send to somebody, who logs in with it, once. It is exchanged for
a token then, so whoever has read it on its way is found out: it is used up. A user who is not there is made, as a
viewer unless --role says more.

  waypoint login ADDR --token-file FILE`
}

func (c *userInvite) Run(a *app) error {
	life, err := lifeFlag(c.ExpiresIn)
	if err != nil {
		return err
	}
	role, limits, err := c.read()
	if err != nil {
		return err
	}
	if err := a.needServer("invite user"); err != nil {
		return err
	}
	return a.withServer(func(ctx context.Context, conn *connection) error {
		reply, err := conn.Invite(ctx, wire.InviteRequest{User: c.Name, Role: role, Limits: limits, ExpiresIn: life})
		if err != nil {
			return fmt.Errorf("invite user: %w", err)
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
	a.note("it is for %s, and has the id %s", whoIs(reply.User, reply.Role, reply.Limits), reply.ID)
	a.note("it expires at %s, %s", instant(reply.Expiry), untilOrAgo(time.Now(), reply.Expiry))
	if reply.Fingerprint != "" {
		a.note("the server's certificate has the fingerprint %s, which the token carries", reply.Fingerprint)
	}
	return a.print(reply, func(w io.Writer) error {
		_, err := fmt.Fprintln(w, reply.Token)
		return err
	})
}

// whoIs says who somebody is and what he may do.
func whoIs(name string, role wire.UserRole, l wire.Limits) string {
	text := fmt.Sprintf("%s (%s", output.Cell(name), role)
	if !l.None() {
		text += ", limited to " + l.String()
	}
	return text + ")"
}

// userList is `waypoint user list`.
type userList struct {
	Name   string `arg:"" optional:"" help:"This user alone."`
	Tokens bool   `help:"The tokens and invites, with their ids. Who is no admin sees his own."`
}

func (c *userList) Run(a *app) error {
	if err := a.needServer("list users"); err != nil {
		return err
	}
	if c.Tokens {
		return c.tokens(a)
	}
	return a.withServer(func(ctx context.Context, conn *connection) error {
		users, err := conn.Users(ctx, c.Name)
		if err != nil {
			return fmt.Errorf("list users: %w", err)
		}
		return a.print(users, func(w io.Writer) error {
			now := time.Now()
			t := output.NewTable("NAME", "ROLE", "LIMITED TO", "TOKENS", "LAST USED", "CREATED")
			for _, u := range users {
				t.Row(u.Name, string(u.Role), u.Limits.String(), fmt.Sprint(u.Tokens), agoOrNever(now, u.LastUsed), agoOrNever(now, u.CreatedAt))
			}
			return t.Write(w)
		})
	})
}

func agoOrNever(now, at time.Time) string {
	if at.IsZero() {
		return "never"
	}
	return untilOrAgo(now, at)
}

func (c *userList) tokens(a *app) error {
	return a.withServer(func(ctx context.Context, conn *connection) error {
		tokens, err := conn.UserTokens(ctx, c.Name)
		if err != nil {
			return fmt.Errorf("list tokens: %w", err)
		}
		return a.print(tokens, func(w io.Writer) error {
			now := time.Now()
			t := output.NewTable("ID", "USER", "KIND", "STATE", "EXPIRES", "LAST USED", "CREATED BY")
			for _, k := range tokens {
				t.Row(k.ID, k.User, kindOfToken(k.Kind), stateOfToken(k, now), untilOrAgo(now, k.Expiry), agoOrNever(now, k.LastUsed), k.CreatedBy)
			}
			return t.Write(w)
		})
	})
}

func kindOfToken(k wire.TokenKind) string {
	if k == wire.InviteToken {
		return "invite"
	}
	return "token"
}

func stateOfToken(t wire.UserTokenInfo, now time.Time) string {
	switch {
	case !t.Revoked.IsZero():
		return "revoked"
	case t.Kind == wire.InviteToken && !t.LastUsed.IsZero():
		return "used"
	case !now.Before(t.Expiry):
		return "expired"
	}
	return "usable"
}

// userSet is `waypoint user set`.
type userSet struct {
	Name string `arg:"" help:"The user."`
	rights
	Unlimited bool `help:"End the limits to projects and workspaces."`
}

func (*userSet) Help() string {
	return `It holds from the user's next call on, also over connections that live. Limits that are named take the place of
all that were there.`
}

func (c *userSet) Run(a *app) error {
	role, limits, err := c.read()
	if err != nil {
		return err
	}
	req := wire.UserSetRequest{User: c.Name, Role: role}
	switch {
	case c.Unlimited && !limits.None():
		return wire.Errorf(wire.BadUsage, "parse arguments: --unlimited and --only-... exclude each other")
	case c.Unlimited || !limits.None():
		req.Limits = &limits
	case role == "":
		return wire.Errorf(wire.BadUsage, "parse arguments: nothing to change is named").
			WithHint("--role, --only-project, --only-workspace or --unlimited")
	}
	if err := a.needServer("change user"); err != nil {
		return err
	}
	return a.withServer(func(ctx context.Context, conn *connection) error {
		u, err := conn.SetUser(ctx, req)
		if err != nil {
			return fmt.Errorf("change user: %w", err)
		}
		return a.print(u, func(w io.Writer) error {
			_, err := fmt.Fprintf(w, "User %s.\n", whoIs(u.Name, u.Role, u.Limits))
			return err
		})
	})
}

// userDelete is `waypoint user delete`.
type userDelete struct {
	Name []string `arg:"" help:"The users."`
}

func (*userDelete) Help() string {
	return `The user's tokens and invites end at once, and so do the connections that were made with them. Jobs that the user
has queued go on. The last admin cannot be deleted.`
}

func (c *userDelete) Run(a *app) error {
	if err := a.needServer("delete user"); err != nil {
		return err
	}
	return a.withServer(func(ctx context.Context, conn *connection) error {
		deleted := []wire.User{}
		var failures []error
		for _, name := range c.Name {
			u, err := conn.DeleteUser(ctx, name)
			if err != nil {
				failures = append(failures, fmt.Errorf("delete user: %w", err))
				continue
			}
			deleted = append(deleted, u)
			if !a.JSON {
				if _, err := fmt.Fprintf(a.stdout, "User %q deleted.\n", u.Name); err != nil {
					return err
				}
			}
		}
		if a.JSON && len(failures) == 0 {
			if err := output.JSON(a.stdout, deleted); err != nil {
				return err
			}
		}
		return a.firstOf(failures)
	})
}

// userRevoke is `waypoint user revoke`.
type userRevoke struct {
	ID   []string `arg:"" optional:"" help:"The tokens' ids: waypoint user list --tokens shows them."`
	User string   `placeholder:"NAME" help:"All tokens and invites of this user."`
}

func (*userRevoke) Help() string {
	return `The tokens end at once, and so do the connections that were made with them. Everybody may revoke what is his own,
admins everything.`
}

func (c *userRevoke) Run(a *app) error {
	if (len(c.ID) == 0) == (c.User == "") {
		return wire.Errorf(wire.BadUsage, "parse arguments: name tokens by their ids, or with --user all of a user")
	}
	if err := a.needServer("revoke token"); err != nil {
		return err
	}
	requests := make([]wire.RevokeRequest, 0, len(c.ID))
	for _, id := range c.ID {
		requests = append(requests, wire.RevokeRequest{ID: id})
	}
	if c.User != "" {
		requests = append(requests, wire.RevokeRequest{User: c.User})
	}
	return a.withServer(func(ctx context.Context, conn *connection) error {
		all := []wire.UserTokenInfo{}
		var failures []error
		for _, req := range requests {
			tokens, err := conn.RevokeTokens(ctx, req)
			if err != nil {
				failures = append(failures, fmt.Errorf("revoke token: %w", err))
				continue
			}
			all = slices.Concat(all, tokens)
		}
		if !a.JSON || len(failures) == 0 {
			if err := a.print(all, func(w io.Writer) error {
				for _, t := range all {
					if _, err := fmt.Fprintf(w, "Token %s of %s revoked.\n", t.ID, output.Cell(t.User)); err != nil {
						return err
					}
				}
				return nil
			}); err != nil {
				return err
			}
		}
		return a.firstOf(failures)
	})
}
