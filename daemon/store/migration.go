package store

import (
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"io/fs"
	"slices"
	"time"
)

//go:embed migrations/*.sql
var migrations embed.FS

// migrate brings the schema up to date: numbered files, forward only, all
// that are missing in one transaction. What was applied is recorded with its
// checksum.
func (s *Store) migrate(ctx context.Context) error { return s.migrateFrom(ctx, migrations) }

func (s *Store) migrateFrom(ctx context.Context, files fs.FS) error {
	names, err := fs.Glob(files, "migrations/*.sql")
	if err != nil {
		return fmt.Errorf("list migrations: %w", err)
	}
	slices.Sort(names)
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
	if _, err := conn.ExecContext(ctx, `CREATE TABLE IF NOT EXISTS migrations (
		name TEXT PRIMARY KEY, sum TEXT NOT NULL, applied_at BIGINT NOT NULL)`); err != nil {
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
	for _, name := range names {
		text, err := fs.ReadFile(files, name)
		if err != nil {
			return fmt.Errorf("read migration %s: %w", name, err)
		}
		hash := sha256.Sum256(text)
		sum := hex.EncodeToString(hash[:])
		if was, ok := applied[name]; ok {
			delete(applied, name)
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
	for name := range applied {
		return fmt.Errorf("the store was written by a newer release (it has %s, which this one does not know); use that release, or restore a snapshot", name)
	}
	if _, err := conn.ExecContext(ctx, "COMMIT"); err != nil {
		return fmt.Errorf("commit migrations: %w", err)
	}
	committed = true
	return nil
}
