package wire

import (
	"encoding/json"
	"errors"
	"fmt"
	"testing"
	"time"
)

func TestKindOf(t *testing.T) {
	conflict := Errorf(Conflict, "job %s has ended", "01J")
	for _, c := range []struct {
		err  error
		want Kind
	}{
		{nil, ""},
		{conflict, Conflict},
		{fmt.Errorf("end job: %w", conflict), Conflict},
		{errors.Join(errors.New("other"), conflict), Conflict},
		{errors.New("no kind"), Internal},
		{conflict.WithHint("look"), Conflict},
	} {
		if got := KindOf(c.err); got != c.want {
			t.Errorf("%v is of kind %q, want %q", c.err, got, c.want)
		}
	}
}

func TestErrorIs(t *testing.T) {
	err := fmt.Errorf("end job: %w", Errorf(Conflict, "job %s has ended", "01J").WithHint("look at it"))
	for _, c := range []struct {
		target error
		want   bool
	}{
		{&Error{Kind: Conflict}, true},
		{&Error{Kind: Conflict, Message: "job 01J has ended"}, true},
		{&Error{Kind: Conflict, Message: "another"}, false},
		{&Error{Kind: NotFound}, false},
		{errors.New("job 01J has ended"), false},
	} {
		if got := errors.Is(err, c.target); got != c.want {
			t.Errorf("errors.Is(%v, %#v) is %v", err, c.target, got)
		}
	}
}

func TestWithHintCopies(t *testing.T) {
	plain := Errorf(Denied, "no")
	if hinted := plain.WithHint("join group %s", "waypoint"); plain.Hint != "" || hinted.Hint != "join group waypoint" || hinted.Message != "no" {
		t.Errorf("got %#v of %#v", hinted, plain)
	}
}

func TestDurationText(t *testing.T) {
	for _, c := range []struct {
		json string
		want time.Duration
		bad  bool
	}{
		{json: `"1m30s"`, want: 90 * time.Second},
		{json: `"0s"`},
		{json: `90`, bad: true},
		{json: `"soon"`, bad: true},
	} {
		var d Duration
		err := json.Unmarshal([]byte(c.json), &d)
		if (err != nil) != c.bad || time.Duration(d) != c.want {
			t.Errorf("%s is %v, %v", c.json, time.Duration(d), err)
		}
		if c.bad {
			continue
		}
		if b, err := json.Marshal(d); err != nil || string(b) != c.json {
			t.Errorf("%v is written %s, %v", time.Duration(d), b, err)
		}
	}
	var d Duration
	if err := d.UnmarshalText([]byte("720h")); err != nil || time.Duration(d) != 720*time.Hour {
		t.Errorf("text is read as %v, %v", d, err)
	}
}

// A runner's signature for one purpose is none for another.
func TestProofText(t *testing.T) {
	nonce := []byte("nonce")
	if got := string(ProofText(nonce, []byte("bound"))); got != "waypoint runner identity v1\x00noncebound" {
		t.Errorf("a proof signs %q", got)
	}
	if a, b := ProofText(nonce, nil), ProofText([]byte("other"), nil); string(a) != "waypoint runner identity v1\x00nonce" || string(a) == string(b) {
		t.Errorf("a proof signs %q", a)
	}
}
