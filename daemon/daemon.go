// Package daemon is the server: it keeps the queue and the output of jobs,
// hands jobs to runners and answers clients. It decides nothing that is not
// durable first, and holds nothing that a kill -9 could lose: what is in
// memory (who is connected, who waits) is rebuilt from the peers that come
// back.
//
// # Runners
//
// The rules of who gets jobs are package adoption's. A session is a visitor
// from its hello on, and a member while it has a work stream:
//
//	hello        its tokens are judged; the record is found, made or refused (arrive)
//	work         judged anew, then: Standing, Begun, and what has been granted
//	authenticate judged anew over the living session
//	a decision   adopt, reject, drain: record first, then the session (decide)
//	time         expiry (lapse) and renewal of the token in use (clock)
//	forget       the record goes, all its sessions end, its attempts become orphans:
//	             they live on under the lease, and nobody may confirm, report or
//	             lose them until the id is admitted again
//
// Each of these has the runner's turn (turns.go) from reading the record to
// telling the session, so all see the same order. A record is written only
// where something of it has changed: a reconnect costs no commit.
//
// # Goroutines
//
//	Serve      one for each listener (accept), one for each session (mux)
//	ServeMetrics  one, and one for each connection that asks (net/http)
//	           one for each call in progress (mux), see api.go
//	clock      one: deadlines of queued jobs, acknowledgements and leases
//	janitor    one: retention
//	audit      one: refusals and logins, which no transaction keeps (audit.go)
//	beat       one, over PostgreSQL: that this server is there, and whether others are
//	heed       two, over PostgreSQL: what other servers have changed
//	committer  in package store; it calls matcher and changes
//
// # Several servers
//
// Over a store that is shared each active attempt has a keeper: the server whose
// lease it has. A runner that begins to work here makes this server the keeper
// of all it holds (takeIn); so does a server that is missed (takeFrom); a server
// that was taken for missed takes back what its runners hold (note). Giving up
// an attempt asks the store for its keeper (give), so whatever a server still
// believes, it ends nobody else's job.
//
// # Locks
//
// fleet.mu and watchers.mu are leaves: no call into the store, a session or a
// channel that can block is made while either is held. The committer takes
// both, so the reverse would be a deadlock. turns.mu, roster.mu, presence.mu, gossip.mu,
// entrance.mu and tally.mu are
// leaves as well. A runner's turn is held over calls of the store; the committer, and who
// holds a lock, takes none.
package daemon

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/waypointd/waypoint/daemon/metrics"
	"github.com/waypointd/waypoint/daemon/store"
	"github.com/waypointd/waypoint/daemon/token"
	"github.com/waypointd/waypoint/mux"
	"github.com/waypointd/waypoint/mux/wire"
	"github.com/waypointd/waypoint/statedir"
)

// Config of a Server. Zero durations and counts mean the defaults.
type Config struct {
	StateDir     string       // locked while the server lives; also where SQLite's file is
	StoreDSN     string       // a path or postgres://…; empty is waypoint.db in StateDir
	StoreReserve int64        // bytes that new work must leave free on SQLite's file system; 0: 64 MiB or a hundredth of it, negative: none
	Software     string       // said to peers, "waypoint 0.1.0"
	Logger       *slog.Logger // nil discards

	AckTimeout time.Duration // an assignment not acknowledged goes back to the queue; 30 s
	Lease      time.Duration // a job outlives its runner's session for so long; 2 min
	Heartbeat  time.Duration // between server and runner; three missed end the session; 10 s

	LogLimit   int64         // bytes of output kept for each job; 1 GiB
	RetainFor  time.Duration // ended jobs and their output; 30 days
	RetainJobs int           // ended jobs; 100,000

	AuditFor     time.Duration // entries of the audit; 400 days
	AuditEntries int           // those kept; 1,000,000
	NoAuditLog   bool          // entries that the store has are not in the log as well

	TLSCert  string   // file in PEM, with what lies between it and the root, for TCP; empty is one of the server's own
	TLSKey   string   // file in PEM
	TLSNames []string // further host names and addresses in the own certificate
	Plain    bool     // TCP between loopback addresses may be plaintext

	MaxSessions int // connections at once; 20,000
	Limits      Limits

	MaxPending        int           // runners waiting for adoption; 1,000
	MaxPendingPerPeer int           // those of one address (of IPv6, one /64) or user; 16
	PendingFor        time.Duration // a runner waiting for adoption is kept so long after it was last seen; 24 h
	GrantLife         time.Duration // of the tokens of adopted runners; 30 days
	NoTokenRenew      bool          // tokens of adopted runners are not renewed

	Access  Access // who may do what
	Metrics bool   // it is counted what happens: see ServeMetrics

	// Reload has the configuration read again, for by, and calls Server.Reload.
	// It is called for server.reload; nil where there is nothing to read.
	Reload func(ctx context.Context, by string) (wire.Reloaded, error)

	now    func() time.Time           // the host's clock, with a monotonic reading; nil is time.Now. What is recorded, and compared with that, is of it
	faults *store.Faults              // of a simulation; else nil
	free   func() (store.Room, error) // of a test; nil asks the system
}

