package store

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"embed"
	"encoding/hex"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/waypointd/waypoint/mux/wire"
)

//go:embed migrations/*.sql
var migrations embed.FS

const createMigrations = `CREATE TABLE IF NOT EXISTS migrations (
	name TEXT PRIMARY KEY, sum TEXT NOT NULL, applied_at BIGINT NOT NULL)`

// migration is one numbered file of the schema's.
type migration struct {
	name string // migrations/0001_initial.sql
	text string
	sum  string // SHA-256 of text, in hexadecimal digits
}

func readMigrations(files fs.FS) ([]migration, error) {
	names, err := migrationNames(files)
	if err != nil {
		return nil, err
	}
	list := make([]migration, len(names))
	for i, name := range names {
		text, err := fs.ReadFile(files, name)
		if err != nil {
			return nil, fmt.Errorf("read migration %s: %w", name, err)
		}
		hash := sha256.Sum256(text)
		list[i] = migration{name, string(text), hex.EncodeToString(hash[:])}
	}
	return list, nil
}

// migrate brings the schema up to date: numbered files, forward only, all
// that are missing in one transaction, which a crash or a full disk undoes as a
// whole. What was applied is recorded with its checksum. A SQLite store that
// holds something is copied first (see keep).
func (s *Store) migrate(ctx context.Context) error { return s.migrateFrom(ctx, migrations) }

func (s *Store) migrateFrom(ctx context.Context, files fs.FS) error {
	list, err := readMigrations(files)
	if err != nil {
		return err
	}
	if e, ok := s.engine.(*sqlite); ok {
		if err := s.keep(ctx, e, list); err != nil {
			return err
		}
	}
	from, err := s.apply(ctx, list)
	if err != nil {
		if s.engine.judge(err) == noSpace {
			return wire.Errorf(wire.Unavailable, "no space left to bring the store up to date; it is as it was").WithHint("make room on its file system")
		}
		return err
	}
	to := schemaOf(list[len(list)-1].name)
	if from == 0 || from == to {
		return nil
	}
	s.cfg.Logger.Info("store brought up to date", "store", s.engine.describe(), "from_schema", from, "to_schema", to)
	if e, ok := s.engine.(*sqlite); ok {
		e.forget(to)
	}
	return nil
}

// apply returns the version that the schema had, 0 where there was none.
func (s *Store) apply(ctx context.Context, list []migration) (from int, err error) {
	conn, err := s.writer.Conn(ctx)
	if err != nil {
		return 0, fmt.Errorf("migrate: %w", err)
	}
	defer conn.Close()
	if _, err := conn.ExecContext(ctx, s.engine.begin()); err != nil {
		return 0, fmt.Errorf("migrate: %w", err)
	}
	committed := false
	defer func() {
		if !committed {
			conn.ExecContext(context.WithoutCancel(ctx), "ROLLBACK")
		}
	}()
	if q := s.engine.lockMigrations(); q != "" {
		if _, err := conn.ExecContext(ctx, q); err != nil {
			return 0, fmt.Errorf("lock migrations: %w", err)
		}
	}
	if _, err := conn.ExecContext(ctx, createMigrations); err != nil {
		return 0, fmt.Errorf("migrate: %w", err)
	}
	applied, err := readApplied(ctx, conn)
	if err != nil {
		return 0, fmt.Errorf("read migrations: %w", err)
	}
	if err := known(list, applied); err != nil {
		return 0, err
	}
	for _, m := range list {
		if _, ok := applied[m.name]; ok {
			continue
		}
		if _, err := conn.ExecContext(ctx, m.text); err != nil {
			return 0, fmt.Errorf("apply migration %s: %w", m.name, err)
		}
		if _, err := conn.ExecContext(ctx, recordMigration, m.name, m.sum, time.Now().UnixMicro()); err != nil {
			return 0, fmt.Errorf("record migration %s: %w", m.name, err)
		}
	}
	if _, err := conn.ExecContext(ctx, "COMMIT"); err != nil {
		return 0, fmt.Errorf("commit migrations: %w", err)
	}
	committed = true
	return newestOf(applied), nil
}

const recordMigration = "INSERT INTO migrations (name, sum, applied_at) VALUES ($1, $2, $3)"

// rowsReader is a connection, a transaction or a pool.
type rowsReader interface {
	QueryContext(ctx context.Context, q string, args ...any) (*sql.Rows, error)
}

// readApplied is the sum of each migration that a store has, by name.
func readApplied(ctx context.Context, db rowsReader) (map[string]string, error) {
	rows, err := db.QueryContext(ctx, "SELECT name, sum FROM migrations")
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	applied := map[string]string{}
	for rows.Next() {
		var name, sum string
		if err := rows.Scan(&name, &sum); err != nil {
			return nil, err
		}
		applied[name] = sum
	}
	return applied, rows.Err()
}

func migrationNames(files fs.FS) ([]string, error) {
	names, err := fs.Glob(files, "migrations/*.sql")
	if err != nil {
		return nil, fmt.Errorf("list migrations: %w", err)
	}
	slices.Sort(names)
	return names, nil
}

// known is a Conflict where a store has migrations that are not in list: those
// of a newer release, or of another build.
func known(list []migration, applied map[string]string) error {
	sums := map[string]string{}
	for _, m := range list {
		sums[m.name] = m.sum
	}
	newest := schemaOf(list[len(list)-1].name)
	for _, name := range slices.Backward(slices.Sorted(maps.Keys(applied))) {
		sum, ok := sums[name]
		switch version := schemaOf(name); {
		case !ok && version > newest:
			return wire.Errorf(wire.Conflict, "its schema has version %d and was written by a newer release (%s); this waypoint knows versions up to %d",
				version, path.Base(name), newest).
				WithHint("install that release again, or restore a snapshot from before it: waypoint(7) says how to go back")
		case !ok || sum != applied[name]:
			return wire.Errorf(wire.Conflict, "its schema was made by another build: its migration %s is not the one that this waypoint has (schema version %d)",
				path.Base(name), newest).
				WithHint("use the build that made it, or a snapshot of a released one")
		}
	}
	return nil
}

// newestOf is the version of a store's schema, 0 where nothing was applied.
func newestOf(applied map[string]string) int {
	newest := 0
	for name := range applied {
		newest = max(newest, schemaOf(name))
	}
	return newest
}

// SchemaVersion is that of the stores that this build makes: the number of its
// newest migration.
func SchemaVersion() (int, error) {
	names, err := migrationNames(migrations)
	if err != nil {
		return 0, err
	}
	return schemaOf(names[len(names)-1]), nil
}

// schemaOf is the number that a migration's name begins with, 0 where it is none.
func schemaOf(name string) int {
	number, _, _ := strings.Cut(path.Base(name), "_")
	n, err := strconv.Atoi(number)
	if err != nil {
		return 0
	}
	return n
}
