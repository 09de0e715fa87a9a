// Package runner is the agent: it connects to a server, takes jobs, has the
// supervisor run them, and ships output and result. It is crash-only: all it
// knows is on disk or with the supervisor, so it may be killed at any moment
// and a new one on the same directory goes on where it was.
//
// # One attempt
//
//	server        Assign ──┐             ┌─ Start                             Ended ─┐
//	                       ▼             ▼                                           ▼
//	attempt       assignment.json      started        running      end.json       (gone)
//	              recorded ──Ack──▶ prepare ────▶ supervisor ────▶ finish ─Result─▶ erase
//	                                source,       runs steps       artifact,
//	                                artifact      into log         outputs
//	                                   └──────── report: log, from the server's offset ──┘
//
// An attempt is one goroutine (attempt.go) and, from its start on, one more
// that ships its log (report.go). Its directory Dir/<job>-<attempt> says
// how far it has come: assignment.json before Ack, a line "started" in it once
// the server has confirmed it and it is being prepared, a line "running"
// before the supervisor is asked to run it, end.json when it is over. What was
// not yet given to a supervisor is prepared anew after a restart; what was,
// never runs twice. One that a supervisor was given and has not begun, because
// it was leaving or has died, is given to the next.
//
// A directory that cannot be read is no reason not to start: where a supervisor has begun
// its attempt, that ends as lost, with its output; what a newer release wrote
// is left alone, and its job kept for it (newer.go).
//
// A Drop, and a report that is refused as Conflict, give an attempt up: what runs
// of it is ended (TERM, grace, kill), and what there is to say is said in a late
// report, which the server takes if the attempt was lost. If it does not, the
// attempt is killed, forgotten, removed.
//
// # Tokens
//
// At each hello a runner shows what its sources hold (tokens.go): the file
// "token" in its state directory, its environment, the service manager's
// credential; and last the token that the server used before, unless its
// source has been emptied (credentials.go). The server uses the first that is
// usable and says so in a Standing (standing.go). From then on the file is
// watched: what is new in it is shown over the living session, the token in
// use last, so that a bad new one changes nothing; without a session it ends
// the pause before the next (authenticate.go).
//
// A Grant is stored (fsync), then shown and confirmed. The server grants it
// again until it has been told so, and the same grant twice does no harm: so
// either side may die at any step. One that cannot be stored is used from
// memory, and storing it is tried again.
//
// A runner without a usable token stays connected and idle. One that is
// refused at the hello asks again, quietly, at most once a minute in the end
// (session.go).
//
// # Drains
//
// This host's drain is a flag in the state directory, set through the control
// socket (control.go) and said to the server (drain.go); the operator's is the
// server's to keep, and is in Standing. Neither changes the other. To be
// stopped is a third.
//
// # The supervisor
//
// One that says that it is leaving is given nothing more, and the server gives
// nothing more either until the next one is there. Of its jobs it says how they ended.
// One of another version is asked to retire (parent.go). One that shares no version of the
// protocol retires by itself, as it is greeted; until then its jobs are looked after on the disk,
// and no others are taken.
//
// A managed agent starts none: somebody else does, and it waits (Managed).
// Then its end is no end of the jobs either: asked to stop, it hands over
// (handover.go). What was not confirmed goes back to the server, what is under
// way has a few seconds to be given to the supervisor or reported, and the rest is the
// next agent's.
//
// # Goroutines
//
//	Run          the caller's: connects, and reads the work stream's orders
//	heartbeat    one for each session
//	tend         one for each session: stores grants, shows tokens
//	watchTokens  one: looks at the token file
//	watchLife    one: warns before the token in use expires
//	watch        one: the supervisor's events, and its replacement when it is lost
//	stop         one: waits for the stop context
//	tellCounts   one: events about the number of jobs
//	sweep        one: removes what agents before this one left
//	attempt      one each, and two while it reports (bytes up, acknowledgements down)
//	control      ServeControl's caller, and one for each command line that is connected
//
// # Locks
//
// Runner.mu, attempt.mu, credentials.mu and standing.mu are leaves; none is
// held while anything is sent, called or waited for. In this order come before
// them: standing.order and draining, intake, news.mu. The last is held while
// Notify is called.
package runner

import (
	"context"
	"crypto/ed25519"
	"errors"
	"log/slog"
	"net"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"github.com/waypointd/waypoint/mux/wire"
	"github.com/waypointd/waypoint/runner/supervisor"
)

