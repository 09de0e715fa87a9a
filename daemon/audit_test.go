package daemon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/waypointd/waypoint/daemon/store"
	"github.com/waypointd/waypoint/mux"
	"github.com/waypointd/waypoint/mux/wire"
)

// auditOf is the audit that a filter selects, the oldest first.
func (s *site) auditOf(t testing.TB, f wire.AuditFilter) []wire.AuditEntry {
	t.Helper()
	f.OldestFirst, f.Limit = true, 500
	var page wire.AuditPage
	if err := s.root(t).Call(t.Context(), wire.MethodAuditList, f, &page); err != nil {
		t.Fatal(err)
	}
	return page.Entries
}

// unlogged are the methods whose calls leave no entry but where they are denied,
// written by hand.
const unlogged = "server.status user.self user.tokens user.list audit.list job.get job.list job.why job.wait job.stream record.list " +
	"blob.missing blob.put blob.get runner.list runner.inspect runner.wait runner.match runner.authenticate runner.work runner.report"

// auditLog is a log that several write to.
type auditLog struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *auditLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *auditLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// TestAudit calls every method of the API so that it is done, so that it fails
// and so that it is denied, and looks for what the audit says of it.
func TestAudit(t *testing.T) {
	log := new(auditLog)
	s := newSite(t, Config{
		Logger: slog.New(slog.NewTextHandler(log, nil)),
		Reload: func(context.Context, string) (wire.Reloaded, error) {
			return wire.Reloaded{Changed: []string{"lease"}}, nil
		},
	})
	root := s.root(t)
	secrets := []string{}
	token := func(text string) string { secrets = append(secrets, text); return text }
	ada := s.mustHello(t, "tcp", operator(token(s.account(t, "ada", wire.Admin, wire.Limits{}))))
	viewer := s.mustHello(t, "tcp", operator(token(s.account(t, "vic", wire.Viewer, wire.Limits{}))))
	invite := func() *mux.Session {
		return s.mustHello(t, "tcp", operator(token(s.invite(t, "ina", wire.Viewer))))
	}
	for _, id := range []string{"r1", "r2"} {
		mustWork(t, s.mustHello(t, "tcp", remote(id, "")))
	}
	var job wire.SubmitReply
	call := func(on *mux.Session, method string, req any) error {
		if method == wire.MethodServerSnapshot {
			return nonsense(t, on, method)
		}
		switch method {
		case wire.MethodServerBootstrap, wire.MethodUserToken, wire.MethodUserInvite, wire.MethodUserAccept, wire.MethodRunnerToken:
			var reply wire.TokenReply
			err := on.Call(t.Context(), method, req, &reply)
			if err == nil {
				token(reply.Token)
			}
			return err
		case wire.MethodJobSubmit:
			return on.Call(t.Context(), method, req, &job)
		}
		return on.Call(t.Context(), method, req, nil)
	}
	spec := wire.JobSpec{Operation: wire.OpRun, Command: []string{"echo", "wpusr_secret-in-a-command"}, Project: "shop", Env: map[string]string{"PASSWORD": "hunter2"},
		Target: wire.Target{ID: "nobody"}}
	secrets = append(secrets, "wpusr_secret-in-a-command", "hunter2", "wpusr_AAAA")
	type calls []struct {
		method  string
		req     func() any
		on      func() *mux.Session
		verb    string // of the entry, where it is not the method
		object  func() string
		outcome string
		detail  string // one of its keys
	}
	onAda := func() *mux.Session { return ada }
	onRoot := func() *mux.Session { return root }
	just := func(v any) func() any { return func() any { return v } }
	text := func(v string) func() string { return func() string { return v } }
	first := func() string { return job.Jobs[0].ID }
	done := calls{
		{wire.MethodServerBootstrap, just(wire.BootstrapRequest{}), onRoot, "", text("admin"), "done", "token"},
		{wire.MethodServerBootstrap, just(wire.BootstrapRequest{}), onRoot, "", text(""), "conflict", ""},
		{wire.MethodServerReload, just(wire.ReloadRequest{}), onAda, "", text(""), "done", "changed"},
		{wire.MethodServerSnapshot, nil, onAda, "", text(""), "done", "bytes"},
		{wire.MethodTokenKeyRotate, just(wire.RotateRequest{}), onAda, "", text(""), "done", "key"},
		{wire.MethodUserToken, just(wire.UserTokenRequest{User: "eve", Role: wire.Operator}), onAda, "", text("eve"), "done", "token"},
		{wire.MethodUserToken, just(wire.UserTokenRequest{User: "nobody"}), onAda, "", text("nobody"), "not_found", ""},
		{wire.MethodUserInvite, just(wire.InviteRequest{User: "gus"}), onAda, "", text("gus"), "done", "role"},
		{wire.MethodUserInvite, just(wire.InviteRequest{User: "no name"}), onAda, "", text("no name"), "usage", ""},
		{wire.MethodUserAccept, just(wire.AcceptRequest{}), invite, "", text("ina"), "done", "token"},
		{wire.MethodUserSet, just(wire.UserSetRequest{User: "eve", Role: wire.Viewer}), onAda, "", text("eve"), "done", "was"},
		{wire.MethodUserSet, just(wire.UserSetRequest{User: "nobody"}), onAda, "", text("nobody"), "not_found", ""},
		{wire.MethodUserRevoke, just(wire.RevokeRequest{User: "eve"}), onAda, "", text("eve"), "done", "tokens"},
		{wire.MethodUserRevoke, just(wire.RevokeRequest{ID: "1"}), onAda, "", text("1"), "not_found", ""},
		{wire.MethodUserDelete, just(wire.UserRequest{User: "eve"}), onAda, "", text("eve"), "done", ""},
		{wire.MethodUserDelete, just(wire.UserRequest{User: "eve"}), onAda, "", text("eve"), "not_found", ""},
		{wire.MethodJobSubmit, just(wire.SubmitRequest{Jobs: []wire.JobSpec{spec}}), onAda, "", first, "done", "project"},
		{wire.MethodJobSubmit, just(wire.SubmitRequest{}), onAda, "", text(""), "usage", ""},
		{wire.MethodJobCancel, func() any { return wire.CancelRequest{ID: first(), Force: true} }, onAda, "", first, "done", "force"},
		{wire.MethodJobCancel, just(wire.CancelRequest{ID: "wpusr_AAAA"}), onAda, "", text("wpusr_…"), "not_found", ""},
		{wire.MethodJobRetry, func() any { return wire.JobRequest{ID: first()} }, onAda, "", first, "done", ""},
		{wire.MethodJobRetry, just(wire.JobRequest{ID: "none"}), onAda, "", text("none"), "not_found", ""},
		{wire.MethodRunnerAdopt, just(wire.AdoptRequest{ID: "r1"}), onAda, "", text("r1"), "done", "fingerprint"},
		{wire.MethodRunnerAdopt, just(wire.AdoptRequest{ID: "r1", Fingerprint: "SHA256:x"}), onAda, "", text("r1"), "conflict", ""},
		{wire.MethodRunnerDrain, just(wire.DrainRequest{ID: "r1", Drain: true}), onAda, "", text("r1"), "done", "fingerprint"},
		{wire.MethodRunnerDrain, just(wire.DrainRequest{ID: "r1"}), onAda, "runner.resume", text("r1"), "done", "fingerprint"},
		{wire.MethodRunnerDrain, just(wire.DrainRequest{ID: "none", Drain: true}), onAda, "", text("none"), "not_found", ""},
		{wire.MethodRunnerReject, just(wire.RunnerRequest{ID: "r2"}), onAda, "", text("r2"), "done", "fingerprint"},
		{wire.MethodRunnerReject, just(wire.RunnerRequest{ID: "none"}), onAda, "", text("none"), "not_found", ""},
		{wire.MethodRunnerForget, just(wire.RunnerRequest{ID: "r2"}), onAda, "", text("r2"), "done", "fingerprint"},
		{wire.MethodRunnerForget, just(wire.RunnerRequest{ID: "none"}), onAda, "", text("none"), "not_found", ""},
		{wire.MethodRunnerToken, just(wire.RunnerTokenRequest{ID: "r3", ExpiresIn: wire.Duration(time.Hour)}), onAda, "", text("r3"), "done", "token"},
		{wire.MethodRunnerToken, just(wire.RunnerTokenRequest{ID: "no id", ExpiresIn: wire.Duration(time.Hour)}), onAda, "", text("no id"), "usage", ""},
	}
	tried := map[string]bool{}
	for _, c := range done {
		var req any
		if c.req != nil {
			req = c.req()
		}
		err := call(c.on(), c.method, req)
		tried[c.method] = true
		want := c.outcome
		if got := cmpOutcome(err); got != want {
			t.Fatalf("%s %+v: %v, want %s", c.method, req, err, want)
		}
		method := c.method
		if c.verb != "" {
			method = c.verb
		}
		entries := s.auditOf(t, wire.AuditFilter{Method: method, Outcome: want})
		if len(entries) == 0 {
			t.Errorf("%s %s: no entry", method, want)
			continue
		}
		e := entries[len(entries)-1]
		object, who, role := c.object(), "user:ada", wire.Admin
		switch c.method {
		case wire.MethodServerBootstrap:
			who = e.Who() // that of this process
			if e.ActorKind != wire.ActorHost || e.Actor == "" {
				t.Errorf("%s: by %s", method, who)
			}
		case wire.MethodUserAccept:
			who, role = "user:ina", ""
		}
		if !slices.Contains(append(strings.Fields(e.Object), e.Object), object) || e.Who() != who || e.Role != role || e.Peer == "" || e.By == "" ||
			(e.Reason == "") != (want == "done") || e.At.IsZero() || c.detail != "" && e.Detail[c.detail] == "" {
			t.Errorf("%s %s about %q by %s (%s) with %q: the entry is %+v", method, want, object, who, role, c.detail, e)
		}
		if object != "" && !slices.ContainsFunc(s.auditOf(t, wire.AuditFilter{Object: object}), func(o wire.AuditEntry) bool { return o.ID == e.ID }) {
			t.Errorf("%s: not found by its object %q", method, object)
		}
	}
	if len(s.auditOf(t, wire.AuditFilter{Method: wire.MethodServerSnapshot, Outcome: wire.AuditBegun})) != 1 {
		t.Error("that a snapshot has begun is not recorded")
	}
	for _, m := range s.api() {
		if strings.Contains(" "+unlogged+" ", " "+m.name+" ") == m.audit {
			t.Errorf("%s: this test says otherwise of whether it is recorded", m.name)
		}
		if m.audit && !tried[m.name] {
			t.Errorf("%s is recorded, and this test does not call it", m.name)
		}
		// Denied to a viewer, or what is his to a runner.
		on, who := viewer, "user:vic"
		if m.who&viewers != 0 {
			on, who = s.mustHello(t, "tcp", remote("r1-"+strings.ReplaceAll(m.name, ".", "-"), "")), "runner:r1-"+strings.ReplaceAll(m.name, ".", "-")
			mustWork(t, on)
		}
		if err := nonsense(t, on, m.name); wire.KindOf(err) != wire.Denied {
			t.Errorf("%s: %v, want that it is denied", m.name, err)
		}
		entries := s.auditOf(t, wire.AuditFilter{Method: m.name, Actor: who, Outcome: "denied"})
		if len(entries) != 1 || entries[0].Reason == "" {
			t.Errorf("%s is denied to %s: %+v", m.name, who, entries)
		}
	}
	// Looking leaves nothing.
	n := len(s.auditOf(t, wire.AuditFilter{}))
	for _, method := range []string{wire.MethodServerStatus, wire.MethodJobList, wire.MethodUserSelf} {
		if err := call(root, method, struct{}{}); err != nil {
			t.Fatal(err)
		}
	}
	all := s.auditOf(t, wire.AuditFilter{})
	if len(all) != n {
		t.Errorf("%d entries more, for nothing", len(all)-n)
	}
	// No entry and no line of the log has a secret.
	if len(secrets) < 10 {
		t.Fatalf("only %d secrets", len(secrets))
	}
	said := fmt.Sprintf("%+v\n%s", all, log.String())
	for _, secret := range secrets {
		if strings.Contains(said, secret) {
			t.Errorf("a secret is said: %s", secret)
		}
	}
	for _, want := range []string{"msg=audit actor=user:ada role=admin", "method=runner.resume object=r1 outcome=done", "method=user.set object=nobody outcome=not_found"} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("the log does not say %q", want)
		}
	}
}

