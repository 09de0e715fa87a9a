package daemon

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os/user"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/waypointd/waypoint/daemon/store"
	"github.com/waypointd/waypoint/daemon/token"
	"github.com/waypointd/waypoint/mux"
	dialer "github.com/waypointd/waypoint/mux/client"
	"github.com/waypointd/waypoint/mux/wire"
)

const patience = 20 * time.Second

// site is a server that listens on a Unix socket, on one for runners only and on
// TCP.
type site struct {
	*Server
	unix, runners, tcp net.Addr
}

func newSite(t testing.TB, cfg Config) *site {
	t.Helper()
	return newSiteWith(t, cfg, func(net.Listener) {})
}

// newSiteWith is newSite whose listeners are prepared before they are served.
func newSiteWith(t testing.TB, cfg Config, prepare func(net.Listener)) *site {
	t.Helper()
	if cfg.StateDir == "" {
		cfg.StateDir = t.TempDir()
	}
	cfg.Plain = true
	s, err := New(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	u, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	r, err := net.Listen("unix", filepath.Join(t.TempDir(), "r"))
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range []net.Listener{u, r, l} {
		prepare(l)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx, u, Listener{r, true}, l) }()
	t.Cleanup(func() {
		cancel()
		if err := errors.Join(<-served, s.Close()); err != nil {
			t.Error(err)
		}
	})
	h := &site{s, u.Addr(), r.Addr(), l.Addr()}
	_, err = h.hello(t, "tcp", operator("")) // answered once it serves
	is(t, err, wire.Unauthenticated, "no token", "waypoint login")
	return h
}

// dial connects by "unix", "runners", "tcp" or "memory".
func (s *site) dial(network string) (net.Conn, error) {
	switch network {
	case "unix":
		return net.Dial("unix", s.unix.String())
	case "runners":
		return net.Dial("unix", s.runners.String())
	case "tcp":
		return net.Dial("tcp", s.tcp.String())
	}
	near, far := mux.Pipe()
	go s.ServeConn(context.Background(), far)
	return near, nil
}

// hello makes a session, of a runner with a key of its own.
func (s *site) hello(t testing.TB, network string, h wire.Hello) (*mux.Session, error) {
	t.Helper()
	var key ed25519.PrivateKey
	if h.Runner != nil {
		var err error
		if _, key, err = ed25519.GenerateKey(nil); err != nil {
			t.Fatal(err)
		}
	}
	return s.helloAs(t, network, h, key)
}

func (s *site) helloAs(t testing.TB, network string, h wire.Hello, key ed25519.PrivateKey) (*mux.Session, error) {
	t.Helper()
	conn, err := s.dial(network)
	if err != nil {
		t.Fatal(err)
	}
	session, err := mux.Connect(t.Context(), conn, mux.Config{}, h, key, nil)
	if err == nil {
		t.Cleanup(func() { session.Close() })
	}
	return session, err
}

func (s *site) mustHello(t testing.TB, network string, h wire.Hello) *mux.Session {
	t.Helper()
	session, err := s.hello(t, network, h)
	if err != nil {
		t.Fatal(err)
	}
	return session
}

func operator(text string) wire.Hello { return wire.Hello{Role: wire.RoleClient, Token: text} }

func local(text string) wire.Hello {
	return wire.Hello{Role: wire.RoleRunner, Token: text, Runner: &wire.RunnerHello{Kind: wire.KindLocal, Concurrency: 1}}
}

// remote is an agent's hello; text is its token, "" for none.
func remote(id, text string) wire.Hello {
	h := wire.Hello{Role: wire.RoleRunner, Runner: &wire.RunnerHello{ID: id, Kind: wire.KindRemote, Concurrency: 1}}
	if text != "" {
		h.Runner.Offers = []wire.TokenOffer{{Source: wire.SourceFile, Token: text}}
	}
	return h
}

// issueAt makes a token as of a time, past the handlers.
func (s *site) issueAt(t testing.TB, c wire.Claims, life time.Duration, at time.Time) string {
	t.Helper()
	var text string
	var made wire.Claims
	if err := s.store.Update(t.Context(), func(tx *store.Tx) (err error) {
		if c.User != "" {
			u, found, err := tx.User(c.User)
			if err == nil && (!found || !u.DeletedAt.IsZero()) {
				_, err = fresh(tx, c.User, wire.Admin, wire.Limits{}, -1, "a test", at)
			}
			if err != nil {
				return err
			}
		}
		if text, made, err = s.mint(tx, c, life, at); err != nil || c.User == "" {
			return err
		}
		return tx.AddUserToken(store.UserTokenRecord{Serial: made.Serial, Kind: c.Kind, User: c.User, CreatedAt: made.Issued, Expiry: made.Expiry})
	}); err != nil {
		t.Fatal(err)
	}
	return text
}

