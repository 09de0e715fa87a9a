package main

import (
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/waypointd/waypoint/daemon"
)

func TestHasPassword(t *testing.T) {
	for store, want := range map[string]bool{
		"": false, "waypoint.db": false, "/srv/a:b@c/waypoint.db": false, "postgres://waypoint@db/waypoint": false, "postgres:///waypoint?host=/run/postgresql": false,
		"postgres://waypoint:hush@db/waypoint": true, "postgres://waypoint:@db/waypoint": true, "postgresql://db/waypoint?user=a&password=hush": true,
		"postgres://db/waypoint?sslkey=k&sslpassword=hush": true,
	} {
		if got := hasPassword(store); got != want {
			t.Errorf("hasPassword(%q) = %v", store, got)
		}
	}
}

// A file with the database's password is not for operators to read: those who may
// open the operators' socket by its group.
func TestReadersOfPassword(t *testing.T) {
	dir := t.TempDir()
	listener := func(name string, mode os.FileMode) net.Listener {
		t.Helper()
		path := filepath.Join(dir, name)
		l, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		return l
	}
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	operators, private := []net.Listener{tcp, listener("operators", 0o660)}, []net.Listener{tcp, listener("private", 0o600)}
	runners := []net.Listener{daemon.Listener{Listener: listener("runners", 0o660), Runners: true}}
	file := filepath.Join(dir, "server.toml")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name      string
		file      string
		mode      os.FileMode
		listeners []net.Listener
		who       string // "": nothing is said
	}{
		{"the owner's", file, 0o600, operators, ""},
		{"the operators'", file, 0o640, operators, "operators"},
		{"everybody's", file, 0o644, operators, "everybody"},
		{"everybody's, with no operators", file, 0o604, private, "everybody"},
		{"of a group that opens no socket", file, 0o640, private, ""},
		{"of the runners' group", file, 0o640, runners, ""},
		{"without a password", "", 0o644, operators, ""},
		{"gone", file + ".gone", 0o644, operators, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			if err := os.Chmod(file, c.mode); err != nil {
				t.Fatal(err)
			}
			var said strings.Builder
			warnOfReaders(slog.New(slog.NewTextHandler(&said, nil)), c.file, c.listeners)
			if c.who == "" && said.Len() > 0 || c.who != "" && (!strings.Contains(said.String(), "level=WARN") || !strings.Contains(said.String(), "who="+c.who)) {
				t.Errorf("it says %q, and should speak of %q", said.String(), c.who)
			}
		})
	}
}
