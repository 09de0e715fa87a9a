package store

import (
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/waypointd/waypoint/mux/wire"
)

func TestUsers(t *testing.T) {
	onEach(t, func(t *testing.T, dsn string) {
		s := open(t, dsn, Config{})
		at := time.Date(2030, 1, 2, 3, 4, 5, 678000, time.UTC)
		ada := UserRecord{Name: "Ada", Role: wire.Admin, UID: 1000, Since: 7, CreatedAt: at, CreatedBy: "uid 0"}
		bob := UserRecord{
			Name: "bob", Role: wire.Operator, Limits: wire.Limits{Projects: []string{"a", "b c"}, Workspaces: []string{"w"}}, UID: -1, CreatedAt: at,
		}
		read := func() []UserRecord {
			t.Helper()
			users, err := s.Users(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			return users
		}
		if users := read(); len(users) != 0 {
			t.Fatalf("a fresh store has %d users", len(users))
		}
		update(t, s, func(tx *Tx) error {
			for _, u := range []UserRecord{bob, ada} {
				if err := tx.PutUser(u); err != nil {
					return err
				}
			}
			got, found, err := tx.User("aDA")
			if !found || !reflect.DeepEqual(got, ada) {
				t.Errorf("got %+v, %t", got, found)
			}
			if _, found, err := tx.User("eve"); found || err != nil {
				t.Errorf("somebody nobody knows: %t, %v", found, err)
			}
			if n, err := tx.Admins(); n != 1 || err != nil {
				t.Errorf("%d admins, %v", n, err)
			}
			return err
		})
		if users := read(); !reflect.DeepEqual(users, []UserRecord{ada, bob}) {
			t.Errorf("got %+v", users)
		}
		// The same name, whatever its case, is the same row.
		ada.Name, ada.DeletedAt = "ADA", at.Add(time.Hour)
		update(t, s, func(tx *Tx) error {
			if err := tx.PutUser(ada); err != nil {
				return err
			}
			if n, err := tx.Admins(); n != 0 || err != nil {
				t.Errorf("%d admins, %v", n, err)
			}
			got, found, err := tx.User("ada")
			if !found || !reflect.DeepEqual(got, ada) {
				t.Errorf("a deleted one is %+v, %t", got, found)
			}
			return err
		})
		if users := read(); !reflect.DeepEqual(users, []UserRecord{bob}) {
			t.Errorf("got %+v", users)
		}
	})
}

func TestUserTokens(t *testing.T) {
	onEach(t, func(t *testing.T, dsn string) {
		s := open(t, dsn, Config{})
		at := time.Date(2030, 1, 2, 3, 4, 5, 678000, time.UTC)
		one := UserTokenRecord{Serial: 1, Kind: wire.UserToken, User: "ada", CreatedAt: at, CreatedBy: "uid 0", Expiry: at.Add(time.Hour)}
		two := UserTokenRecord{Serial: 2, Kind: wire.InviteToken, User: "bob", CreatedAt: at, Expiry: at.Add(2 * time.Hour)}
		read := func(user string) []UserTokenRecord {
			t.Helper()
			tokens, err := s.UserTokens(t.Context(), user)
			if err != nil {
				t.Fatal(err)
			}
			return tokens
		}
		update(t, s, func(tx *Tx) error {
			for _, k := range []UserTokenRecord{two, one} {
				if err := tx.AddUserToken(k); err != nil {
					return err
				}
			}
			return tx.PutUser(UserRecord{Name: "Ada", Role: wire.Viewer})
		})
		if got := read(""); !reflect.DeepEqual(got, []UserTokenRecord{one, two}) {
			t.Errorf("got %+v", got)
		}
		if got := read("BOB"); !reflect.DeepEqual(got, []UserTokenRecord{two}) {
			t.Errorf("got %+v", got)
		}
		if k, u, err := s.Bearer(t.Context(), 1, "ADA"); err != nil || !reflect.DeepEqual(k, one) || u.Name != "Ada" {
			t.Errorf("%+v, %+v, %v", k, u, err)
		}
		for _, c := range []struct {
			serial int64
			user   string
		}{{3, "ada"}, {1, "bob"}, {2, "bob"}} { // none, another's, of a user who is not there
			if _, _, err := s.Bearer(t.Context(), c.serial, c.user); wire.KindOf(err) != wire.NotFound {
				t.Errorf("%+v: %v", c, err)
			}
		}
		one.RevokedAt, one.RevokedBy, one.UsedAt = at.Add(time.Minute), "uid 1", at.Add(2*time.Second)
		update(t, s, func(tx *Tx) error {
			for _, f := range []func() error{
				func() error { return tx.RevokeUserToken(1, "uid 1", at.Add(time.Minute)) },
				func() error { return tx.RevokeUserToken(1, "uid 2", at.Add(time.Hour)) }, // the first one counts
				func() error { return tx.UseUserToken(1, at.Add(2*time.Second)) },
				func() error { return tx.UseUserToken(1, at.Add(time.Second)) }, // late
			} {
				if err := f(); err != nil {
					return err
				}
			}
			got, err := tx.UserToken(1)
			if !reflect.DeepEqual(got, one) {
				t.Errorf("got %+v, want %+v", got, one)
			}
			if _, err := tx.UserToken(3); wire.KindOf(err) != wire.NotFound {
				t.Errorf("one that is not there: %v", err)
			}
			return err
		})
		update(t, s, func(tx *Tx) error { return tx.PruneUserTokens(at.Add(90 * time.Minute)) })
		if got := read(""); !reflect.DeepEqual(got, []UserTokenRecord{two}) {
			t.Errorf("after pruning: %+v", got)
		}
	})
}

// A store of before there were users keeps up to which serial its tokens have no row.
func TestTokensBeforeUsersAreRemembered(t *testing.T) {
	onEach(t, func(t *testing.T, dsn string) {
		names, err := migrationNames(migrations)
		if err != nil {
			t.Fatal(err)
		}
		older := fstest.MapFS{}
		for _, name := range names {
			if schemaOf(name) > 3 {
				continue
			}
			text, err := migrations.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			older[name] = &fstest.MapFile{Data: text}
		}
		old := &Store{engine: &sqlite{path: dsn}}
		if strings.Contains(dsn, "://") {
			if old.engine, err = newPostgres(dsn); err != nil {
				t.Fatal(err)
			}
		}
		if old.writer, old.reader, err = old.engine.open(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := old.migrateFrom(t.Context(), older); err != nil {
			t.Fatal(err)
		}
		if _, err := old.writer.Exec(`INSERT INTO settings (name, value) VALUES ('token_serial', '4711')`); err != nil {
			t.Fatal(err)
		}
		if err := old.closePools(); err != nil {
			t.Fatal(err)
		}
		for _, c := range []struct {
			dsn  string
			last int64
		}{{dsn, 4711}, {filepath.Join(t.TempDir(), "fresh.db"), 0}} {
			update(t, open(t, c.dsn, Config{}), func(tx *Tx) error {
				n, err := tx.ClaimedSerial()
				if n != c.last {
					t.Errorf("tokens up to %d are believed, not %d", n, c.last)
				}
				return err
			})
		}
	})
}

func TestWithin(t *testing.T) {
	onEach(t, func(t *testing.T, dsn string) {
		s := open(t, dsn, Config{})
		job := func(project, workspace, singleton string) wire.JobSpec {
			return wire.JobSpec{
				Operation: wire.OpRun, Command: []string{"true"}, Project: project, Workspace: workspace, Singleton: singleton, Target: wire.Target{Any: true},
			}
		}
		var jobs []wire.Job
		update(t, s, func(tx *Tx) (err error) {
			jobs, err = tx.SubmitBy("ada", []wire.JobSpec{job("a", "", "s"), job("b", "w", ""), job("", "", "")}, time.Now())
			return err
		})
		for _, c := range []struct {
			limits wire.Limits
			jobs   []int
			single bool
		}{
			{wire.Limits{}, []int{2, 1, 0}, true},
			{wire.Limits{Projects: []string{"a"}}, []int{0}, true},
			{wire.Limits{Projects: []string{"b", "a"}}, []int{1, 0}, true},
			{wire.Limits{Workspaces: []string{"default"}}, []int{2, 0}, true},
			{wire.Limits{Projects: []string{"a", "b"}, Workspaces: []string{"w", "x"}}, []int{1}, false},
			{wire.Limits{Projects: []string{"c"}}, nil, false},
		} {
			got, err := s.JobsWithin(t.Context(), wire.JobFilter{}, c.limits)
			if err != nil || len(got) != len(c.jobs) {
				t.Fatalf("%s: %d jobs, %v", c.limits, len(got), err)
			}
			for i, n := range c.jobs {
				if got[i].ID != jobs[n].ID || got[i].QueuedBy != "ada" {
					t.Errorf("%s: job %d is %+v", c.limits, i, got[i])
				}
			}
			counts, err := s.JobCountsWithin(t.Context(), c.limits)
			if err != nil || counts[wire.Queued] != len(c.jobs) {
				t.Errorf("%s: %v, %v", c.limits, counts, err)
			}
			update(t, s, func(tx *Tx) error {
				within, err := tx.SingletonWithin("s", c.limits)
				if within != c.single {
					t.Errorf("%s: the singleton is within: %t", c.limits, within)
				}
				return err
			})
			page, err := s.JobsWithin(t.Context(), wire.JobFilter{After: jobs[2].ID}, c.limits)
			if want := c.limits.Allow("", "default"); want != (err == nil) || want && len(page) != len(c.jobs)-1 {
				t.Errorf("%s: after the last one %d jobs, %v", c.limits, len(page), err)
			}
		}
	})
}
