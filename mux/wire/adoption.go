package wire

import "time"

// TokenSource says where a runner has a token from.
type TokenSource string

// The sources, in the order in which they are asked.
const (
	SourceFile        TokenSource = "file"        // "token" in its state directory
	SourceEnvironment TokenSource = "environment" // WAYPOINT_SERVER_TOKEN, or --token
	SourceCredential  TokenSource = "credential"  // the service manager's
	SourceMemory      TokenSource = "memory"      // granted, and could not be stored
)

// MaxOffers is how many tokens a runner may offer at once: one from each
// source, and the one in use.
const MaxOffers = 5

// TokenOffer is a token that a runner shows. The first usable one counts.
type TokenOffer struct {
	Source TokenSource `json:"source"`
	Token  string      `json:"token"`
}

// Problem is why a token cannot be used.
type Problem string

// The problems.
const (
	NoToken      Problem = "no_token"      // none was offered
	TokenExpired Problem = "token_expired" //
	TokenInvalid Problem = "token_invalid" // mistyped, altered, of another server, signed by a key that is gone
	OtherID      Problem = "other_id"      // made for another runner
	OtherLabels  Problem = "other_labels"  // made for other labels than the runner offers
	OtherKey     Problem = "other_key"     // made for another identity key
)

// TokenRefusal is an offer that was passed over.
type TokenRefusal struct {
	Source  TokenSource `json:"source"`
	Problem Problem     `json:"problem"`
	Detail  string      `json:"detail"` // a clause for people: "it expired at …"
}

// Standing is what the server makes of a runner and of the tokens it offered
// last.
type Standing struct {
	State    RunnerState    `json:"state"`
	Admitted bool           `json:"admitted"`          // jobs are given to it: adopted or preadopted, with a usable token
	Problem  Problem        `json:"problem,omitempty"` // why no token is usable; empty where one is
	Detail   string         `json:"detail,omitempty"`
	Source   TokenSource    `json:"source,omitempty"` // of the token in use, as are the next two
	Issued   time.Time      `json:"issued_at,omitzero"`
	Expiry   time.Time      `json:"expires_at,omitzero"`
	Refused  []TokenRefusal `json:"refused,omitempty"`
	Granted  bool           `json:"granted,omitempty"`  // not admitted, but a Grant follows
	Draining bool           `json:"draining,omitempty"` // by an operator, at the server
}

// AuthenticateRequest offers tokens anew over a living session: jobs and
// streams go on. It is how a new token is taken up and a grant confirmed.
type AuthenticateRequest struct {
	Offers []TokenOffer `json:"offers"`
	Stored bool         `json:"stored,omitempty"` // the granted token is among them and on the runner's disk: it need not be granted again
}

// Grant is the token of an adoption or of its renewal. The runner stores it
// and authenticates with it; until it says that it is stored, the server
// grants the same one again at each new session.
type Grant struct {
	Token string `json:"token"`
}

// AgentStatusRequest has no fields.
type AgentStatusRequest struct{}

// AgentStatus is an agent as seen on its own host.
type AgentStatus struct {
	ID          string    `json:"id"`
	Fingerprint string    `json:"fingerprint"`
	Version     string    `json:"version"`
	PID         int       `json:"pid"`
	Server      string    `json:"server"` // its address
	Connected   bool      `json:"connected"`
	Error       string    `json:"error,omitempty"`    // why it is not connected
	Standing    *Standing `json:"standing,omitempty"` // the last one, also while it is not connected
	Draining    bool      `json:"draining,omitempty"` // by `runner drain` on this host; see Standing for the server's
	Stopping    bool      `json:"stopping,omitempty"` // it ends when its jobs have ended
	Concurrency int       `json:"concurrency"`
	Jobs        []JobRef  `json:"jobs"`
	Waits       []Wait    `json:"waits,omitempty"`

	Supervisor AgentSupervisor `json:"supervisor"`
}

// SupervisorState is whether an agent's jobs can be run.
type SupervisorState string

const (
	SupervisorReady   SupervisorState = "ready"
	SupervisorLeaving SupervisorState = "leaving" // it starts nothing more
	SupervisorMissing SupervisorState = "missing"

	// SupervisorIncompatible is there and shares no version of the protocol with the agent: its
	// jobs go on, others wait until those have ended and it is replaced.
	SupervisorIncompatible SupervisorState = "incompatible"
)

// AgentSupervisor is the parent of an agent's jobs; of one that is missing or incompatible
// only the place is known.
type AgentSupervisor struct {
	State     SupervisorState `json:"state"`
	Dir       string          `json:"dir"`
	Problem   string          `json:"problem,omitempty"` // why it is incompatible
	PID       int             `json:"pid,omitempty"`
	Version   string          `json:"version,omitempty"`
	Isolation string          `json:"isolation,omitempty"`
	User      string          `json:"user,omitempty"` // that jobs run as; "" is the supervisor's own
}