func cmpOutcome(err error) string {
	if err == nil {
		return wire.AuditDone
	}
	return string(wire.KindOf(err))
}

// What is rare among very many entries is found, in calls that each look at some.
func TestAuditOfLongAgo(t *testing.T) {
	if testing.Short() {
		t.Skip("short: it writes 22,000 entries")
	}
	s := newSite(t, Config{})
	root := s.clientBy(t, "memory", "")
	now := time.Now().Add(-time.Hour)
	const many, step = 22_000, 1000 // a call looks at 20,000
	for n := 0; n < many; n += step {
		if err := s.store.Update(t.Context(), func(tx *store.Tx) error {
			for i := range step {
				e := wire.AuditEntry{At: now, Count: 1, ActorKind: wire.ActorUser, Actor: "ada", Method: "job.submit", Object: "J1", Outcome: wire.AuditDone}
				if n+i == 0 || n+i == many-1 {
					e.Actor, e.Object = "otto", "rare"
				}
				if _, err := tx.Audit(e); err != nil {
					return err
				}
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range []wire.AuditFilter{{Object: "rare"}, {Actor: "otto"}, {Actor: "otto", OldestFirst: true}, {Object: "rare", Limit: 2}} {
		n := 0
		for e, err := range root.Audit(t.Context(), f) {
			if n++; err != nil || e.Object != "rare" {
				t.Fatalf("%+v, %v", e, err)
			}
		}
		if n != 2 {
			t.Errorf("%+v finds %d", f, n)
		}
		var page wire.AuditPage
		if err := s.mustHello(t, "unix", operator("")).Call(t.Context(), wire.MethodAuditList, f, &page); err != nil || len(page.Entries) == 2 || page.Next == "" {
			t.Errorf("one call about %+v answers %+v, %v", f, page, err)
		}
	}
}

// TestAuditOfLogins: those that are well, with a token; and all that are refused.
func TestAuditOfLogins(t *testing.T) {
	s := newSite(t, Config{})
	text := s.account(t, "ada", wire.Admin, wire.Limits{})
	expired := s.issueAt(t, wire.Claims{Kind: wire.UserToken, User: "ada"}, time.Hour, time.Now().Add(-2*time.Hour))
	guest := s.invite(t, "ina", wire.Viewer)
	for range 3 {
		s.mustHello(t, "tcp", operator(text))
	}
	s.mustHello(t, "tcp", operator(guest))
	for _, bad := range []string{expired, text[:40]} {
		if _, err := s.hello(t, "tcp", operator(bad)); err == nil {
			t.Fatal("let in")
		}
	}
	s.mustHello(t, "tcp", remote("r1", ""))
	if _, err := s.hello(t, "tcp", remote("r1", "")); wire.KindOf(err) != wire.Conflict {
		t.Fatalf("another one of that id: %v", err)
	}
	got := map[string]int{}
	for _, e := range append(s.auditOf(t, wire.AuditFilter{Method: auditLogin}), s.auditOf(t, wire.AuditFilter{Method: auditConnect})...) {
		by, _, _ := strings.Cut(e.By, " ")
		got[strings.Join([]string{e.Who(), by, string(e.Role), e.Method, e.Object, e.Outcome}, "|")]++
	}
	want := map[string]int{
		"user:ada|token|admin|login||done":       1, // and not three
		"user:ina|token||login||done":            1,
		"user:ada|token|admin|login||expired":    1,
		"anonymous|||login||unauthenticated":     1, // newSite's own, and that with half a token
		"anonymous|||runner.connect|r1|conflict": 1,
	}
	if !maps.Equal(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
}

// TestAuditOfFlood: a flood costs an entry a minute for each peer, no more than a
// bounded number in all, and nothing is lost of how much it was.
func TestAuditOfFlood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var (
			entries []wire.AuditEntry // as they would be in the store
			a       *auditor
		)
		a = newAuditor(func(_ context.Context, items []*auditItem) {
			for _, item := range items {
				if item.ID == "" {
					item.ID = fmt.Sprint(len(entries))
					entries = append(entries, item.AuditEntry)
				} else {
					entries[slices.IndexFunc(entries, func(e wire.AuditEntry) bool { return e.ID == item.ID })] = item.AuditEntry
				}
				item.said = item.Count
			}
		})
		refuse := func(addr string) {
			a.refused(&mux.Peer{Network: "tcp", Addr: addr}, wire.AuditEntry{At: time.Now(), ActorKind: wire.ActorAnonymous, Method: "login", Outcome: "unauthenticated"})
		}
		for range 5000 {
			refuse("192.0.2.1:999")
			time.Sleep(time.Millisecond)
		}
		a.flush(t.Context(), false)
		if len(entries) != 1 || len(a.windows) != 1 {
			t.Fatalf("%d entries, %d windows", len(entries), len(a.windows))
		}
		for i := range 50_000 { // of as many networks
			refuse(fmt.Sprintf("[2001:db8:%x:%x::1]:9", i>>8, i&0xff))
		}
		// A user is not lost among them.
		a.refused(&mux.Peer{Network: "unix", UID: 7}, wire.AuditEntry{At: time.Now(), ActorKind: wire.ActorUser, Actor: "ada", Method: "user.set", Outcome: "denied"})
		if len(a.windows) > maxStrangerWindows+2 || len(a.pending) > maxStrangerWindows+2 {
			t.Errorf("%d windows, %d pending", len(a.windows), len(a.pending))
		}
		time.Sleep(auditWindow)
		a.flush(t.Context(), false)
		if len(a.windows) != 0 || a.strange != 0 {
			t.Errorf("%d windows, %d of strangers, when all are over", len(a.windows), a.strange)
		}
		sum, ada := int64(0), 0
		for _, e := range entries {
			sum += max(e.Count, 1)
			if e.Actor == "ada" {
				ada++
			}
		}
		if want := int64(5000 + 50_000 + 1); sum != want || ada != 1 {
			t.Errorf("%d were counted, want %d; %d entries of the user", sum, want, ada)
		}
		refuse("192.0.2.1:999")
		a.flush(t.Context(), true)
		if n := len(entries); n > maxStrangerWindows+4 || entries[n-1].Count > 1 {
			t.Errorf("%d entries; the last is %+v", n, entries[n-1])
		}
	})
}

// TestAuditWindowOfAClockThatIsSet: what is alike is counted for a minute, whatever
// the host's clock says of it.
func TestAuditWindowOfAClockThatIsSet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rows := 0
		a := newAuditor(func(_ context.Context, items []*auditItem) { rows += len(items) })
		for _, ahead := range []time.Duration{0, 365 * 24 * time.Hour, -365 * 24 * time.Hour} {
			rows = 0
			for range 2 {
				a.refused(&mux.Peer{Network: "tcp", Addr: "192.0.2.1:999"}, wire.AuditEntry{
					At: time.Now().Add(ahead), ActorKind: wire.ActorAnonymous, Method: "login", Outcome: "unauthenticated"})
			}
			a.flush(t.Context(), false)
			if rows != 1 || len(a.windows) != 1 {
				t.Errorf("by a clock that is %s ahead there are %d rows, %d windows", ahead, rows, len(a.windows))
			}
			time.Sleep(auditWindow)
			if a.flush(t.Context(), false); len(a.windows) != 0 {
				t.Errorf("by a clock that is %s ahead a window is open for more than %s", ahead, auditWindow)
			}
		}
	})
}

