package runner

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/waypointd/waypoint/mux"
	"github.com/waypointd/waypoint/mux/client"
	"github.com/waypointd/waypoint/mux/wire"
	"github.com/waypointd/waypoint/runner/operation"
	"github.com/waypointd/waypoint/runner/supervisor"
)

// finish makes the result of how the attempt ended: its outputs, and of a build
// that succeeded the artifact, which the server has when finish returns. It
// can be repeated. What goes wrong here makes a success a failure, with the
// reason; an error means that the attempt was dropped or the Run has ended. A
// late result is told as it is, without an artifact.
func (a *attempt) finish(end *supervisor.End) (*wire.Result, error) {
	result := &wire.Result{
		State: end.State, Reason: end.Reason, Error: end.Error,
		ExitCode: end.ExitCode, Signal: end.Signal, Usage: end.Usage,
		LogBytes: end.LogBytes, FinishedAt: end.At,
	}
	outputs, err := operation.ReadOutputs(filepath.Join(a.dir, fileOutputs))
	if err == nil {
		result.Outputs = outputs
		if end.State == wire.Success && !a.givenUp.opened() && a.job.Spec.Operation == wire.OpBuild && len(a.job.Spec.Output) > 0 {
			const doing = "pack the artifact"
			var waited time.Duration
			waited, err = a.untilRoom(doing, func() error { return nil }, func() (err error) {
				result.Artifact, err = a.pack()
				return err
			})
			if waited > 0 && err == nil {
				a.say(waitedText(doing, waited))
			}
		}
	}
	switch {
	case a.ctx.Err() != nil:
		return nil, context.Cause(a.ctx)
	case err == nil, end.State != wire.Success:
	case a.givenUp.opened(): // it ended before, by itself
	case a.work.Err() != nil:
		result.State, result.Reason = wire.Canceled, wire.ReasonCanceled
	default:
		a.trouble("job cannot be finished", "error", err)
		result.State, result.Reason, result.Error = wire.Failed, wire.ReasonFailed, err.Error()
	}
	return result, nil
}

// pack makes the artifact of a build's outputs and stores it with the server. Its
// file stays until the attempt is erased: see storeAgain.
func (a *attempt) pack() (*wire.BlobHeader, error) {
	dir, err := a.workDir()
	if err != nil {
		return nil, err
	}
	// A job could have replaced its directory, but for the topmost, by a link.
	top, below := dir, "."
	if !a.r.local() {
		top = a.layout().Work
		if below, err = filepath.Rel(top, dir); err != nil {
			return nil, err
		}
	}
	h, err := operation.Pack(a.work, top, below, a.job.Spec.Output, filepath.Join(a.dir, fileArchive))
	if err != nil {
		return nil, err
	}
	err = a.online(a.work, 0, func(s *mux.Session) error { return a.store(a.work, s, h) })
	if err != nil {
		return nil, fmt.Errorf("store artifact: %w", err)
	}
	return &h, nil
}

// store sends the packed artifact, if the server does not have it.
func (a *attempt) store(ctx context.Context, s *mux.Session, h wire.BlobHeader) error {
	open := func() (io.ReadCloser, error) { return os.Open(filepath.Join(a.dir, fileArchive)) }
	return client.PutBlobs(ctx, s, []client.Blob{{BlobHeader: h, Open: open}})
}

// storeAgain is for a server that has refused the result: of somebody who is
// limited to projects it takes an artifact only where it remembers that it came from
// him, and one that has begun anew since, or another one, does not.
func (a *attempt) storeAgain(s *mux.Session) {
	result := a.outcome()
	if result == nil || result.Artifact == nil {
		return
	}
	if err := a.store(a.ctx, s, *result.Artifact); err != nil && a.ctx.Err() == nil {
		a.log.Warn("artifact cannot be stored again", "error", err)
	}
}

// mourn ends an attempt whose supervisor is gone: with the end that it still
// recorded, else as lost, with the output there is. What is left of its
// processes is killed.
func (a *attempt) mourn() (*supervisor.End, error) {
	a.killLeftovers()
	if end, err := supervisor.ReadEnd(a.dir); err == nil {
		a.reach(ended)
		return end, nil
	}
	if a.earlier {
		return a.lost("its host went down before the runner had reported how it ended"), nil
	}
	return a.lost("the supervisor of the job is gone"), nil
}

// condemn ends an attempt of which this agent knows nothing but what it is
// called: what runs of it is killed. A failure that is on record for good stays what it is; a
// success may have outputs that nobody knows of, so it counts as lost.
func (a *attempt) condemn() (*supervisor.End, error) {
	if a.kill(true) {
		select {
		case <-a.exited.c:
		case <-a.bereaved.c:
		case <-a.ctx.Done():
		}
	}
	if a.ctx.Err() != nil {
		return nil, context.Cause(a.ctx)
	}
	a.killLeftovers()
	if end, err := supervisor.ReadEnd(a.dir); err == nil && end.State == wire.Failed && supervisor.Kept(a.dir, a.job.JobRef) {
		a.reach(ended)
		return end, nil
	}
	return a.lost("the runner's record of the job is damaged: " + a.damaged), nil
}

// killLeftovers kills what the attempt's commands left running under a
// supervisor that is gone.
func (a *attempt) killLeftovers() {
	if err := supervisor.KillLeftovers(a.dir); err != nil {
		a.log.Error("processes of a lost job not killed", "error", err)
	}
}

func (a *attempt) lost(why string) *supervisor.End {
	a.log.Warn("job lost", "why", why)
	return a.conclude(&supervisor.End{
		State: wire.Failed, Reason: wire.ReasonRunnerLost, Error: why, At: time.Now().UTC(),
	})
}

// reclaim waits for a supervisor to be there again and asks whether it has the
// attempt. If not, and the old one has not begun it, it is for the new one;
// else that is as if its supervisor had gone.
func (a *attempt) reclaim(old supervisor.Jobs) error {
	for a.r.parent.left(a.ctx, old) {
		jobs, err := a.r.parent.wait(a.ctx)
		if err != nil {
			return err
		}
		theirs, err := takeOver(a.ctx, jobs)
		switch {
		case err != nil:
			old = jobs
			continue
		case theirs.has(a.job.JobRef):
		case a.unbegun(theirs):
			return errUnbegun
		default:
			a.bereave()
		}
		return nil
	}
	return context.Cause(a.ctx)
}

// unbegun reports whether no supervisor has begun it nor will, where the one
// that is asked does not hold it.
func (a *attempt) unbegun(theirs holding) bool {
	return theirs.alone && !a.earlier && !supervisor.Begun(a.dir)
}
