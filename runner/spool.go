package runner

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/waypointd/waypoint/mux/wire"
	"github.com/waypointd/waypoint/runner/supervisor"
	"github.com/waypointd/waypoint/statedir"
)

// What is added to assignment.json as the attempt goes on.
const (
	markStarted = "started"
	markRunning = "running"
)

// fileSpool, beside the attempts, has the spool's name.
const fileSpool = "spool"

// Names in an attempt's directory. The log and the end are the supervisor's,
// unless the attempt ends without one.
const (
	fileAssignment = "assignment.json"
	fileLog        = "log"
	fileStdin      = "stdin"
	fileOutputs    = "output"
	fileArchive    = "artifact.tar.zst"
	dirWork        = "work"
	dirHome        = "home"
	dirArtifact    = "artifact"
)

// spoolVersion is that of the format of assignment.json. A file without one is
// of before there was one, and the same otherwise. What a release changes in it,
// in end.json (supervisor.EndVersion) or in the log (joblog.Version) in a way that the one before
// would take wrongly has the next number, and is read with the numbers before it.
const spoolVersion = 1

// spooled is the first line of assignment.json. Nothing of an attempt is
// synced, so a file from before the host's last boot proves nothing about what
// came after it: Boot tells.
type spooled struct {
	Version    int             `json:"version"`
	Boot       string          `json:"boot,omitempty"`
	Assignment wire.Assignment `json:"assignment"`
}

// milestone is each line after that: markStarted or markRunning.
type milestone struct {
	Reached string `json:"reached"`
}

// nameSpool reads what tells this spool from one that was made anew in its place, or
// makes it. Nothing needs it to be on the disk: whatever loses it makes another
// one. A host that was down may have lost what was written last, so its boot is
// part of the name.
func (r *Runner) nameSpool() {
	if r.local() {
		return // it is gone with its command line
	}
	path := filepath.Join(r.cfg.Dir, fileSpool)
	text, err := os.ReadFile(path)
	name := string(text)
	if made := rand.Text(); err != nil || len(name) != len(made) {
		name = made
		if err := os.WriteFile(path, []byte(name), 0o600); err != nil {
			r.spoolFailed(err)
		}
	}
	r.spool = name
	if r.boot != "" {
		r.spool += "." + r.boot
	}
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
	body, err := json.Marshal(spooled{Version: spoolVersion, Boot: r.boot, Assignment: job})
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
		removeTree(r.ctx, slot)
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

// mark adds to the attempt's record how far it has come. While there is no
// room for that it waits, and the runner takes no jobs.
func (a *attempt) mark(name string) error {
	line := fmt.Sprintf("{\"reached\":%q}\n", name)
	pause := backoff{min: a.r.waits.retryMin, max: a.r.waits.spool}
	for {
		err := a.addLine(line)
		if err == nil {
			a.waitsFor(waitAgent, "")
			return nil
		}
		if !statedir.NoSpace(err) {
			a.waitsFor(waitAgent, "")
			return fmt.Errorf("mark job as %s: %w", name, err)
		}
		a.r.spoolFailed(err)
		a.waitsFor(waitAgent, "room on the runner's disk to start: "+err.Error())
		if !sleep(a.work, pause.next()) {
			return context.Cause(a.work)
		}
		line = "\n" + strings.TrimPrefix(line, "\n") // behind what may be torn
	}
}

func (a *attempt) addLine(line string) error {
	f, err := os.OpenFile(filepath.Join(a.dir, fileAssignment), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(line)
	return errors.Join(err, f.Close())
}

// conclude ends an attempt that the supervisor does not end. Where it cannot
// be written, the end is kept in memory alone, and told from there.
func (a *attempt) conclude(end *supervisor.End) *supervisor.End {
	if err := supervisor.WriteEnd(a.dir, end); err != nil {
		a.log.Warn("end of job not recorded", "error", err)
	}
	a.reach(ended)
	return end
}

// readEnd reads how the attempt ended: from its directory, or where there was
// no room for that, from the supervisor.
func (a *attempt) readEnd() (*supervisor.End, error) {
	end, err := supervisor.ReadEnd(a.dir)
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

func (s stage) String() string {
	return strings.Fields("recorded started given ended")[s]
}
