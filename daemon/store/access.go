package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/waypointd/waypoint/mux/wire"
)

// within adds the condition that a row is within limits.
func (w *where) within(l wire.Limits) {
	for _, part := range []struct {
		column string
		names  []string
	}{{"project", l.Projects}, {"workspace", l.Workspaces}} {
		if len(part.names) == 0 {
			continue
		}
		marks := make([]string, len(part.names))
		for i, name := range part.names {
			marks[i] = w.param(name)
		}
		if part.column == "project" {
			w.addLiteral("project <> ''") // as the index has it
		}
		w.addLiteral(part.column + " IN (" + strings.Join(marks, ", ") + ")")
	}
}

// JobCountsWithin is JobCounts of the jobs within limits.
func (s *Store) JobCountsWithin(ctx context.Context, l wire.Limits) (map[wire.State]int, error) {
	if l.None() {
		return s.JobCounts(ctx)
	}
	var w where
	w.within(l)
	counts := map[wire.State]int{}
	err := each(s.read(ctx), `SELECT state, COUNT(*) FROM jobs`+w.String()+` GROUP BY state`, w.args, func(rows *sql.Rows) error {
		var (
			state wire.State
			n     int
		)
		err := rows.Scan(&state, &n)
		counts[state] = n
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("count jobs: %w", err)
	}
	return counts, nil
}

// selectSingletonJobs are the jobs that a new one of the singleton would wait for
// or supersede.
const selectSingletonJobs = `SELECT project, workspace FROM jobs WHERE singleton = $1 AND singleton <> '' AND finished_at = 0`

// SingletonWithin reports whether all jobs of a singleton that have not ended are within limits.
func (tx *Tx) SingletonWithin(singleton string, l wire.Limits) (within bool, err error) {
	if err := tx.lockRules(); err != nil {
		return false, err
	}
	within = true
	err = each(tx, selectSingletonJobs, []any{singleton}, func(rows *sql.Rows) error {
		var project, workspace string
		err := rows.Scan(&project, &workspace)
		within = within && l.Allow(project, workspace)
		return err
	})
	if err != nil {
		return false, fmt.Errorf("look for jobs of singleton %q: %w", singleton, err)
	}
	return within, nil
}

// ArtifactWithin reports whether a blob is the artifact of a build within limits.
func (s *Store) ArtifactWithin(ctx context.Context, digest string, l wire.Limits) (bool, error) {
	var w where
	w.add("digest = ", digest)
	w.addLiteral("digest <> ''") // as the index has it
	w.within(l)
	var found string
	switch err := one(s.read(ctx), `SELECT digest FROM records`+w.String()+` LIMIT 1`, w.args, &found); {
	case errors.Is(err, errNoRow):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("look for the artifact %s: %w", digest, err)
	}
	return true, nil
}

// outsideBatch is how many jobs one query of Outside is about.
const outsideBatch = 500

// Outside are those of some jobs that exist and are not within limits.
func (s *Store) Outside(ctx context.Context, ids []string, l wire.Limits) (map[string]bool, error) {
	outside := map[string]bool{}
	if l.None() {
		return outside, nil
	}
	for batch := range slices.Chunk(ids, outsideBatch) {
		var w where
		marks := make([]string, len(batch))
		for i, id := range batch {
			marks[i] = w.param(id)
		}
		w.addLiteral("id IN (" + strings.Join(marks, ", ") + ")")
		err := each(s.read(ctx), `SELECT id, project, workspace FROM jobs`+w.String(), w.args, func(rows *sql.Rows) error {
			var id, project, workspace string
			err := rows.Scan(&id, &project, &workspace)
			if !l.Allow(project, workspace) {
				outside[id] = true
			}
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("look whose jobs are named: %w", err)
		}
	}
	return outside, nil
}
