package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"
)

const (
	pruneJobs   = 100 // jobs, or
	pruneChunks = 256 // rows of output, that go in one transaction: it must not keep others waiting
)

const (
	// A job that another one still waits for stays. So do those that one which
	// has not ended is a retry of: they keep the blobs that it names, see below.
	selectPrunable = `SELECT id FROM jobs WHERE finished_at > 0 AND finished_at <= $1
	AND (finished_at < $1 OR id <= $2)
	AND NOT EXISTS (SELECT 1 FROM dependencies d JOIN jobs w ON w.id = d.job_id WHERE d.dependency_id = jobs.id AND w.finished_at = 0)
	AND id NOT IN (WITH RECURSIVE r(id) AS (SELECT retry_of FROM jobs WHERE finished_at = 0 AND retry_of <> ''
		UNION SELECT j.retry_of FROM jobs j JOIN r ON j.id = r.id WHERE j.retry_of <> '') SELECT id FROM r)
	ORDER BY finished_at, id LIMIT 100`
	selectBeyond  = `SELECT finished_at, id FROM jobs WHERE finished_at > 0 ORDER BY finished_at DESC, id DESC LIMIT 1 OFFSET $1`
	selectLogStep = `SELECT attempt, start FROM log_chunks WHERE job_id = $1 ORDER BY attempt, start LIMIT 1 OFFSET 256`
	deleteLogStep = `DELETE FROM log_chunks WHERE job_id = $1 AND (attempt < $2 OR attempt = $2 AND start < $3)`
	deleteLog     = `DELETE FROM log_chunks WHERE job_id = $1`
	deleteWaits   = `DELETE FROM dependencies WHERE job_id = $1`
	deleteWaited  = `DELETE FROM dependencies WHERE dependency_id = $1`
	deleteJob     = `DELETE FROM jobs WHERE id = $1 AND finished_at > 0`

	selectOldest     = `SELECT MIN(queued_at) FROM jobs` // ids do not tell: they grow although the clock was set back
	selectUnusedBlob = `SELECT digest, upload FROM blobs WHERE used_at < $1
	AND NOT EXISTS (SELECT 1 FROM records r WHERE r.digest = blobs.digest AND r.digest <> '') ORDER BY used_at LIMIT 1`
	deleteBlob      = `DELETE FROM blobs WHERE digest = $1`
	deleteProofs    = `DELETE FROM proofs WHERE digest = $1`
	selectOldUpload = `SELECT upload FROM uploads WHERE created_at < $1 LIMIT 1`
	selectPieceStep = `SELECT start FROM blob_chunks WHERE upload = $1 ORDER BY start LIMIT 1 OFFSET 256`
	deletePieceStep = `DELETE FROM blob_chunks WHERE upload = $1 AND start < $2`
)

// Prune removes ended jobs with their logs, older than maxAge or beyond the
// newest maxCount (0: no limit), and blobs nothing refers to and unsealed
// uploads older than a day, in small transactions, and gives the space back; n
// is how many jobs went. Artifacts, deployments and releases stay, with what
// they are made of.
func (s *Store) Prune(ctx context.Context, maxAge time.Duration, maxCount int, now time.Time) (n int, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("prune: %w", err)
		}
	}()
	var last mark
	if maxAge > 0 {
		last.finished = micro(now.Add(-maxAge))
	}
	if maxCount > 0 {
		var beyond mark
		switch err := one(s.read(ctx), selectBeyond, []any{maxCount}, &beyond.finished, &beyond.id); {
		case errors.Is(err, errNoRow):
		case err != nil:
			return 0, err
		case beyond.finished >= last.finished:
			last = beyond
		}
	}
	for {
		gone, more, err := s.pruneJobs(ctx, last)
		n += gone
		if err != nil {
			return n, err
		}
		if !more {
			break
		}
	}
	if err := s.pruneBlobs(ctx, now); err != nil {
		return n, err
	}
	for more := true; more; {
		if err := s.submit(ctx, &op{done: make(chan error, 1), raw: func(c *session) (err error) {
			more, err = s.engine.vacuum(context.Background(), c)
			return err
		}}); err != nil {
			return n, err
		}
	}
	return n, nil
}

