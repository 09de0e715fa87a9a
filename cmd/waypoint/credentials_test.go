package main

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/waypointd/waypoint/cmd/internal/contexts"
	"github.com/waypointd/waypoint/mux"
	"github.com/waypointd/waypoint/mux/wire"
)

// Fingerprints as a server's could be.
const (
	pinA = "SHA256:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
	pinB = "SHA256:BBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBA"
	pinC = "SHA256:CCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCA"
)

// tokenOf has the form of a person's token that carries a pin.
func tokenOf(pin string) string {
	return wire.TokenParts{Kind: wire.UserToken, Claims: []byte(`{"user":"me","server":"` + pin + `"}`)}.String()
}

// appWith is a run of the program with these words and this environment.
func appWith(t *testing.T, stdin string, env []string, args ...string) (*app, *bytes.Buffer) {
	t.Helper()
	stderr := new(bytes.Buffer)
	a := newApp(t.Context(), strings.NewReader(stdin), new(bytes.Buffer), stderr, env)
	t.Cleanup(a.close)
	parser, err := a.parser([]string{"version"})
	if err == nil {
		_, err = parser.Parse(append(args, "version"))
	}
	if err != nil {
		t.Fatal(err)
	}
	return a, stderr
}

func TestGivenToken(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	env := []string{tokenVariable + "=of the environment"}
	for _, c := range []struct {
		name       string
		env        []string
		stdin      string
		args       []string
		text, from string
		kind       wire.Kind
		says       string
	}{
		{"none", nil, "", nil, "", tokenVariable, "", ""},
		{"environment", env, "", nil, "of the environment", tokenVariable, "", ""},
		{"flag over environment", env, "", []string{"--token", " x\n"}, "x", "--token", "", ""},
		{"file over environment", env, "", []string{"--token-file", file("good", "\n x \r\n", 0o600)}, "x", "--token-file", "", ""},
		{"standard input", env, "x\n", []string{"--token-file", "-"}, "x", "--token-file", "", ""},
		{"both", nil, "", []string{"--token", "x", "--token-file", "y"}, "", "", wire.BadUsage, "exclude each other"},
		{"no file", env, "", []string{"--token-file", filepath.Join(dir, "none")}, "", "", wire.BadUsage, "none"},
		{"a directory", env, "", []string{"--token-file", dir}, "", "", wire.BadUsage, "directory"},
		{"empty file", env, "", []string{"--token-file", file("empty", " \n", 0o600)}, "", "", wire.Unauthenticated, "is empty"},
		{"nothing on standard input", env, "", []string{"--token-file", "-"}, "", "", wire.Unauthenticated, "standard input is empty"},
		{"endless", env, strings.Repeat("x", 1<<20), []string{"--token-file", "-"}, "", "", wire.Unauthenticated, "too long"},
		{"no endless file", env, "", []string{"--token-file", "/dev/zero"}, "", "", wire.Unauthenticated, "too long"},
	} {
		t.Run(c.name, func(t *testing.T) {
			a, stderr := appWith(t, c.stdin, c.env, c.args...)
			for range 2 { // the second time standard input is at its end
				text, from, err := a.givenToken()
				if wire.KindOf(err) != c.kind || err == nil && (text != c.text || from != c.from) {
					t.Fatalf("givenToken = %q from %s, %v; want %q from %s, kind %q", text, from, err, c.text, c.from, c.kind)
				}
				if err != nil {
					if !strings.Contains(err.Error(), c.says) {
						t.Errorf("error %q, want %q", err, c.says)
					}
					break
				}
			}
			if stderr.Len() != 0 {
				t.Errorf("said %q", stderr)
			}
		})
	}
	a, stderr := appWith(t, "", nil, "--token-file", file("open", "x", 0o644))
	if text, _, err := a.givenToken(); text != "x" || err != nil || !strings.Contains(stderr.String(), "(mode 0644)") {
		t.Errorf("a file that others can read: %q, %v, said %q", text, err, stderr)
	}
}

