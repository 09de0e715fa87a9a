package store

import (
	"bytes"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"
)

// However often something is refused for want of room, and whatever fits in
// between, the log says each of the two things once.
func TestFullIsSaidOnce(t *testing.T) {
	var out bytes.Buffer
	var full []bool // as Room was told
	s := &Store{engine: &sqlite{}}
	s.cfg = Config{Logger: slog.New(slog.NewTextHandler(&out, nil)), Room: func() { full = append(full, s.Full()) }}
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
	if !slices.Equal(full, []bool{true, false}) {
		t.Errorf("told %v of being full", full)
	}
}
