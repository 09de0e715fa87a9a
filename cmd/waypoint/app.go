package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"
	"unicode"

	"github.com/waypointd/waypoint/cmd/internal/output"
	"github.com/waypointd/waypoint/mux/wire"
)

// app is one run of the program: its streams, its environment, and what every
// command has been told.
type app struct {
	*globals

	ctx     context.Context // until the command is interrupted
	cancel  context.CancelCauseFunc
	signals *signals

	stdin  io.Reader
	stdout *answer
	stderr io.Writer
	env    environment
	words  []string // behind the first "--"

	chosen    *choice // by server, once
	tokenRead string  // by readToken, once

	findWith string // the command that shows what there is, where something is not found
}

func newApp(ctx context.Context, stdin io.Reader, stdout, stderr io.Writer, env []string) *app {
	a := &app{globals: new(globals), stdin: stdin, stderr: stderr, env: env}
	a.ctx, a.cancel = context.WithCancelCause(ctx)
	a.stdout = &answer{w: stdout}
	a.signals = listenSignals(func(s os.Signal) { a.cancel(interrupted{s}) })
	return a
}

func (a *app) close() {
	a.signals.close()
	a.cancel(nil)
}

// note says one line on stderr about what goes on.
func (a *app) note(format string, args ...any) {
	fmt.Fprintf(a.stderr, "waypoint: %s\n", oneLine(fmt.Sprintf(format, args...)))
}

// say is note about an operation's way, which everybody expects to see.
func (a *app) say(format string, args ...any) {
	fmt.Fprintln(a.stderr, oneLine(fmt.Sprintf(format, args...)))
}

func (a *app) hint(format string, args ...any) {
	fmt.Fprintf(a.stderr, "hint: %s\n", oneLine(fmt.Sprintf(format, args...)))
}

// fancy reports whether stderr may have colour and lines that move.
func (a *app) fancy() bool {
	return !a.Plain && a.env.get("NO_COLOR") == "" && a.env.get("TERM") != "dumb" && output.IsTerminal(a.stderr)
}

// meter is a moving line on stderr where that is wanted, else silent.
func (a *app) meter() *output.Meter {
	if a.fancy() {
		return output.NewMeter(a.stderr)
	}
	return output.NewMeter(nil)
}

// logger is the program's own log: warnings on stderr, more with -v.
func (a *app) logger() (*slog.Logger, error) {
	level := slog.LevelWarn
	if text := a.env.get("WAYPOINT_LOG_LEVEL"); text != "" {
		if err := level.UnmarshalText([]byte(text)); err != nil {
			return nil, wire.Errorf(wire.BadUsage, "read WAYPOINT_LOG_LEVEL: %q is no level", text).
				WithHint("use debug, info, warn or error")
		}
	}
	switch {
	case a.Verbose == 1:
		level = min(level, slog.LevelInfo)
	case a.Verbose > 1:
		level = slog.LevelDebug
	}
	return slog.New(slog.NewTextHandler(a.stderr, &slog.HandlerOptions{Level: level})), nil
}

// callTimeout bounds a question that is answered at once by a healthy server,
// so that one that hangs is an error and not a silence.
const callTimeout = 30 * time.Second

// ask is the context of such a question.
func (a *app) ask() (context.Context, context.CancelFunc) {
	return context.WithTimeout(a.ctx, callTimeout)
}

// print writes the answer: as a document with --json, else as human does.
func (a *app) print(v any, human func(w io.Writer) error) error {
	if a.JSON {
		return output.JSON(a.stdout, v)
	}
	return human(a.stdout)
}

// answer is stdout. It remembers the first error, since a command that could
// not say its answer has failed whatever else it did.
type answer struct {
	w io.Writer

	mu  sync.Mutex
	err error
}

func (o *answer) Write(b []byte) (int, error) {
	n, err := o.w.Write(b)
	if err != nil {
		o.mu.Lock()
		defer o.mu.Unlock()
		if o.err == nil {
			o.err = err
		}
	}
	return n, err
}

// failed is the first error of writing, closed whether it is that nobody
// reads any more.
func (o *answer) failed() (err error, closed bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.err, errors.Is(o.err, syscall.EPIPE)
}

// environment is the caller's, as "K=V" strings.
type environment []string

func (e environment) get(name string) string {
	v := ""
	for _, kv := range e {
		if k, val, ok := strings.Cut(kv, "="); ok && k == name {
			v = val // the last one counts, as for execve's readers
		}
	}
	return v
}

// without is the environment less some names.
func (e environment) without(names ...string) []string {
	var kept []string
next:
	for _, kv := range e {
		for _, name := range names {
			if strings.HasPrefix(kv, name+"=") {
				continue next
			}
		}
		kept = append(kept, kv)
	}
	return kept
}

// oneLine keeps what others said from looking like more lines of ours, and a
// terminal from obeying it: also controls of C1 and what changes the direction.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, strings.TrimSpace(s))
}
