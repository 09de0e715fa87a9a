// Package journal is the log of a program that runs under systemd: a
// slog.Handler over the journal's native protocol, and the table of the
// messages that administrators look for.
//
// # A record in the journal
//
//	MESSAGE            the text, then key=value as slog's text handler shows them
//	MESSAGE_ID         where the text has one, see Events
//	PRIORITY           3 error, 4 warning, 6 info, 7 debug
//	SYSLOG_IDENTIFIER  waypoint-server, waypoint-runner, waypoint-jobs
//	WAYPOINT_<KEY>     each attribute's value, as it is, so of several lines too
//	CODE_FILE, _LINE   where the line was written, if debugging is logged
//
// A key's letters become capitals, whatever is no letter or digit an
// underscore; groups come before it, joined by underscores; a field's name
// ends after 64 bytes. A value that has fields besides its text (Fielder)
// brings them under its own name: peer gives WAYPOINT_PEER, WAYPOINT_PEER_UID
// and WAYPOINT_PEER_PID. Time is the journal's own.
//
// # What if the journal does not take it
//
// A record goes in one datagram; one that is too long for that, in a sealed
// memfd whose descriptor is sent. No record waits longer than a second, and
// after one that did, none waits at all until the journal reads again. What
// it refuses is written to stderr as text. If stderr, which is a socket to
// the same journal, has no room either, the record is lost: the next one that gets
// through is preceded by a warning that says how many were.
package journal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	systemd "github.com/coreos/go-systemd/v22/journal"
)

// ErrNoJournal is why there is no handler: nobody listens.
var ErrNoJournal = errors.New("no journal listens on " + path)

// OnStderr reports whether stderr goes to the journal, by JOURNAL_STREAM and
// by what is open there: the variable is inherited by those whose stderr goes
// elsewhere.
func OnStderr() bool {
	is, err := systemd.StderrIsJournalStream()
	return err == nil && is
}

// Fielder is the value of an attribute that has fields besides its text.
type Fielder interface {
	LogFields() []slog.Attr
}

// Handler writes records to the journal. It is used by many goroutines at
// once.
type Handler struct {
	to     *sink
	level  slog.Leveler
	text   slog.Handler // writes to to.line, under to.mu
	prefix string       // of the names of fields: WAYPOINT_ and the open groups
	fields []byte       // of WithAttrs, encoded
}

// sink is what the handlers of one log share.
type sink struct {
	socket *socket
	stderr io.Writer
	head   []byte       // SYSLOG_IDENTIFIER, encoded
	lost   atomic.Int64 // records since the last one that got through

	mu   sync.Mutex
	line bytes.Buffer // of the text handler, under mu
}

// New makes a handler for the journal of this host. Records that it refuses
// go to stderr. The error is ErrNoJournal where there is none.
func New(identifier string, stderr io.Writer, level slog.Leveler) (*Handler, error) {
	return open(path, identifier, stderr, level)
}

func open(path, identifier string, stderr io.Writer, level slog.Leveler) (*Handler, error) {
	s, err := dial(path)
	if err != nil {
		return nil, err
	}
	to := &sink{socket: s, stderr: stderr, head: appendField(nil, "SYSLOG_IDENTIFIER", identifier)}
	return &Handler{to: to, level: level, prefix: "WAYPOINT_", text: slog.NewTextHandler(&to.line, &slog.HandlerOptions{Level: level})}, nil
}

// Enabled is part of slog.Handler.
func (h *Handler) Enabled(_ context.Context, level slog.Level) bool { return level >= h.level.Level() }

// WithAttrs is part of slog.Handler.
func (h *Handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	if len(attrs) == 0 {
		return h
	}
	n := *h
	n.fields = bytes.Clone(h.fields)
	for _, a := range attrs {
		n.fields = appendAttr(n.fields, h.prefix, a)
	}
	n.text = h.text.WithAttrs(attrs)
	return &n
}

// WithGroup is part of slog.Handler.
func (h *Handler) WithGroup(name string) slog.Handler {
	if name == "" {
		return h
	}
	n := *h
	n.prefix = h.prefix + clean(name) + "_"
	n.text = h.text.WithGroup(name)
	return &n
}

// buffers are for whole records.
var buffers = sync.Pool{New: func() any { return new([]byte) }}

// Handle is part of slog.Handler. It fails only where the record is lost.
func (h *Handler) Handle(ctx context.Context, r slog.Record) error {
	buf := buffers.Get().(*[]byte)
	defer func() {
		if cap(*buf) <= 64<<10 {
			buffers.Put(buf)
		}
	}()
	b := append((*buf)[:0], h.to.head...)
	b = appendField(b, "PRIORITY", priority(r.Level))
	b = appendField(b, "MESSAGE", h.message(ctx, r))
	if e, ok := byText[r.Message]; ok {
		b = appendField(b, "MESSAGE_ID", e.ID)
	}
	if h.level.Level() <= slog.LevelDebug && r.PC != 0 {
		f, _ := runtime.CallersFrames([]uintptr{r.PC}).Next()
		b = appendField(b, "CODE_FILE", f.File)
		b = appendField(b, "CODE_LINE", strconv.Itoa(f.Line))
	}
	b = append(b, h.fields...)
	r.Attrs(func(a slog.Attr) bool {
		b = appendAttr(b, h.prefix, a)
		return true
	})
	*buf = b
	return h.to.write(ctx, b, h, r)
}

// write sends a record, or else puts it on stderr.
func (s *sink) write(ctx context.Context, record []byte, h *Handler, r slog.Record) error {
	if lost := s.lost.Swap(0); lost > 0 {
		b := appendField(bytes.Clone(s.head), "PRIORITY", priority(slog.LevelWarn))
		b = appendField(b, "MESSAGE", fmt.Sprintf("log records lost: the journal did not read count=%d", lost))
		if s.socket.send(appendField(b, "WAYPOINT_COUNT", strconv.FormatInt(lost, 10))) != nil {
			s.lost.Add(lost)
		}
	}
	err := s.socket.send(record)
	if err == nil {
		return nil
	}
	// The journal reads the priority of a line of stderr from its beginning.
	line := fmt.Sprintf("<%s>%s\n", priority(r.Level), h.message(ctx, r))
	if werr := writeNow(s.stderr, line); werr != nil {
		s.lost.Add(1)
		return errors.Join(err, werr)
	}
	return nil
}

// bare is how slog's text handler begins a record without a time and a text.
const bare = `level=INFO msg=""`

// message is the text and the attributes in one line.
func (h *Handler) message(ctx context.Context, r slog.Record) string {
	rest := r
	rest.Time, rest.Level, rest.Message = time.Time{}, slog.LevelInfo, ""
	var b strings.Builder
	b.WriteString(r.Message)
	h.to.mu.Lock()
	defer h.to.mu.Unlock()
	h.to.line.Reset()
	if err := h.text.Handle(ctx, rest); err == nil {
		b.WriteString(strings.TrimSuffix(strings.TrimPrefix(h.to.line.String(), bare), "\n"))
	}
	if h.to.line.Cap() > 64<<10 {
		h.to.line = bytes.Buffer{}
	}
	return b.String()
}

// priority is the level as syslog counts.
func priority(l slog.Level) string {
	switch {
	case l >= slog.LevelError:
		return "3"
	case l >= slog.LevelWarn:
		return "4"
	case l >= slog.LevelInfo:
		return "6"
	}
	return "7"
}
