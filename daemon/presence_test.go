package daemon

import (
	"context"
	"testing"
	"time"

	"github.com/waypointd/waypoint/daemon/store"
	"github.com/waypointd/waypoint/daemon/store/storetest"
	"github.com/waypointd/waypoint/mux/wire"
)

// neighbours are servers over one database that answer no claim of r1 by themselves.
func neighbours(t *testing.T, n int) []*Server {
	t.Helper()
	dsn := storetest.Database(t)
	list := make([]*Server, n)
	for i := range list {
		s, err := New(t.Context(), Config{StateDir: t.TempDir(), StoreDSN: dsn})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		s.presence.mu.Lock()
		s.presence.answering["r1"] = true
		s.presence.mu.Unlock()
		list[i] = s
	}
	return list
}

func (s *Server) mustUpdate(t *testing.T, f func(tx *store.Tx) error) {
	t.Helper()
	if err := s.store.Update(t.Context(), f); err != nil {
		t.Fatal(err)
	}
}

// silent is a runner's work stream on which nothing is heard; when it is given up, then is called.
func (s *Server) silent(t *testing.T, id string, then func()) *member {
	t.Helper()
	m := newcomer(id, wire.Adopted)
	m.replaced = func(error) { then() }
	m.heard.Store(s.uptime())
	s.fleet.join(m)
	s.mustUpdate(t, func(tx *store.Tx) error { return tx.PutSession(id, "{}") })
	return m
}

// What one server claims is not given up to another that has claimed it since: each
// claim gets its own answer, or a copy of the runner would be taken for the runner.
func TestClaimOfAThirdServer(t *testing.T) {
	list := neighbours(t, 3)
	a, b, c := list[0], list[1], list[2]
	here := a.store.Instance()
	claim := func(s *Server) { s.mustUpdate(t, func(tx *store.Tx) error { return tx.Claim("r1", here) }) }
	// The roll, called between the two, drops the session as well, and rightly: once it is not.
	var at store.Session
	for try := 0; at.Server != here; try++ {
		if try == 20 {
			t.Fatalf("behind the answer to the first claim: %+v", at)
		}
		a.silent(t, "r1", func() { claim(c) })
		claim(b)
		err := a.answerClaim("r1", b.store.Instance())
		if err == nil {
			at, err = a.store.Session(t.Context(), "r1")
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if at.Claim != c.store.Instance() {
		t.Fatalf("behind the answer to the first claim: %+v", at)
	}
	if err := a.answerClaim("r1", c.store.Instance()); err != nil {
		t.Fatal(err)
	}
	if at, err := a.store.Session(t.Context(), "r1"); err != nil || at.Server != "" {
		t.Fatalf("behind the answer to the second: %+v, %v", at, err)
	}
}

// A runner that comes back to a server while that gives up its old session stays
// on record there, whichever way the old one is given up.
func TestBackWhileGivenUp(t *testing.T) {
	list := neighbours(t, 2)
	a, b := list[0], list[1]
	here := a.store.Instance()
	stays := func(how string) {
		t.Helper()
		if at, err := a.store.Session(t.Context(), "r1"); err != nil || at.Server != here {
			t.Errorf("%s: %+v, %v", how, at, err)
		}
	}
	var old *member
	old = a.silent(t, "r1", func() {
		a.fleet.leave(old, time.Now())
		a.silent(t, "r1", func() {})
	})
	b.mustUpdate(t, func(tx *store.Tx) error { return tx.Claim("r1", here) })
	if err := a.answerClaim("r1", b.store.Instance()); err != nil {
		t.Fatal(err)
	}
	stays("claimed by another server")

	// The roll is called between its loss and its return.
	m := a.fleet.member("r1")
	a.fleet.leave(m, time.Now())
	roll := rollCall{drop: []string{"r1"}}
	back := a.silent(t, "r1", func() {})
	if err := a.note(context.Background(), roll, true); err != nil {
		t.Fatal(err)
	}
	stays("at the roll call")
	a.fleet.leave(back, time.Now())
	if err := a.note(context.Background(), roll, true); err != nil {
		t.Fatal(err)
	}
	if at, err := a.store.Session(t.Context(), "r1"); err != nil || at.Server != "" {
		t.Errorf("gone: %+v, %v", at, err)
	}
}
