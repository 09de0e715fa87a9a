package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/waypointd/waypoint/mux/wire"
	"github.com/waypointd/waypoint/statedir"
)

// beside are what SQLite keeps beside a file and would take for a new file's own.
var beside = []string{"-wal", "-journal"}

const beforeRestore = ".before-restore-"

// Restoring ends the name of the file that a restore copies a snapshot to, where
// that is not in the state directory, whose own rules keep it clean.
const Restoring = ".restoring"

// Replace puts a checked file in the place of the store at path, which nobody
// has open, and keeps the one before, whose name it returns ("" where there is
// none); both are in one directory. A crash leaves the one or the other: what was
// under way is undone by the next Open or Replace, and so it is after an error.
func Replace(ctx context.Context, path, by string, now time.Time) (kept string, err error) {
	r := replacement{path: path, by: by, kept: path + beforeRestore + now.UTC().Format("20060102T150405.000000Z")}
	if err := r.prepare(ctx); err != nil {
		return "", err
	}
	for _, step := range r.steps() {
		if err := step(); err != nil {
			return "", errors.Join(err, (&sqlite{path: path}).settle())
		}
	}
	return r.kept, nil
}

// replacement is one that is under way.
type replacement struct {
	path, by string
	kept     string // "" where there is nothing to keep
}

// prepare has all of the store before in its file, where it can be read.
func (r *replacement) prepare(ctx context.Context) error {
	if err := (&sqlite{path: r.path}).settle(); err != nil {
		return err
	}
	if _, err := os.Lstat(r.path); errors.Is(err, fs.ErrNotExist) {
		r.kept = ""
		return nil
	} else if err != nil {
		return err
	}
	return fold(ctx, r.path)
}

