package daemon

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/waypointd/waypoint/mux"
	dialer "github.com/waypointd/waypoint/mux/client"
	"github.com/waypointd/waypoint/mux/wire"
)

// meant has of methods that take more than an id what a caller may mean by one;
// behind the request, what comes on the stream after it.
var meant = map[string][2]string{
	wire.MethodTokenKeyRotate: {`{"revoke":true}`, ``},
	wire.MethodUserToken:      {`{"user":"bob","role":"viewer","expires_in":"1h","projects":["shop"]}`, ``},
	wire.MethodUserTokens:     {`{"user":"ada"}`, ``},
	wire.MethodUserRevoke:     {`{"user":"bob","id":"3"}`, ``},
	wire.MethodUserInvite:     {`{"user":"bob","role":"operator","expires_in":"1h","projects":["shop"],"workspaces":["w*"]}`, ``},
	wire.MethodUserList:       {`{"user":"bob"}`, ``},
	wire.MethodUserSet:        {`{"user":"bob","role":"viewer","limits":{"projects":["shop"]}}`, ``},
	wire.MethodUserDelete:     {`{"user":"bob"}`, ``},
	wire.MethodAuditList:      {`{"since":"2026-11-21T12:34:56Z","until":"2099-11-21T12:34:56Z","actor":"user:ada","method":"job.","outcome":"refused","object":"r1","limit":3,"after":"9","oldest_first":true}`, ``},
	wire.MethodJobSubmit:      {`{"jobs":[{"operation":"run","project":"shop","app":"web","workspace":"w","command":["true"],"env":{"A":"1"},"target":{"labels":{"os":"linux"}},"priority":5,"timeout":"1s","expires_in":"1s","singleton":"s","idempotency_key":"k"},{"operation":"run","command":["x"],"target":{"any":true},"depends_on":["#0"]}]}`, ``},
	wire.MethodJobList:        {`{"state":"queued","operation":"run","runner":"r1","project":"shop","app":"web","workspace":"w","limit":2,"after":"01JOB"}`, ``},
	wire.MethodJobCancel:      {`{"id":"01JOB","force":true}`, ``},
	wire.MethodJobStream:      {`{"id":"01JOB","attempt":1,"offset":9,"follow":true}`, `{}`},
	wire.MethodRecordList:     {`{"kind":"artifact","project":"shop","app":"web","workspace":"w","limit":2}`, ``},
	wire.MethodBlobMissing:    {`{"digests":["sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"]}`, ``},
	wire.MethodBlobPut:        {``, `{"digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","size":0}`},
	wire.MethodBlobGet:        {`{"digests":["sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"]}`, ``},
	wire.MethodRunnerList:     {`{"state":"pending","labels":{"a":"b"},"limit":1,"after":"a"}`, ``},
	wire.MethodRunnerAdopt:    {`{"id":"stranger","fingerprint":"x"}`, ``},
	wire.MethodRunnerDrain:    {`{"id":"r1","drain":true}`, ``},
	wire.MethodRunnerToken:    {`{"id":"r2","expires_in":"1h","labels":{"a":"b"}}`, ``},
	wire.MethodRunnerMatch:    {`{"target":{"labels":{"os":"linux"}}}`, ``},
	wire.MethodAuthenticate:   {`{"offers":[{"source":"file","token":"wprun_x"}],"stored":true}`, ``},
	wire.MethodWork:           {``, `{"begin":{"held":[{"job":"01JOB","attempt":2,"started":true}],"concurrency":2,"spool":"s"}}`},
	wire.MethodReport:         {`{"job":"01JOB","attempt":2,"late":true}`, `{"state":"success","log_bytes":0}`},
}

