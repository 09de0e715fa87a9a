package runner

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/waypointd/waypoint/mux"
	"github.com/waypointd/waypoint/mux/client"
	"github.com/waypointd/waypoint/mux/wire"
	"github.com/waypointd/waypoint/runner/operation"
	"github.com/waypointd/waypoint/runner/supervisor"
	"github.com/waypointd/waypoint/statedir/joblog"
)

// unavailableTries is how often a server that lives is asked for a blob that
// it cannot give now, before the job fails for want of it.
const unavailableTries = 8

// local reports whether jobs run in the caller's own directory.
func (r *Runner) local() bool { return r.cfg.Kind == wire.KindLocal }

// needsPreparation reports whether there is more to do than to make directories.
func (a *attempt) needsPreparation() bool {
	return a.job.Artifact != nil || a.job.Spec.Stdin != "" || a.job.Spec.Source != nil && !a.r.local()
}

// layout names the attempt's files.
func (a *attempt) layout() operation.Layout {
	l := operation.Layout{
		Work:   filepath.Join(a.dir, dirWork),
		Home:   filepath.Join(a.dir, dirHome),
		Output: filepath.Join(a.dir, fileOutputs),
	}
	if a.r.local() {
		l.Work, l.Home = a.r.cfg.Root, ""
	}
	if a.job.Artifact != nil {
		l.Artifact = filepath.Join(a.dir, dirArtifact)
	}
	return l
}

// workDir is where the steps run, and what the outputs of a build are relative to.
func (a *attempt) workDir() (string, error) {
	l, dir := a.layout(), a.job.Spec.Dir
	switch {
	case dir == "":
		return l.Work, nil
	case filepath.IsLocal(dir):
		return filepath.Join(l.Work, dir), nil
	case !a.r.local():
		return "", wire.Errorf(wire.BadUsage, "directory %q is not inside the job's source", dir)
	case filepath.IsAbs(dir):
		return filepath.Clean(dir), nil
	}
	return filepath.Join(l.Work, dir), nil
}

// prepare brings what the job needs onto this host's disk. It can be repeated.
func (a *attempt) prepare(ctx context.Context) (spec supervisor.Spec, err error) {
	l := a.layout()
	jobs, err := a.r.parent.wait(ctx)
	if err != nil {
		return spec, err
	}
	l.User = jobs.User()
	if err := a.clear(); err != nil {
		return spec, fmt.Errorf("prepare job: %w", err)
	}
	spec = supervisor.Spec{
		JobRef: a.job.JobRef, Dir: a.dir,
		Timeout: time.Duration(a.job.Spec.Timeout), LogLimit: a.job.LogLimit,
	}
	if spec.Steps, err = operation.Steps(a.job.Spec); err != nil {
		return spec, err
	}
	var base []string
	if a.r.local() {
		base = append([]string{}, a.r.cfg.BaseEnv...)
	}
	spec.Env = operation.Env(a.job, l, base)
	if src := a.job.Spec.Source; src != nil && !a.r.local() {
		if err := a.checkout(ctx, src.Tree, l.Work); err != nil {
			return spec, fmt.Errorf("get source: %w", err)
		}
	}
	if art := a.job.Artifact; art != nil {
		if err := a.unpack(ctx, art.Digest, l.Artifact); err != nil {
			return spec, fmt.Errorf("get artifact %d: %w", art.Number, err)
		}
	}
	if digest := a.job.Spec.Stdin; digest != "" {
		spec.Stdin = filepath.Join(a.dir, fileStdin)
		if err := a.download(ctx, digest, spec.Stdin); err != nil {
			return spec, fmt.Errorf("get standard input: %w", err)
		}
	}
	if l.User != "" {
		// It cannot be made by another user, whose directory that is not.
		if err := overwrite(l.Output, nil); err != nil {
			return spec, fmt.Errorf("prepare job: %w", err)
		}
		spec.Theirs = []string{dirWork, dirHome, fileOutputs, dirArtifact, fileStdin}
	}
	if spec.WorkDir, err = a.workDir(); err != nil {
		return spec, err
	}
	if a.job.Spec.Dir != "" {
		if info, err := os.Stat(spec.WorkDir); err != nil || !info.IsDir() {
			return spec, wire.Errorf(wire.NotFound, "the job is to run in %q, where there is no directory", a.job.Spec.Dir)
		}
	}
	return spec, nil
}

