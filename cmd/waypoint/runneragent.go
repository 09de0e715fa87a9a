package main

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"

	"github.com/waypointd/waypoint/cmd/internal/output"
	"github.com/waypointd/waypoint/cmd/internal/systemd"
	"github.com/waypointd/waypoint/mux"
	"github.com/waypointd/waypoint/mux/wire"
	"github.com/waypointd/waypoint/runner"
	"github.com/waypointd/waypoint/runner/supervisor"
	"github.com/waypointd/waypoint/statedir"
)

// runnerConfigFile is read when no other is named, if it is there.
const runnerConfigFile = "/etc/waypoint/runner.toml"

// runnerAgent is `waypoint runner agent`.
type runnerAgent struct {
	ID          string   `placeholder:"ID" from:"WAYPOINT_RUNNER_ID" help:"The runner's id (default one that is made at the first start and kept)."`
	Label       []string `sep:"none" placeholder:"K=V" help:"A label besides os, arch and hostname; repeatable ($$WAYPOINT_RUNNER_LABELS, separated by commas)."`
	Concurrency int      `placeholder:"N" from:"WAYPOINT_RUNNER_CONCURRENCY" help:"Jobs at once (default the number of CPUs)."`
	StateDir    string   `placeholder:"DIR" from:"WAYPOINT_RUNNER_STATE_DIR" help:"What the runner remembers (default /var/lib/waypoint-runner, or $$XDG_STATE_HOME/waypoint-runner without root)."`
	Config      string   `placeholder:"FILE" help:"Configuration in TOML (default /etc/waypoint/runner.toml if present)."`
	Once        bool     `help:"End after one job."`
	LogLevel    string   `placeholder:"LEVEL" from:"WAYPOINT_LOG_LEVEL" help:"debug, info, warn or error (default info)."`
	LogFormat   string   `placeholder:"FORMAT" from:"WAYPOINT_LOG_FORMAT" help:"text or json (default text)."`
}

func (*runnerAgent) Help() string {
	return `Without --server-addr it connects to /run/waypoint/runner.sock. The first SIGTERM or SIGINT takes no more
jobs and ends when the running ones have ended; the second stops those.
Exit codes: 0 stopped on request or --once done, 2 wrong usage or configuration, 4 rejected (--once only),
6 state directory in use, 1 anything else.`
}

// maxConcurrency is more than a host can do, and few enough to be counted by
// everybody.
const maxConcurrency = 10000

// runnerConfig is runner.toml: a key for every flag.
type runnerConfig struct {
	ServerAddr  string            `toml:"server_addr"`
	ID          string            `toml:"id"`
	Labels      map[string]string `toml:"labels"`
	Concurrency int               `toml:"concurrency"`
	StateDir    string            `toml:"state_dir"`
	LogLevel    string            `toml:"log_level"`
	LogFormat   string            `toml:"log_format"`
}

func (c *runnerAgent) Run(a *app) error {
	err := c.run(a)
	if err == nil || context.Cause(a.ctx) != nil {
		return err
	}
	if _, ok := errors.AsType[status](err); ok {
		return err
	}
	// Only these say something to whoever started it; see adoption.md's list in Help.
	switch code := kindCode(wire.KindOf(err)); code {
	case exitUsage, exitConflict:
		return err
	case exitDenied:
		if c.Once {
			return err
		}
	}
	return withCode{err, exitFailed}
}

func (c *runnerAgent) run(a *app) error {
	cfg, addr, err := c.config(a)
	if err != nil {
		return err
	}
	log, err := programLog(a, cfg.LogLevel, cfg.LogFormat)
	if err != nil {
		return err
	}
	dir, err := statedir.Open(cfg.StateDir)
	if err != nil {
		return fmt.Errorf("open state directory: %w", err)
	}
	defer dir.Close()
	if err := dir.Lock("runner agent"); err != nil {
		return fmt.Errorf("start runner: %w", err)
	}
	key, err := dir.Identity()
	if err != nil {
		return fmt.Errorf("open identity: %w", err)
	}
	id, err := dir.ID(cfg.ID)
	if err != nil {
		return fmt.Errorf("open identity: %w", err)
	}
	jobs, err := ensureSupervisor(a.ctx, dir)
	if err != nil {
		return fmt.Errorf("start supervisor: %w", err)
	}
	defer jobs.Close()
	says := &agentSays{a: a, log: log, addr: addr.String(), fingerprint: statedir.Fingerprint(key.Public().(ed25519.PublicKey))}
	r, err := runner.New(runner.Config{
		Dial: func(ctx context.Context) (net.Conn, error) { return mux.Dial(ctx, addr, mux.Trust{Plain: true}) },
		ID:   id, Kind: wire.KindRemote, Key: key, Labels: cfg.Labels, Concurrency: cfg.Concurrency,
		Dir: dir.Path(), Supervisor: jobs,
		Resupervise: func(ctx context.Context) (supervisor.Jobs, error) { return ensureSupervisor(ctx, dir) },
		Once:        c.Once, Software: software(), Logger: log, Notify: says.notify,
	})
	if err != nil {
		return fmt.Errorf("start runner: %w", err)
	}
	log.Info("runner started", "runner", id, "server", addr.String(), "version", number)
	if err := systemd.Ready(); err != nil {
		log.Warn("service manager does not listen", "error", err)
	}
	err = c.serve(a, r, log)
	systemd.Stopping()
	if err != nil {
		return fmt.Errorf("run runner: %w", err)
	}
	log.Info("runner stopped")
	return nil
}

