package runner

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/waypointd/waypoint/mux/wire"
	"github.com/waypointd/waypoint/runner/supervisor"
)

// What is added to assignment.json as the attempt goes on.
const (
	markStarted = "started"
	markRunning = "running"
)

// Names in an attempt's directory. The log and the end are the supervisor's,
// unless the attempt ends without one.
const (
	fileAssignment = "assignment.json"
	fileLog        = "log"
	fileEnd        = "end.json"
	fileStdin      = "stdin"
	fileOutputs    = "output"
	fileArchive    = "artifact.tar.zst"
	dirWork        = "work"
	dirHome        = "home"
	dirArtifact    = "artifact"
)

// spooled is the first line of assignment.json. Nothing of an attempt is
// synced, so a file from before the host's last boot proves nothing about what
// came after it: Boot tells.
type spooled struct {
	Boot       string          `json:"boot,omitempty"`
	Assignment wire.Assignment `json:"assignment"`
}

// milestone is each line after that: markStarted or markRunning.
type milestone struct {
	Reached string `json:"reached"`
}

// attemptDir names an attempt's directory.
func (r *Runner) attemptDir(ref wire.JobRef) string {
	return filepath.Join(r.cfg.Dir, ref.Job+"-"+strconv.Itoa(ref.Attempt))
}

// record makes an attempt's directory with its assignment in it.
func (r *Runner) record(job wire.Assignment) (*attempt, error) {
	if err := wire.CheckID(job.Job); err != nil { // it becomes part of a path
		return nil, fmt.Errorf("record assignment: %w", err)
	}
	body, err := json.Marshal(spooled{Boot: r.boot, Assignment: job})
	if err != nil {
		return nil, fmt.Errorf("record assignment: %w", err)
	}
	slot, err := r.takeSlot()
	if err != nil {
		return nil, fmt.Errorf("record assignment: %w", err)
	}
	dir := r.attemptDir(job.JobRef)
	if err = overwrite(filepath.Join(slot, fileAssignment), append(body, '\n')); err == nil {
		err = os.Rename(slot, dir)
	}
	if err != nil {
		removeTree(slot)
		return nil, fmt.Errorf("record assignment: %w", err)
	}
	return r.newAttempt(job, dir, recorded), nil
}

// overwrite gives a file its content. It is never empty in between: ext4 would
// write a file out at once that was cut to nothing and filled again.
func overwrite(path string, body []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(body, 0)
	if err == nil {
		err = f.Truncate(int64(len(body)))
	}
	return errors.Join(err, f.Close())
}

// probeSpool tries whether an assignment could be recorded.
func (r *Runner) probeSpool() error {
	probe := filepath.Join(r.cfg.Dir, ".probe")
	err := os.MkdirAll(r.cfg.Dir, 0o711)
	if err == nil {
		err = os.WriteFile(probe, bytes.Repeat([]byte{'.'}, 64<<10), 0o600)
	}
	os.Remove(probe)
	return err
}

// mark adds to the attempt's record how far it has come.
func (a *attempt) mark(name string) error {
	f, err := os.OpenFile(filepath.Join(a.dir, fileAssignment), os.O_WRONLY|os.O_APPEND, 0)
	if err == nil {
		_, err = fmt.Fprintf(f, "{\"reached\":%q}\n", name)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		return fmt.Errorf("mark job as %s: %w", name, err)
	}
	return nil
}

// conclude ends an attempt that the supervisor does not end. Where it cannot
// be written, the end is kept in memory alone.
func (a *attempt) conclude(end *supervisor.End) *supervisor.End {
	body, err := json.Marshal(end)
	if err == nil {
		path := filepath.Join(a.dir, fileEnd)
		if err = os.WriteFile(path+".new", body, 0o600); err == nil {
			err = os.Rename(path+".new", path)
		}
	}
	if err != nil {
		a.log.Warn("end of job not recorded", "error", err)
	}
	a.reach(ended)
	return end
}

// readEnd reads how the attempt ended: from its directory, or where there was
// no room for that, from the supervisor.
func (a *attempt) readEnd() (*supervisor.End, error) {
	end, err := readEnd(a.dir)
	if err != nil {
		jobs, werr := a.r.parent.wait(a.ctx)
		if werr != nil {
			return nil, werr
		}
		list, lerr := jobs.List(a.ctx)
		if lerr != nil && a.ctx.Err() != nil {
			return nil, context.Cause(a.ctx)
		}
		for _, s := range list {
			if s.JobRef == a.job.JobRef {
				end = s.End
			}
		}
		if end == nil {
			return a.lost("its end was not recorded: " + err.Error()), nil
		}
	}
	a.reach(ended)
	return end, nil
}

