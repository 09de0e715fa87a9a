package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"time"

	"github.com/waypointd/waypoint/cmd/internal/completion"
	"github.com/waypointd/waypoint/cmd/internal/output"
	"github.com/waypointd/waypoint/mux/wire"
)

// completionScript is `waypoint completion`: a script for a shell, and what
// such a script asks for.
type completionScript struct {
	Shell string `arg:"" enum:"bash,zsh,fish,runners,jobs,contexts" help:"bash, zsh or fish. The scripts themselves ask for runners, jobs and contexts: an id and a description on each line."`
}

func (*completionScript) Help() string {
	return `For this shell, bash, and for good:

  source <(waypoint completion bash)
  waypoint completion bash > ~/.local/share/bash-completion/completions/waypoint`
}

// completions are what completes values of which the grammar says too little.
var completions = map[string]completion.Values{
	"--context":            completion.Contexts,
	"--runner":             completion.Runners,
	"--depends-on":         completion.Jobs,
	"--isolation":          completion.Words("cgroup", "process-group"),
	"--log-level":          completion.Words("debug", "info", "warn", "error"),
	"--log-format":         completion.Words("text", "json", "journal"),
	"completion shell":     completion.Words(completion.Shells...),
	"context delete name":  completion.Contexts,
	"context inspect name": completion.Contexts,
	"context rename from":  completion.Contexts,
	"context use name":     completion.Contexts,
	"context verify name":  completion.Contexts,
	"job cancel id":        completion.Jobs,
	"job inspect id":       completion.Jobs,
	"job list --after":     completion.Jobs,
	"job list --operation": completion.Words("run", "build", "deploy", "release"),
	"job list --state":     completion.Words("queued", "assigned", "running", "success", "error", "canceled"),
	"job retry id":         completion.Jobs,
	"job stream id":        completion.Jobs,
	"job wait id":          completion.Jobs,
	"job why id":           completion.Jobs,
	"runner adopt id":      completion.Runners,
	"runner drain id":      completion.Runners,
	"runner forget id":     completion.Runners,
	"runner inspect id":    completion.Runners,
	"runner list --after":  completion.Runners,
	"runner list --state":  completion.Words("pending", "preadopted", "adopted", "rejected"),
	"runner reject id":     completion.Runners,
	"runner resume id":     completion.Runners,
	"runner token --id":    completion.Runners,
}

// serverFlags are those that say which server is meant, and who asks.
var serverFlags = []string{
	"server-addr", "server-tls", "no-server-tls", "server-tls-ca", "server-tls-fingerprint", "server-tls-skip-verify",
	"token", "token-file", "context", "no-server",
}

// askedWithin bounds what a person waits for after a key was pressed.
const askedWithin = time.Second

// offered is how many ids are worth a screen.
const offered = 100

func (c *completionScript) Run(a *app) error {
	if slices.Contains(completion.Shells, c.Shell) {
		parser, err := a.parser(nil)
		if err != nil {
			return err
		}
		maker := &completion.Completer{App: parser.Model, Values: completions, Server: serverFlags}
		script, err := maker.Script(c.Shell)
		if err != nil {
			return err
		}
		_, err = io.WriteString(a.stdout, script)
		return err
	}
	// Who types has no use for what went wrong, and does not wait for it.
	a.stderr = io.Discard
	ctx, cancel := context.WithTimeout(a.ctx, askedWithin)
	defer cancel()
	a.ctx = ctx
	var err error
	switch c.Shell {
	case "runners":
		err = c.runners(a)
	case "jobs":
		err = c.jobs(a)
	case "contexts":
		err = c.contexts(a)
	}
	return err
}

// offer writes one thing that can be chosen. A name that is none, whoever says
// it, is not for a shell.
func (c *completionScript) offer(a *app, name, description string) error {
	if !validName(name) {
		return nil
	}
	_, err := fmt.Fprintf(a.stdout, "%s\t%s\n", name, oneLine(description))
	return err
}

func (c *completionScript) runners(a *app) error {
	if ch, err := a.server(); err != nil || ch.local {
		return err
	}
	return a.withServer(func(ctx context.Context, conn *connection) error {
		runners, err := conn.Runners(ctx, wire.RunnerFilter{Limit: offered})
		for _, r := range runners {
			err = errors.Join(err, c.offer(a, r.ID, runnerState(r)+" "+output.Pairs(r.Labels)))
		}
		return err
	})
}

func (c *completionScript) jobs(a *app) error {
	ch, err := a.server()
	if err != nil {
		return err
	}
	if ch.local {
		// To ask is no reason to begin a store.
		home, err := a.stateHome()
		if err != nil || missing(filepath.Join(home, "waypoint")) {
			return err
		}
	}
	return a.withServer(func(ctx context.Context, conn *connection) error {
		jobs, err := conn.Jobs(ctx, wire.JobFilter{Project: a.Project, App: a.App, Workspace: a.Workspace, Limit: offered})
		now := time.Now()
		for _, j := range jobs {
			what := string(j.Operation) + " " + cmp.Or(appOf(j.Project, j.App), commandLine(j.Command))
			err = errors.Join(err, c.offer(a, j.ID, fmt.Sprintf("%s, %s, %s", what, stateOf(j), output.Age(now, j.QueuedAt))))
		}
		return err
	})
}

func (c *completionScript) contexts(a *app) error {
	store, err := a.contexts()
	if err != nil {
		return err
	}
	names, err := store.Names()
	for _, name := range names {
		known, _, _ := store.Load(name) // one that cannot be read can still be deleted
		err = errors.Join(err, c.offer(a, name, known.ServerAddr))
	}
	return err
}
