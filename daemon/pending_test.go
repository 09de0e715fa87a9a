package daemon_test

import (
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/waypointd/waypoint/daemon"
	"github.com/waypointd/waypoint/daemon/daemontest"
	"github.com/waypointd/waypoint/mux/wire"
)

// offline waits until the server has noticed that a runner has gone.
func offline(t *testing.T, s *daemontest.Server, r *daemontest.Runner) {
	t.Helper()
	r.Disconnect()
	for c := s.Client(t); inspect(t, c, r.Hello.ID).Online; {
	}
}

// Past the limit of one peer its oldest offline one makes room; where none is
// offline, the newcomer is refused with a hint. Admitted ones do not count.
func TestPendingOfOnePeer(t *testing.T) {
	s := daemontest.Start(t, daemon.Config{MaxPendingPerPeer: 2})
	c := s.Client(t)
	a, b := connected(t, s, "a", nil), connected(t, s, "b", nil)
	err := s.Runner(t, "c", nil).Connect()
	wantKind(t, err, wire.Unavailable)
	if !strings.Contains(fmt.Sprintf("%+v", err), "2 runners of this peer") {
		t.Errorf("refused with %q", err)
	}
	connected(t, s, "with-token", nil, s.Token(t, wire.RunnerTokenRequest{}))
	back(t, a) // who is known may come back
	offline(t, s, b)
	offline(t, s, a)
	third := connected(t, s, "c", nil)
	_, err = c.Runner(t.Context(), "b")
	wantKind(t, err, wire.NotFound) // it was seen longer ago than a
	inspect(t, c, "a")
	third.MustAdopt()
	connected(t, s, "d", nil)
	inspect(t, c, "a")
}

// As many newcomers as may come leave no more records than the limit; a real
// one is seen among them, page by page.
func TestFloodOfNewcomers(t *testing.T) {
	const limit = 100
	s := daemontest.Start(t, daemon.Config{MaxPending: limit, Logger: slog.New(slog.DiscardHandler)})
	c := s.Client(t)
	real := connected(t, s, "real", zone)
	n := 1000
	if testing.Short() {
		n = 300
	}
	for i := range n {
		r := s.Runner(t, fmt.Sprintf("flood-%04d", i), nil)
		r.MustConnect()
		r.Disconnect()
	}
	st, err := c.ServerStatus(t.Context())
	if err != nil || st.Runners["pending"] != limit {
		t.Fatalf("%v, %v", st.Runners, err)
	}
	found, after, pages := 0, "", 0
	for {
		page, err := c.Runners(t.Context(), wire.RunnerFilter{State: wire.Pending, Limit: 30, After: after})
		if err != nil {
			t.Fatal(err)
		}
		if len(page) == 0 {
			break
		}
		pages++
		for _, r := range page {
			found++
			if r.ID == "real" && (!r.Online || r.Labels["zone"] != "east" || r.Problem != wire.NoToken || !strings.HasPrefix(r.Peer, "uid ")) {
				t.Errorf("listed as %+v", r)
			}
			after = r.ID
		}
	}
	if found != limit || pages != 4 {
		t.Errorf("%d listed on %d pages", found, pages)
	}
	real.MustAdopt()
	gets(t, c, real)
}

// One token for any id does not bring runners for ever; one for an id, and who is
// known, is not counted, and who is forgotten makes room.
func TestRunnersOfOneToken(t *testing.T) {
	s := daemontest.Start(t, daemon.Config{Limits: daemon.Limits{RunnersPerToken: 2}})
	c := s.Client(t)
	any := s.Token(t, wire.RunnerTokenRequest{})
	a := connected(t, s, "a", nil, any)
	connected(t, s, "b", nil, any)
	r := s.Runner(t, "c", nil)
	r.Show(any)
	err := r.Connect()
	wantKind(t, err, wire.Unavailable)
	if !strings.Contains(fmt.Sprintf("%+v", err), "2 runners have come with this token") {
		t.Errorf("refused with %q", err)
	}
	back(t, a)
	connected(t, s, "c", nil, s.Token(t, wire.RunnerTokenRequest{ID: "c"}))
	connected(t, s, "d", nil, s.Token(t, wire.RunnerTokenRequest{}))
	if _, err := c.Forget(t.Context(), "b"); err != nil {
		t.Fatal(err)
	}
	connected(t, s, "e", nil, any)
}
