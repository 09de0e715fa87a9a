// Package store is the durable state and job output: one schema and one set
// of queries for SQLite and PostgreSQL, one group-committing writer.
//
// # Guarantees
//
// What Update has acknowledged survives a kill and a power cut. Every caller
// has a savepoint of its own within a shared transaction: it gets all of its
// changes or none, and nobody else's failure. A full disk is not fatal: what
// finds no room is rolled back and refused with Unavailable, and the store
// goes on when there is room again. New work is refused before that, so that
// what is under way has a reserve. Anything else that puts the disk in doubt
// is fatal: Config.Fatal is called once and the store does nothing more.
//
// # One writer
//
//	Update ─┐                ┌ savepoint, f, release (or roll back)   for each caller
//	Update ─┼─▶ committer ─▶ ┤ savepoint, Config.Match                if something is ready
//	Update ─┘   ≤ 256 a time └ COMMIT ─▶ done(true) ─▶ Changed ─▶ answers
//
// There is no timer: a lone caller pays for one sync, and under load a batch
// is whatever has gathered during the one before. SQLite has one committer.
// PostgreSQL has a few, so that output does not wait for the queue's rules; but
// whatever touches a job's place in the queue first takes one lock that all
// servers of a database share, so the rules see one transaction after
// another on both engines. Match runs one at a time.
//
// # What blocks a job is a column
//
// Package queue says what a job's blocked column must be. Each change
// updates the columns of those it touches: the end of a job those of its
// dependents, of the next one of its serial key and of the one waiting for its
// singleton. So ready jobs are in one index, and handing one out never walks
// over those that cannot run.
//
// # Several servers
//
// Over PostgreSQL each transaction tells the other servers, in one notice with
// its commit, what it has changed (notice.go), as far as there are others. Who
// keeps an active job is a column of it (server.go). A server that is stopped in
// a transaction would keep the lock of the rules: the database ends such a
// transaction after 5 s.
//
// # SQL
//
// TEXT, BIGINT and BYTEA only; placeholders $1… in the order of their first
// appearance; conditions of partial indexes are written literally. The two
// engines differ in sqlite.go and postgres.go.
package store

import (
	"context"
	"crypto/rand"
	"database/sql"
	"fmt"
	"log/slog"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/waypointd/waypoint/mux/wire"
)

// Config of a Store.
type Config struct {
	Logger   *slog.Logger // nil discards
	Software string       // "waypoint 0.1.0"; said by what is kept before a migration

	// Match, if set, is called by the committer at the end of each batch in
	// which something made a job or a runner ready (or Kick was called), in
	// the batch's transaction. What it returns is called once the batch has
	// been committed (true) or rolled back (false); an error undoes what it
	// did, and nothing else. It may be called again for the same batch (a
	// repeated transaction). Calls never overlap, and the next one comes after
	// done.
	Match func(tx *Tx) (done func(committed bool), err error)

	// Changed is called after each commit with what it changed, by the
	// committer: it must not block. Calls never overlap.
	Changed func(Changes)

	// Room is called when Full or Reserved has changed. It must not block.
	Room func()

	Reserve int64                // see SetReserve
	Free    func() (Room, error) // tells the room of the store's file system; nil asks the system, if it is SQLite's

	// Fatal is called (once) when the store can no longer be trusted: an I/O
	// error, an unknown outcome of a commit. A full disk is not fatal.
	Fatal func(error)

	// Counted, if set, is called after each commit with how many callers shared
	// it and what it took from its begin on. It must not block; several
	// committers may call it at once.
	Counted func(callers int, took time.Duration)

	Now    func() time.Time // the host's clock; nil is time.Now
	Faults *Faults          // of a simulation; else nil
}

// Faults are what a simulation does to a store.
type Faults struct {
	Gather func()                  // returns when all who will share the next transaction wait for it
	Begin  func(callers int) error // is called before each; an error: there is no room for it
	Commit func() error            // is called before it is committed, where it is not nil; an error: nobody knows whether it was
}

// Changes is what one commit changed.
type Changes struct {
	Jobs  []string   // whose record changed
	Logs  []string   // whose output grew
	Ended []wire.Job // those of Jobs that ended, as they are now for good; empty where another server of the database ended them
}

// Store is an open store. Its methods may be called by any goroutine.
type Store struct {
	cfg      Config
	engine   engine
	ids      idSource
	auditIDs idSource
	instance string // of a shared store; else ""
	announce atomic.Bool

	writer *sql.DB // the committers' connections
	reader *sql.DB
	reads  sync.Map // query -> *sql.Stmt on reader

	ops  chan *op      // callers to committers, never closed
	kick chan struct{} // room for one
	quit chan struct{} // closed by Close
	wg   sync.WaitGroup

	closing sync.Once
	matchMu sync.Mutex // held from Match to its done
	tellMu  sync.Mutex // held around Changed

	dead     atomic.Pointer[error] // set once, when the store is no longer trusted
	deadOnce sync.Once

	began   time.Time // its clock's zero
	reserve reserve
	fullAt  atomic.Pointer[time.Time] // when there was no room last, by the clock that nobody sets; nil: it has been said that there is some
}

// engine is what differs between the databases.
type engine interface {
	describe() string
	size(ctx context.Context, read *sql.DB) (bytes int64, err error)
	open(ctx context.Context) (writer, reader *sql.DB, err error)
	committers() int
	begin() string
	// lockRules makes the transaction the only one that changes the queue.
	lockRules() string
	lockMigrations() string
	// listen calls f for each notice of another connection until ctx ends, or an
	// error: ready is called before the first, when none can be missed any more.
	listen(ctx context.Context, ready func(), f func(text string)) error
	// judge says what an error of the database means.
	judge(err error) verdict
	// vacuum gives a bounded amount of free space back and reports whether
	// there is more.
	vacuum(ctx context.Context, c *session) (more bool, err error)
}

