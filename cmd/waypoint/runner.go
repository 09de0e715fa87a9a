package main

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/waypointd/waypoint/cmd/internal/output"
	"github.com/waypointd/waypoint/mux/wire"
)

// runnerList is `waypoint runner list`.
type runnerList struct {
	Pending bool     `help:"Only those that wait to be adopted."`
	State   string   `placeholder:"STATE" help:"Only in this state: pending, preadopted, adopted or rejected."`
	Label   []string `sep:"none" placeholder:"K=V" help:"Only with this label; repeatable."`
	Limit   int      `default:"50" placeholder:"N" help:"At most so many, up to 500 (default 50)."`
	After   string   `placeholder:"ID" help:"The page behind this id."`
}

func (c *runnerList) Run(a *app) error {
	labels, err := pairs("--label", c.Label)
	if err != nil {
		return err
	}
	if err := checkLimit(c.Limit); err != nil {
		return err
	}
	if err := oneOf("--state", c.State, wire.Pending, wire.Preadopted, wire.Adopted, wire.Rejected); err != nil {
		return err
	}
	state := wire.RunnerState(c.State)
	if c.Pending {
		if state != "" && state != wire.Pending {
			return wire.Errorf(wire.BadUsage, "parse arguments: --pending and --state %s exclude each other", state)
		}
		state = wire.Pending
	}
	return a.withServer(func(ctx context.Context, conn *connection) error {
		runners, err := conn.Runners(ctx, wire.RunnerFilter{State: state, Labels: labels, Limit: c.Limit, After: c.After})
		if err != nil {
			return fmt.Errorf("list runners: %w", err)
		}
		return a.print(orEmpty(runners), func(w io.Writer) error {
			now := time.Now()
			t := output.NewTable("ID", "STATE", "KIND", "LABELS", "ONLINE", "LAST SEEN")
			for _, r := range runners {
				t.Row(r.ID, string(r.State), string(r.Kind), output.Pairs(r.Labels), yesNo(r.Online), output.Age(now, r.LastSeen))
			}
			return t.Write(w)
		})
	})
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// runnerInspect is `waypoint runner inspect`.
type runnerInspect struct {
	ID string `arg:"" help:"The runner."`
}

func (c *runnerInspect) Run(a *app) error {
	return a.withServer(func(ctx context.Context, conn *connection) error {
		r, err := conn.Runner(ctx, c.ID)
		if err != nil {
			return fmt.Errorf("inspect runner: %w", err)
		}
		return a.print(r, func(w io.Writer) error {
			f := new(output.Fields)
			f.Add("ID", r.ID)
			f.Add("State", string(r.State))
			f.Add("Kind", string(r.Kind))
			f.Add("Labels", output.Pairs(r.Labels))
			f.Add("Online", yesNo(r.Online))
			f.Add("Fingerprint", r.Fingerprint)
			f.Add("First seen", instant(r.FirstSeen))
			f.Add("Last seen", instant(r.LastSeen))
			f.Add("Version", r.Version)
			f.Add("Hostname", r.Hostname)
			f.Add("OS", r.OS)
			f.Add("Arch", r.Arch)
			f.Add("Isolation", r.Isolation)
			f.Add("Concurrency", strconv.Itoa(r.Concurrency))
			f.Add("Running jobs", strconv.Itoa(r.RunningJobs))
			f.Add("Draining", yesNo(r.Draining))
			return f.Write(w)
		})
	})
}

// runnerAdopt is `waypoint runner adopt`.
type runnerAdopt struct {
	ID          []string `arg:"" help:"The runners."`
	Fingerprint string   `placeholder:"F" help:"Refuse a runner whose key has another fingerprint (exit 6)."`
}

func (c *runnerAdopt) Run(a *app) error {
	if c.Fingerprint != "" && len(c.ID) > 1 {
		return wire.Errorf(wire.BadUsage, "parse arguments: --fingerprint is of one runner, and %d are named", len(c.ID))
	}
	return a.withServer(func(ctx context.Context, conn *connection) error {
		var adopted []wire.Runner
		var failures []error
		for _, id := range c.ID {
			r, err := conn.Adopt(ctx, id, c.Fingerprint)
			if err != nil {
				failures = append(failures, fmt.Errorf("adopt runner: %w", err))
				continue
			}
			adopted = append(adopted, r)
			if !a.JSON {
				if _, err := fmt.Fprintf(a.stdout, "Runner %q adopted.\n", r.ID); err != nil {
					return err
				}
			}
		}
		if a.JSON && len(adopted) > 0 {
			var doc any = adopted
			if len(c.ID) == 1 {
				doc = adopted[0]
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
