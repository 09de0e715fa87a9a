package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/waypointd/waypoint/mux/wire"
)

// Several servers may share a database. Each of their processes is an instance;
// an active job names the one whose lease keeps it, its keeper.

// Instance is the id of this opening of the store, "" where it is not shared.
func (s *Store) Instance() string { return s.instance }

// ErrNotKept is why an attempt cannot be given up: another server keeps it by now.
var ErrNotKept = wire.Errorf(wire.Conflict, "the job is kept by another server of the database")

const (
	selectKeeper = `SELECT keeper FROM jobs WHERE id = $1`
	setKeeper    = `UPDATE jobs SET keeper = $1 WHERE id = $2`

	insertServer = `INSERT INTO servers (id, host, started_at, every, beats) VALUES ($1, $2, $3, $4, 1)
	ON CONFLICT (id) DO NOTHING`
	beatServer     = `UPDATE servers SET beats = beats + 1, every = $1 WHERE id = $2`
	selectServers  = `SELECT id, host, started_at, every, beats FROM servers ORDER BY started_at, id`
	deleteServer   = `DELETE FROM servers WHERE id = $1`
	deleteSessions = `DELETE FROM runner_sessions WHERE server = $1`
	deleteSession  = `DELETE FROM runner_sessions WHERE runner_id = $1 AND server = $2`
	selectSessions = `SELECT runner_id, server, claim FROM runner_sessions ORDER BY runner_id`
	selectSession  = `SELECT server, claim, view FROM runner_sessions WHERE runner_id = $1`
	selectViews    = `SELECT runner_id, server, view FROM runner_sessions WHERE server <> $1 ORDER BY runner_id`
	upsertSession  = `INSERT INTO runner_sessions (runner_id, server, claim, view) VALUES ($1, $2, '', $3)
	ON CONFLICT (runner_id) DO UPDATE SET server = excluded.server, claim = excluded.claim, view = excluded.view`
	// The claim stays: it is answered by what the session does, not by how it looks.
	viewSession  = `UPDATE runner_sessions SET view = $1 WHERE runner_id = $2 AND server = $3`
	claim        = `UPDATE runner_sessions SET claim = $1 WHERE runner_id = $2 AND server = $3`
	seeClaim     = `UPDATE runner_sessions SET claim = $1 WHERE runner_id = $2 AND server = $3 AND claim = $4`
	yieldSession = `DELETE FROM runner_sessions WHERE runner_id = $1 AND server = $2 AND claim = $3`
	unclaim      = `UPDATE runner_sessions SET claim = '' WHERE runner_id = $1 AND server = $2 AND claim = $3`

	selectKept    = `SELECT ` + activeColumns + ` FROM jobs WHERE id = $1`
	selectKeepers = `SELECT DISTINCT keeper FROM jobs WHERE finished_at = 0 AND state IN ('assigned', 'running')`
	selectHolding = `SELECT ` + activeColumns + ` FROM jobs
	WHERE finished_at = 0 AND state IN ('assigned', 'running') AND runner_id = $1 ORDER BY id`
	selectStray = `SELECT ` + activeColumns + ` FROM jobs
	WHERE finished_at = 0 AND state IN ('assigned', 'running') AND keeper <> $1
	AND runner_id IN (SELECT s.runner_id FROM runner_sessions s WHERE s.server = $1) ORDER BY id`
	countStray = `SELECT COUNT(*) FROM jobs WHERE finished_at = 0 AND state IN ('assigned', 'running') AND keeper <> $1
	AND runner_id IN (SELECT s.runner_id FROM runner_sessions s WHERE s.server = $1)`
)