// mark is a place among the ended jobs, in the order of their ends.
type mark struct {
	finished int64
	id       string // of those that ended at the same time the last
}

// pruneJobs removes some of the jobs that ended up to a mark.
func (s *Store) pruneJobs(ctx context.Context, last mark) (gone int, more bool, err error) {
	err = s.Update(ctx, func(tx *Tx) error {
		gone, more = 0, false
		if err := tx.lockRules(); err != nil {
			return err
		}
		ids, err := strs(tx, selectPrunable, last.finished, last.id)
		if err != nil {
			return err
		}
		more = len(ids) == pruneJobs
		budget := pruneChunks
		for _, id := range ids {
			rest, err := tx.pruneLog(id, &budget)
			if err != nil {
				return err
			}
			if rest {
				more = true
				return nil
			}
			for _, text := range []string{deleteWaits, deleteWaited, deleteJob} {
				if _, err := tx.exec(text, id); err != nil {
					return err
				}
			}
			tx.jobs.add(id)
			gone++
			if budget <= 0 {
				more = true
				return nil
			}
		}
		return nil
	})
	if err != nil {
		gone = 0
	}
	return gone, more, err
}

// pruneLog removes a job's output, or a part of it if it is large.
func (tx *Tx) pruneLog(id string, budget *int) (rest bool, err error) {
	var attempt, start int64
	switch err := one(tx, selectLogStep, []any{id}, &attempt, &start); {
	case err == nil:
		_, err := tx.exec(deleteLogStep, id, attempt, start)
		return true, err
	case !errors.Is(err, errNoRow):
		return false, err
	}
	n, err := tx.exec(deleteLog, id)
	*budget -= int(n)
	return false, err
}

// pruneBlobs removes blobs that were last used a day before the oldest job
// was queued (see blob.go), and uploads that were given up.
func (s *Store) pruneBlobs(ctx context.Context, now time.Time) error {
	used := micro(now.Add(-24 * time.Hour))
	oldest := used
	var queued sql.NullInt64
	if err := one(s.read(ctx), selectOldest, nil, &queued); err != nil {
		return err
	}
	if queued.Valid {
		oldest = min(oldest, queued.Int64-(24*time.Hour).Microseconds())
	}
	for more := true; more; {
		if err := s.Update(ctx, func(tx *Tx) (err error) {
			more, err = tx.pruneBlob(oldest, used)
			return err
		}); err != nil {
			return err
		}
	}
	return nil
}

// pruneBlob removes one blob or upload, or a part of it if it is large.
func (tx *Tx) pruneBlob(oldest, created int64) (more bool, err error) {
	var digest, upload string
	switch err := one(tx, selectUnusedBlob, []any{oldest}, &digest, &upload); {
	case err == nil:
		// From here on it is an upload that was given up.
		for _, text := range []string{deleteBlob, deleteProofs} {
			if _, err := tx.exec(text, digest); err != nil {
				return false, err
			}
		}
		if _, err := tx.exec(upsertUpload, upload, 0); err != nil {
			return false, err
		}
	case !errors.Is(err, errNoRow):
		return false, err
	}
	switch err := one(tx, selectOldUpload, []any{created}, &upload); {
	case errors.Is(err, errNoRow):
		return false, nil
	case err != nil:
		return false, err
	}
	var start int64
	switch err := one(tx, selectPieceStep, []any{upload}, &start); {
	case err == nil:
		_, err := tx.exec(deletePieceStep, upload, start)
		return true, err
	case !errors.Is(err, errNoRow):
		return false, err
	}
	return true, tx.DropUpload(upload)
}
