package main

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/waypointd/waypoint/mux/wire"
	"github.com/waypointd/waypoint/runner"
)

// What a person is told on stderr, with what to do, is in the log alone where
// that is the journal, to which stderr goes as well.
func TestAgentSays(t *testing.T) {
	pending := runner.Event{ID: "r1", State: wire.Pending, Standing: &wire.Standing{State: wire.Pending, Problem: wire.NoToken}}
	events := []struct {
		name, note, hint string
		e                runner.Event
	}{
		{"pending", "waypoint: runner r1 is pending: it gets no jobs until it is adopted; its key is SHA256:abc",
			"waypoint runner adopt r1 --fingerprint SHA256:abc", pending},
		{"token of another", "waypoint: runner r1 is pending: it gets no jobs until it is adopted (token of another id: of r2); its key is SHA256:abc",
			"waypoint runner adopt r1 --fingerprint SHA256:abc, or put a new token into /state/token",
			runner.Event{ID: "r1", State: wire.Pending, Standing: &wire.Standing{State: wire.Pending, Problem: wire.OtherID, Detail: "of r2"}}},
		{"rejected", "waypoint: runner r1 was rejected by an operator: it gets no jobs",
			"waypoint runner adopt r1, or put a token that is made from now on with waypoint runner token --id r1 into /state/token",
			runner.Event{ID: "r1", State: wire.Rejected, Standing: &wire.Standing{State: wire.Rejected}}},
		{"expired", "waypoint: runner r1 is adopted, but gets no jobs: token expired: yesterday",
			"put a new token into /state/token, or: waypoint runner adopt r1",
			runner.Event{ID: "r1", State: wire.Adopted, Standing: &wire.Standing{State: wire.Adopted, Problem: wire.TokenExpired, Detail: "yesterday"}}},
	}
	for _, x := range events {
		for _, silent := range []bool{false, true} {
			stderr := new(bytes.Buffer)
			s := &agentSays{a: newApp(t.Context(), nil, new(bytes.Buffer), stderr, nil), silent: silent, fingerprint: "SHA256:abc", tokenFile: "/state/token"}
			t.Cleanup(s.a.close)
			s.notify(x.e)
			s.notify(x.e)
			want := x.note + "\nhint: " + x.hint + "\n" // once
			if silent {
				want = ""
			}
			if got := stderr.String(); got != want {
				t.Errorf("%s, silent %v: said\n%swant\n%s", x.name, silent, got, want)
			}
			if got := s.remedy("r1", *x.e.Standing); got != x.hint {
				t.Errorf("%s: the log's hint is %q, want %q", x.name, got, x.hint)
			}
			if silent && !strings.Contains(s.line, "r1") && x.name != "rejected" {
				t.Errorf("%s: STATUS is %q, without what to do", x.name, s.line)
			}
		}
	}
}

// The log says these two by itself, with their hints.
func TestAgentSaysNothingTwice(t *testing.T) {
	stderr := new(bytes.Buffer)
	s := &agentSays{a: newApp(t.Context(), nil, new(bytes.Buffer), stderr, nil), silent: true, tokenFile: "/state/token"}
	t.Cleanup(s.a.close)
	s.notify(runner.Event{ID: "r1", State: wire.Adopted, Low: 10,
		Standing: &wire.Standing{State: wire.Adopted, Admitted: true, Source: wire.SourceFile, Expiry: time.Unix(1, 0)}})
	s.notify(runner.Event{ID: "r1", Err: wire.Errorf(wire.Denied, "its id is taken").WithHint("choose another")})
	s.notify(runner.Event{ID: "r1", Err: errors.New("connection refused")})
	if stderr.Len() > 0 {
		t.Errorf("said %q", stderr)
	}
}