// verdict is what a database's error means for a batch.
type verdict int

const (
	callersOwn verdict = iota // a mistake of one statement
	repeat                    // rolled back because of others: do it again
	reconnect                 // the connection is gone: do it again on another
	noSpace                   // no room now
	busy                      // not now
	fatal                     // the store cannot be trusted any more
)

// Open opens or makes the store at dsn: a file path (SQLite) or postgres://….
// The schema is brought up to date; one of a newer release is refused.
func Open(ctx context.Context, dsn string, cfg Config) (*Store, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	s := &Store{
		cfg:  cfg,
		ops:  make(chan *op),
		kick: make(chan struct{}, 1),
		quit: make(chan struct{}),

		began: time.Now(),
	}
	var err error
	if s.engine, err = newEngine(dsn); err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	if _, shared := s.engine.(*postgres); shared {
		s.instance = rand.Text()
	}
	if err := s.open(ctx); err != nil {
		return nil, fmt.Errorf("open store %s: %w", s.engine.describe(), err)
	}
	if e, ok := s.engine.(*sqlite); ok && s.cfg.Free == nil && s.cfg.Faults == nil {
		s.cfg.Free = func() (Room, error) { return fileSystem(filepath.Dir(e.path)) }
	}
	s.SetReserve(cfg.Reserve)
	return s, nil
}

func newEngine(dsn string) (engine, error) {
	if strings.HasPrefix(dsn, "postgres://") || strings.HasPrefix(dsn, "postgresql://") {
		return newPostgres(dsn)
	}
	if scheme, _, ok := strings.Cut(dsn, "://"); ok {
		return nil, wire.Errorf(wire.BadUsage, "there is no store of the kind %q", scheme).
			WithHint("name a file, or a database as postgres://user@host/name")
	}
	if connectionWords.MatchString(dsn) {
		// It is not repeated: a password may be among them.
		return nil, wire.Errorf(wire.BadUsage, "the store is named by keywords and values, not as a URL").
			WithHint("name a file, or a database as postgres://user@host/name")
	}
	return &sqlite{path: dsn}, nil
}

// connectionWords begin an address as PostgreSQL's own programs also take it. It would
// be a file's name here, which log and status tell, with the password that may be in it.
var connectionWords = regexp.MustCompile(`(^|\s)(host|hostaddr|port|dbname|user|password|passfile|service|sslmode|sslpassword)\s*=`)

func (s *Store) open(ctx context.Context) error {
	var err error
	if s.writer, s.reader, err = s.engine.open(ctx); err != nil {
		return err
	}
	if err := s.migrate(ctx); err != nil {
		s.closePools()
		return err
	}
	// Ids must not run backwards when the clock was set back while the store
	// was closed.
	var last sql.NullString
	if err := s.reader.QueryRowContext(ctx, `SELECT MAX(id) FROM jobs`).Scan(&last); err != nil {
		s.closePools()
		return fmt.Errorf("read newest job: %w", err)
	}
	s.ids.startAfter(last.String)
	if err := s.reader.QueryRowContext(ctx, `SELECT MAX(id) FROM audit`).Scan(&last); err != nil {
		s.closePools()
		return fmt.Errorf("read newest audit entry: %w", err)
	}
	s.auditIDs.startAfter(last.String)
	for range s.engine.committers() {
		c := &committer{s: s}
		s.wg.Go(c.run)
	}
	return nil
}

// Close ends the committers when they have answered those they had taken on,
// and closes the database. Later calls of Update fail with Unavailable.
func (s *Store) Close() error {
	var err error
	s.closing.Do(func() {
		close(s.quit)
		s.reserve.looking.Lock() // a look that has begun ends
		//lint:ignore SA2001 and none begins, as quit is closed
		s.reserve.looking.Unlock()
		s.wg.Wait()
		err = s.closePools()
	})
	if err != nil {
		return fmt.Errorf("close store: %w", err)
	}
	return nil
}

func (s *Store) closePools() error {
	s.reads.Range(func(_, v any) bool {
		v.(*sql.Stmt).Close()
		return true
	})
	err := s.reader.Close()
	if werr := s.writer.Close(); werr != nil {
		err = werr
	}
	return err
}

// Shared reports whether several servers may use the store at once.
func (s *Store) Shared() bool {
	return s.instance != ""
}

// Describe names engine and place, never a password: "sqlite /var/lib/waypoint/waypoint.db".
func (s *Store) Describe() string { return s.engine.describe() }

// Size is what the store takes, in bytes: its files, or its database.
func (s *Store) Size(ctx context.Context) (int64, error) {
	n, err := s.engine.size(ctx, s.reader)
	if err != nil {
		return 0, fmt.Errorf("size of the store: %w", s.refused(err))
	}
	return n, nil
}

// Matched returns when done has been called for every assignment that a
// transaction of the caller's can have seen. Where there are several committers
// that may be later than another one's commit.
func (s *Store) Matched() {
	s.matchMu.Lock()
	defer s.matchMu.Unlock()
}

// Kick asks for Match although nothing was written: a runner has become free.
func (s *Store) Kick() {
	select {
	case s.kick <- struct{}{}:
	default: // one is enough
	}
}
