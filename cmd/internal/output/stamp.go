package output

import (
	"bytes"
	"io"
	"maps"
	"slices"
	"time"
)

// Stamper writes output with the time in front of each line, RFC 3339 in UTC
// to the microsecond. A line that comes in pieces has the time of its first.
type Stamper struct {
	w      io.Writer
	inside bool // a line has begun
}

// NewStamper stamps what is written to w.
func NewStamper(w io.Writer) *Stamper { return &Stamper{w: w} }

// StampFormat is how times look in front of lines.
const StampFormat = "2006-01-02T15:04:05.000000Z"

// Write writes b, which was put out at a time.
func (s *Stamper) Write(at time.Time, b []byte) error {
	var out []byte
	for len(b) > 0 {
		if !s.inside {
			out = append(at.UTC().AppendFormat(out, StampFormat), ' ')
		}
		end := bytes.IndexByte(b, '\n') + 1
		s.inside = end == 0
		if s.inside {
			end = len(b)
		}
		out = append(out, b[:end]...)
		b = b[end:]
	}
	_, err := s.w.Write(out)
	return err
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
