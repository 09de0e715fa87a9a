package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/waypointd/waypoint/cmd/internal/contexts"
	"github.com/waypointd/waypoint/mux"
	"github.com/waypointd/waypoint/mux/wire"
)

// Where the packaged server listens.
const (
	systemSocket = "/run/waypoint/waypoint.sock"
	runnerSocket = "/run/waypoint/runner.sock"
)

// choice is the server to use.
type choice struct {
	local   bool // none: local mode
	addr    mux.Address
	from    string           // where the address comes from, as errors name it
	context string           // the name of the context it is from, "" where it is from none
	known   contexts.Context // that context

	trust mux.Trust
	token string // who asks, "" where nothing says so
}

// wish is what is said about which server is meant.
type wish struct {
	flag, env               string // an address
	contextFlag, contextEnv string // the name of a context
	noServer                bool
}

// surroundings is where a wish is looked up.
type surroundings struct {
	load         func(name string) (contexts.Context, error)
	usual        func() (string, error) // the default context's name
	systemSocket func() bool            // one that cannot be looked at exists, so that it is refused and never passed over in silence
}

// choose decides which server is meant: an address on the command line, else
// in the environment, else the context that is named there, in this order,
// else the default context, else the system socket if it exists, else none.
//
// A context goes with its own address: where that is not used, nothing of the
// context is, so that its token is never shown to another server.
func (w wish) choose(in surroundings) (choice, error) {
	switch {
	case w.noServer && w.flag != "":
		return choice{}, wire.Errorf(wire.BadUsage, "choose server: --no-server and --server-addr exclude each other")
	case w.noServer && w.contextFlag != "":
		return choice{}, wire.Errorf(wire.BadUsage, "choose server: --no-server and --context exclude each other")
	case w.noServer:
		return choice{local: true}, nil
	case w.flag != "":
		return namedServer(w.flag, "--server-addr")
	case w.env != "":
		return namedServer(w.env, "WAYPOINT_SERVER_ADDR")
	case w.contextFlag != "":
		return contextServer(w.contextFlag, "--context", in)
	case w.contextEnv != "":
		return contextServer(w.contextEnv, "WAYPOINT_CONTEXT", in)
	}
	name, err := in.usual()
	switch {
	case err != nil:
		return choice{}, err
	case name != "":
		return contextServer(name, "the default context", in)
	case in.systemSocket():
		return choice{addr: mux.Address{Network: "unix", Path: systemSocket}, from: "the system socket"}, nil
	}
	return choice{local: true}, nil
}

func namedServer(text, from string) (choice, error) {
	addr, err := parseAddress(text, from)
	return choice{addr: addr, from: from}, err
}

// contextServer is the server of a context, which by says is meant.
func contextServer(name, by string, in surroundings) (choice, error) {
	ch := choice{context: name, from: fmt.Sprintf("context %q", name)}
	var err error
	if ch.known, err = in.load(name); err != nil {
		e := &wire.Error{Kind: wire.KindOf(err), Message: fmt.Sprintf("choose server (%s): %v", by, err)}
		if we, ok := errors.AsType[*wire.Error](err); ok {
			e.Hint = we.Hint
		}
		return choice{}, e
	}
	ch.addr, err = parseAddress(ch.known.ServerAddr, "server_addr of "+ch.from)
	return ch, err
}

// parseAddress is mux.ParseAddress whose error names where the text is from.
func parseAddress(text, from string) (mux.Address, error) {
	addr, err := mux.ParseAddress(text)
	if err == nil {
		return addr, nil
	}
	e := wire.Errorf(wire.BadUsage, "read %s: %v", from, err)
	if we, ok := errors.AsType[*wire.Error](err); ok && we.Hint != "" {
		return addr, e.WithHint("%s", we.Hint)
	}
	return addr, e.WithHint("use unix:///path, tcp://host:port or host[:port]")
}

// systemSocketExists looks for the packaged server's socket.
func systemSocketExists() bool {
	_, err := os.Stat(systemSocket)
	return err == nil || !errors.Is(err, fs.ErrNotExist)
}
