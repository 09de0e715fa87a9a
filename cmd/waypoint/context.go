package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"time"

	"github.com/waypointd/waypoint/cmd/internal/contexts"
	"github.com/waypointd/waypoint/cmd/internal/output"
	"github.com/waypointd/waypoint/mux/wire"
)

// contextAnswer is a context as it is shown: its token never is, only what it
// says of itself.
type contextAnswer struct {
	Name          string    `json:"name"`
	Default       bool      `json:"default"`
	ServerAddr    string    `json:"server_addr"`
	TLS           *bool     `json:"tls,omitempty"`
	TLSCA         string    `json:"tls_ca,omitempty"`
	Fingerprint   string    `json:"tls_fingerprint,omitempty"`
	TLSSkipVerify bool      `json:"tls_skip_verify,omitempty"`
	Workspace     string    `json:"workspace,omitempty"`
	HasToken      bool      `json:"has_token"`
	User          string    `json:"user,omitempty"` // the rest is the token's
	TokenIssued   time.Time `json:"token_issued_at,omitzero"`
	TokenExpiry   time.Time `json:"token_expires_at,omitzero"`
	TokenPin      string    `json:"token_tls_fingerprint,omitempty"`
	Problem       string    `json:"problem,omitempty"` // why it cannot be used
}

func showContext(name string, isDefault bool, c contexts.Context) contextAnswer {
	answer := contextAnswer{
		Name: name, Default: isDefault, ServerAddr: c.ServerAddr, TLS: c.TLS, TLSCA: c.TLSCA,
		Fingerprint: c.TLSFingerprint, TLSSkipVerify: c.TLSSkipVerify, Workspace: c.Workspace, HasToken: c.Token != "",
	}
	if c.Token == "" {
		return answer
	}
	claims, err := wire.ReadToken(c.Token)
	if err != nil {
		answer.Problem = err.Error()
		return answer
	}
	answer.User, answer.TokenIssued, answer.TokenExpiry, answer.TokenPin = claims.User, claims.Issued, claims.Expiry, claims.Pin
	if !claims.Expiry.After(time.Now()) {
		answer.Problem = "its token expired at " + instant(claims.Expiry)
	}
	return answer
}

// contextCreate is `waypoint context create`.
type contextCreate struct {
	Name    string `arg:"" help:"Its name."`
	Default bool   `help:"Make it the default."`
}

func (*contextCreate) Help() string {
	return `What it says of the server are the flags of every command, or their variables in the environment:
--server-addr, which it must have, --token-file or --token, --server-tls... and --workspace. It is not tried:
see waypoint context verify. waypoint login makes one too, and tries it.`
}

func (c *contextCreate) Run(a *app) error {
	if err := contexts.CheckName(c.Name); err != nil {
		return fmt.Errorf("create context: %w", err)
	}
	store, err := a.contexts()
	if err != nil {
		return err
	}
	given, from := a.ServerAddr, "--server-addr"
	if given == "" {
		given, from = a.env.get("WAYPOINT_SERVER_ADDR"), "WAYPOINT_SERVER_ADDR"
	}
	if given == "" {
		return wire.Errorf(wire.BadUsage, "create context %q: it needs a server", c.Name).WithHint("name it with --server-addr")
	}
	addr, err := parseAddress(given, from)
	if err != nil {
		return err
	}
	text, from, err := a.givenToken()
	if err != nil {
		return err
	}
	if text != "" {
		if err := checkUserToken(text, from); err != nil {
			return err
		}
	}
	known, err := a.describe(contexts.Context{}, addr.String(), text)
	if err != nil {
		return err
	}
	if err := store.Create(c.Name, known); err != nil {
		return err
	}
	if c.Default {
		if err := store.SetDefault(c.Name); err != nil {
			return err
		}
	}
	return a.print(showContext(c.Name, c.Default, known), func(w io.Writer) error {
		_, err := fmt.Fprintf(w, "Context %q created.\n", c.Name)
		return err
	})
}

// checkUserToken refuses what cannot be a person's token.
func checkUserToken(text, from string) error {
	claims, err := checkToken(text, from)
	if err == nil && claims.Kind != wire.UserToken {
		err = wire.Errorf(wire.Denied, "read %s: it is a token for runners", from).
			WithHint("make one for yourself with waypoint user token")
	}
	return err
}

