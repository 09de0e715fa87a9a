package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/waypointd/waypoint/cmd/internal/output"
	"github.com/waypointd/waypoint/mux/wire"
)

// chosenBy is said of each list of what belongs to projects.
const chosenBy = "All that the user may see, or with --project, --app and --workspace those of one."

// jobList is `waypoint job list`.
type jobList struct {
	State     string `placeholder:"STATE" help:"Only in this state: queued, assigned, running, success, error or canceled."`
	Operation string `placeholder:"OP" help:"Only of this operation: run, build, deploy or release."`
	Runner    string `placeholder:"ID" help:"Only on this runner."`
	Limit     int    `default:"50" placeholder:"N" help:"At most so many, up to 500 (default 50)."`
	After     string `placeholder:"ID" help:"The page older than this job."`
}

func (*jobList) Help() string { return chosenBy }

func (c *jobList) Run(a *app) error {
	if err := checkLimit(c.Limit); err != nil {
		return err
	}
	err := oneOf("--state", c.State, wire.Queued, wire.Assigned, wire.Running, wire.Success, wire.Failed, wire.Canceled)
	if err != nil {
		return err
	}
	err = oneOf("--operation", c.Operation, wire.OpRun, wire.OpBuild, wire.OpDeploy, wire.OpRelease, wire.OpDestroy)
	if err != nil {
		return err
	}
	return a.withServer(func(ctx context.Context, conn *connection) error {
		jobs, err := conn.Jobs(ctx, wire.JobFilter{
			State: wire.State(c.State), Operation: wire.Operation(c.Operation), Runner: c.Runner,
			Project: a.Project, App: a.App, Workspace: a.Workspace, Limit: c.Limit, After: c.After,
		})
		if err != nil {
			return fmt.Errorf("list jobs: %w", err)
		}
		return a.print(orEmpty(jobs), func(w io.Writer) error {
			now := time.Now()
			t := output.NewTable("ID", "OPERATION", "STATE", "APP", "WORKSPACE", "RUNNER", "QUEUED", "TOOK")
			for _, j := range jobs {
				t.Row(j.ID, string(j.Operation), stateOf(j), appOf(j.Project, j.App), j.Workspace, j.RunnerID,
					output.Age(now, j.QueuedAt), tookOf(j, now))
			}
			return t.Write(w)
		})
	})
}

// maxList is how many one list has at most.
const maxList = 500

func checkLimit(n int) error {
	if n < 1 || n > maxList {
		return wire.Errorf(wire.BadUsage, "parse arguments: --limit %d is not between 1 and %d", n, maxList)
	}
	return nil
}

// oneOf checks a flag that is empty or one of a few words.
func oneOf[T ~string](flag, value string, words ...T) error {
	if value == "" || slices.Contains(words, T(value)) {
		return nil
	}
	list := make([]string, len(words))
	for i, w := range words {
		list[i] = string(w)
	}
	return wire.Errorf(wire.BadUsage, "parse arguments: %s %q is none of %s", flag, value, strings.Join(list, ", "))
}

// orEmpty makes an empty list of none, which a document shows as [].
func orEmpty[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}

func stateOf(j wire.Job) string {
	if j.Reason == "" || string(j.Reason) == string(j.State) {
		return string(j.State)
	}
	return string(j.State) + ":" + string(j.Reason)
}

func appOf(project, app string) string {
	if project == "" || app == "" {
		return project + app
	}
	return project + "/" + app
}

// tookOf is how long a job ran, or has been running.
func tookOf(j wire.Job, now time.Time) string {
	switch {
	case j.StartedAt.IsZero():
		return ""
	case j.FinishedAt.IsZero():
		return output.Took(now.Sub(j.StartedAt))
	}
	return output.Took(j.FinishedAt.Sub(j.StartedAt))
}

// jobInspect is `waypoint job inspect`.
type jobInspect struct {
	ID string `arg:"" help:"The job."`
}

func (c *jobInspect) Run(a *app) error {
	return a.withServer(func(ctx context.Context, conn *connection) error {
		j, err := conn.Job(ctx, c.ID)
		if err != nil {
			return fmt.Errorf("inspect job: %w", err)
		}
		return a.print(j, func(w io.Writer) error { return jobFields(j).Write(w) })
	})
}

// jobFields is everything known of a job, for people.
func jobFields(j wire.Job) *output.Fields {
	f := new(output.Fields)
	f.Add("ID", j.ID)
	f.Add("Operation", string(j.Operation))
	f.Add("State", stateOf(j))
	f.Add("Error", j.Error)
	if j.ExitCode != nil {
		f.Add("Exit code", strconv.Itoa(*j.ExitCode))
	}
	f.Add("Signal", j.Signal)
	f.Add("Project", j.Project)
	f.Add("App", j.App)
	f.Add("Workspace", j.Workspace)
	f.Add("Profile", j.Profile)
	if j.Sequence > 0 {
		f.Add("Number", strconv.FormatInt(j.Sequence, 10))
	}
	f.Add("Command", commandLine(j.Command))
	f.Add("Target", targetOf(j.Target))
	f.Add("Runner", j.RunnerID)
	f.Add("Attempt", strconv.Itoa(j.Attempt))
	f.Add("Retry of", j.RetryOf)
	f.Add("Depends on", strings.Join(j.DependsOn, ", "))
	f.Add("Singleton", j.Singleton)
	f.Add("Priority", strconv.Itoa(j.Priority))
	f.Add("Queued", instant(j.QueuedAt))
	f.Add("Assigned", instant(j.AssignedAt))
	f.Add("Started", instant(j.StartedAt))
	f.Add("Finished", instant(j.FinishedAt))
	f.Add("Cancel requested", instant(j.CancelRequested))
	f.Add("Expires", instant(j.ExpiresAt))
	f.Add("Output", output.Bytes(j.LogBytes))
	if u := j.Usage; u != nil {
		f.Add("Usage", fmt.Sprintf("%.2fs CPU, %s memory, %.2fs", u.CPUSeconds, output.Bytes(u.MaxRSSBytes), u.WallSeconds))
	}
	f.Add("Outputs", output.Pairs(j.Outputs))
	if j.LateResult != nil {
		f.Add("Late result", lateOf(*j.LateResult))
	}
	return f
}

