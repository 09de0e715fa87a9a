package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/waypointd/waypoint/mux/wire"
)

// RunnerRecord is what is kept of a runner; online, running_jobs are the daemon's to fill in.
// Offered is set only where it differs from Labels; Draining is the operator's.
type RunnerRecord struct {
	wire.Runner
	Key            []byte // ed25519 public key; first use binds
	PeerGroup      string // what Peer is counted as
	Grant          string // the token granted to it, until it has stored it
	RejectedSerial int64  // drawn when it was rejected
}

const (
	runnerColumns = `id, state, kind, labels, first_seen, last_seen, fingerprint, version, hostname, os, arch, isolation,
	concurrency, draining, public_key, problem, problem_detail, offered_labels, token_source, token_issued_at,
	token_expires_at, peer, peer_group, grant_token, rejected_serial`
	selectRunner = `SELECT ` + runnerColumns + ` FROM runners WHERE id = $1`
	upsertRunner = `INSERT INTO runners (` + runnerColumns + `)
	VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22, $23, $24, $25)
	ON CONFLICT (id) DO UPDATE SET state = excluded.state, kind = excluded.kind, labels = excluded.labels,
	first_seen = excluded.first_seen, last_seen = excluded.last_seen, fingerprint = excluded.fingerprint,
	version = excluded.version, hostname = excluded.hostname, os = excluded.os, arch = excluded.arch,
	isolation = excluded.isolation, concurrency = excluded.concurrency, draining = excluded.draining,
	public_key = excluded.public_key, problem = excluded.problem, problem_detail = excluded.problem_detail,
	offered_labels = excluded.offered_labels, token_source = excluded.token_source,
	token_issued_at = excluded.token_issued_at, token_expires_at = excluded.token_expires_at, peer = excluded.peer,
	peer_group = excluded.peer_group, grant_token = excluded.grant_token, rejected_serial = excluded.rejected_serial`
	seeRunner    = `UPDATE runners SET last_seen = $1 WHERE id = $2`
	dropGrants   = `UPDATE runners SET grant_token = '' WHERE grant_token <> ''`
	deleteRunner = `DELETE FROM runners WHERE id = $1`

	countPending  = `SELECT COUNT(*) FROM runners WHERE state = 'pending'`
	selectPending = `SELECT id FROM runners WHERE state = 'pending' ORDER BY last_seen, id`
	selectPeers   = `SELECT id FROM runners WHERE state = 'pending' AND peer_group = $1 ORDER BY last_seen, id`
	prunePending  = `DELETE FROM runners WHERE state = 'pending' AND last_seen < $1`

	countRunners = `SELECT state, COUNT(*) FROM runners GROUP BY state`
)

func scanRunner(rows *sql.Rows) (*RunnerRecord, error) {
	var (
		r                            RunnerRecord
		labels, offered              string
		first, last, issued, expires int64
	)
	if err := rows.Scan(&r.ID, &r.State, &r.Kind, &labels, &first, &last, &r.Fingerprint, &r.Version, &r.Hostname,
		&r.OS, &r.Arch, &r.Isolation, &r.Concurrency, &r.Draining, &r.Key, &r.Problem, &r.Detail, &offered, &r.TokenSource, &issued, &expires,
		&r.Peer, &r.PeerGroup, &r.Grant, &r.RejectedSerial); err != nil {
		return nil, fmt.Errorf("read runner: %w", err)
	}
	r.FirstSeen, r.LastSeen = fromMicro(first), fromMicro(last)
	r.TokenIssued, r.TokenExpiry = fromMicro(issued), fromMicro(expires)
	if err := errors.Join(fromJSON(labels, &r.Labels), fromJSON(offered, &r.Offered)); err != nil {
		return nil, fmt.Errorf("read runner %s: %w", r.ID, err)
	}
	return &r, nil
}

const countPreadopted = `SELECT count(*) FROM runners WHERE state = 'preadopted' AND token_issued_at = $1 AND token_expires_at = $2`

// PutRunner adds or replaces a runner's record.
func (tx *Tx) PutRunner(r RunnerRecord) error {
	if r.ID == "" {
		return wire.Errorf(wire.BadUsage, "keep runner: it has no id")
	}
	key := r.Key
	if key == nil {
		key = []byte{}
	}
	offered := 0
	if r.Offered != nil {
		offered = 1 // none at all is also something to offer
	}
	if _, err := tx.exec(upsertRunner, r.ID, string(r.State), string(r.Kind), toJSON(r.Labels, len(r.Labels)),
		micro(r.FirstSeen), micro(r.LastSeen), r.Fingerprint, r.Version, r.Hostname, r.OS, r.Arch, r.Isolation,
		r.Concurrency, toInt(r.Draining), key, string(r.Problem), r.Detail, toJSON(r.Offered, offered),
		string(r.TokenSource), micro(r.TokenIssued), micro(r.TokenExpiry), r.Peer, r.PeerGroup, r.Grant,
		r.RejectedSerial); err != nil {
		return fmt.Errorf("keep runner %s: %w", r.ID, err)
	}
	tx.ready = true
	return nil
}

// Runner is the record of an id, or NotFound; nobody else changes a runner's
// record until the transaction's end.
func (tx *Tx) Runner(id string) (RunnerRecord, error) {
	if err := tx.lockRules(); err != nil {
		return RunnerRecord{}, err
	}
	return getRunner(tx, id)
}

// Runner is the record of an id, or NotFound.
func (s *Store) Runner(ctx context.Context, id string) (RunnerRecord, error) {
	return getRunner(s.read(ctx), id)
}

