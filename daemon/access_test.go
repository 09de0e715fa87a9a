package daemon

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/waypointd/waypoint/mux"
	"github.com/waypointd/waypoint/mux/wire"
)

// mayCall is who may call what, written by hand. The columns are the callers of
// TestWhoMayCallWhat: viewer, limited viewer, operator, limited operator, admin,
// invite, runner token; on the host root (or who the server runs as), member of
// the operators' group, somebody configured as viewer; runners: local, pending,
// admitted.
var mayCall = map[string]string{
	//                           v lv o lo a  i rt  r m cv  l p ad
	wire.MethodServerStatus:    "y y y y y  - -  y y y  - - -",
	wire.MethodServerReload:    "- - - - y  - -  y - -  - - -",
	wire.MethodServerSnapshot:  "- - - - y  - -  y - -  - - -",
	wire.MethodServerBootstrap: "- - - - u  - -  y - -  - - -", // u: on the host's own listeners only
	wire.MethodTokenKeyRotate:  "- - - - y  - -  y - -  - - -",

	wire.MethodUserSelf:   "y y y y y  - -  y y y  - - -",
	wire.MethodUserToken:  "y y y y y  - -  y y y  - - -",
	wire.MethodUserTokens: "y y y y y  - -  y y y  - - -",
	wire.MethodUserRevoke: "y y y y y  - -  y y y  - - -",
	wire.MethodUserAccept: "- - - - -  y -  - - -  - - -",
	wire.MethodUserInvite: "- - - - y  - -  y - -  - - -",
	wire.MethodUserList:   "- - - - y  - -  y - -  - - -",
	wire.MethodUserSet:    "- - - - y  - -  y - -  - - -",
	wire.MethodUserDelete: "- - - - y  - -  y - -  - - -",

	wire.MethodAuditList: "- - - - y  - -  y - -  - - -",

	wire.MethodJobSubmit: "- - y y y  - -  y y -  - - -",
	wire.MethodJobGet:    "y y y y y  - -  y y y  - - -",
	wire.MethodJobList:   "y y y y y  - -  y y y  - - -",
	wire.MethodJobWhy:    "y y y y y  - -  y y y  - - -",
	wire.MethodJobCancel: "- - y y y  - -  y y -  - - -",
	wire.MethodJobRetry:  "- - y y y  - -  y y -  - - -",
	wire.MethodJobWait:   "y y y y y  - -  y y y  - - -",
	wire.MethodJobStream: "y y y y y  - -  y y y  - - -",

	wire.MethodRecordList: "y y y y y  - -  y y y  - - -",

	wire.MethodBlobMissing: "- - y y y  - -  y y -  y - y",
	wire.MethodBlobPut:     "- - y y y  - -  y y -  y - y",
	wire.MethodBlobGet:     "- - y y y  - -  y y -  y - y",

	wire.MethodRunnerList:    "y y y y y  - -  y y y  - - -",
	wire.MethodRunnerInspect: "y y y y y  - -  y y y  - - -",
	wire.MethodRunnerAdopt:   "- - y - y  - -  y y -  - - -",
	wire.MethodRunnerReject:  "- - y - y  - -  y y -  - - -",
	wire.MethodRunnerForget:  "- - y - y  - -  y y -  - - -",
	wire.MethodRunnerDrain:   "- - y - y  - -  y y -  - - -",
	wire.MethodRunnerWait:    "y y y y y  - -  y y y  - - -",
	wire.MethodRunnerToken:   "- - - - y  - -  y - -  - - -",
	wire.MethodRunnerMatch:   "y y y y y  - -  y y y  - - -",

	wire.MethodAuthenticate: "- - - - -  - -  - - -  - y y",
	wire.MethodWork:         "- - - - -  - -  - - -  y y y",
	wire.MethodReport:       "- - - - -  - -  - - -  y y y", // and is then asked for which job
}

// limitsOf is how each method goes with limits, written by hand.
var limitsOf = map[scope]string{
	unlimited: "runner.adopt runner.reject runner.forget runner.drain runner.token",
	byJob:     "job.get job.why job.cancel job.retry job.wait job.stream",
	byFilter:  "server.status job.list record.list",
	bySpec:    "job.submit",
	byBlob:    "blob.missing blob.put blob.get",
}

const (
	groupOfOperators = 54321 // numbers that no user or group of a host has
	groupOfViewers   = 54322
	uidOfSomebody    = 54323
)

