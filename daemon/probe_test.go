package daemon

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/waypointd/waypoint/daemon/store"
	"github.com/waypointd/waypoint/mux/wire"
)

// The probe passes while committer and clock answer, and not while one of them
// does not. Who asks for the status, or for the health, is told.
func TestProbe(t *testing.T) {
	t.Parallel() // they wait for some seconds
	s := newSite(t, Config{Metrics: true})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- s.ServeMetrics(ctx, l) }()
	defer func() {
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
	}()
	get := func(page string) (int, string) {
		res, err := http.Get("http://" + l.Addr().String() + page)
		if err != nil {
			t.Error(err)
			return 0, ""
		}
		defer res.Body.Close()
		body, err := io.ReadAll(res.Body)
		if err != nil {
			t.Error(err)
		}
		return res.StatusCode, string(body)
	}
	operates := s.mustHello(t, "unix", operator(""))
	probe := func() error {
		ctx, cancel := context.WithTimeoutCause(t.Context(), 20*time.Millisecond, errors.New("too late"))
		defer cancel()
		return s.Probe(ctx)
	}
	passes := func(when string) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		if err := s.Probe(ctx); err != nil {
			t.Fatalf("%s: %v", when, err)
		}
	}
	passes("at first")

	held, release := make(chan bool), make(chan bool)
	done := make(chan error, 1)
	go func() {
		done <- s.store.Update(context.Background(), func(*store.Tx) error { close(held); <-release; return nil })
	}()
	<-held
	if err := probe(); err == nil || err.Error() != "commit: wait for the store: too late" {
		t.Errorf("with a committer that hangs: %v", err)
	}
	var asked sync.WaitGroup
	asked.Go(func() {
		var st wire.ServerStatus
		if err := operates.Call(t.Context(), wire.MethodServerStatus, wire.ServerStatusRequest{}, &st); err != nil || !strings.HasPrefix(st.Problem, "commit: ") || st.Version != s.cfg().Software {
			t.Errorf("status with a committer that hangs: %+v, %v", st, err)
		}
	})
	asked.Go(func() {
		if code, body := get("/healthz"); code != http.StatusServiceUnavailable || !strings.HasPrefix(body, "commit: ") {
			t.Errorf("health with a committer that hangs: %d %q", code, body)
		}
	})
	asked.Wait()
	if _, page := get("/metrics"); !strings.Contains(page, "\nwaypoint_probes_total{outcome=\"failed\"} 3\n") {
		t.Error("the metrics do not tell of three probes that failed")
	}
	close(release)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	passes("when the committer goes on")
	var st wire.ServerStatus
	if err := operates.Call(t.Context(), wire.MethodServerStatus, wire.ServerStatusRequest{}, &st); err != nil || st.Problem != "" {
		t.Errorf("status when the committer goes on: %q, %v", st.Problem, err)
	}

	// The clock hangs where the fleet does.
	s.fleet.mu.Lock()
	for range 2 { // when there is room for the second it has taken the first, and is on its way to the lock
		s.alarm <- struct{}{}
	}
	err = probe()
	s.fleet.mu.Unlock()
	if err == nil || err.Error() != "ask the clock: too late" {
		t.Errorf("with a clock that hangs: %v", err)
	}
	passes("when the clock goes on")
}

// Whatever the summary says, somebody is told when it says something else.
func TestSummary(t *testing.T) {
	s := newSite(t, Config{})
	await := func(want Summary) {
		t.Helper()
		for {
			got, err := s.Summary(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if got == want {
				return
			}
			select {
			case <-s.News():
			case <-time.After(patience):
				t.Fatalf("%+v, want %+v", got, want)
			}
		}
	}
	await(Summary{Listeners: 3})
	c := s.mustHello(t, "unix", operator(""))
	spec := wire.JobSpec{Operation: wire.OpRun, Command: []string{"true"}, Target: wire.Target{Any: true}}
	if err := c.Call(t.Context(), wire.MethodJobSubmit, wire.SubmitRequest{Jobs: []wire.JobSpec{spec}}, nil); err != nil {
		t.Fatal(err)
	}
	await(Summary{Listeners: 3, Queued: 1})
	session := s.mustHello(t, "runners", remote("r1", s.runnerToken(t, time.Hour)))
	st, err := session.Open(t.Context(), wire.MethodWork, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := st.Send(wire.WorkEvent{Begin: &wire.WorkBegin{Concurrency: 1}}); err != nil {
		t.Fatal(err)
	}
	await(Summary{Listeners: 3, Online: 1, Running: 1})
	session.Close()
	await(Summary{Listeners: 3, Queued: 1}) // it was never confirmed
}
