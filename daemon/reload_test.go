package daemon

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/waypointd/waypoint/mux"
	"github.com/waypointd/waypoint/mux/muxtest"
	"github.com/waypointd/waypoint/mux/wire"
)

// fixed are the fields that Reload leaves as they are.
var fixedFields = []string{"StateDir", "StoreDSN", "Software", "Logger", "Plain", "Reload", "Metrics"}

// All fields are either taken over or left, and an error leaves all of them.
func TestReloadTakesAll(t *testing.T) {
	ca := muxtest.NewAuthority(t)
	pair := ca.Issue(t, muxtest.Leaf{})
	cert, key := filepath.Join(t.TempDir(), "c"), filepath.Join(t.TempDir(), "k")
	put(t, cert, muxtest.CertificatePEM(pair.Certificate...))
	put(t, key, muxtest.KeyPEM(t, pair.PrivateKey))
	s := newSite(t, Config{})
	before := *s.cfg()
	other := Config{
		StateDir: "/elsewhere", StoreDSN: "/elsewhere", Software: "other", Logger: slog.New(slog.DiscardHandler), Plain: !before.Plain,
		Reload:     func(context.Context, string) (wire.Reloaded, error) { return wire.Reloaded{}, nil },
		AckTimeout: 1, Lease: 2, Heartbeat: 3, LogLimit: 4, RetainFor: 5, RetainJobs: 6, TLSCert: cert, TLSKey: key, TLSNames: []string{"a"},
		Limits:      Limits{SessionsPerPeer: 13, Greeting: 14, GreetingPerPeer: 15, HellosPerPeer: 16, Handshakes: 17, Unread: 18, RunnersPerToken: 19, Streams: 65, HandshakeTime: 20},
		MaxSessions: 7, MaxPending: 8, MaxPendingPerPeer: 9, PendingFor: 10, GrantLife: 11, NoTokenRenew: true,
		StoreReserve: 12, Metrics: true, AuditFor: 13, AuditEntries: 14, NoAuditLog: true,
		Access: Access{Users: map[string]wire.UserRole{"0": wire.Admin}, Groups: map[string]wire.UserRole{"0": wire.Admin}, RunnerTokens: wire.Operator, TokenLife: time.Hour},
	}
	for f, v := range reflect.ValueOf(other).Fields() {
		if v.IsZero() && f.Name != "Plain" && f.IsExported() {
			t.Errorf("this test does not set %s", f.Name)
		}
	}
	bad := other
	bad.Lease = -1
	if _, err := s.Reload(t.Context(), bad); wire.KindOf(err) != wire.BadUsage {
		t.Errorf("a bad one: %v", err)
	}
	bad = other
	bad.TLSKey = cert
	if _, err := s.Reload(t.Context(), bad); wire.KindOf(err) != wire.BadUsage || !strings.Contains(err.Error(), cert) {
		t.Errorf("a bad key: %v", err)
	}
	same(t, before, *s.cfg(), nil)

	was := s.shown()
	renewed, err := s.Reload(t.Context(), other)
	if err != nil || !renewed {
		t.Fatalf("renewed %v, %v", renewed, err)
	}
	same(t, before, *s.cfg(), fixedFields)
	same(t, other, *s.cfg(), takenOver())
	if got := s.shown(); got == was || got.fingerprint() != mux.Fingerprint(pair.Leaf) {
		t.Error("the certificate of the files is not shown")
	}
	if ack, lease := s.fleet.timing(); ack != 1 || lease != 2 {
		t.Errorf("the fleet goes by %v and %v", ack, lease)
	}

	// The same files again, then with others in them.
	if renewed, err := s.Reload(t.Context(), other); err != nil || renewed {
		t.Errorf("the same again: renewed %v, %v", renewed, err)
	}
	pair = ca.Issue(t, muxtest.Leaf{})
	put(t, cert, muxtest.CertificatePEM(pair.Certificate...))
	put(t, key, muxtest.KeyPEM(t, pair.PrivateKey))
	if renewed, err := s.Reload(t.Context(), other); err != nil || !renewed || s.pin() != mux.Fingerprint(pair.Leaf) {
		t.Errorf("other contents: renewed %v, %v", renewed, err)
	}
	if err := os.Remove(key); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Reload(t.Context(), other); err == nil || s.pin() != mux.Fingerprint(pair.Leaf) {
		t.Errorf("without the key: %v", err)
	}
	// And back to the server's own.
	if renewed, err := s.Reload(t.Context(), Config{}); err != nil || !renewed || s.shown().own == nil {
		t.Errorf("own certificate: renewed %v, %v", renewed, err)
	}
}

