package wire

import (
	"strings"
	"time"
)

// RunnerState is a runner's adoption.
type RunnerState string

// The states of a runner.
const (
	Pending    RunnerState = "pending"
	Preadopted RunnerState = "preadopted"
	Adopted    RunnerState = "adopted"
	Rejected   RunnerState = "rejected"
)

// RunnerKind says where a runner lives.
type RunnerKind string

// The kinds of runner.
const (
	KindRemote RunnerKind = "remote" // an agent
	KindLocal  RunnerKind = "local"  // inside a command line: by-id only, gone at disconnect
)

// Runner is a runner as operators see it; its keys are a contract with scripts,
// but for Admitted, TokenIssued, Peer and Waits, which the command line keeps for people.
type Runner struct {
	ID          string            `json:"id"`
	State       RunnerState       `json:"state"`
	Admitted    bool              `json:"admitted,omitempty"` // connected, with a usable token
	Problem     Problem           `json:"problem,omitempty"`  // with a token in use: of one that was passed over
	Detail      string            `json:"problem_detail,omitempty"`
	Kind        RunnerKind        `json:"kind"`
	Labels      map[string]string `json:"labels,omitempty"`
	Offered     map[string]string `json:"offered_labels,omitempty"` // where they are not those of the record
	Online      bool              `json:"online"`
	FirstSeen   time.Time         `json:"first_seen"`
	LastSeen    time.Time         `json:"last_seen"`
	Fingerprint string            `json:"fingerprint,omitempty"`  // of the identity key, "SHA256:…"
	TokenSource TokenSource       `json:"token_source,omitempty"` // of the token in use, or in use last
	TokenIssued time.Time         `json:"token_issued_at,omitzero"`
	TokenExpiry time.Time         `json:"token_expires_at,omitzero"`
	Peer        string            `json:"peer,omitempty"` // where it connects from: "uid 0", or an address
	Version     string            `json:"version,omitempty"`
	Hostname    string            `json:"hostname,omitempty"`
	OS          string            `json:"os,omitempty"`
	Arch        string            `json:"arch,omitempty"`
	Isolation   string            `json:"isolation,omitempty"`
	Concurrency int               `json:"concurrency,omitempty"`
	RunningJobs int               `json:"running_jobs"`
	Draining    bool              `json:"draining,omitempty"`
	Waits       []Wait            `json:"waits,omitempty"` // of its jobs, and its own, as it said last
}

// RunnerRequest names a runner.
type RunnerRequest struct {
	ID string `json:"id"`
}

// AdoptRequest admits a runner; with a fingerprint, only if its key has it.
type AdoptRequest struct {
	ID          string `json:"id"`
	Fingerprint string `json:"fingerprint,omitempty"`
}

// RunnerTokenRequest asks for a runner token.
type RunnerTokenRequest struct {
	ID        string            `json:"id,omitempty"`     // "" is any
	Labels    map[string]string `json:"labels,omitempty"` // none is any
	ExpiresIn Duration          `json:"expires_in"`       // from MinTokenLife to MaxTokenLife
}

// DrainRequest stops the giving of jobs to a runner, or lets it go on.
type DrainRequest struct {
	ID    string `json:"id,omitempty"` // an agent is asked without
	Drain bool   `json:"drain"`
}

// RunnerFilter selects runners in the order of their ids.
type RunnerFilter struct {
	State  RunnerState       `json:"state,omitempty"`
	Labels map[string]string `json:"labels,omitempty"`
	Limit  int               `json:"limit,omitempty"` // default 50, at most 500
	After  string            `json:"after,omitempty"`
}

// RunnerPage is one page of a list.
type RunnerPage struct {
	Runners []Runner `json:"runners"`
	More    bool     `json:"more,omitempty"` // as in JobPage
}

// MatchRequest asks whether a job of this target could run remotely now.
type MatchRequest struct {
	Target Target `json:"target"`
}

// MatchReply: Match is set when an admitted, online remote runner matches.
type MatchReply struct {
	Match bool `json:"match"`
}

// ServerStatusRequest has no fields.
type ServerStatusRequest struct{}

