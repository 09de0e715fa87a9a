package mux

import (
	"cmp"
	"crypto/ed25519"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/waypointd/waypoint/mux/wire"
)

// Peer is who is at the other end: taken once, at accept, and handed to every
// handler. It is read-only.
type Peer struct {
	Network string // "unix", "tcp" or "memory"
	Addr    string // remote address on TCP
	TLS     bool   // the connection is encrypted; on TCP only
	UID     int    // of the process at the other end of a Unix socket (SO_PEERCRED); -1 where not known
	GID     int
	Groups  []int // supplementary ones of that process (SO_PEERGROUPS); none where not known
	PID     int
	Hello   wire.Hello        // zero on the dialing side; Runner is set for RoleRunner only
	Key     ed25519.PublicKey // a runner's, possession proved in the handshake; else nil
	Data    any               // what Accept's Admit returned
}

func (p *Peer) String() string {
	switch p.Network {
	case "tcp":
		return "tcp " + p.Addr
	case "unix":
		return fmt.Sprintf("unix uid=%d pid=%d", p.UID, p.PID)
	}
	return p.Network
}

// MarshalText is how logs show a peer.
func (p *Peer) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// LogFields are what a log with fields keeps of a peer besides its text.
func (p *Peer) LogFields() []slog.Attr {
	switch p.Network {
	case "tcp":
		return []slog.Attr{slog.String("address", p.Addr)}
	case "unix":
		return []slog.Attr{slog.Int("uid", p.UID), slog.Int("pid", p.PID)}
	}
	return nil
}

// newPeer asks the kernel who is at the other end of conn.
func newPeer(conn net.Conn) (*Peer, error) {
	p := &Peer{UID: -1, GID: -1, PID: -1}
	switch p.Network = conn.LocalAddr().Network(); p.Network {
	case "memory":
		p.UID, p.GID, p.PID = os.Getuid(), os.Getgid(), os.Getpid()
	case "unix":
		if w, ok := conn.(interface{ NetConn() net.Conn }); ok {
			conn = w.NetConn() // of a wrapper, as tls.Conn has it
		}
		uc, ok := conn.(*net.UnixConn)
		if !ok {
			return nil, wire.Errorf(wire.Internal, "read peer credentials: %T is no Unix socket", conn)
		}
		cred, groups, err := peerCredentials(uc)
		if err != nil {
			return nil, fmt.Errorf("read peer credentials: %w", err)
		}
		p.UID, p.GID, p.PID, p.Groups = int(cred.Uid), int(cred.Gid), int(cred.Pid), groups
	default:
		p.Addr = conn.RemoteAddr().String()
		_, p.TLS = conn.(*tls.Conn)
	}
	return p, nil
}

// peerCredentials are those that the process at the other end had when it connected.
func peerCredentials(uc *net.UnixConn) (cred *unix.Ucred, groups []int, err error) {
	raw, err := uc.SyscallConn()
	if err != nil {
		return nil, nil, err
	}
	var sockErr error
	err = raw.Control(func(fd uintptr) {
		if cred, sockErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); sockErr == nil {
			groups, sockErr = peerGroups(fd)
		}
	})
	return cred, groups, cmp.Or(err, sockErr)
}

// peerGroups asks for the supplementary groups of a peer, with room for as many
// as the kernel says that there are. A kernel before 4.13 knows of none.
func peerGroups(fd uintptr) ([]int, error) {
	ids := make([]uint32, 64)
	for {
		size := uint32(len(ids) * 4)
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, fd, unix.SOL_SOCKET, unix.SO_PEERGROUPS,
			uintptr(unsafe.Pointer(&ids[0])), uintptr(unsafe.Pointer(&size)), 0)
		switch {
		case errno == unix.ERANGE && int(size) > len(ids)*4:
			ids = make([]uint32, size/4)
			continue
		case errno == unix.ENOPROTOOPT:
			return nil, nil
		case errno != 0:
			return nil, errno
		}
		groups := make([]int, size/4)
		for i := range groups {
			groups[i] = int(ids[i])
		}
		return groups, nil
	}
}
