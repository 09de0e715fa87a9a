package runner

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/waypointd/waypoint/mux"
	"github.com/waypointd/waypoint/mux/wire"
	"github.com/waypointd/waypoint/statedir"
)

// standing is what the server makes of the tokens it has seen last; mu is held.
func (s *testServer) standing() wire.Standing {
	if s.judge != nil {
		return s.judge(s.offers)
	}
	return wire.Standing{State: s.state, Admitted: s.state != wire.Pending && s.state != wire.Rejected}
}

func (s *testServer) serveAuthenticate(_ context.Context, _ *mux.Peer, req wire.AuthenticateRequest) (st wire.Standing, err error) {
	var hook func() error
	s.change(func() {
		s.auths = append(s.auths, req)
		if hook = s.authenticate; hook == nil {
			s.offers = req.Offers
			st = s.standing()
		}
	})
	if hook == nil {
		return st, nil
	}
	if err := hook(); err != nil {
		return st, err
	}
	s.change(func() {
		s.offers = req.Offers
		st = s.standing()
	})
	return st, nil
}

// accept has the server use the first of these tokens, and call the others invalid.
func (s *testServer) accept(good ...string) {
	s.change(func() {
		s.judge = func(offers []wire.TokenOffer) wire.Standing {
			st := wire.Standing{State: wire.Adopted}
			for _, o := range offers {
				if st.Admitted = slices.Contains(good, o.Token); st.Admitted {
					claims, _ := wire.ReadToken(o.Token)
					st.Source, st.Issued, st.Expiry = o.Source, claims.Issued, claims.Expiry
					return st
				}
				st.Refused = append(st.Refused, wire.TokenRefusal{Source: o.Source, Problem: wire.TokenInvalid, Detail: "it is bad"})
				st.Problem = wire.TokenInvalid
			}
			if len(offers) == 0 {
				st.Problem = wire.NoToken
			}
			return st
		}
	})
}

// tell sends the standing that the server has of the runner now.
func (s *testServer) tell() {
	s.mu.Lock()
	st := s.standing()
	s.mu.Unlock()
	s.order(wire.WorkOrder{Standing: &st})
}

// nudge has the runner say something: it does not hold this job.
func (s *testServer) nudge() {
	s.order(wire.WorkOrder{Start: &wire.JobRef{Job: "nobodys", Attempt: 1}})
}

// shows is what a list of offers shows: "file=A environment=B".
func (b *bench) shows(offers []wire.TokenOffer, names map[string]string) string {
	var list []string
	for _, o := range offers {
		name, ok := names[o.Token]
		if !ok {
			name = o.Token
		}
		list = append(list, string(o.Source)+"="+name)
	}
	return strings.Join(list, " ")
}

// token is one that looks like a token; nobody has signed it.
func token(serial int64, life time.Duration) string {
	now := time.Now().UTC()
	body, _ := json.Marshal(wire.Claims{Serial: serial, Issued: now, Expiry: now.Add(life).Add(time.Duration(serial))})
	return wire.TokenParts{Kind: wire.RunnerToken, Claims: body}.String()
}

// newTokenBench is a bench whose runner has a state directory of its own.
func newTokenBench(t *testing.T, change func(*Config)) *bench {
	return newBench(t, func(c *Config) {
		dir, err := statedir.Open(c.Dir)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { dir.Close() })
		c.Tokens.Dir = dir
		if change != nil {
			change(c)
		}
	})
}

// put puts a token into the file, as an operator does.
func (b *bench) put(text string) {
	b.t.Helper()
	if err := os.WriteFile(filepath.Join(b.cfg.Dir, "token"), []byte(text), 0o600); err != nil {
		b.t.Fatal(err)
	}
}

// file is what the token file holds.
func (b *bench) file() string {
	b.t.Helper()
	body, err := os.ReadFile(filepath.Join(b.cfg.Dir, "token"))
	if err != nil {
		b.t.Fatal(err)
	}
	return strings.TrimSpace(string(body))
}

// event waits for one that the condition holds for.
func (b *bench) event(what string, cond func(Event) bool) Event {
	b.t.Helper()
	limit := time.NewTimer(30 * time.Second)
	defer limit.Stop()
	for {
		select {
		case ev := <-b.events:
			if cond(ev) {
				return ev
			}
		case <-limit.C:
			b.t.Fatalf("timed out waiting for the event that %s", what)
		}
	}
}

