package queue

import (
	"unicode"
	"unicode/utf8"

	"github.com/waypointd/waypoint/mux/wire"
)

// Limits of a spec.
const (
	MaxDependencies = 1000
	MaxPriority     = 1_000_000
	maxField        = 128 // bytes of a project's, app's, workspace's, profile's or component's name
	maxKey          = 256 // bytes of a singleton or idempotency key
)

// CheckSpec refuses a spec that cannot be queued, with BadUsage.
func CheckSpec(s *wire.JobSpec) error {
	switch s.Operation {
	case wire.OpRun, wire.OpBuild, wire.OpDeploy, wire.OpRelease, wire.OpDestroy:
	default:
		return wire.Errorf(wire.BadUsage, "%q is not an operation", s.Operation)
	}
	for _, f := range []struct {
		name, value string
		max         int
		spaces      bool
	}{
		{"project", s.Project, maxField, false},
		{"app", s.App, maxField, false},
		{"workspace", s.Workspace, maxField, false},
		{"profile", s.Profile, maxField, false},
		{"component", s.Use, maxField, false},
		{"singleton", s.Singleton, maxKey, true},
		{"idempotency key", s.IdempotencyKey, maxKey, true},
	} {
		if err := checkText(f.name, f.value, f.max, f.spaces); err != nil {
			return err
		}
	}
	if s.Priority > MaxPriority || s.Priority < -MaxPriority {
		return wire.Errorf(wire.BadUsage, "priority %d is not between -%d and %d", s.Priority, MaxPriority, MaxPriority)
	}
	if s.Timeout < 0 {
		return wire.Errorf(wire.BadUsage, "time-out is negative")
	}
	if s.ExpiresIn < 0 {
		return wire.Errorf(wire.BadUsage, "expiry is negative")
	}
	if s.Artifact < 0 || s.Deployment < 0 {
		return wire.Errorf(wire.BadUsage, "number of the artifact or deployment is negative")
	}
	if len(s.DependsOn) > MaxDependencies {
		return wire.Errorf(wire.BadUsage, "%d dependencies are more than %d", len(s.DependsOn), MaxDependencies)
	}
	return CheckTarget(s.Target)
}

// checkText refuses text that is too long, has what cannot be seen in it, or
// (unless it may) spaces.
func checkText(name, s string, max int, spaces bool) error {
	if len(s) > max {
		return wire.Errorf(wire.BadUsage, "%s of %d bytes is longer than %d", name, len(s), max)
	}
	if !utf8.ValidString(s) {
		return wire.Errorf(wire.BadUsage, "%s %q is not UTF-8", name, s)
	}
	for _, r := range s {
		if !unicode.IsPrint(r) || r == ' ' && !spaces {
			return wire.Errorf(wire.BadUsage, "%s %q has spaces or unprintable characters", name, s)
		}
	}
	return nil
}
