package runner

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"
	"unicode"

	"golang.org/x/sys/unix"

	"github.com/waypointd/waypoint/mux/wire"
	"github.com/waypointd/waypoint/statedir"
)

// waitKind is who finds that an attempt waits: each says when it does no more.
type waitKind int

const (
	waitAgent  waitKind = iota // this agent, to prepare or finish it
	waitParent                 // its supervisor
	waitReport                 // the server does not take its report
	waitKinds
)

// waitsFor takes note of what keeps the attempt where it is; "" is nothing. The
// server is told with the next heartbeat.
func (a *attempt) waitsFor(of waitKind, what string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.waits[of] = what
}

// waiting is what the attempt waits for, "" for nothing.
func (a *attempt) waiting() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.gone || a.acked {
		return ""
	}
	return strings.Join(slices.DeleteFunc(slices.Clone(a.waits[:]), func(s string) bool { return s == "" }), "; ")
}

// orphaned is what the attempt waits for that takes a supervisor, where there is none for some
// time: to begin, or to be ended.
func (a *attempt) orphaned() string {
	why, there := a.r.unsupervised(), a.r.parent.now() != nil
	if why == "" {
		return ""
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case a.gone || a.acked:
	case a.stage == started:
		return "a supervisor to begin it: " + why
	case a.stage == given && a.work.Err() != nil && !there && !a.exited.opened():
		return "a supervisor to end it: " + why
	}
	return ""
}

// waiting are the attempts that wait, the first few in the order of their names,
// behind the runner itself where it does. Those of a newer release do as long as they
// are held.
func (r *Runner) waiting() []wire.Wait {
	var list []wire.Wait
	if what := r.unable(); what != "" {
		list = append(list, wire.Wait{For: plain(what, wire.MaxWaitText)})
	}
	for _, a := range r.all() {
		if what := cmp.Or(a.waiting(), a.orphaned()); what != "" {
			list = append(list, wire.Wait{JobRef: a.job.JobRef, For: plain(what, wire.MaxWaitText)})
		}
	}
	r.mu.Lock()
	for ref := range r.newer {
		list = append(list, wire.Wait{JobRef: ref, For: waitsForNewer})
	}
	r.mu.Unlock()
	slices.SortFunc(list, func(a, b wire.Wait) int { return cmp.Compare(a.Job, b.Job) })
	return list[:min(len(list), wire.MaxWaits)]
}

// unable is what the runner waits for to take jobs again, "" where it is not its own
// fault that it takes none.
func (r *Runner) unable() string {
	if why := r.unsupervised(); why != "" {
		return "a supervisor of its jobs: " + why
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.sick != nil {
		return "its disk to be writable again: " + r.sick.Error()
	}
	return ""
}

// unnamed is what is wrong with the spool, without the names of files and jobs: each who
// waits for this runner is told, also who may see none of its jobs.
func (r *Runner) unnamed(err error) error {
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		return pe.Err
	}
	if le, ok := errors.AsType[*os.LinkError](err); ok {
		return le.Err
	}
	text := err.Error() // of the supervisor's it is all there is
	for _, a := range r.all() {
		text = strings.ReplaceAll(text, a.job.Job, "…")
	}
	return errors.New(text)
}

// plain is text on one line, of at most so many bytes.
func plain(text string, most int) string {
	text = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(text, "?"))
	if len(text) <= most {
		return text
	}
	const cut = "…"
	return strings.ToValidUTF8(text[:most-len(cut)], "") + cut
}

// untilRoom has something made on this host's disk, and made again once there is
// more room than it found, or now and then, until the attempt is to end. To try is to fill the
// disk up for a moment, which other jobs feel, and much may have to be fetched for it. Before it
// waits undo removes what there is of it, since others wait as well; while not even an
// assignment could be recorded no jobs are taken. It returns how long it has waited.
func (a *attempt) untilRoom(doing string, undo, do func() error) (waited time.Duration, err error) {
	r := a.r
	var since time.Time
	for {
		began := time.Now()
		err := do()
		if !statedir.NoSpace(err) || a.work.Err() != nil {
			if !since.IsZero() {
				a.waitsFor(waitAgent, "")
				waited = began.Sub(since)
			}
			return waited, err
		}
		if since.IsZero() {
			since = time.Now()
			a.log.Warn("job waits for room on this host's disk", "to", doing, "error", err)
		}
		a.waitsFor(waitAgent, fmt.Sprintf("room on the runner's disk to %s: %v", doing, err))
		if err := undo(); err != nil && a.work.Err() == nil {
			a.log.Warn("files of a job that waits not removed", "error", err)
		}
		if err := r.probeSpool(); err != nil {
			r.spoolFailed(err)
		}
		found, tried := r.room(), time.Now()
		pause := backoff{min: r.waits.retryMin, max: r.waits.spool}
		for !r.room().beyond(found) && time.Since(tried) < r.waits.room {
			if !sleep(a.work, pause.next()) {
				a.waitsFor(waitAgent, "")
				return time.Since(since), context.Cause(a.work)
			}
		}
	}
}

// room is what a file system has left; nothing where it does not say.
type room struct{ bytes, files uint64 }

func (r *Runner) room() room {
	var st unix.Statfs_t
	if err := unix.Statfs(r.cfg.Dir, &st); err != nil {
		return room{}
	}
	return room{bytes: st.Bavail * uint64(st.Bsize), files: st.Ffree}
}

// beyond reports whether there is so much more that it is worth a try.
func (m room) beyond(than room) bool {
	return m.bytes > than.bytes+than.bytes/16+64<<10 || m.files > than.files+than.files/16+64
}

// waitedText is said in-band of a wait that is over.
func waitedText(doing string, waited time.Duration) string {
	return fmt.Sprintf("==> waited %s for room on the runner's disk to %s", waited.Round(time.Millisecond), doing)
}
