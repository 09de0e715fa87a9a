package daemon

import (
	"testing"
	"time"
)

// What the timer has begun to keep of tokens' uses is kept when a flush returns: the
// store may be closed behind it.
func TestFlushWaitsForTheTimers(t *testing.T) {
	begun, release, kept := make(chan struct{}), make(chan struct{}), false
	a := newAccounts(nil, func(map[int64]time.Time) {
		close(begun)
		<-release
		kept = true
	})
	a.used(1, time.Now())
	go a.flush() // as the timer does
	<-begun
	time.AfterFunc(50*time.Millisecond, func() { close(release) })
	if a.flush(); !kept {
		t.Error("it is not kept")
	}
}
