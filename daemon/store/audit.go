package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/oklog/ulid/v2"

	"github.com/waypointd/waypoint/mux/wire"
)

const (
	auditColumns = `id, at, last_at, count, actor_kind, actor, known_by, role, peer, method, object, outcome, reason, detail`
	insertAudit  = `INSERT INTO audit (` + auditColumns + `) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)`
	countAudit   = `UPDATE audit SET count = $1, last_at = $2 WHERE id = $3`

	selectAuditBeyond    = `SELECT id FROM audit ORDER BY id DESC LIMIT 1 OFFSET $1`
	selectStrangerBeyond = `SELECT id FROM audit WHERE actor_kind IN ('anonymous', 'runner') ORDER BY id DESC LIMIT 1 OFFSET $1`
	deleteAuditStep      = `DELETE FROM audit WHERE id IN (SELECT id FROM audit WHERE id <= $1 ORDER BY id LIMIT 500)`
	deleteStrangerStep   = `DELETE FROM audit WHERE id IN (SELECT id FROM audit WHERE actor_kind IN ('anonymous', 'runner') AND id <= $1 ORDER BY id LIMIT 500)`
	auditStep            = 500 // rows that go in one transaction
)

// strangersShare is the part of the audit's entries, one in so many, that those
// of strangers may take up: they push nobody else's out. Of runners only what
// was refused is recorded.
const strangersShare = 10

// Audit keeps an entry, whose id it makes and returns.
func (tx *Tx) Audit(e wire.AuditEntry) (id string, err error) {
	id = tx.s.auditIDs.next(e.At)
	if _, err := tx.exec(insertAudit, id, micro(e.At), micro(e.LastAt), e.Count, string(e.ActorKind), e.Actor, e.By, string(e.Role), e.Peer,
		e.Method, e.Object, e.Outcome, e.Reason, toJSON(e.Detail, len(e.Detail))); err != nil {
		return "", fmt.Errorf("keep audit entry: %w", err)
	}
	return id, nil
}

// CountAudit notes how often there was what an entry says, and when last.
func (tx *Tx) CountAudit(id string, count int64, last time.Time) error {
	if _, err := tx.exec(countAudit, count, micro(last), id); err != nil {
		return fmt.Errorf("count audit entry: %w", err)
	}
	return nil
}

// auditWalk is how many entries one page looks at. The audit has no index but its
// ids, since each would cost every call that changes something.
const auditWalk = 20_000

// AuditEntries are those that a filter selects. Where a page has looked at many
// and is not full, next is the entry behind which to go on.
func (s *Store) AuditEntries(ctx context.Context, f wire.AuditFilter) (entries []wire.AuditEntry, next string, err error) {
	return s.auditEntries(ctx, f, auditWalk)
}

