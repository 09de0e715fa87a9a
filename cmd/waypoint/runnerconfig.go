package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/waypointd/waypoint/cmd/internal/contexts"
	"github.com/waypointd/waypoint/mux"
	"github.com/waypointd/waypoint/mux/wire"
)

// runnerConfigFile is read when no other is named, if it is there.
const runnerConfigFile = "/etc/waypoint/runner.toml"

// systemRunnerDir is the state directory of the packaged agent.
const systemRunnerDir = "/var/lib/waypoint-runner"

// maxConcurrency is more than a host can do, and few enough to be counted by
// everybody.
const maxConcurrency = 10000

// runnerConfig is runner.toml: a key for every flag but the token, which has
// files of its own.
type runnerConfig struct {
	ServerAddr           string            `toml:"server_addr"`
	ServerTLS            *bool             `toml:"server_tls"`
	ServerTLSCA          string            `toml:"server_tls_ca"`
	ServerTLSSkipVerify  bool              `toml:"server_tls_skip_verify"`
	ServerTLSFingerprint string            `toml:"server_tls_fingerprint"`
	ID                   string            `toml:"id"`
	Labels               map[string]string `toml:"labels"`
	Concurrency          int               `toml:"concurrency" range:"1 10000"`
	StateDir             string            `toml:"state_dir"`
	JobsDir              string            `toml:"jobs_dir"`
	JobUser              string            `toml:"job_user"`
	DrainTimeout         wire.Duration     `toml:"drain_timeout" range:"0s 168h"`
	LogLevel             string            `toml:"log_level"`
	LogFormat            string            `toml:"log_format"`

	addr  mux.Address
	trust mux.Trust // but for what the tokens say
	token string    // of the environment or the flags
}

// config is the configuration: flags over environment over file over
// defaults.
func (c *runnerAgent) config(a *app) (*runnerConfig, error) {
	cfg := new(runnerConfig)
	if a.NoServer {
		return nil, wire.Errorf(wire.BadUsage, "choose server: a runner without a server has nothing to do").WithHint("leave out --no-server")
	}
	if err := a.loadConfig(c.Config, runnerConfigFile, cfg); err != nil {
		return nil, err
	}
	override(&cfg.ID, c.ID)
	override(&cfg.LogLevel, c.LogLevel)
	override(&cfg.LogFormat, c.LogFormat)
	override(&cfg.StateDir, c.StateDir)
	override(&cfg.JobsDir, c.JobsDir)
	override(&cfg.JobUser, c.JobUser)
	if c.DrainTimeout != 0 {
		cfg.DrainTimeout = wire.Duration(c.DrainTimeout)
	}
	if cfg.DrainTimeout < 0 {
		return nil, wire.Errorf(wire.BadUsage, "read drain timeout: %s is negative", time.Duration(cfg.DrainTimeout))
	}
	if err := c.labels(a, cfg); err != nil {
		return nil, err
	}
	own := []string{"os", "arch"}
	if host, err := os.Hostname(); err == nil && wire.CheckLabel("hostname", host) == nil { // it can be anything
		own = append(own, "hostname")
	}
	for _, name := range own {
		if v, given := cfg.Labels[name]; given {
			a.note("label %s=%s is not used: a runner has %s by itself", name, v, name)
			delete(cfg.Labels, name)
		}
	}
	if c.Concurrency != 0 {
		cfg.Concurrency = c.Concurrency
	}
	if cfg.Concurrency < 0 {
		return nil, wire.Errorf(wire.BadUsage, "read concurrency: %d jobs at once cannot be", cfg.Concurrency)
	}
	if cfg.Concurrency > maxConcurrency {
		return nil, wire.Errorf(wire.BadUsage, "read concurrency: %d jobs at once are over the limit of %d", cfg.Concurrency, maxConcurrency)
	}
	if cfg.Concurrency == 0 {
		cfg.Concurrency = runtime.NumCPU()
	}
	if err := cfg.server(a); err != nil {
		return nil, err
	}
	var err error
	if cfg.StateDir, err = a.stateDir(cfg.StateDir, systemRunnerDir, "waypoint-runner"); err != nil {
		return nil, err
	}
	return cfg, cfg.jobsDir()
}

// jobsDir settles on where jobs run.
func (cfg *runnerConfig) jobsDir() (err error) {
	if cfg.JobsDir == "" {
		cfg.JobsDir = filepath.Join(cfg.StateDir, "jobs")
	}
	if cfg.JobsDir, err = filepath.Abs(cfg.JobsDir); err != nil {
		return fmt.Errorf("find jobs directory: %w", err)
	}
	if cfg.JobsDir == filepath.Clean(cfg.StateDir) {
		return wire.Errorf(wire.BadUsage, "read jobs directory: %s is the state directory, which no job may see", cfg.JobsDir).
			WithHint("choose another directory with --jobs-dir, or leave it out")
	}
	return nil
}

// server settles on the address, whom to trust there, and the token that was
// given with the command.
func (cfg *runnerConfig) server(a *app) (err error) {
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
	if cfg.addr, err = parseAddress(cfg.ServerAddr, from); err != nil {
		return err
	}
	cfg.trust, err = a.trust(contexts.Context{
		TLS: cfg.ServerTLS, TLSCA: cfg.ServerTLSCA, TLSSkipVerify: cfg.ServerTLSSkipVerify, TLSFingerprint: cfg.ServerTLSFingerprint,
	})
	if err == nil {
		err = cfg.trust.Check(cfg.addr) // else it would be tried, and refused, for ever
	}
	if err != nil {
		return err
	}
	if a.Context != "" {
		a.note("--context %s is not used: an agent's server is %s", a.Context, cfg.addr)
	}
	cfg.token, _, err = a.givenToken()
	return err
}

// credentialNames are what the service manager may call the token. The first
// one that is there counts.
var credentialNames = []string{"waypoint_token", "waypoint.token"}

// credentialFile is the file with the service manager's token, "" where there
// is none.
func (a *app) credentialFile() string {
	dir := a.env.get("CREDENTIALS_DIRECTORY")
	if dir == "" {
		return ""
	}
	for _, name := range credentialNames {
		if path := filepath.Join(dir, name); !missing(path) {
			return path
		}
	}
	return ""
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

// missing reports that there is nothing at path, as far as can be told.
func missing(path string) bool {
	_, err := os.Stat(path)
	return errors.Is(err, fs.ErrNotExist)
}
