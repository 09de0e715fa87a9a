package store

import (
	"crypto/rand"
	"sync"
	"time"

	"github.com/oklog/ulid/v2"
)

// idSource makes ULIDs that only ever grow, whatever the clock does: their
// order is the order of the queue. The zero value is ready.
type idSource struct {
	mu      sync.Mutex
	ms      uint64 // of the last id; never goes back
	entropy *ulid.MonotonicEntropy
}

// startAfter makes all ids greater than last, if that is one.
func (s *idSource) startAfter(last string) {
	id, err := ulid.ParseStrict(last)
	if err != nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	// The next millisecond is greater whatever the random part is.
	s.ms = max(s.ms, id.Time()+1)
}

// next makes an id for something that happens now.
func (s *idSource) next(now time.Time) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.entropy == nil {
		s.entropy = ulid.Monotonic(rand.Reader, 0)
	}
	if ms := now.UnixMilli(); ms > 0 {
		s.ms = max(s.ms, uint64(ms))
	}
	for {
		id, err := ulid.New(s.ms, s.entropy)
		if err == nil {
			return id.String()
		}
		s.ms++ // the random part of this millisecond is used up
	}
}
