package main

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"github.com/alecthomas/kong"
)

// TestCommands holds the names of the commands, which are a contract.
func TestCommands(t *testing.T) {
	want := []string{
		"artifact list", "audit export", "audit list", "build", "completion",
		"context create", "context delete", "context inspect", "context list", "context rename", "context use", "context verify",
		"deploy", "deployment list", "init",
		"job cancel", "job inspect", "job list", "job retry", "job stream", "job wait", "job why",
		"login", "release list", "release release", "run",
		"runner adopt", "runner agent", "runner drain", "runner forget", "runner inspect", "runner list", "runner reject",
		"runner resume", "runner status", "runner supervisor", "runner token",
		"server bootstrap", "server reload", "server restore", "server run", "server snapshot", "server status", "server token-key rotate", "status", "up", "user delete", "user invite", "user list", "user revoke", "user set", "user token", "version",
	}
	var got []string
	for _, leaf := range model(t).Leaves(false) {
		got = append(got, strings.TrimPrefix(leaf.Path(), "waypoint "))
	}
	slices.Sort(got)
	for i := range got {
		got[i] = strings.Join(commandWords(got[i]), " ")
	}
	slices.Sort(want)
	for i := range want {
		want[i] = strings.Join(slices.Compact(strings.Fields(want[i])), " ")
	}
	if !slices.Equal(got, want) {
		t.Errorf("commands are\n%q, want\n%q", got, want)
	}
}

// TestFlags holds what every flag must have.
func TestFlags(t *testing.T) {
	_ = kong.Visit(model(t), func(node kong.Visitable, next kong.Next) error {
		if f, ok := node.(*kong.Flag); ok {
			if f.Help == "" {
				t.Errorf("--%s has no help", f.Name)
			}
			if f.IsSlice() && f.Tag.Sep != -1 {
				t.Errorf("--%s is split at %q, which may be part of a value", f.Name, f.Tag.Sep)
			}
		}
		return next(nil)
	})
}

// TestHelp asks every command for its help: on stdout, and no error.
func TestHelp(t *testing.T) {
	for _, leaf := range model(t).Leaves(true) {
		words := append(commandWords(strings.TrimPrefix(leaf.Path(), "waypoint ")), "--help")
		var stdout, stderr bytes.Buffer
		code := run(t.Context(), words, strings.NewReader(""), &stdout, &stderr, nil)
		if code != 0 || stderr.Len() != 0 || !strings.HasPrefix(stdout.String(), "Usage: waypoint ") {
			t.Errorf("waypoint %s: exit code %d, stderr %q, stdout %.60q", strings.Join(words, " "), code, &stderr, stdout.String())
		}
		if strings.Contains(stdout.String(), "release release") {
			t.Errorf("waypoint %s speaks of release release", strings.Join(words, " "))
		}
		before, everywhere, found := strings.Cut(stdout.String(), "\nFlags of every command:\n")
		if !found || strings.Contains(before, "--server-addr=ADDR") {
			t.Errorf("waypoint %s: its own flags are not before those of every command", strings.Join(words, " "))
		}
		for _, name := range []string{"  --server-addr", "  --[no-]server-tls", "  -a, --app", "  --json", "waypoint --help\n"} {
			if !strings.Contains(everywhere, name) {
				t.Errorf("waypoint %s: no %q behind its own flags", strings.Join(words, " "), name)
			}
		}
		for _, f := range leaf.Flags {
			if !f.Hidden && !strings.Contains(before, "--"+f.Name) && !strings.Contains(before, "--[no-]"+f.Name) {
				t.Errorf("waypoint %s: --%s is not among its own flags", strings.Join(words, " "), f.Name)
			}
		}
	}
}

func model(t *testing.T) *kong.Application {
	t.Helper()
	a := newApp(t.Context(), nil, new(bytes.Buffer), new(bytes.Buffer), nil)
	defer a.close()
	parser, err := a.parser(nil)
	if err != nil {
		t.Fatal(err)
	}
	return parser.Model
}
