package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/waypointd/waypoint/cmd/internal/config"
	"github.com/waypointd/waypoint/cmd/internal/systemd"
	"github.com/waypointd/waypoint/daemon"
	"github.com/waypointd/waypoint/mux"
	"github.com/waypointd/waypoint/mux/wire"
)

// serverConfigFile is read when no other is named, if it is there.
const serverConfigFile = "/etc/waypoint/server.toml"

// serverRun is `waypoint server run`.
type serverRun struct {
	Config    string   `placeholder:"FILE" help:"Configuration in TOML (default /etc/waypoint/server.toml if present)."`
	StateDir  string   `placeholder:"DIR" from:"WAYPOINT_SERVER_STATE_DIR" help:"What the server remembers (default /var/lib/waypoint, or $$XDG_STATE_HOME/waypoint-server without root)."`
	Listen    []string `sep:"none" placeholder:"ADDR" help:"Where to listen, unix:///path or tcp://host:port; repeatable ($$WAYPOINT_SERVER_LISTEN). Not needed with sockets from systemd."`
	Store     string   `placeholder:"URL" from:"WAYPOINT_SERVER_STORE" help:"The store: a file, or postgres://... (default waypoint.db in the state directory)."`
	LogLevel  string   `placeholder:"LEVEL" from:"WAYPOINT_LOG_LEVEL" help:"debug, info, warn or error (default info)."`
	LogFormat string   `placeholder:"FORMAT" from:"WAYPOINT_LOG_FORMAT" help:"text or json (default text)."`
}

// serverConfig is server.toml: a key for every flag and every limit.
type serverConfig struct {
	StateDir    string        `toml:"state_dir"`
	Listen      []string      `toml:"listen"`
	SocketMode  string        `toml:"socket_mode"` // of Unix sockets, octal
	Store       string        `toml:"store"`
	LogLevel    string        `toml:"log_level"`
	LogFormat   string        `toml:"log_format"`
	AckTimeout  wire.Duration `toml:"ack_timeout"`
	Lease       wire.Duration `toml:"lease"`
	Heartbeat   wire.Duration `toml:"heartbeat"`
	LogLimit    int64         `toml:"log_limit"` // bytes
	RetainFor   wire.Duration `toml:"retain_for"`
	RetainJobs  int           `toml:"retain_jobs"`
	MaxSessions int           `toml:"max_sessions"`
	MaxPending  int           `toml:"max_pending"`
}

func (c *serverRun) Run(a *app) error {
	cfg, err := c.config(a)
	if err != nil {
		return err
	}
	log, err := programLog(a, cfg.LogLevel, cfg.LogFormat)
	if err != nil {
		return err
	}
	handed, err := systemd.Listeners()
	if err != nil {
		return err
	}
	for _, l := range handed {
		// Before anybody is told that the server is ready.
		if err := mux.CheckListener(l.Listener, false); err != nil {
			return err
		}
	}
	if len(handed)+len(cfg.Listen) == 0 {
		if err := cfg.listenOnSystem(); err != nil {
			return err
		}
	}
	// From here on a signal stops the server, which is a good end.
	ctx, stop := context.WithCancelCause(a.ctx)
	defer stop(nil)
	defer a.signals.handle(func(s os.Signal) { stop(interrupted{s}) })()

	srv, err := daemon.New(ctx, daemon.Config{
		StateDir: cfg.StateDir, StoreDSN: cfg.Store, Software: software(), Logger: log,
		AckTimeout: time.Duration(cfg.AckTimeout), Lease: time.Duration(cfg.Lease), Heartbeat: time.Duration(cfg.Heartbeat),
		LogLimit: cfg.LogLimit, RetainFor: time.Duration(cfg.RetainFor), RetainJobs: cfg.RetainJobs,
		MaxSessions: cfg.MaxSessions, MaxPending: cfg.MaxPending,
	})
	if err != nil {
		return fmt.Errorf("start server: %w", err)
	}
	listeners, err := cfg.listen(ctx, handed)
	if err == nil {
		err = serve(ctx, stop, srv, listeners, log)
	}
	return errors.Join(err, srv.Close())
}

// serve runs the server until ctx ends or its store cannot be trusted.
func serve(ctx context.Context, stop context.CancelCauseFunc, srv *daemon.Server, listeners []net.Listener, log *slog.Logger) error {
	var watch sync.WaitGroup
	var broken error
	watch.Go(func() {
		select {
		case broken = <-srv.Fatal():
			stop(broken)
		case <-ctx.Done():
			systemd.Stopping()
		}
	})
	for _, l := range listeners {
		log.Info("listening", "address", l.Addr().String())
	}
	if err := systemd.Ready(); err != nil {
		log.Warn("service manager does not listen", "error", err)
	}
	log.Info("server started", "version", number)
	err := srv.Serve(ctx, listeners...)
	cause := context.Cause(ctx)
	stop(nil)
	watch.Wait()
	if broken != nil {
		// Exit code 1 whatever the kind: the service manager starts it anew.
		return withCode{fmt.Errorf("keep store: %w", broken), exitFailed}
	}
	if err != nil && cause == nil {
		return fmt.Errorf("serve: %w", err)
	}
	log.Info("server stopped", "cause", fmt.Sprint(cause))
	return nil
}

