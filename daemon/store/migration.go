package store

import (
	"context"
	"crypto/sha256"
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

// migrate brings the schema up to date: numbered files, forward only, all
// that are missing in one transaction. What was applied is recorded with its
// checksum.
func (s *Store) migrate(ctx context.Context) error { return s.migrateFrom(ctx, migrations) }

func (s *Store) migrateFrom(ctx context.Context, files fs.FS) error {
	names, err := migrationNames(files)
	if err != nil {
		return err
	}
	conn, err := s.writer.Conn(ctx)
	if err != nil {
		return fmt.Errorf("migrate: %w", err)
	}
	defer conn.Close()
	if _, err := conn.ExecContext(ctx, s.engine.begin()); err != nil {
		return fmt.Errorf("migrate: %w", err)
	}
	committed := false
	defer func() {
		if !committed {
			conn.ExecContext(context.WithoutCancel(ctx), "ROLLBACK")
		}
	}()
	if q := s.engine.lockMigrations(); q != "" {
		if _, err := conn.ExecContext(ctx, q); err != nil {
			return fmt.Errorf("lock migrations: %w", err)
		}
	}
	if _, err := conn.ExecContext(ctx, createMigrations); err != nil {
		return fmt.Errorf("migrate: %w", err)
	}
	applied := map[string]string{}
	rows, err := conn.QueryContext(ctx, "SELECT name, sum FROM migrations")
	if err != nil {
		return fmt.Errorf("read migrations: %w", err)
	}
	for rows.Next() {
		var name, sum string
		if err := rows.Scan(&name, &sum); err != nil {
			rows.Close()
			return fmt.Errorf("read migrations: %w", err)
		}
		applied[name] = sum
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("read migrations: %w", err)
	}
	if err := known(names, applied); err != nil {
		return err
	}
	for _, name := range names {
		text, err := fs.ReadFile(files, name)
		if err != nil {
			return fmt.Errorf("read migration %s: %w", name, err)
		}
		hash := sha256.Sum256(text)
		sum := hex.EncodeToString(hash[:])
		if was, ok := applied[name]; ok {
			if was != sum {
				return fmt.Errorf("migration %s is not the one this store was made with", name)
			}
			continue
		}
		if _, err := conn.ExecContext(ctx, string(text)); err != nil {
			return fmt.Errorf("apply migration %s: %w", name, err)
		}
		if _, err := conn.ExecContext(ctx, "INSERT INTO migrations (name, sum, applied_at) VALUES ($1, $2, $3)",
			name, sum, time.Now().UnixMicro()); err != nil {
			return fmt.Errorf("record migration %s: %w", name, err)
		}
	}
	if _, err := conn.ExecContext(ctx, "COMMIT"); err != nil {
		return fmt.Errorf("commit migrations: %w", err)
	}
	committed = true
	return nil
}

func migrationNames(files fs.FS) ([]string, error) {
	names, err := fs.Glob(files, "migrations/*.sql")
	if err != nil {
		return nil, fmt.Errorf("list migrations: %w", err)
	}
	slices.Sort(names)
	return names, nil
}

// known is a Conflict where a store has migrations that are not among names:
// those of a newer release.
func known(names []string, applied map[string]string) error {
	for _, name := range slices.Backward(slices.Sorted(maps.Keys(applied))) {
		if !slices.Contains(names, name) {
			return wire.Errorf(wire.Conflict, "its schema has version %d and was written by a newer release (%s); this waypoint knows versions up to %d",
				schemaOf(name), path.Base(name), schemaOf(names[len(names)-1])).
				WithHint("use that release, or a snapshot from before it")
		}
	}
	return nil
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