func (s *site) userToken(t testing.TB, life time.Duration) string {
	t.Helper()
	return s.issueAt(t, wire.Claims{Kind: wire.UserToken, User: "ada"}, life, time.Now())
}

func (s *site) runnerToken(t testing.TB, life time.Duration) string {
	t.Helper()
	return s.issueAt(t, wire.Claims{Kind: wire.RunnerToken}, life, time.Now())
}

// is fails unless err is of the kind, says so, and says what to do.
func is(t testing.TB, err error, kind wire.Kind, says, hint string) {
	t.Helper()
	e, ok := errors.AsType[*wire.Error](err)
	if !ok || e.Kind != kind || !strings.Contains(e.Message, says) || !strings.Contains(e.Hint, hint) || hint == "" && e.Hint != "" {
		t.Errorf("got %#v, want kind %s, %q, hint %q", err, kind, says, hint)
	}
}

func TestLogin(t *testing.T) {
	s, other := newSite(t, Config{}), newSite(t, Config{})
	good := s.userToken(t, time.Hour)
	expired := s.issueAt(t, wire.Claims{Kind: wire.UserToken, User: "ada"}, time.Hour, time.Now().Add(-2*time.Hour))
	stale := s.issueAt(t, wire.Claims{Kind: wire.RunnerToken}, time.Hour, time.Now().Add(-2*time.Hour))
	early := s.issueAt(t, wire.Claims{Kind: wire.UserToken, User: "ada"}, time.Hour, time.Now().Add(2*time.Minute))
	for _, c := range []struct {
		name, networks, token string
		kind                  wire.Kind
		says, hint            string
	}{
		{"no token where the kernel vouches", "unix memory", "", "", "", ""},
		{"no token", "tcp", "", wire.Unauthenticated, "no token", "waypoint login"},
		{"no token, hint", "tcp", "", wire.Unauthenticated, "no token", "WAYPOINT_SERVER_TOKEN"},
		{"no token, fresh server", "tcp", "", wire.Unauthenticated, "no token", "waypoint server bootstrap"},
		{"good", "tcp unix memory", good, "", "", ""},
		{"garbage", "tcp unix memory", "hunter2", wire.Unauthenticated, "not valid", "make a new one"},
		{"cut off", "tcp unix memory", good[:len(good)-1], wire.Unauthenticated, "not valid", "copy the whole token"},
		{"another server's", "tcp unix memory", other.userToken(t, time.Hour), wire.Unauthenticated, "not valid", "made by this server"},
		{"expired", "tcp unix memory", expired, wire.Expired, "expired at", "waypoint user token"},
		{"expired runner token", "tcp unix memory", stale, wire.Expired, "expired at", "waypoint user token"},
		{"from the future", "tcp unix memory", early, wire.Unauthenticated, "clock", "clock"},
	} {
		for network := range strings.FieldsSeq(c.networks) {
			for role, hello := range map[string]wire.Hello{"client": operator(c.token), "local runner": local(c.token)} {
				t.Run(c.name+"/"+network+"/"+role, func(t *testing.T) {
					session, err := s.hello(t, network, hello)
					if c.kind != "" {
						is(t, err, c.kind, c.says, c.hint)
						return
					}
					if err != nil {
						t.Fatal(err)
					}
					if hello.Runner == nil {
						if err := session.Call(t.Context(), wire.MethodServerStatus, wire.ServerStatusRequest{}, nil); err != nil {
							t.Error(err)
						}
					}
				})
			}
		}
	}
}

func TestRunnerTokenIsNoLogin(t *testing.T) {
	s := newSite(t, Config{})
	text := s.runnerToken(t, time.Hour)
	for _, network := range []string{"tcp", "unix", "memory"} {
		_, err := s.hello(t, network, local(text))
		is(t, err, wire.Denied, "a runner token is good for a runner's own calls only", "waypoint user token")
		session := s.mustHello(t, network, operator(text))
		err = session.Call(t.Context(), wire.MethodJobList, wire.JobFilter{}, nil)
		is(t, err, wire.Denied, "a runner token is good for a runner's own calls only", "waypoint user token")
	}
}

