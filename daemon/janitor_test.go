package daemon

import (
	"testing"
	"time"
)

func TestSteadyClock(t *testing.T) {
	was := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	for _, test := range []struct {
		clock, ran time.Duration
		want       bool
	}{
		{10 * time.Minute, 10 * time.Minute, true},
		{10*time.Minute + clockStep, 10 * time.Minute, true},
		{10*time.Minute - clockStep, 10 * time.Minute, true},
		{365 * 24 * time.Hour, 10 * time.Minute, false},
		{-24 * time.Hour, 10 * time.Minute, false},
		{0, 10 * time.Minute, false},
		{time.Hour, time.Hour, true}, // the host was merely busy
	} {
		if got := steady(was, was.Add(test.clock), test.ran); got != test.want {
			t.Errorf("the clock went on by %s in %s: steady is %v", test.clock, test.ran, got)
		}
	}
}
