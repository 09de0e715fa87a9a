package daemon

import (
	"context"
	"crypto/ed25519"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/waypointd/waypoint/daemon/store"
	"github.com/waypointd/waypoint/mux"
	"github.com/waypointd/waypoint/mux/wire"
)

// A change of what a user may do counts from the next call of a living session on.
func TestRightsAreThoseOfNow(t *testing.T) {
	s := newSite(t, Config{})
	token := s.account(t, "otto", wire.Operator, wire.Limits{})
	living, admin := s.mustHello(t, "tcp", operator(token)), s.clientBy(t, "memory", "")
	submit := func() error {
		return living.Call(t.Context(), wire.MethodJobSubmit, wire.SubmitRequest{Jobs: []wire.JobSpec{jobOf("bank", "")}}, nil)
	}
	if err := submit(); err != nil {
		t.Fatal(err)
	}
	set := func(req wire.UserSetRequest) {
		t.Helper()
		req.User = "OTTO"
		if _, err := admin.SetUser(t.Context(), req); err != nil {
			t.Fatal(err)
		}
	}
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	own, err := s.helloAs(t, "tcp", local(token), key)
	if err != nil {
		t.Fatal(err)
	}
	missing := func() error { return own.Call(t.Context(), wire.MethodBlobMissing, wire.BlobDigests{}, nil) }
	if err := missing(); err != nil {
		t.Error(err)
	}
	set(wire.UserSetRequest{Role: wire.Viewer})
	is(t, missing(), wire.Denied, "a runner of one's own is for the role operator, and otto is a viewer", "waypoint user set otto --role operator")
	is(t, submit(), wire.Denied, "job.submit is for the role operator, and otto is a viewer", "waypoint user set otto --role operator")
	set(wire.UserSetRequest{Role: wire.Operator, Limits: &wire.Limits{Projects: []string{"shop"}}})
	is(t, submit(), wire.Denied, "limited to project shop", "--project")
	set(wire.UserSetRequest{Role: wire.Admin, Limits: &wire.Limits{}})
	if err := submit(); err != nil {
		t.Error(err)
	}
	if err := living.Call(t.Context(), wire.MethodUserList, wire.UserFilter{}, nil); err != nil {
		t.Error(err)
	}
	var self wire.Self
	if err := living.Call(t.Context(), wire.MethodUserSelf, wire.SelfRequest{}, &self); err != nil || self.User != "otto" || self.Role != wire.Admin || self.TokenID == "" || self.Expiry.IsZero() {
		t.Errorf("%+v, %v", self, err)
	}
}

