package main

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/waypointd/waypoint/cmd/internal/config"
	"github.com/waypointd/waypoint/cmd/internal/systemd"
	"github.com/waypointd/waypoint/daemon"
	"github.com/waypointd/waypoint/mux"
	"github.com/waypointd/waypoint/mux/wire"
)

// serverConfig is server.toml: a key for every flag and every limit. What is
// tagged "restart" is only looked at when the server starts, the rest also when
// it reads its configuration again.
type serverConfig struct {
	StateDir    string        `toml:"state_dir" reload:"restart"`
	Listen      []string      `toml:"listen" reload:"restart"`
	SocketMode  string        `toml:"socket_mode" reload:"restart"` // of Unix sockets, octal
	Store       string        `toml:"store" reload:"restart"`
	Metrics     string        `toml:"metrics_listen" reload:"restart"`
	Reserve     *int64        `toml:"store_reserve" range:"0 1099511627776"` // bytes; 0: none, nil: the default
	LogLevel    string        `toml:"log_level"`
	LogFormat   string        `toml:"log_format" reload:"restart"`
	AckTimeout  wire.Duration `toml:"ack_timeout" range:"1s 1h"`
	Lease       wire.Duration `toml:"lease" range:"1s 168h"`
	Heartbeat   wire.Duration `toml:"heartbeat" range:"100ms 10m"`
	LogLimit    int64         `toml:"log_limit" range:"1024 1099511627776"` // bytes
	RetainFor   wire.Duration `toml:"retain_for" range:"1m 876000h"`
	RetainJobs  int           `toml:"retain_jobs" range:"1 100000000"`
	MaxSessions int           `toml:"max_sessions" range:"16 1000000"`

	// Of the audit.
	AuditRetention wire.Duration `toml:"audit_retention" range:"1h 876000h"`
	AuditEntries   int           `toml:"audit_entries" range:"100 1000000000"`
	AuditLog       *bool         `toml:"audit_log"` // nil: each entry is in the log too

	// Of runners that wait for adoption.
	MaxPending        int           `toml:"max_pending" range:"1 1000000"`
	MaxPendingPerPeer int           `toml:"max_pending_per_peer" range:"1 1000000"`
	PendingFor        wire.Duration `toml:"pending_for" range:"1m 8760h"`

	// Of what peers can take, whoever they are.
	Limits struct {
		SessionsPerPeer int   `toml:"sessions_per_peer" range:"4 1000000"`
		Greeting        int   `toml:"greeting" range:"8 1000000"`
		GreetingPerPeer int   `toml:"greeting_per_peer" range:"1 1000000"`
		HellosPerPeer   int   `toml:"hellos_per_peer" range:"1 100000"`
		Handshakes      int   `toml:"handshakes" range:"1 10000"`
		Unread          int64 `toml:"unread" range:"1048576 1099511627776"` // bytes
		RunnersPerToken int   `toml:"runners_per_token" range:"1 1000000"`
		Streams         int   `toml:"streams" range:"64 65536"`

		HandshakeTime wire.Duration `toml:"handshake_time" range:"1s 10m"`
	} `toml:"limits"`

	// Of the tokens of adopted runners.
	Tokens struct {
		Life  wire.Duration `toml:"life" range:"1m 87600h"`
		Renew *bool         `toml:"renew"` // nil: they are
	} `toml:"tokens"`

	// Who may do what.
	Access struct {
		Users        map[string]string `toml:"users"`  // of this host: name or number → role
		Groups       map[string]string `toml:"groups"` // likewise
		RunnerTokens string            `toml:"runner_tokens"`
		TokenLife    wire.Duration     `toml:"token_life" range:"1m 87600h"`
	} `toml:"access"`

	TLS      *bool    `toml:"tls" reload:"restart"` // false: plaintext on loopback addresses
	TLSCert  string   `toml:"tls_cert"`
	TLSKey   string   `toml:"tls_key"`
	TLSNames []string `toml:"tls_names"`

	// The file that a database's password was read from, "" where there was none in it.
	SecretFile string `toml:"-"`
}

// The credentials of the service manager that are the certificate and its key
// where nothing else is named: what LoadCredential=waypoint:DIR makes of tls.crt
// and tls.key in that directory. They are copies from when the server was started.
const (
	certCredential = "waypoint_tls.crt"
	keyCredential  = "waypoint_tls.key"
)

// config is the configuration: flags over environment over file over defaults.
func (c *serverRun) config(a *app) (*serverConfig, error) {
	cfg := new(serverConfig)
	if err := a.loadConfig(c.Config, serverConfigFile, cfg); err != nil {
		return nil, err
	}
	if hasPassword(cfg.Store) {
		cfg.SecretFile = cmp.Or(c.Config, serverConfigFile)
	}
	override(&cfg.StateDir, c.StateDir)
	override(&cfg.Store, c.Store)
	override(&cfg.Metrics, c.Metrics)
	if c.StoreReserve != nil {
		cfg.Reserve = c.StoreReserve
	}
	override(&cfg.LogLevel, c.LogLevel)
	override(&cfg.LogFormat, c.LogFormat)
	if env := strings.Fields(a.env.get("WAYPOINT_SERVER_LISTEN")); len(env) > 0 {
		cfg.Listen = env
	}
	if len(c.Listen) > 0 {
		cfg.Listen = c.Listen
	}
	if a.ServerTLS != nil {
		cfg.TLS = a.ServerTLS
	}
	override(&cfg.TLSCert, c.TLSCert)
	override(&cfg.TLSKey, c.TLSKey)
	if env := splitList(a.env.get("WAYPOINT_SERVER_TLS_NAMES")); len(env) > 0 {
		cfg.TLSNames = env
	}
	if len(c.TLSName) > 0 {
		cfg.TLSNames = c.TLSName
	}
	if cfg.TLSCert == "" && cfg.TLSKey == "" {
		cfg.TLSCert, cfg.TLSKey = systemd.Credential(certCredential), systemd.Credential(keyCredential)
	}
	var err error
	cfg.StateDir, err = a.stateDir(cfg.StateDir, "/var/lib/waypoint", "waypoint-server")
	return cfg, err
}

