package main

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"strings"
	"testing"

	"github.com/waypointd/waypoint/cmd/internal/journal"
	"github.com/waypointd/waypoint/mux/wire"
)

func TestProgramLog(t *testing.T) {
	var stderr bytes.Buffer
	a := newApp(t.Context(), new(bytes.Buffer), new(bytes.Buffer), &stderr, nil)
	defer a.close()
	for format, want := range map[string]string{
		"text": `level=INFO msg=two n=2`, "json": `"level":"INFO","msg":"two","n":2}`,
	} {
		stderr.Reset()
		log, level, err := programLog(a, serverIdentifier, "warn", format)
		if err != nil {
			t.Fatal(err)
		}
		log.Info("one")
		level.Set(slog.LevelInfo) // as a reload does
		log.Info("two", "n", 2)
		if got := stderr.String(); strings.Count(got, "\n") != 1 || !strings.HasSuffix(strings.TrimSpace(got), want) {
			t.Errorf("%s logs %q, want a line with %s", format, got, want)
		}
	}
	for _, wrong := range [][2]string{{"loud", ""}, {"", "xml"}} {
		if _, _, err := programLog(a, serverIdentifier, wrong[0], wrong[1]); wire.KindOf(err) != wire.BadUsage {
			t.Errorf("level %q, format %q: %v", wrong[0], wrong[1], err)
		}
	}
	// A test runs with a journal or without.
	_, there := journal.New(serverIdentifier, io.Discard, slog.LevelInfo)
	_, _, err := programLog(a, serverIdentifier, "", "journal")
	if there == nil && err != nil || there != nil && (wire.KindOf(err) != wire.BadUsage || !errors.Is(there, journal.ErrNoJournal)) {
		t.Errorf("with a journal that is %v: %v", there, err)
	}
}
