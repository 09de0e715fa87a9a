package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strconv"
	"time"

	"github.com/waypointd/waypoint/cmd/internal/output"
	"github.com/waypointd/waypoint/mux/wire"
)

// recordFlags are those of the lists of what operations made.
type recordFlags struct {
	Limit int `default:"50" placeholder:"N" help:"At most so many, up to 500 (default 50)."`
}

func (*recordFlags) Help() string { return chosenBy }

// artifactList is `waypoint artifact list`.
type artifactList struct{ recordFlags }

func (c *artifactList) Run(a *app) error {
	return a.listRecords(wire.RecordArtifact, c.Limit, []string{"SIZE", "DIGEST"}, func(r wire.Record) []string {
		return []string{output.Bytes(r.Size), r.Digest}
	})
}

// deploymentList is `waypoint deployment list`.
type deploymentList struct{ recordFlags }

func (c *deploymentList) Run(a *app) error {
	return a.listRecords(wire.RecordDeployment, c.Limit, []string{"ARTIFACT"}, ofNumber)
}

// releaseList is `waypoint release list`.
type releaseList struct{ recordFlags }

func (c *releaseList) Run(a *app) error {
	return a.listRecords(wire.RecordRelease, c.Limit, []string{"DEPLOYMENT"}, ofNumber)
}

func ofNumber(r wire.Record) []string { return []string{numberOf(r.Of)} }

// numberOf writes the number of a record; there is no number 0.
func numberOf(n int64) string {
	if n == 0 {
		return ""
	}
	return strconv.FormatInt(n, 10)
}

func (a *app) listRecords(kind wire.RecordKind, limit int, more []string, cells func(wire.Record) []string) error {
	if err := checkLimit(limit); err != nil {
		return err
	}
	return a.withServer(func(ctx context.Context, conn *connection) error {
		records, err := conn.Records(ctx, wire.RecordFilter{
			Kind: kind, Project: a.Project, App: a.App, Workspace: a.Workspace, Limit: limit,
		})
		if err != nil {
			return fmt.Errorf("list %ss: %w", kind, err)
		}
		return a.print(orEmpty(records), func(w io.Writer) error {
			now := time.Now()
			t := output.NewTable(append([]string{"NUMBER", "APP", "WORKSPACE", "MADE", "JOB"}, more...)...)
			for _, r := range records {
				row := []string{numberOf(r.Number), appOf(r.Project, r.App), r.Workspace, output.Age(now, r.CreatedAt), r.JobID}
				t.Row(append(row, cells(r)...)...)
			}
			return t.Write(w)
		})
	})
}

// projectStatus is `waypoint status`.
type projectStatus struct{}

// statusAnswer is its answer: for each app and workspace the newest of each kind.
type statusAnswer struct {
	Project    string       `json:"project,omitempty"`
	App        string       `json:"app"`
	Workspace  string       `json:"workspace"`
	Artifact   *wire.Record `json:"artifact,omitempty"`
	Deployment *wire.Record `json:"deployment,omitempty"`
	Release    *wire.Record `json:"release,omitempty"`
}

func (projectStatus) Help() string {
	return "Of the project that --project names, else of the one whose file is in this directory or above it, else of all that the user may see."
}

func (projectStatus) Run(a *app) error {
	project := a.Project
	if project == "" {
		cwd, err := os.Getwd()
		if err != nil {
			return fmt.Errorf("find current directory: %w", err)
		}
		p, err := findProject(cwd)
		if err != nil {
			return err
		}
		if p != nil {
			project = p.Name()
		}
	}
	return a.withServer(func(ctx context.Context, conn *connection) error {
		var (
			answers []*statusAnswer
			full    bool // there may be more
		)
		for _, kind := range []wire.RecordKind{wire.RecordArtifact, wire.RecordDeployment, wire.RecordRelease} {
			records, err := conn.Records(ctx, wire.RecordFilter{
				Kind: kind, Project: project, App: a.App, Workspace: a.Workspace, Newest: true, Limit: maxList,
			})
			if err != nil {
				return fmt.Errorf("list %ss: %w", kind, err)
			}
			full = full || len(records) == maxList
			for _, r := range records {
				answers = newest(answers, r)
			}
		}
		if full {
			a.note("of each kind the newest %d are shown: choose with --project, --app and --workspace", maxList)
		}
		return a.print(orEmpty(answers), func(w io.Writer) error {
			now := time.Now()
			t := output.NewTable("APP", "WORKSPACE", "ARTIFACT", "DEPLOYED", "RELEASED")
			for _, s := range answers {
				t.Row(appOf(s.Project, s.App), s.Workspace, made(s.Artifact, now), made(s.Deployment, now), made(s.Release, now))
			}
			return t.Write(w)
		})
	})
}

// newest puts a record where it belongs, unless a newer one is there.
func newest(answers []*statusAnswer, r wire.Record) []*statusAnswer {
	var at *statusAnswer
	for _, s := range answers {
		if s.Project == r.Project && s.App == r.App && s.Workspace == r.Workspace {
			at = s
		}
	}
	if at == nil {
		at = &statusAnswer{Project: r.Project, App: r.App, Workspace: r.Workspace}
		answers = append(answers, at)
	}
	place := map[wire.RecordKind]**wire.Record{
		wire.RecordArtifact: &at.Artifact, wire.RecordDeployment: &at.Deployment, wire.RecordRelease: &at.Release,
	}[r.Kind]
	if place != nil && *place == nil {
		*place = &r
	}
	return answers
}

func made(r *wire.Record, now time.Time) string {
	if r == nil {
		return ""
	}
	if r.Kind == wire.RecordRelease && r.Of != 0 {
		return fmt.Sprintf("#%d of deployment #%d, %s", r.Number, r.Of, output.Age(now, r.CreatedAt))
	}
	return fmt.Sprintf("#%d, %s", r.Number, output.Age(now, r.CreatedAt))
}
