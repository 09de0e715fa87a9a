package store

import (
	"context"
	"database/sql"
	"fmt"
	"slices"
	"strings"
)

const (
	insertProof  = `INSERT INTO proofs (digest, sender) VALUES ($1, $2) ON CONFLICT (digest, sender) DO NOTHING`
	deleteSender = `DELETE FROM proofs WHERE sender = $1`
)

// Prove keeps that somebody has sent a blob, which is there in this transaction;
// it is forgotten with the blob, and with the user.
func (tx *Tx) Prove(sender, digest string) error {
	if _, err := tx.exec(insertProof, digest, sender); err != nil {
		return fmt.Errorf("keep who has sent blob %s: %w", digest, err)
	}
	return nil
}

// Proven are those of digests that somebody has sent.
func (s *Store) Proven(ctx context.Context, sender string, digests []string) (map[string]bool, error) {
	proven := make(map[string]bool, len(digests))
	for part := range slices.Chunk(digests, 256) {
		args, marks := []any{sender}, make([]string, len(part))
		for i, d := range part {
			args, marks[i] = append(args, d), fmt.Sprintf("$%d", i+2)
		}
		err := each(s.read(ctx), `SELECT digest FROM proofs WHERE sender = $1 AND digest IN (`+strings.Join(marks, ", ")+`)`, args,
			func(rows *sql.Rows) error {
				var digest string
				err := rows.Scan(&digest)
				proven[digest] = true
				return err
			})
		if err != nil {
			return nil, fmt.Errorf("look for who has sent blobs: %w", err)
		}
	}
	return proven, nil
}
