package mux

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"

	"github.com/waypointd/waypoint/mux/wire"
)

// ErrCanceled is the cause of a handler's context whose caller has closed the
// stream. It is a context.Canceled.
var ErrCanceled = fmt.Errorf("the caller has gone: %w", context.Canceled)

// ErrClosed is a session's error after its own Close.
var ErrClosed = wire.Errorf(wire.Unavailable, "the session is closed")

// ErrCallOver is what a send returns when the other side has already ended the
// call: receive to learn its STATUS.
var ErrCallOver = wire.Errorf(wire.Unavailable, "the other side has ended the call")

// plaintextHint is what to do where plaintext met TLS.
const plaintextHint = "the server may ask for TLS: leave out --no-server-tls"

var errHandshakeLate = wire.Errorf(wire.Unavailable, "the handshake was not done in time")

// lostText says in one clause why a connection is of no more use.
func lostText(err error) string {
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF): // the latter from TLS
		return "the other side closed the connection"
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return "the other side broke the connection off"
	case errors.Is(err, net.ErrClosed), errors.Is(err, io.ErrClosedPipe):
		return "the connection is closed"
	}
	return err.Error()
}

// ErrLost is, by errors.Is, every error of a call whose session has ended under it,
// or had before: the call may or may not have happened. A STATUS is never it.
var ErrLost = errors.New("the session was lost")

// lostError is a *wire.Error that is ErrLost as well.
type lostError struct{ why *wire.Error }

func (e *lostError) Error() string        { return e.why.Message }
func (e *lostError) Unwrap() error        { return e.why }
func (e *lostError) Is(target error) bool { return target == ErrLost }

// newLostError is the error of a session that ended because of err.
func newLostError(err error) error {
	e, ok := errors.AsType[*wire.Error](err)
	switch {
	case ok && e.Kind == wire.Unavailable:
	case ok:
		e = &wire.Error{Kind: wire.Unavailable, Message: "session lost: " + e.Message, Hint: e.Hint}
	default:
		e = wire.Errorf(wire.Unavailable, "session lost: %s", lostText(err))
	}
	return &lostError{e}
}

// contextError is what a call returns whose context has ended: Timeout where
// that was a deadline, else the context's cause.
func contextError(ctx context.Context) error {
	cause := context.Cause(ctx)
	if errors.Is(cause, context.DeadlineExceeded) {
		return wire.Errorf(wire.Timeout, "the deadline passed")
	}
	return cause
}

// statusOf is the STATUS for what a handler returned, and whether the error
// was one that must not be shown and so has to be logged.
func statusOf(err error) (status wire.Error, hidden bool) {
	if err == nil {
		return wire.Error{}, false
	}
	if e, ok := errors.AsType[*wire.Error](err); ok && e.Kind != "" {
		return *e, false
	}
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return wire.Error{Kind: wire.Timeout, Message: "the deadline passed"}, false
	case errors.Is(err, context.Canceled):
		return wire.Error{Kind: wire.Unavailable, Message: "the call was canceled"}, false
	}
	return wire.Error{Kind: wire.Internal, Message: "internal error"}, true
}

// statusError is the error that a STATUS stands for; nil for success.
func statusError(status wire.Error) error {
	switch status.Kind {
	case "":
		return nil
	case wire.BadUsage, wire.NotFound, wire.Denied, wire.Unauthenticated, wire.Expired, wire.Conflict, wire.Timeout,
		wire.TooLarge, wire.Unavailable, wire.Unimplemented, wire.Internal:
	default:
		status.Kind = wire.Internal
	}
	return &status
}
