package main

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/waypointd/waypoint/cmd/internal/journal"
	"github.com/waypointd/waypoint/cmd/internal/systemd"
	"github.com/waypointd/waypoint/mux"
	"github.com/waypointd/waypoint/mux/wire"
	"github.com/waypointd/waypoint/runner"
	"github.com/waypointd/waypoint/runner/supervisor"
	"github.com/waypointd/waypoint/statedir"
)

// runnerAgent is `waypoint runner agent`.
type runnerAgent struct {
	ID           string        `placeholder:"ID" from:"WAYPOINT_RUNNER_ID" help:"The runner's id (default one that is made at the first start and kept)."`
	Label        []string      `sep:"none" placeholder:"K=V" help:"A label besides os, arch and hostname; repeatable ($$WAYPOINT_RUNNER_LABELS, separated by commas)."`
	Concurrency  int           `placeholder:"N" from:"WAYPOINT_RUNNER_CONCURRENCY" help:"Jobs at once (default the number of CPUs)."`
	StateDir     string        `placeholder:"DIR" from:"WAYPOINT_RUNNER_STATE_DIR" help:"What the runner remembers (default /var/lib/waypoint-runner, or $$XDG_STATE_HOME/waypoint-runner without root)."`
	JobsDir      string        `placeholder:"DIR" from:"WAYPOINT_RUNNER_JOBS_DIR" help:"Where jobs run, with their supervisor's socket (default jobs in the state directory)."`
	JobUser      string        `placeholder:"USER" from:"WAYPOINT_RUNNER_JOB_USER" help:"Whom jobs run as, of a supervisor that the agent starts itself (default its own user)."`
	DrainTimeout time.Duration `placeholder:"D" from:"WAYPOINT_RUNNER_DRAIN_TIMEOUT" help:"How long such a supervisor lets running jobs go on when it is asked to end (default not at all)."`
	Managed      bool          `help:"A service manager runs the supervisor (waypoint runner supervisor): wait for it, start none, and leave the jobs to it at the end."`
	Config       string        `placeholder:"FILE" help:"Configuration in TOML (default /etc/waypoint/runner.toml if present)."`
	Once         bool          `help:"End after one job."`
	LogLevel     string        `placeholder:"LEVEL" from:"WAYPOINT_LOG_LEVEL" help:"debug, info, warn or error (default info)."`
	LogFormat    string        `placeholder:"FORMAT" from:"WAYPOINT_LOG_FORMAT" help:"text, json or journal (default journal where stderr goes to the journal, else text)."`
}

func (*runnerAgent) Help() string {
	return `Without --server-addr it connects to /run/waypoint/runner.sock. Its token is the first usable one of: the file "token" in
its state directory; --token-file, --token or $WAYPOINT_SERVER_TOKEN; the credential waypoint_token of the service
manager. Without one it waits to be adopted. A new token in the file is taken up at once, by SIGHUP too.

The first SIGTERM or SIGINT takes no more jobs and ends when the running ones have ended; the second stops those. With
--managed it hands over at once, in a few seconds at most: the jobs go on under their supervisor, and the next agent reports them.
Exit codes: 0 stopped on request or --once done, 2 wrong usage or configuration, 4 rejected (--once only),
6 state directory in use or of a newer release, 1 anything else.`
}

func (c *runnerAgent) Run(a *app) error {
	closeToOthers()
	err := c.run(a)
	if err == nil || askedToEnd(a.ctx) {
		return nil
	}
	if _, ok := errors.AsType[withCode](err); ok {
		return err
	}
	// Only these say something to whoever started it; see Help.
	switch wire.KindOf(err) {
	case wire.BadUsage:
		return err
	case wire.Denied:
		if c.Once {
			return err
		}
	}
	return withCode{err, exitFailed}
}

// notOurs gives the exit code of a conflict to what went wrong with a state
// directory that is another's: of an agent that runs, or of a newer release.
func notOurs(err error) error {
	if wire.KindOf(err) == wire.Conflict {
		return withCode{err, exitConflict}
	}
	return err
}

