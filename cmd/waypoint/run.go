package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"strings"

	"github.com/waypointd/waypoint/cmd/internal/output"
	"github.com/waypointd/waypoint/mux/client"
	"github.com/waypointd/waypoint/mux/wire"
	"github.com/waypointd/waypoint/runner/operation"
)

// runCommand is `waypoint run`.
type runCommand struct {
	jobFlags
	Env     []string `sep:"none" placeholder:"K=V" help:"A variable of the command's environment; repeatable."`
	Dir     string   `placeholder:"DIR" help:"Where the command runs: in this process relative to the current directory, remotely to the job's."`
	Stdin   bool     `help:"Read standard input to its end and give it to the command."`
	Source  bool     `help:"Send the project's tree, or the current directory's, to a remote runner. Without it a remote command starts in an empty directory."`
	Command []string `arg:"" optional:"" sep:"none" help:"The command, behind a --."`
}

func (*runCommand) Help() string {
	return `In this process the command runs in the current directory with the caller's environment.
It exits with the command's own exit code (128+N for signal N), 124 when it timed out, 126 not executable,
127 not found, 125 when the job ended in another way.`
}

func (r *runCommand) Run(a *app) error {
	if len(a.words) == 0 || len(r.Command) != len(a.words) {
		return wire.Errorf(wire.BadUsage, "parse arguments: the command belongs behind a --").
			WithHint("waypoint run [flags] -- CMD [ARG...]")
	}
	if a.words[0] == "" {
		return wire.Errorf(wire.BadUsage, "parse arguments: the name of the command is empty")
	}
	if r.Stdin && a.TokenFile == "-" {
		return wire.Errorf(wire.BadUsage, "parse arguments: --stdin and --token-file - both read standard input").
			WithHint("put the token into a file, or log in first")
	}
	env, err := pairs("--env", r.Env)
	if err != nil {
		return err
	}
	for k := range env {
		if err := operation.CheckVariable(k); err != nil {
			return wire.Errorf(wire.BadUsage, "parse arguments: --env: %v", err)
		}
	}
	cwd, err := os.Getwd()
	if err != nil {
		return fmt.Errorf("find current directory: %w", err)
	}
	project, err := findProject(cwd)
	if err != nil {
		return err
	}
	spec := wire.JobSpec{Operation: wire.OpRun, Project: a.Project, App: a.App, Command: a.words, Env: env}
	if project != nil && (a.Project == "" || a.Project == project.Name()) {
		spec.Project = project.Name()
		if projects := project.Env(); projects != nil {
			maps.Copy(projects, env)
			spec.Env = projects
		}
	}
	return a.withEngine(&r.jobFlags, cwd, func(e *engine) error {
		return r.run(e, spec, project, cwd)
	})
}

func (r *runCommand) run(e *engine, spec wire.JobSpec, project *operation.Project, cwd string) error {
	var err error
	if spec.Dir, err = r.dir(e, cwd); err != nil {
		return err
	}
	if r.Stdin {
		if spec.Stdin, err = e.uploadStdin(); err != nil {
			return err
		}
	}
	if r.Source && e.here == nil {
		root, ignore := cwd, []string(nil)
		if project != nil {
			root, ignore = project.Root(), project.Ignore()
		}
		if spec.Source, err = e.upload(root, ignore); err != nil {
			return err
		}
	}
	jobs, err := e.submit([]wire.JobSpec{spec})
	if err != nil {
		return err
	}
	if r.Detach {
		return e.a.printDetached(jobs, false)
	}
	f, end := newFollower(e, jobs, e.a.JSON)
	defer end()
	if e.a.Verbose > 0 {
		e.a.note("job %s", jobs[0].ID)
	}
	job, err := f.follow(jobs[0])
	if err != nil {
		return err
	}
	if e.a.JSON {
		if err := output.JSON(e.a.stdout, job); err != nil {
			return err
		}
	}
	if err := f.finish(); err != nil {
		return err
	}
	return e.a.jobEnd(job)
}