// Config of a Runner.
type Config struct {
	Dial        func(ctx context.Context) (net.Conn, error)
	ID          string          // empty for kind local: the server chooses
	Kind        wire.RunnerKind // default remote
	Key         ed25519.PrivateKey
	Labels      map[string]string // besides os, arch, hostname
	Concurrency int               // default: the number of CPUs
	Dir         string            // attempts live in Dir/<job>-<attempt>; what else is there is the supervisor's
	Supervisor  supervisor.Jobs   // not closed by the Runner; nil: wait for what Resupervise brings
	Root        string            // kind local: jobs run here, the caller's own directory, with BaseEnv
	BaseEnv     []string          // kind local: the caller's environment without its token
	Once        bool              // end after one job
	Software    string            // "waypoint 0.1.0"
	Server      string            // its address, for Status
	Tokens      Tokens            // kind remote; its Dir keeps this host's drain as well
	Login       string            // kind local: the command line's token, "" where it has none
	Logger      *slog.Logger      // nil discards

	// Managed says that somebody else starts and ends the supervisor: while there is none no jobs
	// are taken, and to be stopped is to hand over.
	Managed bool

	// Resupervise replaces a supervisor that is gone: it starts one, or connects
	// to the one that is there, or waits for one. Unimplemented: the one that is there shares no
	// version of the protocol. The Runner closes what it returned before it
	// asks again. Nil for one in this process, which cannot be lost: Run then
	// ends with the loss.
	Resupervise func(ctx context.Context) (supervisor.Jobs, error)

	// Notify is told of what a person should know: connected, pending, adopted,
	// without a usable token, lost, refused, …. It is called when that changes
	// only, from one goroutine at a time, and must not call the Runner.
	Notify func(Event)

	// Remedy is what a person can do about a standing without jobs, as a hint in the log. It must
	// not call the Runner. Nil where Notify says it on the log's own way.
	Remedy func(id string, st wire.Standing) string
}

// What ends a Run, as causes of its context.
var (
	errReturned = errors.New("the runner has ended")
	errDrained  = errors.New("the runner has been asked to stop and has no job left")
	errOnce     = errors.New("the runner has done its one job")
)

// waits are the Runner's times; tests shorten them.
type waits struct {
	connectMin, connectMax time.Duration // between attempts to connect
	refusedMin, refusedMax time.Duration // the same, after a refusal
	firstOrder             time.Duration // for the server's first word on a work stream: it may have to find out first whether an older session of this runner lives
	retryMin, retryMax     time.Duration // of a call that the server could not serve now
	refusedOutput          time.Duration // at most between two offers of output that the server refuses for good
	spool                  time.Duration // until a spool that could not be written is tried again
	room                   time.Duration // until what found no room is tried again though there is no more
	counts                 time.Duration // between two events that say nothing but another number of jobs
	call                   time.Duration // for the server's answer to tokens that are shown
	anew                   time.Duration // until tokens that the server could not use are shown to it again
	silence                time.Duration // that a session lasts through at least, however often something is to be heard in it
	storeMin, storeMax     time.Duration // until a grant that could not be stored is tried again
	apart                  time.Duration // that a stopping agent waits for a server that is not there
	handOver               time.Duration // for what is under way when a managed agent ends
	supervisor             time.Duration // that an agent without a supervisor waits for it before it connects, so as to say at once what it can do
	estranged              time.Duration // until a supervisor that cannot be spoken with is asked again
	look                   time.Duration // between two looks at what its jobs have written
	accept                 time.Duration // until another command is accepted where there was no room for one
	now                    func() time.Time
}

var defaultWaits = waits{
	connectMin: 100 * time.Millisecond, connectMax: 30 * time.Second,
	refusedMin: time.Second, refusedMax: time.Minute,
	firstOrder: 2 * time.Minute, silence: time.Second,
	retryMin: 100 * time.Millisecond, retryMax: 10 * time.Second, refusedOutput: 10 * time.Minute,
	spool: 10 * time.Second, room: 5 * time.Minute, counts: time.Second,
	call: 30 * time.Second, anew: time.Minute, storeMin: 10 * time.Second, storeMax: 10 * time.Minute,
	apart: 10 * time.Second, accept: time.Second, handOver: 5 * time.Second, supervisor: 2 * time.Second,
	estranged: 5 * time.Second, look: time.Second,
	now: time.Now,
}

// Runner is one agent.
type Runner struct {
	cfg    Config
	log    *slog.Logger
	host   host
	boot   string // id of this boot of the host, "" where not known
	spool  string // see wire.WorkBegin; set by load
	waits  waits
	uplink uplink
	parent parent
	pulse  pulse

	tokens   credentials
	standing standing
	draining sync.Mutex // held while this host's drain is changed
	intake   sync.Mutex // held while an assignment is taken, and while that is forbidden

	leftovers []leftover // load's and, after it, watch's alone

	ctx      context.Context         // of Run; set before anything else starts
	end      context.CancelCauseFunc // ends it
	attempts sync.WaitGroup          // attempts' goroutines
	counted  chan struct{}           // one token: there is an attempt more or less
	known    chan struct{}           // closed by the session with the first welcome

	mu        sync.Mutex
	id        string                   // guarded by mu
	held      map[wire.JobRef]*attempt // guarded by mu
	newer     map[wire.JobRef]newer    // of a newer release; guarded by mu
	work      *workStream              // nil while there is none; guarded by mu
	slots     []string                 // free; guarded by mu
	slotCount int                      // names given; guarded by mu
	released  chan struct{}            // closed, and replaced, when an attempt has gone; guarded by mu
	stopping  bool                     // Run ends when no attempt is left; guarded by mu
	drained   bool                     // on this host; guarded by mu
	why       error                    // it is not connected; guarded by mu
	sick      error                    // why the spool cannot be written; nil where it can; guarded by mu
	isolation string                   // what the server was told last; guarded by mu

	news news
}

