package mux

import (
	"net"
	"path"
	"strconv"
	"strings"

	"github.com/waypointd/waypoint/mux/wire"
)

// Address is where a server listens: see ParseAddress.
type Address struct {
	Network string // "unix" or "tcp"
	Path    string // of the socket, or host:port
}

// DefaultPort is the server's TCP port.
const DefaultPort = "9701"

// maxSocketPath is the longest path of a Unix socket: the kernel's field has
// 108 bytes with the final zero.
const maxSocketPath = 107

const addressHint = "write unix:///path, tcp://host:port or host[:port]"

// ParseAddress reads unix:///path, tcp://host:port and host[:port]. Its error
// is BadUsage; a socket path longer than the kernel takes (107 bytes) is named
// as such.
func ParseAddress(s string) (Address, error) {
	scheme, rest, found := strings.Cut(s, "://")
	switch {
	case found && scheme == "unix":
		return parseSocketPath(s, rest)
	case found && scheme == "tcp":
		return parseHostPort(s, rest)
	case found:
		return Address{}, badAddress(s, "the scheme "+strconv.Quote(scheme)+" is not known")
	case strings.HasPrefix(s, "/"), strings.HasPrefix(s, "."):
		return Address{}, wire.Errorf(wire.BadUsage, "read address %q: a path", s).WithHint("write unix://%s for a Unix socket", s)
	}
	return parseHostPort(s, s)
}

func badAddress(s, why string) error {
	return wire.Errorf(wire.BadUsage, "read address %q: %s", s, why).WithHint(addressHint)
}

func parseSocketPath(s, p string) (Address, error) {
	switch {
	case !path.IsAbs(p):
		return Address{}, badAddress(s, "the path of a socket must be absolute")
	case strings.ContainsRune(p, 0):
		return Address{}, badAddress(s, "the path has a zero byte")
	}
	if strings.HasSuffix(p, "/") {
		return Address{}, badAddress(s, "the path names a directory")
	}
	p = path.Clean(p)
	if len(p) > maxSocketPath {
		return Address{}, wire.Errorf(wire.BadUsage, "read address %q: the path has %d bytes, a socket's may have %d",
			s, len(p), maxSocketPath).WithHint("use a shorter path")
	}
	return Address{Network: "unix", Path: p}, nil
}

func parseHostPort(s, hp string) (Address, error) {
	host, port := hp, DefaultPort
	bare := strings.TrimSuffix(strings.TrimPrefix(hp, "["), "]")
	if ip := net.ParseIP(bare); ip != nil && (bare == hp || len(bare) == len(hp)-2) {
		host = bare
	} else if strings.Contains(hp, ":") {
		var err error
		if host, port, err = net.SplitHostPort(hp); err != nil {
			return Address{}, badAddress(s, "this is no host:port")
		}
	}
	if host == "" || strings.ContainsAny(host, "/[]@ \t\n\x00") {
		return Address{}, badAddress(s, "the host is missing or no name of one")
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || strconv.FormatUint(n, 10) != port {
		return Address{}, badAddress(s, "the port is no number up to 65535")
	}
	return Address{Network: "tcp", Path: net.JoinHostPort(host, port)}, nil
}

// String is the form that ParseAddress reads.
func (a Address) String() string { return a.Network + "://" + a.Path }
