package daemon

import (
	"log/slog"
	"sync"

	"golang.org/x/time/rate"
)

// How many lines the log has of what strangers do, for each kind of line: what a
// fleet writes that comes for the first time, and no disk full, nor a journal that
// leaves out what others say, of who comes again and again.
const (
	strangerEach   = 1 // a second
	strangerAtOnce = 200
)

// strangerLog is the log of what anybody can have said who is able to connect. What
// it leaves out is counted.
type strangerLog struct {
	log   *slog.Logger
	tally *tally

	mu    sync.Mutex // a leaf
	lines map[string]*rate.Limiter
}

func newStrangerLog(log *slog.Logger, t *tally) *strangerLog {
	return &strangerLog{log: log, tally: t, lines: map[string]*rate.Limiter{}}
}

// of is that log for what a peer does.
func (l *strangerLog) of(peer string) strangerLines { return strangerLines{l, peer} }

type strangerLines struct {
	*strangerLog
	peer string
}

// Info is slog's; text is one of few.
func (l strangerLines) Info(text string, attrs ...any) {
	l.mu.Lock()
	lines := l.lines[text]
	if lines == nil {
		lines = rate.NewLimiter(strangerEach, strangerAtOnce)
		l.lines[text] = lines
	}
	l.mu.Unlock()
	if !lines.Allow() {
		l.tally.note("log lines: "+text, l.peer, strangerEach)
		l.log.Debug(text, attrs...)
		return
	}
	l.log.Info(text, attrs...)
}
