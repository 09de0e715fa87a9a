package daemon

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"
)

// simClock is a host's clock: it can be set, and what it reads also has the
// reading of one that cannot, as that of time.Now has outside of a simulation.
type simClock struct {
	began time.Time
	shift atomic.Int64 // how far it has been set from the simulation's time
}

// now is as time.Now.
func (c *simClock) now() time.Time {
	at := time.Now()
	return readings(at.Add(time.Duration(c.shift.Load())), at.Sub(c.began))
}

// set moves the clock, by a duration.
func (c *simClock) set(by time.Duration) { c.shift.Add(int64(by)) }

// readings is a time with two readings, as package time has it: wall time since 1885 in
// seconds and nanoseconds, and the time since something that is nobody's to set.
// Nothing of that package makes one of which only the first is another; that this
// is one TestSimulationClock proves.
func readings(wall time.Time, steady time.Duration) (t time.Time) {
	const both, nanoseconds = 1 << 63, 30
	year1885 := time.Date(1885, 1, 1, 0, 0, 0, 0, time.UTC).Unix()
	parts := (*struct {
		wall uint64
		ext  int64
		loc  *time.Location
	})(unsafe.Pointer(&t))
	parts.wall = both | uint64(wall.Unix()-year1885)<<nanoseconds | uint64(wall.Nanosecond())
	parts.ext = int64(steady) + 1
	return t
}

func TestSimulationClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		time.Sleep(1234567890 * time.Nanosecond)
		c := &simClock{began: time.Now()}
		for _, by := range []time.Duration{0, time.Second, -time.Hour, 10 * 365 * 24 * time.Hour, -20 * 365 * 24 * time.Hour} {
			was := c.now()
			c.set(by)
			time.Sleep(time.Minute)
			is := c.now()
			if ran := is.Sub(was); ran != time.Minute || !is.After(was) || is.Add(-ran) == is || !is.Add(-ran).Equal(was) {
				t.Errorf("set by %s, %s have gone by in a minute", by, ran)
			}
			if ran := is.Round(0).Sub(was.Round(0)); ran != time.Minute+by {
				t.Errorf("set by %s, the clock has gone on by %s in a minute", by, ran)
			}
			if want := time.Now().Add(time.Duration(c.shift.Load())); !is.Round(0).Equal(want) || is.UnixNano() != want.UnixNano() || is.Year() != want.UTC().Year() {
				t.Errorf("the clock says %s, want %s", is, want)
			}
		}
	})
}
