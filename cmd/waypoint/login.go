package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"

	"github.com/waypointd/waypoint/cmd/internal/contexts"
	"github.com/waypointd/waypoint/cmd/internal/output"
	"github.com/waypointd/waypoint/mux"
	"github.com/waypointd/waypoint/mux/wire"
)

// login is `waypoint login`.
type login struct {
	Addr string `arg:"" help:"The server: unix:///path, tcp://host:port or host[:port]."`
}

func (*login) Help() string {
	return `It connects to the server, keeps its address and the token under a name (--context, by default the server's
host) and makes that the default. The token is that of --token-file, --token or $WAYPOINT_SERVER_TOKEN; at a
terminal without one it is asked for and not shown. It carries the fingerprint of the server's certificate, so
nothing more is needed to trust the server. An invite (waypoint user invite) is exchanged for a token, which is
what is kept.

  ssh build.example.org waypoint user token | waypoint login build.example.org --token-file -`
}

func (c *login) Run(a *app) error {
	store, err := a.contexts()
	if err != nil {
		return err
	}
	if a.ServerAddr != "" || a.NoServer {
		return wire.Errorf(wire.BadUsage, "parse arguments: the server to log in to is an argument, not a flag").
			WithHint("waypoint login ADDR")
	}
	addr, err := parseAddress(c.Addr, "ADDR")
	if err != nil {
		return err
	}
	name, before, err := c.name(a, store, addr)
	if err != nil {
		return err
	}
	text, err := c.token(a, addr)
	if err != nil {
		return err
	}
	if text, err = c.accept(a, before, addr, text); err != nil {
		return err
	}
	known, err := a.describe(before, addr.String(), text)
	if err != nil {
		return err
	}
	ch := choice{addr: addr, known: known}
	if err := a.credentials(&ch); err != nil {
		return err
	}
	answer, err := a.tryServer(ch)
	if err != nil {
		return fmt.Errorf("log in: %w", err)
	}
	if err := c.pin(a, &known); err != nil {
		return err
	}
	if err := store.Set(name, known); err != nil {
		return err
	}
	if err := store.SetDefault(name); err != nil {
		return err
	}
	a.noteShadow()
	a.note("context %q is kept in %s and is the default", name, store.Path(name))
	answer.Name = name
	return a.print(answer, func(w io.Writer) error {
		as := ""
		if answer.User != "" {
			as = " as " + whoIs(answer.User, wire.UserRole(answer.Role), answer.Limits)
			if !answer.Expiry.IsZero() {
				as += ", until " + instant(answer.Expiry)
			}
		}
		_, err := fmt.Fprintf(w, "Logged in to %s%s.\n", answer.ServerAddr, as)
		return err
	})
}

// accept exchanges an invite for a token; any other text is one.
func (c *login) accept(a *app, before contexts.Context, addr mux.Address, text string) (string, error) {
	if !strings.HasPrefix(text, string(wire.InviteToken)) {
		return text, nil
	}
	known, err := a.describe(before, addr.String(), text)
	if err != nil {
		return "", err
	}
	claims, err := wire.ReadToken(text)
	if err != nil {
		return "", err
	}
	ch := choice{addr: addr, known: known, token: text}
	if ch.trust, err = a.trust(known, claims.Pin); err != nil {
		return "", err
	}
	conn, err := a.connectTo(ch)
	if err != nil {
		return "", fmt.Errorf("log in with invite: %w", err)
	}
	ctx, cancel := a.ask()
	defer cancel()
	reply, err := conn.Accept(ctx)
	if err = errors.Join(err, conn.close()); err != nil {
		return "", fmt.Errorf("log in with invite: %w", err)
	}
	a.Token, a.TokenFile = reply.Token, "" // the invite is of no more use
	return reply.Token, nil
}

// pin keeps the fingerprint that the token carries, because the next token may
// come without it. It takes the place of that of an earlier login: a server
// that has changed its key is not to be trusted by the old one too.
func (c *login) pin(a *app, known *contexts.Context) error {
	if known.Token == "" || known.TLSCA != "" || a.ServerTLSFingerprint != "" {
		return nil
	}
	claims, err := wire.ReadToken(known.Token)
	if err != nil {
		return err
	}
	override(&known.TLSFingerprint, claims.Pin)
	return nil
}

// name is what the context is called, and what was known under that name
// before. One that is of another server is left alone.
func (c *login) name(a *app, store *contexts.Store, addr mux.Address) (name string, before contexts.Context, err error) {
	if name = a.Context; name == "" {
		name = contextName(addr)
	}
	before, note, err := store.Load(name)
	switch {
	case wire.KindOf(err) == wire.NotFound:
		return name, before, nil
	case err != nil:
		return "", before, fmt.Errorf("log in: %w", err)
	case note != "":
		a.note("context %q: %s", name, note)
	}
	if old, err := mux.ParseAddress(before.ServerAddr); err == nil && old != addr {
		return "", before, wire.Errorf(wire.Conflict, "log in: context %q is of another server, %s", name, before.ServerAddr).
			WithHint("give it another name with --context, or waypoint context delete %s", name)
	}
	return name, before, nil
}

// contextName makes a name of an address: of its host, and of its port where
// that is not the usual one.
func contextName(addr mux.Address) string {
	name := strings.TrimSuffix(filepath.Base(addr.Path), ".sock")
	if addr.Network == "tcp" {
		host, port, err := net.SplitHostPort(addr.Path)
		if name = host; err == nil && port != mux.DefaultPort {
			name += "-" + port
		}
	}
	name = strings.Map(func(r rune) rune {
		if r < 0x80 && validName("a"+string(r)) {
			return r
		}
		return '-'
	}, name)
	name = strings.TrimLeft(name, "-._")
	if name == "" {
		name = "server"
	}
	return name[:min(len(name), 63)]
}

// token is the user's for this server. A Unix socket needs none.
func (c *login) token(a *app, addr mux.Address) (string, error) {
	text, from, err := a.givenToken()
	if err != nil {
		return "", err
	}
	if text == "" && addr.Network == "tcp" {
		if !output.IsTerminal(a.stdin) {
			return "", wire.Errorf(wire.Unauthenticated, "log in to %s: there is no token", addr).
				WithHint("make one on the server with waypoint user token, and give it with --token-file FILE, or - for standard input")
		}
		from = "token"
		if text, err = a.askToken(fmt.Sprintf("Token for %s: ", addr)); err != nil {
			return "", err
		}
	}
	if text == "" {
		return "", nil
	}
	if strings.HasPrefix(text, string(wire.InviteToken)) {
		_, err := checkToken(text, from)
		return text, err
	}
	return text, checkUserToken(text, from)
}
