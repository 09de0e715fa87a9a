package main

import (
	"testing"

	"github.com/waypointd/waypoint/cmd/internal/contexts"
	"github.com/waypointd/waypoint/mux/wire"
)

func TestChooseServer(t *testing.T) {
	const system = "unix:///run/waypoint/waypoint.sock"
	for _, c := range []struct {
		name   string
		wish   wish
		usual  string // the default context
		system bool
		want   string // address, "local", or a kind of error
		from   string
	}{
		{"flag over all", wish{flag: "unix:///a", env: "unix:///b", contextFlag: "x", contextEnv: "y"}, "z", true, "unix:///a", "--server-addr"},
		{"environment over contexts", wish{env: "unix:///b", contextFlag: "x", contextEnv: "y"}, "z", true, "unix:///b", "WAYPOINT_SERVER_ADDR"},
		{"named context over the environment's", wish{contextFlag: "x", contextEnv: "y"}, "z", true, "unix:///x", `context "x"`},
		{"environment's context over the default", wish{contextEnv: "y"}, "z", true, "unix:///y", `context "y"`},
		{"default context over the system socket", wish{}, "z", true, "unix:///z", `context "z"`},
		{"system socket", wish{}, "", true, system, "the system socket"},
		{"nothing", wish{}, "", false, "local", ""},
		{"forced local", wish{noServer: true}, "z", true, "local", ""},
		{"forced local over environment", wish{noServer: true, env: "unix:///b", contextEnv: "y"}, "z", true, "local", ""},
		{"contradiction", wish{noServer: true, flag: "unix:///a"}, "", false, "usage", ""},
		{"contradiction with a context", wish{noServer: true, contextFlag: "x"}, "", false, "usage", ""},
		{"host", wish{flag: "example.org"}, "", false, "tcp://example.org:9701", "--server-addr"},
		{"host and port", wish{env: "example.org:1"}, "", false, "tcp://example.org:1", "WAYPOINT_SERVER_ADDR"},
		{"bad flag", wish{flag: "http://x"}, "", true, "usage", "--server-addr"},
		{"bad environment", wish{env: "unix://relative"}, "", true, "usage", "WAYPOINT_SERVER_ADDR"},
		{"no such context", wish{contextFlag: "none"}, "z", true, "not_found", ""},
		{"no such context in the environment", wish{contextEnv: "none"}, "z", true, "not_found", ""},
		{"no such default context", wish{}, "none", true, "not_found", ""},
		{"a context that is not used need not be there", wish{flag: "unix:///a", contextFlag: "none"}, "none", true, "unix:///a", "--server-addr"},
		{"context with a bad address", wish{contextFlag: "bad"}, "", true, "usage", `context "bad"`},
	} {
		t.Run(c.name, func(t *testing.T) {
			ch, err := c.wish.choose(surroundings{
				load: func(name string) (contexts.Context, error) {
					switch name {
					case "none":
						return contexts.Context{}, wire.Errorf(wire.NotFound, "context %q not found", name)
					case "bad":
						return contexts.Context{ServerAddr: "http://x"}, nil
					}
					return contexts.Context{ServerAddr: "unix:///" + name, Token: "of " + name}, nil
				},
				usual:        func() (string, error) { return c.usual, nil },
				systemSocket: func() bool { return c.system },
			})
			got := ch.addr.String()
			switch {
			case err != nil:
				got = string(wire.KindOf(err))
			case ch.local:
				got = "local"
			}
			if got != c.want || ch.from != c.from {
				t.Errorf("chosen %s from %q (%v), want %s from %q", got, ch.from, err, c.want, c.from)
			}
			// What is known of one server is never used for another.
			if (ch.known.Token != "") != (err == nil && ch.context != "") || ch.known.Token != "" && ch.known.Token != "of "+ch.context {
				t.Errorf("chosen %s with the token %q of context %q", got, ch.known.Token, ch.context)
			}
		})
	}
}