// TestAuditIsOneWithTheAction: where the entry cannot be kept, neither is what
// was done; and the other way round.
func TestAuditIsOneWithTheAction(t *testing.T) {
	s := newSite(t, Config{})
	peer := &mux.Peer{Network: "memory"}
	for _, c := range []struct {
		name string
		f    func(*store.Tx) error
		kept int
	}{
		{"done", func(tx *store.Tx) error { return tx.PutSetting("one", "1") }, 1},
		{"refused", func(tx *store.Tx) error {
			if err := tx.PutSetting("two", "1"); err != nil {
				return err
			}
			return wire.Errorf(wire.Conflict, "no")
		}, 0},
	} {
		call := &call{method: "test." + c.name, audited: true, peer: peer}
		err := s.act(context.WithValue(t.Context(), callKey{}, call), c.f)
		if (err == nil) != (c.kept == 1) || call.kept != (c.kept == 1) {
			t.Errorf("%s: %v, kept %v", c.name, err, call.kept)
		}
		if got := s.auditOf(t, wire.AuditFilter{Method: call.method}); len(got) != c.kept {
			t.Errorf("%s: %d entries", c.name, len(got))
		}
	}
	for name, want := range map[string]string{"one": "1", "two": ""} {
		if got, err := s.store.Setting(t.Context(), name); got != want || err != nil {
			t.Errorf("%s is %q, %v", name, got, err)
		}
	}
}

