package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/waypointd/waypoint/cmd/internal/contexts"
	"github.com/waypointd/waypoint/mux"
	"github.com/waypointd/waypoint/mux/client"
	"github.com/waypointd/waypoint/mux/wire"
)

// connectTimeout is how long a server has to answer the first time.
const connectTimeout = 10 * time.Second

// connection is a client on the server that was chosen.
type connection struct {
	*client.Client
	dial  func(ctx context.Context) (net.Conn, error)
	login string       // the token, also of the runner in this process
	local *localServer // nil unless the server is in this process
}

// configHome is where a user's programs keep their configuration, "" where
// the environment does not say.
func (a *app) configHome() string {
	if dir := a.env.get("XDG_CONFIG_HOME"); filepath.IsAbs(dir) {
		return dir
	}
	if home := a.env.get("HOME"); filepath.IsAbs(home) {
		return filepath.Join(home, ".config")
	}
	return ""
}

// contexts are the user's.
func (a *app) contexts() (*contexts.Store, error) {
	home := a.configHome()
	if home == "" {
		return nil, wire.Errorf(wire.BadUsage, "find contexts: neither XDG_CONFIG_HOME nor HOME is set").WithHint("set HOME")
	}
	return contexts.New(home), nil
}

// loadContext reads a context and says what was wrong with its file.
func (a *app) loadContext(name string) (contexts.Context, error) {
	store, err := a.contexts()
	if err != nil {
		return contexts.Context{}, err
	}
	known, note, err := store.Load(name)
	if note != "" {
		a.note("context %q: %s", name, note)
	}
	return known, err
}

// usualContext is the name of the default context.
func (a *app) usualContext() (string, error) {
	if a.configHome() == "" {
		return "", nil
	}
	return contexts.New(a.configHome()).Default()
}

// server is the choice of this command line.
func (a *app) server() (choice, error) {
	if a.chosen != nil {
		return *a.chosen, nil
	}
	w := wish{
		flag: a.ServerAddr, env: a.env.get("WAYPOINT_SERVER_ADDR"),
		contextFlag: a.Context, contextEnv: a.env.get("WAYPOINT_CONTEXT"), noServer: a.NoServer,
	}
	ch, err := w.choose(surroundings{load: a.loadContext, usual: a.usualContext, systemSocket: systemSocketExists})
	if err != nil {
		return choice{}, err
	}
	if a.Context != "" && ch.context != a.Context {
		a.note("--context %s is not used: the server is named by %s", a.Context, ch.from)
	}
	if err := a.credentials(&ch); err != nil {
		return choice{}, err
	}
	if a.Workspace == "" {
		a.Workspace = ch.known.Workspace
	}
	a.chosen = &ch
	return ch, nil
}

// credentials adds to a choice who asks, and whom they trust. Local mode asks
// itself and needs neither: what is in the environment is for other servers.
func (a *app) credentials(ch *choice) error {
	if ch.local {
		if a.Token != "" || a.TokenFile != "" {
			return wire.Errorf(wire.BadUsage, "choose server: a token is for a server, and none is named").
				WithHint("name it with --server-addr, or leave the token out")
		}
		return nil
	}
	text, from, err := a.givenToken()
	if err != nil {
		return err
	}
	if text == "" {
		text, from = ch.known.Token, "the token of "+ch.from
	}
	var pins []string
	if text != "" {
		claims, err := checkToken(text, from)
		if err != nil {
			return err
		}
		pins = append(pins, claims.Pin)
	}
	ch.token = text
	ch.trust, err = a.trust(ch.known, pins...)
	return err
}

// connect reaches the server, or in local mode becomes one.
func (a *app) connect() (*connection, error) {
	ch, err := a.server()
	if err != nil {
		return nil, err
	}
	return a.connectTo(ch)
}