// describe is what was known of a server, with what the flags and the
// environment say in its place.
func (a *app) describe(known contexts.Context, addr, token string) (contexts.Context, error) {
	known.ServerAddr, known.Token = addr, token
	if a.ServerTLS != nil {
		known.TLS = a.ServerTLS
	}
	if a.ServerTLSSkipVerify != nil {
		known.TLSSkipVerify = *a.ServerTLSSkipVerify
	}
	override(&known.TLSFingerprint, a.ServerTLSFingerprint)
	override(&known.Workspace, a.Workspace)
	if a.ServerTLSCA != "" {
		path, err := filepath.Abs(a.ServerTLSCA) // it is used from everywhere
		if err != nil {
			return known, fmt.Errorf("find CA file: %w", err)
		}
		known.TLSCA = path
	}
	_, err := a.trust(known)
	return known, err
}

// contextList is `waypoint context list`.
type contextList struct{}

func (contextList) Run(a *app) error {
	store, err := a.contexts()
	if err != nil {
		return err
	}
	names, err := store.Names()
	if err != nil {
		return err
	}
	usual, err := store.Default()
	if err != nil {
		return err
	}
	answers := []contextAnswer{}
	for _, name := range names {
		known, err := a.loadContext(name)
		answer := showContext(name, name == usual, known)
		if err != nil {
			answer.Problem = err.Error()
			writeError(a.stderr, err) // with what to do
		}
		answers = append(answers, answer)
	}
	return a.print(answers, func(w io.Writer) error {
		now := time.Now()
		t := output.NewTable("NAME", "DEFAULT", "SERVER", "USER", "TOKEN EXPIRES")
		for _, c := range answers {
			expires := ""
			if !c.TokenExpiry.IsZero() {
				expires = untilOrAgo(now, c.TokenExpiry)
			}
			t.Row(c.Name, yesNo(c.Default), c.ServerAddr, c.User, expires)
		}
		return t.Write(w)
	})
}

// contextUse is `waypoint context use`.
type contextUse struct {
	Name string `arg:"" help:"The context."`
}

func (c *contextUse) Run(a *app) error {
	store, err := a.contexts()
	if err != nil {
		return err
	}
	if err := store.SetDefault(c.Name); err != nil {
		return err
	}
	a.noteShadow()
	return a.changed(c.Name, "is the default")
}

// changed answers a command that has changed a context.
func (a *app) changed(name, how string) error {
	return a.print(struct {
		Name string `json:"name"`
	}{name}, func(w io.Writer) error {
		_, err := fmt.Fprintf(w, "Context %q %s.\n", name, how)
		return err
	})
}

// noteShadow says what goes before the default context here.
func (a *app) noteShadow() {
	for _, name := range []string{"WAYPOINT_SERVER_ADDR", "WAYPOINT_CONTEXT"} {
		if a.env.get(name) != "" {
			a.note("%s is set: it goes before the default context", name)
		}
	}
}

// contextInspect is `waypoint context inspect`.
type contextInspect struct {
	Name string `arg:"" optional:"" help:"The context (default the default one)."`
}

func (c *contextInspect) Run(a *app) error {
	name, usual, err := a.contextNamed(c.Name)
	if err != nil {
		return err
	}
	known, err := a.loadContext(name)
	if err != nil {
		if wire.KindOf(err) == wire.NotFound {
			err = fmt.Errorf("inspect context: %w", err)
		}
		return err
	}
	answer := showContext(name, name == usual, known)
	return a.print(answer, func(w io.Writer) error {
		f := new(output.Fields)
		f.Add("Name", answer.Name)
		f.Add("Default", yesNo(answer.Default))
		f.Add("Server", answer.ServerAddr)
		if answer.TLS != nil {
			f.Add("TLS", yesNo(*answer.TLS))
		}
		f.Add("CA file", answer.TLSCA)
		f.Add("Fingerprint", answer.Fingerprint)
		if answer.TLSSkipVerify {
			f.Add("Verification", "none: any certificate is trusted")
		}
		f.Add("Workspace", answer.Workspace)
		f.Add("Token", yesNo(answer.HasToken))
		f.Add("User", answer.User)
		f.Add("Token issued", instant(answer.TokenIssued))
		f.Add("Token expires", instant(answer.TokenExpiry))
		f.Add("Token's fingerprint", answer.TokenPin)
		f.Add("Problem", answer.Problem)
		return f.Write(w)
	})
}

