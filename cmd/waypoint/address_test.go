package main

import (
	"testing"

	"github.com/waypointd/waypoint/mux/wire"
)

func TestChooseServer(t *testing.T) {
	const none = ""
	for _, c := range []struct {
		name      string
		flag, env string
		noServer  bool
		system    bool
		want      string // address, "local", or a kind of error
		from      string
	}{
		{"flag over all", "unix:///a", "unix:///b", false, true, "unix:///a", "--server-addr"},
		{"environment over system", none, "unix:///b", false, true, "unix:///b", "WAYPOINT_SERVER_ADDR"},
		{"system socket", none, none, false, true, "unix:///run/waypoint/waypoint.sock", "the system socket"},
		{"nothing", none, none, false, false, "local", ""},
		{"forced local", none, none, true, true, "local", ""},
		{"forced local over environment", none, "unix:///b", true, true, "local", ""},
		{"contradiction", "unix:///a", none, true, false, "usage", ""},
		{"host", "example.org", none, false, false, "tcp://example.org:9701", "--server-addr"},
		{"host and port", none, "example.org:1", false, false, "tcp://example.org:1", "WAYPOINT_SERVER_ADDR"},
		{"bad flag", "http://x", none, false, true, "usage", "--server-addr"},
		{"bad environment", none, "unix://relative", false, true, "usage", "WAYPOINT_SERVER_ADDR"},
	} {
		t.Run(c.name, func(t *testing.T) {
			ch, err := chooseServer(c.flag, c.env, c.noServer, func() bool { return c.system })
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
		})
	}
}
