package daemon

import (
	"context"
	"fmt"
	"maps"
	"os/user"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/waypointd/waypoint/daemon/token"
	"github.com/waypointd/waypoint/mux"
	"github.com/waypointd/waypoint/mux/wire"
)

// login is who a command line is, or the one that a local runner belongs to:
// whom its token names, or without one whom the kernel vouches for. It is good
// until its token expires or the key behind that is revoked; the session ends
// then. It is read-only.
type login struct {
	uid    int         // of a Unix or in-memory peer without a token
	claims wire.Claims // of the token; the zero value without one
	key    [8]byte     // that signed the token

	stale func() // has the session end soon, its calls that are being answered first
	over  chan struct{}
}

// lastWord is how long a session outlives the finding, by one of its calls,
// that its login is over: that call's answer says so.
const lastWord = time.Second

// login is who the peer is. A token that is shown decides, on every kind of
// connection; without one the peer of a Unix socket (whose mode says who may
// connect) or in memory will do, and nobody else. Errors are Unauthenticated,
// Expired, or the store's.
func (s *Server) login(ctx context.Context, peer *mux.Peer) (*login, error) {
	text := peer.Hello.Token
	if text == "" {
		if !vouched(peer) {
			return nil, wire.Errorf(wire.Unauthenticated, "no token was shown, and this server asks for one here").
				WithHint("make one on the server's host (waypoint user token; the first of a fresh server: waypoint server bootstrap), then log in with it here (waypoint login) or set WAYPOINT_SERVER_TOKEN")
		}
		return newLogin(peer.UID, wire.Claims{}, [8]byte{}), nil
	}
	c, err := s.verify(ctx, text, time.Now())
	if err != nil {
		s.log.Info("login refused", "peer", peer, "error", err)
		if c.Kind == wire.RunnerToken { // a new one of its kind would not help
			e := wire.Errorf(wire.KindOf(err), "%s, and a runner token is no login", err)
			err = e.WithHint("%s", errRunnerToken.Hint)
		}
		return nil, err
	}
	parts, err := wire.SplitToken(text)
	if err != nil {
		return nil, err
	}
	return newLogin(-1, c, parts.KeyID), nil
}

// localLogin is the login of a command line's own runner.
func (s *Server) localLogin(ctx context.Context, peer *mux.Peer) (*login, error) {
	l, err := s.login(ctx, peer)
	if err == nil && l.forRunners() {
		return nil, errRunnerToken
	}
	return l, err
}

func newLogin(uid int, c wire.Claims, key [8]byte) *login {
	l := &login{uid: uid, claims: c, key: key, over: make(chan struct{})}
	l.stale = sync.OnceFunc(func() { time.AfterFunc(lastWord, func() { close(l.over) }) })
	return l
}

// errRunnerToken is what a runner token is told that is used for a login.
var errRunnerToken = wire.Errorf(wire.Denied, "a runner token is good for a runner's own calls only").
	WithHint("log in with a token made by: waypoint user token")

// vouched reports whether the kernel says who the peer is.
func vouched(p *mux.Peer) bool { return p.Network == "unix" || p.Network == "memory" }

func (l *login) shown() bool { return l.claims.Kind != "" }

func (l *login) forRunners() bool { return l.claims.Kind == wire.RunnerToken }

// name is the user's: the token's, or that of the user id.
func (l *login) name() string {
	if l.shown() {
		return l.claims.User
	}
	id := strconv.Itoa(l.uid)
	if u, err := user.LookupId(id); err == nil {
		return u.Username
	}
	return "uid " + id
}

// String says in a log who it was.
func (l *login) String() string {
	if l.shown() {
		return fmt.Sprintf("user %s by token %d", l.claims.User, l.claims.Serial)
	}
	return fmt.Sprintf("uid %d", l.uid)
}

// loginOf is whose session it is; nil for remote runners.
func loginOf(p *mux.Peer) *login {
	if d, ok := p.Data.(interface{ whose() *login }); ok {
		return d.whose()
	}
	return nil
}

func (l *login) whose() *login { return l }

// loginTable is what a client may call with its login.
func (s *Server) loginTable(l *login) mux.Table {
	if l.forRunners() {
		return s.others
	}
	return s.clients
}

