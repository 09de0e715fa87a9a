package mux

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"
)

// A handshake that waits for its place is spoken of once it has waited for long,
// and no more where others are merely quicker.
func TestHandshakeHeldUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var told []string
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		places := make(chan struct{}, 1)
		conn := &workedConn{ctx: ctx, places: places, limit: func(limit string, most int64) {
			told = append(told, fmt.Sprintf("%s %d", limit, most))
		}}
		for _, wait := range []time.Duration{0, heldUp / 2, 3 * heldUp} {
			if wait > 0 {
				places <- struct{}{}
				time.AfterFunc(wait, func() { <-places })
			}
			if err := conn.take(); err != nil {
				t.Fatal(err)
			}
			if want := min(1, int(wait/heldUp)); len(told) != want {
				t.Errorf("after a wait of %s told of %q", wait, told)
			}
			conn.yield()
		}
		if len(told) > 0 && told[0] != "handshakes 1" {
			t.Errorf("told of %q", told)
		}
		places <- struct{}{}
		if err := conn.take(); err == nil || conn.holds {
			t.Errorf("the end of its time: %v", err)
		}
		<-places
	})
}
