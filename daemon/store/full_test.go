package store

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"
)

// However often something is refused for want of room, and whatever fits in
// between, the log says each of the two things once.
func TestFullIsSaidOnce(t *testing.T) {
	var out bytes.Buffer
	s := &Store{cfg: Config{Logger: slog.New(slog.NewTextHandler(&out, nil))}, engine: &sqlite{}}
	now := time.Now()
	s.hasRoom(now)
	for range 30 {
		s.isFull(now, errors.New("no room"))
		now = now.Add(time.Second)
		s.hasRoom(now) // something small
	}
	said := func(text string) int { return strings.Count(out.String(), text) }
	if full, room := said("store is full"), said("store has room again"); full != 1 || room != 0 {
		t.Errorf("said %d times that it is full, %d times that it is not", full, room)
	}
	for range 30 {
		now = now.Add(time.Second)
		s.hasRoom(now)
	}
	if full, room := said("store is full"), said("store has room again"); full != 1 || room != 1 {
		t.Errorf("in the end said %d times that it is full, %d times that it is not", full, room)
	}
}