// reachable has a socket that everybody may open, whose group is that of the
// operators. Only root can give a file away.
func reachable(t testing.TB) func(net.Listener) {
	return func(l net.Listener) {
		if os.Geteuid() != 0 || l.Addr().Network() != "unix" {
			return
		}
		path := l.Addr().String()
		if err := errors.Join(os.Chmod(filepath.Dir(filepath.Dir(path)), 0o711), os.Chmod(path, 0o666), os.Chown(path, 0, groupOfOperators)); err != nil {
			t.Fatal(err)
		}
	}
}

// as connects to a Unix socket as another user of the host: a thread that is
// thrown away takes the user's identity, which the kernel then tells the server.
func as(t testing.TB, addr net.Addr, uid, gid int, groups ...uint32) net.Conn {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root can be somebody else")
	}
	var (
		conn net.Conn
		err  error
		done = make(chan struct{})
	)
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlocked: the thread ends here
		var list unsafe.Pointer
		if len(groups) > 0 {
			list = unsafe.Pointer(&groups[0])
		}
		const keep = ^uintptr(0)
		if _, _, errno := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(groups)), uintptr(list), 0); errno != 0 {
			err = errno
			return
		}
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESGID, keep, uintptr(gid), keep); errno != 0 {
			err = errno
			return
		}
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, keep, uintptr(uid), keep); errno != 0 {
			err = errno
			return
		}
		conn, err = net.Dial(addr.Network(), addr.String())
	}()
	<-done
	if err != nil {
		t.Fatalf("connect as %d:%d: %v", uid, gid, err)
	}
	return conn
}

// over makes a session on a connection.
func over(t testing.TB, conn net.Conn, h wire.Hello) (*mux.Session, error) {
	t.Helper()
	session, err := mux.Connect(t.Context(), conn, mux.Config{}, h, nil, nil)
	if err == nil {
		t.Cleanup(func() { session.Close() })
	}
	return session, err
}

// account makes a user and a token of his.
func (s *site) account(t testing.TB, name string, r wire.UserRole, l wire.Limits) string {
	t.Helper()
	var reply wire.TokenReply
	if err := s.root(t).Call(t.Context(), wire.MethodUserToken, wire.UserTokenRequest{User: name, Role: r, Limits: l}, &reply); err != nil {
		t.Fatal(err)
	}
	return reply.Token
}

// invite makes an invite.
func (s *site) invite(t testing.TB, name string, r wire.UserRole) string {
	t.Helper()
	var reply wire.TokenReply
	if err := s.root(t).Call(t.Context(), wire.MethodUserInvite, wire.InviteRequest{User: name, Role: r}, &reply); err != nil {
		t.Fatal(err)
	}
	return reply.Token
}

// root is a session of who the server runs as.
func (s *site) root(t testing.TB) *mux.Session {
	t.Helper()
	return s.mustHello(t, "memory", operator(""))
}

