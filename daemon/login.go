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

	"golang.org/x/time/rate"

	"github.com/waypointd/waypoint/daemon/token"
	"github.com/waypointd/waypoint/mux"
	"github.com/waypointd/waypoint/mux/wire"
)

// login is who a command line is, or the one that a local runner belongs to:
// whom its token names, or without one whom the kernel vouches for. What he may
// do is asked for at each call: see caller. A login is good until its token
// expires or ends otherwise; the session ends then. It is read-only but for what is looked up once.
type login struct {
	peer   *mux.Peer   // of a Unix or in-memory peer without a token; else nil
	group  int         // whose members operate where that peer has come in; 0 is none
	claims wire.Claims // of the token; the zero value without one
	key    [8]byte     // that signed the token

	named sync.Once // for uname: a look-up may read a file, or ask a directory service
	uname string    // of that peer's user id

	calls *rate.Limiter // while it is good for nothing, and of an invite: see pace
	stale func()        // has the session end soon, its calls that are being answered first
	over  chan struct{}
}

// lastWord is how long a session outlives the finding, by one of its calls,
// that its login is over: that call's answer says so.
const lastWord = time.Second

// login is who the peer is that has come in by a door. A token that is shown
// decides, on every kind of connection; without one the peer of a Unix socket
// or in memory will do where the host's users have a role, and nobody else.
// Errors are Unauthenticated, Expired (with the login), Denied, or the store's.
func (s *Server) login(ctx context.Context, peer *mux.Peer, in door) (*login, error) {
	text := peer.Hello.Token
	if text == "" {
		if !vouched(peer) {
			return nil, wire.Errorf(wire.Unauthenticated, "no token was shown, and this server asks for one here").
				WithHint("make one on the server's host (waypoint user token; the first of a fresh server: waypoint server bootstrap), then log in with it here (waypoint login) or set WAYPOINT_SERVER_TOKEN")
		}
		l := newLogin(wire.Claims{}, [8]byte{})
		l.peer, l.group = peer, in.group
		_, err := s.caller(ctx, l, s.now())
		return l, err
	}
	c, err := s.verify(ctx, text, s.now())
	var l *login
	if err == nil || wire.KindOf(err) == wire.Expired {
		parts, perr := wire.SplitToken(text)
		if perr != nil {
			return nil, perr
		}
		l = newLogin(c, parts.KeyID)
		if err == nil && !l.forRunners() {
			_, err = s.caller(ctx, l, s.now())
		}
	}
	if err != nil {
		_, group := peerOf(peer)
		s.strangers.of(group).Info("login refused", "peer", peer, "error", err)
		if c.Kind == wire.RunnerToken { // a new one of its kind would not help
			e := wire.Errorf(wire.KindOf(err), "%s, and a runner token is no login", err)
			err = e.WithHint("%s", errRunnerToken.Hint)
		}
	}
	return l, err
}

// localLogin is the login of a command line's own runner: of somebody who may
// have jobs run. Expired comes with the login.
func (s *Server) localLogin(ctx context.Context, peer *mux.Peer, in door) (*login, error) {
	l, err := s.login(ctx, peer, in)
	if err != nil {
		return l, err
	}
	if l.forRunners() {
		return nil, errRunnerToken
	}
	by, err := s.caller(ctx, l, s.now())
	if err == nil {
		err = ownRunner.allows(by, s.cfg().Access)
	}
	if err != nil {
		return nil, err
	}
	return l, nil
}