func TestTrust(t *testing.T) {
	yes, no := true, false
	for _, c := range []struct {
		name  string
		env   []string
		args  []string
		known contexts.Context
		pins  []string
		want  mux.Trust
		kind  wire.Kind
	}{
		{name: "nothing"},
		{name: "flag", args: []string{"--no-server-tls"}, want: mux.Trust{Plain: true}},
		{name: "environment", env: []string{"WAYPOINT_SERVER_TLS=0"}, want: mux.Trust{Plain: true}},
		{name: "context", known: contexts.Context{TLS: &no}, want: mux.Trust{Plain: true}},
		{name: "environment over context", env: []string{"WAYPOINT_SERVER_TLS=true"}, known: contexts.Context{TLS: &no}},
		{name: "flag over environment", args: []string{"--server-tls"}, env: []string{"WAYPOINT_SERVER_TLS=false"}},
		{name: "the other flag over environment", args: []string{"--no-server-tls"}, env: []string{"WAYPOINT_SERVER_TLS=1"}, known: contexts.Context{TLS: &yes}, want: mux.Trust{Plain: true}},
		{name: "no verification", args: []string{"--server-tls-skip-verify"}, want: mux.Trust{SkipVerify: true}},
		{name: "no verification by the environment", env: []string{"WAYPOINT_SERVER_TLS_SKIP_VERIFY=1"}, want: mux.Trust{SkipVerify: true}},
		{name: "no verification by the context", known: contexts.Context{TLSSkipVerify: true}, want: mux.Trust{SkipVerify: true}},
		{name: "verification against the context", args: []string{"--server-tls-skip-verify=false"}, known: contexts.Context{TLSSkipVerify: true}},
		{name: "authority", env: []string{"WAYPOINT_SERVER_TLS_CA=/e"}, known: contexts.Context{TLSCA: "/c"}, want: mux.Trust{CAFile: "/e"}},
		{name: "authority by flag", args: []string{"--server-tls-ca=/f"}, env: []string{"WAYPOINT_SERVER_TLS_CA=/e"}, want: mux.Trust{CAFile: "/f"}},
		{name: "pins of all sides", known: contexts.Context{TLSFingerprint: pinA}, pins: []string{pinB, ""}, want: mux.Trust{Pins: []string{pinA, pinB}}},
		{name: "pin over the context's", args: []string{"--server-tls-fingerprint", pinC}, known: contexts.Context{TLSFingerprint: pinA}, pins: []string{pinB}, want: mux.Trust{Pins: []string{pinC, pinB}}},
		{name: "pin of the environment", env: []string{"WAYPOINT_SERVER_TLS_FINGERPRINT=" + pinC}, want: mux.Trust{Pins: []string{pinC}}},
		{name: "no pin", args: []string{"--server-tls-fingerprint", "SHA256:x"}, kind: wire.BadUsage},
		{name: "no prefix", args: []string{"--server-tls-fingerprint", pinA[7:]}, kind: wire.BadUsage},
	} {
		t.Run(c.name, func(t *testing.T) {
			a, _ := appWith(t, "", c.env, c.args...)
			got, err := a.trust(c.known, c.pins...)
			if wire.KindOf(err) != c.kind {
				t.Fatalf("trust: %v, want kind %q", err, c.kind)
			}
			if err == nil && (got.Plain != c.want.Plain || got.SkipVerify != c.want.SkipVerify || got.CAFile != c.want.CAFile || !slices.Equal(got.Pins, c.want.Pins)) {
				t.Errorf("trust = %+v, want %+v", got, c.want)
			}
		})
	}
}

// TestCredentials: whose token is shown to which server.
func TestCredentials(t *testing.T) {
	server := choice{addr: mux.Address{Network: "tcp", Path: "h:1"}, from: `context "c"`, known: contexts.Context{Token: tokenOf(pinA)}}
	for _, c := range []struct {
		name string
		env  []string
		args []string
		ch   choice
		pin  string
		kind wire.Kind
	}{
		{"context", nil, nil, server, pinA, ""},
		{"environment over context", []string{tokenVariable + "=" + tokenOf(pinB)}, nil, server, pinB, ""},
		{"flag over environment", []string{tokenVariable + "=" + tokenOf(pinB)}, []string{"--token", tokenOf(pinC)}, server, pinC, ""},
		{"no token", nil, nil, choice{addr: server.addr}, "", ""},
		{"no token in the environment", []string{tokenVariable + "=nonsense"}, nil, server, "", wire.Unauthenticated},
		{"no token by flag", nil, []string{"--token", tokenOf(pinA) + "x"}, server, "", wire.Unauthenticated},
		{"no token in the context", nil, nil, choice{known: contexts.Context{Token: "x"}}, "", wire.Unauthenticated},
		{"local mode asks itself", []string{tokenVariable + "=nonsense"}, nil, choice{local: true}, "", ""},
		{"local mode with a flag", nil, []string{"--token", "x"}, choice{local: true}, "", wire.BadUsage},
		{"local mode with a file", nil, []string{"--token-file", "x"}, choice{local: true}, "", wire.BadUsage},
	} {
		t.Run(c.name, func(t *testing.T) {
			a, _ := appWith(t, "", c.env, c.args...)
			ch := c.ch
			err := a.credentials(&ch)
			if wire.KindOf(err) != c.kind {
				t.Fatalf("credentials: %v, want kind %q", err, c.kind)
			}
			if err != nil && strings.Contains(err.Error(), "wpusr_") {
				t.Errorf("the token is shown: %v", err)
			}
			want := ""
			var pins []string
			if c.pin != "" {
				want, pins = tokenOf(c.pin), []string{c.pin}
			}
			if err == nil && (ch.token != want || !slices.Equal(ch.trust.Pins, pins)) {
				t.Errorf("token %q, pins %v; want %q, %v", ch.token, ch.trust.Pins, want, pins)
			}
		})
	}
}

func TestContextName(t *testing.T) {
	for text, want := range map[string]string{
		"build.example.org":              "build.example.org",
		"tcp://build.example.org:9701":   "build.example.org",
		"build.example.org:1":            "build.example.org-1",
		"10.0.0.1":                       "10.0.0.1",
		"::1":                            "1",
		"[fe80::1]:1":                    "fe80--1-1",
		"unix:///run/waypoint/main.sock": "main",
		"unix:///x/.sock":                "server",
		strings.Repeat("a", 90):          strings.Repeat("a", 63),
	} {
		addr, err := mux.ParseAddress(text)
		if err != nil {
			t.Fatal(err)
		}
		if got := contextName(addr); got != want || contexts.CheckName(got) != nil {
			t.Errorf("contextName(%s) = %q, want %q", text, got, want)
		}
	}
}
