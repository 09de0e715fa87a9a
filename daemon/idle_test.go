package daemon_test

import (
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/waypointd/waypoint/daemon"
	"github.com/waypointd/waypoint/daemon/daemontest"
	"github.com/waypointd/waypoint/mux/wire"
)

// inUse is what the process uses, in bytes: heap and stacks.
func inUse() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc + m.StackInuse)
}

// stacks counts the goroutines that stand in this module's code or yamux's.
func stacks() int {
	buf := make([]byte, 64<<20)
	n := 0
	for g := range strings.SplitSeq(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
		if strings.Contains(g, "waypoint/mux.") || strings.Contains(g, "yamux.") || strings.Contains(g, "waypoint/daemon.") {
			n++
		}
	}
	return n
}

// Idle runners are cheap, and nothing is left of those that have gone.
func TestIdleRunners(t *testing.T) {
	const budget = 50 << 10 // for the server's end of one; the runner's is in this process as well
	n := 300
	if testing.Short() {
		n = 50
	}
	s := daemontest.Start(t, daemon.Config{Logger: slog.New(slog.DiscardHandler), Heartbeat: time.Minute})
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	over := s.Serve(l)
	defer over()
	before, stacksBefore := inUse(), stacks()
	runners := make([]*daemontest.Runner, n)
	var all sync.WaitGroup
	for i := range runners {
		r := s.Runner(t, fmt.Sprintf("r%d", i), map[string]string{"os": "linux", "arch": "amd64", "hostname": "host"})
		r.Address = path
		runners[i] = r
		all.Go(func() {
			r.MustConnect()
			r.MustBegin()
		})
		if i%50 == 49 {
			all.Wait()
		}
	}
	all.Wait()
	each := (inUse() - before) / int64(n)
	t.Logf("an idle session takes %d KB at both ends together, %d goroutines", each>>10, (stacks()-stacksBefore)/n)
	if each > 2*budget && !testing.Short() { // of few, what there is only once weighs too much
		t.Errorf("%d KB for each session at both ends, may be %d", each>>10, 2*budget>>10)
	}
	for _, r := range runners {
		r.Disconnect()
	}
	for deadline := time.Now().Add(daemontest.Patience); stacks() > stacksBefore; {
		if time.Now().After(deadline) {
			buf := make([]byte, 1<<20)
			t.Fatalf("%d goroutines, %d before:\n%s", stacks(), stacksBefore, buf[:runtime.Stack(buf, true)])
		}
		time.Sleep(10 * time.Millisecond)
	}
	c := s.Client(t)
	for {
		st, err := c.ServerStatus(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if st.RunnersOnline == 0 {
			break
		}
	}
	if st, err := c.ServerStatus(t.Context()); err != nil || st.Runners[string(wire.Pending)] != n {
		t.Errorf("%+v, %v", st, err)
	}
}
