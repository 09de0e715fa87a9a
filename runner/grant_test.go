package runner

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/waypointd/waypoint/mux/wire"
)

func (s *testServer) grant(text string) { s.order(wire.WorkOrder{Grant: &wire.Grant{Token: text}}) }

func TestGrant(t *testing.T) {
	g, renewed := token(1, time.Hour), token(2, time.Hour)
	names := map[string]string{g: "g", renewed: "h"}
	b := newTokenBench(t, nil)
	b.s.accept(g, renewed)
	b.start().connected()
	b.event("it is not admitted", func(ev Event) bool { return ev.Standing.Problem == wire.NoToken })
	b.s.grant(g)
	if got := b.shows(b.auth(1).Offers, names); got != "file=g" || !b.auth(1).Stored || b.file() != g {
		t.Errorf("shows %q, stored %v", got, b.auth(1).Stored)
	}
	b.event("it is admitted", func(ev Event) bool { return ev.Standing.Admitted && ev.Standing.Source == wire.SourceFile })
	info, err := os.Stat(filepath.Join(b.cfg.Dir, "token"))
	if err != nil || info.Mode() != 0o600 {
		t.Errorf("token file: %v, %v", info.Mode(), err)
	}
	// The same again: it is confirmed again, and the file is not touched.
	b.s.grant(g)
	if !b.auth(2).Stored {
		t.Error("the same grant was not confirmed")
	}
	if again, err := os.Stat(filepath.Join(b.cfg.Dir, "token")); err != nil || !os.SameFile(info, again) {
		t.Errorf("the file was written again: %v", err)
	}
	b.s.grant(renewed)
	if got := b.shows(b.auth(3).Offers, names); got != "file=h file=g" || !b.auth(3).Stored || b.file() != renewed {
		t.Errorf("renewal shows %q, stored %v", got, b.auth(3).Stored)
	}
	b.event("the new one is in use", func(ev Event) bool { return ev.Standing.Expiry.Equal(expiry(renewed)) })
	// What is no runner's token does not reach the file.
	b.s.grant("garbage")
	user := wire.TokenParts{Kind: wire.UserToken, Claims: []byte("{}")}.String()
	b.s.grant(user)
	b.put(g)
	if got := b.shows(b.auth(4).Offers, names); got != "file=g file=h" || b.auth(4).Stored {
		t.Errorf("change shows %q, stored %v", got, b.auth(4).Stored)
	}
	if hellos, _, auths := b.s.counts(); auths != 4 || hellos != 1 {
		t.Errorf("%d authentications in %d sessions", auths, hellos)
	}
}

// The server, which has not heard that a grant is stored, grants it again:
// after the loss of the session or of the agent, at any step.
func TestGrantAnswerLost(t *testing.T) {
	g := token(1, time.Hour)
	for _, killed := range []bool{false, true} {
		b := newTokenBench(t, nil)
		b.s.accept(g)
		gate := make(chan struct{})
		b.s.authenticate = func() error {
			select {
			case <-gate:
			default: // the first one
				close(gate)
				go b.s.cut()
				return wire.Errorf(wire.Unavailable, "not now")
			}
			return nil
		}
		b.start().connected()
		b.s.grant(g)
		<-gate
		if killed {
			b.restart()
		}
		b.s.await("it shows the stored one", func() bool {
			offers := b.s.hellos[len(b.s.hellos)-1].Runner.Offers
			return b.s.work != nil && len(b.s.begins) == len(b.s.hellos) && len(offers) == 1 && offers[0].Source == wire.SourceFile && offers[0].Token == g
		})
		_, _, n := b.s.counts()
		b.s.grant(g)
		if a := b.auth(n + 1); !a.Stored || b.file() != g {
			t.Errorf("killed %v: the grant was not confirmed: %+v", killed, a)
		}
		b.kill()
		b.wait()
	}
}

// A grant that cannot be stored is used from memory, and stored when it can be.
func TestGrantNotStored(t *testing.T) {
	g, env := token(1, time.Hour), token(2, time.Hour)
	names := map[string]string{g: "g", env: "env"}
	b := newTokenBench(t, func(c *Config) { c.Tokens.Environment = env })
	b.s.accept(g, env)
	path := filepath.Join(b.cfg.Dir, "token")
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	b.start().connected()
	b.s.grant(g)
	if got := b.shows(b.auth(1).Offers, names); got != "memory=g environment=env" || b.auth(1).Stored {
		t.Errorf("shows %q, stored %v", got, b.auth(1).Stored)
	}
	b.event("it is used from memory", func(ev Event) bool { return ev.Standing.Source == wire.SourceMemory })
	if got := b.shows(b.again().Runner.Offers, names); got != "memory=g environment=env" {
		t.Errorf("hello shows %q", got)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	b.s.await("it is confirmed", func() bool { return b.s.auths[len(b.s.auths)-1].Stored })
	if got := b.shows(b.auth(2).Offers, names); got != "file=g environment=env" || b.file() != g {
		t.Errorf("shows %q", got)
	}
	b.event("it is used from the file", func(ev Event) bool { return ev.Standing.Source == wire.SourceFile })
	if _, _, n := b.s.counts(); n != 2 {
		t.Errorf("%d authentications, want 2", n)
	}
}

// A token that an operator puts into the file later goes before the grant
// that could not be stored, and is not overwritten by it.
func TestGrantOutdone(t *testing.T) {
	g, later := token(1, time.Hour), token(2, time.Hour)
	names := map[string]string{g: "g", later: "later"}
	b := newTokenBench(t, nil)
	b.waits = func(w *waits) { w.storeMin, w.storeMax = time.Hour, time.Hour }
	b.s.accept(g, later)
	path := filepath.Join(b.cfg.Dir, "token")
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	b.start().connected()
	b.s.grant(g)
	b.event("it is used from memory", func(ev Event) bool { return ev.Standing.Source == wire.SourceMemory })
	if err := os.WriteFile(path+".new", []byte(later), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
	b.event("the later one is in use", func(ev Event) bool { return ev.Standing.Source == wire.SourceFile })
	_, _, n := b.s.counts()
	last := b.auth(n)
	if got := b.shows(last.Offers, names); got != "file=later memory=g" || last.Stored || b.file() != later {
		t.Errorf("shows %q, stored %v", got, last.Stored)
	}
}

// What could not be stored in one session is tried at once in the next.
func TestGrantAtNextSession(t *testing.T) {
	g := token(1, time.Hour)
	log := new(lineLog)
	b := newTokenBench(t, func(c *Config) { c.Logger = slog.New(slog.NewTextHandler(log, nil)) })
	b.waits = func(w *waits) { w.storeMin, w.storeMax = time.Hour, time.Hour }
	log.wrote = func() { b.s.change(func() {}) }
	b.s.accept(g)
	if err := os.Mkdir(filepath.Join(b.cfg.Dir, "token"), 0o700); err != nil {
		t.Fatal(err)
	}
	b.start().connected()
	b.s.grant(g)
	b.event("it is used from memory", func(ev Event) bool { return ev.Standing.Source == wire.SourceMemory })
	if n := log.count("cannot be stored"); n != 1 {
		t.Errorf("tried %d times", n)
	}
	b.s.cut()
	b.s.await("it is tried again", func() bool { return log.count("cannot be stored") == 2 })
}