// clear removes what an agent before this one has prepared.
func (a *attempt) clear() error {
	if !a.again {
		return nil
	}
	entries, err := os.ReadDir(a.dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name() == fileAssignment {
			continue
		}
		if err := removeTree(a.ctx, filepath.Join(a.dir, e.Name())); err != nil {
			return err
		}
	}
	for _, dir := range a.r.slotDirs() {
		if err := os.Mkdir(filepath.Join(a.dir, dir), 0o700); err != nil {
			return err
		}
	}
	return nil
}

// unprepare removes what has been prepared, which is made anew.
func (a *attempt) unprepare() error {
	a.again = true
	return a.clear()
}

func (a *attempt) checkout(ctx context.Context, tree, dir string) error {
	return a.online(ctx, unavailableTries, func(s *mux.Session) error {
		if err := removeTree(ctx, dir); err != nil {
			return err
		}
		return operation.Checkout(ctx, tree, dir, fetch(s))
	})
}

// unpack puts an artifact into dir; without a digest it is that of a build without
// outputs, and empty.
func (a *attempt) unpack(ctx context.Context, digest, dir string) error {
	if digest == "" {
		if err := removeTree(ctx, dir); err != nil {
			return err
		}
		return errors.Join(os.Mkdir(dir, 0o755), os.Chmod(dir, 0o755)) // whatever the umask
	}
	return a.online(ctx, unavailableTries, func(s *mux.Session) error {
		if err := removeTree(ctx, dir); err != nil {
			return err
		}
		return fetch(s)(ctx, []string{digest}, func(_ wire.BlobHeader, r io.Reader) error {
			if err := operation.Unpack(ctx, r, dir); err != nil {
				return err
			}
			_, err := io.Copy(io.Discard, r) // the digest is checked at the end
			return err
		})
	})
}

func (a *attempt) download(ctx context.Context, digest, path string) error {
	return a.online(ctx, unavailableTries, func(s *mux.Session) error {
		return fetch(s)(ctx, []string{digest}, func(_ wire.BlobHeader, r io.Reader) error {
			f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
			if err != nil {
				return err
			}
			_, err = io.Copy(f, r)
			return errors.Join(err, f.Close())
		})
	})
}

// fetch gets blobs over a session.
func fetch(s *mux.Session) operation.Fetch {
	return func(ctx context.Context, digests []string, sink func(wire.BlobHeader, io.Reader) error) error {
		return client.GetBlobs(ctx, s, digests, sink)
	}
}

// online does something over the session in use, and does it again on the next
// when that session is lost. A server that lives and is Unavailable is asked
// again so many times, with pauses; 0 is without end.
func (a *attempt) online(ctx context.Context, tries int, f func(s *mux.Session) error) error {
	pause := backoff{min: a.r.waits.retryMin, max: a.r.waits.retryMax}
	for try := 1; ; {
		s, err := a.r.uplink.wait(ctx)
		if err != nil {
			return err
		}
		err = f(s)
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case s.Err() != nil:
			continue
		case wire.KindOf(err) != wire.Unavailable || try == tries:
			return err
		}
		try++
		a.log.Warn("server cannot serve blobs now", "error", err)
		if !sleep(ctx, pause.next()) {
			return context.Cause(ctx)
		}
	}
}

// say writes a line of Waypoint's own into the attempt's log, while no
// supervisor has it. Without room for it the result says the same.
func (a *attempt) say(line string) {
	w, err := joblog.Create(filepath.Join(a.dir, fileLog))
	if err == nil {
		_, err = w.Append(wire.Notice, time.Now(), []byte(line+"\n"))
		err = errors.Join(err, w.Close())
	}
	if err != nil {
		a.log.Warn("job log cannot be written", "error", err)
	}
	poke(a.wake)
}