// TestWhoMayCallWhat walks over the whole API with each kind of caller, on each
// kind of listener. Who gets no further than the hello is TestWhoGetsIn's; who
// is no agent gets no further where only runners are served.
func TestWhoMayCallWhat(t *testing.T) {
	s := newSiteWith(t, Config{Access: Access{Groups: map[string]wire.UserRole{fmt.Sprint(groupOfViewers): wire.Viewer}}}, reachable(t))
	limits := wire.Limits{Projects: []string{"shop"}}
	tokens := map[string]string{
		"viewer":           s.account(t, "vic", wire.Viewer, wire.Limits{}),
		"limited viewer":   s.account(t, "vera", wire.Viewer, limits),
		"operator":         s.account(t, "otto", wire.Operator, wire.Limits{}),
		"limited operator": s.account(t, "olga", wire.Operator, limits),
		"admin":            s.account(t, "ada", wire.Admin, wire.Limits{}),
		"runner token":     s.runnerToken(t, time.Hour),
	}
	n := 0
	person := func(name string) func(t *testing.T, network string) *mux.Session {
		return func(t *testing.T, network string) *mux.Session {
			text := tokens[name]
			if name == "invite" {
				n++
				text = s.invite(t, fmt.Sprintf("guest-%d", n), wire.Viewer)
			}
			session, err := s.hello(t, network, operator(text))
			if network == "runners" {
				is(t, err, wire.Denied, "only runners", "unix://"+s.unix.String())
				return nil
			}
			if err != nil {
				t.Fatal(err)
			}
			return session
		}
	}
	host := func(uid, gid int, groups ...uint32) func(t *testing.T, network string) *mux.Session {
		return func(t *testing.T, network string) *mux.Session {
			var session *mux.Session
			var err error
			switch {
			case network == "tcp":
				_, err := s.hello(t, network, operator(""))
				is(t, err, wire.Unauthenticated, "no token", "waypoint login")
				return nil
			case uid == 0:
				session, err = s.hello(t, network, operator(""))
			case network == "runners":
				session, err = over(t, as(t, s.runners, uid, gid, groups...), operator(""))
			default:
				session, err = over(t, as(t, s.unix, uid, gid, groups...), operator(""))
			}
			if network == "runners" {
				is(t, err, wire.Denied, "only runners", "unix://"+s.unix.String())
				return nil
			}
			if err != nil {
				t.Fatal(err)
			}
			return session
		}
	}
	agent := func(name, text string) func(t *testing.T, network string) *mux.Session {
		return func(t *testing.T, network string) *mux.Session {
			n++
			session := s.mustHello(t, network, remote(fmt.Sprintf("%s-%d", name, n), text))
			mustWork(t, session)
			return session
		}
	}
	callers := []struct {
		name     string
		networks string
		session  func(t *testing.T, network string) *mux.Session // anew for each call; nil: refused, as it has to be
	}{
		{"viewer", "tcp unix runners", person("viewer")},
		{"limited viewer", "tcp unix runners", person("limited viewer")},
		{"operator", "tcp unix runners", person("operator")},
		{"limited operator", "tcp unix runners", person("limited operator")},
		{"admin", "tcp unix runners", person("admin")},
		{"invite", "tcp unix runners", person("invite")},
		{"runner token", "tcp unix runners", person("runner token")},
		{"root", "unix memory tcp runners", host(0, 0)},
		{"member", "unix tcp runners", host(uidOfSomebody, uidOfSomebody, 7, groupOfOperators)},
		{"configured viewer", "unix tcp runners", host(uidOfSomebody+1, groupOfViewers)},
		{"local runner", "tcp unix runners", func(t *testing.T, network string) *mux.Session {
			session, err := s.hello(t, network, local(tokens["operator"]))
			if network == "runners" {
				is(t, err, wire.Denied, "only runners", "unix://"+s.unix.String())
				return nil
			}
			if err != nil {
				t.Fatal(err)
			}
			return session
		}},
		{"pending runner", "tcp unix runners", agent("stranger", "")},
		{"admitted runner", "tcp unix runners", agent("guest", tokens["runner token"])},
	}
	for name := range mayCall {
		if s.calls[name] == nil {
			t.Errorf("%s: there is no such method", name)
		}
	}
	left := limitsLeft(limitsOf)
	for _, m := range s.api() {
		if len(strings.Fields(mayCall[m.name])) != len(callers) {
			t.Fatalf("%s: this test does not say who may call it", m.name)
		}
		if want := strings.Contains(" "+limitsOf[m.limits]+" ", " "+m.name+" "); !want && m.limits != nowhere {
			t.Errorf("%s: this test says otherwise of how it goes with limits", m.name)
		}
		delete(left, m.name)
	}
	for name := range left {
		t.Errorf("%s: there is no such method", name)
	}
	for i, c := range callers {
		for network := range strings.FieldsSeq(c.networks) {
			t.Run(c.name+" by "+network, func(t *testing.T) {
				for _, m := range s.api() {
					session := c.session(t, network)
					if session == nil {
						return
					}
					want := strings.Fields(mayCall[m.name])[i]
					if want == "u" {
						want = map[bool]string{true: "-", false: "y"}[network == "tcp"]
					}
					switch err := nonsense(t, session, m.name); {
					case errors.Is(err, mux.ErrLost):
						t.Fatalf("%s: %v", m.name, err)
					case (wire.KindOf(err) != wire.Denied) != (want == "y"):
						t.Errorf("%s: %v, but may it be called? %s", m.name, err, want)
					case want == "-" && wire.KindOf(err) == wire.Denied:
						e, _ := errors.AsType[*wire.Error](err)
						if m.who&runners == 0 && c.name != "pending runner" && e.Hint == "" && !strings.Contains(e.Message, "not for") {
							t.Errorf("%s: %q says nothing of what to do", m.name, e.Message)
						}
					}
					session.Close()
				}
			})
		}
	}
}

func limitsLeft(of map[scope]string) map[string]bool {
	left := map[string]bool{}
	for _, names := range of {
		for name := range strings.FieldsSeq(names) {
			left[name] = true
		}
	}
	return left
}

