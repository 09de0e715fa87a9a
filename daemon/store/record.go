package store

import (
	"context"
	"database/sql"
	"fmt"
	"strings"
	"time"

	"github.com/waypointd/waypoint/mux/wire"
)

const (
	recordColumns = `kind, number, project, app, workspace, job_id, of_number, digest, size, outputs, created_at`

	selectRecord = `SELECT ` + recordColumns + ` FROM records
	WHERE kind = $1 AND project = $2 AND app = $3 AND workspace = $4 AND number = $5`
	selectNewestRecord = `SELECT ` + recordColumns + ` FROM records
	WHERE kind = $1 AND project = $2 AND app = $3 AND workspace = $4 ORDER BY number DESC LIMIT 1`
	selectRecordOfJob = `SELECT ` + recordColumns + ` FROM records WHERE job_id = $1`

	insertRecord = `INSERT INTO records (kind, project, app, workspace, number, job_id, of_number, digest, size, outputs,
	created_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)`
)

func scanRecord(rows *sql.Rows) (*wire.Record, error) {
	var (
		r       wire.Record
		outputs string
		created int64
	)
	if err := rows.Scan(&r.Kind, &r.Number, &r.Project, &r.App, &r.Workspace, &r.JobID, &r.Of, &r.Digest, &r.Size,
		&outputs, &created); err != nil {
		return nil, fmt.Errorf("read record: %w", err)
	}
	r.CreatedAt = fromMicro(created)
	if err := fromJSON(outputs, &r.Outputs); err != nil {
		return nil, fmt.Errorf("read %s %d: %w", r.Kind, r.Number, err)
	}
	return &r, nil
}

// readRecord reads the one record that a query selects, or nil.
func readRecord(q querier, text string, args ...any) (rec *wire.Record, err error) {
	err = each(q, text, args, func(rows *sql.Rows) (err error) {
		rec, err = scanRecord(rows)
		return err
	})
	return rec, err
}

// putRecord keeps what a successful job has made. Its number is the job's
// sequence.
func (tx *Tx) putRecord(r *row, artifact *wire.BlobHeader, now time.Time) error {
	rec := wire.Record{Number: r.Sequence, Outputs: r.Outputs}
	switch r.Operation {
	case wire.OpBuild:
		rec.Kind = wire.RecordArtifact
		if artifact != nil {
			rec.Digest, rec.Size = artifact.Digest, artifact.Size
		}
	case wire.OpDeploy:
		rec.Kind = wire.RecordDeployment
	case wire.OpRelease:
		rec.Kind = wire.RecordRelease
	default:
		return nil
	}
	if r.Uses != "" {
		used, err := readRecord(tx, selectRecordOfJob, r.Uses)
		if err != nil {
			return err
		}
		if used != nil {
			rec.Of = used.Number
		}
	}
	if _, err := tx.exec(insertRecord, string(rec.Kind), r.Project, r.App, r.Workspace, rec.Number, r.ID, rec.Of,
		rec.Digest, rec.Size, toJSON(rec.Outputs, len(rec.Outputs)), micro(now)); err != nil {
		return fmt.Errorf("keep %s of job %s: %w", rec.Kind, r.ID, err)
	}
	return nil
}

// Records are the artifacts, deployments or releases that a filter selects,
// newest first.
func (s *Store) Records(ctx context.Context, f wire.RecordFilter) ([]wire.Record, error) {
	return s.RecordsWithin(ctx, f, wire.Limits{})
}

// Numbers of one app in one workspace grow.
const newestRecord = `number = (SELECT MAX(n.number) FROM records n WHERE n.kind = records.kind
	AND n.project = records.project AND n.app = records.app AND n.workspace = records.workspace)`

// RecordsWithin is Records for whom there are no others than those within limits.
func (s *Store) RecordsWithin(ctx context.Context, f wire.RecordFilter, l wire.Limits) ([]wire.Record, error) {
	switch f.Kind {
	case wire.RecordArtifact, wire.RecordDeployment, wire.RecordRelease:
	default:
		return nil, wire.Errorf(wire.BadUsage, "%q is not a kind of record", f.Kind)
	}
	limit, err := pageLimit(f.Limit)
	if err != nil {
		return nil, err
	}
	var w where
	w.add("kind = ", string(f.Kind))
	w.addText("project = ", f.Project)
	w.addText("app = ", f.App)
	w.addText("workspace = ", f.Workspace)
	w.within(l)
	if f.Newest {
		w.addLiteral(newestRecord)
	}
	out := []wire.Record{}
	err = each(s.read(ctx), `SELECT `+recordColumns+` FROM records`+w.String()+
		` ORDER BY created_at DESC, number DESC LIMIT `+w.param(limit), w.args, func(rows *sql.Rows) error {
		r, err := scanRecord(rows)
		if err != nil {
			return err
		}
		out = append(out, *r)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list records: %w", err)
	}
	return out, nil
}

// where gathers conditions and the arguments of a query.
type where struct {
	text strings.Builder
	args []any
}

// add joins a condition that ends before its parameter.
func (w *where) add(condition string, arg any) { w.addLiteral(condition + w.param(arg)) }

// addText is add, unless there is nothing to compare with.
func (w *where) addText(condition, arg string) {
	if arg != "" {
		w.add(condition, arg)
	}
}

// addLiteral joins a condition without a parameter.
func (w *where) addLiteral(condition string) {
	if w.text.Len() == 0 {
		w.text.WriteString(" WHERE ")
	} else {
		w.text.WriteString(" AND ")
	}
	w.text.WriteString(condition)
}

// param is the placeholder of another argument.
func (w *where) param(arg any) string {
	w.args = append(w.args, arg)
	return fmt.Sprintf("$%d", len(w.args))
}

func (w *where) String() string { return w.text.String() }

const (
	defaultLimit = 50
	maxLimit     = 500
)

// pageLimit is how many a list returns for what was asked for.
func pageLimit(n int) (int, error) {
	switch {
	case n < 0:
		return 0, wire.Errorf(wire.BadUsage, "limit %d is negative", n)
	case n == 0:
		return defaultLimit, nil
	}
	return min(n, maxLimit), nil
}
