package statedir

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/fsnotify/fsnotify"
	"golang.org/x/sys/unix"
)

const (
	// settleAfter is how long a file that somebody writes, or a directory in
	// which things are switched, is left alone behind the last that happened
	// there; settleAtMost holds where it does not become quiet. Both together
	// are well below the two seconds in which a new token is to be noticed.
	settleAfter  = 100 * time.Millisecond
	settleAtMost = 500 * time.Millisecond

	// slowPoll is for what the kernel does not report: a directory above
	// that is renamed, a file system that is mounted over, a network's.
	slowPoll = 30 * time.Second
	// fastPoll is for when the kernel reports nothing at all.
	fastPoll = 2 * time.Second
)

// WatchToken calls changed, one call at a time, after the token file has
// changed: its content, or that it cannot be read, or that it has come to be
// open to other users. A change since the last Token before is one too. It
// sees every way of replacing the file, symbolic links on the way to it and
// the directory's own replacement included, within about 0.5 s; where one
// further up is renamed, within 30 s. What is being written is left alone for a
// moment. It says nothing of a change that was undone at once. Where the kernel
// will not watch, it looks every 2 s and says so in Log. It blocks until ctx
// ends and then returns nil; nothing it has started is left.
func (d *Dir) WatchToken(ctx context.Context, changed func()) error {
	w := &watch{d: d, log: d.Log, slow: slowPoll, fast: fastPoll}
	if w.log == nil {
		w.log = slog.New(slog.DiscardHandler)
	}
	w.run(ctx, changed)
	return nil
}

// watch is one WatchToken. All of it belongs to that one's goroutine.
type watch struct {
	d          *Dir
	log        *slog.Logger
	slow, fast time.Duration

	seen    sight
	events  *fsnotify.Watcher // nil while the kernel does not report
	at      []place           // what events reports of
	polling bool              // it was said that the kernel does not
}

// place is a directory in which something on the way to the token lies.
type place struct {
	path     string
	dev, ino uint64
}

func (w *watch) run(ctx context.Context, changed func()) {
	defer w.close()
	w.d.mu.Lock()
	known := w.d.token
	w.d.mu.Unlock()
	if known != nil {
		w.seen = *known
	} else {
		_, w.seen, _ = w.d.readToken(false)
	}
	w.arm()
	var unrest unrest
	settle := time.NewTimer(settleAfter) // for what happened before
	defer settle.Stop()
	poll := time.NewTimer(w.slow)
	defer poll.Stop()
	for {
		var events <-chan fsnotify.Event
		var failures <-chan error
		if w.events != nil {
			events, failures = w.events.Events, w.events.Errors
		}
		select {
		case <-ctx.Done():
			return
		case <-events:
			settle.Reset(unrest.add(time.Now()))
			continue
		case err := <-failures:
			if errors.Is(err, fsnotify.ErrEventOverflow) { // something happened, then
				settle.Reset(unrest.add(time.Now()))
				continue
			}
			w.close()
			w.sayPolling(err)
		case <-settle.C:
		case <-poll.C:
		}
		unrest = zeroUnrest
		w.arm() // before the look, so that nothing happens between
		w.look(changed)
		if w.events != nil {
			poll.Reset(w.slow)
		} else {
			poll.Reset(w.fast)
		}
	}
}

// unrest is when the events began that have not settled yet; zero where there
// are none.
type unrest time.Time

var zeroUnrest unrest

// add takes note of an event and returns for how long to wait for more.
func (u *unrest) add(now time.Time) time.Duration {
	if *u == zeroUnrest {
		*u = unrest(now)
	}
	return max(0, min(settleAfter, time.Time(*u).Add(settleAtMost).Sub(now)))
}

// look compares the token file with what it was.
func (w *watch) look(changed func()) {
	_, now, _ := w.d.readToken(false)
	before := w.seen
	w.seen = now
	if now.text != before.text || now.err != before.err || now.loose && !before.loose {
		changed()
	}
}

// arm makes the kernel report of the places where the token's replacement can
// show, if it does not already.
func (w *watch) arm() {
	var err error
	for range 5 { // as often as somebody changes the places while it looks
		want := w.places()
		if w.events != nil && slices.Equal(want, w.at) && len(w.events.WatchList()) == len(want) {
			if w.polling {
				w.polling = false
				w.log.Info("token file is watched again", "path", w.d.Path(tokenFile))
			}
			return
		}
		w.close()
		if err = w.open(want); err != nil && !errors.Is(err, fs.ErrNotExist) {
			break
		}
	}
	if w.events == nil {
		w.sayPolling(err)
	}
}

// open makes the kernel report of some places.
func (w *watch) open(places []place) error {
	events, err := fsnotify.NewWatcher()
	if err != nil {
		return err
	}
	for _, p := range places {
		if err := events.Add(p.path); err != nil {
			w.events = events
			w.close()
			return &fs.PathError{Op: "watch", Path: p.path, Err: err}
		}
	}
	w.events, w.at = events, places
	return nil
}

func (w *watch) close() {
	if w.events != nil {
		w.events.Close()
		for range w.events.Events { // which its goroutine closes last
		}
	}
	w.events, w.at = nil, nil
}

func (w *watch) sayPolling(err error) {
	if !w.polling {
		w.polling = true
		w.log.Warn("token file cannot be watched, looking at it from time to time", "path", w.d.Path(tokenFile), "every", w.fast, "error", err)
	}
}

// maxLinks is how many symbolic links the kernel follows.
const maxLinks = 40

// places walks to the token as the kernel does and returns the directories in
// which a link was followed and the one that the file is in. Where it is not
// there, it is the deepest one that is, and the one above as far as this process
// may read it, because a directory in which somebody holds a file open does not tell
// of its own removal. Otherwise those above are left to the slow poll: what
// others write there, a log perhaps, would wake this process each time. The
// places are reached without links.
func (w *watch) places() []place {
	var found []place
	add := func(path string) {
		fi, err := os.Stat(path)
		if err != nil {
			return
		}
		st := fi.Sys().(*syscall.Stat_t)
		p := place{path, uint64(st.Dev), st.Ino}
		if !slices.ContainsFunc(found, func(q place) bool { return q.dev == p.dev && q.ino == p.ino }) {
			found = append(found, p)
		}
	}
	there := false
	at, rest, links := "/", elements(w.d.Path(tokenFile)), 0
	for len(rest) > 0 {
		name := rest[0]
		rest = rest[1:]
		path := filepath.Join(at, name) // also right for "..": at has no links
		fi, err := os.Lstat(path)
		if err != nil {
			break
		}
		if fi.Mode().Type() == fs.ModeSymlink {
			add(at)
			to, err := os.Readlink(path)
			if links++; err != nil || links > maxLinks {
				break
			}
			if filepath.IsAbs(to) {
				at = "/"
			}
			rest = append(elements(to), rest...)
			continue
		}
		if len(rest) == 0 || !fi.IsDir() {
			there = len(rest) == 0
			break
		}
		at = path
	}
	add(at)
	if above := filepath.Dir(at); !there && unix.Faccessat(unix.AT_FDCWD, above, unix.R_OK, unix.AT_EACCESS) == nil {
		add(above)
	}
	return found
}

// elements are the names in a path, in their order.
func elements(path string) []string {
	return slices.DeleteFunc(strings.Split(path, "/"), func(s string) bool { return s == "" || s == "." })
}