// notForOperators sends who may not open the runners' socket to that of
// operators: to be in the runners' group would help nobody but a runner.
func notForOperators(addr mux.Address, err error) error {
	e, ok := errors.AsType[*wire.Error](err)
	if !ok || e.Kind != wire.Denied || addr.Path != runnerSocket {
		return err
	}
	return wire.Errorf(wire.Denied, "connect to %s: permission denied; it is the socket of this host's runners", addr).
		WithHint("operators use unix://%s, as members of its group: leave out --server-addr", systemSocket)
}

func (a *app) connectTo(ch choice) (*connection, error) {
	log, err := a.logger()
	if err != nil {
		return nil, err
	}
	conn := &connection{
		login: ch.token,
		dial: func(ctx context.Context) (net.Conn, error) {
			c, err := mux.Dial(ctx, ch.addr, ch.trust)
			return c, notForOperators(ch.addr, err)
		},
	}
	if !ch.local {
		a.warn(ch.addr, ch.trust)
	} else {
		if conn.local, err = a.startLocalServer(log); err != nil {
			return nil, err
		}
		conn.dial = conn.local.dial
	}
	ctx, cancel := context.WithTimeout(a.ctx, connectTimeout)
	defer cancel()
	var lost atomic.Bool
	conn.Client, err = client.Dial(ctx, client.Config{
		Dial:     conn.dial,
		Software: software(),
		Token:    func() string { return ch.token },
		Logger:   log,
		Reconnecting: func(err error) {
			// One line for a loss and one for its end, however many attempts lie between.
			if err != nil && !lost.Swap(true) {
				a.note("lost contact with the server, trying again: %v", err)
			} else if err == nil && lost.Swap(false) {
				a.note("in contact with the server again")
			}
		},
	})
	if err == nil {
		return conn, nil
	}
	if conn.local != nil {
		err = errors.Join(err, conn.local.close())
	}
	return nil, unreachable(ch, err, ctx.Err() != nil && a.ctx.Err() == nil)
}

// unreachable is the error of a server that could not be reached, with where
// its address was said and what to do.
func unreachable(ch choice, err error, late bool) error {
	if ch.local {
		return fmt.Errorf("connect to the server in this process: %w", err)
	}
	e := &wire.Error{Kind: wire.KindOf(err)}
	if we, ok := errors.AsType[*wire.Error](err); ok {
		e.Hint = we.Hint
	}
	// Most causes name the address themselves; once is enough.
	why := strings.TrimPrefix(err.Error(), fmt.Sprintf("connect to %s: ", ch.addr))
	if late {
		e.Kind = wire.Unavailable
		why = fmt.Sprintf("no answer within %s", connectTimeout)
	}
	at := ch.addr.String()
	if ch.from != "" {
		at += " (" + ch.from + ")"
	}
	e.Message = fmt.Sprintf("connect to %s: %s", at, why)
	if e.Kind == wire.Unauthenticated && ch.token == "" {
		e.Hint = fmt.Sprintf("waypoint login %s, or give a token with --token-file", ch.addr)
	}
	if e.Hint == "" && e.Kind == wire.Unavailable {
		e.Hint = "start the server there, or name another one with --server-addr"
		if ch.addr.Path == systemSocket {
			e.Hint = "systemctl status waypoint-server"
		}
	}
	return e
}

// close ends the connection, and the server if it is in this process.
func (c *connection) close() error {
	err := c.Client.Close()
	if c.local != nil {
		err = errors.Join(err, c.local.close())
	}
	if err != nil {
		return fmt.Errorf("close connection: %w", err)
	}
	return nil
}

// withServer calls f with a connection and a context for one question.
func (a *app) withServer(f func(ctx context.Context, c *connection) error) error {
	conn, err := a.connect()
	if err != nil {
		return err
	}
	ctx, cancel := a.ask()
	defer cancel()
	err = f(ctx, conn)
	if cerr := conn.close(); err == nil && conn.local != nil {
		err = cerr
	}
	return err
}
