package main

import (
	"errors"
	"io/fs"
	"os"

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
	local bool // none: local mode
	addr  mux.Address
	from  string // where the address comes from, as errors name it
}

// chooseServer decides which server is meant: the flag, else the environment,
// else the system socket if it exists, else none. exists tells of the system
// socket; one that cannot be looked at exists, so that it is refused and
// never passed over in silence.
func chooseServer(flag, env string, noServer bool, exists func() bool) (choice, error) {
	switch {
	case noServer && flag != "":
		return choice{}, wire.Errorf(wire.BadUsage, "choose server: --no-server and --server-addr exclude each other")
	case noServer:
		return choice{local: true}, nil
	case flag != "":
		return namedServer(flag, "--server-addr")
	case env != "":
		return namedServer(env, "WAYPOINT_SERVER_ADDR")
	case exists():
		return choice{addr: mux.Address{Network: "unix", Path: systemSocket}, from: "the system socket"}, nil
	}
	return choice{local: true}, nil
}

func namedServer(text, from string) (choice, error) {
	addr, err := parseAddress(text, from)
	return choice{addr: addr, from: from}, err
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
