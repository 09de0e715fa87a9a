package daemon

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"io"
	"slices"
	"testing"
	"time"

	"github.com/waypointd/waypoint/mux"
	"github.com/waypointd/waypoint/mux/wire"
)

// FuzzAPI calls any method, as each kind of caller, with any body: the answer
// is one, in time, of a kind that there is, and none of them is that the server failed.
func FuzzAPI(f *testing.F) {
	s := newSite(f, Config{})
	hellos := map[string]func(t testing.TB) (string, wire.Hello){
		"admin":    func(testing.TB) (string, wire.Hello) { return "unix", operator("") },
		"user":     func(t testing.TB) (string, wire.Hello) { return "tcp", operator(s.userToken(t, time.Hour)) },
		"stranger": func(testing.TB) (string, wire.Hello) { return "tcp", remote("stranger", "") },
		"runner":   func(t testing.TB) (string, wire.Hello) { return "tcp", remote("r1", s.runnerToken(t, time.Hour)) },
	}
	callers, keys := map[string]*mux.Session{}, map[string]ed25519.PrivateKey{}
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
	methods := s.api()
	kinds := []wire.Kind{
		"", wire.BadUsage, wire.NotFound, wire.Denied, wire.Unauthenticated, wire.Expired, wire.Conflict, wire.Timeout,
		wire.TooLarge, wire.Unavailable, wire.Unimplemented,
	}
	for n := range methods {
		for _, body := range []string{``, `null`, `{}`, `[]`, `7`, `"x"`, `{"id":""}`, `{"id":"r1"}`, `{"limit":-1}`,
			`{"jobs":[{"operation":"run","target":{"any":true},"timeout":"1s"}]}`, `{"digests":["sha256:00"]}`, `{"offers":[{"token":"wprun_x"}]}`} {
			f.Add(uint8(n), []byte(body))
		}
	}
	f.Fuzz(func(t *testing.T, n uint8, body []byte) {
		m := methods[int(n)%len(methods)]
		if len(body) > 0 && !json.Valid(body) {
			return // what is no JSON cannot be sent by Open; FuzzReader and FuzzAccept have it
		}
		for name, hello := range hellos {
			session := callers[name]
			if session == nil || session.Err() != nil { // a call before has revoked, rejected or forgotten it
				network, h := hello(t)
				conn, err := s.dial(network)
				if err != nil {
					t.Fatal(err)
				}
				if session, err = mux.Connect(context.Background(), conn, mux.Config{}, h, keys[name], nil); err != nil {
					if name == "admin" {
						t.Fatal(err)
					}
					continue
				}
				callers[name] = session
			}
			ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond) // some methods wait
			var raw any
			if len(body) > 0 {
				raw = json.RawMessage(body)
			}
			began := time.Now()
			st, err := session.Open(ctx, m.name, raw)
			for err == nil {
				_, err = st.Recv()
			}
			if st != nil {
				st.Close()
			}
			cancel()
			if kind := wire.KindOf(err); !errors.Is(err, io.EOF) && !slices.Contains(kinds, kind) {
				t.Errorf("%s as %s: kind %q: %v", m.name, name, kind, err)
			}
			if d := time.Since(began); d > 20*time.Second {
				t.Errorf("%s as %s takes %s", m.name, name, d)
			}
		}
	})
}
