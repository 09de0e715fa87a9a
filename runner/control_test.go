package runner

import (
	"context"
	"crypto/ed25519"
	"errors"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/waypointd/waypoint/mux"
	"github.com/waypointd/waypoint/mux/wire"
	"github.com/waypointd/waypoint/statedir"
)

func hint(err error) string {
	if e, ok := errors.AsType[*wire.Error](err); ok {
		return e.Hint
	}
	return ""
}

// control serves the agent's socket for the length of the test and connects to it.
func (b *bench) control() *mux.Session {
	b.t.Helper()
	l, err := ListenControl(b.cfg.Dir)
	if err != nil {
		b.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served, r := make(chan error, 1), b.r
	go func() { served <- r.ServeControl(ctx, l) }()
	b.t.Cleanup(func() {
		cancel()
		if err := <-served; err != nil {
			b.t.Error(err)
		}
	})
	return b.command()
}

func (b *bench) command() *mux.Session {
	b.t.Helper()
	conn, err := DialControl(b.t.Context(), b.cfg.Dir)
	if err != nil {
		b.t.Fatal(err)
	}
	s, err := mux.Connect(b.t.Context(), conn, mux.Config{}, wire.Hello{Role: wire.RoleClient}, nil, nil)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { s.Close() })
	return s
}

func ask(t *testing.T, s *mux.Session, method string, req any) (wire.AgentStatus, error) {
	t.Helper()
	var st wire.AgentStatus
	err := s.Call(t.Context(), method, req, &st)
	return st, err
}

func TestAgentStatus(t *testing.T) {
	b := newTokenBench(t, func(c *Config) { c.Server, c.Software = "unix:///there", "waypoint 1.2.3" })
	b.s.down = true
	b.start()
	b.event("it is not connected", func(ev Event) bool { return ev.Err != nil })
	s := b.control()
	st, err := ask(t, s, wire.MethodAgentStatus, wire.AgentStatusRequest{})
	if err != nil || st.ID != "runner-1" || st.Version != "1.2.3" || st.PID != os.Getpid() || st.Server != "unix:///there" ||
		st.Connected || st.Error != "nobody there" || st.Standing != nil || st.Concurrency != 4 || len(st.Jobs) != 0 ||
		st.Fingerprint != statedir.Fingerprint(b.cfg.Key.Public().(ed25519.PublicKey)) {
		t.Errorf("status %+v, %v", st, err)
	}
	b.s.change(func() { b.s.down = false })
	b.connected()
	step := filepath.Join(t.TempDir(), "step")
	a := script("echo on\n" + until(step))
	b.s.assign(a)
	b.s.await("it runs", func() bool { return len(b.s.jobs[a.JobRef].log) > 0 })
	st, err = ask(t, s, wire.MethodAgentStatus, wire.AgentStatusRequest{})
	if err != nil || !st.Connected || st.Error != "" || st.Standing == nil || !st.Standing.Admitted || !slices.Equal(st.Jobs, []wire.JobRef{a.JobRef}) {
		t.Errorf("status %+v, %v", st, err)
	}
	idle := make(chan error, 1)
	go func() {
		st, err := ask(t, s, wire.MethodAgentWait, wire.AgentStatusRequest{})
		if err == nil && len(st.Jobs) > 0 {
			err = wire.Errorf(wire.Internal, "not idle: %v", st.Jobs)
		}
		idle <- err
	}()
	if _, err := ask(t, s, wire.MethodAgentStatus, wire.AgentStatusRequest{}); err != nil {
		t.Error(err)
	}
	select {
	case err := <-idle:
		t.Errorf("wait returned with a job running: %v", err)
	default:
	}
	let(t, step)
	if err := <-idle; err != nil {
		t.Error(err)
	}
	if _, err := ask(t, s, wire.MethodJobList, wire.JobFilter{}); wire.KindOf(err) != wire.Unimplemented {
		t.Errorf("job.list of an agent: %v", err)
	}
}

// The host's drain outlives agent and session, and goes with the server down.
func TestDrainHost(t *testing.T) {
	b := newTokenBench(t, nil).start().connected()
	s := b.control()
	step := filepath.Join(t.TempDir(), "step")
	a, late := script("echo on\n"+until(step)), script("true")
	b.s.assign(a)
	b.s.await("it runs", func() bool { return len(b.s.jobs[a.JobRef].log) > 0 })
	st, err := ask(t, s, wire.MethodAgentDrain, wire.DrainRequest{Drain: true})
	if err != nil || !st.Draining {
		t.Fatalf("drain: %+v, %v", st, err)
	}
	b.s.await("drain is said", func() bool { return slices.Equal(b.s.drains, []bool{true}) })
	b.event("it is draining", func(ev Event) bool { return ev.Draining && !ev.Stopping })
	b.s.assign(late)
	b.s.await("the late one is given back", func() bool { return len(b.s.nacks) == 1 && strings.Contains(b.s.nacks[0].Error, "drained on its host") })
	b.s.cut()
	b.s.await("it is back, draining", func() bool { return len(b.s.begins) == 2 && b.s.begins[1].Draining })
	let(t, step)
	want(t, b.s.ended(a.JobRef), wire.Success, "") // the running one ends as ever
	if st, err := ask(t, s, wire.MethodAgentDrain, wire.DrainRequest{Drain: true}); err != nil || !st.Draining {
		t.Errorf("again: %+v, %v", st, err)
	}

	b.s.change(func() { b.s.down = true })
	b.s.cut()
	b.restart()
	b.event("it is down", func(ev Event) bool { return ev.Err != nil && ev.Draining })
	b.s.change(func() { b.s.down = false })
	b.s.await("the next agent drains as well", func() bool { return len(b.s.begins) == 3 && b.s.begins[2].Draining })

	b.connected()
	s = b.control()
	if st, err := ask(t, s, wire.MethodAgentDrain, wire.DrainRequest{Drain: false}); err != nil || st.Draining {
		t.Errorf("resume: %+v, %v", st, err)
	}
	b.s.await("its end is said", func() bool { return slices.Equal(b.s.drains, []bool{true, false}) })
	next := script("true")
	b.s.assign(next)
	want(t, b.s.ended(next.JobRef), wire.Success, "")
	if on, err := b.cfg.Tokens.Dir.Flag(drainFlag); on || err != nil {
		t.Errorf("flag: %v, %v", on, err)
	}
	if _, err := ask(t, s, wire.MethodAgentDrain, wire.DrainRequest{ID: "another", Drain: true}); wire.KindOf(err) != wire.NotFound {
		t.Errorf("drain of another: %v", err)
	}
}

