package wire

import "time"

// Operation is what a job does.
type Operation string

// The operations.
const (
	OpRun     Operation = "run" // one command
	OpBuild   Operation = "build"
	OpDeploy  Operation = "deploy"
	OpRelease Operation = "release"
	OpDestroy Operation = "destroy"
)

// State is where a job is on its way; drawn in daemon/queue.
type State string

// The states. Success, error and canceled are ends.
const (
	Queued   State = "queued"
	Assigned State = "assigned"
	Running  State = "running"
	Success  State = "success"
	Failed   State = "error"
	Canceled State = "canceled"
)

// Ended reports whether nothing can happen to the job any more.
func (s State) Ended() bool { return s == Success || s == Failed || s == Canceled }

// Reason says why a job that ended is no success.
type Reason string

// The reasons; the last two belong to Canceled, the others to Failed.
const (
	ReasonFailed     Reason = "failed"      // the command ended with another code than 0, or could not start
	ReasonTimeout    Reason = "timeout"     // ran longer than it may
	ReasonExpired    Reason = "expired"     // no runner took it in time
	ReasonRunnerLost Reason = "runner_lost" // its runner was out of contact for longer than the lease, or lost it
	ReasonDependency Reason = "dependency"  // a job it depends on did not succeed
	ReasonOOM        Reason = "oom"         // killed for want of memory
	ReasonCanceled   Reason = "canceled"    // on request
	ReasonSuperseded Reason = "superseded"  // a newer job of its singleton took its place while it was queued
)

// Target says which runners may take a job: exactly one of the three.
type Target struct {
	Any    bool              `json:"any,omitempty"`
	ID     string            `json:"id,omitempty"`
	Labels map[string]string `json:"labels,omitempty"` // all must match exactly
}

// Hook is a command around an operation's own.
type Hook struct {
	When      string   `json:"when"` // before | after
	Command   []string `json:"command"`
	OnFailure string   `json:"on_failure,omitempty"` // fail (default) | continue
}

// Source says how another machine gets the code. A nil Source means that
// there is none: the job starts in an empty directory (or, on a local
// runner, in the caller's).
type Source struct {
	Tree string `json:"tree"` // digest of the manifest blob, see package runner/operation
}

// JobSpec is a job as it is asked for. It never changes once queued.
type JobSpec struct {
	Operation Operation `json:"operation"`
	Project   string    `json:"project,omitempty"`
	App       string    `json:"app,omitempty"`
	Workspace string    `json:"workspace,omitempty"` // default "default"
	Profile   string    `json:"profile,omitempty"`

	Use     string            `json:"use,omitempty"`     // the component; default "exec"
	Command []string          `json:"command,omitempty"` // or Script
	Script  string            `json:"script,omitempty"`  // run by sh -eu
	Hooks   []Hook            `json:"hooks,omitempty"`
	Output  []string          `json:"output,omitempty"` // build: what becomes the artifact, relative to Dir
	Dir     string            `json:"dir,omitempty"`    // relative to the source's root; absolute on a local runner
	Env     map[string]string `json:"env,omitempty"`
	Vars    map[string]string `json:"vars,omitempty"`  // -> WP_VAR_k
	Stdin   string            `json:"stdin,omitempty"` // digest of a blob
	Source  *Source           `json:"source,omitempty"`

	Artifact   int64 `json:"artifact,omitempty"`   // deploy: number; 0 is that of the build it depends on, else the newest
	Deployment int64 `json:"deployment,omitempty"` // release: number; 0 likewise

	Target    Target   `json:"target"`
	Priority  int      `json:"priority,omitempty"` // higher first
	Timeout   Duration `json:"timeout,omitzero"`   // of the run; 0 is none
	ExpiresIn Duration `json:"expires_in,omitzero"`
	DependsOn []string `json:"depends_on,omitempty"` // job ids, or "#N": the N-th (from 0) of the same submit
	// AllowDependencyFailure: run also when a dependency did not succeed.
	AllowDependencyFailure bool   `json:"allow_dependency_failure,omitempty"`
	Singleton              string `json:"singleton,omitempty"`
	IdempotencyKey         string `json:"idempotency_key,omitempty"`
}

// Job is a job as operators see it; its keys are a contract with scripts.
type Job struct {
	ID              string            `json:"id"`
	Operation       Operation         `json:"operation"`
	State           State             `json:"state"`
	Reason          Reason            `json:"reason,omitempty"`
	Error           string            `json:"error,omitempty"`
	ExitCode        *int              `json:"exit_code,omitempty"` // set when the command ran to its own end
	Signal          string            `json:"signal,omitempty"`    // "SIGKILL" when a signal ended it
	Project         string            `json:"project,omitempty"`
	App             string            `json:"app,omitempty"`
	Workspace       string            `json:"workspace,omitempty"`
	Profile         string            `json:"profile,omitempty"`
	Target          Target            `json:"target"`
	RunnerID        string            `json:"runner_id,omitempty"`
	Attempt         int               `json:"attempt"` // 0 until assigned, then from 1
	RetryOf         string            `json:"retry_of,omitempty"`
	QueuedBy        string            `json:"queued_by,omitempty"` // the user's name
	QueuedAt        time.Time         `json:"queued_at"`
	AssignedAt      time.Time         `json:"assigned_at,omitzero"`
	StartedAt       time.Time         `json:"started_at,omitzero"`
	FinishedAt      time.Time         `json:"finished_at,omitzero"`
	CancelRequested time.Time         `json:"cancel_requested_at,omitzero"`
	ExpiresAt       time.Time         `json:"expires_at,omitzero"`
	LogBytes        int64             `json:"log_bytes"`
	DependsOn       []string          `json:"depends_on,omitempty"`
	Singleton       string            `json:"singleton,omitempty"`
	Priority        int               `json:"priority"`
	Command         []string          `json:"command,omitempty"`
	Outputs         map[string]string `json:"outputs,omitempty"`
	Usage           *Usage            `json:"usage,omitempty"`
	Sequence        int64             `json:"sequence,omitempty"` // number of the artifact, deployment or release it makes
	LateResult      *LateResult       `json:"late_result,omitempty"`
}

