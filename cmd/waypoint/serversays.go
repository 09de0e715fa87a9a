package main

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/waypointd/waypoint/cmd/internal/systemd"
	"github.com/waypointd/waypoint/daemon"
)

// serverSays tells the service manager, in its line of status, what the server
// does and what is wrong with it.
type serverSays struct {
	log   *slog.Logger
	again chan struct{} // room for one: the note has changed

	mu   sync.Mutex
	note string // what has come of the last reload; guarded by mu
}

func newServerSays(log *slog.Logger) *serverSays {
	return &serverSays{log: log, again: make(chan struct{}, 1)}
}

// reloaded takes note of what has come of a reload.
func (s *serverSays) reloaded(err error) {
	note := "Reloaded " + instant(time.Now()) + "."
	if err != nil {
		note = "Reload refused: " + oneLine(err.Error()) + "."
	}
	s.mu.Lock()
	s.note = note
	s.mu.Unlock()
	select {
	case s.again <- struct{}{}:
	default:
	}
}

// Between two lines: a second, and at least twenty times what it took to count
// the jobs of the last one, so that a long queue is not counted all the time.
const (
	betweenLines = time.Second
	countedShare = 20
)

// run says how the server fares whenever that has changed, until ctx ends.
func (s *serverSays) run(ctx context.Context, srv *daemon.Server) {
	if !systemd.Listens() {
		return
	}
	said := ""
	for {
		select {
		case <-ctx.Done():
			return
		case <-srv.News():
		case <-s.again:
		}
		began := time.Now()
		sum, err := srv.Summary(ctx)
		pause := max(betweenLines, countedShare*time.Since(began))
		if err != nil && ctx.Err() == nil {
			s.log.Warn("status not told to the service manager", "error", err)
		} else if line := s.line(sum); err == nil && line != said {
			said = line
			systemd.Status(line)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}

// line is what is wrong, what the server does, and what has come of a reload.
func (s *serverSays) line(sum daemon.Summary) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var words []string
	switch {
	case sum.Full:
		words = append(words, "The store is full: jobs and output wait for room.")
	case sum.Short:
		words = append(words, "The store has its reserve left: no new work is taken.")
	}
	words = append(words, fmt.Sprintf("Listening on %s; %s online, %s running, %d queued.",
		plural(sum.Listeners, "socket"), plural(sum.Online, "runner"), plural(sum.Running, "job"), sum.Queued))
	if s.note != "" {
		words = append(words, s.note)
	}
	return strings.Join(words, " ")
}

func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
