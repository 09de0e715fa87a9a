package mux

import (
	"testing"

	"github.com/waypointd/waypoint/mux/wire"
)

// A peer of the release before or after, which speaks this one's version as
// well, is spoken with in it; who does not is told to upgrade.
func TestCommonVersion(t *testing.T) {
	for _, c := range []struct{ low, high, want int }{
		{wire.VersionMin, wire.VersionMax, wire.VersionMax},
		{wire.VersionMin, wire.VersionMax + 1, wire.VersionMax},
		{wire.VersionMax, wire.VersionMax + 5, wire.VersionMax},
		{wire.VersionMin - 1, wire.VersionMin, wire.VersionMin},
		{0, wire.VersionMin - 1, 0},
		{wire.VersionMax + 1, wire.VersionMax + 2, 0},
	} {
		if got := commonVersion(c.low, c.high); got != c.want {
			t.Errorf("with a peer of %d to %d: %d, want %d", c.low, c.high, got, c.want)
		}
	}
}
