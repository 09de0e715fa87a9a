package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/waypointd/waypoint/cmd/internal/systemd"
	"github.com/waypointd/waypoint/daemon"
	"github.com/waypointd/waypoint/mux"
	"github.com/waypointd/waypoint/mux/wire"
)

// serverConfigFile is read when no other is named, if it is there.
const serverConfigFile = "/etc/waypoint/server.toml"

// serverRun is `waypoint server run`.
type serverRun struct {
	Config       string   `placeholder:"FILE" help:"Configuration in TOML (default /etc/waypoint/server.toml if present)."`
	StateDir     string   `placeholder:"DIR" from:"WAYPOINT_SERVER_STATE_DIR" help:"What the server remembers (default /var/lib/waypoint, or $$XDG_STATE_HOME/waypoint-server without root)."`
	Listen       []string `sep:"none" placeholder:"ADDR" help:"Where to listen, unix:///path or tcp://host:port; repeatable ($$WAYPOINT_SERVER_LISTEN). Not needed with sockets from systemd."`
	Store        string   `placeholder:"URL" from:"WAYPOINT_SERVER_STORE" help:"The store: a file, or postgres://... (default waypoint.db in the state directory). The list of processes shows a URL to every user of this host until the program has begun: give one with a password by the configuration or the environment."`
	StoreReserve *int64   `placeholder:"BYTES" from:"WAYPOINT_SERVER_STORE_RESERVE" help:"Room on the store's file system that new work leaves for what is under way; 0 is none (default 64 MiB or a hundredth of it, whichever is less)."`
	Metrics      string   `name:"metrics-listen" placeholder:"ADDR" from:"WAYPOINT_SERVER_METRICS_LISTEN" help:"Where to tell Prometheus, over plain HTTP, what the server does: unix:///path or host:port. Nobody is asked for a token there."`
	TLSCert      string   `name:"tls-cert" placeholder:"FILE" from:"WAYPOINT_SERVER_TLS_CERT" help:"The certificate for TCP in PEM, with what lies between it and its root. Without one the server makes its own."`
	TLSKey       string   `name:"tls-key" placeholder:"FILE" from:"WAYPOINT_SERVER_TLS_KEY" help:"The certificate's key in PEM."`
	TLSName      []string `name:"tls-name" sep:"none" placeholder:"NAME" help:"A further host name or address for the server's own certificate; repeatable ($$WAYPOINT_SERVER_TLS_NAMES, separated by commas)."`
	LogLevel     string   `placeholder:"LEVEL" from:"WAYPOINT_LOG_LEVEL" help:"debug, info, warn or error (default info)."`
	LogFormat    string   `placeholder:"FORMAT" from:"WAYPOINT_LOG_FORMAT" help:"text, json or journal (default journal where stderr goes to the journal, else text)."`
}

func (*serverRun) Help() string {
	return `TCP is encrypted, and asks for a token. Who may connect to a Unix socket needs none: its mode says who that is.
With --no-server-tls, on loopback addresses only, TCP may be plaintext as well. --server-addr and what else says
how to reach a server has no meaning here.

With sockets of systemd's, FileDescriptorName= says what each is for: operators, runners (agents only, whoever asks) or
tcp. SIGHUP and waypoint server reload have the configuration read again; flags and environment stay as they were.`
}

func (c *serverRun) Run(a *app) error {
	closeToOthers()
	cfg, err := c.config(a)
	if err != nil {
		return err
	}
	if err := cfg.checkReserve(); err != nil {
		return err
	}
	log, level, err := programLog(a, serverIdentifier, cfg.LogLevel, cfg.LogFormat)
	if err != nil {
		return err
	}
	handed, err := systemd.Listeners()
	if err != nil {
		return err
	}
	configured := *cfg // without what follows from nothing being configured
	if len(handed)+len(cfg.Listen) == 0 {
		if err := cfg.listenOnSystem(); err != nil {
			return err
		}
	}
	// From here on a signal stops the server, which is a good end, or has it read
	// its configuration again.
	ctx, stop := context.WithCancelCause(a.ctx)
	defer stop(nil)
	hangups := make(chan os.Signal, 1) // one that waits is enough
	defer a.signals.handle(func(s os.Signal) {
		if s != syscall.SIGHUP {
			stop(interrupted{s})
			return
		}
		select {
		case hangups <- s:
		default:
		}
	})()
	if signal.Ignored(syscall.SIGHUP) { // as under nohup; here it ends nothing
		signal.Notify(hangups, syscall.SIGHUP)
		defer signal.Stop(hangups)
	}

	says := newServerSays(log)
	live := &liveConfig{
		read: func() (*serverConfig, error) { return c.config(a) }, checkLevel: a.logLevel,
		running: &configured, level: level, log: log, says: says,
	}
	opening := systemd.Extending(openStep)
	systemd.Status("Opening the store.")
	set := cfg.server(log)
	set.Reload = live.reload
	live.server, err = daemon.New(ctx, set)
	opening()
	if err != nil && askedToEnd(ctx) {
		log.Info("server stopped", "cause", fmt.Sprint(context.Cause(ctx)))
		return nil
	}
	if err != nil {
		return fmt.Errorf("start server: %w", err)
	}
	listeners, err := cfg.listen(ctx, handed)
	var scraped net.Listener
	if err == nil {
		if scraped, err = cfg.listenMetrics(ctx); err != nil {
			for _, l := range listeners {
				l.Close()
			}
		}
	}
	switch {
	case err == nil:
		live.listeners = listeners
		warnOfReaders(log, configured.SecretFile, listeners)
		err = serve(ctx, stop, live, listeners, scraped, hangups)
	case askedToEnd(ctx):
		err = nil
		log.Info("server stopped", "cause", fmt.Sprint(context.Cause(ctx)))
	}
	systemd.Status("Closing the store.")
	systemd.Extend(closeTime)
	return errors.Join(err, live.server.Close())
}

