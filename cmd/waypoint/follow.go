package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/waypointd/waypoint/cmd/internal/output"
	"github.com/waypointd/waypoint/mux/wire"
)

// follower follows the jobs of one command to their end and passes their
// output on. Ctrl-C means another thing in each mode: jobs of this process
// are canceled, the second time killed; jobs of remote runners go on, and the
// command detaches from them, on a terminal after asking.
//
// Two goroutines besides the caller's, which wait waits for: interrupts, and
// for a while complain. A third, which reads the answer of a person, may be
// left behind in a read that nothing can end; the process ends soon after.
type follower struct {
	e     *engine
	quiet bool // output is not passed on

	ctx    context.Context
	cancel context.CancelCauseFunc
	press  chan os.Signal // signals sends, interrupts receives; never closed
	wait   sync.WaitGroup

	mu      sync.Mutex
	open    []string  // jobs that have not ended, guarded by mu
	sig     os.Signal // the first one, guarded by mu
	unheard bool      // nobody reads stdout any more
}

// detached is the cause of a follower's end when its jobs go on.
type detached struct{ sig os.Signal }

func (detached) Error() string { return "detached" }

func newFollower(e *engine, jobs []wire.Job, quiet bool) (f *follower, end func()) {
	f = &follower{e: e, quiet: quiet, press: make(chan os.Signal, 8)}
	f.ctx, f.cancel = context.WithCancelCause(e.a.ctx)
	for _, j := range jobs {
		f.open = append(f.open, j.ID)
	}
	restore := e.a.signals.handle(func(s os.Signal) {
		select {
		case f.press <- s:
		default:
		}
	})
	f.wait.Go(f.interrupts)
	return f, func() {
		restore()
		f.cancel(nil)
		f.wait.Wait()
	}
}

// follow returns the job once it has ended, or says how following ended.
func (f *follower) follow(job wire.Job) (wire.Job, error) {
	var err error
	if f.quiet {
		job, err = f.e.Wait(f.ctx, job.ID)
	} else {
		job, err = f.stream(job)
	}
	if d, ok := errors.AsType[detached](context.Cause(f.ctx)); ok && !job.State.Ended() {
		f.sayDetached(job.ID)
		return job, status(signalCode(d.sig))
	}
	if err != nil {
		if _, ok := errors.AsType[status](err); ok {
			return job, err
		}
		return job, fmt.Errorf("follow job %s: %w", job.ID, err)
	}
	f.ended(job.ID)
	return job, nil
}

// finish is the exit of a command whose jobs have all ended: by a signal it
// was given, by the end of its reader, or as its jobs say (nil).
func (f *follower) finish() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.sig != nil:
		return status(signalCode(f.sig))
	case f.unheard:
		return status(exitClosedPipe)
	}
	return nil
}

// signalCode is the exit code of a command that a signal has ended.
func signalCode(sig os.Signal) int {
	if s, ok := sig.(syscall.Signal); ok {
		return 128 + int(s)
	}
	return exitInterrupt
}

// stream passes on a job's output until it has ended.
func (f *follower) stream(job wire.Job) (wire.Job, error) {
	begun := make(chan struct{})
	var once sync.Once
	begin := func() { once.Do(func() { close(begun) }) }
	defer begin()
	id := job.ID // job changes below
	f.wait.Go(func() { f.complain(id, begun) })
	for item, err := range f.e.Stream(f.ctx, wire.StreamRequest{ID: id, Follow: true}) {
		switch {
		case err != nil:
			return job, err
		case item.Event != nil:
			job = item.Event.Job
			if job.State != wire.Queued {
				begin()
			}
		default:
			if err := f.pass(item.Data); err != nil {
				return job, err
			}
		}
	}
	if !job.State.Ended() {
		return job, wire.Errorf(wire.Internal, "its stream ended while it was %s", job.State)
	}
	return job, nil
}

