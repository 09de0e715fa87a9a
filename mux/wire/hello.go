package wire

// Role says what the side that dialed is.
type Role string

// The roles.
const (
	RoleClient     Role = "client"     // a command line
	RoleRunner     Role = "runner"     // a runner, also the command line's own
	RoleSupervisor Role = "supervisor" // an agent that dials its own host's supervisor
)

// Hello is the request of the first call of a session.
type Hello struct {
	VersionMin int          `json:"version_min"`
	VersionMax int          `json:"version_max"`
	Role       Role         `json:"role"`
	Software   string       `json:"software"`        // "waypoint 0.1.0"
	Token      string       `json:"token,omitempty"` // of a login: who the command line, or the one that a local runner belongs to, is
	Runner     *RunnerHello `json:"runner,omitempty"`
}

// RunnerHello is what a runner says of itself. Kind local asks the server to
// choose the id: such a runner takes only jobs addressed to it and is
// forgotten when it disconnects.
type RunnerHello struct {
	ID          string            `json:"id,omitempty"`
	Kind        RunnerKind        `json:"kind"`
	PublicKey   []byte            `json:"public_key"` // ed25519, 32 bytes
	Labels      map[string]string `json:"labels,omitempty"`
	Hostname    string            `json:"hostname,omitempty"`
	OS          string            `json:"os,omitempty"`
	Arch        string            `json:"arch,omitempty"`
	Isolation   string            `json:"isolation,omitempty"` // cgroup | process-group
	Concurrency int               `json:"concurrency,omitempty"`
	Offers      []TokenOffer      `json:"offers,omitempty"` // kind remote: the runner's tokens; see Standing
}

// Challenge asks a runner to sign ProofText of Nonce with its identity key.
type Challenge struct {
	Nonce []byte `json:"nonce"` // 32 random bytes
}

// Proof answers a Challenge.
type Proof struct {
	Signature []byte `json:"signature"`
}

// proofPrefix keeps a signature made here from meaning anything elsewhere.
const proofPrefix = "waypoint runner identity v1\x00"

// ProofText is what a runner signs: the prefix, the nonce, and what binds the
// proof to this connection (empty on Unix sockets and in memory, whose ends
// the kernel vouches for; the exporter's value on TLS).
func ProofText(nonce, binding []byte) []byte {
	return append(append([]byte(proofPrefix), nonce...), binding...)
}

// Welcome ends the hello.
type Welcome struct {
	Version  int    `json:"version"` // the protocol version in use from here on
	Software string `json:"software"`
	ServerID string `json:"server_id,omitempty"` // kept with the server's state
	RunnerID string `json:"runner_id,omitempty"` // for runners: the id in use
}
