package daemon

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/waypointd/waypoint/mux/wire"
)

// A runner whose session is dead connects twice before the server gives that
// one up. The first that waited takes its place, and is dead as well by now: the
// second must not wait for its silence to be noticed.
func TestTwoWaitForOneSession(t *testing.T) {
	for range 8 {
		synctest.Test(t, func(t *testing.T) {
			s, err := New(t.Context(), Config{StateDir: t.TempDir()})
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			newcomer := func() *member {
				_, end := context.WithCancelCause(t.Context())
				m := &member{
					visitor: &visitor{id: "one", kind: wire.KindLocal}, orders: newOrders(),
					replaced: end, heartbeat: 10 * time.Second,
				}
				m.heard.Store(s.uptime())
				return m
			}
			dead, first, second := newcomer(), newcomer(), newcomer()
			if err := s.enter(t.Context(), dead); err != nil {
				t.Fatal(err)
			}
			for _, m := range []*member{first, second} {
				time.Sleep(time.Microsecond)
				m.heard.Store(s.uptime())
				go func() {
					if err := s.enter(t.Context(), m); err != nil {
						t.Errorf("enter: %v", err)
					}
				}()
			}
			time.Sleep(16 * time.Second)
			s.fleet.mu.Lock()
			is := s.fleet.members["one"]
			s.fleet.mu.Unlock()
			if is != second {
				t.Fatalf("after one and a half heartbeats the second session still waits (the first works: %v)", is == first)
			}
		})
	}
}
