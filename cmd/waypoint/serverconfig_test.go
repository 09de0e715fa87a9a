package main

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/waypointd/waypoint/cmd/internal/config"
	"github.com/waypointd/waypoint/mux/wire"
)

// TestEveryLimitHasAKey: with all keys of server.toml set, nothing of the
// server's configuration is left to its default.
func TestEveryLimitHasAKey(t *testing.T) {
	const text = `
state_dir = "/s"
store = "/s/db"
metrics_listen = "127.0.0.1:9702"
ack_timeout = "1s"
lease = "1s"
heartbeat = "1s"
log_limit = 1024
store_reserve = 1
retain_for = "1m"
retain_jobs = 1
audit_retention = "1h"
audit_entries = 100
audit_log = false
max_sessions = 16
max_pending = 1
max_pending_per_peer = 1
pending_for = "1m"
tls = false
tls_cert = "/c"
tls_key = "/k"
tls_names = ["a"]
[tokens]
life = "1m"
renew = false
[limits]
sessions_per_peer = 4
greeting = 8
greeting_per_peer = 1
hellos_per_peer = 1
handshakes = 1
unread = 1048576
runners_per_token = 1
streams = 64
handshake_time = "1s"
[access]
users = { ada = "admin" }
groups = { dev = "viewer" }
runner_tokens = "operator"
token_life = "1h"
`
	cfg := new(serverConfig)
	if err := config.Parse("server.toml", text, cfg); err != nil {
		t.Fatal(err)
	}
	got := reflect.ValueOf(cfg.server(slog.New(slog.DiscardHandler)))
	for f, v := range got.Fields() {
		if f.Type.Kind() == reflect.Func || !f.IsExported() {
			continue // no setting, but what the server asks its program to do, or its own tests'
		}
		if v.IsZero() {
			t.Errorf("daemon.Config.%s has no key", f.Name)
		}
		if f.Name == "Limits" {
			for f, v := range v.Fields() {
				if v.IsZero() {
					t.Errorf("daemon.Config.Limits.%s has no key", f.Name)
				}
			}
		}
	}
	// What is on unless it is turned off.
	cfg = new(serverConfig)
	if err := config.Parse("server.toml", "tls = true\naudit_log = true\n[tokens]\nrenew = true\n", cfg); err != nil {
		t.Fatal(err)
	}
	if c := cfg.server(nil); c.Plain || c.NoTokenRenew || c.NoAuditLog {
		t.Errorf("plain %v, not renewed %v, audit not logged %v, where all were turned on", c.Plain, c.NoTokenRenew, c.NoAuditLog)
	}
}

// A user of a host with the package may not read its configuration, and does
// without; who is to have it has to be able to read it.
func TestDefaultConfigOfOthers(t *testing.T) {
	if os.Getuid() == 0 {
		t.Skip("root may read every file; CI runs this as another user as well")
	}
	usual := filepath.Join(t.TempDir(), "server.toml")
	if err := os.WriteFile(usual, []byte("lease = \"9m\"\n"), 0); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, named string
		env         environment
		want        wire.Kind
		note        string
	}{
		{name: "passed over", note: usual},
		{name: "of a service", env: environment{"STATE_DIRECTORY=/var/lib/waypoint"}, want: wire.Denied},
		{name: "named", named: usual, want: wire.Denied},
	} {
		t.Run(c.name, func(t *testing.T) {
			var stderr strings.Builder
			a := &app{globals: new(globals), stderr: &stderr, env: c.env}
			err := a.loadConfig(c.named, usual, new(serverConfig))
			if wire.KindOf(err) != c.want || !strings.Contains(stderr.String(), c.note) {
				t.Errorf("got %v, and %q was said; want kind %q, and %q", err, stderr.String(), c.want, c.note)
			}
		})
	}
}

// Each number and each duration has a range, and what is outside of it is refused with file,
// line, key and range, when the file is read, so at a start and at a reload alike. 0 is the default.
func TestRanges(t *testing.T) {
	for _, c := range configFiles {
		for _, key := range leaves(c.empty()) {
			f := fieldOfKey(t, c.empty(), key)
			least, most, bounded := config.Range(f)
			kind := kindOfKey(t, c.empty(), key)
			if kind != "duration" && kind != "integer" {
				if bounded {
					t.Errorf("%s of %s is a %s and has a range", key, c.file, kind)
				}
				continue
			}
			if !bounded {
				t.Errorf("%s of %s has no range", key, c.file)
				continue
			}
			table, name, dotted := strings.Cut(key, ".")
			head := "# one\n"
			if dotted {
				head += "[" + table + "]\n"
			} else {
				name = table
			}
			parse := func(value string) error {
				if kind == "duration" {
					value = strconv.Quote(value)
				}
				return config.Parse(c.file, head+name+" = "+value+"\n", c.empty())
			}
			// One beyond on either side.
			beyond := func(bound string, by int64) string {
				if kind == "duration" {
					d, err := time.ParseDuration(bound)
					if err != nil {
						t.Fatal(err)
					}
					return (d + time.Duration(by)).String()
				}
				n, err := strconv.ParseInt(bound, 10, 64)
				if err != nil {
					t.Fatal(err)
				}
				return strconv.FormatInt(n+by, 10)
			}
			for _, good := range []string{least, most, beyond(least, 1), beyond(most, -1), "0"} {
				if err := parse(good); err != nil {
					t.Errorf("%s = %s: %v", key, good, err)
				}
			}
			bad := []string{beyond(most, 1), "-1"}
			if kind == "duration" {
				bad[1] = "-1ns"
			}
			if n := beyond(least, -1); n != "0" && n != "-1ns" {
				bad = append(bad, n)
			}
			for _, value := range bad {
				err := parse(value)
				want := fmt.Sprintf("read configuration: %s:%d: %s is %s, not from %s to %s", c.file, strings.Count(head, "\n")+1, key, value, least, most)
				if wire.KindOf(err) != wire.BadUsage || err.Error() != want {
					t.Errorf("%s = %s: %v\nwant %s", key, value, err, want)
				}
			}
		}
		// What is the default is no mistake where it is written.
		if err := config.Parse(c.file, c.uncommented(t), c.empty()); err != nil {
			t.Errorf("the packaged %s: %v", c.file, err)
		}
	}
}