// LateResult is how an attempt went that had ended as runner_lost, as its runner
// said when it was back. It is no second end: nothing else of the job changes
// with it, but for log_bytes, since the rest of the output comes before it.
type LateResult struct {
	Attempt    int       `json:"attempt"`
	State      State     `json:"state"` // canceled where the runner has stopped it
	Reason     Reason    `json:"reason,omitempty"`
	ExitCode   *int      `json:"exit_code,omitempty"`
	Signal     string    `json:"signal,omitempty"`
	LogBytes   int64     `json:"log_bytes"`
	FinishedAt time.Time `json:"finished_at,omitzero"` // by the runner's clock
	ReportedAt time.Time `json:"reported_at"`
}

// Usage is what a job took.
type Usage struct {
	CPUSeconds  float64 `json:"cpu_seconds"`
	MaxRSSBytes int64   `json:"max_rss_bytes"`
	WallSeconds float64 `json:"wall_seconds"`
}

// SubmitRequest queues jobs, all or none. They may depend on one another by
// "#N" in any order; a cycle is refused. A job whose IdempotencyKey is known
// is not queued again: its id is returned.
type SubmitRequest struct {
	Jobs []JobSpec `json:"jobs"`
}

// SubmitReply comes after the durable commit, a job for each of the request's.
type SubmitReply struct {
	Jobs []Job `json:"jobs"`
}

// JobRequest names a job.
type JobRequest struct {
	ID string `json:"id"`
}

// CancelRequest asks for a job's end: graceful, or at once.
type CancelRequest struct {
	ID    string `json:"id"`
	Force bool   `json:"force,omitempty"`
}

// JobFilter selects jobs, newest first; empty fields select all.
type JobFilter struct {
	State     State     `json:"state,omitempty"`
	Operation Operation `json:"operation,omitempty"`
	Runner    string    `json:"runner,omitempty"`
	Project   string    `json:"project,omitempty"`
	App       string    `json:"app,omitempty"`
	Workspace string    `json:"workspace,omitempty"`
	Limit     int       `json:"limit,omitempty"` // default 50, at most 500
	After     string    `json:"after,omitempty"` // the page older than that job
}

// JobPage is one page of a list.
type JobPage struct {
	Jobs []Job `json:"jobs"`
	More bool  `json:"more,omitempty"` // cut short of the limit, as it would be too long for a message
}

// Why says in one sentence why a job is where it is, with the facts.
type Why struct {
	Job      Job    `json:"job"`
	Sentence string `json:"sentence"`
	Code     string `json:"code"` // no_runner_matches | runners_offline | runners_rejected | runners_pending | runners_token | runners_draining | runners_busy | store_full | store_reserve | dependency | serialized | singleton | next | assigned | running | ended
}

// RecordKind is what a successful operation leaves behind.
type RecordKind string

// The kinds of record.
const (
	RecordArtifact   RecordKind = "artifact"
	RecordDeployment RecordKind = "deployment"
	RecordRelease    RecordKind = "release"
)

// Record is an artifact, a deployment or a release, numbered from 1 for each
// kind, project, app and workspace.
type Record struct {
	Kind      RecordKind        `json:"kind"`
	Number    int64             `json:"number"`
	Project   string            `json:"project,omitempty"`
	App       string            `json:"app,omitempty"`
	Workspace string            `json:"workspace,omitempty"`
	JobID     string            `json:"job_id"`
	Of        int64             `json:"of,omitempty"`     // deployment: its artifact; release: its deployment
	Digest    string            `json:"digest,omitempty"` // artifact: of the tar.zst blob
	Size      int64             `json:"size,omitempty"`   // artifact: bytes of the blob
	Outputs   map[string]string `json:"outputs,omitempty"`
	CreatedAt time.Time         `json:"created_at"`
}

// RecordFilter selects records, newest first.
type RecordFilter struct {
	Kind      RecordKind `json:"kind"`
	Project   string     `json:"project,omitempty"`
	App       string     `json:"app,omitempty"`
	Workspace string     `json:"workspace,omitempty"`
	Newest    bool       `json:"newest,omitempty"` // of each app in each workspace the newest alone
	Limit     int        `json:"limit,omitempty"`
}

// RecordPage is one page of a list.
type RecordPage struct {
	Records []Record `json:"records"`
	More    bool     `json:"more,omitempty"` // as in JobPage
}
