package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"time"

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
	local *localServer // nil unless the server is in this process
}

// server is the choice of this command line.
func (a *app) server() (choice, error) {
	return chooseServer(a.ServerAddr, a.env.get("WAYPOINT_SERVER_ADDR"), a.NoServer, systemSocketExists)
}

// connect reaches the server, or in local mode becomes one.
func (a *app) connect() (*connection, error) {
	ch, err := a.server()
	if err != nil {
		return nil, err
	}
	return a.connectTo(ch)
}

func (a *app) connectTo(ch choice) (*connection, error) {
	log, err := a.logger()
	if err != nil {
		return nil, err
	}
	conn := &connection{dial: func(ctx context.Context) (net.Conn, error) { return mux.Dial(ctx, ch.addr, mux.Trust{Plain: true}) }}
	if ch.local {
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
		Logger:   log,
		Reconnecting: func(err error) {
			// One line for a loss and one for its end, however many attempts lie between.
			if err != nil && !lost.Swap(true) {
				a.note("lost the server: %v; connecting again", err)
			} else if err == nil && lost.Swap(false) {
				a.note("connected again")
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
	e.Message = fmt.Sprintf("connect to %s (%s): %s", ch.addr, ch.from, why)
	if late {
		e.Kind = wire.Unavailable
		e.Message = fmt.Sprintf("connect to %s (%s): no answer within %s", ch.addr, ch.from, connectTimeout)
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