// TestWhoGetsIn: these get no further than the hello, on any listener, be it as a
// command line or as the runner of one.
func TestWhoGetsIn(t *testing.T) {
	s := newSiteWith(t, Config{}, reachable(t))
	revoked, deleted := s.account(t, "rosa", wire.Admin, wire.Limits{}), s.account(t, "dora", wire.Operator, wire.Limits{})
	expired := s.issueAt(t, wire.Claims{Kind: wire.UserToken, User: "ada"}, time.Hour, time.Now().Add(-2*time.Hour))
	used, late := s.invite(t, "ina", wire.Viewer), s.invite(t, "lea", wire.Viewer)
	viewer := s.account(t, "vic", wire.Viewer, wire.Limits{})
	root := s.root(t)
	for method, req := range map[string]any{
		wire.MethodUserRevoke: wire.RevokeRequest{User: "rosa"},
		wire.MethodUserDelete: wire.UserRequest{User: "dora"},
	} {
		if err := root.Call(t.Context(), method, req, nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := root.Call(t.Context(), wire.MethodUserRevoke, wire.RevokeRequest{User: "lea"}, nil); err != nil {
		t.Fatal(err)
	}
	if err := s.mustHello(t, "tcp", operator(used)).Call(t.Context(), wire.MethodUserAccept, wire.AcceptRequest{}, nil); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		text       string
		kind       wire.Kind
		says, hint string
	}{
		"revoked":        {revoked, wire.Unauthenticated, "was revoked at", "waypoint login"},
		"deleted":        {deleted, wire.Unauthenticated, "user dora has been deleted", "waypoint user invite dora"},
		"expired":        {expired, wire.Expired, "expired at", "waypoint login"},
		"used invite":    {used, wire.Unauthenticated, "the invite was used at", "waypoint user invite ina"},
		"revoked invite": {late, wire.Unauthenticated, "was revoked at", "waypoint login"},
	} {
		for _, network := range []string{"tcp", "unix", "memory"} {
			_, err := s.hello(t, network, operator(c.text))
			is(t, err, c.kind, c.says, c.hint)
			_, err = s.hello(t, network, local(c.text))
			is(t, err, c.kind, c.says, c.hint)
		}
		_, err := s.hello(t, "runners", operator(c.text))
		is(t, err, wire.Denied, "only runners", "--server-addr")
		if t.Failed() {
			t.Fatal(name)
		}
	}
	// To have a runner of one's own is to have jobs run.
	for _, text := range []string{viewer, s.invite(t, "ivo", wire.Admin)} {
		_, err := s.hello(t, "tcp", local(text))
		if wire.KindOf(err) != wire.Denied {
			t.Errorf("a runner of a command line: %v", err)
		}
	}
	t.Run("other user of the host", func(t *testing.T) {
		_, err := over(t, as(t, s.unix, uidOfSomebody, uidOfSomebody, 7, 8), operator(""))
		is(t, err, wire.Denied, fmt.Sprintf("is not in the group %d", groupOfOperators), fmt.Sprintf("usermod -aG %d", groupOfOperators))
		// A token says who he is, there too.
		if _, err := over(t, as(t, s.unix, uidOfSomebody, uidOfSomebody), operator(viewer)); err != nil {
			t.Error(err)
		}
	})
	t.Run("rejected runner", func(t *testing.T) {
		for _, network := range []string{"tcp", "unix", "runners"} {
			id := "nobody-" + network
			s.mustHello(t, network, remote(id, ""))
			if err := root.Call(t.Context(), wire.MethodRunnerReject, wire.RunnerRequest{ID: id}, nil); err != nil {
				t.Fatal(err)
			}
			if _, err := s.hello(t, network, remote(id, "")); err == nil {
				t.Errorf("%s: let in", network)
			}
		}
	})
}

// Who a user of the host is, and by which group, is looked up once, and not for each call.
func TestNamesAreLookedUpOnce(t *testing.T) {
	l := newLogin(wire.Claims{}, [8]byte{})
	l.peer = &mux.Peer{Network: "unix", UID: uidOfSomebody, Groups: []int{groupOfOperators}}
	if l.name() != fmt.Sprint("uid-", uidOfSomebody) {
		t.Errorf("name %q", l.name())
	}
	if n := testing.AllocsPerRun(10, func() { l.name() }); n != 0 {
		t.Errorf("%v allocations for a name that is known", n)
	}
	h := newHostRoles(Access{}, func(what, name string) { t.Error(what, name) })
	role := func() {
		if r, by := h.role(l.peer, groupOfOperators); r != wire.Operator || by != fmt.Sprint("group ", groupOfOperators) {
			t.Errorf("%s by %s", r, by)
		}
	}
	role()
	if n := testing.AllocsPerRun(10, role); n > 10 { // those of its texts; a look-up makes many more
		t.Errorf("%v allocations for a role", n)
	}
}
