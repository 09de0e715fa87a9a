package supervisor

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/waypointd/waypoint/mux/wire"
)

const (
	startLockFile = "supervisor.start.lock"
	// startWait is how long a supervisor may take to answer.
	startWait = 15 * time.Second
	// lookAgain is when a supervisor that is waited for is looked for without being seen to come.
	lookAgain = 5 * time.Second
)

// Ensure connects to dir's supervisor. If none answers it starts one: argv is
// the command that calls [Run] for dir. The process is detached: a session of its own,
// no terminal, an environment of PATH alone, output to ErrorLogFile; it
// outlives this one. Any number may call Ensure at once, one supervisor is
// started. Errors of one that answers are Connect's.
func Ensure(ctx context.Context, dir string, argv []string) (Jobs, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, startWait, wire.Errorf(wire.Timeout, "the supervisor in %s does not answer", dir).
		WithHint("see %s", filepath.Join(dir, ErrorLogFile)))
	defer cancel()
	socket := filepath.Join(dir, SocketFile)
	if jobs, err := Connect(ctx, socket); answers(err) {
		return jobs, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fileError("make supervisor's directory", err)
	}
	unlock, err := lock(ctx, filepath.Join(dir, startLockFile), startWait)
	if err != nil {
		return nil, err
	}
	defer unlock()
	seen, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, fileError("watch supervisor's directory", err)
	}
	defer seen.Close()
	if err := seen.Add(dir); err != nil {
		return nil, fileError("watch supervisor's directory", err)
	}
	// Another Ensure may have been first. One that is going away while we
	// connect looks the same as none.
	if jobs, err := Connect(ctx, socket); answers(err) {
		return jobs, err
	}
	ended, err := detach(dir, argv)
	if err != nil {
		return nil, err
	}
	for {
		select {
		case e := <-seen.Events:
			if filepath.Base(e.Name) != SocketFile || !e.Has(fsnotify.Create) {
				continue
			}
			if jobs, err := Connect(ctx, socket); answers(err) {
				return jobs, err
			}
		case err := <-ended:
			if err == nil {
				// It took us for absent and left before we could connect.
				if ended, err = detach(dir, argv); err != nil {
					return nil, err
				}
				continue
			}
			return nil, wire.Errorf(wire.Unavailable, "start supervisor: it ended at once (%v)%s", err, tail(filepath.Join(dir, ErrorLogFile)))
		case err := <-seen.Errors:
			return nil, fileError("watch supervisor's directory", err)
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// answers reports whether somebody is there, by the error of a Connect.
func answers(err error) bool {
	k := wire.KindOf(err)
	return err == nil || k == wire.Denied || k == wire.Unimplemented
}

// Await connects to dir's supervisor, and waits for one that somebody else
// starts while there is none. It starts nothing.
func Await(ctx context.Context, dir string) (Jobs, error) {
	seen, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, fileError("watch supervisor's directory", err)
	}
	defer seen.Close()
	if err := seen.Add(dir); err != nil {
		return nil, fileError("watch supervisor's directory", err)
	}
	again := time.NewTicker(lookAgain)
	defer again.Stop()
	for {
		jobs, err := Connect(ctx, filepath.Join(dir, SocketFile))
		if err == nil || ctx.Err() != nil || wire.KindOf(err) != wire.Unavailable {
			return jobs, err
		}
		for came := false; !came; {
			select {
			case e := <-seen.Events:
				came = filepath.Base(e.Name) == SocketFile && e.Has(fsnotify.Create)
			case <-again.C:
				came = true
			case err := <-seen.Errors:
				return nil, fileError("watch supervisor's directory", err)
			case <-ctx.Done():
				return nil, context.Cause(ctx)
			}
		}
	}
}

// detach starts the process; how it ended is sent when it has, nil being the
// end for idleness.
func detach(dir string, argv []string) (ended <-chan error, err error) {
	if len(argv) == 0 {
		return nil, wire.Errorf(wire.BadUsage, "start supervisor: no command")
	}
	// A new file each time: it is the last start that needs explaining.
	log, err := os.OpenFile(filepath.Join(dir, ErrorLogFile), os.O_WRONLY|os.O_CREATE|os.O_TRUNC|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fileError("open supervisor's log", err)
	}
	defer log.Close()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, wire.Errorf(wire.Unavailable, "start supervisor: %v", err)
	}
	c := make(chan error, 1) // sent once, when the process has ended or this one does
	go func() { c <- cmd.Wait() }()
	return c, nil
}

// tail is the end of a log, for an error.
func tail(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	const most = 500
	if fi, err := f.Stat(); err == nil && fi.Size() > most {
		f.Seek(-most, io.SeekEnd)
	}
	b, _ := io.ReadAll(io.LimitReader(f, most))
	if b = bytes.TrimSpace(b); len(b) == 0 {
		return ""
	}
	return fmt.Sprintf(": %s", b)
}
