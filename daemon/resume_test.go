package daemon

import (
	"testing"
	"time"

	"github.com/waypointd/waypoint/daemon/store"
	"github.com/waypointd/waypoint/mux/wire"
)

// A server that did not run while a runner was away gives it a whole lease: the
// runner could not come back.
func TestLeasesBeginAnewBehindAPause(t *testing.T) {
	const lease = time.Minute
	f := newFleet(func() (ackTimeout, _ time.Duration) { return time.Hour, lease })
	if f.waits() || f.resume(time.Now()) {
		t.Fatal("nobody is away, and somebody is waited for")
	}
	left := time.Now()
	job := store.Active{JobRef: wire.JobRef{Job: "j", Attempt: 1}, RunnerID: "r", State: wire.Running}
	f.restore([]store.Active{job}, nil, nil, left)
	if !f.waits() {
		t.Fatal("a runner is away, and not waited for")
	}
	back := left.Add(2 * lease) // as far as the process knows, no time has passed
	if !f.resume(back) {
		t.Fatal("a runner is away, and has no lease")
	}
	if d := f.due(back.Add(lease - 1)); len(d.lost) > 0 || !d.next.Equal(back.Add(lease)) {
		t.Fatalf("within the lease lost %v, next %v", d.lost, d.next)
	}
	if d := f.due(back.Add(lease)); len(d.lost) != 1 {
		t.Fatalf("behind the lease lost %v", d.lost)
	}
	// One that is expected later keeps that time.
	f.away["later"] = back.Add(time.Hour)
	f.resume(back)
	if got := f.away["later"]; !got.Equal(back.Add(time.Hour)) {
		t.Errorf("a later absence is %v", got)
	}
}
