package journal

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// path is the journal's native socket. systemd holds it, so it is the same
// across restarts of journald.
const path = "/run/systemd/journal/socket"

// patience is how long a record may wait for the journal to read. It is the
// kernel's timer: the socket blocks, which a datagram socket of Go's own
// cannot be trusted to end (a full queue at the other end wakes nobody here).
const patience = 1_000_000 // µs

// socket sends records. Each goes as a whole or not at all, so there is
// nothing to lock.
type socket struct {
	fd    int
	path  string
	stuck atomic.Bool // the last one waited in vain
}

// dial makes a socket, and looks whether somebody is at the other end.
func dial(path string) (*socket, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open journal: %w", err)
	}
	s := &socket{fd: fd, path: path}
	tv := unix.NsecToTimeval(patience * 1000)
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &tv); err != nil {
		return nil, errors.Join(fmt.Errorf("open journal: %w", err), s.close())
	}
	// A try on a socket of its own: this one stays without a peer, so that it
	// outlives the one that listens.
	try, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		err = unix.Connect(try, &unix.SockaddrUnix{Name: path})
		unix.Close(try)
	}
	if err != nil {
		return nil, errors.Join(ErrNoJournal, err, s.close())
	}
	return s, nil
}

func (s *socket) close() error { return unix.Close(s.fd) }

// send sends one record.
func (s *socket) send(record []byte) error {
	flags := unix.MSG_NOSIGNAL
	if s.stuck.Load() {
		flags |= unix.MSG_DONTWAIT
	}
	err := s.sendmsg(record, nil, flags)
	if errors.Is(err, unix.EMSGSIZE) || errors.Is(err, unix.ENOBUFS) {
		err = s.sendFile(record, flags)
	}
	if stuck := errors.Is(err, unix.EAGAIN); stuck != s.stuck.Load() {
		s.stuck.Store(stuck)
	}
	return err
}

func (s *socket) sendmsg(data, rights []byte, flags int) error {
	to := &unix.SockaddrUnix{Name: s.path} // its own: package unix writes to it
	for {
		err := unix.Sendmsg(s.fd, data, rights, to, flags)
		if err != unix.EINTR {
			return err
		}
	}
}

// sendFile sends a record that is too long for a datagram: the journal reads
// it from a file that nobody can change any more.
func (s *socket) sendFile(record []byte, flags int) error {
	fd, err := unix.MemfdCreate("waypoint-log", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return fmt.Errorf("make file of a long record: %w", err)
	}
	f := os.NewFile(uintptr(fd), "record")
	defer f.Close()
	if _, err := f.Write(record); err != nil {
		return fmt.Errorf("write file of a long record: %w", err)
	}
	const seals = unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE | unix.F_SEAL_SEAL
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, seals); err != nil {
		return fmt.Errorf("seal file of a long record: %w", err)
	}
	return s.sendmsg(nil, unix.UnixRights(int(f.Fd())), flags)
}

// writeNow writes to what stderr is. Where that is a socket, as the journal's
// is, it does not wait for whoever reads it.
func writeNow(w io.Writer, line string) error {
	f, ok := w.(*os.File)
	if !ok {
		_, err := io.WriteString(w, line)
		return err
	}
	err := unix.Sendto(int(f.Fd()), []byte(line), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, nil)
	if errors.Is(err, unix.ENOTSOCK) {
		_, err = f.WriteString(line)
	}
	return err
}