// steps are what is done one after the other. As long as the kept name is of
// the same file as the store's, the store is the one before (settle).
func (r *replacement) steps() []func() error {
	there := func(err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	sync := func() error { return statedir.SyncDir(filepath.Dir(r.path)) }
	var steps []func() error
	if r.kept != "" {
		steps = append(steps, func() error { return os.Link(r.path, r.kept) }, sync)
	}
	for _, suffix := range beside {
		// There is something only where the store could not be opened; it goes with it.
		steps = append(steps, func() error {
			if r.kept == "" {
				return there(os.Remove(r.path + suffix))
			}
			return there(os.Rename(r.path+suffix, r.kept+suffix))
		})
	}
	return append(steps,
		func() error { return there(os.Remove(r.path + "-shm")) },
		sync, // the new file never meets the old one's log
		func() error { return os.Rename(r.by, r.path) },
		sync)
}

// settle undoes a replacement that was cut off before the new file was in place.
func (e *sqlite) settle() error {
	now, err := os.Lstat(e.path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, kept := range e.besides(beforeRestore) {
		fi, err := os.Lstat(kept)
		if err != nil || now == nil || !os.SameFile(fi, now) {
			continue
		}
		for _, suffix := range beside {
			if err := os.Rename(kept+suffix, e.path+suffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
		if err := os.Remove(kept); err != nil {
			return err
		}
	}
	return nil
}

// fold brings what is in the log of a store into its file, so that the file is
// the whole of it. A store that cannot be read is left as it is, with its log;
// one that somebody has open is a Conflict.
func fold(ctx context.Context, path string) error {
	db, err := openFile(path, url.Values{"mode": {"rw"}, "_pragma": {"synchronous(FULL)"}})
	if err != nil {
		return err
	}
	defer db.Close()
	var locked, pages, moved int
	err = db.QueryRowContext(ctx, "PRAGMA wal_checkpoint(TRUNCATE)").Scan(&locked, &pages, &moved)
	if cerr := db.Close(); err == nil {
		err = cerr
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	refused := (&sqlite{path: path}).judge(err)
	switch {
	case locked != 0, refused == busy:
		return wire.Errorf(wire.Conflict, "another program has the store %s open", path).WithHint("end it first")
	case refused == noSpace:
		return wire.Errorf(wire.Unavailable, "no space left beside the store %s", path).WithHint("make room")
	}
	return nil
}

// sweep removes what a migration or a restore that was killed has left.
func (e *sqlite) sweep() {
	for _, name := range append(e.besides(beforeSchema), e.besides(Restoring)...) {
		if strings.Contains(name, unfinished) || name == e.path+Restoring {
			os.Remove(name) // else it is only in the way of room
		}
	}
}

// IsDatabase reports whether dsn names a database and not a file.
func IsDatabase(dsn string) bool { return strings.Contains(dsn, "://") }

// RestoreDatabase puts what is in a checked SQLite file in the place of the store in
// a PostgreSQL database, in one transaction. The tables before go to a schema of
// their own, whose name it returns ("" where there were none). A database that
// servers are connected to, or whose tables are somebody else's, is a Conflict.
// It returns what Describe says of the store as well.
func RestoreDatabase(ctx context.Context, dsn, path string, now time.Time) (described, kept string, err error) {
	e, err := newEngine(dsn)
	if err != nil {
		return "", "", err
	}
	pg, ok := e.(*postgres)
	if !ok {
		return "", "", wire.Errorf(wire.Internal, "%s is no database", dsn)
	}
	kept, err = pg.restore(ctx, path, "waypoint_before_restore_"+now.UTC().Format("20060102t150405"))
	if err == nil {
		return pg.describe(), kept, nil
	}
	if ctx.Err() != nil {
		return "", "", context.Cause(ctx)
	}
	switch pg.judge(err) {
	case noSpace:
		err = wire.Errorf(wire.Unavailable, "no space left in the database (%s); the store there is as it was", pg.describe()).WithHint("make room")
	case reconnect:
		err = wire.Errorf(wire.Unavailable, "database is out of reach: %v", err).WithHint("see that it runs, then do it again; the store there is the one before or the new one, whole")
	case busy:
		err = wire.Errorf(wire.Unavailable, "database refuses it now: %v", err)
	}
	if perr, ok := errors.AsType[*pgconn.PgError](err); ok && perr.Code == "42501" { // insufficient_privilege
		err = wire.Errorf(wire.Denied, "the database does not let its user %s do that: %s", pg.config.User, perr.Message).
			WithHint("let that user own its tables and make schemas: GRANT CREATE ON DATABASE %s TO %s", pg.config.Database, pg.config.User)
	}
	return "", "", fmt.Errorf("restore into %s: %w", pg.describe(), err)
}

func (e *postgres) restore(ctx context.Context, path, keptSchema string) (kept string, err error) {
	from, err := openFile(path, url.Values{"mode": {"ro"}, "immutable": {"1"}})
	if err != nil {
		return "", err
	}
	defer from.Close()
	applied, err := readApplied(ctx, from)
	if err != nil {
		return "", err
	}
	list, err := readMigrations(migrations)
	if err != nil {
		return "", err
	}
	list = slices.DeleteFunc(list, func(m migration) bool { return applied[m.name] == "" })
	tables, err := tablesOf(ctx, from)
	if err != nil {
		return "", err
	}

	db := stdlib.OpenDB(*e.config)
	defer db.Close()
	conn, err := db.Conn(ctx)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if _, err := conn.ExecContext(ctx, e.begin()); err != nil {
		return "", err
	}
	committed := false
	defer func() {
		if !committed {
			conn.ExecContext(context.WithoutCancel(ctx), "ROLLBACK")
		}
	}()
	if err := e.alone(ctx, conn); err != nil {
		return "", err
	}
	if _, err := conn.ExecContext(ctx, e.lockMigrations()); err != nil {
		return "", err
	}
	before, err := theirs(ctx, conn, tables)
	if err != nil {
		return "", err
	}
	if len(before) > 0 {
		kept = keptSchema
		if _, err := conn.ExecContext(ctx, "CREATE SCHEMA "+kept); err != nil {
			return "", err
		}
		for _, table := range before {
			if _, err := conn.ExecContext(ctx, "ALTER TABLE "+pgx.Identifier{table}.Sanitize()+" SET SCHEMA "+kept); err != nil {
				return "", err
			}
		}
	}
	if err := makeTables(ctx, conn, list); err != nil {
		return "", err
	}
	for _, table := range tables {
		if err := fillTable(ctx, conn, from, table); err != nil {
			return "", fmt.Errorf("fill table %s: %w", table, err)
		}
		if _, err := conn.ExecContext(ctx, "ANALYZE "+table); err != nil {
			return "", err
		}
	}
	if _, err := conn.ExecContext(ctx, "COMMIT"); err != nil {
		return "", err
	}
	committed = true
	return kept, nil
}

// leaveTime is how long the database may take to notice that a server has gone.
const leaveTime = 5 * time.Second

// alone is a Conflict while a server is connected; no other one gets in until
// the transaction ends.
func (e *postgres) alone(ctx context.Context, conn *sql.Conn) error {
	for deadline := time.Now().Add(leaveTime); ; {
		var got bool
		if err := conn.QueryRowContext(ctx, e.lockPresence()).Scan(&got); err != nil || got {
			return err
		}
		rows, err := conn.QueryContext(ctx, whoIsPresent)
		if err != nil {
			return err
		}
		who, err := texts(rows)
		if err != nil {
			return err
		}
		if len(who) > 0 && time.Now().After(deadline) {
			return wire.Errorf(wire.Conflict, "servers are connected to it (from %s)", strings.Join(who, ", ")).
				WithHint("stop all servers of this database first; under systemd: systemctl stop waypoint-server.socket")
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(100 * time.Millisecond): // waiting in the lock's queue would hold up the servers
		}
	}
}

// theirs are the tables of the store before that have to make room, none
// where there is no store.
func theirs(ctx context.Context, conn *sql.Conn, tables []string) ([]string, error) {
	var schema string
	if err := conn.QueryRowContext(ctx, "SELECT COALESCE(current_schema(), '')").Scan(&schema); err != nil {
		return nil, err
	}
	if schema == "" {
		return nil, wire.Errorf(wire.BadUsage, "the database has no schema for its tables").WithHint("make the one that search_path names")
	}
	rows, err := conn.QueryContext(ctx, "SELECT tablename FROM pg_tables WHERE schemaname = current_schema() ORDER BY tablename")
	if err != nil {
		return nil, err
	}
	all, err := texts(rows)
	if err != nil {
		return nil, err
	}
	whole, err := readMigrations(migrations)
	if err != nil {
		return nil, err
	}
	known, err := tablesMade(ctx, whole)
	if err != nil {
		return nil, err
	}
	var ours []string
	for _, table := range all {
		if slices.Contains(tables, table) || slices.Contains(known, table) {
			ours = append(ours, table)
		}
	}
	if len(ours) == 0 {
		return nil, nil
	}
	const isOurs = "SELECT COUNT(*) FROM pg_attribute WHERE attrelid = to_regclass(quote_ident(current_schema()) || '.migrations') AND attname IN ('name', 'sum', 'applied_at')"
	var columns int
	if err := conn.QueryRowContext(ctx, isOurs).Scan(&columns); err != nil {
		return nil, err
	}
	if columns != 3 {
		return nil, wire.Errorf(wire.Conflict, "its schema %s has tables that are not of a waypoint store: %s", schema, strings.Join(ours, ", ")).
			WithHint("name an empty database, or another schema with ?search_path=NAME")
	}
	applied, err := readApplied(ctx, conn)
	if err != nil {
		return nil, err
	}
	if newestOf(applied) > schemaOf(whole[len(whole)-1].name) {
		return all, nil // a newer release's may have names that this one does not know
	}
	return ours, nil
}

// tablesMade are those that migrations make.
func tablesMade(ctx context.Context, list []migration) ([]string, error) {
	db, err := sql.Open("sqlite", ":memory:")
	if err != nil {
		return nil, err
	}
	defer db.Close()
	db.SetMaxOpenConns(1) // the database is the connection's
	if err := makeTables(ctx, db, list); err != nil {
		return nil, err
	}
	return tablesOf(ctx, db)
}

// fillTable copies the rows of a SQLite table into an empty one of PostgreSQL.
func fillTable(ctx context.Context, to *sql.Conn, from *sql.DB, table string) error {
	// SQLite knows no difference between no bytes and none.
	rows, err := to.QueryContext(ctx, "SELECT column_name FROM information_schema.columns WHERE table_schema = current_schema() AND table_name = $1 AND data_type = 'bytea'", table)
	if err != nil {
		return err
	}
	bytes, err := texts(rows)
	if err != nil {
		return err
	}
	if rows, err = from.QueryContext(ctx, "SELECT * FROM "+table); err != nil {
		return err
	}
	defer rows.Close()
	columns, err := rows.Columns()
	if err != nil {
		return err
	}
	source := &rowSource{rows: rows, values: make([]any, len(columns)), into: make([]any, len(columns)), bytes: make([]bool, len(columns))}
	for i, column := range columns {
		source.into[i], source.bytes[i] = &source.values[i], slices.Contains(bytes, column)
	}
	return to.Raw(func(c any) error {
		_, err := c.(*stdlib.Conn).Conn().CopyFrom(ctx, pgx.Identifier{table}, columns, source)
		return err
	})
}

// rowSource hands the rows of a query to PostgreSQL one after the other.
type rowSource struct {
	rows   *sql.Rows
	values []any
	into   []any  // pointers to values
	bytes  []bool // which are BYTEA
}

func (r *rowSource) Next() bool { return r.rows.Next() }
func (r *rowSource) Err() error { return r.rows.Err() }

func (r *rowSource) Values() ([]any, error) {
	if err := r.rows.Scan(r.into...); err != nil {
		return nil, err
	}
	for i, v := range r.values {
		switch v := v.(type) {
		case nil:
			if r.bytes[i] {
				r.values[i] = []byte{}
			}
		case []byte:
			if v == nil {
				r.values[i] = []byte{}
			}
		case string:
			// As what comes from the wire: PostgreSQL has no such texts.
			text := []any{v}
			clean(text)
			r.values[i] = text[0]
		}
	}
	return r.values, nil
}
