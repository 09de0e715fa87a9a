package wire

import "time"

// JobRef names one attempt of a job. Every message of a runner carries it; a
// stale attempt is refused with Conflict.
type JobRef struct {
	Job     string `json:"job"`
	Attempt int    `json:"attempt"`
}

// Held is an attempt that a runner has on its disk.
type Held struct {
	JobRef
	Started bool `json:"started,omitempty"` // the server's confirmation was seen: it runs, ran, or was lost
}

// WorkEvent is what a runner says on its work stream. Exactly one field is
// set; the first event of a stream is Begin, and Begin only comes first.
type WorkEvent struct {
	Begin     *WorkBegin `json:"begin,omitempty"`
	Ack       *JobRef    `json:"ack,omitempty"`  // recorded on the runner's disk; may it start?
	Nack      *Nack      `json:"nack,omitempty"` // cannot be started here: back to the queue
	Heartbeat bool       `json:"heartbeat,omitempty"`
	Holds     *WorkHolds `json:"holds,omitempty"` // in place of a heartbeat
	Drain     *bool      `json:"drain,omitempty"` // true: give me nothing more
}

// WorkBegin opens a work stream: what the runner holds, and how many jobs it
// runs at once.
type WorkBegin struct {
	Held        []Held `json:"held,omitempty"`
	Concurrency int    `json:"concurrency"`
	Draining    bool   `json:"draining,omitempty"`
	// Spool is another one once what the runner was given may be forgotten: made
	// with the directory of its attempts, and of this boot of its host; an
	// attempt that it does not hold, and whose start nobody knows of, is given to
	// it or others again only where it was assigned under the same one, or
	// either is empty: else it is lost.
	Spool string `json:"spool,omitempty"`
}

// MaxSpool is how many bytes WorkBegin.Spool may have.
const MaxSpool = 128

// WorkHolds is a heartbeat that says what the runner holds at this moment, so
// that the two sides cannot differ for long: a job whose start was confirmed
// and that is not among them is lost.
type WorkHolds struct {
	Jobs  []JobRef `json:"jobs"`
	Waits []Wait   `json:"waits,omitempty"` // at most MaxWaits
}

// Wait is what keeps a job where it is that a runner has, in words: there is no room
// on the runner's disk, the server does not take what is to be reported, or only a newer
// release can read what the job has left. Without a job it is what the runner itself
// waits for to take jobs again.
type Wait struct {
	JobRef
	For string `json:"for"` // at most MaxWaitText bytes
}

// What is told of waits is bounded: they are for people, and the first few say it.
const (
	MaxWaits    = 16
	MaxWaitText = 255
)

// Nack gives an assignment back. One that has been acknowledged is the runner's
// until it is told Drop; a Start that crosses the Nack does not count.
type Nack struct {
	JobRef
	Error string `json:"error"`
}

// WorkOrder is what the server says on a runner's work stream. Exactly one
// field is set.
type WorkOrder struct {
	// Standing comes first, and at each change.
	Standing *Standing `json:"standing,omitempty"`
	// Begun answers Begin: every attempt held is in exactly one of its lists.
	Begun     *WorkBegun  `json:"begun,omitempty"`
	Assign    *Assignment `json:"assign,omitempty"`
	Start     *JobRef     `json:"start,omitempty"` // answers Ack: start it now
	Drop      *JobRef     `json:"drop,omitempty"`  // not yours any more: end it if it runs; only a late report can be made of it
	Cancel    *CancelJob  `json:"cancel,omitempty"`
	Grant     *Grant      `json:"grant,omitempty"`
	Heartbeat bool        `json:"heartbeat,omitempty"`
}

// Admits reports whether the order says that jobs are given from now on.
func (o WorkOrder) Admits() bool { return o.Standing != nil && o.Standing.Admitted }

// WorkBegun sorts what a runner holds.
type WorkBegun struct {
	Keep []JobRef `json:"keep,omitempty"` // go on, and report
	Drop []JobRef `json:"drop,omitempty"` // not yours any more, as WorkOrder's
	// HeartbeatEvery is how often each side says something when it has nothing
	// to say; a side that hears nothing for three times as long gives the
	// session up, a runner not within a second.
	HeartbeatEvery Duration `json:"heartbeat_every"`
}

// CancelJob asks a runner to end an attempt: TERM, grace, kill; or at once.
type CancelJob struct {
	JobRef
	Force bool `json:"force,omitempty"`
}

// Assignment is one attempt given to a runner, durable on the server before
// it is sent.
type Assignment struct {
	JobRef
	Spec       JobSpec `json:"spec"`
	Sequence   int64   `json:"sequence,omitempty"`   // WAYPOINT_SEQUENCE
	Artifact   *Record `json:"artifact,omitempty"`   // deploy: what to unpack
	Deployment *Record `json:"deployment,omitempty"` // release: what to release
	LogLimit   int64   `json:"log_limit,omitempty"`  // bytes of output kept
}

// ReportRequest opens the report of one attempt: the runner then sends the
// job's output as DATA frames from the offset that the first ReportOrder
// names, and behind the last byte one MSG Result. Closing early loses
// nothing: the next report goes on from the acknowledged offset.
//
// A late report is of an attempt that was dropped, or whose report was refused:
// it is taken where the job has ended as runner_lost with this attempt and this
// runner, once. Any other is refused with Conflict or NotFound, also by a server
// that does not know of late reports, and the runner forgets the attempt.
type ReportRequest struct {
	JobRef
	Late bool `json:"late,omitempty"`
}

// ReportOrder is the server's side of a report: after every durable append
// the offset up to which the output is safe, and at last Ended.
type ReportOrder struct {
	Offset int64 `json:"offset"`
	Ended  bool  `json:"ended,omitempty"` // the result is durable: forget the job
}

// Result is the end of an attempt as its runner saw it.
type Result struct {
	State    State             `json:"state"` // success | error | canceled
	Reason   Reason            `json:"reason,omitempty"`
	Error    string            `json:"error,omitempty"`
	ExitCode *int              `json:"exit_code,omitempty"`
	Signal   string            `json:"signal,omitempty"`
	Outputs  map[string]string `json:"outputs,omitempty"`
	Usage    *Usage            `json:"usage,omitempty"`
	Artifact *BlobHeader       `json:"artifact,omitempty"` // build: stored before the result is sent
	LogBytes int64             `json:"log_bytes"`          // all output, so that nothing can be missing unnoticed
	// FinishedAt is when the attempt ended, by the runner's clock; kept of a late report.
	FinishedAt time.Time `json:"finished_at,omitzero"`
}
