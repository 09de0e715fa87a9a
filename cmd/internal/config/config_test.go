package config

import (
	"errors"
	"io/fs"
	"path/filepath"
	"strings"
	"testing"

	"github.com/waypointd/waypoint/mux/wire"
)

type file struct {
	StateDir string            `toml:"state_dir"`
	Lease    wire.Duration     `toml:"lease"`
	Listen   []string          `toml:"listen"`
	Jobs     int               `toml:"retain_jobs"`
	Labels   map[string]string `toml:"labels"`
	TLS      *bool             `toml:"tls,omitempty"`
	Journal  struct {
		Renew *bool         `toml:"renew"`
		Life  wire.Duration `toml:"life"`
	} `toml:"journal"`
}

func TestParse(t *testing.T) {
	var f file
	err := Parse("x.toml", "state_dir = \"/s\"\nlease = \"2m\"\nlisten = [\"a\", \"b\"]\ntls = false\n[labels]\nanything = \"goes\"\n[journal]\nrenew = true\nlife = \"3s\"\n", &f)
	if err != nil {
		t.Fatal(err)
	}
	if f.StateDir != "/s" || f.Lease != wire.Duration(2*60e9) || len(f.Listen) != 2 || f.Labels["anything"] != "goes" {
		t.Errorf("Parse = %+v", f)
	}
	if f.TLS == nil || *f.TLS || f.Journal.Renew == nil || !*f.Journal.Renew || f.Journal.Life != wire.Duration(3e9) {
		t.Errorf("Parse = %+v", f)
	}
	var open file
	if err := Parse("x.toml", "journal.life = \"1s\"\n", &open); err != nil || open.TLS != nil || open.Journal.Renew != nil {
		t.Errorf("Parse = %+v, %v: what is not in the file is not left open", open, err)
	}
}

func TestMistakes(t *testing.T) {
	for _, c := range []struct{ name, text, message, hint string }{
		{"unknown key", "state_dir = \"/s\"\n\nleese = \"2m\"\n", `x.toml:3: unknown key "leese"`, `nearest known key is "lease"`},
		{"unknown table", "lease = \"2m\"\n[tokens]\nrenew = false\n", `x.toml:2: unknown key "tokens"`, "known keys are: state_dir, lease"},
		{"nothing near", "q = 1\n", `x.toml:1: unknown key "q"`, "known keys are"},
		{"syntax", "lease = \"2m\"\nstate_dir = \n", "x.toml:2: ", ""},
		{"type", "\nretain_jobs = \"many\"\n", `x.toml:2: retain_jobs is the string "many", not a whole number`, ""},
		{"fraction", "retain_jobs = 0.5\n", "x.toml:1: retain_jobs is the number 0.5, not a whole number", ""},
		{"no list", "listen = \"a\"\n", `x.toml:1: listen is the string "a", not a list of strings`, ""},
		{"list of others", "listen = [1]\n", `x.toml:1: listen is a list, not a list of strings`, ""},
		{"no table", "labels = [\"a=b\"]\n", "x.toml:1: labels is a list, not a table of strings", ""},
		{"table of others", "[labels]\na = 1\n", "x.toml:1: labels is a table, not a table of strings", ""},
		{"bare duration", "lease = 5\n", "x.toml:1: lease is the number 5, not a duration in quotes", ""},
		{"no truth", "tls = \"no\"\n", `x.toml:1: tls is the string "no", not true or false`, ""},
		{"unknown in a table", "lease = \"2m\"\n[journal]\n\nrenews = true\n", `x.toml:4: unknown key "journal.renews"`, `nearest known key is "journal.renew"`},
		{"type in a table", "lease = \"2m\"\n[journal]\nlife = \"1s\"\nrenew = 1\n", "x.toml:4: journal.renew is the number 1, not true or false", ""},
		{"no table either", "journal = true\n", "x.toml:1: journal is true, not a table", ""},
		{"list of tables", "[[journal]]\nrenew = true\n", "journal is a list, not a table", ""},
		{"duration", "lease = \"soon\"\n", "x.toml:1: lease: ", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := Parse("x.toml", c.text, new(file))
			we, ok := errors.AsType[*wire.Error](err)
			if !ok || we.Kind != wire.BadUsage {
				t.Fatalf("Parse: %v, want an error of kind usage", err)
			}
			if !strings.Contains(we.Message, c.message) || !strings.Contains(we.Hint, c.hint) {
				t.Errorf("Parse: %q, hint %q; want %q, hint %q", we.Message, we.Hint, c.message, c.hint)
			}
			if strings.Contains(we.Message, "\n") {
				t.Errorf("message of several lines: %q", we.Message)
			}
		})
	}
}

func TestLoadDirectory(t *testing.T) {
	err := Load(t.TempDir(), new(file))
	if wire.KindOf(err) != wire.BadUsage {
		t.Errorf("Load of a directory: %v", err)
	}
}

func TestLoadMissing(t *testing.T) {
	if err := Load(filepath.Join(t.TempDir(), "none.toml"), new(file)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Load of no file: %v", err)
	}
}
