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

// A session whose hello took long, or that waited for its place, does not get it once
// a later one of its runner has worked: what it says that the runner holds was
// true before that.
func TestEarlierSessionBehindALaterOne(t *testing.T) {
	s, err := New(t.Context(), Config{StateDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	session := func() (*member, context.Context) {
		ctx, end := context.WithCancelCause(t.Context())
		v := &visitor{id: "one", kind: wire.KindRemote, ended: make(chan struct{})}
		s.fleet.arriving(v)
		return &member{visitor: v, orders: newOrders(), replaced: end, heartbeat: time.Second}, ctx
	}
	earlier, gone := session()
	later, there := session()
	if s.fleet.join(later) != nil || there.Err() != nil {
		t.Fatal("the later session does not get the place")
	}
	s.fleet.leave(later, time.Now())
	if s.fleet.join(earlier) != nil || gone.Err() == nil || s.fleet.member("one") != nil {
		t.Error("the earlier session works behind the later one")
	}
	select {
	case <-earlier.ended:
	default:
		t.Error("the earlier session does not end")
	}
	last, there := session()
	if s.fleet.join(last) != nil || there.Err() != nil || s.fleet.member("one") != last {
		t.Error("the last session does not get the place")
	}
}