// server is the configuration as the server knows it.
func (cfg *serverConfig) server(log *slog.Logger) daemon.Config {
	return daemon.Config{
		StateDir: cfg.StateDir, StoreDSN: cfg.Store, StoreReserve: cfg.reserve(), Software: software(), Logger: log,
		AckTimeout: time.Duration(cfg.AckTimeout), Lease: time.Duration(cfg.Lease), Heartbeat: time.Duration(cfg.Heartbeat),
		LogLimit: cfg.LogLimit, RetainFor: time.Duration(cfg.RetainFor), RetainJobs: cfg.RetainJobs,
		MaxSessions: cfg.MaxSessions, Limits: cfg.limits(),
		AuditFor: time.Duration(cfg.AuditRetention), AuditEntries: cfg.AuditEntries, NoAuditLog: cfg.AuditLog != nil && !*cfg.AuditLog,
		MaxPending: cfg.MaxPending, MaxPendingPerPeer: cfg.MaxPendingPerPeer, PendingFor: time.Duration(cfg.PendingFor),
		GrantLife: time.Duration(cfg.Tokens.Life), NoTokenRenew: cfg.Tokens.Renew != nil && !*cfg.Tokens.Renew,
		Access: daemon.Access{
			Users: rolesOf(cfg.Access.Users), Groups: rolesOf(cfg.Access.Groups),
			RunnerTokens: wire.UserRole(cfg.Access.RunnerTokens), TokenLife: time.Duration(cfg.Access.TokenLife),
		},
		TLSCert: cfg.TLSCert, TLSKey: cfg.TLSKey, TLSNames: cfg.TLSNames, Plain: cfg.plain(), Metrics: cfg.Metrics != "",
	}
}

// limits are what peers can take, as the server has it.
func (cfg *serverConfig) limits() daemon.Limits {
	l := &cfg.Limits
	return daemon.Limits{
		SessionsPerPeer: l.SessionsPerPeer, Greeting: l.Greeting, GreetingPerPeer: l.GreetingPerPeer,
		HellosPerPeer: l.HellosPerPeer, Handshakes: l.Handshakes, Unread: l.Unread,
		RunnersPerToken: l.RunnersPerToken, Streams: l.Streams, HandshakeTime: time.Duration(l.HandshakeTime),
	}
}

// reserve is store_reserve as the server has it.
func (cfg *serverConfig) reserve() int64 {
	switch {
	case cfg.Reserve == nil:
		return 0
	case *cfg.Reserve == 0:
		return -1
	}
	return *cfg.Reserve
}

func rolesOf(names map[string]string) map[string]wire.UserRole {
	roles := make(map[string]wire.UserRole, len(names))
	for name, role := range names {
		roles[name] = wire.UserRole(role)
	}
	return roles
}

// plain reports that TLS was turned off.
func (cfg *serverConfig) plain() bool { return cfg.TLS != nil && !*cfg.TLS }

// check looks at what only listening and logging look at otherwise, so that it
// is known to be good before any of it is used.
func (cfg *serverConfig) check() error {
	for _, text := range cfg.Listen {
		if _, err := parseAddress(text, "listen"); err != nil {
			return err
		}
	}
	if cfg.Metrics != "" {
		if _, err := metricsAddress(cfg.Metrics); err != nil {
			return err
		}
	}
	if _, err := cfg.socketMode(); err != nil {
		return err
	}
	return checkLogFormat(cfg.LogFormat)
}

// checkReserve is for what a flag says; the file's has a range.
func (cfg *serverConfig) checkReserve() error {
	if cfg.Reserve != nil && *cfg.Reserve < 0 {
		return wire.Errorf(wire.BadUsage, "read configuration: store_reserve %d is negative", *cfg.Reserve).
			WithHint("0 keeps no reserve")
	}
	return nil
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

// socketMode is who may open the Unix sockets: this user, and the group too
// where this is root, whose group is nobody else's. Members of a group that may
// are operators.
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

// loadConfig reads the file that was named, or the default one if it is there.
// That one is the system's: another user, who may not read it, does without.
// What a service manager starts is the system's own, and has to be able to; whoever
// has replaced the file may have made it somebody else's.
func (a *app) loadConfig(named, usual string, into any) error {
	if named != "" {
		err := config.Load(named, into)
		if errors.Is(err, fs.ErrNotExist) {
			return wire.Errorf(wire.BadUsage, "%v", err)
		}
		return err
	}
	err := config.Load(usual, into)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case wire.KindOf(err) != wire.Denied || os.Getuid() == 0:
		return err
	case a.env.get("STATE_DIRECTORY") == "":
		a.note("configuration %s is passed over: it is not for this user; --config names another", usual)
		return nil
	}
	return wire.Errorf(wire.Denied, "%v", err).
		WithHint("systemd-tmpfiles --create waypoint.conf gives the packages' files their owners and modes again")
}

func override(value *string, by string) {
	if by != "" {
		*value = by
	}
}
