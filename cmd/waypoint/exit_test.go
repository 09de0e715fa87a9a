package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"

	"github.com/waypointd/waypoint/mux/wire"
)

func TestKindCode(t *testing.T) {
	for kind, want := range map[wire.Kind]int{
		"": 0, wire.BadUsage: 2, wire.NotFound: 3, wire.Denied: 4, wire.Unauthenticated: 4, wire.Expired: 4,
		wire.Unavailable: 5, wire.Conflict: 6, wire.Timeout: 7, wire.TooLarge: 1, wire.Unimplemented: 1,
		wire.Internal: 1, "from the future": 1,
	} {
		if got := kindCode(kind); got != want {
			t.Errorf("kindCode(%q) = %d, want %d", kind, got, want)
		}
	}
}

func TestJobCode(t *testing.T) {
	code := func(n int) *int { return &n }
	for _, c := range []struct {
		name string
		job  wire.Job
		want int
	}{
		{"success", wire.Job{State: wire.Success, ExitCode: code(0)}, 0},
		{"own code", wire.Job{State: wire.Failed, Reason: wire.ReasonFailed, ExitCode: code(3)}, 3},
		{"not found", wire.Job{State: wire.Failed, Reason: wire.ReasonFailed, ExitCode: code(127)}, 127},
		{"signal", wire.Job{State: wire.Failed, Reason: wire.ReasonFailed, Signal: "SIGKILL"}, 137},
		{"time-out", wire.Job{State: wire.Failed, Reason: wire.ReasonTimeout, Signal: "SIGTERM"}, 124},
		{"time-out with code", wire.Job{State: wire.Failed, Reason: wire.ReasonTimeout, ExitCode: code(1)}, 124},
		{"expired", wire.Job{State: wire.Failed, Reason: wire.ReasonExpired}, 125},
		{"canceled", wire.Job{State: wire.Canceled, Reason: wire.ReasonCanceled, Signal: "SIGTERM"}, 125},
		{"superseded", wire.Job{State: wire.Canceled, Reason: wire.ReasonSuperseded}, 125},
		{"lost", wire.Job{State: wire.Failed, Reason: wire.ReasonRunnerLost}, 125},
		{"dependency", wire.Job{State: wire.Failed, Reason: wire.ReasonDependency}, 125},
		{"out of memory", wire.Job{State: wire.Failed, Reason: wire.ReasonOOM, Signal: "SIGKILL"}, 137},
		{"failed behind its command", wire.Job{State: wire.Failed, Reason: wire.ReasonFailed, ExitCode: code(0)}, 125},
		{"failed without a command", wire.Job{State: wire.Failed, Reason: wire.ReasonFailed}, 125},
	} {
		if got := jobCode(c.job); got != c.want {
			t.Errorf("%s: jobCode = %d, want %d", c.name, got, c.want)
		}
	}
}

func TestReport(t *testing.T) {
	for _, c := range []struct {
		name string
		err  error
		want int
		says string
	}{
		{"nothing", nil, 0, ""},
		{"kind", fmt.Errorf("inspect job: %w", wire.Errorf(wire.NotFound, "no job 7").WithHint("waypoint job list")), 3,
			"waypoint: inspect job: no job 7\nhint: waypoint job list\n"},
		{"one line", errors.New("bad\nthing\x1b[2J\u009b2J\u202e"), 1, "waypoint: bad thing [2J 2J \n"},
		{"status", status(42), 42, ""},
		{"own code", withCode{wire.Errorf(wire.Conflict, "lost"), 1}, 1, "waypoint: lost\n"},
		{"deadline", fmt.Errorf("list jobs: %w", context.DeadlineExceeded), 7, "waypoint: list jobs: context deadline exceeded\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var stderr bytes.Buffer
			a := newApp(t.Context(), strings.NewReader(""), new(bytes.Buffer), &stderr, nil)
			defer a.close()
			if got := a.report(c.err); got != c.want || stderr.String() != c.says {
				t.Errorf("report = %d, %q; want %d, %q", got, stderr.String(), c.want, c.says)
			}
		})
	}
}

func TestReportInterrupt(t *testing.T) {
	for sig, want := range map[syscall.Signal]int{syscall.SIGINT: 130, syscall.SIGTERM: 143} {
		var stderr bytes.Buffer
		a := newApp(t.Context(), strings.NewReader(""), new(bytes.Buffer), &stderr, nil)
		a.cancel(interrupted{sig})
		if got := a.report(errors.New("call ended")); got != want || stderr.Len() != 0 {
			t.Errorf("report after %v = %d, %q; want %d and silence", sig, got, stderr.String(), want)
		}
		a.close()
	}
}

// badWriter fails as a stream of the system would.
type badWriter struct{ err error }

func (w badWriter) Write([]byte) (int, error) { return 0, w.err }

func TestStdoutFails(t *testing.T) {
	for _, c := range []struct {
		err  error
		want int
		says string
	}{
		{syscall.EPIPE, 0, ""},
		{syscall.ENOSPC, 1, "waypoint: write answer: no space left on device\n"},
	} {
		var stderr bytes.Buffer
		got := run(t.Context(), []string{"version"}, strings.NewReader(""), badWriter{c.err}, &stderr, nil)
		if got != c.want || stderr.String() != c.says {
			t.Errorf("version on a stdout with %v: %d, %q; want %d, %q", c.err, got, stderr.String(), c.want, c.says)
		}
	}
}