// auth waits for the nth authentication, from 1.
func (b *bench) auth(n int) wire.AuthenticateRequest {
	b.t.Helper()
	b.s.await(fmt.Sprintf("it has authenticated %d times", n), func() bool { return len(b.s.auths) >= n })
	b.s.mu.Lock()
	defer b.s.mu.Unlock()
	return b.s.auths[n-1]
}

// counts are how many hellos, work streams and authentications there were.
func (s *testServer) counts() (hellos, begins, auths int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.hellos), len(s.begins), len(s.auths)
}

// hello is the last one.
func (s *testServer) hello() wire.Hello {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.hellos[len(s.hellos)-1]
}

// again cuts the session, waits for the next, and returns what it was begun with.
func (b *bench) again() wire.Hello {
	b.t.Helper()
	_, n, _ := b.s.counts()
	b.s.cut()
	b.s.await("it is back", func() bool { return len(b.s.begins) > n && b.s.work != nil })
	return b.s.hello()
}

func TestSources(t *testing.T) {
	one, two, three := token(1, time.Hour), token(2, time.Hour), token(3, time.Hour)
	names := map[string]string{one: "1", two: "2", three: "3"}
	for _, c := range []struct {
		name, file, environment, credential string // "dir": a directory is in its place; "": absent
		want                                string
		log                                 string // a word of it, "" where nothing is said
	}{
		{"none", "", "", "", "", ""},
		{"all", one, two, three, "file=1 environment=2 credential=3", ""},
		{"space around", " \n" + one + "\r\n\n", "\t" + two + " ", three + "\n", "file=1 environment=2 credential=3", ""},
		{"empty file", " \n", two, "", "environment=2", ""},
		{"credential alone", "", "", three, "credential=3", ""},
		{"the same twice", one, one, two, "file=1 credential=2", ""},
		{"the same everywhere", one, one, one, "file=1", ""},
		{"file is a directory", "dir", two, three, "environment=2 credential=3", "a directory"},
		{"credential is a directory", one, "", "dir", "file=1", "no regular file"},
		{"environment too long", "", strings.Repeat("x", wire.MaxToken+1), three, "credential=3", "longer"},
		{"credential too long", "", two, strings.Repeat("x", wire.MaxToken+1), "environment=2", "longer"},
		{"no token", "hello", two, "", "file=hello environment=2", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir, err := statedir.Open(t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			defer dir.Close()
			place := func(path, text string) {
				switch text {
				case "":
				case "dir":
					err = os.Mkdir(path, 0o700)
				default:
					err = os.WriteFile(path, []byte(text), 0o600)
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			credential := filepath.Join(t.TempDir(), "credential")
			place(dir.Path("token"), c.file)
			place(credential, c.credential)
			var log bytes.Buffer
			tokens := Tokens{Dir: dir, Environment: c.environment, CredentialFile: credential}
			got := new(bench).shows(tokens.Read(slog.New(slog.NewTextHandler(&log, nil))), names)
			if got != c.want {
				t.Errorf("offers %q, want %q", got, c.want)
			}
			if (log.Len() > 0) != (c.log != "") || !strings.Contains(log.String(), c.log) {
				t.Errorf("log %q, want %q in it", log.String(), c.log)
			}
			if got := new(bench).shows(tokens.Read(nil), names); got != c.want {
				t.Errorf("offers without a log %q, want %q", got, c.want)
			}
		})
	}
	if offers := (Tokens{}).Read(nil); len(offers) > 0 {
		t.Errorf("no sources offer %d tokens", len(offers))
	}
}

// What is wrong with a source is said once, and again when it has changed.
func TestSourceTrouble(t *testing.T) {
	log := new(lineLog)
	b := newTokenBench(t, func(c *Config) { c.Logger = slog.New(slog.NewTextHandler(log, nil)) })
	if err := os.Mkdir(filepath.Join(b.cfg.Dir, "token"), 0o700); err != nil {
		t.Fatal(err)
	}
	b.start().connected()
	for range 3 {
		b.again()
	}
	if n := log.count("token cannot be read"); n != 1 {
		t.Errorf("said %d times", n)
	}
}

// lineLog is a log that can be read while it is written.
type lineLog struct {
	wrote func() // called behind each write; nil is not
	mu    sync.Mutex
	text  bytes.Buffer
}

func (l *lineLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	n, err := l.text.Write(p)
	l.mu.Unlock()
	if l.wrote != nil {
		l.wrote()
	}
	return n, err
}

func (l *lineLog) count(what string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.text.String(), what)
}

// A text that is no token is not sent to the server as a whole.
func TestShown(t *testing.T) {
	real := token(1, time.Hour)
	for _, c := range []struct{ text, want string }{
		{real, real},
		{strings.Repeat("x", 5000), strings.Repeat("x", maxNotToken)},
		{"\xff", "?"},
		{real + strings.Repeat("x", maxShown), real[:min(len(real), maxNotToken)]},
	} {
		got := shown(wire.TokenOffer{Source: wire.SourceFile, Token: c.text})
		if !strings.HasPrefix(got.Token, c.want) || len(got.Token) > max(len(c.want), maxNotToken) {
			t.Errorf("%.20q… is shown as %q", c.text, got.Token)
		}
	}
}

// A new token is taken up over the living session; one that is there already
// is not shown again.
func TestNewToken(t *testing.T) {
	a, next, last := token(1, time.Hour), token(2, time.Hour), token(3, time.Hour)
	names := map[string]string{a: "a", next: "b", last: "c"}
	b := newTokenBench(t, nil)
	b.s.accept(a, next, last)
	b.put(a)
	b.start().connected()
	if got := b.shows(b.s.hello().Runner.Offers, names); got != "file=a" {
		t.Errorf("hello shows %q", got)
	}
	job := script("echo on; sleep 1000")
	b.s.assign(job)
	b.s.await("it runs", func() bool { return len(b.s.jobs[job.JobRef].log) > 0 })
	b.put(next + "\n")
	if got := b.shows(b.auth(1).Offers, names); got != "file=b file=a" {
		t.Errorf("first change shows %q", got)
	}
	b.event("the new one is in use", func(ev Event) bool { return ev.Standing.Expiry.Equal(expiry(next)) })
	b.put(" " + next) // the same
	b.r.Reload()
	b.put(last)
	if got := b.shows(b.auth(2).Offers, names); got != "file=c file=b" {
		t.Errorf("second change shows %q", got)
	}
	if n, _, _ := b.s.counts(); n != 1 || b.auth(1).Stored || b.auth(2).Stored {
		t.Errorf("%d sessions; stored: %v, %v", n, b.auth(1).Stored, b.auth(2).Stored)
	}
	b.s.order(wire.WorkOrder{Cancel: &wire.CancelJob{JobRef: job.JobRef, Force: true}})
	want(t, b.s.ended(job.JobRef), wire.Canceled, wire.ReasonCanceled)
}

func expiry(text string) time.Time {
	claims, _ := wire.ReadToken(text)
	return claims.Expiry
}

// A bad new token leaves the old one in use, also over a lost session; to
// delete the file changes nothing until then.
func TestBadToken(t *testing.T) {
	a := token(1, time.Hour)
	names := map[string]string{a: "a"}
	b := newTokenBench(t, nil)
	b.s.accept(a)
	b.put(a)
	b.start().connected()
	b.put("garbage")
	if got := b.shows(b.auth(1).Offers, names); got != "file=garbage file=a" {
		t.Errorf("shows %q", got)
	}
	ev := b.event("the bad one was refused", func(ev Event) bool { return len(ev.Standing.Refused) > 0 })
	if !ev.Standing.Admitted || !ev.Standing.Expiry.Equal(expiry(a)) {
		t.Errorf("standing %+v", ev.Standing)
	}
	again := func(want string) {
		t.Helper()
		if got := b.shows(b.again().Runner.Offers, names); got != want {
			t.Errorf("hello shows %q, want %q", got, want)
		}
	}
	again("file=garbage file=a")
	if err := os.Remove(filepath.Join(b.cfg.Dir, "token")); err != nil {
		t.Fatal(err)
	}
	b.r.Reload()
	again("")
	ev = b.event("it is not admitted", func(ev Event) bool { return ev.State != "" && !ev.Standing.Admitted })
	if ev.Standing.Problem != wire.NoToken || ev.Again {
		t.Errorf("standing %+v, again %v", ev.Standing, ev.Again)
	}
	b.put(a)
	if got := b.shows(b.auth(2).Offers, names); got != "file=a" {
		t.Errorf("shows %q", got)
	}
	b.event("it is admitted again", func(ev Event) bool { return ev.Standing.Admitted })
}

// When the token in use lapses, a source that is not watched may have another;
// where it has none, nothing is said. Then a new file heals.
func TestLapse(t *testing.T) {
	a, other, next := token(1, time.Hour), token(2, time.Hour), token(3, time.Hour)
	names := map[string]string{a: "a", other: "other", next: "b"}
	credential := filepath.Join(t.TempDir(), "credential")
	b := newTokenBench(t, func(c *Config) { c.Tokens.CredentialFile = credential })
	b.s.accept(a)
	b.put(a)
	b.start().connected()
	if err := os.WriteFile(credential, []byte(other), 0o600); err != nil {
		t.Fatal(err)
	}
	b.s.accept(other)
	lapsed := wire.WorkOrder{Standing: &wire.Standing{State: wire.Adopted, Problem: wire.TokenExpired}}
	b.s.order(lapsed)
	if got := b.shows(b.auth(1).Offers, names); got != "file=a credential=other" {
		t.Errorf("shows %q", got)
	}
	b.event("the other is in use", func(ev Event) bool { return ev.Standing.Source == wire.SourceCredential })
	b.s.accept(next)
	b.s.order(lapsed)
	b.event("none is usable", func(ev Event) bool { return !ev.Standing.Admitted })
	b.put(next)
	if got := b.shows(b.auth(2).Offers, names); got != "file=b credential=other" {
		t.Errorf("shows %q", got)
	}
	b.event("the new one is in use", func(ev Event) bool { return ev.Standing.Expiry.Equal(expiry(next)) })
	if hellos, _, auths := b.s.counts(); auths != 2 || hellos != 1 {
		t.Errorf("%d authentications in %d sessions, want 2 in 1", auths, hellos)
	}
}

// What the server could not use is shown to it again, because its clock may have
// been set meanwhile.
func TestShownAnew(t *testing.T) {
	a := token(1, time.Hour)
	b := newTokenBench(t, nil)
	b.waits = func(w *waits) { w.anew = 10 * time.Millisecond }
	b.s.accept()
	b.put(a)
	b.start().connected()
	if got := b.shows(b.auth(2).Offers, map[string]string{a: "a"}); got != "file=a" {
		t.Errorf("shows %q", got)
	}
	b.s.accept(a)
	b.event("it is admitted", func(ev Event) bool { return ev.Standing != nil && ev.Standing.Admitted })
}

// What the server cannot look at now is shown again.
func TestAuthenticateAgain(t *testing.T) {
	a, next := token(1, time.Hour), token(2, time.Hour)
	b := newTokenBench(t, nil)
	b.s.accept(a, next)
	b.put(a)
	b.start().connected()
	left := 3
	b.s.change(func() {
		b.s.authenticate = func() error {
			if left--; left >= 0 {
				return wire.Errorf(wire.Unavailable, "the disk is full")
			}
			return nil
		}
	})
	b.put(next)
	b.event("the new one is in use", func(ev Event) bool { return ev.Standing.Expiry.Equal(expiry(next)) })
	if _, _, n := b.s.counts(); n != 4 {
		t.Errorf("%d authentications, want 4", n)
	}
	// A refusal is not repeated.
	b.s.change(func() { b.s.authenticate = func() error { return wire.Errorf(wire.Denied, "no") } })
	b.put("garbage")
	b.auth(5)
	b.stirred()
	b.s.change(func() { b.s.authenticate = nil })
	b.put(a)
	if offers := b.auth(6).Offers; offers[0].Token != a {
		t.Errorf("shown %+v", offers)
	}
}

// stirred has the runner look at its tokens, and waits until it has.
func (b *bench) stirred() {
	b.t.Helper()
	limit := time.After(30 * time.Second)
	for range 3 { // the channel holds one: when the third is in, the first has been dealt with
		select {
		case b.r.tokens.stir <- struct{}{}:
		case <-limit:
			b.t.Fatal("the runner does not look at its tokens")
		}
	}
}

func TestLoginOfLocal(t *testing.T) {
	b := newBench(t, func(c *Config) { c.Kind, c.ID, c.Root, c.Login = wire.KindLocal, "", t.TempDir(), "wpusr_x" })
	b.s.runnerID = "cli-1"
	b.start().connected()
	if h := b.s.hello(); h.Token != "wpusr_x" || len(h.Runner.Offers) > 0 {
		t.Errorf("hello %+v", h)
	}
}
