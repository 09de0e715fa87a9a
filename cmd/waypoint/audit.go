package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/waypointd/waypoint/cmd/internal/output"
	"github.com/waypointd/waypoint/mux/wire"
)

// auditFlags say which entries of the audit are meant.
type auditFlags struct {
	Since   string `placeholder:"D|TIME" help:"Not older: a duration, such as 24h, or a time, such as 2026-01-31T08:00:00Z or 2026-01-31 (UTC)."`
	Until   string `placeholder:"D|TIME" help:"Older than that."`
	Actor   string `placeholder:"NAME" help:"By this user or runner; user:NAME, host:NAME or runner:ID is one of that kind alone, anonymous who has proved nothing."`
	Method  string `placeholder:"METHOD" help:"This method, such as job.submit; user. is all that begin so."`
	Object  string `placeholder:"ID" help:"About this job, runner, user or token."`
	Outcome string `placeholder:"WORD" help:"done, begun, refused, or one kind of error, such as denied."`
}

func (f *auditFlags) filter(now time.Time) (wire.AuditFilter, error) {
	w := wire.AuditFilter{Actor: f.Actor, Method: f.Method, Object: f.Object, Outcome: f.Outcome}
	err := oneOf("--outcome", f.Outcome, wire.AuditDone, wire.AuditBegun, wire.AuditRefused,
		string(wire.Denied), string(wire.Unauthenticated), string(wire.Expired), string(wire.NotFound), string(wire.Conflict), string(wire.BadUsage),
		string(wire.TooLarge), string(wire.Unavailable), string(wire.Timeout), string(wire.Unimplemented), string(wire.Internal))
	if err == nil {
		w.Since, err = moment("--since", f.Since, now)
	}
	if err == nil {
		w.Until, err = moment("--until", f.Until, now)
	}
	return w, err
}

// moment is a time, or one that is so long ago; "" is the zero time.
func moment(flag, text string, now time.Time) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	if d, err := time.ParseDuration(text); err == nil && d >= 0 {
		return now.Add(-d).UTC(), nil
	}
	for _, layout := range []string{time.RFC3339, "2006-01-02T15:04:05", "2006-01-02 15:04:05", "2006-01-02T15:04", "2006-01-02 15:04", time.DateOnly} {
		if t, err := time.Parse(layout, text); err == nil {
			return t.UTC(), nil
		}
	}
	return time.Time{}, wire.Errorf(wire.BadUsage, "parse arguments: %s %q is neither a duration nor a time", flag, text).
		WithHint("for example %s 24h, or %s 2026-01-31T08:00:00Z", flag, flag)
}

// auditList is `waypoint audit list`.
type auditList struct {
	auditFlags
	Limit int    `default:"50" placeholder:"N" help:"At most so many, up to 500 (default 50)."`
	After string `placeholder:"ID" help:"The page older than this entry."`
}

func (*auditList) Help() string {
	return `Who did what, from where, when, and how it came out, the newest first: calls that change something or hand out
tokens or a snapshot, calls that were denied, and logins. For admins.`
}

func (c *auditList) Run(a *app) error {
	if err := checkLimit(c.Limit); err != nil {
		return err
	}
	f, err := c.filter(time.Now())
	if err != nil {
		return err
	}
	f.Limit, f.After = c.Limit, c.After
	if err := a.needServer("list audit"); err != nil {
		return err
	}
	return a.withServer(func(ctx context.Context, conn *connection) error {
		entries := []wire.AuditEntry{}
		for e, err := range conn.Audit(ctx, f) {
			if err != nil {
				return fmt.Errorf("list audit: %w", err)
			}
			entries = append(entries, e)
		}
		return a.print(entries, func(w io.Writer) error {
			t := output.NewTable("ID", "AT", "ACTOR", "ROLE", "PEER", "METHOD", "OBJECT", "OUTCOME")
			for _, e := range entries {
				outcome := e.Outcome
				if e.Count > 1 {
					outcome += fmt.Sprintf(" (%d times)", e.Count)
				}
				t.Row(e.ID, instant(e.At), e.Who(), string(e.Role), e.Peer, e.Method, firstObjects(e.Object), outcome)
			}
			return t.Write(w)
		})
	})
}

// firstObjects is what of an entry's objects fits a table.
func firstObjects(text string) string {
	const most = 3
	if all := strings.Fields(text); len(all) > most {
		return fmt.Sprintf("%s and %d more", strings.Join(all[:most], " "), len(all)-most)
	}
	return text
}

// auditExport is `waypoint audit export`.
type auditExport struct {
	auditFlags
}

func (*auditExport) Help() string {
	return `All entries that are selected, the oldest first, each as one line of JSON: to keep them elsewhere. The next export
goes on with --since the time of the last line; entries of that very time come again, with the same id.`
}

func (c *auditExport) Run(a *app) error {
	f, err := c.filter(time.Now())
	if err != nil {
		return err
	}
	f.OldestFirst = true
	if err := a.needServer("export audit"); err != nil {
		return err
	}
	return a.withServer(func(ctx context.Context, conn *connection) error {
		for e, err := range conn.Audit(ctx, f) {
			if err != nil {
				return fmt.Errorf("export audit: %w", err)
			}
			if err := output.Line(a.stdout, e); err != nil {
				return err
			}
		}
		return nil
	})
}