// holds reports whether the login is still good: Expired, Unauthenticated where
// its key has been revoked, or the store's error. The wall clock decides.
func (s *Server) holds(ctx context.Context, l *login, now time.Time) error {
	if !l.shown() {
		return nil
	}
	if err := token.Expired(l.claims, now); err != nil {
		return err
	}
	_, ok, err := s.keys.find(ctx, l.key, now)
	if err == nil && !ok {
		err = errRevoked
	}
	return err
}

var errRevoked = wire.Errorf(wire.Unauthenticated, "the key that signed the token has been revoked").
	WithHint("make a new token on the server's host with: waypoint user token")

// whileLoggedIn keeps a method from those whose login is over.
func (s *Server) whileLoggedIn(h mux.Handler) mux.Handler {
	return func(ctx context.Context, st *mux.Stream) error {
		if l := loginOf(st.Peer()); l != nil {
			if err := s.holds(ctx, l, time.Now()); err != nil {
				if k := wire.KindOf(err); k == wire.Expired || k == wire.Unauthenticated {
					l.stale()
				}
				return err
			}
		}
		return h(ctx, st)
	}
}

// roster is the sessions that are open.
type roster struct {
	mu       sync.Mutex
	sessions map[*mux.Session]struct{} // guarded by mu
	revoked  time.Time                 // guarded by mu; when keys were last revoked
}

// join adds a session whose connection was made at began, and reports whether
// keys were revoked while it was being admitted.
func (r *roster) join(s *mux.Session, began time.Time) (late bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.sessions == nil {
		r.sessions = map[*mux.Session]struct{}{}
	}
	r.sessions[s] = struct{}{}
	return r.revoked.After(began)
}

func (r *roster) leave(s *mux.Session) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.sessions, s)
}

// revoke notes that keys have been revoked and returns who is there.
func (r *roster) revoke(now time.Time) []*mux.Session {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.revoked = now
	return slices.Collect(maps.Keys(r.sessions))
}

// attend waits until the session, ctx, the server or the session's login is
// over; began is when its connection was made.
func (s *Server) attend(ctx context.Context, session *mux.Session, began time.Time) {
	late := s.roster.join(session, began)
	defer s.roster.leave(session)
	if late {
		s.recheck(ctx, session)
	}
	var (
		expiry <-chan time.Time
		over   <-chan struct{}
		timer  *time.Timer
	)
	l := loginOf(session.Peer())
	if l != nil && l.shown() {
		timer = time.NewTimer(time.Until(l.claims.Expiry))
		defer timer.Stop()
		expiry, over = timer.C, l.over
	}
	var (
		ended <-chan struct{}
		v, _  = session.Peer().Data.(*visitor)
	)
	if v != nil {
		ended = v.ended
	}
	for {
		select {
		case <-session.Done():
		case <-ctx.Done():
		case <-s.ctx.Done():
		case <-ended:
			session.Abort(v.why)
		case <-over:
			session.Abort(errLoginOver)
		case <-expiry:
			// The timer does not know that the clock was set.
			now := time.Now()
			err := token.Expired(l.claims, now)
			if err == nil {
				timer.Reset(l.claims.Expiry.Sub(now))
				continue
			}
			session.Abort(err)
		}
		return
	}
}

var errLoginOver = wire.Errorf(wire.Unauthenticated, "the login is over")

// endRevoked ends the sessions whose tokens verify no more: those of logins, and
// those of all remote runners, which offer their tokens anew when they come
// back. The session of who asked for it stays, for the answer; no call of it is
// served after that one.
func (s *Server) endRevoked(ctx context.Context, asked *mux.Peer) {
	for _, session := range s.roster.revoke(time.Now()) {
		if session.Peer() != asked {
			s.recheck(ctx, session)
		}
	}
}

// recheck ends a session whose token verifies no more, or may not.
func (s *Server) recheck(ctx context.Context, session *mux.Session) {
	if l := loginOf(session.Peer()); l == nil {
		session.Abort(errKeysRevoked)
	} else if l.shown() && !s.keys.has(ctx, l.key) {
		session.Abort(errRevoked)
	}
}

var errKeysRevoked = wire.Errorf(wire.Unavailable, "signing keys have been revoked: the tokens are looked at anew")
