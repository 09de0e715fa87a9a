package wire

import (
	"strings"
	"time"
)

// ActorKind is how a server knows who has called.
type ActorKind string

// The kinds of actor.
const (
	ActorUser      ActorKind = "user"      // by a token
	ActorHost      ActorKind = "host"      // a user of the server's host, as its kernel says
	ActorRunner    ActorKind = "runner"    // by the key of a runner
	ActorAnonymous ActorKind = "anonymous" // who has proved nothing
)

// What an entry's outcome is, if it is not a kind of error.
const (
	AuditDone    = "done"
	AuditBegun   = "begun"   // of a snapshot: before its first byte is sent
	AuditRefused = "refused" // in a filter: whatever is a kind of error
)

// AuditEntry is one call or login: who, from where, when, what, and how it has
// come out. It has no secrets.
type AuditEntry struct {
	ID        string            `json:"id"` // grows with time
	At        time.Time         `json:"at"`
	LastAt    time.Time         `json:"last_at,omitzero"` // of the last one, where several that were alike are one entry
	Count     int64             `json:"count,omitempty"`  // how many these were
	ActorKind ActorKind         `json:"actor_kind"`
	Actor     string            `json:"actor,omitempty"` // the name of the user, or the runner's id
	By        string            `json:"by,omitempty"`    // how the server knows: "token 17", "uid 1000", "group waypoint", "runner key"
	Role      UserRole          `json:"role,omitempty"`  // at that moment
	Peer      string            `json:"peer"`
	Method    string            `json:"method"`           // that of the protocol; runner.resume, login and runner.connect besides
	Object    string            `json:"object,omitempty"` // ids or names, with spaces between
	Outcome   string            `json:"outcome"`          // "done", "begun", or the kind of error
	Reason    string            `json:"reason,omitempty"` // the error's text
	Detail    map[string]string `json:"detail,omitempty"`
}

// Who is the actor in one word: "user:anna", "anonymous".
func (e *AuditEntry) Who() string {
	if e.Actor == "" {
		return string(e.ActorKind)
	}
	return string(e.ActorKind) + ":" + e.Actor
}

// ParseActor is what a filter's actor selects: a name, a kind, or a name of one
// kind ("user:anna").
func ParseActor(text string) (kind ActorKind, name string) {
	first, rest, _ := strings.Cut(text, ":")
	switch k := ActorKind(first); k {
	case ActorUser, ActorHost, ActorRunner, ActorAnonymous:
		return k, rest
	}
	return "", text
}

// AuditFilter selects entries; what is not set selects all.
type AuditFilter struct {
	Since       time.Time `json:"since,omitzero"`
	Until       time.Time `json:"until,omitzero"`
	Actor       string    `json:"actor,omitempty"`   // a name, a kind of actor, or both with a colon between
	Method      string    `json:"method,omitempty"`  // one, or all that begin so where it ends with a dot
	Object      string    `json:"object,omitempty"`  // one of an entry's
	Outcome     string    `json:"outcome,omitempty"` // "refused" is every kind of error
	Limit       int       `json:"limit,omitempty"`   // 50 where it is not set, at most 500
	After       string    `json:"after,omitempty"`   // the page behind this entry
	OldestFirst bool      `json:"oldest_first,omitempty"`
}

// AuditPage is entries, the newest first unless the filter says otherwise.
type AuditPage struct {
	Entries []AuditEntry `json:"entries"`
	More    bool         `json:"more,omitempty"` // cut short, as it would be too long for a message
	Next    string       `json:"next,omitempty"` // not full, since it has looked at many entries: go on behind this one
}
