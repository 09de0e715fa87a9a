package store

import (
	"errors"
	"fmt"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/waypointd/waypoint/mux/wire"
)

func keepEntry(t *testing.T, s *Store, e wire.AuditEntry) (id string) {
	t.Helper()
	update(t, s, func(tx *Tx) (err error) {
		id, err = tx.Audit(e)
		return err
	})
	return id
}

// methodsOf are the methods of the entries that a filter selects, in their order.
func methodsOf(t *testing.T, s *Store, f wire.AuditFilter) string {
	t.Helper()
	entries, _, err := s.AuditEntries(t.Context(), f)
	if err != nil {
		t.Fatal(err)
	}
	var methods []string
	for _, e := range entries {
		methods = append(methods, e.Method)
	}
	return strings.Join(methods, " ")
}

func TestAudit(t *testing.T) {
	onEach(t, func(t *testing.T, dsn string) {
		s := open(t, dsn, Config{})
		at := time.Date(2030, 1, 2, 3, 4, 5, 678000, time.UTC)
		e := wire.AuditEntry{
			At: at, ActorKind: wire.ActorUser, Actor: "ada", By: "token 17", Role: wire.Admin, Peer: "tcp 192.0.2.1:9",
			Method: "user.set", Object: "bob", Outcome: "conflict", Reason: "it's no", Detail: map[string]string{"role": "viewer"},
		}
		e.ID = keepEntry(t, s, e)
		e.Count, e.LastAt = 3, at.Add(time.Second)
		update(t, s, func(tx *Tx) error { return tx.CountAudit(e.ID, e.Count, e.LastAt) })
		if got, _, err := s.AuditEntries(t.Context(), wire.AuditFilter{}); err != nil || !reflect.DeepEqual(got, []wire.AuditEntry{e}) {
			t.Fatalf("got %+v, %v, want %+v", got, err, e)
		}
		second := keepEntry(t, s, wire.AuditEntry{At: at.Add(time.Minute), ActorKind: wire.ActorHost, Actor: "ada", Method: "user.setting", Object: "J1 J22", Outcome: "done"})
		// An id grows although the clock was set back; the time is as it was.
		third := keepEntry(t, s, wire.AuditEntry{At: at.Add(-time.Hour), ActorKind: wire.ActorAnonymous, Method: "login", Outcome: "begun"})
		if !(e.ID < second && second < third) {
			t.Errorf("ids %s, %s, %s", e.ID, second, third)
		}
		for _, c := range []struct {
			f    wire.AuditFilter
			want string
		}{
			{wire.AuditFilter{}, "login user.setting user.set"},
			{wire.AuditFilter{OldestFirst: true}, "user.set user.setting login"},
			{wire.AuditFilter{Limit: 2}, "login user.setting"},
			{wire.AuditFilter{After: third}, "user.setting user.set"},
			{wire.AuditFilter{After: e.ID, OldestFirst: true}, "user.setting login"},
			{wire.AuditFilter{Since: at}, "user.setting user.set"},
			{wire.AuditFilter{Since: at.Add(time.Microsecond)}, "user.setting"},
			{wire.AuditFilter{Until: at}, "login"},
			{wire.AuditFilter{Since: at.Add(-2 * time.Hour), Until: at.Add(time.Minute)}, "login user.set"},
			{wire.AuditFilter{Actor: "ada"}, "user.setting user.set"},
			{wire.AuditFilter{Actor: "user:ada"}, "user.set"},
			{wire.AuditFilter{Actor: "host"}, "user.setting"},
			{wire.AuditFilter{Actor: "anonymous"}, "login"},
			{wire.AuditFilter{Actor: "ad"}, ""},
			{wire.AuditFilter{Method: "user.set"}, "user.set"},
			{wire.AuditFilter{Method: "user."}, "user.setting user.set"},
			{wire.AuditFilter{Object: "J22"}, "user.setting"},
			{wire.AuditFilter{Object: "J2"}, ""},
			{wire.AuditFilter{Object: "bob"}, "user.set"},
			{wire.AuditFilter{Outcome: "done"}, "user.setting"},
			{wire.AuditFilter{Outcome: "refused"}, "user.set"},
			{wire.AuditFilter{Outcome: "conflict", Actor: "ada", Object: "bob"}, "user.set"},
		} {
			if got := methodsOf(t, s, c.f); got != c.want {
				t.Errorf("%+v selects %q, want %q", c.f, got, c.want)
			}
			for walk := 1; walk <= 4; walk++ { // the same, in pages that look at few
				var got []string
				f := c.f
				for pages := 0; ; pages++ {
					entries, next, err := s.auditEntries(t.Context(), f, walk)
					if err != nil || len(entries) > walk || pages > 4 {
						t.Fatalf("%+v, %d at a time: %+v, %v", f, walk, entries, err)
					}
					for _, e := range entries {
						got = append(got, e.Method)
					}
					if f.After = next; next == "" {
						break
					}
				}
				if got := strings.Join(got, " "); got != c.want && c.f.Limit == 0 || !strings.HasPrefix(got, c.want) {
					t.Errorf("%+v selects %q, %d at a time, want %q", c.f, got, walk, c.want)
				}
			}
		}
		for _, f := range []wire.AuditFilter{{Limit: -1}, {After: "nonsense"}} {
			if _, _, err := s.AuditEntries(t.Context(), f); err == nil {
				t.Errorf("%+v is taken", f)
			}
		}
	})
}