// config is the configuration: flags over environment over file over defaults.
func (c *serverRun) config(a *app) (*serverConfig, error) {
	cfg := new(serverConfig)
	if err := loadConfig(c.Config, serverConfigFile, cfg); err != nil {
		return nil, err
	}
	override(&cfg.StateDir, c.StateDir)
	override(&cfg.Store, c.Store)
	override(&cfg.LogLevel, c.LogLevel)
	override(&cfg.LogFormat, c.LogFormat)
	if env := strings.Fields(a.env.get("WAYPOINT_SERVER_LISTEN")); len(env) > 0 {
		cfg.Listen = env
	}
	if len(c.Listen) > 0 {
		cfg.Listen = c.Listen
	}
	var err error
	cfg.StateDir, err = a.stateDir(cfg.StateDir, "/var/lib/waypoint", "waypoint-server")
	return cfg, err
}

// loadConfig reads the file that was named, or the default one if it is there.
func loadConfig(named, usual string, into any) error {
	if named != "" {
		err := config.Load(named, into)
		if errors.Is(err, fs.ErrNotExist) {
			return wire.Errorf(wire.BadUsage, "%v", err)
		}
		return err
	}
	if err := config.Load(usual, into); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func override(value *string, by string) {
	if by != "" {
		*value = by
	}
}

// stateDir is the configured state directory, made absolute, else the one the
// service manager gives, else root's or the user's usual one.
func (a *app) stateDir(configured, roots, users string) (string, error) {
	if configured != "" {
		dir, err := filepath.Abs(configured)
		if err != nil {
			return "", fmt.Errorf("find state directory: %w", err)
		}
		return dir, nil
	}
	if given, _, _ := strings.Cut(a.env.get("STATE_DIRECTORY"), ":"); given != "" {
		return given, nil
	}
	if os.Getuid() == 0 {
		return roots, nil
	}
	home, err := a.stateHome()
	return filepath.Join(home, users), err
}

// listenOnSystem makes the system's sockets the addresses, if this is root,
// to whom they belong.
func (cfg *serverConfig) listenOnSystem() error {
	if os.Getuid() != 0 {
		return wire.Errorf(wire.BadUsage, "listen: no address is given").
			WithHint("--listen unix:///path or --listen tcp://127.0.0.1:%s", mux.DefaultPort)
	}
	if err := os.MkdirAll(filepath.Dir(systemSocket), 0o755); err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	cfg.Listen = []string{"unix://" + systemSocket, "unix://" + runnerSocket}
	return nil
}

// listen opens the sockets: those handed over and those configured.
func (cfg *serverConfig) listen(ctx context.Context, handed []systemd.Listener) ([]net.Listener, error) {
	var listeners []net.Listener
	for _, l := range handed {
		listeners = append(listeners, l.Listener)
	}
	mode, err := cfg.socketMode()
	if err != nil {
		return nil, err
	}
	for _, text := range cfg.Listen {
		l, err := listenOn(ctx, text, mode)
		if err != nil {
			for _, l := range listeners {
				l.Close()
			}
			return nil, err
		}
		listeners = append(listeners, l)
	}
	return listeners, nil
}

func listenOn(ctx context.Context, text string, mode uint32) (net.Listener, error) {
	addr, err := parseAddress(text, "--listen")
	if err != nil {
		return nil, err
	}
	return mux.Listen(ctx, addr, mode) // its errors name the address
}

// socketMode is who may open the Unix sockets: this user, and the group too
// where this is root, whose group is nobody else's.
func (cfg *serverConfig) socketMode() (uint32, error) {
	if cfg.SocketMode == "" {
		if os.Getuid() == 0 {
			return 0o660, nil
		}
		return 0o600, nil
	}
	mode, err := strconv.ParseUint(cfg.SocketMode, 8, 32)
	if err != nil || mode > 0o777 {
		return 0, wire.Errorf(wire.BadUsage, "read configuration: socket_mode %q is no octal mode", cfg.SocketMode).
			WithHint(`for example socket_mode = "0660"`)
	}
	return uint32(mode), nil
}

// programLog is the log of a server or a runner, on stderr.
func programLog(a *app, level, format string) (*slog.Logger, error) {
	opts := new(slog.HandlerOptions)
	l := slog.LevelInfo
	if level != "" {
		if err := l.UnmarshalText([]byte(level)); err != nil {
			return nil, wire.Errorf(wire.BadUsage, "start log: %q is no level", level).WithHint("use debug, info, warn or error")
		}
	}
	if a.Verbose > 0 {
		l = slog.LevelDebug
	}
	opts.Level = l
	switch format {
	case "", "text":
		return slog.New(slog.NewTextHandler(a.stderr, opts)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(a.stderr, opts)), nil
	}
	return nil, wire.Errorf(wire.BadUsage, "start log: %q is no format", format).WithHint("use text or json")
}
