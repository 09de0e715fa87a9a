package daemon

import (
	"bytes"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// Whoever comes again and again fills no log: some lines at once, one a second, and a
// count of the others.
func TestStrangersFillNoLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var (
			log  bytes.Buffer
			mu   sync.Mutex
			left int
		)
		l := newStrangerLog(slog.New(slog.NewTextHandler(&log, nil)), newTally(func(limit, peer string, most, times int) {
			mu.Lock()
			defer mu.Unlock()
			if limit != "log lines: login refused" || peer != "192.0.2.1" {
				t.Errorf("told of %s of %s", limit, peer)
			}
			left += times
		}))
		count := func(text string) int { return strings.Count(log.String(), `msg="`+text+`"`) }
		const flood = 100_000
		for range flood {
			l.of("192.0.2.1").Info("login refused", "peer", "192.0.2.1:999")
		}
		l.of("192.0.2.2").Info("runner pending", "runner", "r1")
		if n := count("login refused"); n != strangerAtOnce {
			t.Errorf("%d lines of the flood", n)
		}
		if count("runner pending") != 1 {
			t.Error("another kind of line is left out with it")
		}
		time.Sleep(time.Hour)
		for range 600 {
			l.of("192.0.2.1").Info("login refused")
			time.Sleep(100 * time.Millisecond)
		}
		l.tally.flush()
		synctest.Wait()
		mu.Lock()
		defer mu.Unlock()
		n := count("login refused")
		if most := 2*strangerAtOnce + 60; n > most || n < most-1 || left != flood+600-n {
			t.Errorf("%d lines, and %d left out", n, left)
		}
	})
}