// Without the server: drained and resumed, the same.
func TestDrainOffline(t *testing.T) {
	b := newTokenBench(t, nil)
	b.s.down = true
	b.start()
	s := b.control()
	for _, on := range []bool{true, false, true} {
		if st, err := ask(t, s, wire.MethodAgentDrain, wire.DrainRequest{Drain: on}); err != nil || st.Draining != on {
			t.Errorf("%v: %+v, %v", on, st, err)
		}
	}
	if _, err := ask(t, s, wire.MethodAgentWait, wire.AgentStatusRequest{}); err != nil {
		t.Error(err)
	}
	b.s.change(func() { b.s.down = false })
	b.s.await("it begins draining", func() bool { return len(b.s.begins) == 1 && b.s.begins[0].Draining })
}

// An operator's drain is the server's: to resume here says where that is done,
// and takes the host's own away all the same.
func TestDrainByBoth(t *testing.T) {
	b := newTokenBench(t, nil)
	b.s.judge = func([]wire.TokenOffer) wire.Standing {
		return wire.Standing{State: wire.Adopted, Admitted: true, Draining: true}
	}
	b.start().connected()
	b.event("the operator drains it", func(ev Event) bool { return ev.Standing != nil && ev.Standing.Draining && !ev.Draining })
	s := b.control()
	if _, err := ask(t, s, wire.MethodAgentDrain, wire.DrainRequest{Drain: true}); err != nil {
		t.Fatal(err)
	}
	_, err := ask(t, s, wire.MethodAgentDrain, wire.DrainRequest{Drain: false})
	if wire.KindOf(err) != wire.Conflict || hint(err) != "waypoint runner resume runner-1" {
		t.Errorf("resume: %v, hint %q", err, hint(err))
	}
	if st, err := ask(t, s, wire.MethodAgentStatus, wire.AgentStatusRequest{}); err != nil || st.Draining || !st.Standing.Draining {
		t.Errorf("status %+v, %v", st, err)
	}
}

// The kernel takes no path of a socket over 107 bytes; this one is longer.
func TestControlLongPath(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("d", 120))
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := DialControl(t.Context(), dir); wire.KindOf(err) != wire.Unavailable || hint(err) == "" {
		t.Errorf("no agent: %v", err)
	}
	for range 2 { // a stale one is replaced
		l, err := ListenControl(dir)
		if err != nil {
			t.Fatal(err)
		}
		conn, err := DialControl(t.Context(), dir)
		if err != nil {
			t.Fatal(err)
		}
		conn.Close()
		l.Close()
	}
	info, err := os.Stat(filepath.Join(dir, ControlSocket))
	if err != nil || info.Mode() != os.ModeSocket|0o600 {
		t.Errorf("socket: %v, %v", info.Mode(), err)
	}
	if _, err := DialControl(t.Context(), dir); wire.KindOf(err) != wire.Unavailable || hint(err) == "" {
		t.Errorf("agent gone: %v", err)
	}
}

// The socket serves its own user and root, whatever its mode.
func TestControlOtherUser(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to be another user")
	}
	const nobody = 65534
	b := newTokenBench(t, nil).start()
	b.control()
	dir, err := os.MkdirTemp("/tmp", "waypoint-test-") // others cannot enter the test's own
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, ControlSocket)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o777); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- b.r.ServeControl(ctx, l) }()
	refused := make(chan error, 1)
	go func() {
		// This thread becomes another user, and ends with the goroutine.
		runtime.LockOSThread()
		if _, _, errno := syscall.RawSyscall(unix.SYS_SETRESUID, nobody, nobody, nobody); errno != 0 {
			refused <- errno
			return
		}
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err == nil {
			err = unix.Connect(fd, &unix.SockaddrUnix{Name: path})
		}
		if err != nil {
			refused <- err
			return
		}
		f := os.NewFile(uintptr(fd), "control")
		conn, err := net.FileConn(f)
		f.Close()
		if err == nil {
			_, err = mux.Connect(ctx, conn, mux.Config{HandshakeTimeout: 5 * time.Second}, wire.Hello{Role: wire.RoleClient}, nil, nil)
		}
		refused <- err
	}()
	if err := <-refused; wire.KindOf(err) != wire.Denied {
		t.Errorf("another user: %v", err)
	}
	cancel()
	if err := <-served; err != nil {
		t.Error(err)
	}
}

// Who is no command line is told where it is.
func TestControlRoles(t *testing.T) {
	b := newTokenBench(t, nil).start()
	b.control()
	conn, err := DialControl(t.Context(), b.cfg.Dir)
	if err != nil {
		t.Fatal(err)
	}
	_, err = mux.Connect(t.Context(), conn, mux.Config{}, b.r.hello(), b.cfg.Key, nil)
	if wire.KindOf(err) != wire.BadUsage {
		t.Errorf("a runner at an agent's socket: %v", err)
	}
}
