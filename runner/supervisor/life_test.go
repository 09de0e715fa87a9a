package supervisor

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/waypointd/waypoint/mux"
	"github.com/waypointd/waypoint/mux/wire"
)

// lived is a supervisor's life in this process, with a socket.
type lived struct {
	dir   string
	leave context.CancelFunc
	hurry chan struct{}
	told  chan ProcessStatus
	ended chan error
}

func live(t *testing.T, drain time.Duration) (*lived, Jobs) {
	t.Helper()
	ctx, leave := context.WithCancel(context.Background())
	l := &lived{dir: t.TempDir(), leave: leave, hurry: make(chan struct{}), told: make(chan ProcessStatus, 1000), ended: make(chan error, 1)}
	go func() {
		l.ended <- Run(ctx, ProcessConfig{
			Dir: l.dir, Drain: drain, Hurry: l.hurry, Version: "7.8.9",
			Notify: func(st ProcessStatus) { l.told <- st },
		})
	}()
	if st := <-l.told; st.Running != 0 || st.Leaving || st.Isolation == "" {
		t.Errorf("at first it said %+v", st)
	}
	t.Cleanup(func() {
		leave()
		if err := <-l.ended; err != nil {
			t.Error(err)
		}
		l.ended <- nil
	})
	j, err := Connect(t.Context(), filepath.Join(l.dir, SocketFile))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { j.Close() })
	return l, j
}

// say waits until it has said something of that kind.
func (l *lived) say(t *testing.T, what string, is func(ProcessStatus) bool) ProcessStatus {
	t.Helper()
	limit := time.After(20 * time.Second)
	for {
		select {
		case st := <-l.told:
			if is(st) {
				return st
			}
		case <-limit:
			t.Fatal("it never said: " + what)
		}
	}
}

// watched are the events of a Watch, until it ends.
func watched(t *testing.T, j Jobs) (events chan Event, over chan error) {
	t.Helper()
	events, over = make(chan Event, 1000), make(chan error, 1)
	var wg sync.WaitGroup
	wg.Go(func() {
		defer close(events)
		over <- j.Watch(t.Context(), func(e Event) { events <- e })
	})
	t.Cleanup(wg.Wait)
	return events, over
}

const untilGo = "while [ ! -e go ]; do sleep 0.01; done; echo on"

