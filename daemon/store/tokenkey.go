package store

import (
	"context"
	"crypto/ed25519"
	"database/sql"
	"encoding/hex"
	"fmt"

	"github.com/waypointd/waypoint/daemon/token"
)

const (
	tokenKeyColumns = `id, secret, created_at, retired_at, until`
	selectTokenKeys = `SELECT ` + tokenKeyColumns + ` FROM token_keys ORDER BY created_at, id`
	upsertTokenKey  = `INSERT INTO token_keys (` + tokenKeyColumns + `) VALUES ($1, $2, $3, $4, $5)
	ON CONFLICT (id) DO UPDATE SET retired_at = excluded.retired_at, until = excluded.until`
	deleteTokenKey = `DELETE FROM token_keys WHERE id = $1`
)

// TokenKeys are the keys that sign and verify tokens, the oldest first.
func (s *Store) TokenKeys(ctx context.Context) ([]token.Key, error) { return tokenKeys(s.read(ctx)) }

// TokenKeys is Store.TokenKeys within the transaction. No other server changes
// the keys until it ends.
func (tx *Tx) TokenKeys() ([]token.Key, error) {
	if err := tx.lockRules(); err != nil {
		return nil, err
	}
	return tokenKeys(tx)
}

func tokenKeys(q querier) ([]token.Key, error) {
	keys := []token.Key{}
	err := each(q, selectTokenKeys, nil, func(rows *sql.Rows) error {
		var (
			id                      string
			seed                    []byte
			created, retired, until int64
		)
		if err := rows.Scan(&id, &seed, &created, &retired, &until); err != nil {
			return err
		}
		if len(seed) != ed25519.SeedSize {
			return fmt.Errorf("key %s has %d bytes", id, len(seed))
		}
		k := token.KeyFromSeed(seed, fromMicro(created))
		k.Retired, k.Until = fromMicro(retired), fromMicro(until)
		if hex.EncodeToString(k.ID[:]) != id {
			return fmt.Errorf("key %s is not the one of this id", id)
		}
		keys = append(keys, k)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read token keys: %w", err)
	}
	return keys, nil
}

// PutTokenKey adds a key, or keeps when it was retired and until when it
// verifies.
func (tx *Tx) PutTokenKey(k token.Key) error {
	if err := tx.lockRules(); err != nil {
		return err
	}
	if _, err := tx.exec(upsertTokenKey, hex.EncodeToString(k.ID[:]), k.Private.Seed(),
		micro(k.Created), micro(k.Retired), micro(k.Until)); err != nil {
		return fmt.Errorf("keep token key %x: %w", k.ID, err)
	}
	tx.Announce(NewsKeys)
	return nil
}

// DeleteTokenKey removes a key: what it signed verifies no more. No error when
// there is none.
func (tx *Tx) DeleteTokenKey(id [8]byte) error {
	if err := tx.lockRules(); err != nil {
		return err
	}
	if _, err := tx.exec(deleteTokenKey, hex.EncodeToString(id[:])); err != nil {
		return fmt.Errorf("remove token key %x: %w", id, err)
	}
	tx.Announce(NewsKeys)
	return nil
}