// How long the service manager waits for a store, whatever its unit says: to
// bring one of an older release up to date can take minutes, and is said again
// and again; what is left to write when it is closed should be seconds.
const (
	openStep  = 30 * time.Second
	closeTime = 2 * time.Minute
)

// serve runs the server until ctx ends or its store cannot be trusted. scraped is
// where metrics are told, nil for nowhere.
func serve(ctx context.Context, stop context.CancelCauseFunc, live *liveConfig, listeners []net.Listener, scraped net.Listener, hangups <-chan os.Signal) error {
	srv, log := live.server, live.log
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
	err := srv.Prepare(ctx, listeners...)
	if err != nil {
		for _, l := range listeners {
			l.Close()
		}
		if scraped != nil {
			scraped.Close()
		}
	} else {
		if err := systemd.Ready(); err != nil {
			log.Warn("service manager does not listen", "error", err)
		}
		log.Info("server started", "version", number)
		watch.Go(func() { live.says.run(ctx, srv) })
		watch.Go(func() { systemd.Watchdog(ctx, srv.Probe, log) })
		watch.Go(func() { live.hear(ctx, hangups) })
		if scraped != nil {
			watch.Go(func() {
				if err := srv.ServeMetrics(ctx, scraped); err != nil {
					log.Error("metrics are not told any more", "error", err)
				}
			})
		}
		err = srv.Serve(ctx, listeners...)
	}
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

// listen opens the sockets: those handed over and those configured.
func (cfg *serverConfig) listen(ctx context.Context, handed []systemd.Listener) ([]net.Listener, error) {
	var listeners []net.Listener
	refuse := func(err error) ([]net.Listener, error) {
		for _, l := range handed {
			l.Close()
		}
		for _, l := range listeners {
			l.Close()
		}
		return nil, err
	}
	for _, h := range handed {
		l, err := handedOver(h)
		if err != nil {
			return refuse(err)
		}
		listeners = append(listeners, l)
	}
	mode, err := cfg.socketMode()
	if err != nil {
		return refuse(err)
	}
	for _, text := range cfg.Listen {
		l, err := listenOn(ctx, text, mode)
		if err != nil {
			return refuse(err)
		}
		listeners = append(listeners, l)
	}
	for _, l := range listeners {
		// Before anybody is told that the server is ready. Whoever turns TLS
		// off does not mean it to be on for those who come from elsewhere.
		if err := mux.CheckListener(l, !cfg.plain()); err != nil {
			return refuse(err)
		}
	}
	return listeners, nil
}

// handedOver is a socket of the service manager's, for whom its name says. One
// that nobody has named is for operators, as one that is listened on here; a name
// that means nothing here is an error, since whoever gave it meant something.
func handedOver(h systemd.Listener) (net.Listener, error) {
	tcp := h.Addr().Network() == "tcp"
	switch {
	case h.Name == "runners":
		return daemon.Listener{Listener: h.Listener, Runners: true}, nil
	case h.Name == "operators", h.Name == "tcp" && tcp, systemd.Unnamed(h.Name):
		return h.Listener, nil
	}
	e := wire.Errorf(wire.BadUsage, "take over socket %s://%s: nothing is known of one that is called %q", h.Addr().Network(), h.Addr(), h.Name)
	return nil, e.WithHint("set FileDescriptorName= of its unit to operators, runners or (on TCP) tcp")
}

func listenOn(ctx context.Context, text string, mode uint32) (net.Listener, error) {
	addr, err := parseAddress(text, "--listen")
	if err != nil {
		return nil, err
	}
	l, err := mux.Listen(ctx, addr, mode) // its errors name the address
	if err == nil && addr.Path == runnerSocket {
		l = daemon.Listener{Listener: l, Runners: true}
	}
	return l, err
}

// listenMetrics opens the socket for Prometheus, nil where none is configured.
func (cfg *serverConfig) listenMetrics(ctx context.Context) (net.Listener, error) {
	if cfg.Metrics == "" {
		return nil, nil
	}
	addr, err := metricsAddress(cfg.Metrics)
	if err != nil {
		return nil, err
	}
	mode, err := cfg.socketMode()
	if err != nil {
		return nil, err
	}
	return mux.Listen(ctx, addr, mode)
}

// metricsAddress reads unix:///path or host:port. A port has to be named: the
// usual one is that of sessions.
func metricsAddress(text string) (mux.Address, error) {
	addr, err := parseAddress(text, "metrics_listen")
	if err == nil && addr.Network == "tcp" {
		if _, _, err := net.SplitHostPort(strings.TrimPrefix(text, "tcp://")); err != nil {
			return addr, wire.Errorf(wire.BadUsage, "read metrics_listen: %q has no port", text).
				WithHint("for example 127.0.0.1:9702")
		}
	}
	return addr, err
}