// New validates. It starts nothing.
func New(cfg Config) (*Runner, error) {
	if cfg.Kind == "" {
		cfg.Kind = wire.KindRemote
	}
	if cfg.Concurrency == 0 {
		cfg.Concurrency = runtime.NumCPU()
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	switch {
	case cfg.Dial == nil:
		return nil, wire.Errorf(wire.BadUsage, "a runner needs a server to dial")
	case cfg.Supervisor == nil && cfg.Resupervise == nil:
		return nil, wire.Errorf(wire.BadUsage, "a runner needs a supervisor")
	case len(cfg.Key) != ed25519.PrivateKeySize:
		return nil, wire.Errorf(wire.BadUsage, "a runner needs an identity key")
	case !filepath.IsAbs(cfg.Dir):
		return nil, wire.Errorf(wire.BadUsage, "runner directory %q is not an absolute path", cfg.Dir)
	case len(cfg.Labels) > wire.MaxLabels:
		return nil, wire.Errorf(wire.BadUsage, "%d labels are more than the %d a runner may have", len(cfg.Labels), wire.MaxLabels)
	case cfg.Concurrency < 0:
		return nil, wire.Errorf(wire.BadUsage, "concurrency %d is not positive", cfg.Concurrency)
	}
	switch cfg.Kind {
	case wire.KindRemote:
		if err := wire.CheckID(cfg.ID); err != nil {
			return nil, err
		}
	case wire.KindLocal:
		if !filepath.IsAbs(cfg.Root) {
			return nil, wire.Errorf(wire.BadUsage, "root %q of a local runner is not an absolute path", cfg.Root)
		}
	default:
		return nil, wire.Errorf(wire.BadUsage, "unknown kind of runner %q", cfg.Kind)
	}
	if cfg.Once {
		cfg.Concurrency = 1
	}
	host, err := thisHost(cfg.Labels)
	if err != nil {
		return nil, err
	}
	r := &Runner{
		cfg: cfg, log: cfg.Logger, host: host, boot: bootID(),
		waits:    defaultWaits,
		counted:  make(chan struct{}, 1),
		known:    make(chan struct{}),
		released: make(chan struct{}),
		id:       cfg.ID,
		held:     map[wire.JobRef]*attempt{},
	}
	r.tokens.stir = make(chan struct{}, 1)
	r.standing.fresh = make(chan struct{}, 1)
	r.uplink.changed = make(chan struct{})
	r.parent = parent{jobs: cfg.Supervisor, met: cfg.Supervisor != nil, changed: make(chan struct{})}
	return r, nil
}

// Run serves until stop ends (take nothing more; return when the running jobs are done
// and reported, or where it is Managed as soon as it has handed over) or ctx ends (return at once: jobs go on under the supervisor). Neither is an error. It reconnects for ever,
// also where the server refuses it: an operator may think better of it. Only with Once, and for kind local before the
// first welcome, a refusal at the hello is returned (Denied, Conflict, Unauthenticated, Expired): those do not wait to be wanted.
// Run is called once.
func (r *Runner) Run(ctx, stop context.Context) error {
	outer := ctx
	r.ctx, r.end = context.WithCancelCause(ctx)
	ctx = r.ctx
	var wg sync.WaitGroup
	defer func() {
		r.end(errReturned)
		wg.Wait()
		r.attempts.Wait()
		r.parent.close()
	}()
	r.loadDrain()
	if err := r.load(ctx); err != nil {
		return err
	}
	r.retell() // of a supervisor that is waited for
	wg.Go(func() { r.watch(ctx) })
	wg.Go(func() { r.tellCounts(ctx) })
	wg.Go(func() { r.watchLife(ctx) })
	if r.cfg.Tokens.Dir != nil {
		wg.Go(func() { r.watchTokens(ctx) })
	}
	wg.Go(func() {
		select {
		case <-stop.Done():
			r.stop()
		case <-ctx.Done():
		}
	})
	r.connect(ctx)
	switch err := context.Cause(ctx); {
	case outer.Err() != nil, errors.Is(err, errDrained), errors.Is(err, errOnce):
		return nil
	default:
		return err
	}
}

// ID is the id in use; blocks until the first welcome for kind local.
func (r *Runner) ID(ctx context.Context) (string, error) {
	if r.cfg.Kind == wire.KindRemote {
		return r.cfg.ID, nil
	}
	select {
	case <-r.known:
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.id, nil
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
}

// isKnown reports whether there was a welcome.
func (r *Runner) isKnown() bool {
	select {
	case <-r.known:
		return true
	default:
		return false
	}
}

// welcomed takes note of the id that the server knows this runner by.
func (r *Runner) welcomed(id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if id != "" {
		r.id = id
	}
	select {
	case <-r.known:
	default:
		close(r.known)
	}
}
