package mux_test

import (
	"context"
	"errors"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/waypointd/waypoint/mux"
	"github.com/waypointd/waypoint/mux/muxtest"
	"github.com/waypointd/waypoint/mux/wire"
)

func TestParseAddress(t *testing.T) {
	long := "/" + strings.Repeat("x", 106)
	for _, c := range []struct{ in, want, err string }{
		{in: "unix:///run/waypoint/waypoint.sock", want: "unix:///run/waypoint/waypoint.sock"},
		{in: "unix:///a//b/../c", want: "unix:///a/c"},
		{in: "unix://" + long, want: "unix://" + long},
		{in: "unix://" + long + "x", err: "the path has 108 bytes, a socket's may have 107"},
		{in: "unix://run/x", err: "must be absolute"},
		{in: "unix://", err: "must be absolute"},
		{in: "unix:///run/", err: "names a directory"},
		{in: "unix:///a\x00b", err: "zero byte"},
		{in: "/run/x.sock", err: "a path"},
		{in: "./x.sock", err: "a path"},
		{in: "tcp://127.0.0.1:80", want: "tcp://127.0.0.1:80"},
		{in: "tcp://localhost", want: "tcp://localhost:9701"},
		{in: "host", want: "tcp://host:9701"},
		{in: "host:1", want: "tcp://host:1"},
		{in: "::1", want: "tcp://[::1]:9701"},
		{in: "[::1]", want: "tcp://[::1]:9701"},
		{in: "[::1]:7", want: "tcp://[::1]:7"},
		{in: "127.0.0.1", want: "tcp://127.0.0.1:9701"},
		{in: "", err: "host is missing"},
		{in: "tcp://", err: "host is missing"},
		{in: ":9701", err: "host is missing"},
		{in: "host:", err: "no number"},
		{in: "host:65536", err: "no number"},
		{in: "host:+1", err: "no number"},
		{in: "host:007", err: "no number"},
		{in: "host:http", err: "no number"},
		{in: "a:b:c", err: "no host:port"},
		{in: "[::1", err: "no host:port"},
		{in: "user@host", err: "host is missing or no name"},
		{in: "tcp://host/path", err: "host is missing or no name"},
		{in: "http://host", err: `scheme "http"`},
	} {
		a, err := mux.ParseAddress(c.in)
		if c.err != "" {
			if e, ok := errors.AsType[*wire.Error](err); !ok || e.Kind != wire.BadUsage || !strings.Contains(e.Message, c.err) || e.Hint == "" && !strings.Contains(c.err, "107") {
				t.Errorf("%q: got %v, %v, want an error with %q", c.in, a, err, c.err)
			}
			continue
		}
		if err != nil || a.String() != c.want {
			t.Errorf("%q: got %v, %v, want %s", c.in, a, err, c.want)
		}
		if again, err := mux.ParseAddress(a.String()); err != nil || again != a {
			t.Errorf("%q: %v is read back as %v, %v", c.in, a, again, err)
		}
	}
}

func socketAddress(t *testing.T) mux.Address {
	return mux.Address{Network: "unix", Path: filepath.Join(t.TempDir(), "s")}
}

