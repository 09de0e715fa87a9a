package store

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
)

// postgres is the engine that several servers can share.
type postgres struct {
	config *pgx.ConnConfig
}

func newPostgres(dsn string) (*postgres, error) {
	config, err := pgx.ParseConfig(dsn)
	if err != nil {
		// The parser's error repeats the address, at times with its password.
		return nil, errors.New("parse the database's address: it is not a valid postgres:// URL")
	}
	if config.RuntimeParams["application_name"] == "" {
		config.RuntimeParams["application_name"] = "waypoint"
	}
	return &postgres{config: config}, nil
}

func (e *postgres) describe() string {
	return fmt.Sprintf("postgres %s:%d/%s", e.config.Host, e.config.Port, e.config.Database)
}

func (e *postgres) size(ctx context.Context, read *sql.DB) (bytes int64, err error) {
	err = read.QueryRowContext(ctx, "SELECT pg_database_size(current_database())").Scan(&bytes)
	return bytes, err
}

func (e *postgres) committers() int { return 3 }

// Each statement sees what others have committed before it; whatever needs
// more takes the lock of the rules first.
func (e *postgres) begin() string { return "BEGIN ISOLATION LEVEL READ COMMITTED" }

// The locks' numbers are "wp" and a count; they end with the transaction.
func (e *postgres) lockRules() string      { return "SELECT pg_advisory_xact_lock(30576, 1)" }
func (e *postgres) lockMigrations() string { return "SELECT pg_advisory_xact_lock(30576, 2)" }

// lockPresence reports whether no server is connected, and then none can be
// until the transaction ends: each connection of a server's shares that lock.
func (e *postgres) lockPresence() string { return "SELECT pg_try_advisory_xact_lock(30576, 3)" }

const (
	bePresent = "SELECT pg_advisory_lock_shared(30576, 3)"

	whoIsPresent = `SELECT DISTINCT COALESCE(host(a.client_addr), 'a local socket') FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
		WHERE l.locktype = 'advisory' AND l.classid = 30576 AND l.objid = 3 AND l.granted
		AND l.pid <> pg_backend_pid() AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()) ORDER BY 1`
)

func (e *postgres) open(ctx context.Context) (writer, reader *sql.DB, err error) {
	present := func(more string) stdlib.OptionOpenDB {
		return stdlib.OptionAfterConnect(func(ctx context.Context, c *pgx.Conn) error {
			_, err := c.Exec(ctx, bePresent+more)
			return err
		})
	}
	writer = stdlib.OpenDB(*e.config, present("; "+limitIdle))
	writer.SetMaxOpenConns(e.committers() + 1) // one more for the migrations
	writer.SetMaxIdleConns(e.committers())
	reader = stdlib.OpenDB(*e.config, present(""))
	reader.SetMaxOpenConns(8)
	reader.SetMaxIdleConns(4)
	if err := reader.PingContext(ctx); err != nil {
		writer.Close()
		reader.Close()
		return nil, nil, err
	}
	return writer, reader, nil
}

// limitIdle ends the transaction of a server that is stopped, or cut off, in the
// middle of it: it may have the lock that all others wait for.
const limitIdle = "SET idle_in_transaction_session_timeout = '5s'"

// channel is what servers of one database tell each other by.
const channel = "waypoint"

// A listener that has heard nothing for listenQuiet asks whether the database is
// still there, and gives it up after listenAnswer.
const (
	listenQuiet  = 20 * time.Second
	listenAnswer = 5 * time.Second
)

func (e *postgres) listen(ctx context.Context, ready func(), f func(text string)) error {
	c, err := pgx.ConnectConfig(ctx, e.config.Copy())
	if err != nil {
		return err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		c.Close(ctx)
	}()
	if _, err := c.Exec(ctx, "LISTEN "+channel); err != nil {
		return err
	}
	ready()
	for {
		quiet, cancel := context.WithTimeout(ctx, listenQuiet)
		n, err := c.WaitForNotification(quiet)
		cancel()
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err == nil:
			f(n.Payload)
		case quiet.Err() != nil && !c.IsClosed():
			asked, cancel := context.WithTimeout(ctx, listenAnswer)
			err := c.Ping(asked)
			cancel()
			if err != nil {
				return err
			}
		default:
			return err
		}
	}
}

func (e *postgres) judge(err error) verdict {
	if perr, ok := errors.AsType[*pgconn.PgError](err); ok {
		switch perr.Code {
		case "53100": // disk_full
			return noSpace
		case "40001", "40P01": // serialization_failure, deadlock_detected
			return repeat
		case "57P01", "57P02", "57P03", // the database goes down or comes up
			"25P03": // idle_in_transaction_session_timeout: this process was stopped
			return reconnect
		case "58030", "XX001", "XX002": // io_error, data_corrupted, index_corrupted
			return fatal
		case "25006": // read_only_sql_transaction: a standby
			return busy
		}
		switch {
		case strings.HasPrefix(perr.Code, "08"): // connection_exception
			return reconnect
		case strings.HasPrefix(perr.Code, "53"): // insufficient_resources
			return busy
		}
		return callersOwn
	}
	if _, ok := errors.AsType[net.Error](err); ok {
		return reconnect
	}
	if _, ok := errors.AsType[*pgconn.ConnectError](err); ok {
		return reconnect
	}
	if errors.Is(err, driver.ErrBadConn) || errors.Is(err, sql.ErrConnDone) || errors.Is(err, io.EOF) ||
		errors.Is(err, io.ErrUnexpectedEOF) || pgconn.SafeToRetry(err) {
		return reconnect
	}
	return callersOwn
}

// vacuum is the database's own business.
func (e *postgres) vacuum(context.Context, *session) (bool, error) { return false, nil }
