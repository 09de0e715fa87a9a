package supervisor

import (
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/waypointd/waypoint/mux/wire"
	"github.com/waypointd/waypoint/runner/executor"
)

// handleFile is the executor's, in the attempt's directory.
const handleFile = "process"

// stopReason says why an attempt is ended from outside.
type stopReason int

const (
	stopNone    stopReason = iota
	stopCancel             // on request
	stopTimeout            // it ran longer than it may
	stopClose              // the supervisor ends
	stopOutput             // its output cannot be kept
)

// attempt is one attempt that is held.
type attempt struct {
	s    *Supervisor
	spec Spec
	out  *output
	gone bool // no process is left; run's own

	written atomic.Int64           // length of the log, for events
	waits   atomic.Pointer[string] // why it waits for room, nil: it does not; for events

	// Guarded by s.mu.
	end  *End        // nil while it runs
	sync *time.Timer // syncs the files of one that has ended and is not forgotten

	recording sync.Mutex // held while the end is written, and while it is forgotten
	forgotten bool       // the directory is nobody's; guarded by recording

	mu     sync.Mutex
	tree   executor.Tree // nil until the first step
	reason stopReason    // the first one counts
	over   bool          // all steps have ended: a stop comes too late
	kill   *time.Timer   // the end of the grace
	dead   time.Time     // when kill fires
}

func newAttempt(s *Supervisor, spec Spec) *attempt { return &attempt{s: s, spec: spec} }

// KillLeftovers kills what is left of an attempt whose supervisor has died. It
// must not be called for one that a supervisor holds.
func KillLeftovers(dir string) error {
	return executor.KillLeftovers(filepath.Join(dir, handleFile))
}

// run is the attempt's life.
func (a *attempt) run() {
	began := time.Now()
	if a.spec.Timeout > 0 {
		t := time.AfterFunc(a.spec.Timeout, func() { a.stop(stopTimeout, false) })
		defer t.Stop()
	}
	end := &End{}
	last, usage := a.steps(end)
	a.out.close()
	a.judge(end, last, usage)
	end.Usage = &wire.Usage{
		CPUSeconds:  usage.CPU.Seconds(),
		MaxRSSBytes: usage.MaxRSS,
		WallSeconds: time.Since(began).Seconds(),
	}
	end.LogBytes = a.out.len()
	end.At = time.Now().UTC()
	a.finish(end)
}

// outcome is how the steps went.
type outcome struct {
	step string // that failed, where there are several
	err  error  // why it could not be started or waited for
	ok   bool
}

// steps runs them and returns how the one that counts went: the first that
// failed and may not, or the last. All processes are gone afterwards.
func (a *attempt) steps(end *End) (outcome, executor.Usage) {
	tree, err := a.newTree()
	if err != nil {
		a.seal()
		return outcome{err: err}, executor.Usage{}
	}
	a.mu.Lock()
	a.tree = tree
	a.mu.Unlock()
	var last outcome
	if last.err = a.handOver(); last.err == nil {
		last = a.runSteps(tree, end)
	}
	stopped, until := a.seal()
	if stopped {
		// What was asked to end has its time to do so.
		tree.AwaitEmpty(time.Until(until))
	}
	usage, err := tree.Close()
	if a.gone = err == nil; !a.gone {
		a.s.log.Error("end processes", "job", a.spec.Job, "attempt", a.spec.Attempt, "error", err.Error())
	}
	a.takeBack()
	return last, usage
}

// newTree makes the process tree, and waits while there is no room for its
// handle.
func (a *attempt) newTree() (tree executor.Tree, err error) {
	takeSpare(a.spec.Dir, handleFile)
	err = a.untilRoom(func() error {
		if a.stopped() {
			return errStopped
		}
		tree, err = a.s.exec.NewTree(executor.Options{
			Name:   name(a.spec.JobRef),
			Handle: filepath.Join(a.spec.Dir, handleFile),
			Stdout: a.out.stdout,
			Stderr: a.out.stderr,
		})
		return err
	})
	return tree, err
}