// Keeps is nil where this server keeps the job, and ErrNotKept where another
// one does. Nobody else takes it over until the transaction's end.
func (tx *Tx) Keeps(id string) error {
	if tx.s.instance == "" {
		return nil
	}
	if err := tx.lockRules(); err != nil {
		return err
	}
	var keeper string
	switch err := one(tx, selectKeeper, []any{id}, &keeper); {
	case errors.Is(err, errNoRow):
		return notFound("job", id)
	case err != nil:
		return fmt.Errorf("read keeper of job %s: %w", id, err)
	case keeper != tx.s.instance:
		return ErrNotKept
	}
	return nil
}

// keep makes this server the keeper of a job.
func (tx *Tx) keep(a Active) error {
	if _, err := tx.exec(setKeeper, tx.s.instance, a.Job); err != nil {
		return fmt.Errorf("keep job %s: %w", a.Job, err)
	}
	tx.jobs.add(a.Job)
	return nil
}

// Instance is a server of the database, as it says.
type Instance struct {
	ID      string
	Host    string
	Started time.Time
	Every   time.Duration // between its beats
	Beats   int64
}

// Beat counts this server's beats; anew tells that the others had removed it,
// or that this is the first.
func (tx *Tx) Beat(host string, every time.Duration, started time.Time) (anew bool, err error) {
	n, err := tx.exec(beatServer, every.Microseconds(), tx.s.instance)
	if err == nil && n == 0 {
		anew = true
		_, err = tx.exec(insertServer, tx.s.instance, host, micro(started), every.Microseconds())
		tx.Announce(NewsServers)
	}
	if err != nil {
		return false, fmt.Errorf("count a beat: %w", err)
	}
	return anew, nil
}

// Servers are the servers of the database, those first that were first.
func (s *Store) Servers(ctx context.Context) ([]Instance, error) { return servers(s.read(ctx)) }