// Who may only see makes himself tokens, but not without end; an admin goes on.
func TestTokensWithoutEnd(t *testing.T) {
	s := newSite(t, Config{})
	token := s.account(t, "vera", wire.Viewer, wire.Limits{})
	make := func(c *mux.Session, user string) error {
		return c.Call(t.Context(), wire.MethodUserToken, wire.UserTokenRequest{User: user}, nil)
	}
	living := s.mustHello(t, "tcp", operator(token))
	if err := make(living, ""); err != nil {
		t.Fatal(err)
	}
	if err := s.store.Update(t.Context(), func(tx *store.Tx) error {
		for i := range int64(maxUserTokens - 2) {
			if err := tx.AddUserToken(store.UserTokenRecord{Serial: i + 1, Kind: wire.UserToken, User: "vera"}); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	is(t, make(living, ""), wire.Conflict, "10000 tokens of vera are on record", "waypoint user token --user vera")
	if err := make(s.mustHello(t, "memory", operator("")), "vera"); err != nil {
		t.Error(err)
	}
	if err := make(s.mustHello(t, "tcp", operator(s.account(t, "otto", wire.Operator, wire.Limits{}))), ""); err != nil {
		t.Error(err)
	}
}

// ends fails unless a session ends with what it waits for.
func ends(t *testing.T, session *mux.Session) {
	t.Helper()
	select {
	case <-session.Done():
	case <-time.After(patience):
		t.Fatal("the session goes on")
	}
}

// A login that expires ends the session of the command line, but not before the
// job that its own runner has: the job is reported, its output still arrives, and
// nothing new is answered or given.
func TestJobOutlivesLogin(t *testing.T) {
	s := newSite(t, Config{})
	text := s.issueAt(t, wire.Claims{Kind: wire.UserToken, User: "ada"}, 3*time.Second, time.Now())
	claims, err := wire.ReadToken(text)
	if err != nil {
		t.Fatal(err)
	}
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	own, err := s.helloAs(t, "tcp", local(text), key)
	if err != nil {
		t.Fatal(err)
	}
	work, err := own.Open(ctx, wire.MethodWork, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer work.Close()
	await := func(want func(o wire.WorkOrder) bool) (o wire.WorkOrder) {
		t.Helper()
		for {
			o = wire.WorkOrder{}
			if err := work.RecvMsg(&o); err != nil {
				t.Fatal(err)
			}
			if want(o) {
				return o
			}
		}
	}
	if err := work.Send(wire.WorkEvent{Begin: &wire.WorkBegin{Concurrency: 2}}); err != nil {
		t.Fatal(err)
	}
	await(func(o wire.WorkOrder) bool { return o.Begun != nil })
	session := s.mustHello(t, "tcp", operator(text))
	spec := jobOf("", "")
	spec.Target = wire.Target{ID: localID(key.Public().(ed25519.PublicKey))}
	var queued wire.SubmitReply
	if err := session.Call(ctx, wire.MethodJobSubmit, wire.SubmitRequest{Jobs: []wire.JobSpec{spec}}, &queued); err != nil {
		t.Fatal(err)
	}
	id := queued.Jobs[0].ID
	ref := await(func(o wire.WorkOrder) bool { return o.Assign != nil }).Assign.JobRef
	if err := work.Send(wire.WorkEvent{Ack: &ref}); err != nil {
		t.Fatal(err)
	}
	await(func(o wire.WorkOrder) bool { return o.Start != nil })
	waited := make(chan error, 1)
	var ended wire.Job
	go func() { waited <- session.Call(ctx, wire.MethodJobWait, wire.JobRequest{ID: id}, &ended) }()

	expired := time.NewTimer(time.Until(claims.Expiry))
	<-expired.C
	for session.Err() == nil {
		err := session.Call(ctx, wire.MethodJobGet, wire.JobRequest{ID: id}, nil)
		if err != nil {
			is(t, err, wire.Expired, "expired at", "waypoint login")
			break
		}
	}
	if _, err := s.hello(t, "tcp", operator(text)); wire.KindOf(err) != wire.Expired {
		t.Errorf("another session: %v", err)
	}
	if n := len(s.fleet.candidates(map[string]int{}, time.Now())); n != 0 {
		t.Error("the runner would be given another job")
	}
	report, err := own.Open(ctx, wire.MethodReport, wire.ReportRequest{JobRef: ref})
	if err != nil {
		t.Fatal(err)
	}
	defer report.Close()
	if err := report.SendData(wire.Data{Stream: wire.Stdout, Bytes: []byte("made it\n")}); err != nil {
		t.Fatal(err)
	}
	if err := report.Send(wire.Result{State: wire.Success, ExitCode: new(0)}); err != nil {
		t.Fatal(err)
	}
	for done := false; !done; {
		var o wire.ReportOrder
		if err := report.RecvMsg(&o); err != nil {
			t.Fatal(err)
		}
		done = o.Ended
	}
	if err := <-waited; err != nil || ended.State != wire.Success || ended.LogBytes != 8 {
		t.Errorf("%+v, %v", ended, err)
	}
	for _, over := range []*mux.Session{session, own} {
		ends(t, over)
	}
}

// The sessions of a token, or a user, that has come to an end do so at once, those
// of others go on. Who ends his own is answered first.
func TestEndOfTokens(t *testing.T) {
	s := newSite(t, Config{})
	one := s.account(t, "otto", wire.Operator, wire.Limits{})
	claims, err := wire.ReadToken(one)
	if err != nil {
		t.Fatal(err)
	}
	two := s.account(t, "otto", "", wire.Limits{})
	admin := s.account(t, "ada", wire.Admin, wire.Limits{})
	first, own := s.mustHello(t, "tcp", operator(one)), s.mustHello(t, "tcp", local(one))
	second := s.mustHello(t, "tcp", operator(two))
	job := mustQueue(t, s.as(t, two), jobOf("", ""))[0]
	waiting := make(chan error, 1)
	go func() {
		waiting <- first.Call(t.Context(), wire.MethodJobWait, wire.JobRequest{ID: job.ID}, nil)
	}()
	var page wire.UserTokenPage
	if err := second.Call(t.Context(), wire.MethodUserRevoke, wire.RevokeRequest{ID: fmt.Sprint(claims.Serial)}, &page); err != nil || len(page.Tokens) != 1 || page.Tokens[0].Revoked.IsZero() {
		t.Fatalf("%+v, %v", page, err)
	}
	ends(t, first)
	ends(t, own)
	if err := <-waiting; err == nil {
		t.Error("the wait has an answer")
	}
	if err := second.Call(t.Context(), wire.MethodUserSelf, wire.SelfRequest{}, nil); err != nil {
		t.Errorf("the other token: %v", err)
	}
	// Others' are not his to see or to end.
	adminClaims, err := wire.ReadToken(admin)
	if err != nil {
		t.Fatal(err)
	}
	err = second.Call(t.Context(), wire.MethodUserRevoke, wire.RevokeRequest{ID: fmt.Sprint(adminClaims.Serial)}, nil)
	is(t, err, wire.NotFound, "not found", "")
	err = second.Call(t.Context(), wire.MethodUserRevoke, wire.RevokeRequest{User: "ada"}, nil)
	is(t, err, wire.Denied, "for an admin to revoke", "")
	err = second.Call(t.Context(), wire.MethodUserTokens, wire.UserFilter{User: "ada"}, nil)
	is(t, err, wire.Denied, "for an admin to see", "")
	if tokens, err := s.as(t, two).UserTokens(t.Context(), ""); err != nil || len(tokens) != 2 {
		t.Errorf("%+v, %v", tokens, err)
	}
	boss := s.mustHello(t, "tcp", operator(admin))
	if err := boss.Call(t.Context(), wire.MethodUserDelete, wire.UserRequest{User: "otto"}, nil); err != nil {
		t.Fatal(err)
	}
	ends(t, second)
	err = boss.Call(t.Context(), wire.MethodUserDelete, wire.UserRequest{User: "ada"}, nil)
	is(t, err, wire.Conflict, "ada is the last admin", "waypoint user invite")
	err = boss.Call(t.Context(), wire.MethodUserSet, wire.UserSetRequest{User: "ada", Role: wire.Viewer}, nil)
	is(t, err, wire.Conflict, "ada is the last admin", "waypoint user invite")
	s.account(t, "bob", wire.Admin, wire.Limits{})
	if err := boss.Call(t.Context(), wire.MethodUserDelete, wire.UserRequest{User: "ADA"}, nil); err != nil {
		t.Fatal(err)
	}
	ends(t, boss)
	// A name that comes again is somebody else's.
	s.account(t, "otto", wire.Viewer, wire.Limits{})
	_, err = s.hello(t, "tcp", operator(two))
	is(t, err, wire.Unauthenticated, "has been deleted", "waypoint user invite otto")
	if err := queueState(t, s, job.ID); err != wire.Queued {
		t.Errorf("the deleted user's job is %s", err)
	}
}

// What another server has decided a moment ago is not known to this one yet: it makes
// nothing that would outlast that, and shows nobody its keys.
func TestNothingOutlastsAnEndElsewhere(t *testing.T) {
	for what, c := range map[string]struct {
		end  func(tx *store.Tx, ada int64) error
		kind wire.Kind
		says string
	}{
		"revoked": {func(tx *store.Tx, ada int64) error { return tx.RevokeUserToken(ada, "another", time.Now()) }, wire.Unauthenticated, "was revoked at"},
		"demoted": {func(tx *store.Tx, _ int64) error {
			u, _, err := tx.User("ada")
			if err != nil {
				return err
			}
			u.Role = wire.Viewer
			return tx.PutUser(u)
		}, wire.Denied, "ada is a viewer"},
	} {
		for method, req := range map[string]any{
			wire.MethodUserToken:   wire.UserTokenRequest{},
			wire.MethodUserInvite:  wire.InviteRequest{User: "mallory", Role: wire.Admin},
			wire.MethodUserSet:     wire.UserSetRequest{User: "otto", Role: wire.Admin},
			wire.MethodUserDelete:  wire.UserRequest{User: "otto"},
			wire.MethodUserRevoke:  wire.RevokeRequest{User: "otto"},
			wire.MethodRunnerToken: wire.RunnerTokenRequest{ExpiresIn: wire.Duration(time.Hour)},

			wire.MethodTokenKeyRotate: wire.RotateRequest{Revoke: true},
			wire.MethodRunnerAdopt:    wire.AdoptRequest{ID: "r1"},
			wire.MethodRunnerReject:   wire.RunnerRequest{ID: "r1"},
			wire.MethodRunnerForget:   wire.RunnerRequest{ID: "r1"},
			wire.MethodRunnerDrain:    wire.DrainRequest{ID: "r1", Drain: true},
			wire.MethodServerSnapshot: wire.SnapshotRequest{},
		} {
			t.Run(what+" "+method, func(t *testing.T) {
				t.Parallel()
				s := newSite(t, Config{})
				s.account(t, "otto", wire.Operator, wire.Limits{})
				text := s.account(t, "ada", wire.Admin, wire.Limits{})
				claims, err := wire.ReadToken(text)
				if err != nil {
					t.Fatal(err)
				}
				session := s.mustHello(t, "tcp", operator(text))
				s.mustHello(t, "tcp", remote("r1", ""))
				if err := s.store.Update(t.Context(), func(tx *store.Tx) error { return c.end(tx, claims.Serial) }); err != nil {
					t.Fatal(err)
				}
				err = session.Call(t.Context(), method, req, nil)
				if wire.KindOf(err) != c.kind || !strings.Contains(err.Error(), c.says) {
					t.Errorf("%v", err)
				}
			})
		}
	}
}

func queueState(t *testing.T, s *site, id string) wire.State {
	t.Helper()
	j, err := s.store.Job(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return j.State
}

// An invite is good for one token, of the user that it was made for.
func TestInvite(t *testing.T) {
	s := newSite(t, Config{})
	text := s.invite(t, "Ina", wire.Operator)
	if c, err := wire.ReadToken(text); err != nil || c.Kind != wire.InviteToken || c.User != "Ina" || c.Expiry.Sub(c.Issued) != wire.DefaultInviteLife {
		t.Errorf("%+v, %v", c, err)
	}
	made, refused := make(chan wire.TokenReply, 8), make(chan error, 8)
	var sessions []*mux.Session
	for range 8 {
		sessions = append(sessions, s.mustHello(t, "tcp", operator(text)))
	}
	for _, session := range sessions {
		go func() {
			var reply wire.TokenReply
			if err := session.Call(t.Context(), wire.MethodUserAccept, wire.AcceptRequest{}, &reply); err != nil {
				refused <- err
				return
			}
			made <- reply
		}()
	}
	for range 7 {
		is(t, <-refused, wire.Unauthenticated, "the invite was used at", "waypoint user invite Ina")
	}
	reply := <-made
	if reply.User != "Ina" || reply.Role != wire.Operator {
		t.Errorf("%+v", reply)
	}
	if err := s.mustHello(t, "tcp", operator(reply.Token)).Call(t.Context(), wire.MethodJobList, wire.JobFilter{}, nil); err != nil {
		t.Error(err)
	}
	// For one who is there: as he is, or not at all.
	root := s.root(t)
	if err := root.Call(t.Context(), wire.MethodUserInvite, wire.InviteRequest{User: "ina"}, &reply); err != nil || reply.Role != wire.Operator {
		t.Errorf("%+v, %v", reply, err)
	}
	is(t, root.Call(t.Context(), wire.MethodUserInvite, wire.InviteRequest{User: "ina", Role: wire.Admin}, nil), wire.Conflict, "a user Ina already, an operator", "waypoint user set Ina")
	for name, req := range map[string]wire.InviteRequest{
		"no name": {}, "a name": {User: "../x"}, "a role": {User: "x", Role: "king"}, "a project": {User: "x", Limits: wire.Limits{Projects: []string{"a b"}}},
		"an admin with limits": {User: "x", Role: wire.Admin, Limits: wire.Limits{Projects: []string{"a"}}},
		"a life":               {User: "x", ExpiresIn: -1},
	} {
		if err := root.Call(t.Context(), wire.MethodUserInvite, req, nil); wire.KindOf(err) != wire.BadUsage {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Nobody gets more than he has, for longer than the configuration says.
func TestTokensOfUsersAreBounded(t *testing.T) {
	s := newSiteWith(t, Config{Access: Access{TokenLife: 2 * time.Hour}}, reachable(t))
	olga := s.mustHello(t, "tcp", operator(s.account(t, "olga", wire.Operator, wire.Limits{Projects: []string{"shop"}})))
	var reply wire.TokenReply
	if err := olga.Call(t.Context(), wire.MethodUserToken, wire.UserTokenRequest{}, &reply); err != nil || reply.Role != wire.Operator || len(reply.Projects) != 1 {
		t.Errorf("%+v, %v", reply, err)
	}
	if c, err := wire.ReadToken(reply.Token); err != nil || c.Expiry.Sub(c.Issued) != 2*time.Hour {
		t.Errorf("%+v, %v", c, err)
	}
	err := olga.Call(t.Context(), wire.MethodUserToken, wire.UserTokenRequest{ExpiresIn: wire.Duration(3 * time.Hour)}, nil)
	is(t, err, wire.BadUsage, "2h0m0s at most", "access.token_life")
	err = olga.Call(t.Context(), wire.MethodUserToken, wire.UserTokenRequest{User: "bob"}, nil)
	is(t, err, wire.Denied, "for an admin to make", "--user")
	err = olga.Call(t.Context(), wire.MethodUserToken, wire.UserTokenRequest{Role: wire.Admin}, nil)
	is(t, err, wire.Denied, "for an admin to say", "--role")
	err = s.root(t).Call(t.Context(), wire.MethodUserToken, wire.UserTokenRequest{User: "nobody"}, nil)
	is(t, err, wire.NotFound, "not found", "waypoint user invite nobody")

	t.Run("users of the host", func(t *testing.T) {
		member, err := over(t, as(t, s.unix, uidOfSomebody, groupOfOperators), operator(""))
		if err != nil {
			t.Fatal(err)
		}
		// His account is of his name there, with the role that he has there.
		name := fmt.Sprintf("uid-%d", uidOfSomebody)
		if err := member.Call(t.Context(), wire.MethodUserToken, wire.UserTokenRequest{}, &reply); err != nil || reply.User != name || reply.Role != wire.Operator {
			t.Fatalf("%+v, %v", reply, err)
		}
		if err := member.Call(t.Context(), wire.MethodUserToken, wire.UserTokenRequest{}, &reply); err != nil {
			t.Error(err)
		}
		if err := s.root(t).Call(t.Context(), wire.MethodUserSet, wire.UserSetRequest{User: name, Role: wire.Admin}, nil); err != nil {
			t.Fatal(err)
		}
		err = member.Call(t.Context(), wire.MethodUserToken, wire.UserTokenRequest{}, nil)
		is(t, err, wire.Denied, "nobody gets more than he has", "--user "+name)
		// An account of his name that somebody else has is not his.
		other := fmt.Sprintf("uid-%d", uidOfSomebody+2)
		s.account(t, other, wire.Viewer, wire.Limits{})
		member, err = over(t, as(t, s.unix, uidOfSomebody+2, groupOfOperators), operator(""))
		if err != nil {
			t.Fatal(err)
		}
		err = member.Call(t.Context(), wire.MethodUserToken, wire.UserTokenRequest{}, nil)
		is(t, err, wire.Denied, "is not uid", "--user "+other)
	})
}

// Tokens that were made before there were accounts are good as what they were:
// admins. What has a name of theirs since is somebody else.
func TestTokensOfBefore(t *testing.T) {
	s := newSite(t, Config{})
	before := func(user string) (text string) {
		if err := s.store.Update(t.Context(), func(tx *store.Tx) (err error) {
			text, _, err = s.mint(tx, wire.Claims{Kind: wire.UserToken, User: user}, time.Hour, time.Now())
			return err
		}); err != nil {
			t.Fatal(err)
		}
		return text
	}
	ada, bob, again := before("ada"), before("bob"), before("ada")
	eve, leaked := before("eve"), before("eve")
	// As the migration does.
	if err := s.store.Update(t.Context(), func(tx *store.Tx) error {
		last, err := tx.Setting("token_serial")
		if err != nil {
			return err
		}
		return tx.PutSetting("claimed_serial", last)
	}); err != nil {
		t.Fatal(err)
	}
	unknown := before("ada") // in fact made after that
	_, err := s.hello(t, "tcp", operator(unknown))
	is(t, err, wire.Unauthenticated, "not, or no longer, known", "waypoint login")
	s.account(t, "Bob", wire.Viewer, wire.Limits{})
	_, err = s.hello(t, "tcp", operator(bob))
	is(t, err, wire.Unauthenticated, "from before there was this user Bob", "waypoint login")
	for _, text := range []string{ada, again, ada} {
		if err := s.mustHello(t, "tcp", operator(text)).Call(t.Context(), wire.MethodUserList, wire.UserFilter{}, nil); err != nil {
			t.Fatal(err)
		}
	}
	s.account(t, "root2", wire.Admin, wire.Limits{})
	// All of a user's tokens are also those that have not been seen yet.
	s.mustHello(t, "tcp", operator(eve))
	if tokens, err := s.clientBy(t, "memory", "").RevokeTokens(t.Context(), wire.RevokeRequest{User: "eve"}); err != nil || len(tokens) != 1 {
		t.Errorf("%+v, %v", tokens, err)
	}
	for text, says := range map[string]string{eve: "was revoked at", leaked: "from before all of his were revoked"} {
		_, err = s.hello(t, "tcp", operator(text))
		is(t, err, wire.Unauthenticated, says, "waypoint login")
	}
	s.mustHello(t, "tcp", operator(s.account(t, "eve", "", wire.Limits{})))
	users, err := s.clientBy(t, "memory", "").Users(t.Context(), "ada")
	if err != nil || len(users) != 1 || users[0].Role != wire.Admin || users[0].Tokens != 2 || users[0].LastUsed.IsZero() {
		t.Errorf("%+v, %v", users, err)
	}
	if _, err := s.clientBy(t, "memory", "").DeleteUser(t.Context(), "ada"); err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{ada, again} {
		_, err = s.hello(t, "tcp", operator(text))
		is(t, err, wire.Unauthenticated, "has been deleted", "waypoint user invite ada")
	}
}

// When tokens were used last costs no commit for each call.
func TestLastUse(t *testing.T) {
	s := newSite(t, Config{})
	token := s.account(t, "otto", wire.Operator, wire.Limits{})
	session := s.mustHello(t, "tcp", operator(token))
	for range 10 {
		if err := session.Call(t.Context(), wire.MethodJobList, wire.JobFilter{}, nil); err != nil {
			t.Fatal(err)
		}
	}
	stored := func() time.Time {
		tokens, err := s.store.UserTokens(t.Context(), "otto")
		if err != nil || len(tokens) != 1 {
			t.Fatalf("%+v, %v", tokens, err)
		}
		return tokens[0].UsedAt
	}
	if at := stored(); !at.IsZero() {
		t.Errorf("written at once: %s", at)
	}
	shown, err := s.as(t, token).UserTokens(t.Context(), "")
	if err != nil || len(shown) != 1 || shown[0].LastUsed.IsZero() {
		t.Errorf("%+v, %v", shown, err)
	}
	s.accounts.flush()
	if stored().IsZero() {
		t.Error("not kept")
	}
}
