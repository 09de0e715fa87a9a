package daemon_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/waypointd/waypoint/daemon"
	"github.com/waypointd/waypoint/daemon/daemontest"
	"github.com/waypointd/waypoint/mux"
	"github.com/waypointd/waypoint/mux/wire"
)

// A runner that was rejected while its session had no work stream has no more
// use of that session than of a new one.
func TestRejectedBeforeItBegins(t *testing.T) {
	s := daemontest.Start(t, slowly)
	c := s.Client(t)
	r := s.Adopted(t, "r1", nil)
	r.Disconnect()
	r.MustConnect()
	reject(t, c, "r1")
	var reply wire.BlobDigests
	for method, req := range map[string]any{
		wire.MethodBlobMissing: wire.BlobDigests{}, wire.MethodBlobGet: wire.BlobDigests{}, wire.MethodBlobPut: nil,
	} {
		wantKind(t, r.Session.Call(t.Context(), method, req, &reply), wire.Denied)
	}
}

// A runner that nobody has admitted has a few sessions and not all that there
// are, however many ids it gives itself; the one that works is not ended for
// those that do not.
func TestSessionsOfOneRunner(t *testing.T) {
	const perPeer, ids, each = 4, 10, 10
	s := daemontest.Start(t, daemon.Config{MaxPendingPerPeer: perPeer, Heartbeat: time.Hour})
	working := connected(t, s, "id0", nil)
	var sessions []*mux.Session
	for i := range ids {
		r := s.Runner(t, fmt.Sprint("id", i), nil)
		if i == 0 {
			r.Key = working.Key
		}
		for range each {
			r.MustConnect()
			sessions = append(sessions, r.Session)
		}
	}
	var left []*mux.Session
	for deadline := time.Now().Add(daemontest.Patience); len(sessions) > perPeer*5 && time.Now().Before(deadline); sessions = left {
		left = nil
		for _, session := range sessions {
			if session.Err() == nil {
				left = append(left, session)
			}
		}
	}
	if n := len(sessions); n == 0 || n > perPeer*5 {
		t.Errorf("%d sessions are left", n)
	}
	if _, err := s.Client(t).Adopt(t.Context(), "id0", ""); err != nil {
		t.Fatal(err)
	}
	working.TakeGrant()
}

// A runner that changes its mind all the time is made to wait.
func TestAuthenticatingInALoop(t *testing.T) {
	t.Parallel()
	s := daemontest.Start(t, slowly)
	r := connected(t, s, "r1", nil)
	began, n := time.Now(), 0
	for time.Since(began) < 500*time.Millisecond {
		r.Show([]string{"x", "y"}[n%2])
		r.MustAuthenticate(false)
		n++
	}
	if most := 52 + 5*time.Since(began).Seconds(); float64(n) > most {
		t.Errorf("shown %d times, want %.0f at most", n, most)
	}
}