// Entries go for their age and their number, strangers' first.
func TestPruneAudit(t *testing.T) {
	onEach(t, func(t *testing.T, dsn string) {
		s := open(t, dsn, Config{})
		at := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
		update(t, s, func(tx *Tx) error {
			for i := range 1500 {
				if _, err := tx.Audit(wire.AuditEntry{At: at, ActorKind: wire.ActorUser, Actor: "old", Method: fmt.Sprint("m", i)}); err != nil {
					return err
				}
			}
			for i := range 40 {
				kind, actor := wire.ActorUser, "new"
				if i%2 == 1 {
					kind, actor = []wire.ActorKind{wire.ActorAnonymous, wire.ActorRunner}[i/2%2], "stranger"
				}
				if _, err := tx.Audit(wire.AuditEntry{At: at.Add(time.Hour + time.Duration(i)*time.Second), ActorKind: kind, Actor: actor}); err != nil {
					return err
				}
			}
			return nil
		})
		count := func(actor string) (n int) {
			t.Helper()
			if err := one(s.read(t.Context()), `SELECT COUNT(*) FROM audit WHERE actor = $1`, []any{actor}, &n); err != nil {
				t.Fatal(err)
			}
			return n
		}
		prune := func(age time.Duration, most, want int) {
			t.Helper()
			if n, err := s.PruneAudit(t.Context(), age, most, at.Add(2*time.Hour)); n != want || err != nil {
				t.Errorf("%d are gone, want %d: %v", n, want, err)
			}
		}
		prune(0, 0, 0)
		prune(3*time.Hour, 0, 0)
		prune(90*time.Minute, 0, 1500)
		if old, young := count("old"), count("new"); old != 0 || young != 20 {
			t.Errorf("%d old ones and %d new ones are left", old, young)
		}
		prune(0, 100, 10) // ten of strangers, a tenth
		if young, strange := count("new"), count("stranger"); young != 20 || strange != 10 {
			t.Errorf("%d and %d of strangers are left", young, strange)
		}
		prune(0, 10, 9+11) // of strangers one; then the newest ten
		if young, strange := count("new"), count("stranger"); young != 9 || strange != 1 {
			t.Errorf("%d and %d of strangers are left", young, strange)
		}
	})
}

// What a transaction has done and its entry are both there or neither, after a
// commit, a refusal and an end without a goodbye.
func TestAuditInTransaction(t *testing.T) {
	dsn := filepath.Join(t.TempDir(), "db")
	s := open(t, dsn, Config{})
	act := func(name string, fail error) error {
		return s.Update(t.Context(), func(tx *Tx) error {
			if err := tx.PutSetting(name, "1"); err != nil {
				return err
			}
			if _, err := tx.Audit(wire.AuditEntry{At: time.Now(), Method: name, Outcome: "done"}); err != nil {
				return err
			}
			return fail
		})
	}
	if err := act("kept", nil); err != nil {
		t.Fatal(err)
	}
	if err := act("refused", errors.New("no")); err == nil {
		t.Fatal("no error")
	}
	// A table that takes no entry takes the action with it.
	update(t, s, func(tx *Tx) error {
		_, err := tx.exec(`CREATE TRIGGER broken BEFORE INSERT ON audit WHEN NEW.method = 'broken' BEGIN SELECT RAISE(ABORT, 'broken'); END`)
		return err
	})
	if err := act("broken", nil); err == nil {
		t.Fatal("no error")
	}
	if got := methodsOf(t, s, wire.AuditFilter{}); got != "kept" {
		t.Errorf("the audit has %q", got)
	}
	last, _, err := s.AuditEntries(t.Context(), wire.AuditFilter{})
	if err != nil || len(last) != 1 {
		t.Fatal(last, err)
	}
	for _, name := range []string{"refused", "broken"} {
		if v, err := s.Setting(t.Context(), name); v != "" || err != nil {
			t.Errorf("%s was done: %q, %v", name, v, err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, dsn, Config{})
	if got := methodsOf(t, s, wire.AuditFilter{}); got != "kept" {
		t.Errorf("after a start the audit has %q", got)
	}
	// The clock was set back meanwhile.
	if id := keepEntry(t, s, wire.AuditEntry{At: time.Unix(1, 0), Method: "later"}); id <= last[0].ID {
		t.Errorf("id %s after %s", id, last[0].ID)
	}
}
