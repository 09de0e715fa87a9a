package daemon_test

import (
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/waypointd/waypoint/daemon"
	"github.com/waypointd/waypoint/daemon/daemontest"
	"github.com/waypointd/waypoint/mux"
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
		if name != "open_files" && name != "max_sessions" && !strings.HasPrefix(name, "max_pending") && !strings.HasPrefix(name, "limits.") {
			t.Errorf("%q is no key of the configuration", name)
		}
	}
}

// Who has more calls open at once than one session may loses it, and who has as
// many does not; nor does one that says nothing stay longer than it may.
func TestLimitsOfOneSession(t *testing.T) {
	const most = 64
	s := daemontest.Start(t, daemon.Config{Limits: daemon.Limits{Streams: most}})
	r := connected(t, s, "r1", nil, s.Token(t, wire.RunnerTokenRequest{}))
	conn, err := s.Dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	person, err := mux.Connect(t.Context(), conn, mux.Config{MaxStreams: 2 * most}, wire.Hello{Role: wire.RoleClient}, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer person.Close()
	for session, has := range map[*mux.Session]int{r.Session: 1, person: 0} { // a work stream
		for has++; has <= most+1; has++ {
			if _, err := session.Open(t.Context(), wire.MethodBlobPut, nil); err != nil { // which waits for what is put
				t.Fatal(err)
			}
			if has == most {
				if err := session.Err(); err != nil {
					t.Fatalf("with %d calls: %v", has, err)
				}
			}
		}
		select {
		case <-session.Done():
		case <-time.After(daemontest.Patience):
			t.Fatalf("a session has %d calls open", most+1)
		}
	}
	st, err := s.Client(t).ServerStatus(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if i := slices.IndexFunc(st.Limits, func(l wire.PeerLimit) bool { return l.Name == "limits.streams" }); i < 0 || st.Limits[i].Most != most || st.Limits[i].Times != 2 {
		t.Errorf("%+v", st.Limits)
	}

	s.Reload(func(c *daemon.Config) { c.Limits.HandshakeTime = 50 * time.Millisecond })
	silent, err := s.Dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	silent.SetReadDeadline(time.Now().Add(5 * time.Second)) // half of the default
	if _, err := io.Copy(io.Discard, silent); err != nil {
		t.Errorf("one that says nothing: %v", err)
	}
	for _, bad := range []daemon.Limits{{Streams: most - 1}, {Streams: -1}, {HandshakeTime: -1}} {
		if _, err := (daemon.Config{Limits: bad}).Effective(); wire.KindOf(err) != wire.BadUsage {
			t.Errorf("%+v: %v", bad, err)
		}
	}
}