func getRunner(q querier, id string) (RunnerRecord, error) {
	var found *RunnerRecord
	err := each(q, selectRunner, []any{id}, func(rows *sql.Rows) (err error) {
		found, err = scanRunner(rows)
		return err
	})
	if err != nil {
		return RunnerRecord{}, err
	}
	if found == nil {
		return RunnerRecord{}, notFound("runner", id)
	}
	return *found, nil
}

// SeenRunner notes when a runner was last seen; no error when there is none.
func (tx *Tx) SeenRunner(id string, at time.Time) error {
	if _, err := tx.exec(seeRunner, micro(at), id); err != nil {
		return fmt.Errorf("note that runner %s was seen: %w", id, err)
	}
	return nil
}

// DropGrants takes off the records the tokens that runners have not stored yet.
func (tx *Tx) DropGrants() error {
	if _, err := tx.exec(dropGrants); err != nil {
		return fmt.Errorf("drop grants: %w", err)
	}
	return nil
}

// DeleteRunner forgets a runner; no error when there is none.
func (tx *Tx) DeleteRunner(id string) error {
	if _, err := tx.exec(deleteRunner, id); err != nil {
		return fmt.Errorf("forget runner %s: %w", id, err)
	}
	return nil
}

// PendingCount is how many runners wait for adoption.
func (s *Store) PendingCount(ctx context.Context) (int, error) { return pendingCount(s.read(ctx)) }

// PendingCount is Store.PendingCount within the transaction.
func (tx *Tx) PendingCount() (int, error) { return pendingCount(tx) }

func pendingCount(q querier) (n int, err error) {
	if err := one(q, countPending, nil, &n); err != nil {
		return 0, fmt.Errorf("count pending runners: %w", err)
	}
	return n, nil
}

// Preadopted is how many runners are on record that came with the token of these
// times, which hardly two tokens have in common.
func (s *Store) Preadopted(ctx context.Context, issued, expiry time.Time) (int, error) {
	return preadopted(s.read(ctx), issued, expiry)
}

// Preadopted is Store.Preadopted within the transaction.
func (tx *Tx) Preadopted(issued, expiry time.Time) (int, error) {
	return preadopted(tx, issued, expiry)
}

func preadopted(q querier, issued, expiry time.Time) (n int, err error) {
	if err := one(q, countPreadopted, []any{micro(issued), micro(expiry)}, &n); err != nil {
		return 0, fmt.Errorf("count runners of a token: %w", err)
	}
	return n, nil
}

// Pending are the runners that wait for adoption, those first that were seen
// longest ago; with a group only that peer's.
func (s *Store) Pending(ctx context.Context, group string) ([]string, error) {
	return pending(s.read(ctx), group)
}

// Pending is Store.Pending within the transaction.
func (tx *Tx) Pending(group string) ([]string, error) { return pending(tx, group) }

func pending(q querier, group string) (ids []string, err error) {
	if group == "" {
		ids, err = strs(q, selectPending)
	} else {
		ids, err = strs(q, selectPeers, group)
	}
	if err != nil {
		return nil, fmt.Errorf("list pending runners: %w", err)
	}
	return ids, nil
}

// PrunePending forgets the runners that wait for adoption and were last seen
// before a time.
func (tx *Tx) PrunePending(before time.Time) (int, error) {
	n, err := tx.exec(prunePending, micro(before))
	if err != nil {
		return 0, fmt.Errorf("forget pending runners: %w", err)
	}
	return int(n), nil
}

// Runners are the runners that a filter selects, in the order of their ids
// (of bytes or of the database's language). Labels must all match exactly.
func (s *Store) Runners(ctx context.Context, f wire.RunnerFilter) ([]RunnerRecord, error) {
	limit, err := pageLimit(f.Limit)
	if err != nil {
		return nil, err
	}
	out := []RunnerRecord{}
	after := f.After
	// Labels are compared here, so pages are read until enough match.
	for {
		var w where
		w.addText("state = ", string(f.State))
		w.addText("id > ", after)
		n := 0
		err := each(s.read(ctx), `SELECT `+runnerColumns+` FROM runners`+w.String()+` ORDER BY id LIMIT `+w.param(maxLimit),
			w.args, func(rows *sql.Rows) error {
				r, err := scanRunner(rows)
				if err != nil {
					return err
				}
				n++
				after = r.ID
				if len(out) < limit && hasLabels(r.Labels, f.Labels) {
					out = append(out, *r)
				}
				return nil
			})
		if err != nil {
			return nil, fmt.Errorf("list runners: %w", err)
		}
		if n < maxLimit || len(out) >= limit {
			return out, nil
		}
	}
}

func hasLabels(have, want map[string]string) bool {
	for k, v := range want {
		if h, ok := have[k]; !ok || h != v {
			return false
		}
	}
	return true
}

// RunnerCounts is how many runners there are of each state that has any.
func (s *Store) RunnerCounts(ctx context.Context) (map[wire.RunnerState]int, error) {
	return runnerCounts(s.read(ctx))
}

// RunnerCounts is Store.RunnerCounts within the transaction.
func (tx *Tx) RunnerCounts() (map[wire.RunnerState]int, error) { return runnerCounts(tx) }

func runnerCounts(q querier) (map[wire.RunnerState]int, error) {
	counts := map[wire.RunnerState]int{}
	if err := count(q, countRunners, counts); err != nil {
		return nil, fmt.Errorf("count runners: %w", err)
	}
	return counts, nil
}