func takenOver() (names []string) {
	for f := range reflect.TypeFor[Config]().Fields() {
		if f.IsExported() {
			names = append(names, f.Name)
		}
	}
	for _, fixed := range fixedFields {
		for i, n := range names {
			if n == fixed {
				names = append(names[:i], names[i+1:]...)
				break
			}
		}
	}
	return names
}

// same compares fields of two configurations; nil is all that can be compared.
func same(t *testing.T, want, got Config, names []string) {
	t.Helper()
	if names == nil {
		names = append(takenOver(), fixedFields...)
	}
	w, g := reflect.ValueOf(want), reflect.ValueOf(got)
	for _, n := range names {
		a, b := w.FieldByName(n), g.FieldByName(n)
		if a.Kind() == reflect.Func {
			if a.IsNil() != b.IsNil() {
				t.Errorf("%s has changed", n)
			}
			continue
		}
		if !reflect.DeepEqual(a.Interface(), b.Interface()) {
			t.Errorf("%s is %v, want %v", n, b, a)
		}
	}
}

// A lease that was shortened ends those that are running out.
func TestReloadWakesTheClock(t *testing.T) {
	var log bytes.Buffer
	lost := make(chan string, 100)
	s := newSite(t, Config{Lease: time.Hour, Logger: slog.New(slog.NewTextHandler(writer(func(p []byte) { log.Write(p); lost <- string(p) }), nil))})
	ref := s.runningJob(t)
	if _, err := s.Reload(t.Context(), Config{Lease: time.Millisecond}); err != nil {
		t.Fatal(err)
	}
	deadline := time.After(patience)
	for {
		select {
		case line := <-lost:
			if strings.Contains(line, `msg="job lost"`) && strings.Contains(line, ref.Job) && strings.Contains(line, "1ms") {
				return
			}
		case <-deadline:
			t.Fatal("the lease goes on")
		}
	}
}

type writer func(p []byte)

func (w writer) Write(p []byte) (int, error) { w(p); return len(p), nil }

// runningJob is one whose runner has gone.
func (s *site) runningJob(t *testing.T) wire.JobRef {
	t.Helper()
	c := s.mustHello(t, "unix", operator(""))
	session := s.mustHello(t, "runners", remote("gone", s.runnerToken(t, time.Hour)))
	st, err := session.Open(t.Context(), wire.MethodWork, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := st.Send(wire.WorkEvent{Begin: &wire.WorkBegin{Concurrency: 1}}); err != nil {
		t.Fatal(err)
	}
	spec := wire.JobSpec{Operation: wire.OpRun, Command: []string{"true"}, Target: wire.Target{Any: true}}
	if err := c.Call(t.Context(), wire.MethodJobSubmit, wire.SubmitRequest{Jobs: []wire.JobSpec{spec}}, nil); err != nil {
		t.Fatal(err)
	}
	for {
		var o wire.WorkOrder
		if err := st.RecvMsg(&o); err != nil {
			t.Fatal(err)
		}
		switch {
		case o.Assign != nil:
			if err := st.Send(wire.WorkEvent{Ack: &o.Assign.JobRef}); err != nil {
				t.Fatal(err)
			}
		case o.Start != nil:
			session.Close()
			return *o.Start
		}
	}
}

// Reloads under load, from several sides at once, while sessions come, jobs are
// queued and certificates shown: for the race detector, and no call fails.
func TestReloadUnderLoad(t *testing.T) {
	s := newSite(t, Config{})
	ctx, stop := context.WithCancel(t.Context())
	var load, reloads sync.WaitGroup
	for range 4 {
		load.Go(func() {
			for ctx.Err() == nil {
				session, err := s.hello(t, "unix", operator(""))
				if err != nil {
					t.Error(err)
					return
				}
				var st wire.ServerStatus
				spec := wire.JobSpec{Operation: wire.OpRun, Command: []string{"true"}, Target: wire.Target{Any: true}}
				if err := errors.Join(
					session.Call(t.Context(), wire.MethodJobSubmit, wire.SubmitRequest{Jobs: []wire.JobSpec{spec}}, nil),
					session.Call(t.Context(), wire.MethodServerStatus, wire.ServerStatusRequest{}, &st),
				); err != nil {
					t.Error(err)
				}
				session.Close()
			}
		})
	}
	for i := range 3 {
		reloads.Go(func() {
			for n := range 30 {
				if _, err := s.Reload(t.Context(), Config{Lease: time.Duration(n+1) * time.Hour, MaxSessions: 100 + i, TLSNames: []string{"a"}[:n%2]}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	reloads.Wait()
	stop()
	load.Wait()
}