// meantLimited is the same of who is limited to the project shop: what is in the
// store inside of it (INSIDE) and outside (OUTSIDE), blobs that he has sent (SENT) and that he has not (OUTSENT).
var meantLimited = map[string][][2]string{
	wire.MethodJobSubmit: {
		{`{"jobs":[{"operation":"run","project":"shop","command":["true"],"target":{"any":true},"stdin":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","depends_on":["INSIDE"],"singleton":"inside","idempotency_key":"inside"}]}`, ``},
		{`{"jobs":[{"operation":"run","project":"shop","command":["true"],"target":{"any":true},"source":{"tree":"SENT"}}]}`, ``},
		{`{"jobs":[{"operation":"run","project":"shop","command":["true"],"target":{"any":true},"singleton":"outside"}]}`, ``},
		{`{"jobs":[{"operation":"run","project":"shop","command":["true"],"target":{"any":true},"idempotency_key":"outside"}]}`, ``},
		{`{"jobs":[{"operation":"run","project":"shop","command":["true"],"target":{"any":true},"depends_on":["OUTSIDE"]}]}`, ``},
		{`{"jobs":[{"operation":"run","project":"bank","command":["true"],"target":{"any":true}}]}`, ``},
		{`{"jobs":[{"operation":"deploy","project":"shop","app":"web","artifact":1,"command":["true"],"target":{"id":"cli-x"}}]}`, ``},
	},
	wire.MethodJobList:     {{`{"after":"OUTSIDE"}`, ``}, {`{"after":"INSIDE"}`, ``}},
	wire.MethodRecordList:  {{`{"kind":"release","project":"bank"}`, ``}},
	wire.MethodBlobMissing: {{`{"digests":["OUTSENT"]}`, ``}},
	wire.MethodBlobGet:     {{`{"digests":["OUTSENT"]}`, ``}},
	wire.MethodBlobPut:     {{``, `{"digest":"OUTSENT","size":4}`}},
}