// The session ends at the moment at which its token expires, with what it is
// waiting for; a client that comes back is told why.
func TestLoginExpiresWithinSession(t *testing.T) {
	s := newSite(t, Config{})
	var job wire.SubmitReply
	owner := s.mustHello(t, "unix", operator(""))
	if err := owner.Call(t.Context(), wire.MethodJobSubmit, wire.SubmitRequest{Jobs: []wire.JobSpec{{
		Operation: wire.OpRun, Command: []string{"true"}, Target: wire.Target{Any: true},
	}}}, &job); err != nil {
		t.Fatal(err)
	}
	text := s.userToken(t, time.Second)
	claims, err := wire.ReadToken(text)
	if err != nil {
		t.Fatal(err)
	}
	runner := s.mustHello(t, "tcp", local(text))
	c, err := dialer.Dial(t.Context(), dialer.Config{
		Dial:  func(context.Context) (net.Conn, error) { return s.dial("tcp") },
		Token: func() string { return text },
	})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	_, err = c.Wait(ctx, job.Jobs[0].ID)
	is(t, err, wire.Expired, "expired at", "waypoint login")
	if now := time.Now(); now.Before(claims.Expiry) {
		t.Errorf("ended %s too early", claims.Expiry.Sub(now))
	}
	select {
	case <-runner.Done():
	case <-ctx.Done():
		t.Error("the local runner's session outlives its login")
	}
	if err := owner.Err(); err != nil {
		t.Errorf("a session without a token has ended: %v", err)
	}
}

// The wall clock decides, at each call.
func TestLoginHolds(t *testing.T) {
	s := newSite(t, Config{})
	text := s.userToken(t, time.Hour)
	c, err := wire.ReadToken(text)
	if err != nil {
		t.Fatal(err)
	}
	l, err := s.login(t.Context(), &mux.Peer{Network: "tcp", Hello: operator(text)}, door{})
	if err != nil {
		t.Fatal(err)
	}
	for at, kind := range map[time.Time]wire.Kind{
		c.Issued: "", c.Expiry.Add(-1): "", c.Expiry: wire.Expired, c.Expiry.Add(time.Hour): wire.Expired,
		c.Issued.Add(-24 * time.Hour): "", // the clock was set back
	} {
		if _, err := s.caller(t.Context(), l, at); wire.KindOf(err) != kind {
			t.Errorf("at %s: %v", at, err)
		}
	}
	if got := l.String(); !strings.Contains(got, "ada") || strings.Contains(got, text) {
		t.Errorf("the log would say %q", got)
	}
}

// A call that finds the login over has the session end, although its timer does
// not know.
func TestCallFindsLoginOver(t *testing.T) {
	s := newSite(t, Config{})
	session := s.mustHello(t, "tcp", operator(s.userToken(t, time.Hour)))
	keys, err := s.store.TokenKeys(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := s.store.Update(t.Context(), func(tx *store.Tx) error { return tx.DeleteTokenKey(keys[0].ID) }); err != nil {
		t.Fatal(err)
	}
	s.keys.changed()
	err = session.Call(t.Context(), wire.MethodJobList, wire.JobFilter{}, nil)
	is(t, err, wire.Unauthenticated, "revoked", "waypoint user token")
	select {
	case <-session.Done():
	case <-time.After(patience):
		t.Fatal("the session goes on")
	}
}

// mustWork begins a runner's work stream, for as long as the test.
func mustWork(t *testing.T, session *mux.Session) {
	t.Helper()
	st, err := session.Open(t.Context(), wire.MethodWork, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { st.Close() })
	if err := st.Send(wire.WorkEvent{Begin: &wire.WorkBegin{}}); err != nil {
		t.Fatal(err)
	}
	for begun := false; !begun; {
		var o wire.WorkOrder
		if err := st.RecvMsg(&o); err != nil {
			t.Fatal(err)
		}
		begun = o.Begun != nil
	}
}

// nonsense makes a call whose content is good for nothing: what is asked is only
// whether it is looked at.
func nonsense(t *testing.T, session *mux.Session, method string) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	st, err := session.Open(ctx, method, json.RawMessage(`{}`))
	if err != nil {
		return err
	}
	defer st.Close()
	if err := st.Send("nonsense"); err != nil && !errors.Is(err, mux.ErrCallOver) {
		return err
	}
	if err := st.End(); err != nil && !errors.Is(err, mux.ErrCallOver) {
		return err
	}
	for {
		if _, err := st.Recv(); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
	}
}

