package wire

import (
	"errors"
	"fmt"
)

// Kind is the closed list of what can be wrong. One switch (cmd/waypoint's
// exit.go) turns it into an exit code.
type Kind string

// The kinds. A receiver that meets one it does not know treats it as Internal.
const (
	BadUsage        Kind = "usage"           // the request makes no sense as it is
	NotFound        Kind = "not_found"       // what was named does not exist
	Denied          Kind = "denied"          // known, and not permitted
	Unauthenticated Kind = "unauthenticated" // no or bad credentials
	Expired         Kind = "expired"         // credentials that were good once
	Conflict        Kind = "conflict"        // not in the present state: stale attempt, finished job, id in use
	Timeout         Kind = "timeout"         // the deadline passed
	TooLarge        Kind = "too_large"       // over a limit
	Unavailable     Kind = "unavailable"     // nobody there, or no room now: may succeed later
	Unimplemented   Kind = "unimplemented"   // the peer does not know the method
	Internal        Kind = "internal"        // a defect
)

// Error is an error that crosses the wire. Message says what failed and why,
// in lower case without a full stop; Hint, if any, is an imperative.
type Error struct {
	Kind    Kind   `json:"kind,omitempty"`
	Message string `json:"message,omitempty"`
	Hint    string `json:"hint,omitempty"`
}

func (e *Error) Error() string { return e.Message }

// Is reports whether target is an *Error of the same kind and, where target
// has a message, the same message; so errors.Is(err, &Error{Kind: Conflict})
// asks for the kind.
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && t.Kind == e.Kind && (t.Message == "" || t.Message == e.Message)
}

// Errorf makes an Error of a kind.
func Errorf(kind Kind, format string, args ...any) *Error {
	return &Error{Kind: kind, Message: fmt.Sprintf(format, args...)}
}

// WithHint returns a copy of e with the next step to take.
func (e *Error) WithHint(format string, args ...any) *Error {
	c := *e
	c.Hint = fmt.Sprintf(format, args...)
	return &c
}

// KindOf is the kind of the first *Error in err's chain, Internal for any
// other error and "" for nil.
func KindOf(err error) Kind {
	if err == nil {
		return ""
	}
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Kind
	}
	return Internal
}