// FuzzAPI calls any method, as each kind of caller, with any request, and goes on
// with anything: a message, or bytes. The answer is one, in time, of a kind that
// there is, and none of them is that the server failed.
func FuzzAPI(f *testing.F) {
	s := newSite(f, Config{})
	admin := s.clientBy(f, "memory", "")
	inside, outside := jobOf("shop", ""), jobOf("bank", "")
	inside.Singleton, inside.IdempotencyKey = "inside", "inside"
	outside.Singleton, outside.IdempotencyKey = "outside", "outside"
	theirs := mustQueue(f, admin, outside)[0].ID
	inside.DependsOn = []string{theirs}
	sent := []dialer.Blob{blob(""), blob(`{"version":1,"entries":[{"path":"f","type":"file","size":0,"digest":"` + blob("").Digest + `"}]}`)}
	named := strings.NewReplacer("INSIDE", mustQueue(f, admin, inside)[0].ID, "OUTSIDE", theirs, "OUTSENT", blob("bank").Digest, "SENT", sent[1].Digest)
	if err := admin.PutBlobs(f.Context(), []dialer.Blob{blob("bank")}); err != nil {
		f.Fatal(err)
	}
	people := []string{"admin", "user", "stranger", "runner", "invite", "limited", "viewer"}
	newcomers := 0
	account := func(r wire.UserRole) func(t testing.TB) (string, wire.Hello) {
		return func(t testing.TB) (string, wire.Hello) {
			newcomers++ // a call before may have changed, or deleted, the one of before
			token := s.account(t, fmt.Sprintf("%s-%d", r, newcomers), r, wire.Limits{Projects: []string{"shop"}})
			if r == wire.Operator {
				if err := s.as(t, token).PutBlobs(t.Context(), sent); err != nil {
					t.Fatal(err)
				}
			}
			return "tcp", operator(token)
		}
	}
	hellos := map[string]func(t testing.TB) (string, wire.Hello){
		"admin":    func(testing.TB) (string, wire.Hello) { return "unix", operator("") },
		"user":     func(t testing.TB) (string, wire.Hello) { return "tcp", operator(s.userToken(t, time.Hour)) },
		"stranger": func(testing.TB) (string, wire.Hello) { return "tcp", remote("stranger", "") },
		"runner":   func(t testing.TB) (string, wire.Hello) { return "tcp", remote("r1", s.runnerToken(t, time.Hour)) },
		"invite": func(t testing.TB) (string, wire.Hello) {
			newcomers++
			return "tcp", operator(s.invite(t, fmt.Sprintf("guest-%d", newcomers), wire.Viewer))
		},
		"limited": account(wire.Operator), "viewer": account(wire.Viewer),
	}
	callers, keys := map[string]*mux.Session{}, map[string]ed25519.PrivateKey{}
	called := map[string]int{} // by the session of callers
	for _, name := range []string{"stranger", "runner"} {
		var err error
		if _, keys[name], err = ed25519.GenerateKey(nil); err != nil {
			f.Fatal(err)
		}
	}
	f.Cleanup(func() {
		for _, session := range callers {
			session.Close()
		}
	})
	kinds := []wire.Kind{
		"", wire.BadUsage, wire.NotFound, wire.Denied, wire.Unauthenticated, wire.Expired, wire.Conflict, wire.Timeout,
		wire.TooLarge, wire.Unavailable, wire.Unimplemented,
	}
	var names []string
	for _, m := range s.api() {
		names = append(names, m.name)
		who, request := "admin", meant[m.name]
		if m.who&runners != 0 {
			who = "runner"
		}
		f.Add(who, m.name, []byte(`{"id":"r1"}`), []byte(nil))
		if request != [2]string{} {
			f.Add(who, m.name, []byte(request[0]), []byte(request[1]))
		}
		if m.who&invited != 0 {
			f.Add("invite", m.name, []byte(`{}`), []byte(nil))
		}
		if m.limits != nowhere && m.limits != unlimited {
			f.Add("limited", m.name, []byte(`{"id":"INSIDE"}`), []byte(nil))
			f.Add("limited", m.name, []byte(`{"id":"OUTSIDE"}`), []byte(nil))
			f.Add("viewer", m.name, []byte(`{"id":"INSIDE"}`), []byte(nil))
			f.Add("limited", m.name, []byte(request[0]), []byte(request[1]))
		}
		for _, request := range meantLimited[m.name] {
			f.Add("limited", m.name, []byte(request[0]), []byte(request[1]))
		}
	}
	// A name that is none stands for one, so that most of what is made of a name is a call.
	known := func(of []string, name string) string {
		if slices.Contains(of, name) {
			return name
		}
		return of[crc32.ChecksumIEEE([]byte(name))%uint32(len(of))]
	}
	f.Fuzz(func(t *testing.T, who, method string, body, then []byte) {
		who, method = known(people, who), known(names, method)
		if len(body) > 0 && !json.Valid(body) {
			return // what is no JSON cannot be sent by Open; FuzzReader and FuzzAccept have it
		}
		body, then = []byte(named.Replace(string(body))), []byte(named.Replace(string(then)))
		began := time.Now()
		session := callers[who]
		if called[who]++; session != nil && who != "admin" && called[who] >= callsAtOnce/2 { // before it is made to wait
			session.Close()
		}
		if session == nil || session.Err() != nil { // a call before has revoked, rejected or forgotten it
			network, h := hellos[who](t)
			conn, err := s.dial(network)
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			session, err = mux.Connect(ctx, conn, mux.Config{}, h, keys[who], nil)
			cancel()
			if err != nil {
				if who == "admin" || errors.Is(err, context.DeadlineExceeded) {
					t.Fatal(err)
				}
				return
			}
			callers[who], called[who] = session, 0
		}
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond) // some methods wait for what never comes
		defer cancel()
		var raw any
		if len(body) > 0 {
			raw = json.RawMessage(body)
		}
		st, err := session.Open(ctx, method, raw)
		if err == nil {
			defer st.Close()
			// What is refused to be sent was ended by the server, whose answer is read below.
			if len(then) > 0 && json.Valid(then) {
				_ = st.Send(json.RawMessage(then))
			} else if len(then) > 0 {
				_ = st.SendData(wire.Data{Stream: wire.StreamID(then[0]), Bytes: then})
			}
			_ = st.End()
		}
		for err == nil {
			_, err = st.Recv()
		}
		if kind := wire.KindOf(err); !errors.Is(err, io.EOF) && !slices.Contains(kinds, kind) {
			t.Errorf("%s as %s: kind %q: %v", method, who, kind, err)
		}
		if d := time.Since(began); d > 20*time.Second {
			t.Errorf("%s as %s takes %s", method, who, d)
		}
	})
}