func readEnd(dir string) (*supervisor.End, error) {
	body, err := os.ReadFile(filepath.Join(dir, fileEnd))
	if err != nil {
		return nil, err
	}
	end := &supervisor.End{}
	if err := json.Unmarshal(body, end); err != nil {
		return nil, fmt.Errorf("read %s: %w", fileEnd, err)
	}
	return end, nil
}

// load takes up what an agent before this one left: attempts go on where they
// were, and directories of no attempt are removed. Without a supervisor, what
// was given to one is taken to be with it until there is one to ask, and what
// is left over stays until then: a job of another user may have had it, and the
// next supervisor takes that back before anybody can connect to it.
func (r *Runner) load(ctx context.Context) error {
	// Where jobs run as another user they pass through it to their own directories.
	if err := os.MkdirAll(r.cfg.Dir, 0o711); err != nil {
		return fmt.Errorf("open runner directory: %w", err)
	}
	entries, err := os.ReadDir(r.cfg.Dir)
	if err != nil {
		return fmt.Errorf("open runner directory: %w", err)
	}
	jobs := r.parent.now()
	var theirs holding
	if jobs != nil {
		if theirs, err = takeOver(ctx, jobs); err != nil {
			return err
		}
	}
	var found []*attempt
	for _, e := range entries {
		dir := filepath.Join(r.cfg.Dir, e.Name())
		if !e.IsDir() {
			continue // the supervisor's
		}
		if isSlot(e.Name()) {
			removeTree(dir)
			continue
		}
		a, why := r.reload(dir, theirs)
		if a == nil && !isRegular(filepath.Join(dir, fileAssignment)) {
			// Each attempt has one. The directory may have been chosen by mistake.
			r.log.Warn("directory is no attempt's and is left alone", "dir", dir)
			continue
		}
		if a == nil {
			r.leftovers = append(r.leftovers, leftover{dir, why})
			continue
		}
		found = append(found, a)
	}
	for _, a := range found {
		a.log.Info("job taken up again", "stage", a.stage)
		r.hold(a)
	}
	if jobs != nil {
		r.removeLeftovers()
		r.sort(ctx, jobs, theirs) // before any of them goes on
	}
	for _, a := range found {
		r.attempts.Go(a.live)
	}
	return nil
}

// leftover is the directory of an attempt that does not go on.
type leftover struct{ dir, why string }

// removeLeftovers is for when there is a supervisor.
func (r *Runner) removeLeftovers() {
	for _, l := range r.leftovers {
		if err := removeTree(l.dir); err != nil {
			r.log.Error("leftover cannot be removed", "dir", l.dir, "error", err)
		} else {
			r.log.Info("leftover removed", "dir", l.dir, "why", l.why)
		}
	}
	r.leftovers = nil
}

// reload makes the attempt that a directory holds, nil and the reason where it
// holds none that could go on.
func (r *Runner) reload(dir string, theirs holding) (*attempt, string) {
	body, err := os.ReadFile(filepath.Join(dir, fileAssignment))
	if err != nil {
		return nil, err.Error()
	}
	lines := json.NewDecoder(bytes.NewReader(body))
	var s spooled
	if err := lines.Decode(&s); err != nil {
		return nil, "read assignment: " + err.Error()
	}
	ref := s.Assignment.JobRef
	if wire.CheckID(ref.Job) != nil || r.attemptDir(ref) != dir {
		return nil, "it holds the assignment of another job"
	}
	at := recorded
	var m milestone
	for lines.Decode(&m) == nil {
		switch m.Reached {
		case markStarted:
			at = max(at, started)
		case markRunning:
			at = given
		}
	}
	switch {
	case theirs.has(ref):
		at = given
	case at == given && theirs.alone && s.Boot == r.boot && !supervisor.Begun(dir):
		at = started // the agent died between its mark and the supervisor's
	}
	if end, err := readEnd(dir); err == nil && end.State.Ended() {
		at = ended
	}
	// The host has been down: what it had written last may be missing, so an
	// attempt whose start is not on record may have run. It is not run again.
	// And an end may be another attempt's, or that of one whose output and
	// artifact are not there.
	if s.Boot != r.boot {
		switch at {
		case recorded:
			return nil, "it is from before the host's last start"
		case started:
			at = given
		case ended:
			if supervisor.Kept(dir, ref) {
				break
			}
			at = given
			if err := supervisor.Disown(dir); err != nil {
				r.log.Warn("end of an attempt cannot be taken back", "dir", dir, "error", err)
				return nil, "what it has left cannot be relied on"
			}
		}
	}
	a := r.newAttempt(s.Assignment, dir, at)
	a.again, a.earlier = true, s.Boot != r.boot
	return a, ""
}

func isRegular(path string) bool {
	info, err := os.Lstat(path)
	return err == nil && info.Mode().IsRegular()
}

func (s stage) String() string {
	return strings.Fields("recorded started given ended")[s]
}