func TestListenUnix(t *testing.T) {
	a := socketAddress(t)
	for _, mode := range []uint32{0o600, 0o660, 0o666} {
		l, err := mux.Listen(t.Context(), a, mode)
		if err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(a.Path)
		if err != nil || uint32(info.Mode().Perm()) != mode {
			t.Fatalf("the socket has the mode %v, %v, want %o", info.Mode(), err, mode)
		}
		if err := mux.CheckListener(l, false); err != nil {
			t.Fatal(err)
		}
		_, err = mux.Listen(t.Context(), a, mode)
		wantKind(t, err, wire.Conflict, "already")
		if conn, err := mux.Dial(t.Context(), a, mux.Trust{Plain: true}); err != nil {
			t.Fatalf("the refused listener did harm: %v", err)
		} else {
			conn.Close()
		}
		l.(*net.UnixListener).SetUnlinkOnClose(mode == 0o666) // the others leave a stale socket
		l.Close()
	}
	if _, err := os.Stat(a.Path); !os.IsNotExist(err) {
		t.Fatalf("the socket is still there: %v", err)
	}

	if err := os.WriteFile(a.Path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := mux.Listen(t.Context(), a, 0o600)
	wantKind(t, err, wire.Conflict, "no socket")
	if b, _ := os.ReadFile(a.Path); string(b) != "precious" {
		t.Fatal("a file was touched")
	}
	_, err = mux.Listen(t.Context(), mux.Address{Network: "unix", Path: filepath.Join(t.TempDir(), "no/s")}, 0o600)
	wantKind(t, err, wire.BadUsage, "directory")
}

func TestListenTCP(t *testing.T) {
	l, err := mux.Listen(t.Context(), mux.Address{Network: "tcp", Path: "localhost:0"}, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	a := mux.Address{Network: "tcp", Path: l.Addr().String()}
	_, err = mux.Listen(t.Context(), a, 0)
	wantKind(t, err, wire.Conflict, "in use")

	s := dialPair(t, l, a, benchTable)
	if err := s.Call(t.Context(), "get", wire.JobRequest{}, nil); err != nil || s.Peer().Network != "tcp" || s.Peer().UID != -1 {
		t.Fatalf("call over TCP: %v, peer %+v", err, s.Peer())
	}

	open, err := mux.Listen(t.Context(), mux.Address{Network: "tcp", Path: "0.0.0.0:0"}, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	wantKind(t, mux.CheckListener(open, false), wire.BadUsage, "loopback")
	if err := errors.Join(mux.CheckListener(open, true), mux.CheckListener(l, false), mux.CheckListener(l, true)); err != nil {
		t.Fatal(err)
	}
	if err := mux.CheckListener(muxtest.Listen(), false); err != nil {
		t.Fatal(err)
	}
}

func TestDialErrors(t *testing.T) {
	a := socketAddress(t)
	_, err := mux.Dial(t.Context(), a, mux.Trust{Plain: true})
	wantKind(t, err, wire.Unavailable, a.String())
	l, err := mux.Listen(t.Context(), a, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
	_, err = mux.Dial(t.Context(), a, mux.Trust{Plain: true})
	wantKind(t, err, wire.Unavailable, "nobody listens")
	if e, _ := errors.AsType[*wire.Error](err); e.Hint == "" {
		t.Error("there is no hint")
	}
	tl, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	tl.Close()
	_, err = mux.Dial(t.Context(), mux.Address{Network: "tcp", Path: tl.Addr().String()}, mux.Trust{})
	wantKind(t, err, wire.Unavailable, tl.Addr().String())
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := mux.Dial(ctx, a, mux.Trust{}); !errors.Is(err, context.Canceled) {
		t.Errorf("dialing with a canceled context: %v", err)
	}
}

// The socket of a group that one is not in names the group.
func TestDialDenied(t *testing.T) {
	group := strconv.Itoa(os.Getgid())
	if g, err := user.LookupGroupId(group); err == nil {
		group = g.Name
	}
	a := socketAddress(t)
	l, err := mux.Listen(t.Context(), a, 0o000)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	err = asNobody(t, func() error {
		conn, err := mux.Dial(t.Context(), a, mux.Trust{Plain: true})
		if err == nil {
			conn.Close()
		}
		return err
	})
	wantKind(t, err, wire.Denied, group)
	want := "usermod -aG " + group
	if os.Getgid() == 0 {
		want = "sudo" // nobody is told to join the group of root
	}
	if e, _ := errors.AsType[*wire.Error](err); !strings.Contains(e.Hint, want) || os.Getgid() == 0 && strings.Contains(e.Hint, "usermod") {
		t.Errorf("the hint is %q", e.Hint)
	}
}

// asNobody runs f without the rights to override permissions. The call must
// stay on its thread, which is thrown away.
func asNobody(t *testing.T, f func() error) error {
	if os.Getuid() != 0 {
		return f()
	}
	for dir := t.TempDir(); dir != "/tmp" && dir != "/"; dir = filepath.Dir(dir) {
		os.Chmod(dir, 0o755) //nolint:errcheck // where it fails the test says so
	}
	got := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		// The thread's own file system ids alone: connect(2) looks at those.
		if err := unix.Setfsuid(65534); err != nil {
			got <- err
			return
		}
		// Effective capabilities that concern files went with the id.
		got <- f()
	}()
	return await(t, "dial", got)
}

func TestPeerCredentials(t *testing.T) {
	a := socketAddress(t)
	l, err := mux.Listen(t.Context(), a, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	s := dialPair(t, l, a, mux.Table{"who": mux.Unary(func(_ context.Context, p *mux.Peer, _ struct{}) ([]int, error) {
		return []int{p.UID, p.GID, p.PID}, nil
	})})
	var who []int
	if err := s.Call(t.Context(), "who", struct{}{}, &who); err != nil {
		t.Fatal(err)
	}
	if who[0] != os.Getuid() || who[1] != os.Getgid() || who[2] != os.Getpid() {
		t.Fatalf("the server sees uid, gid and pid %v", who)
	}
	if p := s.Peer(); p.Network != "unix" || p.UID != os.Getuid() || p.PID != os.Getpid() {
		t.Fatalf("the client sees %+v", p)
	}
}
