package daemon_test

import (
	"strings"
	"testing"
	"time"

	"github.com/waypointd/waypoint/daemon"
	"github.com/waypointd/waypoint/daemon/daemontest"
	"github.com/waypointd/waypoint/mux/wire"
)

// The status says which limits hold, of now, and how often each was met.
func TestLimitsAreShown(t *testing.T) {
	began := time.Now().Add(-time.Second)
	s := daemontest.Start(t, daemon.Config{Limits: daemon.Limits{RunnersPerToken: 1, Unread: 1 << 20}})
	c := s.Client(t)
	shown := func() map[string]wire.PeerLimit {
		t.Helper()
		st, err := c.ServerStatus(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		list := map[string]wire.PeerLimit{}
		for _, l := range st.Limits {
			list[l.Name] = l
		}
		return list
	}
	for _, l := range shown() {
		if l.Most <= 0 || l.Times != 0 || !l.Last.IsZero() {
			t.Errorf("before anything happens: %+v", l)
		}
	}
	any := s.Token(t, wire.RunnerTokenRequest{})
	connected(t, s, "a", nil, any)
	for n := int64(1); n <= 3; n++ {
		r := s.Runner(t, "b", nil)
		r.Show(any)
		wantKind(t, r.Connect(), wire.Unavailable)
		if l := shown()["limits.runners_per_token"]; l.Most != 1 || l.Times != n || l.Last.Before(began) {
			t.Errorf("after %d refusals: %+v", n, l)
		}
	}
	s.Reload(func(c *daemon.Config) { c.Limits.RunnersPerToken, c.Limits.SessionsPerPeer, c.MaxPending = 2, 77, 33 })
	now := shown()
	for name, most := range map[string]int64{"limits.runners_per_token": 2, "limits.sessions_per_peer": 77, "max_pending": 33, "limits.unread": 1 << 20} {
		if now[name].Most != most {
			t.Errorf("after the reload: %+v, want %d", now[name], most)
		}
	}
	if l := now["limits.runners_per_token"]; l.Times != 3 {
		t.Errorf("the reload has forgotten: %+v", l)
	}
	connected(t, s, "b", nil, any)
	for name := range now {
		if name != "open_files" && name != "streams" && name != "max_sessions" && !strings.HasPrefix(name, "max_pending") && !strings.HasPrefix(name, "limits.") {
			t.Errorf("%q is no key of the configuration", name)
		}
	}
}
