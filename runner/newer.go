package runner

import (
	"github.com/waypointd/waypoint/mux/wire"
	"github.com/waypointd/waypoint/runner/supervisor"
)

// newer is an attempt that a newer release has left in a directory which this
// one cannot read. It is held for that release: the server is told that it is
// here and what it waits for, it takes one of the runner's places, its processes and
// files are left alone, and nothing of it is reported. A cancel and a drop reach its
// processes, which are the supervisor's, whatever is on the disk.
type newer struct {
	dir   string
	begun bool // by a supervisor; else the server may take it back
}

// waitsForNewer is what it waits for. It may run or have ended: only that release can say.
const waitsForNewer = "the newer release that wrote its directory, to be installed again on the runner's host: until then nothing of it is reported, not even that it has ended"

// keepNewer holds the attempt of a directory that a newer release wrote.
func (r *Runner) keepNewer(dir string, theirs holding, why error) {
	ref, ok := refOf(dir)
	if !ok {
		r.log.Warn("directory is no attempt's and is left alone", "dir", dir, "why", why)
		return
	}
	begun := theirs.has(ref) || supervisor.Begun(dir)
	r.log.Error("job is of a newer release, and is left alone until that is installed again",
		"job", ref.Job, "attempt", ref.Attempt, "runner", r.name(), "dir", dir, "error", why,
		"hint", "install that release again, or give the job up: waypoint job cancel --force "+ref.Job)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.newer == nil {
		r.newer = map[wire.JobRef]newer{}
	}
	r.newer[ref] = newer{dir: dir, begun: begun}
}

// isNewer reports whether an attempt is held for a newer release.
func (r *Runner) isNewer(ref wire.JobRef) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	_, is := r.newer[ref]
	return is
}

// stopNewer ends the processes of an attempt that is held for a newer release.
func (r *Runner) stopNewer(ref wire.JobRef, force bool) {
	r.attempts.Go(func() {
		jobs, err := r.parent.wait(r.ctx)
		if err != nil {
			return
		}
		err = jobs.Stop(r.ctx, ref, force)
		if k := wire.KindOf(err); k != "" && k != wire.NotFound && r.ctx.Err() == nil {
			r.log.Error("job cannot be stopped", "job", ref.Job, "attempt", ref.Attempt, "error", err)
		}
	})
}

// dropNewer holds an attempt of a newer release no more, if it is one. Its
// directory stays, for that release to remove.
func (r *Runner) dropNewer(ref wire.JobRef) {
	if !r.isNewer(ref) {
		return
	}
	r.log.Warn("job dropped", "job", ref.Job, "attempt", ref.Attempt, "runner", r.name(), "why", "the server has given it up")
	r.mu.Lock()
	delete(r.newer, ref)
	r.mu.Unlock()
	r.stopNewer(ref, true)
}