// serve runs the runner: the first signal drains it, the second stops its
// jobs.
func (c *runnerAgent) serve(a *app, r *runner.Runner, log *slog.Logger) error {
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
	var listen sync.WaitGroup
	listen.Go(func() {
		for n := 1; ; n++ {
			select {
			case <-ctx.Done():
				return
			case s := <-signals:
				if n == 1 {
					log.Info("draining: no more jobs are taken; once more stops the running ones", "signal", s.String())
					systemd.Status("Draining.")
					drain()
					continue
				}
				log.Info("stopping the running jobs", "signal", s.String())
				r.CancelAll(n > 2)
			}
		}
	})
	err := r.Run(ctx, stop)
	halt()
	listen.Wait()
	return err
}

// config is the configuration and the server's address: flags over
// environment over file over defaults.
func (c *runnerAgent) config(a *app) (*runnerConfig, mux.Address, error) {
	cfg := new(runnerConfig)
	fail := func(err error) (*runnerConfig, mux.Address, error) { return nil, mux.Address{}, err }
	if a.NoServer {
		return fail(wire.Errorf(wire.BadUsage, "choose server: a runner without a server has nothing to do").WithHint("leave out --no-server"))
	}
	if err := loadConfig(c.Config, runnerConfigFile, cfg); err != nil {
		return fail(err)
	}
	override(&cfg.ID, c.ID)
	override(&cfg.LogLevel, c.LogLevel)
	override(&cfg.LogFormat, c.LogFormat)
	override(&cfg.StateDir, c.StateDir)
	if err := c.labels(a, cfg); err != nil {
		return fail(err)
	}
	if c.Concurrency != 0 {
		cfg.Concurrency = c.Concurrency
	}
	if cfg.Concurrency < 0 {
		return fail(wire.Errorf(wire.BadUsage, "read concurrency: %d jobs at once cannot be", cfg.Concurrency))
	}
	if cfg.Concurrency > maxConcurrency {
		return fail(wire.Errorf(wire.BadUsage, "read concurrency: %d jobs at once are over the limit of %d", cfg.Concurrency, maxConcurrency))
	}
	if cfg.Concurrency == 0 {
		cfg.Concurrency = runtime.NumCPU()
	}
	from := "server_addr"
	if env := a.env.get("WAYPOINT_SERVER_ADDR"); env != "" {
		cfg.ServerAddr, from = env, "WAYPOINT_SERVER_ADDR"
	}
	if a.ServerAddr != "" {
		cfg.ServerAddr, from = a.ServerAddr, "--server-addr"
	}
	if cfg.ServerAddr == "" {
		cfg.ServerAddr = "unix://" + runnerSocket
	}
	addr, err := parseAddress(cfg.ServerAddr, from)
	if err != nil {
		return fail(err)
	}
	cfg.StateDir, err = a.stateDir(cfg.StateDir, "/var/lib/waypoint-runner", "waypoint-runner")
	return cfg, addr, err
}

// labels takes the labels of the flags, else of the environment, else of the
// file.
func (c *runnerAgent) labels(a *app, cfg *runnerConfig) error {
	given, name := c.Label, "--label"
	if len(given) == 0 {
		given, name = splitList(a.env.get("WAYPOINT_RUNNER_LABELS")), "WAYPOINT_RUNNER_LABELS"
	}
	if len(given) == 0 {
		return nil
	}
	labels, err := pairs(name, given)
	cfg.Labels = labels
	return err
}

// agentSays tells a person and the service manager how the runner fares.
type agentSays struct {
	a           *app
	log         *slog.Logger
	addr        string
	fingerprint string

	mu      sync.Mutex
	pending bool   // said that it waits to be adopted
	last    string // STATUS, guarded by mu
}

func (s *agentSays) notify(e runner.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	line := ""
	switch {
	case e.Err != nil || e.State == "":
		line = "Not connected to " + s.addr + "."
		if e.Err != nil {
			line = fmt.Sprintf("Not connected to %s: %s.", s.addr, oneLine(e.Err.Error()))
		}
	case e.State == wire.Pending:
		line = fmt.Sprintf("Waiting for: waypoint runner adopt %s", e.ID)
		if !s.pending {
			s.a.note("runner %s is pending: it gets no jobs until it is adopted; its key is %s", e.ID, s.fingerprint)
			s.a.hint("waypoint runner adopt %s", e.ID)
		}
	case e.State == wire.Rejected:
		line = "Rejected by an operator; waiting."
	default:
		line = fmt.Sprintf("Connected (%s), %s running.", e.State, output.Count(e.Jobs, "job"))
	}
	if e.State != "" {
		s.pending = e.State == wire.Pending
	}
	if line != s.last {
		s.last = line
		systemd.Status(line)
	}
}

// splitList splits at commas, leaving out what is empty.
func splitList(s string) []string {
	var list []string
	for part := range strings.SplitSeq(s, ",") {
		if part = strings.TrimSpace(part); part != "" {
			list = append(list, part)
		}
	}
	return list
}