func (c Config) withDefaults() (Config, error) {
	def := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	def(&c.AckTimeout, 30*time.Second)
	def(&c.Lease, 2*time.Minute)
	def(&c.Heartbeat, 10*time.Second)
	def(&c.RetainFor, 30*24*time.Hour)
	def(&c.AuditFor, 400*24*time.Hour)
	def(&c.PendingFor, 24*time.Hour)
	def(&c.GrantLife, wire.DefaultTokenLife)
	if c.LogLimit == 0 {
		c.LogLimit = 1 << 30
	}
	if c.RetainJobs == 0 {
		c.RetainJobs = 100_000
	}
	if c.AuditEntries == 0 {
		c.AuditEntries = 1_000_000
	}
	if c.MaxSessions == 0 {
		c.MaxSessions = 20_000
	}
	if c.MaxPending == 0 {
		c.MaxPending = 1_000
	}
	if c.MaxPendingPerPeer == 0 {
		c.MaxPendingPerPeer = 16
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.now == nil {
		c.now = time.Now
	}
	for key, v := range map[string]int64{ // as they are called in the configuration
		"ack_timeout": int64(c.AckTimeout), "lease": int64(c.Lease), "heartbeat": int64(c.Heartbeat),
		"log_limit": c.LogLimit, "retain_for": int64(c.RetainFor), "retain_jobs": int64(c.RetainJobs),
		"audit_retention": int64(c.AuditFor), "audit_entries": int64(c.AuditEntries),
		"max_sessions": int64(c.MaxSessions), "max_pending": int64(c.MaxPending),
		"max_pending_per_peer": int64(c.MaxPendingPerPeer), "pending_for": int64(c.PendingFor),
		"tokens.life": int64(c.GrantLife),
	} {
		if v < 0 {
			return c, wire.Errorf(wire.BadUsage, "%s must be positive", key)
		}
	}
	if err := c.Access.withDefaults(); err != nil {
		return c, err
	}
	if err := c.Limits.withDefaults(c.MaxSessions); err != nil {
		return c, err
	}
	return c, c.checkTLS()
}

// Server is one server over one state directory.
type Server struct {
	config  atomic.Pointer[Config] // replaced as a whole by Reload, never changed
	log     *slog.Logger
	dir     *statedir.Dir
	store   *store.Store
	id      string
	started time.Time

	fleet    *fleet
	presence *presence
	gossip   *gossip
	turns    *turns
	watchers *watchers
	keys     *keyring
	accounts *accounts
	audit    *auditor
	host     atomic.Pointer[hostRoles] // of the configuration
	roster   roster
	metrics  *metrics.Metrics // nil where nothing is counted
	batches  batchRoom        // of output
	fatal    chan error
	calls    mux.Table          // of every session
	alarm    chan struct{}      // to clock: a deadline has come nearer
	pulse    chan chan struct{} // to clock, which closes what it is sent; see Probe
	news     chan struct{}      // room for one: Summary may say something else now
	roll     chan struct{}      // to beat: who is connected where may have changed

	serving    sync.WaitGroup // of ServeConn; no Add once closed is set
	tally      *tally
	strangers  *strangerLog
	entrance   *entrance
	handshakes atomic.Pointer[chan struct{}] // room for each of TLS that is worked at; replaced by Reload
	unread     *mux.Budget
	work       sync.WaitGroup // clock, janitor, and what handlers leave behind
	stop       context.CancelCauseFunc
	ctx        context.Context // until Close

	reloading sync.Mutex // held by Reload, and while TCP gets its certificate

	mu        sync.Mutex
	listeners []wire.Listener // guarded by mu
	closed    bool            // guarded by mu

	certificate *certificate // guarded by mu; nil until TCP is served
}

// ErrClosed is the cause of a session's end when the server is closed.
var ErrClosed = errors.New("server is stopping")

// New locks the state directory, opens the store and takes up what was going
// on. A directory that another server holds is a Conflict that names it.
func New(ctx context.Context, cfg Config) (*Server, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	dir, err := statedir.Open(cfg.StateDir)
	if err != nil {
		return nil, err
	}
	if err := dir.Lock("waypoint server"); err != nil {
		return nil, errors.Join(err, dir.Close())
	}
	if note := dir.Note(); note != "" {
		cfg.Logger.Warn("state directory has been found in disorder", "what", note)
	}
	s := &Server{
		log: cfg.Logger, dir: dir, started: time.Now(),
		watchers: newWatchers(),
		turns:    newTurns(),
		presence: newPresence(),
		gossip:   newGossip(),
		roll:     make(chan struct{}, 1),
		fatal:    make(chan error, 1),
		alarm:    make(chan struct{}, 1),
		pulse:    make(chan chan struct{}),
		news:     make(chan struct{}, 1),
	}
	s.config.Store(&cfg)
	if cfg.Metrics {
		s.metrics = metrics.New(cfg.Software)
	}
	s.tally = newTally(s.sayLimit)
	s.strangers = newStrangerLog(s.log, s.tally)
	s.entrance = newEntrance(s.tally)
	s.unread = mux.NewBudget(cfg.Limits.Unread)
	s.handshakes.Store(new(make(chan struct{}, cfg.Limits.Handshakes)))
	if cfg.MaxSessions > s.entrance.files {
		s.log.Info("the limit of open files is below max_sessions", "most", s.entrance.files, "max_sessions", cfg.MaxSessions)
	}
	s.fleet = newFleet(func() (ackTimeout, lease time.Duration) { c := s.cfg(); return c.AckTimeout, c.Lease })
	s.fleet.now = s.now
	s.fleet.metrics = s.metrics
	s.keys = newKeyring(func(ctx context.Context) ([]token.Key, error) { return s.store.TokenKeys(ctx) },
		func() { s.work.Go(func() { s.endRevoked(s.ctx, nil) }) })
	s.accounts = newAccounts(s.bearer, s.keepUses)
	s.audit = newAuditor(s.writeAudit)
	s.calls = s.table() // once: sessions are many
	s.host.Store(s.hostRoles(cfg.Access))
	s.ctx, s.stop = context.WithCancelCause(context.WithoutCancel(ctx))
	if err := s.open(ctx); err != nil {
		s.stop(err)
		if s.store != nil {
			err = errors.Join(err, s.store.Close())
		}
		return nil, errors.Join(err, dir.Close())
	}
	s.work.Go(s.clock)
	s.work.Go(s.janitor)
	s.work.Go(s.keepAudit)
	if s.store.Shared() {
		s.work.Go(s.beat)
		s.work.Go(s.listen)
		s.work.Go(s.heed)
	}
	return s, nil
}

// cfg is the configuration as it is now.
func (s *Server) cfg() *Config { return s.config.Load() }

// now is the time by the host's clock, which may be set; how long something takes
// is the difference of two of these, as they have a monotonic reading too.
func (s *Server) now() time.Time { return s.cfg().now() }

// open opens the store and rebuilds the fleet's picture of active jobs that are
// this server's: every runner is away as of now and has a whole lease to come back.
func (s *Server) open(ctx context.Context) (err error) {
	dsn := s.cfg().StoreDSN
	if dsn == "" {
		dsn = s.dir.Path(storeFile)
	}
	s.store, err = store.Open(ctx, dsn, store.Config{
		Logger:   s.log,
		Software: s.cfg().Software,
		Match:    s.match,
		Changed:  s.changed,
		Room:     s.tell,
		Reserve:  s.cfg().StoreReserve,
		Free:     s.cfg().free,
		Fatal:    s.fail,
		Counted:  s.countCommits(),
		Now:      s.now,
		Faults:   s.cfg().faults,
	})
	if err != nil {
		return err
	}
	if s.id, err = s.serverID(ctx); err != nil {
		return err
	}
	read := s.store.Active
	if s.store.Shared() {
		read = s.settleDown
	}
	active, err := read(ctx)
	if err != nil {
		return fmt.Errorf("read active jobs: %w", err)
	}
	awaited, err := s.store.Awaited(ctx)
	if err != nil {
		return err
	}
	orphaned, err := s.orphaned(ctx, active)
	if err != nil {
		return err
	}
	s.fleet.restore(active, awaited, orphaned, s.now())
	return nil
}

// serverID is kept in the store, so that several servers over one are one.
func (s *Server) serverID(ctx context.Context) (string, error) {
	const name = "server_id"
	id, err := s.store.Setting(ctx, name)
	if err != nil || id != "" {
		return id, err
	}
	err = s.store.Update(ctx, func(tx *store.Tx) (err error) {
		id, err = tx.KeepSetting(name, rand.Text())
		return err
	})
	return id, err
}

// fail reports, once, that the store cannot be trusted any more.
func (s *Server) fail(err error) {
	s.log.Error("store failed", "error", err)
	select {
	case s.fatal <- err:
	default:
	}
}

// Fatal receives the error after which the process must end and start anew.
func (s *Server) Fatal() <-chan error { return s.fatal }

// Serve accepts sessions on the listeners, which it owns from then on, until
// ctx ends; it returns when all their sessions have ended.
func (s *Server) Serve(ctx context.Context, listeners ...net.Listener) error {
	if err := s.Prepare(ctx, listeners...); err != nil {
		for _, l := range listeners {
			l.Close()
		}
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(ErrClosed)
	// Sessions end when nothing is accepted any more: who then comes again at
	// once must not be taken by a server that is going, but wait in a handed-over
	// socket for the next.
	going, end := context.WithCancelCause(context.WithoutCancel(ctx))
	defer end(ErrClosed)
	var accepts, sessions sync.WaitGroup // of this call: there may be several
	serve := func(session func(context.Context)) { sessions.Go(func() { session(going) }) }
	failed := make(chan error, len(listeners))
	for _, l := range listeners {
		s.addListener(l)
		stopAccept := context.AfterFunc(ctx, func() { l.Close() })
		accepts.Go(func() {
			defer stopAccept()
			if err := s.accept(ctx, l, serve); err != nil {
				failed <- err
				cancel(err)
			}
		})
	}
	<-ctx.Done()
	accepts.Wait()
	end(context.Cause(ctx))
	sessions.Wait()
	select {
	case err := <-failed:
		return err
	default:
		return nil
	}
}

// Prepare checks listeners and opens the certificate where one of them is TCP.
// Serve does so as well; who has to say that the server is ready does it before.
func (s *Server) Prepare(ctx context.Context, listeners ...net.Listener) error {
	for _, l := range listeners {
		if err := mux.CheckListener(l, true); err != nil {
			return err
		}
		if l.Addr().Network() == "tcp" {
			if err := s.secure(ctx); err != nil {
				return err
			}
		}
	}
	return nil
}

// ServeConn serves one connection until it or ctx ends, or the server is closed.
func (s *Server) ServeConn(ctx context.Context, conn net.Conn) {
	s.serveConn(ctx, conn, door{}, func() {})
}

// serveConn is ServeConn for who has come in by a door, that calls greeted when
// the hello is over.
func (s *Server) serveConn(ctx context.Context, conn net.Conn, in door, greeted func()) {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		greeted()
		conn.Close()
		return
	}
	s.serving.Add(1)
	s.mu.Unlock()
	defer s.serving.Done()
	began, cfg := s.now(), s.cfg()
	var runner *visitor
	session, err := mux.Accept(ctx, conn, mux.Config{
		Software: cfg.Software, Logger: s.log, MaxStreams: cfg.Limits.Streams, HandshakeTimeout: cfg.Limits.HandshakeTime,
		TLS: s.shown().config(), Plain: cfg.Plain,
		Handshakes: *s.handshakes.Load(), Unread: s.unread,
		Limit: func(limit string, most int64) {
			peer, _ := cameFrom(conn)
			s.tally.note(limit, peer, int(most))
		},
	}, func(ctx context.Context, peer *mux.Peer) (*mux.Admission, error) {
		a, err := s.admit(ctx, peer, in)
		if err == nil {
			runner, _ = a.Data.(*visitor)
		}
		return a, err
	})
	greeted()
	switch {
	case runner == nil:
	case runner.kind == wire.KindRemote:
		defer s.fleet.parted(runner)
	default:
		defer s.fleet.unowned(runner.id, runner.login)
	}
	if err != nil {
		s.log.Debug("session refused", "error", err)
		s.metrics.Refused(string(wire.KindOf(err)))
		return
	}
	defer session.Close()
	s.attend(ctx, session, began)
}

// Close ends everything and releases the state directory. Jobs go on at their
// runners.
func (s *Server) Close() error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.stop(ErrClosed)
	s.serving.Wait()
	s.work.Wait()
	s.accounts.flush()
	s.audit.flush(context.Background(), true)
	s.tally.flush()
	s.moveOut()
	return errors.Join(s.store.Close(), s.dir.Close())
}
