package main

import (
	"io/fs"
	"log/slog"
	"net"
	"net/url"
	"os"
	"slices"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/waypointd/waypoint/cmd/internal/argv"
	"github.com/waypointd/waypoint/daemon"
)

// The flags whose values no list of processes is to show, of every command
// that has them. They are no tags of their fields, since main hides what they are given
// before there is a grammar; TestSecretFlags holds one against the other.
var (
	secretFlags = []string{"token"}
	urlFlags    = []string{"store"} // a file's name, which is shown, or a URL, of which only the scheme is
)

// takeArguments copies the words of the command line and writes x over the
// secrets among them where they are, so that from then on /proc/PID/cmdline,
// and with it ps, has everything but these. What was read before, or is kept
// by what audits the start of programs, is not taken back. words are of os.Args, which
// nobody else has looked at yet, and nobody is to look at later.
func takeArguments(words []string) []string {
	taken := make([]string, len(words))
	for i, w := range words {
		taken[i] = strings.Clone(w)
	}
	hidden := argv.Values(words, secretFlags...)
	for _, v := range argv.Values(words, urlFlags...) {
		if _, rest, ok := strings.Cut(v, "://"); ok {
			hidden = append(hidden, rest)
		}
	}
	for _, v := range hidden {
		// Go's strings are not to be changed, but these are none that it made: the
		// runtime has os.Args point to what the kernel has put on the first stack,
		// which is the process's to write to, and all that the kernel shows. There is no
		// other way to it but /proc/self/mem, which is not everywhere. The length
		// stays, so no other word moves.
		copy(unsafe.Slice(unsafe.StringData(v), len(v)), slices.Repeat([]byte("x"), len(v)))
	}
	return taken
}

// closeToOthers makes this process's memory and environment its own: nobody
// but root can attach a debugger or read /proc/PID/environ, also no other
// process of the same user, and it leaves no core file. A server has the keys
// that sign tokens in memory; an agent its identity key and, where its token
// came by the environment, that as well, which the jobs of an agent without
// --job-user could read (unsetting a variable does not change what the kernel
// shows).
//
// A limit of zero on core files would be milder and is not enough: it closes
// no /proc, a core_pattern that is a pipe is run all the same, and jobs would
// inherit it. A process that is started by this one begins open again. The
// supervisor is left alone: it is given no secret, and writes to files of /proc
// that would be root's.
func closeToOthers() {
	// It fails where there is no such call, and then nothing can be done.
	unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
}

// hasPassword reports whether the address of a database has one in it.
func hasPassword(store string) bool {
	u, err := url.Parse(store)
	if err != nil {
		return false
	}
	_, has := u.User.Password()
	return has || u.Query().Has("password") || u.Query().Has("sslpassword")
}

// warnOfReaders says in the log that a file with the database's password, "" for
// none, can be read by who gets more by it than he has: by everybody, or by the
// group of a socket, whose members operate.
func warnOfReaders(log *slog.Logger, file string, listeners []net.Listener) {
	if file == "" {
		return
	}
	info, err := os.Stat(file)
	if err != nil {
		return // It was read just now; whoever removed it meant to.
	}
	who := ""
	switch mode, gid := info.Mode(), info.Sys().(*syscall.Stat_t).Gid; {
	case mode&0o004 != 0:
		who = "everybody"
	case mode&0o040 != 0 && operates(gid, listeners):
		who = "operators"
	default:
		return
	}
	log.Warn("the database's password can be read by others", "path", file, "who", who,
		"hint", "let root and the server's user alone read it: chmod o-r, or another group; of the packages' file: systemd-tmpfiles --create waypoint.conf")
}

// operates reports whether the members of a group may write to an operators' socket.
func operates(gid uint32, listeners []net.Listener) bool {
	for _, l := range listeners {
		if own, ok := l.(daemon.Listener); ok && own.Runners || l.Addr().Network() != "unix" {
			continue
		}
		info, err := os.Lstat(l.Addr().String())
		if err == nil && info.Mode().Type() == fs.ModeSocket && info.Mode()&0o020 != 0 && info.Sys().(*syscall.Stat_t).Gid == gid {
			return true
		}
	}
	return false
}
