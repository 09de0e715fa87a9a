package torture

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"fmt"
	"io/fs"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/waypointd/waypoint/mux"
	"github.com/waypointd/waypoint/mux/wire"
)

// What the server may take under a flood of newcomers, and its limit of those
// that wait for adoption.
const (
	floodMemory  = 200 << 20
	floodDisk    = 32 << 20
	pendingLimit = 1000
)

// newcomer is a runner with a new key that says hello from an address of the
// host's own; with stay it also begins to work, which is to wait.
func newcomer(ctx context.Context, server, from, id string, labels map[string]string, stay bool) (*mux.Session, error) {
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		return nil, err
	}
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	conn, err := d.DialContext(ctx, "tcp", server)
	if err != nil {
		return nil, err
	}
	session, err := mux.Connect(ctx, conn, mux.Config{Software: "waypoint torture"},
		wire.Hello{Role: wire.RoleRunner, Runner: &wire.RunnerHello{ID: id, Kind: wire.KindRemote, Labels: labels, Concurrency: 1}}, key, nil)
	if err != nil || !stay {
		return session, err
	}
	st, err := session.Open(ctx, wire.MethodWork, nil)
	if err == nil {
		err = st.Send(wire.WorkEvent{Begin: &wire.WorkBegin{Concurrency: 1}})
	}
	var o wire.WorkOrder
	if err == nil {
		err = st.RecvMsg(&o)
	}
	if err != nil {
		session.Close()
		return nil, err
	}
	return session, nil
}

// TestPendingFlood has ten thousand runners ask for adoption that nobody
// knows, from a thousand addresses. The one that somebody waits for is found,
// whether it came before, between or behind them.
func TestPendingFlood(t *testing.T) {
	t.Parallel()
	many := 10_000
	if testing.Short() {
		many = 2000
	}
	ctx := bounded(t, 5*time.Minute)
	port := freePort(t)
	s := newSite(t, "--no-server-tls", "--listen", "tcp://"+port)
	s.startServer()
	s.awaitServer(ctx)
	s.startAgent() // the one that came before, by the Unix socket
	c := s.client(ctx)
	await(ctx, t, "the real runner to wait", func() error {
		r, err := c.Runner(ctx, runnerID)
		if err == nil && !r.Online {
			err = fmt.Errorf("it is offline")
		}
		return err
	})
	_, before, _ := memory(s.server.pid())

	var refused sync.Map
	var wg sync.WaitGroup
	turn := make(chan struct{}, 32)
	for n := range many {
		turn <- struct{}{}
		wg.Go(func() {
			defer func() { <-turn }()
			session, err := newcomer(ctx, port, floodAddress(n), fmt.Sprintf("flood-%d", n), nil, false)
			if err != nil {
				refused.Store(wire.KindOf(err), err)
				return
			}
			session.Close()
		})
	}
	wg.Wait()
	refused.Range(func(kind, err any) bool {
		if kind != wire.Unavailable {
			t.Errorf("a newcomer is refused as %v: %v", kind, err)
		}
		return true
	})
	s.mustAnswer(ctx, "the flood")

	// One of those that are offline makes room for a newcomer.
	late, err := newcomer(ctx, port, "127.99.0.1", "late", map[string]string{"site": "ours"}, true)
	if err != nil {
		t.Fatalf("a newcomer behind the flood: %v", err)
	}
	defer late.Close()
	st, err := c.ServerStatus(ctx)
	if err != nil || st.Runners[string(wire.Pending)] > pendingLimit {
		t.Errorf("%d wait for adoption, at most %d may, %v", st.Runners[string(wire.Pending)], pendingLimit, err)
	}
	found := s.cli(ctx, "runner", "list", "--pending", "--label", "site=ours", "--json")
	var runners []wire.Runner
	if err := json.Unmarshal([]byte(found.stdout), &runners); err != nil || len(runners) != 1 || runners[0].ID != "late" || !runners[0].Online {
		t.Errorf("the late one among them: %s", found)
	}
	for _, id := range []string{"late", runnerID} {
		if a := s.cli(ctx, "runner", "adopt", id); a.code != 0 {
			t.Errorf("adopt %s: %s", id, a)
		}
	}
	s.awaitRunner(ctx, c)

	// Where all that wait are connected, the next one is told so.
	var sessions []*mux.Session
	for n := 0; ; n++ {
		session, err := newcomer(ctx, port, fmt.Sprintf("127.1.%d.%d", n/10/250, 1+n/10%250), fmt.Sprintf("stays-%d", n), nil, true)
		if err != nil {
			if wire.KindOf(err) != wire.Unavailable || !strings.Contains(err.Error(), "waiting for adoption already") || n < pendingLimit-10 {
				t.Errorf("newcomer %d: %v", n, err)
			}
			break
		}
		if sessions = append(sessions, session); n > pendingLimit {
			t.Errorf("more than %d wait", pendingLimit)
			break
		}
	}
	rss, peak, _ := memory(s.server.pid())
	disk := diskUsage(t, s.serverState)
	t.Logf("%d newcomers, then %d that stay: peak %s before, %s after, now %s; state directory %s",
		many, len(sessions), mib(before), mib(peak), mib(rss), mib(disk))
	if peak > floodMemory && !raceBuild() || disk > floodDisk {
		t.Errorf("the flood costs %s of memory and %s of disk", mib(peak), mib(disk))
	}
	for _, session := range sessions {
		session.Close()
	}
	if a := s.cli(ctx, "run", "--runner", runnerID, "--", "true"); a.code != 0 {
		t.Errorf("a job after all that: %s", a)
	}
}

// floodAddress is one of a thousand.
func floodAddress(n int) string { return fmt.Sprintf("127.2.%d.%d", n%1000/250, 1+n%250) }

// diskUsage is the size of all files below a directory.
func diskUsage(t testing.TB, dir string) (size int64) {
	t.Helper()
	if err := filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		if info, err := e.Info(); err == nil {
			size += info.Size()
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return size
}

// freePort is an address that nobody listens on at the moment.
func freePort(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}
