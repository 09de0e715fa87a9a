package daemon_test

import (
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

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

// said is a log that hands over its lines; those that nobody takes are lost.
type said chan string

func (s said) Write(p []byte) (int, error) {
	select {
	case s <- string(p):
	default:
	}
	return len(p), nil
}

// await returns the first line with all of the words in it.
func (s said) await(t *testing.T, words ...string) {
	t.Helper()
	late := time.After(daemontest.Patience)
next:
	for {
		select {
		case line := <-s:
			for _, w := range words {
				if !strings.Contains(line, w) {
					continue next
				}
			}
			return
		case <-late:
			t.Fatalf("the log does not say %q", words)
		}
	}
}

// Who is refused for a limit of runners is told so himself; an administrator reads it
// in the log.
func TestLimitsOfRunnersAreSaid(t *testing.T) {
	log := make(said, 1000)
	s := daemontest.Start(t, daemon.Config{
		MaxPendingPerPeer: 1, Limits: daemon.Limits{RunnersPerToken: 1}, Logger: slog.New(slog.NewTextHandler(log, nil)),
	})
	any := s.Token(t, wire.RunnerTokenRequest{})
	connected(t, s, "a", nil, any)
	second := s.Runner(t, "b", nil)
	second.Show(any)
	wantKind(t, second.Connect(), wire.Unavailable)
	log.await(t, "limit reached", "limit=runners_per_token", "most=1", `peer="uid `)

	connected(t, s, "c", nil)
	wantKind(t, s.Runner(t, "d", nil).Connect(), wire.Unavailable)
	log.await(t, "limit reached", "limit=max_pending_per_peer", "most=1", `peer="uid `)

	s.Reload(func(c *daemon.Config) { c.MaxPending, c.MaxPendingPerPeer = 1, 10 })
	wantKind(t, s.Runner(t, "e", nil).Connect(), wire.Unavailable)
	log.await(t, "limit reached", "limit=max_pending ", "most=1", `peer="uid `)
}