// pass writes one chunk where the job wrote it.
func (f *follower) pass(d wire.Data) error {
	w := io.Writer(f.e.a.stderr)
	if d.Stream == wire.Stdout {
		w = f.e.a.stdout
	}
	f.mu.Lock()
	unheard := f.unheard
	f.mu.Unlock()
	if unheard && d.Stream == wire.Stdout {
		return nil
	}
	if _, err := w.Write(d.Bytes); err == nil || d.Stream != wire.Stdout {
		return nil
	} else if !errors.Is(err, syscall.EPIPE) {
		return fmt.Errorf("write output: %w", err)
	}
	f.mu.Lock()
	f.unheard = true
	f.mu.Unlock()
	if f.e.here == nil {
		// The job goes on, as it does whenever its follower goes.
		return status(exitClosedPipe)
	}
	f.cancelAll(false)
	return nil
}

// patience is how long a job may be queued before its command says why.
const patience = 3 * time.Second

// complain says once why a job does not begin.
func (f *follower) complain(id string, begun <-chan struct{}) {
	select {
	case <-f.ctx.Done():
		return
	case <-begun:
		return
	case <-time.After(patience):
	}
	why, err := f.e.Why(f.ctx, id)
	if err == nil && why.Job.State == wire.Queued {
		f.e.a.note("job %s waits: %s", id, why.Sentence)
	}
}

func (f *follower) ended(id string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i, o := range f.open {
		if o == id {
			f.open = append(f.open[:i:i], f.open[i+1:]...)
			return
		}
	}
}

// interrupts receives signals until following ends.
func (f *follower) interrupts() {
	for n := 1; ; n++ {
		var sig os.Signal
		select {
		case <-f.ctx.Done():
			return
		case sig = <-f.press:
		}
		switch {
		case f.e.here == nil:
			if sig != os.Interrupt || f.agreed() {
				f.cancel(detached{sig})
			}
		case n > 2:
			f.cancel(interrupted{sig})
		default:
			f.mu.Lock()
			if f.sig == nil {
				f.sig = sig
			}
			f.mu.Unlock()
			if n == 1 {
				f.e.a.note("canceling; once more kills")
			}
			f.cancelAll(n > 1)
		}
	}
}

// cancelAll asks for the end of every job of the command, the last one first,
// so that none begins because another one ended.
func (f *follower) cancelAll(force bool) {
	f.mu.Lock()
	open := append([]string(nil), f.open...)
	f.mu.Unlock()
	for i := len(open) - 1; i >= 0; i-- {
		ctx, cancel := context.WithTimeout(f.ctx, callTimeout)
		if _, err := f.e.Cancel(ctx, open[i], force); err != nil && f.ctx.Err() == nil {
			f.e.a.note("cancel job %s: %v", open[i], err)
		}
		cancel()
	}
}

// agreed asks whether to detach. Without a terminal there is nobody to ask,
// and the answer is yes.
func (f *follower) agreed() bool {
	a := f.e.a
	if !output.IsTerminal(a.stdin) || !output.IsTerminal(a.stderr) {
		return true
	}
	fmt.Fprint(a.stderr, "\nDetach? The job goes on without this command. [Y/n] ")
	answer := make(chan string, 1)
	go func() {
		line, _ := bufio.NewReader(a.stdin).ReadString('\n')
		answer <- strings.ToLower(strings.TrimSpace(line))
	}()
	select {
	case line := <-answer:
		return line != "n" && line != "no"
	case <-f.press:
		fmt.Fprintln(a.stderr)
		return true
	case <-f.ctx.Done():
		return false
	}
}

func (f *follower) sayDetached(id string) {
	f.mu.Lock()
	others := len(f.open) - 1
	f.mu.Unlock()
	more := ""
	if others > 0 {
		more = fmt.Sprintf(", and so do %d more of this command", others)
	}
	f.e.a.note("detached from job %s, which goes on%s", id, more)
	f.e.a.hint("waypoint job stream %s", id)
}
