package main

import (
	"context"
	"fmt"

	"github.com/waypointd/waypoint/cmd/internal/output"
	"github.com/waypointd/waypoint/mux/wire"
)

// runnerAdopt is `waypoint runner adopt`.
type runnerAdopt struct {
	ID          []string `arg:"" help:"The runners."`
	Fingerprint string   `placeholder:"F" help:"Refuse a runner whose key has another fingerprint (exit 6)."`
}

func (*runnerAdopt) Help() string {
	return `The server makes a token for the runner, bound to its id, its key and the labels it offers now, and sends it there.
A runner that is offline gets it when it connects; one whose token has expired is healed by it.`
}

func (c *runnerAdopt) Run(a *app) error {
	if c.Fingerprint != "" && len(c.ID) > 1 {
		return wire.Errorf(wire.BadUsage, "parse arguments: --fingerprint is of one runner, and %d are named", len(c.ID))
	}
	return a.eachRunner("adopt", "adopted", c.ID, func(ctx context.Context, conn *connection, id string) (wire.Runner, error) {
		r, err := conn.Adopt(ctx, id, c.Fingerprint)
		if err != nil {
			return r, err
		}
		admitted := "its key is " + r.Fingerprint
		if labels := output.Pairs(r.Labels); labels != "" {
			admitted += ", its labels are " + labels
		}
		a.note("runner %q: %s", r.ID, admitted)
		if !r.Online {
			a.note("runner %q is offline: it gets its token when it connects", r.ID)
		}
		return r, nil
	})
}

// runnerReject is `waypoint runner reject`.
type runnerReject struct {
	ID []string `arg:"" help:"The runners."`
}

func (*runnerReject) Help() string {
	return `It gets no further job; those that it runs end as usual. It stays listed, and what it asks for is refused. Its token
is not revoked: readmit it with waypoint runner adopt, or with a token that is made for its id from now on.`
}

func (c *runnerReject) Run(a *app) error {
	return a.eachRunner("reject", "rejected", c.ID, func(ctx context.Context, conn *connection, id string) (wire.Runner, error) {
		r, err := conn.Reject(ctx, id)
		if err == nil && r.RunningJobs > 0 {
			a.note("runner %q may end what it runs: %s", r.ID, output.Count(r.RunningJobs, "job"))
		}
		return r, err
	})
}

// runnerForget is `waypoint runner forget`.
type runnerForget struct {
	ID []string `arg:"" help:"The runners."`
}

func (*runnerForget) Help() string {
	return `The record goes, with the key that the id is bound to. When the runner connects again its token decides: with one that
is usable it gets jobs, also if it had been rejected; without, it waits to be adopted. A job that it runs goes on, and is
lost unless the runner is admitted again soon.`
}

func (c *runnerForget) Run(a *app) error {
	return a.eachRunner("forget", "forgotten", c.ID, func(ctx context.Context, conn *connection, id string) (wire.Runner, error) {
		r, err := conn.Forget(ctx, id)
		if err == nil && r.RunningJobs > 0 {
			a.note("runner %q goes on with what it runs, which is lost unless it is admitted again soon: %s", r.ID, output.Count(r.RunningJobs, "job"))
		}
		return r, err
	})
}

// eachRunner does one thing to several runners and says of each that it is
// done. All are tried; the first that failed decides on the exit code.
func (a *app) eachRunner(verb, done string, ids []string, do func(ctx context.Context, conn *connection, id string) (wire.Runner, error)) error {
	return a.withServer(func(ctx context.Context, conn *connection) error {
		var did []wire.Runner
		var failures []error
		for _, id := range ids {
			r, err := do(ctx, conn, id)
			if err != nil {
				failures = append(failures, fmt.Errorf("%s runner: %w", verb, err))
				continue
			}
			did = append(did, scripted(r)...)
			if !a.JSON {
				if _, err := fmt.Fprintf(a.stdout, "Runner %q %s.\n", r.ID, done); err != nil {
					return err
				}
			}
		}
		if a.JSON && len(did) > 0 {
			var doc any = did
			if len(ids) == 1 {
				doc = did[0]
			}
			if err := output.JSON(a.stdout, doc); err != nil {
				return err
			}
		}
		return a.firstOf(failures)
	})
}

// firstOf says all but the first of the failures and returns that one, which
// decides on the exit code.
func (a *app) firstOf(failures []error) error {
	if len(failures) == 0 {
		return nil
	}
	for _, err := range failures[1:] {
		writeError(a.stderr, err)
	}
	return failures[0]
}
