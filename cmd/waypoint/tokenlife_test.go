package main

import (
	"testing"
	"time"
)

func TestSpan(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0:                           "0 seconds",
		time.Second:                 "1 second",
		119 * time.Second:           "119 seconds",
		2 * time.Minute:             "2 minutes",
		119 * time.Minute:           "119 minutes",
		2 * time.Hour:               "2 hours",
		47*time.Hour + time.Second:  "47 hours",
		48 * time.Hour:              "2 days",
		720 * time.Hour:             "30 days",
		720*time.Hour - time.Second: "30 days",
	} {
		if got := span(d); got != want {
			t.Errorf("span(%v) = %q, want %q", d, got, want)
		}
	}
}

func TestLowLife(t *testing.T) {
	issued := time.Unix(1_000_000, 0)
	expiry := issued.Add(100 * time.Hour)
	for _, c := range []struct {
		left time.Duration
		want int
	}{
		{100 * time.Hour, 0}, {25 * time.Hour, 0}, {25*time.Hour - 1, 25}, {10 * time.Hour, 25}, {10*time.Hour - 1, 10}, {1, 10},
		{0, 0}, {-time.Hour, 0}, // expired: another thing is said
	} {
		if got := lowLife(expiry.Add(-c.left), issued, expiry); got != c.want {
			t.Errorf("lowLife with %v of 100h left = %d, want %d", c.left, got, c.want)
		}
	}
	if got := lowLife(issued, time.Time{}, expiry); got != 0 {
		t.Errorf("lowLife of a token whose beginning is not known = %d, want 0", got)
	}
}