// dir is the command's directory as the runner that takes it understands it.
func (r *runCommand) dir(e *engine, cwd string) (string, error) {
	switch {
	case r.Dir == "":
		return "", nil
	case e.here == nil && (filepath.IsAbs(r.Dir) || !filepath.IsLocal(r.Dir)):
		return "", wire.Errorf(wire.BadUsage, "choose directory: --dir %s is outside of the job's own directory on a remote runner", r.Dir)
	case e.here == nil || filepath.IsAbs(r.Dir):
		return r.Dir, nil
	}
	return filepath.Join(cwd, r.Dir), nil
}

// jobEnd is the exit of a command that stands for one job. A command that
// ran has said itself what there is to say.
func (a *app) jobEnd(job wire.Job) error {
	code := jobCode(job)
	switch {
	case code == exitDone:
		return nil
	case ranToItsEnd(job):
		return status(code)
	}
	return withCode{fmt.Errorf("run job %s: %s", job.ID, whyEnded(job)), code}
}

// ranToItsEnd reports that the job's command ran and ended by itself.
func ranToItsEnd(job wire.Job) bool {
	if job.Reason != wire.ReasonFailed {
		return false
	}
	if job.Signal != "" {
		return true
	}
	return job.ExitCode != nil && *job.ExitCode != 0 && *job.ExitCode != 126 && *job.ExitCode != 127
}

// whyEnded says why a job that has ended is no success.
func whyEnded(job wire.Job) string {
	if job.Error != "" {
		return job.Error
	}
	switch {
	case job.Signal != "":
		return "ended by " + job.Signal
	case job.ExitCode != nil && *job.ExitCode != 0:
		return fmt.Sprintf("exit status %d", *job.ExitCode)
	}
	return strings.ReplaceAll(string(job.Reason), "_", " ")
}

// readAll copies standard input to its end or until the command is
// interrupted, which a read from a terminal or a pipe does not notice: it is
// left behind, and the process ends soon after.
func (a *app) readAll(w io.Writer) (size int64, err error) {
	type end struct {
		size int64
		err  error
	}
	done := make(chan end, 1)
	go func() {
		size, err := io.Copy(w, a.stdin)
		done <- end{size, err}
	}()
	select {
	case e := <-done:
		return e.size, e.err
	case <-a.ctx.Done():
		return 0, context.Cause(a.ctx)
	}
}

// uploadStdin reads standard input to its end and stores it on the server; it
// returns its digest.
func (e *engine) uploadStdin() (digest string, err error) {
	spool, err := os.CreateTemp(e.a.env.get("TMPDIR"), "waypoint-stdin-")
	if err != nil {
		return "", temporaryError("keep standard input", err)
	}
	defer func() { err = errors.Join(err, spool.Close()) }()
	// It needs no name, and without one it goes with this process in any case.
	if err := os.Remove(spool.Name()); err != nil {
		return "", fmt.Errorf("keep standard input: %w", err)
	}
	hash := sha256.New()
	size, err := e.a.readAll(io.MultiWriter(spool, hash))
	if err != nil {
		return "", fmt.Errorf("read standard input: %w", err)
	}
	digest = "sha256:" + hex.EncodeToString(hash.Sum(nil))
	err = e.PutBlobs(e.a.ctx, []client.Blob{{
		BlobHeader: wire.BlobHeader{Digest: digest, Size: size},
		Open:       func() (io.ReadCloser, error) { return io.NopCloser(io.NewSectionReader(spool, 0, size)), nil },
	}})
	if err != nil {
		return "", fmt.Errorf("send standard input: %w", err)
	}
	return digest, nil
}

// printDetached answers a command that leaves its jobs to the server.
func (a *app) printDetached(jobs []wire.Job, several bool) error {
	switch {
	case a.JSON && several:
		return output.JSON(a.stdout, jobs)
	case a.JSON:
		return output.JSON(a.stdout, jobs[0])
	}
	for _, j := range jobs {
		if _, err := fmt.Fprintln(a.stdout, j.ID); err != nil {
			return err
		}
	}
	return nil
}