// Who may nothing is told so a few times a second, whatever he asks for: a runner
// that waits for adoption, an invite, a runner token shown as a login.
func TestAskingInALoop(t *testing.T) {
	t.Parallel()
	s := daemontest.Start(t, slowly)
	c := s.Client(t)
	invite, err := c.Invite(t.Context(), wire.InviteRequest{User: "ina", Role: wire.Viewer})
	if err != nil {
		t.Fatal(err)
	}
	login := func(text string) *mux.Session {
		t.Helper()
		conn, err := s.Dial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		session, err := mux.Connect(t.Context(), conn, mux.Config{}, wire.Hello{Role: wire.RoleClient, Token: text}, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { session.Close() })
		return session
	}
	runner := func(id string) *mux.Session { return connected(t, s, id, nil).Session }
	big := strings.Repeat("x", 512<<10)
	job := wire.JobRef{Job: "01JOB", Attempt: 1}
	var asked sync.WaitGroup
	for _, a := range []struct {
		who     *mux.Session
		method  string
		request any
		kind    wire.Kind
	}{
		{runner("r1"), wire.MethodJobList, wire.JobFilter{Project: big}, wire.Denied},
		{runner("r2"), wire.MethodBlobGet, wire.BlobDigests{}, wire.Denied},
		{runner("r3"), wire.MethodReport, wire.ReportRequest{JobRef: job}, wire.Conflict},
		{runner("r4"), wire.MethodReport, wire.ReportRequest{JobRef: job, Late: true}, wire.Conflict},
		{login(invite.Token), wire.MethodJobList, wire.JobFilter{}, wire.Denied},
		{login(s.Token(t, wire.RunnerTokenRequest{})), wire.MethodServerStatus, nil, wire.Denied},
	} {
		asked.Go(func() {
			began, n := time.Now(), 0
			for time.Since(began) < 500*time.Millisecond {
				if err := a.who.Call(t.Context(), a.method, a.request, nil); wire.KindOf(err) != a.kind {
					t.Errorf("%s: %v, want %s", a.method, err, a.kind)
					return
				}
				n++
			}
			// Nor does he get an answer sooner who says that he will not wait.
			ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
			defer cancel()
			// By the clock, as Call goes: the context may learn of its end later.
			for end, _ := ctx.Deadline(); time.Now().Before(end); n++ {
				a.who.Call(ctx, a.method, a.request, nil)
			}
			if most := 52 + 5*time.Since(began).Seconds(); float64(n) > most {
				t.Errorf("%s was asked for %d times, want %.0f at most", a.method, n, most)
			}
		})
	}
	asked.Wait()
	// Nor does he have as many wait for that at once as somebody who may.
	crowd := login(invite.Token)
	for range 100 {
		if _, err := crowd.Open(t.Context(), wire.MethodJobList, wire.JobFilter{}); err != nil {
			break
		}
	}
	for deadline := time.Now().Add(daemontest.Patience); crowd.Err() == nil; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("an invite has 50 calls open that are refused")
		}
	}
}

// Nor is more told to others, and to the log, of a runner that says another thing with
// each word, and nobody has adopted.
func TestSayingInALoop(t *testing.T) {
	t.Parallel()
	var lines atomic.Int64
	cfg := slowly
	cfg.Logger = slog.New(slog.NewTextHandler(writes(func(p []byte) {
		if bytes.Contains(p, []byte("runner's drain has changed")) {
			lines.Add(1)
		}
	}), nil))
	s := daemontest.Start(t, cfg)
	r := connected(t, s, "r1", nil)
	began := time.Now()
	const times = 2000
	for i := range times {
		r.Say(wire.WorkEvent{Drain: new(i%2 == 0)})
	}
	ref := wire.JobRef{Job: "01JOB", Attempt: 1}
	r.Say(wire.WorkEvent{Ack: &ref}) // would be answered once all of that has been heard
	for deadline := began.Add(500 * time.Millisecond); ; {
		if o, ok := r.Order(time.Until(deadline)); !ok || o.Drop != nil {
			break
		}
	}
	if n, most := lines.Load(), 52+5*time.Since(began).Seconds(); n == 0 || float64(n) > most {
		t.Errorf("%d lines, want one, and %.0f at most", n, most)
	}
}

// writes is a writer that is one function, which is called by one at a time.
type writes func(p []byte)

func (w writes) Write(p []byte) (int, error) {
	w(p)
	return len(p), nil
}

// Strangers who connect and say nothing keep nobody out who comes another way.
func TestSilentStrangers(t *testing.T) {
	s := daemontest.Start(t, daemon.Config{MaxSessions: 40})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Serve(l)()
	unix, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Serve(unix)()
	for range 60 {
		conn, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
	}
	r := s.Runner(t, "r1", nil)
	r.Address = unix.Addr().String()
	for deadline := time.Now().Add(300 * time.Millisecond); time.Now().Before(deadline); r.Disconnect() {
		r.MustConnect()
	}
}
