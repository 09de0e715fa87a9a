package main

import (
	"log/slog"
	"reflect"
	"testing"

	"github.com/waypointd/waypoint/cmd/internal/config"
)

// TestEveryLimitHasAKey: with all keys of server.toml set, nothing of the
// server's configuration is left to its default.
func TestEveryLimitHasAKey(t *testing.T) {
	const text = `
state_dir = "/s"
store = "/s/db"
ack_timeout = "1s"
lease = "1s"
heartbeat = "1s"
log_limit = 1
retain_for = "1s"
retain_jobs = 1
max_sessions = 1
max_pending = 1
max_pending_per_peer = 1
pending_for = "1s"
tls = false
tls_cert = "/c"
tls_key = "/k"
tls_names = ["a"]
[tokens]
life = "1s"
renew = false
`
	cfg := new(serverConfig)
	if err := config.Parse("server.toml", text, cfg); err != nil {
		t.Fatal(err)
	}
	got := reflect.ValueOf(cfg.server(slog.New(slog.DiscardHandler)))
	for f, v := range got.Fields() {
		if f.Type.Kind() == reflect.Func {
			continue // no setting, but what the server asks its program to do
		}
		if v.IsZero() {
			t.Errorf("daemon.Config.%s has no key", f.Name)
		}
	}
	// What is on unless it is turned off.
	cfg = new(serverConfig)
	if err := config.Parse("server.toml", "tls = true\n[tokens]\nrenew = true\n", cfg); err != nil {
		t.Fatal(err)
	}
	if c := cfg.server(nil); c.Plain || c.NoTokenRenew {
		t.Errorf("plain %v, not renewed %v, where both were turned on", c.Plain, c.NoTokenRenew)
	}
}
