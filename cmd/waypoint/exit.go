package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/waypointd/waypoint/mux/wire"
)

// Exit codes, as every command's help promises them.
const (
	exitDone        = 0
	exitFailed      = 1
	exitUsage       = 2
	exitNotFound    = 3
	exitDenied      = 4
	exitUnreachable = 5
	exitConflict    = 6
	exitTimeout     = 7

	// Of run, job stream and job wait, besides the command's own.
	exitJobTimeout = 124
	exitJobEnded   = 125 // in another way than by its command's end
	exitInterrupt  = 130
	exitClosedPipe = 128 + int(syscall.SIGPIPE)
)

// kindCode is the one place where what went wrong becomes an exit code.
func kindCode(kind wire.Kind) int {
	switch kind {
	case "":
		return exitDone
	case wire.BadUsage:
		return exitUsage
	case wire.NotFound:
		return exitNotFound
	case wire.Denied, wire.Unauthenticated, wire.Expired:
		return exitDenied
	case wire.Unavailable:
		return exitUnreachable
	case wire.Conflict:
		return exitConflict
	case wire.Timeout:
		return exitTimeout
	case wire.TooLarge, wire.Unimplemented, wire.Internal:
		return exitFailed
	}
	return exitFailed
}

// jobCode is the exit code of a command that stands for a job that has ended.
func jobCode(job wire.Job) int {
	switch job.Reason {
	case wire.ReasonTimeout:
		return exitJobTimeout
	case wire.ReasonExpired, wire.ReasonRunnerLost, wire.ReasonDependency, wire.ReasonCanceled, wire.ReasonSuperseded:
		return exitJobEnded
	}
	switch n := unix.SignalNum(job.Signal); {
	case job.State == wire.Success:
		return exitDone
	case n != 0:
		return 128 + int(n)
	case job.ExitCode != nil && *job.ExitCode != 0:
		return *job.ExitCode
	}
	// Its command did not fail, and yet the job did.
	return exitJobEnded
}

// status ends the program with a code that is itself the answer: what there
// is to say has been said.
type status int

func (s status) Error() string { return fmt.Sprintf("exit status %d", int(s)) }

// withCode is an error whose exit code is not that of its kind.
type withCode struct {
	error
	code int
}

func (e withCode) Unwrap() error { return e.error }

// report says what went wrong, if anything, and returns the exit code.
func (a *app) report(err error) int {
	if werr, closed := a.stdout.failed(); closed {
		// The reader has what it wanted.
		if s, ok := errors.AsType[status](err); ok {
			return int(s)
		}
		return exitDone
	} else if werr != nil {
		err = fmt.Errorf("write answer: %w", werr)
	}
	if err == nil {
		return exitDone
	}
	if s, ok := errors.AsType[status](err); ok {
		return int(s)
	}
	if cause, ok := errors.AsType[interrupted](context.Cause(a.ctx)); ok {
		return signalCode(cause.sig)
	}
	if errors.Is(err, context.DeadlineExceeded) {
		err = &wire.Error{Kind: wire.Timeout, Message: err.Error()}
	}
	if e, ok := errors.AsType[*wire.Error](err); ok && e.Kind == wire.NotFound && e.Hint == "" {
		e.Hint = a.findWith
	}
	writeError(a.stderr, err)
	if c, ok := errors.AsType[withCode](err); ok {
		return c.code
	}
	return kindCode(wire.KindOf(err))
}

// writeError writes an error and its hint, a line each.
func writeError(w io.Writer, err error) {
	fmt.Fprintf(w, "waypoint: %s\n", concealed(oneLine(err.Error())))
	if e, ok := errors.AsType[*wire.Error](err); ok && e.Hint != "" {
		fmt.Fprintf(w, "hint: %s\n", concealed(oneLine(e.Hint)))
	}
}

var tokenText = regexp.MustCompile(`(wp(?:run|usr|inv)_)[A-Za-z0-9_-]{16,}`)

// concealed is a text without the tokens in it: who gives one where an id is
// asked for is told so, and where errors are kept it is not kept with them.
func concealed(text string) string { return tokenText.ReplaceAllString(text, "$1...") }
