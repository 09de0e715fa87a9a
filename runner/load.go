package runner

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/waypointd/waypoint/mux/wire"
	"github.com/waypointd/waypoint/runner/supervisor"
	"github.com/waypointd/waypoint/statedir/joblog"
)

// Why a directory holds no attempt that could go on.
var (
	errStrange  = errors.New("it is no attempt's")       // it may have been chosen by mistake: left alone
	errLeftover = errors.New("nothing of it has begun")  // removed: the server gives the job away again
	errNewer    = errors.New("it is of a newer release") // left alone, and its job is kept for that release
)

// load takes up what an agent before this one left: attempts go on where they
// were, and directories of no attempt are removed. Without a supervisor, what
// was given to one is taken to be with it until there is one to ask, and what
// is left over stays until then: a job of another user may have had it, and the
// next supervisor takes that back before anybody can connect to it. Nothing
// that is wrong with a directory keeps the agent from the others.
func (r *Runner) load(ctx context.Context) error {
	// Where jobs run as another user they pass through it to their own directories.
	if err := os.MkdirAll(r.cfg.Dir, 0o711); err != nil {
		return fmt.Errorf("open runner directory: %w", err)
	}
	entries, err := os.ReadDir(r.cfg.Dir)
	if err != nil {
		return fmt.Errorf("open runner directory: %w", err)
	}
	r.nameSpool()
	jobs := r.parent.now()
	var theirs holding
	if jobs != nil {
		if theirs, err = takeOver(ctx, jobs); err != nil {
			return err
		}
	}
	var found []*attempt
	var slots []string
	for _, e := range entries {
		dir := filepath.Join(r.cfg.Dir, e.Name())
		if !e.IsDir() {
			continue // the supervisor's
		}
		if strings.HasPrefix(e.Name(), refusedPrefix) {
			r.log.Warn("output that a server has refused is kept here", "dir", dir)
			continue
		}
		if isSlot(e.Name()) {
			r.skipSlotName(dir)
			slots = append(slots, dir)
			continue
		}
		switch a, err := r.reload(dir, theirs); {
		case err == nil:
			found = append(found, a)
		case errors.Is(err, errStrange):
			r.log.Warn("directory is no attempt's and is left alone", "dir", dir, "why", err)
		case errors.Is(err, errNewer):
			r.keepNewer(dir, theirs, err)
		default:
			r.leftovers = append(r.leftovers, leftover{dir, err})
		}
	}
	r.attempts.Go(func() { r.sweep(slots) })
	for _, a := range found {
		if a.damaged != "" {
			a.log.Error("job cannot be taken up again: its record is damaged", "dir", a.dir, "error", a.damaged)
		} else {
			a.log.Info("job taken up again", "stage", a.stage)
		}
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
type leftover struct {
	dir string
	why error
}

// removeLeftovers is for when there is a supervisor. What takes time of it goes
// on beside everything else.
func (r *Runner) removeLeftovers() {
	var slots []string
	for _, l := range r.leftovers {
		slot, err := r.disown(l.dir)
		if err != nil {
			r.log.Error("leftover cannot be removed", "dir", l.dir, "error", err)
			continue
		}
		r.log.Info("leftover removed", "dir", l.dir, "why", l.why)
		slots = append(slots, slot)
	}
	r.leftovers = nil
	r.attempts.Go(func() { r.sweep(slots) })
}

// reload makes the attempt that a directory holds, or says with one of the
// errors above why it holds none.
func (r *Runner) reload(dir string, theirs holding) (*attempt, error) {
	named, isNamed := refOf(dir)
	ours := isNamed && theirs.has(named)
	body, err := readAnyway(dir, fileAssignment)
	if errors.Is(err, fs.ErrNotExist) && !ours {
		return nil, fmt.Errorf("%w: there is no %s", errStrange, fileAssignment)
	}
	var s spooled
	at := recorded
	if err == nil {
		s, at, err = readRecord(body)
	}
	if errors.Is(err, errNewer) {
		return nil, err
	}
	switch {
	case err != nil && !isNamed:
		return nil, fmt.Errorf("%w: %w", errStrange, err)
	case err == nil && s.Assignment.JobRef != named:
		err = errors.New("it holds the assignment of another job")
	}
	if err != nil {
		return r.salvage(dir, named, ours, err)
	}
	switch {
	case ours:
		at = given
	case at == given && theirs.alone && s.Boot == r.boot && !supervisor.Begun(dir):
		at = started // the agent died between its mark and the supervisor's
	}
	if _, err := supervisor.ReadEnd(dir); err == nil {
		at = ended
	} else if wire.KindOf(err) == wire.Unimplemented {
		return nil, fmt.Errorf("%w: %w", errNewer, err)
	}
	if err := readableLog(dir); err != nil {
		return nil, err
	}
	// The host has been down: what it had written last may be missing, so an
	// attempt whose start is not on record may have run. It is not run again.
	// And an end may be another attempt's, or that of one whose output and
	// artifact are not there.
	if s.Boot != r.boot {
		switch at {
		case recorded:
			return nil, fmt.Errorf("%w: it is from before the host's last start", errLeftover)
		case started:
			at = given
		case ended:
			if supervisor.Kept(dir, named) {
				break
			}
			at = given
			if err := supervisor.Disown(dir); err != nil {
				return r.salvage(dir, named, ours, fmt.Errorf("take back the end of an attempt: %w", err))
			}
		}
	}
	a := r.newAttempt(s.Assignment, dir, at)
	a.again, a.earlier = true, s.Boot != r.boot
	return a, nil
}

// salvage is reload of a directory whose record is of no use. One that a
// supervisor has begun is held all the same, so that its job ends on record, with its
// output.
func (r *Runner) salvage(dir string, named wire.JobRef, ours bool, why error) (*attempt, error) {
	_, unended := supervisor.ReadEnd(dir)
	if named.Job == "" || !ours && !supervisor.Begun(dir) && errors.Is(unended, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %w", errLeftover, why)
	}
	if wire.KindOf(unended) == wire.Unimplemented {
		return nil, fmt.Errorf("%w: %w", errNewer, unended)
	}
	if err := readableLog(dir); err != nil {
		return nil, err
	}
	a := r.newAttempt(wire.Assignment{JobRef: named}, dir, given)
	a.again, a.damaged = true, why.Error()
	return a, nil
}

// readRecord reads assignment.json: the assignment, and how far it had come.
func readRecord(body []byte) (s spooled, at stage, err error) {
	first, rest, _ := bytes.Cut(body, []byte("\n"))
	var v struct {
		Version int `json:"version"`
	}
	if err := json.Unmarshal(first, &v); err != nil {
		return s, at, fmt.Errorf("read %s: %w", fileAssignment, err)
	}
	if v.Version > spoolVersion {
		return s, at, fmt.Errorf("%w: format %d of %s", errNewer, v.Version, fileAssignment)
	}
	if err := json.Unmarshal(first, &s); err != nil {
		return s, at, fmt.Errorf("read %s: %w", fileAssignment, err)
	}
	for line := range bytes.Lines(rest) {
		var m milestone
		if json.Unmarshal(line, &m) != nil {
			continue // torn by a full disk, and written again behind that
		}
		switch m.Reached {
		case markStarted:
			at = max(at, started)
		case markRunning:
			at = given
		}
	}
	return s, at, nil
}

// readableLog is errNewer where a newer release wrote the log in dir.
func readableLog(dir string) error {
	log, err := joblog.Open(filepath.Join(dir, fileLog), 0)
	if err != nil {
		return nil // whoever ships it will see
	}
	defer log.Close()
	if _, err := log.Next(); wire.KindOf(err) == wire.Unimplemented {
		return fmt.Errorf("%w: %w", errNewer, err)
	}
	return nil
}

// readAnyway reads a file of an attempt, also where somebody has taken the
// permission to do so from its directory.
func readAnyway(dir, name string) ([]byte, error) {
	body, err := os.ReadFile(filepath.Join(dir, name))
	if errors.Is(err, fs.ErrPermission) && os.Chmod(dir, 0o700) == nil {
		body, err = os.ReadFile(filepath.Join(dir, name))
	}
	return body, err
}

// refOf is the attempt that a directory is named after.
func refOf(dir string) (ref wire.JobRef, ok bool) {
	name := filepath.Base(dir)
	i := strings.LastIndexByte(name, '-')
	if i < 0 {
		return ref, false
	}
	n, err := strconv.Atoi(name[i+1:])
	if err != nil || n < 0 || strconv.Itoa(n) != name[i+1:] || wire.CheckID(name[:i]) != nil {
		return ref, false
	}
	return wire.JobRef{Job: name[:i], Attempt: n}, true
}