// ServerStatus is the answer to `waypoint server status`.
type ServerStatus struct {
	ID            string         `json:"id"`
	Version       string         `json:"version"`
	StartedAt     time.Time      `json:"started_at"`
	UptimeSeconds int64          `json:"uptime_seconds"`
	Store         string         `json:"store"`             // "sqlite /var/lib/waypoint/waypoint.db", never a password
	Problem       string         `json:"problem,omitempty"` // why the server does not do what it is for, as its watchdog sees it
	StoreProblem  StoreProblem   `json:"store_problem,omitempty"`
	StoreReserve  int64          `json:"store_reserve,omitempty"` // bytes that new work leaves free; none as 0
	StoreFree     int64          `json:"store_free,omitempty"`    // bytes that are free for the store, where there is a reserve
	StateDir      string         `json:"state_dir"`               // empty when in memory
	Listeners     []Listener     `json:"listeners"`
	Runners       map[string]int `json:"runners"`        // by state
	RunnersOnline int            `json:"runners_online"` //
	Jobs          map[string]int `json:"jobs"`           // by state
	QueueDepth    int            `json:"queue_depth"`    // queued, not yet assigned
	ProtocolMin   int            `json:"protocol_min"`
	ProtocolMax   int            `json:"protocol_max"`
	Fingerprint   string         `json:"tls_fingerprint,omitempty"` // of the certificate to trust, "SHA256:…"; where there is a TCP listener
	CertExpiry    time.Time      `json:"tls_expires_at,omitzero"`   // of the certificate in use
	Limits        []PeerLimit    `json:"limits,omitempty"`          // of what peers can take, as they hold now
}

// PeerLimit is a bound on what peers can take of a server, and how often it has been met.
type PeerLimit struct {
	Name  string    `json:"name"` // its key in server.toml; open_files is the limit of its process
	Most  int64     `json:"most"`
	Times int64     `json:"times"`         // that somebody was refused or held up for it, since the server began
	Last  time.Time `json:"last,omitzero"` // of them
}

// StoreProblem is what a server's store is short of.
type StoreProblem string

// The problems of a store. Both pass by themselves once there is room.
const (
	StoreFull    StoreProblem = "full"    // it has no room: jobs and output wait
	StoreReserve StoreProblem = "reserve" // it has its reserve left: no job is queued or handed out, what runs goes on
)

// Listener is where a server can be reached, and by whom.
type Listener struct {
	Address string       `json:"address"` // "unix:///run/waypoint/waypoint.sock"
	Kind    ListenerKind `json:"kind"`
}

// ListenerKind says whom a listener is for.
type ListenerKind string

// The kinds of listener.
const (
	ForOperators ListenerKind = "operators" // and whoever else can open it
	ForRunners   ListenerKind = "runners"   // an agent's own methods only
	ForTCP       ListenerKind = "tcp"       // whoever shows a token, and runners
)

// ReloadRequest has no fields.
type ReloadRequest struct{}

// Reloaded is what has become of a configuration that was read again.
type Reloaded struct {
	Changed       []string `json:"changed"`        // keys whose new values hold from now on
	RestartNeeded []string `json:"restart_needed"` // keys whose values will hold after a restart
}

// MaxLabels is how many labels a runner may have besides os, arch and hostname.
const MaxLabels = 32

// maxID is the longest id and label key.
const maxID = 63

// CheckID reports whether s can be a runner's id or a label's key:
// [A-Za-z0-9][A-Za-z0-9._-]{0,62}. The error is BadUsage.
func CheckID(s string) error {
	if s == "" || len(s) > maxID || strings.ContainsFunc(s, notIDChar) || strings.ContainsRune("._-", rune(s[0])) {
		return Errorf(BadUsage, "%q is no valid id: 1 to %d letters, digits, '.', '_' and '-', a letter or digit first", s, maxID)
	}
	return nil
}

// CheckLabel reports whether k=v can be a label: the key as an id, the value
// up to 63 characters of the same set. The error is BadUsage.
func CheckLabel(k, v string) error {
	if err := CheckID(k); err != nil {
		return Errorf(BadUsage, "label key %s", err)
	}
	if len(v) > maxID || strings.ContainsFunc(v, notIDChar) {
		return Errorf(BadUsage, "label %s: %q is no valid value: up to %d letters, digits, '.', '_' and '-'", k, v, maxID)
	}
	return nil
}

func notIDChar(c rune) bool {
	return !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.ContainsRune("._-", c))
}
