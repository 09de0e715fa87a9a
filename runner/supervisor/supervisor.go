// Package supervisor is the parent of a runner's jobs. It outlives the agent:
// it starts an attempt's steps, appends their output to the joblog, records
// their end, stops and accounts for them. It knows no server, no project and
// no queue; it runs what it is told to and starts nothing by itself.
//
// What is on disk, in each attempt's directory:
//
//	log        the output (package joblog)
//	process    how to find its processes (package executor); there from before the first of them to the end
//	end.json   the End; takes the place of the former when everything else is over
//
//	Start ─▶ steps, one after the other ─▶ leftovers killed ─▶ output drained ─▶ end.json ─▶ Event, Ended
//	              │ Stop, time-out, Close: TERM ─ grace ─▶ kill ▲
//	              └─────────────────────────────────────────────┘
//
// The steps of an attempt share one process tree and one pair of pipes: what
// one leaves running the next one finds. When the last one has ended
// everything else is killed, and every byte that was written is in the log
// before the end is said, whoever still holds the pipes open.
//
// An attempt is never started a second time: one whose directory shows that it
// was is refused, also by another supervisor after the death of the first.
// What a supervisor does not hold is not running, or is about to die: see
// [KillLeftovers].
//
// Jobs may be another user's (Config.JobUser). What of an attempt's directory is
// to be theirs is handed over before the first step and taken back when no
// process is left, before end.json is written; see custody.go. The rest of it
// they can pass through, and neither list nor read.
//
// The pipes are the back-pressure: when the disk is full nothing is read until
// there is room again. Goroutines: one for each attempt and each of its pipes;
// behind a socket one for each session and call.
package supervisor

import (
	"context"
	"time"

	"github.com/waypointd/waypoint/mux/wire"
)

// Spec is one attempt to run. Everything it names is on this host's disk.
type Spec struct {
	wire.JobRef
	Dir      string        // the attempt's own directory: "log" and "end.json" are made here
	WorkDir  string        // where the steps run
	Theirs   []string      // entries of Dir, as far as they are there, that are the jobs' user's while the attempt runs, with all in them
	Steps    []Step        // one after the other, until one fails
	Env      []string      // the whole environment
	Stdin    string        // a file; empty is /dev/null
	Timeout  time.Duration // of all steps together; 0 is none
	Grace    time.Duration // between TERM and kill; default 10 s
	Notice   string        // a line said in-band before the first step
	LogLimit int64         // bytes of output kept; what comes after is discarded, said in-band once; 0 is 1 GiB
}

// Step is one command.
type Step struct {
	Name     string   // said in-band (wire.Notice) before it starts, where there are several steps; "" says nothing
	Argv     []string // Argv[0] is looked up in Env's PATH, relative paths in WorkDir
	Continue bool     // its failure does not end the attempt
}

// End is how an attempt ended, as kept in end.json.
type End struct {
	State    wire.State  `json:"state"` // success | error | canceled
	Reason   wire.Reason `json:"reason,omitempty"`
	Error    string      `json:"error,omitempty"`
	ExitCode *int        `json:"exit_code,omitempty"` // 127 command not found, 126 not executable
	Signal   string      `json:"signal,omitempty"`
	Usage    *wire.Usage `json:"usage,omitempty"`
	LogBytes int64       `json:"log_bytes"`
	At       time.Time   `json:"at"`
}

// Status is one attempt as the supervisor holds it. Ended ones are held until Forget.
type Status struct {
	wire.JobRef
	Dir string `json:"dir"`
	End *End   `json:"end,omitempty"` // nil while it runs
}

// Event says that an attempt's log has grown or that it has ended. Events of the same
// attempt may be merged, never lost. With Leaving it is of no attempt.
type Event struct {
	wire.JobRef
	LogBytes int64  `json:"log_bytes"`
	Ended    bool   `json:"ended,omitempty"`
	Waits    string `json:"waits,omitempty"`   // there is no room for what it writes, and why
	Leaving  bool   `json:"leaving,omitempty"` // the supervisor starts nothing more; what runs goes on for a while
}

// Jobs is what the agent asks of a supervisor: one in its own process (New) or one behind a
// socket in the state directory (Connect).
type Jobs interface {
	Start(ctx context.Context, spec Spec) error // Conflict: already held. A command that cannot be started is not an error here but an End.
	Stop(ctx context.Context, ref wire.JobRef, force bool) error
	List(ctx context.Context) ([]Status, error)
	// Takeover ends the sessions of agents that connected before this one. What
	// they had asked for has been done when it returns, or will never be: so
	// what List does not name then was not started.
	Takeover(ctx context.Context) error
	Forget(ctx context.Context, ref wire.JobRef) error // only ended ones; the directory is the agent's to remove
	// Retire has the supervisor's process end with the last running job, at once where there
	// is none; jobs are started until then. Unimplemented: it has no process of its own, or
	// is too old to know of it.
	Retire(ctx context.Context) error
	// Watch calls f with an Event for each held attempt at once and then for each change, until
	// ctx ends or the supervisor is gone (Unavailable).
	Watch(ctx context.Context, f func(Event)) error
	Isolation() string // cgroup | process-group
	User() string      // whom jobs run as; "" is the supervisor's own user
	Version() string   // of the program that it runs, "" where it does not say
	PID() int
	Close() error
}
