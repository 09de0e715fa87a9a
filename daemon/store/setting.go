package store

import (
	"context"
	"errors"
	"fmt"
)

const (
	selectSetting = `SELECT value FROM settings WHERE name = $1`
	upsertSetting = `INSERT INTO settings (name, value) VALUES ($1, $2)
	ON CONFLICT (name) DO UPDATE SET value = excluded.value`
	deleteSetting = `DELETE FROM settings WHERE name = $1`
	insertSetting = `INSERT INTO settings (name, value) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING`
)

// Setting is a small value that is kept (the server's id); "" when unset.
func (s *Store) Setting(ctx context.Context, name string) (string, error) {
	return setting(s.read(ctx), name)
}

// Setting is Store.Setting within the transaction.
func (tx *Tx) Setting(name string) (string, error) { return setting(tx, name) }

func setting(q querier, name string) (value string, err error) {
	switch err := one(q, selectSetting, []any{name}, &value); {
	case errors.Is(err, errNoRow):
		return "", nil
	case err != nil:
		return "", fmt.Errorf("read setting %s: %w", name, err)
	}
	return value, nil
}

// PutSetting keeps a small value.
func (tx *Tx) PutSetting(name, value string) error {
	if _, err := tx.exec(upsertSetting, name, value); err != nil {
		return fmt.Errorf("keep setting %s: %w", name, err)
	}
	return nil
}

// KeepSetting keeps a value unless one is kept already, and returns the one
// that is: of several servers that come with a value of their own the first
// one's counts.
func (tx *Tx) KeepSetting(name, value string) (string, error) {
	if _, err := tx.exec(insertSetting, name, value); err != nil {
		return "", fmt.Errorf("keep setting %s: %w", name, err)
	}
	return tx.Setting(name)
}

// DropSetting forgets a value; no error when there is none.
func (tx *Tx) DropSetting(name string) error {
	if _, err := tx.exec(deleteSetting, name); err != nil {
		return fmt.Errorf("drop setting %s: %w", name, err)
	}
	return nil
}