// contextNamed is the name that was given, else --context, else that of the default
// context; and the default one's.
func (a *app) contextNamed(given string) (name, usual string, err error) {
	store, err := a.contexts()
	if err != nil {
		return "", "", err
	}
	if usual, err = store.Default(); err != nil {
		return "", "", err
	}
	for _, name := range []string{given, a.Context, a.env.get("WAYPOINT_CONTEXT"), usual} {
		if name != "" {
			return name, usual, nil
		}
	}
	return "", "", wire.Errorf(wire.NotFound, "choose context: none is the default").WithHint("name one; waypoint context list shows them")
}

// contextRename is `waypoint context rename`.
type contextRename struct {
	From string `arg:"" help:"The context."`
	To   string `arg:"" help:"Its new name."`
}

func (c *contextRename) Run(a *app) error {
	store, err := a.contexts()
	if err != nil {
		return err
	}
	if err := store.Rename(c.From, c.To); err != nil {
		return err
	}
	return a.changed(c.To, fmt.Sprintf("was %q", c.From))
}

// contextDelete is `waypoint context delete`.
type contextDelete struct {
	Name []string `arg:"" help:"The contexts; one that is not there is no error."`
}

func (c *contextDelete) Run(a *app) error {
	store, err := a.contexts()
	if err != nil {
		return err
	}
	var failures []error
	for _, name := range c.Name {
		if err := store.Delete(name); err != nil {
			failures = append(failures, err)
			continue
		}
		if !a.JSON {
			if err := a.changed(name, "deleted"); err != nil {
				return err
			}
		}
	}
	if a.JSON && len(failures) == 0 {
		if err := output.JSON(a.stdout, map[string][]string{"deleted": c.Name}); err != nil {
			return err
		}
	}
	return a.firstOf(failures)
}

// contextVerify is `waypoint context verify`.
type contextVerify struct {
	Name string `arg:"" optional:"" help:"The context (default the default one)."`
}

// verifyAnswer is what a server says to a context's user.
type verifyAnswer struct {
	Name       string `json:"name"`
	ServerAddr string `json:"server_addr"`
	ServerID   string `json:"server_id"`
	Version    string `json:"version"`
	User       string `json:"user,omitempty"`
	Role       string `json:"role,omitempty"`
	wire.Limits
	By     string    `json:"by,omitempty"` // how the server knows: token 17…, uid 0, group waypoint
	Expiry time.Time `json:"token_expires_at,omitzero"`
}

func (c *contextVerify) Run(a *app) error {
	name, _, err := a.contextNamed(c.Name)
	if err != nil {
		return err
	}
	ch, err := contextServer(name, "context verify", surroundings{load: a.loadContext})
	if err != nil {
		return err
	}
	if err := a.credentials(&ch); err != nil {
		return err
	}
	answer, err := a.tryServer(ch)
	if err != nil {
		return fmt.Errorf("verify context %q: %w", name, err)
	}
	answer.Name = name
	return a.print(answer, func(w io.Writer) error {
		f := new(output.Fields)
		f.Add("Context", answer.Name)
		f.Add("Server", answer.ServerAddr)
		f.Add("Server ID", answer.ServerID)
		f.Add("Version", answer.Version)
		f.Add("User", answer.User)
		f.Add("Role", answer.Role)
		f.Add("Limited to", answer.Limits.String())
		f.Add("Known by", answer.By)
		f.Add("Token expires", instant(answer.Expiry))
		return f.Write(w)
	})
}

// tryServer connects to a server and asks it what it is and who asks, which it
// tells only those who may use it.
func (a *app) tryServer(ch choice) (*verifyAnswer, error) {
	conn, err := a.connectTo(ch)
	if err != nil {
		return nil, err
	}
	ctx, cancel := a.ask()
	defer cancel()
	answer, err := ask(ctx, conn, ch)
	return answer, errors.Join(err, conn.close())
}

func ask(ctx context.Context, conn *connection, ch choice) (*verifyAnswer, error) {
	s, err := conn.ServerStatus(ctx)
	if err != nil {
		return nil, fmt.Errorf("ask for status: %w", err)
	}
	answer := &verifyAnswer{ServerAddr: ch.addr.String(), ServerID: s.ID, Version: s.Version}
	self, err := conn.Self(ctx)
	if err != nil {
		return nil, fmt.Errorf("ask who this is: %w", err)
	}
	answer.User, answer.Role, answer.Limits, answer.By, answer.Expiry = self.User, string(self.Role), self.Limits, self.By, self.Expiry
	return answer, nil
}
