package main

import (
	"fmt"
	"time"

	"github.com/waypointd/waypoint/mux/wire"
)

// span says how long a stretch of time is, in the one unit that people would
// use: "12 days", "90 minutes", "4 seconds".
func span(d time.Duration) string {
	const day = 24 * time.Hour
	n, unit := int64(d.Round(day)/day), "day"
	switch {
	case d < 2*time.Minute:
		n, unit = int64(d.Round(time.Second)/time.Second), "second"
	case d < 2*time.Hour:
		n, unit = int64(d.Round(time.Minute)/time.Minute), "minute"
	case d < 48*time.Hour:
		n, unit = int64(d.Round(time.Hour)/time.Hour), "hour"
	}
	if n == 1 {
		return "1 " + unit
	}
	return fmt.Sprintf("%d %ss", n, unit)
}

// untilOrAgo says when t is, seen from now: "in 12 days", "3 hours ago".
func untilOrAgo(now, t time.Time) string {
	if d := t.Sub(now); d > 0 {
		return "in " + span(d)
	}
	return span(now.Sub(t)) + " ago"
}

// lowLife is the mark, in percent of a token's life, that what is left of it
// has fallen below: 25 or 10, 0 where there is more, or none at all.
func lowLife(now, issued, expiry time.Time) int {
	life, left := expiry.Sub(issued), expiry.Sub(now)
	switch {
	case issued.IsZero() || life <= 0 || left <= 0:
		return 0
	case left < life/10:
		return 10
	case left < life/4:
		return 25
	}
	return 0
}

// problemWords are a problem in two or three words, for a table.
func problemWords(p wire.Problem) string {
	switch p {
	case wire.NoToken:
		return "no token"
	case wire.TokenExpired:
		return "token expired"
	case wire.TokenInvalid:
		return "token invalid"
	case wire.OtherID:
		return "token of another id"
	case wire.OtherLabels:
		return "token of other labels"
	case wire.OtherKey:
		return "token of another key"
	}
	return string(p)
}

// sourceWords say where a token is from.
func sourceWords(s wire.TokenSource) string {
	switch s {
	case wire.SourceFile:
		return "file in the state directory"
	case wire.SourceEnvironment:
		return "command line or environment"
	case wire.SourceCredential:
		return "credential of the service manager"
	case wire.SourceMemory:
		return "memory (it could not be stored)"
	}
	return string(s)
}
