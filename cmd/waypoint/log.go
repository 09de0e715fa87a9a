package main

import (
	"log/slog"

	"github.com/waypointd/waypoint/cmd/internal/journal"
	"github.com/waypointd/waypoint/mux/wire"
)

// What the programs that run for long are called in the journal.
const (
	serverIdentifier = "waypoint-server"
	runnerIdentifier = "waypoint-runner"
	jobsIdentifier   = "waypoint-jobs"
)

// programLog is the log of a server, a runner or a supervisor: on stderr, or
// in the journal where stderr goes there anyway. Its level may be changed
// while it is used.
func programLog(a *app, identifier, level, format string) (*slog.Logger, *slog.LevelVar, error) {
	l, err := a.logLevel(level)
	if err != nil {
		return nil, nil, err
	}
	at := new(slog.LevelVar)
	at.Set(l)
	if format == "" && journal.OnStderr() {
		// Where it is not to be had after all, there still is stderr.
		if h, err := journal.New(identifier, a.stderr, at); err == nil {
			return slog.New(h), at, nil
		}
	}
	opts := &slog.HandlerOptions{Level: at}
	switch format {
	case "", "text":
		return slog.New(slog.NewTextHandler(a.stderr, opts)), at, nil
	case "json":
		return slog.New(slog.NewJSONHandler(a.stderr, opts)), at, nil
	case "journal":
		h, err := journal.New(identifier, a.stderr, at)
		if err != nil {
			return nil, nil, wire.Errorf(wire.BadUsage, "start log: %v", err).
				WithHint("use the format text or json where systemd does not run")
		}
		return slog.New(h), at, nil
	}
	return nil, nil, checkLogFormat(format)
}

// checkLogFormat refuses what is no format of a log.
func checkLogFormat(format string) error {
	switch format {
	case "", "text", "json", "journal":
		return nil
	}
	return wire.Errorf(wire.BadUsage, "start log: %q is no format", format).WithHint("use text, json or journal")
}

// logLevel is the level of a program's log: as configured, and debug with -v.
func (a *app) logLevel(text string) (l slog.Level, err error) {
	if text != "" {
		if err := l.UnmarshalText([]byte(text)); err != nil {
			return l, wire.Errorf(wire.BadUsage, "start log: %q is no level", text).WithHint("use debug, info, warn or error")
		}
	}
	if a.Verbose > 0 {
		l = slog.LevelDebug
	}
	return l, nil
}
