package mux

import "fmt"

// Leftovers says what a session still holds of calls that are over.
func (s *Session) Leftovers() string {
	s.guard.mu.Lock()
	defer s.guard.mu.Unlock()
	held := [...]int{s.yamux.NumStreams(), len(s.guard.streams), s.guard.theirs, len(s.guard.syns), len(s.slots), len(s.handling)}
	if held == [len(held)]int{} {
		return ""
	}
	return fmt.Sprintf("streams of yamux's, links, theirs, unacknowledged, slots, handlers: %v", held)
}