// It waits for what runs, says so to everybody, and starts nothing more; the
// ends are told before it is gone.
func TestLeaving(t *testing.T) {
	l, j := live(t, time.Hour)
	if j.Version() != "7.8.9" || j.PID() != os.Getpid() {
		t.Errorf("it is %q, process %d", j.Version(), j.PID())
	}
	s := sh(t, untilGo)
	start(t, j, s)
	events, over := watched(t, j)
	l.leave()
	st := l.say(t, "that it is leaving", func(st ProcessStatus) bool { return st.Leaving })
	if st.Running != 1 || st.Left <= 0 || st.Left > time.Hour {
		t.Errorf("it said %+v", st)
	}
	for e := range events {
		if e.Leaving {
			break
		}
	}
	if err := j.Start(t.Context(), sh(t, "true")); err == nil || err.Error() != ErrLeaving.Error() || wire.KindOf(err) != wire.Unavailable {
		t.Errorf("a start was answered with %v", err)
	}
	// One that comes now is told as well.
	late, err := Connect(t.Context(), filepath.Join(l.dir, SocketFile))
	if err != nil {
		t.Fatal(err)
	}
	defer late.Close()
	lateEvents, lateOver := watched(t, late)
	for e := range lateEvents {
		if e.Leaving {
			break
		}
	}
	if err := os.WriteFile(filepath.Join(s.WorkDir, "go"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	told := false
	for e := range events {
		told = told || e.JobRef == s.JobRef && e.Ended
	}
	if !told {
		t.Error("the end was not told")
	}
	for _, c := range []chan error{over, lateOver} {
		if err := <-c; wire.KindOf(err) != wire.Unavailable {
			t.Errorf("the watch ended with %v", err)
		}
	}
	if end, err := readEnd(s.Dir); err != nil || end == nil || end.State != wire.Success {
		t.Errorf("the job ended with %+v, %v", end, err)
	}
}

// The wait ends when it is told so, and with its time; what runs then is ended.
func TestLeavingEnds(t *testing.T) {
	for name, c := range map[string]struct {
		drain time.Duration
		hurry bool
	}{"hurry": {time.Hour, true}, "time": {time.Millisecond, false}, "none": {0, false}} {
		t.Run(name, func(t *testing.T) {
			l, j := live(t, c.drain)
			s := sh(t, "trap 'echo bye; exit 0' TERM; echo ready; while :; do sleep 0.01; done")
			start(t, j, s)
			await(t, "ready", func() bool { return logOf(t, s, 0) == "ready\n" })
			events, _ := watched(t, j)
			<-events // of the job as it is: from here on nothing is missed
			l.leave()
			if c.hurry {
				l.say(t, "that it waits", func(st ProcessStatus) bool { return st.Leaving && st.Left > 0 })
				close(l.hurry)
			}
			l.say(t, "that it ends them", func(st ProcessStatus) bool { return st.Leaving && st.Left == 0 })
			told := false
			for e := range events {
				told = told || e.Ended
			}
			if !told {
				t.Error("the end was not told")
			}
			end, err := readEnd(s.Dir)
			if err != nil || end == nil || end.State != wire.Failed || end.Reason != wire.ReasonRunnerLost || end.Error == "" {
				t.Errorf("the job ended with %+v, %v", end, err)
			}
			if got := logOf(t, s, 0); !strings.Contains(got, "bye\n") {
				t.Errorf("the log is %q", got)
			}
		})
	}
}

// A retired one takes jobs until none runs, and ends then.
func TestRetire(t *testing.T) {
	l, j := live(t, 0)
	s, more := sh(t, untilGo), sh(t, untilGo)
	start(t, j, s)
	if err := j.Retire(t.Context()); err != nil {
		t.Fatal(err)
	}
	start(t, j, more)
	for _, s := range []Spec{s, more} {
		select {
		case err := <-l.ended:
			t.Fatalf("it ended while a job ran: %v", err)
		default:
		}
		if err := os.WriteFile(filepath.Join(s.WorkDir, "go"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		await(t, "end", func() bool { end, err := readEnd(s.Dir); return err == nil && end != nil && end.State == wire.Success })
	}
	if err := <-l.ended; err != nil {
		t.Error(err)
	}
	l.ended <- nil
	if _, err := os.Lstat(filepath.Join(l.dir, SocketFile)); !os.IsNotExist(err) {
		t.Errorf("its socket is left behind: %v", err)
	}

	// Idle, it ends at once.
	l, j = live(t, 0)
	if err := j.Retire(t.Context()); err != nil && wire.KindOf(err) != wire.Unavailable {
		t.Error(err)
	}
	if err := <-l.ended; err != nil {
		t.Error(err)
	}
	l.ended <- nil

	alone, err := New(Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer alone.Close()
	if err := alone.Retire(t.Context()); wire.KindOf(err) != wire.Unimplemented {
		t.Errorf("one without a process was retired: %v", err)
	}
}

func TestProbe(t *testing.T) {
	l, _ := live(t, 0)
	if err := Probe(t.Context(), l.dir); err != nil {
		t.Error(err)
	}
	if err := Probe(t.Context(), t.TempDir()); wire.KindOf(err) != wire.Unavailable {
		t.Errorf("nobody there, and the probe says %v", err)
	}
}

// An agent that cannot be spoken with says by its coming that another release is in place: the
// supervisor goes with its last job. Anybody else who cannot be spoken with changes nothing.
func TestOutlived(t *testing.T) {
	s, err := New(Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	defer s.retirable(func() {})()
	for _, c := range []struct {
		peer mux.Peer
		want bool
	}{
		{mux.Peer{Network: "unix", UID: os.Geteuid(), Hello: wire.Hello{Role: wire.RoleClient}}, false},
		{mux.Peer{Network: "unix", UID: os.Geteuid() + 1, Hello: wire.Hello{Role: wire.RoleSupervisor}}, false},
		{mux.Peer{Network: "tcp", UID: -1, Hello: wire.Hello{Role: wire.RoleSupervisor}}, false},
		{mux.Peer{Network: "unix", UID: os.Geteuid(), Hello: wire.Hello{Role: wire.RoleSupervisor}}, true},
	} {
		got := s.outlive(t.Context(), &mux.VersionError{Refusal: wire.Errorf(wire.Unimplemented, "none"), Peer: &c.peer})
		if got != c.want || s.life.retiring != c.want {
			t.Errorf("%v as %s: %t, and it retires: %t; want %t", &c.peer, c.peer.Hello.Role, got, s.life.retiring, c.want)
		}
	}
}