func servers(q querier) (list []Instance, err error) {
	err = each(q, selectServers, nil, func(rows *sql.Rows) error {
		var (
			i              Instance
			started, every int64
		)
		if err := rows.Scan(&i.ID, &i.Host, &started, &every, &i.Beats); err != nil {
			return err
		}
		i.Started, i.Every = fromMicro(started), time.Duration(every)*time.Microsecond
		list = append(list, i)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read servers: %w", err)
	}
	return list, nil
}

// DropServer removes a server and where it says that runners are connected.
func (tx *Tx) DropServer(id string) error {
	for _, q := range []string{deleteSessions, deleteServer} {
		if _, err := tx.exec(q, id); err != nil {
			return fmt.Errorf("remove server %s: %w", id, err)
		}
	}
	tx.Announce(NewsServers)
	return nil
}

// Session is where a runner is connected.
type Session struct {
	Runner string
	Server string
	Claim  string // the server that the runner has come to as well
	View   string // as that server has described it
}

// Sessions are the places of all runners, without what they look like.
func (s *Store) Sessions(ctx context.Context) ([]Session, error) { return sessions(s.read(ctx)) }

func sessions(q querier) (list []Session, err error) {
	err = each(q, selectSessions, nil, func(rows *sql.Rows) error {
		var r Session
		if err := rows.Scan(&r.Runner, &r.Server, &r.Claim); err != nil {
			return err
		}
		list = append(list, r)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read where runners are connected: %w", err)
	}
	return list, nil
}

// Elsewhere are the runners that are connected to other servers.
func (s *Store) Elsewhere(ctx context.Context) (list []Session, err error) {
	err = each(s.read(ctx), selectViews, []any{s.instance}, func(rows *sql.Rows) error {
		var r Session
		if err := rows.Scan(&r.Runner, &r.Server, &r.View); err != nil {
			return err
		}
		list = append(list, r)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read which runners are connected elsewhere: %w", err)
	}
	return list, nil
}

// Session is where a runner is connected; its Server is "" where it is nowhere.
func (s *Store) Session(ctx context.Context, runner string) (Session, error) {
	r := Session{Runner: runner}
	if err := one(s.read(ctx), selectSession, []any{runner}, &r.Server, &r.Claim, &r.View); err != nil && !errors.Is(err, errNoRow) {
		return r, fmt.Errorf("read where runner %s is connected: %w", runner, err)
	}
	return r, nil
}

// Seen begins a claim that the server it is made to has seen.
const Seen = "seen "

// Claim says, to the server that a runner is connected to, that it has come to
// this one.
func (tx *Tx) Claim(runner, server string) error {
	if _, err := tx.exec(claim, tx.s.instance, runner, server); err != nil {
		return fmt.Errorf("claim runner %s: %w", runner, err)
	}
	tx.Announce(NewsServers)
	return nil
}

// SeeClaim says, to a server that claims a runner, that this one is looking whether
// the runner is alive.
func (tx *Tx) SeeClaim(runner, by string) error {
	if _, err := tx.exec(seeClaim, Seen+by, runner, tx.s.instance, by); err != nil {
		return fmt.Errorf("see the claim of runner %s: %w", runner, err)
	}
	return nil
}

// Refuse answers a claim that has been seen: the runner is here and alive.
func (tx *Tx) Refuse(runner, by string) error {
	if _, err := tx.exec(unclaim, runner, tx.s.instance, Seen+by); err != nil {
		return fmt.Errorf("keep runner %s: %w", runner, err)
	}
	tx.Announce(NewsServers)
	return nil
}

// PutSession notes that a runner is connected here, wherever it was before.
func (tx *Tx) PutSession(runner, view string) error {
	if _, err := tx.exec(upsertSession, runner, tx.s.instance, view); err != nil {
		return fmt.Errorf("note where runner %s is connected: %w", runner, err)
	}
	tx.Announce(NewsServers)
	return nil
}

// ReturnSession is PutSession where the runner is not connected to a server that
// is there, which is told.
func (tx *Tx) ReturnSession(runner, view string, there func(server string) bool) (bool, error) {
	if err := tx.lockRules(); err != nil {
		return false, err
	}
	var server, claim, old string
	switch err := one(tx, selectSession, []any{runner}, &server, &claim, &old); {
	case errors.Is(err, errNoRow):
	case err != nil:
		return false, fmt.Errorf("read where runner %s is connected: %w", runner, err)
	case there(server):
		return false, nil
	}
	return true, tx.PutSession(runner, view)
}

// ViewSession notes what a runner that is connected here looks like.
func (tx *Tx) ViewSession(runner, view string) error {
	if _, err := tx.exec(viewSession, view, runner, tx.s.instance); err != nil {
		return fmt.Errorf("note how runner %s is connected: %w", runner, err)
	}
	return nil
}

// DropSession notes that a runner is not connected here any more.
func (tx *Tx) DropSession(runner string) error {
	if _, err := tx.exec(deleteSession, runner, tx.s.instance); err != nil {
		return fmt.Errorf("note that runner %s has left: %w", runner, err)
	}
	tx.Announce(NewsServers)
	return nil
}

// YieldSession is DropSession for the server that claims the runner, and whose claim has been
// seen. Where another has claimed it since, or it is connected here anew, nothing is
// dropped: that is another question.
func (tx *Tx) YieldSession(runner, by string) error {
	if _, err := tx.exec(yieldSession, runner, tx.s.instance, Seen+by); err != nil {
		return fmt.Errorf("yield runner %s: %w", runner, err)
	}
	tx.Announce(NewsServers)
	return nil
}

// TakeOver makes this server the keeper of all that a runner holds, and
// returns it with the keepers of before.
func (tx *Tx) TakeOver(runner string) ([]Active, error) {
	if err := tx.lockRules(); err != nil {
		return nil, err
	}
	held, err := readActive(tx, selectHolding, runner)
	if err != nil {
		return nil, fmt.Errorf("read jobs of runner %s: %w", runner, err)
	}
	for _, a := range held {
		if a.Keeper != tx.s.instance {
			if err := tx.keep(a); err != nil {
				return nil, err
			}
		}
	}
	return held, nil
}

// TakeBack makes this server the keeper of what runners hold that are
// connected here and that others keep, and returns it.
func (tx *Tx) TakeBack() ([]Active, error) {
	if err := tx.lockRules(); err != nil {
		return nil, err
	}
	stray, err := readActive(tx, selectStray, tx.s.instance)
	if err != nil {
		return nil, fmt.Errorf("read jobs of connected runners: %w", err)
	}
	for _, a := range stray {
		if err := tx.keep(a); err != nil {
			return nil, err
		}
	}
	return stray, nil
}

// TakeFrom makes this server the keeper of what servers kept that are gone:
// those that are not in the table, and those missed whose beats are still as
// told. What belongs to a runner that is connected to one that is there is left
// to that one. A missed server is removed when it keeps nothing any more.
func (tx *Tx) TakeFrom(missed map[string]int64) (taken []Active, removed []Instance, err error) {
	if err := tx.lockRules(); err != nil {
		return nil, nil, err
	}
	all, err := servers(tx)
	if err != nil {
		return nil, nil, err
	}
	there, gone := map[string]bool{}, map[string]Instance{}
	for _, i := range all {
		if beats, ok := missed[i.ID]; ok && beats == i.Beats && i.ID != tx.s.instance {
			gone[i.ID] = i
		} else {
			there[i.ID] = true
		}
	}
	places, err := sessions(tx)
	if err != nil {
		return nil, nil, err
	}
	at := map[string]string{}
	for _, p := range places {
		if there[p.Server] && p.Server != tx.s.instance {
			at[p.Runner] = p.Server
		}
	}
	active, err := readActive(tx, selectActive)
	if err != nil {
		return nil, nil, fmt.Errorf("read jobs in progress: %w", err)
	}
	for _, a := range active {
		switch {
		case there[a.Keeper]:
		case at[a.RunnerID] != "":
			delete(gone, a.Keeper)
		default:
			if err := tx.keep(a); err != nil {
				return nil, nil, err
			}
			taken = append(taken, a)
		}
	}
	for id, i := range gone {
		if err := tx.DropServer(id); err != nil {
			return nil, nil, err
		}
		removed = append(removed, i)
	}
	return taken, removed, nil
}

// Strays is how many jobs TakeBack would take.
func (s *Store) Strays(ctx context.Context) (n int, err error) {
	if err := one(s.read(ctx), countStray, []any{s.instance}, &n); err != nil {
		return 0, fmt.Errorf("count jobs of connected runners: %w", err)
	}
	return n, nil
}

// Holds are the active jobs of a runner, whoever keeps them.
func (tx *Tx) Holds(runner string) ([]Active, error) {
	held, err := readActive(tx, selectHolding, runner)
	if err != nil {
		return nil, fmt.Errorf("read jobs of runner %s: %w", runner, err)
	}
	return held, nil
}

// Keepers are all that keep an active job.
func (s *Store) Keepers(ctx context.Context) ([]string, error) {
	ids, err := strs(s.read(ctx), selectKeepers)
	if err != nil {
		return nil, fmt.Errorf("read keepers of jobs: %w", err)
	}
	return ids, nil
}

// Kept are jobs as they are now, in any state; those that there are not are left out.
func (s *Store) Kept(ctx context.Context, ids []string) ([]Active, error) {
	var out []Active
	for _, id := range ids {
		list, err := readActive(s.read(ctx), selectKept, id)
		if err != nil {
			return nil, fmt.Errorf("read job %s: %w", id, err)
		}
		out = append(out, list...)
	}
	return out, nil
}

func readActive(q querier, text string, args ...any) (out []Active, err error) {
	err = each(q, text, args, func(rows *sql.Rows) error {
		var (
			a      Active
			cancel int64
		)
		if err := rows.Scan(&a.Job, &a.Attempt, &a.RunnerID, &a.State, &cancel, &a.Keeper, &a.Spool); err != nil {
			return err
		}
		a.CancelRequested = cancel != 0
		out = append(out, a)
		return nil
	})
	return out, err
}
