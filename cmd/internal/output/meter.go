package output

import (
	"fmt"
	"io"
	"sync"
	"time"
)

// Meter is one line that is written over again and again, for a terminal.
// Its zero value with a nil writer says nothing.
type Meter struct {
	w io.Writer

	mu   sync.Mutex
	last time.Time
	on   bool // a line stands there
}

// NewMeter makes a meter on a terminal; nil w makes a silent one.
func NewMeter(w io.Writer) *Meter { return &Meter{w: w} }

// meterEvery keeps a meter from being slower than what it measures.
const meterEvery = 100 * time.Millisecond

// Say replaces the line, at most ten times a second.
func (m *Meter) Say(format string, args ...any) {
	if m.w == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if now := time.Now(); now.Sub(m.last) >= meterEvery {
		m.last, m.on = now, true
		fmt.Fprintf(m.w, "\r\x1b[K"+format, args...)
	}
}

// Clear takes the line away; what is said next is shown at once.
func (m *Meter) Clear() {
	if m.w == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.last = time.Time{}
	if m.on {
		m.on = false
		io.WriteString(m.w, "\r\x1b[K")
	}
}