// lateOf is how a lost job went, by what its runner said afterwards.
func lateOf(l wire.LateResult) string {
	text := stateOf(wire.Job{State: l.State, Reason: l.Reason})
	if l.ExitCode != nil {
		text += fmt.Sprintf(", exit code %d", *l.ExitCode)
	}
	if l.Signal != "" {
		text += ", " + l.Signal
	}
	if !l.FinishedAt.IsZero() {
		text += ", ended " + instant(l.FinishedAt)
	}
	return text + ", reported " + instant(l.ReportedAt)
}

func targetOf(t wire.Target) string {
	switch {
	case t.ID != "":
		return "runner " + t.ID
	case len(t.Labels) > 0:
		return "runners with " + output.Pairs(t.Labels)
	}
	return "any runner"
}

// commandLine writes words so that a shell reads the same.
func commandLine(words []string) string {
	quoted := make([]string, len(words))
	for i, w := range words {
		quoted[i] = w
		if w == "" || strings.ContainsAny(w, " \t\n\"'\\$`;&|<>()*?[]#~!{}") {
			quoted[i] = "'" + strings.ReplaceAll(w, "'", `'\''`) + "'"
		}
	}
	return strings.Join(quoted, " ")
}

func instant(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.RFC3339)
}

// jobWhy is `waypoint job why`.
type jobWhy struct {
	ID string `arg:"" help:"The job."`
}

func (c *jobWhy) Run(a *app) error {
	return a.withServer(func(ctx context.Context, conn *connection) error {
		why, err := conn.Why(ctx, c.ID)
		if err != nil {
			return fmt.Errorf("ask why: %w", err)
		}
		return a.print(why, func(w io.Writer) error {
			_, err := fmt.Fprintln(w, oneLine(why.Sentence))
			return err
		})
	})
}

// jobCancel is `waypoint job cancel`.
type jobCancel struct {
	ID    string `arg:"" help:"The job."`
	Force bool   `help:"Kill it at once."`
}

func (c *jobCancel) Run(a *app) error {
	return a.withServer(func(ctx context.Context, conn *connection) error {
		before, err := conn.Job(ctx, c.ID)
		if err != nil {
			return fmt.Errorf("cancel job: %w", err)
		}
		j, err := conn.Cancel(ctx, c.ID, c.Force)
		if err != nil {
			return fmt.Errorf("cancel job: %w", err)
		}
		return a.print(j, func(w io.Writer) error {
			said := "is being canceled"
			switch {
			case before.State.Ended():
				said = fmt.Sprintf("had already ended (%s) and stays as it is", stateOf(before))
			case j.State.Ended():
				said = "canceled"
			}
			_, err := fmt.Fprintf(w, "Job %q %s.\n", j.ID, said)
			return err
		})
	})
}

// jobRetry is `waypoint job retry`.
type jobRetry struct {
	ID string `arg:"" help:"The job to do again."`
}

func (c *jobRetry) Run(a *app) error {
	return a.withServer(func(ctx context.Context, conn *connection) error {
		j, err := conn.Retry(ctx, c.ID)
		if err != nil {
			return fmt.Errorf("retry job: %w", err)
		}
		return a.print(j, func(w io.Writer) error {
			_, err := fmt.Fprintln(w, j.ID)
			return err
		})
	})
}

// jobWait is `waypoint job wait`.
type jobWait struct {
	ID []string `arg:"" help:"The jobs."`
}

// known asks for all jobs at once, so that the last one's id is not found
// wrong only when the others have ended.
func (c *jobWait) known(a *app, conn *connection) error {
	if len(c.ID) == 1 {
		return nil
	}
	ctx, cancel := a.ask()
	defer cancel()
	for _, id := range c.ID {
		if _, err := conn.Job(ctx, id); err != nil {
			return fmt.Errorf("wait for job: %w", err)
		}
	}
	return nil
}

func (c *jobWait) Run(a *app) error {
	conn, err := a.connect()
	if err != nil {
		return err
	}
	defer conn.close()
	if err := c.known(a, conn); err != nil {
		return err
	}
	var jobs []wire.Job
	code := exitDone
	for _, id := range c.ID {
		j, err := conn.Wait(a.ctx, id)
		if err != nil {
			return fmt.Errorf("wait for job: %w", err)
		}
		jobs = append(jobs, j)
		if code == exitDone {
			code = jobCode(j)
		}
		if !a.JSON {
			if _, err := fmt.Fprintf(a.stdout, "%s %s\n", j.ID, stateOf(j)); err != nil {
				return err
			}
		}
	}
	if a.JSON {
		var doc any = jobs
		if len(jobs) == 1 {
			doc = jobs[0]
		}
		if err := output.JSON(a.stdout, doc); err != nil {
			return err
		}
	}
	if code != exitDone {
		return status(code)
	}
	return nil
}
