package queue

import (
	"maps"
	"slices"
	"strings"

	"github.com/waypointd/waypoint/mux/wire"
)

// Runner is what matching needs to know of a runner that may get jobs now.
type Runner struct {
	ID       string
	Labels   map[string]string
	ByIDOnly bool   // the command line's own: never gets anything else
	Free     int    // jobs it can take
	Spool    string // under what it remembers what it is given; "" is not known
}

// Match reports whether a job of this target may go to this runner. Of labels
// all must match exactly; a label that the runner does not have is no match.
func Match(t wire.Target, r Runner) bool {
	if t.ID != "" {
		return t.ID == r.ID
	}
	if r.ByIDOnly {
		return false
	}
	if t.Any {
		return true
	}
	for k, v := range t.Labels {
		if have, ok := r.Labels[k]; !ok || have != v {
			return false
		}
	}
	return len(t.Labels) > 0
}

// CheckTarget refuses a target that is not exactly one of any, id and labels,
// or whose names are none.
func CheckTarget(t wire.Target) error {
	n := 0
	if t.Any {
		n++
	}
	if t.ID != "" {
		n++
		if !isName(t.ID) {
			return wire.Errorf(wire.BadUsage, "target: %q is not a runner's id", t.ID)
		}
	}
	if len(t.Labels) > 0 {
		n++
	}
	if n != 1 {
		return wire.Errorf(wire.BadUsage, "target must be exactly one of any, an id, and labels")
	}
	if len(t.Labels) > maxLabels {
		return wire.Errorf(wire.BadUsage, "target has %d labels, more than %d", len(t.Labels), maxLabels)
	}
	for k, v := range t.Labels {
		if !isName(k) || v != "" && !isName(v) {
			return wire.Errorf(wire.BadUsage, "target: %q is not a label", k+"="+v)
		}
	}
	return nil
}

const (
	maxLabels = 32
	maxName   = 63
)

// isName reports whether s is an id, or a key or value of a label:
// [A-Za-z0-9][A-Za-z0-9._-]{0,62}.
func isName(s string) bool {
	for i, c := range []byte(s) {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9':
		case i > 0 && (c == '.' || c == '_' || c == '-'):
		default:
			return false
		}
	}
	return s != "" && len(s) <= maxName
}

// TargetText is the canonical text of a target that CheckTarget passes:
// "any", "id:X", "labels:a=b,c=d" with sorted keys.
func TargetText(t wire.Target) string {
	switch {
	case t.ID != "":
		return "id:" + t.ID
	case len(t.Labels) == 0:
		return "any"
	}
	var b strings.Builder
	b.WriteString("labels:")
	for i, k := range slices.Sorted(maps.Keys(t.Labels)) {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(k)
		b.WriteByte('=')
		b.WriteString(t.Labels[k])
	}
	return b.String()
}

// ParseTarget reads TargetText's text.
func ParseTarget(s string) (wire.Target, error) {
	if s == "any" {
		return wire.Target{Any: true}, nil
	}
	if id, ok := strings.CutPrefix(s, "id:"); ok {
		return wire.Target{ID: id}, nil
	}
	list, ok := strings.CutPrefix(s, "labels:")
	if !ok {
		return wire.Target{}, wire.Errorf(wire.Internal, "parse target %q: unknown form", s)
	}
	t := wire.Target{Labels: map[string]string{}}
	for label := range strings.SplitSeq(list, ",") {
		k, v, ok := strings.Cut(label, "=")
		if !ok {
			return wire.Target{}, wire.Errorf(wire.Internal, "parse target %q: %q is no label", s, label)
		}
		t.Labels[k] = v
	}
	return t, nil
}
