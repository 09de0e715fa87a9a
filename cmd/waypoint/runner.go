package main

import (
	"cmp"
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
		return a.print(scripted(runners...), func(w io.Writer) error {
			now := time.Now()
			t := output.NewTable("ID", "STATE", "KIND", "LABELS", "ONLINE", "LAST SEEN")
			for _, r := range runners {
				t.Row(r.ID, runnerState(r), string(r.Kind), output.Pairs(r.Labels), yesNo(r.Online), output.Age(now, r.LastSeen))
			}
			return t.Write(w)
		})
	})
}

// scripted are runners as --json shows them: the keys that scripts are
// promised, and no others.
func scripted(runners ...wire.Runner) []wire.Runner {
	docs := make([]wire.Runner, len(runners))
	for i, r := range runners {
		r.Admitted, r.TokenIssued, r.Peer, r.Waits = false, time.Time{}, "", nil
		docs[i] = r
	}
	return docs
}

// runnerState is a runner's state, with what keeps it from jobs, or will.
func runnerState(r wire.Runner) string {
	text := string(r.State)
	switch {
	case r.Problem == "" || r.State == wire.Pending && r.Problem == wire.NoToken:
	case r.Admitted:
		text += ", a token passed over"
	default:
		text += ", " + problemWords(r.Problem)
	}
	if r.Draining {
		text += ", draining"
	}
	return text
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
		if err := a.print(scripted(r)[0], func(w io.Writer) error { return runnerFields(r, time.Now()).Write(w) }); err != nil {
			return err
		}
		if r.State != wire.Rejected && r.Problem != "" && !r.Admitted && !a.JSON {
			a.hint("waypoint runner adopt %s --fingerprint %s", r.ID, r.Fingerprint)
		}
		return nil
	})
}

// runnerFields are all that is known of a runner, for people.
func runnerFields(r wire.Runner, now time.Time) *output.Fields {
	f := new(output.Fields)
	f.Add("ID", r.ID)
	f.Add("State", string(r.State))
	f.Add("Gets jobs", yesNo(r.Admitted && !r.Draining))
	switch {
	case r.Problem == "":
	case r.Admitted:
		f.Add("Passed over", why(r.Problem, r.Detail))
	default:
		f.Add("Problem", why(r.Problem, r.Detail))
	}
	f.Add("Kind", string(r.Kind))
	f.Add("Labels", output.Pairs(r.Labels))
	f.Add("Offered labels", output.Pairs(r.Offered))
	f.Add("Online", yesNo(r.Online))
	f.Add("Fingerprint", r.Fingerprint)
	addToken(f, now, r.TokenSource, r.TokenIssued, r.TokenExpiry)
	f.Add("First seen", instant(r.FirstSeen))
	f.Add("Last seen", instant(r.LastSeen))
	f.Add("Peer", r.Peer)
	f.Add("Version", r.Version)
	f.Add("Hostname", r.Hostname)
	f.Add("OS", r.OS)
	f.Add("Arch", r.Arch)
	f.Add("Isolation", r.Isolation)
	f.Add("Concurrency", strconv.Itoa(r.Concurrency))
	f.Add("Running jobs", strconv.Itoa(r.RunningJobs))
	f.Add("Draining", yesNo(r.Draining))
	addWaits(f, r.Waits)
	return f
}

// addWaits adds what keeps a runner from taking jobs, and its jobs where they are.
func addWaits(f *output.Fields, waits []wire.Wait) {
	for _, w := range waits {
		f.Add("Waits", fmt.Sprintf("%s, for %s", cmp.Or(w.Job, "the runner"), w.For))
	}
}

// addToken adds what is known of the token in use: where it is from, and how
// long it is still good for, with a warning once that is not long.
func addToken(f *output.Fields, now time.Time, source wire.TokenSource, issued, expiry time.Time) {
	f.Add("Token from", sourceWords(source))
	f.Add("Token issued", instant(issued))
	if expiry.IsZero() {
		return
	}
	text := instant(expiry) + ", " + untilOrAgo(now, expiry)
	if mark := lowLife(now, issued, expiry); mark > 0 {
		text += fmt.Sprintf(" (warning: below %d %% of its life)", mark)
	}
	f.Add("Token expires", text)
}
