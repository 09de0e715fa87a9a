package main

import (
	"fmt"
	"slices"
	"time"

	"github.com/waypointd/waypoint/cmd/internal/output"
	"github.com/waypointd/waypoint/mux/wire"
	"github.com/waypointd/waypoint/runner/operation"
)

const operationHelp = `Does it for the app named with -a, or for every app of the project that defines it.
Exit code 1 when a job did not succeed.`

// build is `waypoint build`.
type build struct{ jobFlags }

func (*build) Help() string { return operationHelp }

func (c *build) Run(a *app) error {
	return a.operate(&c.jobFlags, chain{ops: []wire.Operation{wire.OpBuild}})
}

// deploy is `waypoint deploy`.
type deploy struct {
	jobFlags
	Artifact int64 `placeholder:"N" help:"The artifact with this number; default the newest."`
}

func (*deploy) Help() string { return operationHelp }

func (c *deploy) Run(a *app) error {
	if c.Artifact < 0 {
		return wire.Errorf(wire.BadUsage, "parse arguments: --artifact %d is no number of an artifact", c.Artifact)
	}
	return a.operate(&c.jobFlags, chain{ops: []wire.Operation{wire.OpDeploy}, artifact: c.Artifact})
}

// release is `waypoint release`.
type release struct {
	jobFlags
	Deployment int64 `placeholder:"N" help:"The deployment with this number, which is how to roll back; default the newest."`
}

func (*release) Help() string { return operationHelp }

func (c *release) Run(a *app) error {
	if c.Deployment < 0 {
		return wire.Errorf(wire.BadUsage, "parse arguments: --deployment %d is no number of a deployment", c.Deployment)
	}
	return a.operate(&c.jobFlags, chain{ops: []wire.Operation{wire.OpRelease}, deployment: c.Deployment})
}

// up is `waypoint up`.
type up struct{ jobFlags }

func (*up) Help() string { return operationHelp }

func (c *up) Run(a *app) error {
	return a.operate(&c.jobFlags, chain{ops: []wire.Operation{wire.OpBuild, wire.OpDeploy, wire.OpRelease}})
}

// chain is operations to do one after the other, each only if the one before
// has succeeded.
type chain struct {
	ops                  []wire.Operation
	artifact, deployment int64
}

// specs are the jobs of the chain for the apps: an app's own operations
// depend on one another, apps do not.
func (c chain) specs(p *operation.Project, only string) ([]wire.JobSpec, error) {
	apps := p.Apps()
	if only != "" {
		apps = []string{only}
	}
	var specs []wire.JobSpec
	for _, app := range apps {
		before := -1
		for _, op := range c.ops {
			s, err := p.Spec(op, app)
			if wire.KindOf(err) == wire.NotFound && (only == "" || len(c.ops) > 1 && slices.Contains(p.Apps(), only)) {
				continue
			}
			if err != nil {
				return nil, fmt.Errorf("%s %s: %w", op, app, err)
			}
			s.Artifact, s.Deployment = c.artifact, c.deployment
			if before >= 0 {
				s.DependsOn = []string{fmt.Sprintf("#%d", before)}
			}
			before = len(specs)
			specs = append(specs, s)
		}
	}
	if len(specs) == 0 {
		return nil, wire.Errorf(wire.NotFound, "%s: no app of project %q defines it", c.name(), p.Name()).
			WithHint("describe it in %s", operation.ProjectFile)
	}
	return specs, nil
}

func (c chain) name() string {
	if len(c.ops) > 1 {
		return "up"
	}
	return string(c.ops[0])
}

// operate does a chain for the project at hand.
func (a *app) operate(flags *jobFlags, c chain) error {
	p, err := a.project()
	if err != nil {
		return err
	}
	specs, err := c.specs(p, a.App)
	if err != nil {
		return err
	}
	several := len(specs) > 1 || len(c.ops) > 1
	return a.withEngine(flags, p.Root(), func(e *engine) error {
		if e.here == nil && p.SourceType() == "upload" {
			source, err := e.upload(p.Root(), p.Ignore())
			if err != nil {
				return err
			}
			for i := range specs {
				specs[i].Source = source
			}
		}
		jobs, err := e.submit(specs)
		if err != nil {
			return err
		}
		if flags.Detach {
			return a.printDetached(jobs, several)
		}
		return e.followOperations(jobs, several)
	})
}

// followOperations follows jobs one after the other, with a line on stderr
// before and behind each.
func (e *engine) followOperations(jobs []wire.Job, several bool) error {
	f, end := newFollower(e, jobs, e.a.JSON)
	defer end()
	var failure error
	failed := map[string]bool{}
	for i := range jobs {
		// What waits for a job that has failed is not begun: it needs no heading.
		if !slices.ContainsFunc(jobs[i].DependsOn, func(id string) bool { return failed[id] }) {
			e.a.say("==> %s of %s, job %s", jobs[i].Operation, jobs[i].App, jobs[i].ID)
		}
		job, err := f.follow(jobs[i])
		if err != nil {
			return err
		}
		jobs[i] = job
		if job.State == wire.Success {
			e.a.say("%s", succeeded(job))
			continue
		}
		failed[job.ID] = true
		if job.Reason == wire.ReasonDependency && failure != nil {
			e.a.say("%s of %s was not done", job.Operation, job.App)
			continue
		}
		err = withCode{wire.Errorf(wire.Internal, "%s of %s: %s", job.Operation, job.App, whyEnded(job)).
			WithHint("waypoint job inspect %s", job.ID), exitFailed}
		if failure == nil {
			failure = err
		} else {
			e.a.note("%v", err)
		}
	}
	if e.a.JSON {
		var doc any = jobs
		if !several {
			doc = jobs[0]
		}
		if err := output.JSON(e.a.stdout, doc); err != nil {
			return err
		}
	}
	if err := f.finish(); err != nil {
		return err
	}
	return failure
}

// succeeded is the last line about an operation: "build #3 of web succeeded in 2.1s".
func succeeded(job wire.Job) string {
	sequence := ""
	if job.Sequence > 0 {
		sequence = fmt.Sprintf(" #%d", job.Sequence)
	}
	var d time.Duration
	if !job.StartedAt.IsZero() {
		d = job.FinishedAt.Sub(job.StartedAt)
	}
	return fmt.Sprintf("%s%s of %s succeeded in %s", job.Operation, sequence, job.App, output.Took(d))
}