// runSteps runs one after the other.
func (a *attempt) runSteps(tree executor.Tree, end *End) (last outcome) {
	if a.spec.Notice != "" {
		a.out.notice(a.spec.Notice + "\n")
	}
	for i := range a.spec.Steps {
		step := &a.spec.Steps[i]
		if len(a.spec.Steps) > 1 {
			last.step = step.Name
			if step.Name != "" {
				a.out.notice("==> " + step.Name + "\n")
			}
		}
		x, err := a.step(tree, step)
		if errors.Is(err, errStopped) {
			break
		}
		last.err, last.ok = err, err == nil && x.Success()
		end.ExitCode, end.Signal = nil, ""
		if se, ok := errors.AsType[*executor.StartError](err); ok && se.Code != 0 {
			end.ExitCode = &se.Code
		} else if err == nil && x.Signal != "" {
			end.Signal = x.Signal
		} else if err == nil {
			end.ExitCode = &x.Code
		}
		if !last.ok && step.Continue {
			a.out.notice(fmt.Sprintf("==> %s; going on\n", a.failure(end, last)))
			last.ok = true
		}
		if !last.ok {
			break
		}
	}
	return last
}

// stopped reports whether the attempt is to end.
func (a *attempt) stopped() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.reason != stopNone
}

var errStopped = errors.New("the attempt was stopped")

// step runs one.
func (a *attempt) step(tree executor.Tree, step *Step) (executor.Exit, error) {
	a.mu.Lock()
	if a.reason != stopNone {
		a.mu.Unlock()
		return executor.Exit{}, errStopped
	}
	// Under the lock: a stop comes before it and is seen above, or after it
	// and finds the process.
	err := tree.Start(executor.Command{Argv: step.Argv, Env: a.spec.Env, Dir: a.spec.WorkDir, Stdin: a.spec.Stdin})
	a.mu.Unlock()
	if err != nil {
		return executor.Exit{}, err
	}
	x := tree.Wait()
	return x, x.Err
}

// seal says that the steps are over: a stop does not count from here on.
// Where there was one, its grace lasts until the time returned.
func (a *attempt) seal() (stopped bool, until time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.over = true
	return a.reason != stopNone, a.dead
}

// stop ends the attempt; of several reasons the first counts.
func (a *attempt) stop(why stopReason, force bool) {
	a.mu.Lock()
	tree := a.tree
	first := a.reason == stopNone && !a.over
	if first {
		a.reason = why
	}
	grace := a.spec.Grace
	if force {
		grace = 0
	}
	if dead := time.Now().Add(grace); first || a.reason != stopNone && dead.Before(a.dead) {
		if a.kill != nil {
			a.kill.Stop()
		}
		a.dead = dead
		if !force {
			a.kill = time.AfterFunc(grace, a.killTree)
		}
	}
	a.mu.Unlock()
	switch {
	case tree == nil: // no step will be started
	case force:
		a.killTree()
	case first:
		tree.Term()
	}
}

func (a *attempt) killTree() {
	a.mu.Lock()
	tree := a.tree
	a.mu.Unlock()
	if tree != nil {
		tree.Kill()
	}
}

// judge sets the end's state, reason and error.
func (a *attempt) judge(end *End, last outcome, usage executor.Usage) {
	a.mu.Lock()
	reason := a.reason
	if a.kill != nil {
		a.kill.Stop()
	}
	a.mu.Unlock()
	end.State = wire.Failed
	switch {
	case reason == stopClose:
		end.Reason, end.Error = wire.ReasonRunnerLost, "the runner was stopped on its host, by an operator or with the host, before the job had ended"
	case a.out.failure() != nil:
		end.Reason, end.Error = wire.ReasonFailed, fmt.Sprintf("keep output: %v", a.out.failure())
	case reason == stopCancel:
		end.State, end.Reason, end.Error = wire.Canceled, wire.ReasonCanceled, "canceled"
	case reason == stopTimeout:
		end.Reason, end.Error = wire.ReasonTimeout, fmt.Sprintf("ran longer than %v", a.spec.Timeout)
	case last.ok:
		end.State = wire.Success
	case usage.OOM:
		end.Reason, end.Error = wire.ReasonOOM, "killed for want of memory"
	default:
		end.Reason, end.Error = wire.ReasonFailed, a.failure(end, last)
	}
}

// failure says in words how a step failed.
func (a *attempt) failure(end *End, last outcome) string {
	what := "the command"
	if last.step != "" {
		what = last.step
	}
	switch {
	case last.err != nil && last.step != "":
		return fmt.Sprintf("%s: %v", last.step, last.err)
	case last.err != nil:
		return last.err.Error()
	case end.Signal != "":
		return fmt.Sprintf("%s was ended by %s", what, end.Signal)
	case end.ExitCode != nil:
		return fmt.Sprintf("%s exited with code %d", what, *end.ExitCode)
	}
	return what + " did not run"
}
