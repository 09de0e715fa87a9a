package runner

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/waypointd/waypoint/mux/wire"
	"github.com/waypointd/waypoint/runner/supervisor"
)

// refusedPrefix begins the names of directories in Dir that keep output which the
// server has refused for good; the rest of the name is the attempt's. They are no
// attempts any more, and an operator's to remove.
const refusedPrefix = ".refused-"

// fileRefused, in an attempt's directory, says that the job is to end without the rest of
// its output, and why: so the directory is kept.
const fileRefused = "refused"

// isForGood reports whether an error of a report does not pass by itself: it is about
// what is reported. (Conflict and NotFound are about whose the attempt is; Denied may
// be decided otherwise.) A server of another release may still take it.
func isForGood(k wire.Kind) bool {
	switch k {
	case wire.BadUsage, wire.TooLarge, wire.Internal, wire.Unimplemented:
		return true
	}
	return false
}

// refusal is how a report of output fares that the server refuses for good.
type refusal struct {
	times int           // in a row, with the same output first
	at    int64         // the offset of that
	short bool          // the rest of the output is not sent: the job has ended
	bare  bool          // nor is it said in-band
	pause time.Duration // the last one
}

// refused takes note that output from an offset on was refused for good once more,
// and reports whether that is to be taken for the last word.
func (f *refusal) refused(at int64) bool {
	if f.times == 0 || f.at != at {
		f.times, f.at, f.pause = 0, at, 0
	}
	f.times++
	return f.times >= maxRefusals
}

// withhold is for output that a server does not take. While the job runs it is offered again
// now and then. When it has ended, its end is reported without the rest of the
// output, which is kept on this host. It reports whether to go on: false is the attempt's end.
func (a *attempt) withhold(f *refusal, why error) bool {
	if f.times == maxRefusals && !f.short {
		a.log.Error("server does not take the output of a job: it is kept here and offered again", "offset", f.at, "error", why)
	}
	a.waitsFor(waitReport, fmt.Sprintf("the server to take its output from byte %d on, which it refuses: %v", f.at, why))
	f.pause = min(max(2*f.pause, a.r.waits.retryMax), a.r.waits.refusedOutput)
	switch {
	case f.short:
		f.bare = true
	case a.outcome() == nil:
		a.awaitOutcome(f.pause) // then the whole of it is offered once more
		return a.ctx.Err() == nil
	default:
		err := a.keepOutput(f.at, why)
		if err == nil {
			f.short = true
			return true
		}
		a.log.Warn("output that the server refuses cannot be kept yet", "error", err)
	}
	return sleep(a.ctx, f.pause)
}

// awaitOutcome waits for the job's end, as long as wait at most.
func (a *attempt) awaitOutcome(wait time.Duration) {
	t := time.NewTimer(wait)
	defer t.Stop()
	for a.outcome() == nil {
		select {
		case <-a.wake:
		case <-t.C:
			return
		case <-a.ctx.Done():
			return
		}
	}
}

// keepOutput has the attempt's directory kept when the attempt is over, and puts into its
// result why the server does not have all output.
func (a *attempt) keepOutput(at int64, why error) error {
	text := fmt.Sprintf("its output from byte %d on is not with the server, which refuses it: %s; it is kept on runner %s in %s",
		at, plain(why.Error(), maxRefusalText), a.r.name(), a.keptOutput())
	if err := overwrite(filepath.Join(a.dir, fileRefused), []byte(text+"\n")); err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	result := *a.result
	result.Error = withRefusal(result.Error, text)
	a.result = &result
	return nil
}

// refusedText is what keepOutput has written, "" where it has not.
func (a *attempt) refusedText() string {
	text, err := os.ReadFile(filepath.Join(a.dir, fileRefused))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(text))
}

// withRefusal is the error of a result, with why the output is not complete.
func withRefusal(text, refusal string) string {
	if text == "" || refusal == "" {
		return text + refusal
	}
	return text + "; " + refusal
}

// keptOutput is where the directory goes then.
func (a *attempt) keptOutput() string {
	return filepath.Join(a.r.cfg.Dir, refusedPrefix+filepath.Base(a.dir))
}

// isWithheld reports whether the job ends without the rest of its output, be it that an
// agent before this one has decided so.
func (a *attempt) isWithheld() bool {
	_, err := os.Lstat(filepath.Join(a.dir, fileRefused))
	return err == nil
}

// putAway moves the directory of an attempt whose output the server does not have out of
// the way, with nothing in it but its record and its output.
func (a *attempt) putAway(ctx context.Context) error {
	for _, name := range []string{dirWork, dirHome, dirArtifact, fileStdin, fileOutputs, fileArchive} {
		if err := removeTree(ctx, filepath.Join(a.dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			a.log.Warn("files of a job not removed", "error", err)
		}
	}
	dir := a.keptOutput()
	if err := os.Rename(a.dir, dir); err != nil {
		return err
	}
	a.log.Error("output that the server has refused is kept here", "dir", dir, "file", supervisor.LogFile)
	return nil
}
