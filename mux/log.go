package mux

import (
	"fmt"
	"log/slog"
	"strings"

	"golang.org/x/time/rate"
)

// yamuxLog passes what yamux has to say to slog: at debug level and at most
// once a second, because a peer can provoke a line with every frame.
type yamuxLog struct {
	logger *slog.Logger
	peer   *Peer
	limit  *rate.Limiter
}

func newYamuxLog(logger *slog.Logger, peer *Peer) *yamuxLog {
	return &yamuxLog{logger: logger, peer: peer, limit: rate.NewLimiter(1, 5)}
}

func (l *yamuxLog) Print(v ...any)                 { l.say(fmt.Sprint(v...)) }
func (l *yamuxLog) Println(v ...any)               { l.say(fmt.Sprint(v...)) }
func (l *yamuxLog) Printf(format string, v ...any) { l.say(fmt.Sprintf(format, v...)) }

func (l *yamuxLog) say(text string) {
	if l.limit.Allow() {
		l.logger.Debug("yamux", "peer", l.peer, "text", strings.TrimSpace(text))
	}
}