func (s *Store) auditEntries(ctx context.Context, f wire.AuditFilter, walk int) (entries []wire.AuditEntry, next string, err error) {
	limit, err := pageLimit(f.Limit)
	if err != nil {
		return nil, "", err
	}
	order, behind, until := " ORDER BY id DESC LIMIT ", "id < ", "id >= "
	if f.OldestFirst {
		order, behind, until = " ORDER BY id LIMIT ", "id > ", "id <= "
	}
	var w where
	if f.After != "" {
		if _, err := ulid.ParseStrict(f.After); err != nil {
			return nil, "", notFound("audit entry", f.After)
		}
		w.add(behind, f.After)
	}
	if !f.Since.IsZero() { // an id is never of an earlier time than its entry
		w.add("id >= ", firstID(f.Since))
	}
	// What is looked at is some entries in a row, whatever else is asked of them.
	span := `SELECT id FROM audit` + w.String() + order + fmt.Sprintf("1 OFFSET %d", walk-1)
	switch err := one(s.read(ctx), span, w.args, &next); {
	case err == nil:
		w.add(until, next)
	case !errors.Is(err, errNoRow):
		return nil, "", fmt.Errorf("read audit: %w", err)
	}
	if !f.Since.IsZero() {
		w.add("at >= ", micro(f.Since))
	}
	if !f.Until.IsZero() {
		w.add("at < ", micro(f.Until))
	}
	kind, name := wire.ParseActor(f.Actor)
	w.addText("actor_kind = ", string(kind))
	w.addText("actor = ", name)
	if strings.HasSuffix(f.Method, ".") {
		w.add(fmt.Sprintf("SUBSTR(method, 1, %d) = ", utf8.RuneCountInString(f.Method)), f.Method)
	} else {
		w.addText("method = ", f.Method)
	}
	if f.Object != "" {
		w.addLiteral("REPLACE(' ' || object || ' ', " + w.param(" "+f.Object+" ") + ", '') <> ' ' || object || ' '")
	}
	if f.Outcome == wire.AuditRefused {
		w.addLiteral("outcome NOT IN ('" + wire.AuditDone + "', '" + wire.AuditBegun + "')")
	} else {
		w.addText("outcome = ", f.Outcome)
	}
	entries = []wire.AuditEntry{}
	if err := each(s.read(ctx), `SELECT `+auditColumns+` FROM audit`+w.String()+order+w.param(limit), w.args, func(rows *sql.Rows) error {
		var (
			e        wire.AuditEntry
			at, last int64
			detail   string
		)
		if err := rows.Scan(&e.ID, &at, &last, &e.Count, &e.ActorKind, &e.Actor, &e.By, &e.Role, &e.Peer, &e.Method, &e.Object,
			&e.Outcome, &e.Reason, &detail); err != nil {
			return err
		}
		e.At, e.LastAt = fromMicro(at), fromMicro(last)
		entries = append(entries, e)
		return fromJSON(detail, &entries[len(entries)-1].Detail)
	}); err != nil {
		return nil, "", fmt.Errorf("read audit: %w", err)
	}
	if len(entries) == limit {
		next = "" // it is the last of them
	}
	return entries, next, nil
}

// firstID is the least id of a time.
func firstID(t time.Time) string {
	var id ulid.ULID
	if err := id.SetTime(uint64(max(t.UnixMilli(), 0))); err != nil {
		id = ulid.ULID{0: 0xff} // later than an id can be
	}
	return id.String()
}

// PruneAudit removes entries that are older than maxAge or beyond the newest
// maxCount (0: no limit), in small transactions.
func (s *Store) PruneAudit(ctx context.Context, maxAge time.Duration, maxCount int, now time.Time) (n int, err error) {
	remove := func(text, last string) error {
		for {
			var gone int64
			if err := s.Update(ctx, func(tx *Tx) (err error) {
				gone, err = tx.exec(text, last)
				return err
			}); err != nil {
				return fmt.Errorf("prune audit: %w", err)
			}
			if n += int(gone); gone < auditStep {
				return nil
			}
		}
	}
	beyond := func(text string, kept int) (last string, err error) {
		if err = one(s.read(ctx), text, []any{kept}, &last); errors.Is(err, errNoRow) {
			return "", nil
		}
		return last, err
	}
	if maxAge > 0 {
		if err := remove(deleteAuditStep, firstID(now.Add(-maxAge))); err != nil {
			return n, err
		}
	}
	if maxCount <= 0 {
		return n, nil
	}
	for _, step := range []struct {
		beyond, remove string
		kept           int
	}{{selectStrangerBeyond, deleteStrangerStep, maxCount / strangersShare}, {selectAuditBeyond, deleteAuditStep, maxCount}} {
		last, err := beyond(step.beyond, step.kept)
		if err != nil {
			return n, fmt.Errorf("prune audit: %w", err)
		}
		if last == "" {
			continue
		}
		if err := remove(step.remove, last); err != nil {
			return n, err
		}
	}
	return n, nil
}
