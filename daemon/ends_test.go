package daemon

import (
	"database/sql"
	"testing"
	"time"

	"github.com/waypointd/waypoint/daemon/store/storetest"
	"github.com/waypointd/waypoint/mux"
	"github.com/waypointd/waypoint/mux/wire"
)

// believe has a site believe for so long what it has read of tokens, users and keys.
func (s *site) believe(d time.Duration) {
	s.accounts.mu.Lock()
	s.accounts.fresh = d
	s.accounts.mu.Unlock()
	s.keys.mu.Lock()
	s.keys.fresh = d
	s.keys.mu.Unlock()
}

// hears waits until a site hears what others of its database change.
func (s *site) hears(t *testing.T) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		s.accounts.mu.Lock()
		heard := s.accounts.edits > 0
		s.accounts.mu.Unlock()
		if heard {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("nothing is heard of other servers")
		}
	}
}

func endOf(t *testing.T, session *mux.Session) error {
	t.Helper()
	select {
	case <-session.Done():
		return session.Err()
	case <-time.After(patience):
		t.Fatal("the session goes on")
		return nil
	}
}

// What one server takes from somebody, another one of the database takes from
// him as soon as it hears of it, though it would believe for an hour what it has read.
func TestEndsElsewhereAreHeard(t *testing.T) {
	url := storetest.Database(t)
	a := newSite(t, Config{StoreDSN: url})
	b := newSite(t, Config{StoreDSN: url})
	b.hears(t)
	b.believe(time.Hour)
	admin := a.mustHello(t, "unix", operator(""))
	decide := func(method string, req any) {
		t.Helper()
		if err := admin.Call(t.Context(), method, req, nil); err != nil {
			t.Fatal(err)
		}
	}
	enter := func(name string, r wire.UserRole) (string, *mux.Session) {
		t.Helper()
		text := a.account(t, name, r, wire.Limits{})
		session := b.mustHello(t, "tcp", operator(text))
		if err := session.Call(t.Context(), wire.MethodUserSelf, wire.SelfRequest{}, nil); err != nil {
			t.Fatal(err)
		}
		return text, session
	}
	ended := func(text string, session *mux.Session, says, hint string) {
		t.Helper()
		if err := endOf(t, session); wire.KindOf(err) == "" {
			t.Errorf("ended with %v", err)
		}
		_, err := b.hello(t, "tcp", operator(text))
		is(t, err, wire.Unauthenticated, says, hint)
	}

	text, session := enter("ada", wire.Operator)
	decide(wire.MethodUserRevoke, wire.RevokeRequest{User: "ada"})
	ended(text, session, "was revoked at", "waypoint user token")

	text, session = enter("otto", wire.Operator)
	decide(wire.MethodUserDelete, wire.UserRequest{User: "otto"})
	ended(text, session, "has been deleted", "waypoint user invite otto")

	// Whoever is less than he was stays, and may do less.
	_, session = enter("ina", wire.Operator)
	job := wire.SubmitRequest{Jobs: []wire.JobSpec{{Operation: wire.OpRun, Project: "p", Workspace: "default", Command: []string{"true"}, Target: wire.Target{Any: true}}}}
	if err := session.Call(t.Context(), wire.MethodJobSubmit, job, nil); err != nil {
		t.Fatal(err)
	}
	decide(wire.MethodUserSet, wire.UserSetRequest{User: "ina", Role: wire.Viewer})
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		if err := session.Call(t.Context(), wire.MethodJobSubmit, job, nil); err != nil {
			is(t, err, wire.Denied, "viewer", "waypoint user set ina")
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("a viewer queues jobs")
		}
	}

	// A key that is revoked ends everybody, also where nobody calls.
	text, session = enter("eve", wire.Operator)
	decide(wire.MethodTokenKeyRotate, wire.RotateRequest{Revoke: true})
	ended(text, session, "the key that signed it", "make a new one")
}

// Where nothing is heard, what has ended elsewhere is noticed all the same, by
// whoever has an open session and does nothing.
func TestEndsElsewhereAreFound(t *testing.T) {
	url := storetest.Database(t)
	s := newSite(t, Config{StoreDSN: url})
	s.hears(t)
	db, err := sql.Open("pgx", url)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	session := s.mustHello(t, "tcp", operator(s.account(t, "ada", wire.Operator, wire.Limits{})))
	s.believe(time.Millisecond)
	if _, err := db.ExecContext(t.Context(), `UPDATE user_tokens SET revoked_at = $1, revoked_by = 'another'`, time.Now().UnixMicro()); err != nil {
		t.Fatal(err)
	}
	if err := endOf(t, session); wire.KindOf(err) == "" {
		t.Errorf("ended with %v", err)
	}
}
