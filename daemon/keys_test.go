package daemon

import (
	"context"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/waypointd/waypoint/daemon/store"
	"github.com/waypointd/waypoint/daemon/token"
	"github.com/waypointd/waypoint/mux"
	"github.com/waypointd/waypoint/mux/wire"
)

func (s *site) rotate(t testing.TB, session *mux.Session, revoke bool) (reply wire.RotateReply) {
	t.Helper()
	if err := session.Call(t.Context(), wire.MethodTokenKeyRotate, wire.RotateRequest{Revoke: revoke}, &reply); err != nil {
		t.Fatal(err)
	}
	return reply
}

func (s *site) keyCount(t testing.TB) int {
	t.Helper()
	keys, err := s.store.TokenKeys(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return len(keys)
}

func keyOf(t testing.TB, text string) [8]byte {
	t.Helper()
	p, err := wire.SplitToken(text)
	if err != nil {
		t.Fatal(err)
	}
	return p.KeyID
}

func TestRotation(t *testing.T) {
	s := newSite(t, Config{})
	owner := s.mustHello(t, "unix", operator(""))
	if n := s.keyCount(t); n != 0 {
		t.Fatalf("%d keys before the first need", n)
	}
	short, long := s.runnerToken(t, time.Hour), s.userToken(t, 2*time.Hour)
	if keyOf(t, short) != keyOf(t, long) || s.keyCount(t) != 1 {
		t.Fatal("the first key was not kept")
	}
	reply := s.rotate(t, owner, false)
	c, err := wire.ReadToken(long)
	if err != nil {
		t.Fatal(err)
	}
	if len(reply.Retired) != 1 || !reply.Retired[0].Until.Equal(c.Expiry) {
		t.Fatalf("%+v; the last token expires at %s", reply, c.Expiry)
	}
	fresh := s.userToken(t, time.Hour)
	if keyOf(t, fresh) == keyOf(t, long) {
		t.Fatal("the old key goes on signing")
	}
	now := time.Now()
	verifies := func(what, text string, at time.Time, kind wire.Kind) {
		t.Helper()
		if _, err := s.verify(t.Context(), text, at); wire.KindOf(err) != kind {
			t.Errorf("%s: %v", what, err)
		}
	}
	verifies("old key", short, now, "")
	verifies("old key", long, now, "")
	verifies("new key", fresh, now, "")
	verifies("old key, its token expired", short, now.Add(90*time.Minute), wire.Expired)
	// The old key goes with its last token, not before.
	for _, c := range []struct {
		at   time.Time
		keys int
	}{{c.Expiry.Add(-time.Microsecond), 2}, {c.Expiry, 1}, {c.Expiry.Add(24 * time.Hour), 1}} {
		if err := s.dropTokenKeys(t.Context(), c.at); err != nil {
			t.Fatal(err)
		}
		if n := s.keyCount(t); n != c.keys {
			t.Errorf("at %s there are %d keys, want %d", c.at, n, c.keys)
		}
	}
	s.keys.changed()
	verifies("removed key", long, now, wire.Unauthenticated)
	verifies("new key", fresh, now, "")

	// A key that has signed nothing is not kept.
	for range 3 {
		reply = s.rotate(t, owner, false)
	}
	if n := s.keyCount(t); n != 2 || len(reply.Retired) != 1 {
		t.Errorf("%d keys after keys that signed nothing, %+v", n, reply)
	}
}

// A retired key that leaked is good for nothing that outlives what it had signed.
func TestRetiredKeySignsNothingNew(t *testing.T) {
	s := newSite(t, Config{})
	s.userToken(t, time.Hour)
	keys, err := s.store.TokenKeys(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	forged, err := token.Mint(keys[0], wire.Claims{Kind: wire.UserToken, User: "mallory", Issued: now, Expiry: now.Add(1000 * time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	s.rotate(t, s.mustHello(t, "unix", operator("")), false)
	if _, err := s.verify(t.Context(), forged, now.Add(2*time.Hour)); wire.KindOf(err) != wire.Unauthenticated {
		t.Errorf("it outlives the key: %v", err)
	}
}

func TestRevocation(t *testing.T) {
	s := newSite(t, Config{})
	old := s.userToken(t, time.Hour)
	owner := s.mustHello(t, "unix", operator(""))
	s.rotate(t, owner, false)
	newer := s.userToken(t, time.Hour)
	asking, other, runner := s.mustHello(t, "tcp", operator(newer)), s.mustHello(t, "tcp", operator(old)), s.mustHello(t, "tcp", local(newer))
	remote := s.mustHello(t, "tcp", wire.Hello{Role: wire.RoleRunner, Runner: &wire.RunnerHello{ID: "r", Kind: wire.KindRemote}})
	for _, session := range []*mux.Session{asking, other, runner, remote} { // each is served
		if err := session.Call(t.Context(), wire.MethodPing, nil, nil); err != nil {
			t.Fatal(err)
		}
	}
	if reply := s.rotate(t, asking, true); len(reply.Retired) != 0 || reply.KeyID == "" {
		t.Errorf("%+v", reply)
	}
	for name, session := range map[string]*mux.Session{"of the older key": other, "of a local runner": runner, "of a remote runner": remote} {
		select {
		case <-session.Done():
		case <-time.After(patience):
			t.Errorf("a session %s goes on", name)
		}
	}
	if err := owner.Call(t.Context(), wire.MethodServerStatus, wire.ServerStatusRequest{}, nil); err != nil {
		t.Errorf("a session without a token: %v", err)
	}
	err := asking.Call(t.Context(), wire.MethodServerStatus, wire.ServerStatusRequest{}, nil)
	is(t, err, wire.Unauthenticated, "revoked", "waypoint user token")
	for _, text := range []string{old, newer} {
		_, err := s.hello(t, "tcp", operator(text))
		is(t, err, wire.Unauthenticated, "not valid", "make a new one")
	}
	s.mustHello(t, "tcp", operator(s.userToken(t, time.Hour)))
}

// Tokens are made and shown while the key changes under them.
func TestRotationDuringMints(t *testing.T) {
	s := newSite(t, Config{})
	var wg sync.WaitGroup
	keys := map[[8]byte]bool{}
	var mu sync.Mutex
	stop := make(chan struct{})
	for range 4 {
		session := s.mustHello(t, "unix", operator(""))
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				var reply wire.TokenReply
				if err := session.Call(context.Background(), wire.MethodUserToken, wire.UserTokenRequest{}, &reply); err != nil {
					t.Error(err)
					return
				}
				if _, err := s.verify(context.Background(), reply.Token, time.Now()); err != nil {
					t.Errorf("just made: %v", err)
					return
				}
				mu.Lock()
				keys[keyOf(t, reply.Token)] = true
				mu.Unlock()
			}
		})
	}
	owner := s.mustHello(t, "unix", operator(""))
	for n := 0; n < 10 && !t.Failed(); { // until each of ten keys has signed
		s.rotate(t, owner, false)
		s.userToken(t, time.Hour)
		mu.Lock()
		n = len(keys)
		mu.Unlock()
	}
	close(stop)
	wg.Wait()
}

// Two servers over one database rotate for each other.
func TestTwoServersOneStore(t *testing.T) {
	dsn := filepath.Join(t.TempDir(), "shared.db")
	a, b := newSite(t, Config{StoreDSN: dsn}), newSite(t, Config{StoreDSN: dsn})
	sa, sb := a.mustHello(t, "unix", operator("")), b.mustHello(t, "unix", operator(""))
	var texts []string
	for range 3 {
		texts = append(texts, a.userToken(t, time.Hour), b.userToken(t, time.Hour))
		for _, text := range texts {
			for _, s := range []*site{a, b} {
				if _, err := s.verify(t.Context(), text, time.Now()); err != nil {
					t.Fatal(err)
				}
			}
		}
		a.rotate(t, sa, false)
		texts = append(texts, b.userToken(t, time.Hour))
		b.rotate(t, sb, false)
	}
	serials := map[int64]bool{}
	for _, text := range texts {
		c, err := wire.ReadToken(text)
		if err != nil || serials[c.Serial] {
			t.Fatalf("serial %d twice, %v", c.Serial, err)
		}
		serials[c.Serial] = true
	}
	// Bootstrapped is the database's word as well.
	if err := sa.Call(t.Context(), wire.MethodServerBootstrap, wire.BootstrapRequest{}, nil); err != nil {
		t.Fatal(err)
	}
	is(t, sb.Call(t.Context(), wire.MethodServerBootstrap, wire.BootstrapRequest{}, nil), wire.Conflict, "already", "waypoint user token")

	// What one revokes the other knows when its keys are stale, and then it ends
	// the sessions that depend on them.
	text := a.userToken(t, time.Hour)
	there := b.mustHello(t, "tcp", operator(text))
	if err := there.Call(t.Context(), wire.MethodPing, nil, nil); err != nil {
		t.Fatal(err)
	}
	a.rotate(t, sa, true)
	b.keys.mu.Lock()
	b.keys.read = b.keys.read.Add(-b.keys.fresh)
	b.keys.mu.Unlock()
	if _, err := b.verify(t.Context(), text, time.Now()); wire.KindOf(err) != wire.Unauthenticated {
		t.Errorf("the other server: %v", err)
	}
	select {
	case <-there.Done():
	case <-time.After(patience):
		t.Error("a session at the other server goes on")
	}
}

// A flood of tokens that name unknown keys costs few readings, and does not
// keep a token with a key that is new from being verified.
func TestGarbageDoesNotHammerTheStore(t *testing.T) {
	s := newSite(t, Config{})
	good := s.userToken(t, time.Hour)
	var reads atomic.Int64
	load := s.keys.load
	s.keys.load = func(ctx context.Context) ([]token.Key, error) {
		reads.Add(1)
		return load(ctx)
	}
	stranger := token.NewKey(time.Now())
	now := time.Now()
	garbage, err := token.Mint(stranger, wire.Claims{Kind: wire.UserToken, User: "x", Issued: now, Expiry: now.Add(time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	var wg sync.WaitGroup
	for range 200 {
		wg.Go(func() {
			if _, err := s.verify(t.Context(), garbage, time.Now()); wire.KindOf(err) != wire.Unauthenticated {
				t.Error(err)
			}
		})
	}
	wg.Go(func() {
		if _, err := s.verify(t.Context(), good, time.Now()); err != nil {
			t.Error(err)
		}
	})
	wg.Wait()
	if most := int64(2 + time.Since(began)/keysPause); reads.Load() > most {
		t.Errorf("%d readings in %s", reads.Load(), time.Since(began))
	}
	before := reads.Load()
	for range 100 {
		if _, err := s.verify(t.Context(), good, time.Now()); err != nil {
			t.Fatal(err)
		}
	}
	if n := reads.Load() - before; n > 1 {
		t.Errorf("%d readings for a known key", n)
	}
	// A store that cannot be read is not a bad token.
	s.keys.changed()
	s.keys.load = func(context.Context) ([]token.Key, error) { return nil, wire.Errorf(wire.Unavailable, "no store") }
	if _, err := s.verify(t.Context(), good, time.Now()); wire.KindOf(err) != wire.Unavailable {
		t.Error(err)
	}
	// Whoever gives up while he waits has not spoilt it for the others.
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	s.keys.load = func(ctx context.Context) ([]token.Key, error) {
		if ctx.Err() != nil {
			t.Error("a reading ends with the call that began it")
		}
		return load(ctx)
	}
	if err := s.keys.reload(ctx); err != nil {
		t.Error(err)
	}
	if _, err := s.verify(ctx, garbage, time.Now()); err == nil {
		t.Error("verified garbage")
	}
	if _, err := s.verify(t.Context(), good, time.Now()); err != nil {
		t.Error(err)
	}
}

func BenchmarkServerVerify(b *testing.B) {
	s := newSite(b, Config{})
	text := s.userToken(b, time.Hour)
	for b.Loop() {
		if _, err := s.verify(b.Context(), text, time.Now()); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkServerMint(b *testing.B) {
	s := newSite(b, Config{})
	for b.Loop() {
		if err := s.store.Update(b.Context(), func(tx *store.Tx) error {
			_, _, err := s.mint(tx, wire.Claims{Kind: wire.RunnerToken}, time.Hour, time.Now())
			return err
		}); err != nil {
			b.Fatal(err)
		}
	}
}