// TestAuditSurvives: what was answered is there after a start, and ids go on growing.
func TestAuditSurvives(t *testing.T) {
	dir := t.TempDir()
	first := func() string {
		s, err := New(t.Context(), Config{StateDir: dir})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		near, far := mux.Pipe()
		go s.ServeConn(context.Background(), far)
		session, err := mux.Connect(t.Context(), near, mux.Config{}, operator(""), nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer session.Close()
		var reply wire.TokenReply
		if err := session.Call(t.Context(), wire.MethodUserInvite, wire.InviteRequest{User: "ina"}, &reply); err != nil {
			t.Fatal(err)
		}
		if err := session.Call(t.Context(), wire.MethodUserDelete, wire.UserRequest{User: "nobody"}, nil); wire.KindOf(err) != wire.NotFound {
			t.Fatal(err)
		}
		var page wire.AuditPage
		if err := session.Call(t.Context(), wire.MethodAuditList, wire.AuditFilter{Since: time.Now().Add(-time.Hour)}, &page); err != nil {
			t.Fatal(err)
		}
		ids := []string{}
		for _, e := range page.Entries {
			ids = append(ids, e.ID)
		}
		if !slices.IsSortedFunc(ids, func(a, b string) int { return strings.Compare(b, a) }) {
			t.Errorf("ids in the order %v", ids)
		}
		return fmt.Sprint(len(ids))
	}
	if a, b := first(), first(); a != "2" || b != "4" {
		t.Errorf("%s entries, then %s", a, b)
	}
}

// TestAuditWithoutRoom: while the store has only its reserve, what is under way
// goes on with its entries; refusals are in the log alone.
func TestAuditWithoutRoom(t *testing.T) {
	log := new(auditLog)
	var mu sync.Mutex
	room := store.Room{Free: 1 << 40, Size: 1 << 41}
	s := newSite(t, Config{Logger: slog.New(slog.NewTextHandler(log, nil)), NoAuditLog: true, StoreReserve: 1 << 30, free: func() (store.Room, error) {
		mu.Lock()
		defer mu.Unlock()
		return room, nil
	}})
	root := s.root(t)
	invite := func(name string) {
		t.Helper()
		if err := root.Call(t.Context(), wire.MethodUserInvite, wire.InviteRequest{User: name}, &wire.TokenReply{}); err != nil {
			t.Fatal(err)
		}
	}
	invite("ina")
	if strings.Contains(log.String(), "msg=audit") {
		t.Error("it is in the log, which is turned off")
	}
	mu.Lock()
	room.Free = 1
	mu.Unlock()
	s.store.SetReserve(1 << 30) // which looks
	invite("ivo")
	if err := root.Call(t.Context(), wire.MethodUserDelete, wire.UserRequest{User: "nobody"}, nil); wire.KindOf(err) != wire.NotFound {
		t.Fatal(err)
	}
	if got := s.auditOf(t, wire.AuditFilter{Method: "user."}); len(got) != 2 || got[1].Object != "ivo" {
		t.Errorf("the audit is %+v", got)
	}
	if want := `msg="audit entry is in this log only" actor=host:`; !strings.Contains(log.String(), want) ||
		!strings.Contains(log.String(), "method=user.delete object=nobody outcome=not_found") {
		t.Errorf("what was refused is nowhere:\n%s", log)
	}
}

// TestActionBeforeItsEntry: where there is room for what is to be done and not for
// its entry as well, it is done, and the log has the entry.
func TestActionBeforeItsEntry(t *testing.T) {
	log := new(auditLog)
	var full atomic.Bool
	s := newSite(t, Config{Logger: slog.New(slog.NewTextHandler(log, nil)), NoAuditLog: true, faults: &store.Faults{
		Gather: func() {},
		Begin: func(callers int) error {
			if callers > 0 && full.CompareAndSwap(true, false) { // the next one is smaller
				return errors.New("no room")
			}
			return nil
		},
	}})
	s.auditOf(t, wire.AuditFilter{}) // and nothing is on its way there any more
	c := &call{method: "test.done", object: "it", audited: true, peer: &mux.Peer{Network: "memory"}}
	full.Store(true)
	if err := s.act(context.WithValue(t.Context(), callKey{}, c), func(tx *store.Tx) error { return tx.PutSetting("one", "1") }); err != nil {
		t.Fatal(err)
	}
	s.concluded(c, nil)
	if got, err := s.store.Setting(t.Context(), "one"); got != "1" || err != nil {
		t.Errorf("it was not done: %q, %v", got, err)
	}
	if got := s.auditOf(t, wire.AuditFilter{Method: "test.done"}); len(got) != 0 {
		t.Errorf("the audit has %+v", got)
	}
	if want := "audit entry is in this log only"; strings.Count(log.String(), want) != 1 || !strings.Contains(log.String(), "method=test.done object=it outcome=done") {
		t.Errorf("the log does not say it:\n%s", log)
	}
}