func newLogin(c wire.Claims, key [8]byte) *login {
	l := &login{claims: c, key: key, over: make(chan struct{}), calls: rate.NewLimiter(callsEach, callsAtOnce)}
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

// uid is that of a user of the host, else -1.
func (l *login) uid() int {
	if l.peer == nil {
		return -1
	}
	return l.peer.UID
}

// name is the user's: the token's, or that of the user id.
func (l *login) name() string {
	if l.shown() {
		return l.claims.User
	}
	l.named.Do(func() {
		id := strconv.Itoa(l.uid())
		l.uname = "uid-" + id
		if u, err := user.LookupId(id); err == nil {
			l.uname = u.Username
		}
	})
	return l.uname
}

// String says in a log who it was.
func (l *login) String() string {
	switch l.claims.Kind {
	case "":
	case wire.InviteToken:
		return fmt.Sprintf("user %s by invite %d", l.claims.User, l.claims.Serial)
	default:
		return fmt.Sprintf("user %s by token %d", l.claims.User, l.claims.Serial)
	}
	return fmt.Sprintf("uid %d", l.uid())
}

// owner is the same of two logins that are the same user's.
func (l *login) owner() string {
	if l.shown() {
		return "user " + wire.UserKey(l.claims.User)
	}
	return fmt.Sprintf("uid %d", l.uid())
}

// loginOf is whose session it is; nil for remote runners.
func loginOf(p *mux.Peer) *login {
	if d, ok := p.Data.(interface{ whose() *login }); ok {
		return d.whose()
	}
	return nil
}

func (l *login) whose() *login { return l }

// caller is who a login is at a moment, and what he may do. Errors are Expired,
// Unauthenticated (its key, its token or its user is gone), Denied (a user of the
// host who has no role), or the store's; with Expired comes what he could do. The
// wall clock decides.
func (s *Server) caller(ctx context.Context, l *login, now time.Time) (caller, error) {
	c := caller{who: l.String(), login: l}
	if !l.shown() {
		role, by := s.host.Load().role(l.peer, l.group)
		c.name, c.role, c.by = l.name(), role, by
		if role == "" {
			return c, errNoRole(c.name, l.group)
		}
		return c, nil
	}
	c.name, c.by = l.claims.User, fmt.Sprintf("token %d", l.claims.Serial)
	expired := token.Expired(l.claims, now)
	if _, ok, err := s.keys.find(ctx, l.key, now); err != nil {
		return c, err
	} else if !ok {
		return c, errRevoked
	}
	if l.forRunners() {
		return c, expired
	}
	a, err := s.accounts.find(ctx, l.claims, now)
	if err != nil {
		return c, err
	}
	c.name = a.Name
	if l.claims.Kind == wire.UserToken {
		c.role, c.limits = a.Role, a.Limits
	}
	return c, expired
}

var errRevoked = wire.Errorf(wire.Unauthenticated, "the key that signed the token has been revoked").
	WithHint("make a new token on the server's host with: waypoint user token")

// roster is the sessions that are open.
type roster struct {
	mu       sync.Mutex
	sessions map[*mux.Session]struct{} // guarded by mu
	revoked  time.Time                 // guarded by mu; when keys were last revoked
	ended    time.Time                 // guarded by mu; when tokens or users last came to an end
}

// join adds a session whose connection was made at began, and reports whether
// keys were revoked, or tokens ended, while it was being admitted.
func (r *roster) join(s *mux.Session, began time.Time) (keys, tokens bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.sessions == nil {
		r.sessions = map[*mux.Session]struct{}{}
	}
	r.sessions[s] = struct{}{}
	return r.revoked.After(began), r.ended.After(began)
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

// end notes that tokens have come to an end and returns who is there.
func (r *roster) end(now time.Time) []*mux.Session {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ended = now
	return slices.Collect(maps.Keys(r.sessions))
}

// lastAnswer is how long a session outlives the end of the last job for whose
// sake it has outlived its login: what is on its way still arrives.
const lastAnswer = 5 * time.Second

// attend waits until the session, ctx, the server or the session's login is
// over; began is when its connection was made. Where the login has expired and a
// runner of the command line still has a job, the session waits for its end, and
// so does that of the command line: nothing new is answered there, what goes on
// (the job's report, its output) goes on.
func (s *Server) attend(ctx context.Context, session *mux.Session, began time.Time) {
	keys, tokens := s.roster.join(session, began)
	defer s.roster.leave(session)
	if keys {
		s.recheck(ctx, session)
	}
	if tokens {
		s.recheckLogin(ctx, session)
	}
	var (
		expiry     <-chan time.Time
		over, idle <-chan struct{}
		timer      *time.Timer
	)
	l := loginOf(session.Peer())
	if l != nil && l.shown() {
		timer = time.NewTimer(l.claims.Expiry.Sub(s.now()))
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
		case <-idle:
			idle = nil
			timer.Reset(lastAnswer)
			continue
		case <-expiry:
			// The timer does not know that the clock was set.
			now := s.now()
			err := token.Expired(l.claims, now)
			if err == nil {
				timer.Reset(l.claims.Expiry.Sub(now))
				continue
			}
			if idle = s.fleet.working(l); idle != nil {
				continue
			}
			session.Abort(err)
		}
		return
	}
}

// working is closed when a runner of a login's command line has no attempt any
// more; nil: none has one.
func (f *fleet) working(l *login) <-chan struct{} {
	for _, id := range f.runnersOf(l) {
		if c := f.idle(id); c != nil {
			return c
		}
	}
	return nil
}

// runnersOf are the command lines' own runners that belong to a login.
func (f *fleet) runnersOf(l *login) (ids []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for id, m := range f.members {
		if m.login != nil && m.login.claims.Serial == l.claims.Serial && m.login.owner() == l.owner() {
			ids = append(ids, id)
		}
	}
	return ids
}

// own notes whose a command line's own runner is, from its hello on.
func (f *fleet) own(id string, l *login) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.owners[id] = l
	close(f.owned)
	f.owned = make(chan struct{})
}

