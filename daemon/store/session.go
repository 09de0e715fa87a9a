package store

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/waypointd/waypoint/mux/wire"
)

// querier runs queries: a transaction or the pool of readers.
type querier interface {
	query(q string, args ...any) (*sql.Rows, error)
}

// session is one connection of a committer with its prepared statements. Only
// its committer uses it.
type session struct {
	conn  *sql.Conn
	stmts map[string]*sql.Stmt
}

func newSession(ctx context.Context, db *sql.DB) (*session, error) {
	conn, err := db.Conn(ctx)
	if err != nil {
		return nil, err
	}
	return &session{conn: conn, stmts: make(map[string]*sql.Stmt)}, nil
}

func (c *session) stmt(q string) (*sql.Stmt, error) {
	if st, ok := c.stmts[q]; ok {
		return st, nil
	}
	st, err := c.conn.PrepareContext(context.Background(), q)
	if err != nil {
		return nil, err
	}
	c.stmts[q] = st
	return st, nil
}

// command runs one that has no parameters (BEGIN, SAVEPOINT…).
func (c *session) command(q string) error {
	st, err := c.stmt(q)
	if err != nil {
		return err
	}
	_, err = st.Exec()
	return err
}

func (c *session) close() {
	for _, st := range c.stmts {
		st.Close()
	}
	c.conn.Close()
}

// discard closes the connection and keeps the pool from using it again.
func (c *session) discard() {
	c.conn.Raw(func(any) error { return driver.ErrBadConn })
	c.close()
}

// Tx is a transaction; valid only within the function it was given to, and
// for one goroutine.
type Tx struct {
	s      *Store
	c      *session
	locked bool  // the rules of the queue are this transaction's alone
	err    error // the first error of the database since the last savepoint
	ready  bool  // something made a job or a runner ready
	jobs   set   // changed
	logs   set   // grown
	news   set   // what other servers are told besides
	ended  []wire.Job
}

// exec runs a statement and returns how many rows it changed.
func (tx *Tx) exec(q string, args ...any) (int64, error) {
	st, err := tx.c.stmt(q)
	if err != nil {
		return 0, tx.failed(err)
	}
	clean(args)
	res, err := st.Exec(args...)
	if err != nil {
		return 0, tx.failed(err)
	}
	n, err := res.RowsAffected()
	if err != nil {
		return 0, tx.failed(err)
	}
	return n, nil
}

func (tx *Tx) query(q string, args ...any) (*sql.Rows, error) {
	st, err := tx.c.stmt(q)
	if err != nil {
		return nil, tx.failed(err)
	}
	clean(args)
	rows, err := st.Query(args...)
	if err != nil {
		return nil, tx.failed(err)
	}
	return rows, nil
}

// failed remembers that the database refused a statement: whatever the
// caller makes of it, the savepoint cannot be kept.
func (tx *Tx) failed(err error) error {
	if tx.err == nil {
		tx.err = err
	}
	return err
}

// lockRules is called before anything is read that decides about the queue.
func (tx *Tx) lockRules() error {
	if tx.locked {
		return nil
	}
	if q := tx.s.engine.lockRules(); q != "" {
		if err := tx.c.command(q); err != nil {
			return fmt.Errorf("lock the queue: %w", tx.failed(err))
		}
	}
	tx.locked = true
	return nil
}

// reader is the pool of readers for one call.
type reader struct {
	s   *Store
	ctx context.Context
}

func (s *Store) read(ctx context.Context) reader { return reader{s, ctx} }

func (r reader) query(q string, args ...any) (*sql.Rows, error) {
	if err := r.s.deadErr(); err != nil {
		return nil, err
	}
	v, ok := r.s.reads.Load(q)
	if !ok {
		st, err := r.s.reader.PrepareContext(r.ctx, q)
		if err != nil {
			return nil, r.s.refused(err)
		}
		var raced bool
		if v, raced = r.s.reads.LoadOrStore(q, st); raced {
			st.Close()
		}
	}
	clean(args)
	rows, err := v.(*sql.Stmt).QueryContext(r.ctx, args...)
	if err != nil {
		return nil, r.s.refused(err)
	}
	return rows, nil
}

// refused is what a reader is told of an error: what passes is Unavailable.
func (s *Store) refused(err error) error {
	switch v := s.engine.judge(err); v {
	case reconnect, busy, repeat:
		return s.refusal(v, err)
	}
	return err
}

var errNoRow = errors.New("no row")

// one reads a single row, or errNoRow.
func one(q querier, text string, args []any, dest ...any) error {
	rows, err := q.query(text, args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	if !rows.Next() {
		if err := rows.Err(); err != nil {
			return failedRows(q, err)
		}
		return errNoRow
	}
	if err := rows.Scan(dest...); err != nil {
		return err
	}
	return failedRows(q, rows.Close())
}

// each calls f for every row.
func each(q querier, text string, args []any, f func(rows *sql.Rows) error) error {
	rows, err := q.query(text, args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		if err := f(rows); err != nil {
			return err
		}
	}
	return failedRows(q, rows.Err())
}

// failedRows remembers an error that came while rows were read.
func failedRows(q querier, err error) error {
	if err == nil {
		return nil
	}
	switch q := q.(type) {
	case *Tx:
		return q.failed(err)
	case reader:
		return q.s.refused(err)
	}
	return err
}

// strs reads a column of text.
func strs(q querier, text string, args ...any) ([]string, error) {
	var out []string
	err := each(q, text, args, func(rows *sql.Rows) error {
		var s string
		if err := rows.Scan(&s); err != nil {
			return err
		}
		out = append(out, s)
		return nil
	})
	return out, err
}

// clean makes text storable on both engines: valid UTF-8 without NUL.
func clean(args []any) {
	for i, a := range args {
		s, ok := a.(string)
		if !ok || utf8.ValidString(s) && strings.IndexByte(s, 0) < 0 {
			continue
		}
		args[i] = strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\x00", "\uFFFD")
	}
}

// set keeps strings in the order in which they first came.
type set struct {
	list []string
	has  map[string]bool
}

func (s *set) add(v string) {
	if len(s.list) > 0 && s.list[len(s.list)-1] == v || s.has[v] {
		return
	}
	if s.has == nil {
		s.has = make(map[string]bool)
	}
	s.has[v] = true
	s.list = append(s.list, v)
}

func notFound(what, id string) error {
	return wire.Errorf(wire.NotFound, "%s %q not found", what, id)
}