func TestNameOfLogin(t *testing.T) {
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	s := newSite(t, Config{})
	for _, network := range []string{"unix", "memory"} {
		l, err := s.login(t.Context(), &mux.Peer{Network: network, UID: 0}, door{})
		if err != nil || network == "unix" && l.name() != "root" {
			t.Errorf("%s: %q, %v", network, l.name(), err)
		}
	}
	l := newLogin(wire.Claims{}, [8]byte{})
	if l.peer = (&mux.Peer{Network: "unix", UID: 123454321}); l.name() != "uid-123454321" {
		t.Errorf("a user id without a name is %q", l.name())
	}
	session := s.mustHello(t, "unix", operator(""))
	var reply wire.TokenReply
	if err := session.Call(t.Context(), wire.MethodUserToken, wire.UserTokenRequest{}, &reply); err != nil {
		t.Fatal(err)
	}
	first, err := wire.ReadToken(reply.Token)
	if err != nil || first.User != me.Username || first.Kind != wire.UserToken || first.Expiry.Sub(first.Issued) != wire.DefaultTokenLife {
		t.Errorf("%+v, %v; want a token of %s", first, err, me.Username)
	}
	// Another one, made with it, is the same user's.
	session = s.mustHello(t, "tcp", operator(s.userToken(t, time.Hour)))
	if err := session.Call(t.Context(), wire.MethodUserToken, wire.UserTokenRequest{ExpiresIn: wire.Duration(time.Hour)}, &reply); err != nil {
		t.Fatal(err)
	}
	if c, err := wire.ReadToken(reply.Token); err != nil || c.User != "ada" || c.Expiry.Sub(c.Issued) != time.Hour {
		t.Errorf("%+v, %v", c, err)
	}
	// A token on the Unix socket says who it is there, too.
	session = s.mustHello(t, "unix", operator(s.userToken(t, time.Hour)))
	if err := session.Call(t.Context(), wire.MethodUserToken, wire.UserTokenRequest{}, &reply); err != nil {
		t.Fatal(err)
	}
	if c, err := wire.ReadToken(reply.Token); err != nil || c.User != "ada" {
		t.Errorf("%+v, %v", c, err)
	}
}

// FuzzHello: whatever a stranger says on TCP, he is neither an operator nor a
// runner that gets jobs, and does not make the server fall over.
func FuzzHello(f *testing.F) {
	s := newSite(f, Config{})
	other := token.NewKey(time.Now())
	now := time.Now()
	forged, err := token.Mint(other, wire.Claims{Kind: wire.UserToken, User: "root", Issued: now, Expiry: now.Add(time.Hour)})
	if err != nil {
		f.Fatal(err)
	}
	invite, err := token.Mint(other, wire.Claims{Kind: wire.InviteToken, User: "root", Issued: now, Expiry: now.Add(time.Hour)})
	if err != nil {
		f.Fatal(err)
	}
	for _, h := range []wire.Hello{operator(""), operator("wpusr_"), operator(forged), operator(invite), local(""), local(forged), local(invite), {
		Role: wire.RoleRunner, Runner: &wire.RunnerHello{
			ID: "a", Kind: wire.KindRemote, Labels: map[string]string{"a": "b"},
			Offers: []wire.TokenOffer{{Source: wire.SourceFile, Token: forged}, {Source: "x", Token: strings.Repeat("y", 100)}},
		},
	}} {
		text, err := json.Marshal(h)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Add([]byte(`{"role":"runner","runner":null}`))
	public, _, err := ed25519.GenerateKey(nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		peer := &mux.Peer{Network: "tcp", Addr: "192.0.2.1:1", UID: -1, GID: -1, PID: -1}
		if json.Unmarshal(text, &peer.Hello) != nil {
			return
		}
		if peer.Hello.Role == wire.RoleRunner { // as mux sees to it
			if peer.Hello.Runner == nil {
				return
			}
			peer.Key = public
		} else {
			peer.Hello.Runner = nil
		}
		a, err := s.admit(t.Context(), peer, door{})
		if err != nil {
			if k := wire.KindOf(err); k == wire.Internal {
				t.Fatalf("%s: %v", text, err)
			}
			return
		}
		if peer.Hello.Role != wire.RoleRunner || peer.Hello.Runner.Kind != wire.KindRemote {
			t.Fatalf("%s: let in", text)
		}
		if r, err := s.store.Runner(t.Context(), a.Welcome.RunnerID); err != nil || r.State != wire.Pending {
			t.Fatalf("%s: %+v, %v", text, r, err)
		}
	})
}
