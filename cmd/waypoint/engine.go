package main

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/waypointd/waypoint/cmd/internal/output"
	"github.com/waypointd/waypoint/mux/wire"
	"github.com/waypointd/waypoint/runner/operation"
)

// engine has jobs done: a server, and runners elsewhere or in this process.
// The way of a job is the same in all modes.
type engine struct {
	*connection
	a      *app
	flags  *jobFlags
	here   *inProcess // nil: on remote runners
	target wire.Target
}

// openEngine decides where the command's jobs run, as the flags say and the
// server knows. root is the directory jobs in this process run in.
func (a *app) openEngine(f *jobFlags, root string) (*engine, error) {
	if err := f.check(); err != nil {
		return nil, err
	}
	ch, err := a.server()
	if err != nil {
		return nil, err
	}
	if ch.local {
		if err := checkLocalMode(f); err != nil {
			return nil, err
		}
	}
	conn, err := a.connectTo(ch)
	if err != nil {
		return nil, err
	}
	e := &engine{connection: conn, a: a, flags: f}
	if err := e.place(root); err != nil {
		return nil, errors.Join(err, conn.close())
	}
	return e, nil
}

func checkLocalMode(f *jobFlags) error {
	what := ""
	switch {
	case f.Detach:
		return detachError()
	case f.remote():
		what = "--no-local"
	case f.Runner != "":
		what = "--runner"
	case len(f.RunnerLabel) > 0:
		what = "--runner-label"
	default:
		return nil
	}
	return wire.Errorf(wire.BadUsage, "choose runner: %s means a remote runner, and local mode has none", what).
		WithHint("name a server with --server-addr")
}

// place settles on remote runners or on one in this process.
func (e *engine) place(root string) error {
	target, err := e.flags.target()
	if err != nil {
		return err
	}
	e.target = target
	remote := e.flags.remote()
	if !remote && !e.flags.inProcess() && e.local == nil {
		if remote, err = e.match(target); err != nil {
			return err
		}
		switch {
		case remote:
		case e.flags.Detach:
			// Nobody matches now; a job that is left to the server can wait for one that does.
			remote = true
		case e.flags.chosen():
			// Who names a runner does not mean this process.
			e.a.note("no admitted, online runner matches: queued, to wait for one")
			remote = true
		default:
			e.a.note("no admitted, online runner matches: running in this process (--no-local waits for one)")
		}
	}
	if remote {
		return nil
	}
	if e.here, err = e.a.startInProcess(e.connection, root); err != nil {
		return err
	}
	e.target = wire.Target{ID: e.here.id}
	return nil
}

func (e *engine) match(target wire.Target) (bool, error) {
	ctx, cancel := e.a.ask()
	defer cancel()
	match, err := e.Match(ctx, target)
	if err != nil {
		return false, fmt.Errorf("look for a runner: %w", err)
	}
	return match, nil
}

// submit queues the command's jobs, all or none.
func (e *engine) submit(specs []wire.JobSpec) ([]wire.Job, error) {
	if err := e.flags.apply(specs, e.target, e.a.workspace()); err != nil {
		return nil, err
	}
	ctx, cancel := e.a.ask()
	defer cancel()
	jobs, err := e.Submit(ctx, specs...)
	if err != nil {
		return nil, fmt.Errorf("queue job: %w", err)
	}
	if len(jobs) != len(specs) {
		return nil, wire.Errorf(wire.Internal, "queue job: the server answered %d jobs with %d", len(specs), len(jobs))
	}
	return jobs, nil
}

// upload sends the tree under root to the server, and returns how a job names it.
func (e *engine) upload(root string, ignore []string) (*wire.Source, error) {
	meter := e.a.meter()
	defer meter.Clear()
	began := time.Now()
	tree, err := operation.Scan(e.a.ctx, root, ignore, func(files int, bytes int64) {
		meter.Say("reading source: %s, %s", output.Count(files, "file"), output.Bytes(bytes))
	})
	if err != nil {
		return nil, fmt.Errorf("read source: %w", err)
	}
	meter.Clear()
	if n := len(tree.Skipped); n > 0 {
		more := ""
		if n > 3 {
			more = fmt.Sprintf(" and %d more", n-3)
		}
		e.a.note("not sent, being no file, directory or link: %s%s", strings.Join(tree.Skipped[:n-max(0, n-3)], ", "), more)
	}
	meter.Say("sending what is new of %s, %s", output.Count(tree.Files, "file"), output.Bytes(tree.Size))
	if err := e.PutBlobs(e.a.ctx, tree.Blobs); err != nil {
		return nil, fmt.Errorf("send source: %w", err)
	}
	meter.Clear()
	if e.a.Verbose > 0 {
		e.a.note("source of %s, %s, is on the server after %s", output.Count(tree.Files, "file"), output.Bytes(tree.Size), output.Took(time.Since(began)))
	}
	return &wire.Source{Tree: tree.Digest}, nil
}

// close ends what openEngine began. After a failure jobs of this process are
// killed, not waited for.
func (e *engine) close(failed bool) error {
	var err error
	if e.here != nil {
		if failed {
			e.here.halt()
		}
		err = e.here.close()
	}
	return errors.Join(err, e.connection.close())
}

// withEngine calls f with an engine and ends it.
func (a *app) withEngine(flags *jobFlags, root string, f func(e *engine) error) error {
	e, err := a.openEngine(flags, root)
	if err != nil {
		return err
	}
	err = f(e)
	_, answered := errors.AsType[status](err)
	if cerr := e.close(err != nil && !answered); err == nil {
		err = cerr
	}
	return err
}