func (c *runnerAgent) run(a *app) error {
	cfg, err := c.config(a)
	if err != nil {
		return err
	}
	// Whatever it starts has no business with its token.
	for _, name := range secrets {
		if err := os.Unsetenv(name); err != nil {
			return fmt.Errorf("start runner: %w", err)
		}
	}
	log, _, err := programLog(a, runnerIdentifier, cfg.LogLevel, cfg.LogFormat)
	if err != nil {
		return err
	}
	dir, err := statedir.Open(cfg.StateDir)
	if err != nil {
		return notOurs(fmt.Errorf("open state directory: %w", err))
	}
	defer dir.Close()
	dir.Log = log
	if note := dir.Note(); note != "" {
		log.Warn("state directory has been found in disorder", "what", note)
	}
	if err := dir.Lock("runner agent"); err != nil {
		return notOurs(fmt.Errorf("start runner: %w", err))
	}
	key, err := dir.Identity()
	if err != nil {
		return fmt.Errorf("open identity: %w", err)
	}
	id, err := dir.ID(cfg.ID)
	if err != nil {
		return fmt.Errorf("open identity: %w", err)
	}
	jobs, err := cfg.supervisor(a.ctx, c.Managed)
	if err != nil {
		return fmt.Errorf("start supervisor: %w", err)
	}
	if jobs != nil {
		defer jobs.Close()
	}
	says := &agentSays{
		a: a, addr: cfg.addr.String(), tokenFile: dir.Path("token"),
		fingerprint: statedir.Fingerprint(key.Public().(ed25519.PublicKey)),
		managed:     c.Managed,
		fault:       dir.TokenFault,
	}
	var remedy func(string, wire.Standing) string // elsewhere it is said beside the log
	switch log.Handler().(type) {
	case *journal.Handler, *slog.JSONHandler:
		says.silent, remedy = true, says.remedy
	}
	tokens := runner.Tokens{Dir: dir, Environment: cfg.token, CredentialFile: a.credentialFile()}
	a.warn(cfg.addr, cfg.trust)
	r, err := runner.New(runner.Config{
		Dial: func(ctx context.Context) (net.Conn, error) { return dialServer(ctx, cfg.addr, cfg.trust, tokens) },
		ID:   id, Kind: wire.KindRemote, Key: key, Labels: cfg.Labels, Concurrency: cfg.Concurrency,
		Dir: cfg.JobsDir, Supervisor: jobs, Tokens: tokens, Managed: c.Managed,
		Resupervise: func(ctx context.Context) (supervisor.Jobs, error) { return cfg.resupervise(ctx, c.Managed) },
		Once:        c.Once, Software: software(), Server: cfg.addr.String(), Logger: log, Notify: says.notify, Remedy: remedy,
	})
	if err != nil {
		return fmt.Errorf("start runner: %w", err)
	}
	control, err := runner.ListenControl(dir.Path())
	if err != nil {
		return fmt.Errorf("start runner: %w", err)
	}
	log.Info("runner started", "runner", id, "server", cfg.addr.String(), "version", number)
	if err := systemd.Ready(); err != nil {
		log.Warn("service manager does not listen", "error", err)
	}
	watched, unwatch := context.WithCancel(a.ctx)
	var watchdog sync.WaitGroup
	watchdog.Go(func() { systemd.Watchdog(watched, r.Probe, log) })
	err = c.serve(a, r, control, log)
	unwatch()
	watchdog.Wait()
	systemd.Stopping()
	if err != nil {
		return fmt.Errorf("run runner: %w", err)
	}
	log.Info("runner stopped")
	return nil
}

// dialServer connects to the server with the trust of the configuration and of
// all tokens there are: each carries the fingerprint of its server. They
// change, so they are read anew for each connection. Where the server is not
// trusted and a token cannot be read, that may be why, and is said.
func dialServer(ctx context.Context, addr mux.Address, trust mux.Trust, tokens runner.Tokens) (net.Conn, error) {
	trust.Pins = trust.Pins[:len(trust.Pins):len(trust.Pins)]
	var unread []string
	for _, offer := range tokens.Read(nil) {
		claims, err := wire.ReadToken(offer.Token)
		switch {
		case err != nil:
			unread = append(unread, fmt.Sprintf("from the %s: %v", sourceWords(offer.Source), err))
		case isFingerprint(claims.Pin):
			trust.Pins = append(trust.Pins, claims.Pin)
		}
	}
	conn, err := mux.Dial(ctx, addr, trust)
	if e, ok := errors.AsType[*wire.Error](err); ok && e.Kind == wire.Denied && addr.Network == "tcp" && len(unread) > 0 {
		said := wire.Errorf(e.Kind, "%s (and no token speaks for it: %s)", e.Message, strings.Join(unread, "; "))
		return nil, said.WithHint("put the whole token in place again; or else %s", e.Hint)
	}
	return conn, err
}

// serve runs the runner, and answers the command lines of this host: the
// first signal drains it, the second stops its jobs, SIGHUP has it look at
// its tokens. A managed one hands over with the first, and ends with the second.
func (c *runnerAgent) serve(a *app, r *runner.Runner, control net.Listener, log *slog.Logger) error {
	ctx, halt := context.WithCancel(a.ctx)
	defer halt()
	stop, drain := context.WithCancel(ctx)
	defer drain()
	signals := make(chan os.Signal, 4)
	defer a.signals.handle(func(s os.Signal) {
		select {
		case signals <- s:
		default:
		}
	})()
	if signal.Ignored(syscall.SIGHUP) { // as under nohup; here it ends nothing
		signal.Notify(signals, syscall.SIGHUP)
		defer signal.Stop(signals)
	}
	var listen sync.WaitGroup
	listen.Go(func() {
		for n := 0; ; {
			select {
			case <-ctx.Done():
				return
			case s := <-signals:
				if s == syscall.SIGHUP {
					log.Info("looking at the tokens", "signal", s.String())
					r.Reload()
					continue
				}
				n++
				if c.Managed {
					log.Info("asked to stop", "signal", s.String())
					systemd.Stopping()
					drain()
					if n > 1 {
						halt()
					}
					continue
				}
				if n == 1 {
					log.Info("draining: no more jobs are taken; once more stops the running ones", "signal", s.String())
					drain()
					continue
				}
				log.Info("stopping the running jobs", "signal", s.String())
				r.CancelAll(n > 2)
			}
		}
	})
	listen.Go(func() {
		if err := r.ServeControl(ctx, control); err != nil && ctx.Err() == nil {
			log.Error("command lines of this host are not answered any more", "error", err)
		}
	})
	err := r.Run(ctx, stop)
	halt()
	listen.Wait()
	return err
}