// unowned forgets it, unless the runner has come back by another session.
func (f *fleet) unowned(id string, l *login) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.owners[id] == l {
		delete(f.owners, id)
	}
}

// owner is whose a command line's own runner is, "" where it has no session;
// changed is closed when that may be different.
func (f *fleet) owner(id string) (owner string, changed <-chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if l := f.owners[id]; l != nil {
		owner = l.owner()
	}
	return owner, f.owned
}

// ownerOf is fleet.owner, of a runner that is connected to any server of the store.
func (s *Server) ownerOf(ctx context.Context, id string) (owner string, changed <-chan struct{}, err error) {
	owner, changed = s.fleet.owner(id)
	if owner != "" || !s.store.Shared() {
		return owner, changed, nil
	}
	at, err := s.store.Session(ctx, id)
	if err != nil || !s.presence.there(at.Server, s.now()) {
		return "", changed, err
	}
	v, _ := readView(id, at.View, 0, s.now())
	return v.owner, changed, nil
}

var errLoginOver = wire.Errorf(wire.Unauthenticated, "the login is over")

// endRevoked ends the sessions whose tokens verify no more: those of logins, and
// those of all remote runners, which offer their tokens anew when they come
// back. The session of who asked for it stays, for the answer; no call of it is
// served after that one.
func (s *Server) endRevoked(ctx context.Context, asked *mux.Peer) {
	for _, session := range s.roster.revoke(s.now()) {
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

// endLogins ends the sessions whose tokens, or the users behind them, are gone.
// That of who asked for it goes once it is answered.
func (s *Server) endLogins(ctx context.Context, asked *mux.Peer) {
	for _, session := range s.roster.end(s.now()) {
		if session.Peer() != asked {
			s.recheckLogin(ctx, session)
		} else if l := loginOf(asked); l.shown() {
			if _, err := s.accounts.look(ctx, l.claims); wire.KindOf(err) == wire.Unauthenticated {
				l.stale()
			}
		}
	}
}

// recheckLogin ends a session whose token, or whose user, has come to an end.
func (s *Server) recheckLogin(ctx context.Context, session *mux.Session) {
	l := loginOf(session.Peer())
	if l == nil || !l.shown() || l.forRunners() {
		return
	}
	if _, err := s.accounts.look(ctx, l.claims); wire.KindOf(err) == wire.Unauthenticated {
		session.Abort(err)
	}
}
