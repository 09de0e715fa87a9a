package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/waypointd/waypoint/mux/wire"
)

// A blob is stored as chunks under the id of its upload until it is sealed,
// and stays there: sealing adds the row that gives it its digest.
//
// What still needs a blob is not all known here: the files of a tree are named
// by its manifest, which is a blob itself. So each blob has a time of last use
// (asked for, read, or sealed), and it may go when that was before the oldest
// job that is kept was queued, less a day, and no record names it.

const (
	upsertUpload = `INSERT INTO uploads (upload, created_at) VALUES ($1, $2) ON CONFLICT (upload) DO NOTHING`
	deleteUpload = `DELETE FROM uploads WHERE upload = $1`
	insertPiece  = `INSERT INTO blob_chunks (upload, start, length, data) VALUES ($1, $2, $3, $4)
	ON CONFLICT (upload, start) DO NOTHING`
	deletePieces = `DELETE FROM blob_chunks WHERE upload = $1`
	measureBlob  = `SELECT COALESCE(SUM(length), 0), COALESCE(MAX(start + length), 0) FROM blob_chunks WHERE upload = $1`
	insertBlob   = `INSERT INTO blobs (digest, upload, size, used_at) VALUES ($1, $2, $3, $4) ON CONFLICT (digest) DO NOTHING`
	selectBlob   = `SELECT upload, size, used_at FROM blobs WHERE digest = $1`
	touchBlob    = `UPDATE blobs SET used_at = $1 WHERE digest = $2 AND used_at < $1`
	selectPiece  = `SELECT c.start, c.data FROM blobs b JOIN blob_chunks c ON c.upload = b.upload
	WHERE b.digest = $1 AND c.start <= $2 ORDER BY c.start DESC LIMIT 1`
)

// PutBlobChunk stores bytes of a blob in the making (own upload id); SealBlob
// makes it visible under its digest, DropUpload forgets it.
func (tx *Tx) PutBlobChunk(upload string, offset int64, data []byte) error {
	if err := tx.s.newWork(); err != nil {
		return err
	}
	if upload == "" || offset < 0 {
		return wire.Errorf(wire.BadUsage, "store blob: no upload, or a negative offset")
	}
	if _, err := tx.exec(upsertUpload, upload, tx.s.cfg.Now().UnixMicro()); err != nil {
		return fmt.Errorf("store blob: %w", err)
	}
	for piece := range slices.Chunk(data, maxRow) {
		if _, err := tx.exec(insertPiece, upload, offset, len(piece), piece); err != nil {
			return fmt.Errorf("store blob: %w", err)
		}
		offset += int64(len(piece))
	}
	return nil
}

// SealBlob makes an upload visible under its digest, which the caller has
// checked. A digest that is stored already stays, and the upload is dropped.
// An upload that is not exactly size bytes without a gap is a Conflict.
func (tx *Tx) SealBlob(upload, digest string, size int64, now time.Time) error {
	if digest == "" {
		return wire.Errorf(wire.BadUsage, "seal blob: no digest")
	}
	var stored, end int64
	if err := one(tx, measureBlob, []any{upload}, &stored, &end); err != nil {
		return fmt.Errorf("seal blob %s: %w", digest, err)
	}
	n, err := tx.exec(touchBlob, micro(now), digest)
	if err != nil {
		return fmt.Errorf("seal blob %s: %w", digest, err)
	}
	if n == 0 {
		if stored != size || end != size {
			err := one(tx, selectBlob, []any{digest}, new(string), new(int64), new(int64))
			if errors.Is(err, errNoRow) {
				return wire.Errorf(wire.Conflict, "seal blob %s: %d of %d bytes are stored", digest, stored, size)
			}
			if err != nil {
				return fmt.Errorf("seal blob %s: %w", digest, err)
			}
		} else if n, err = tx.exec(insertBlob, digest, upload, size, micro(now)); err != nil {
			return fmt.Errorf("seal blob %s: %w", digest, err)
		} else if n == 1 {
			if _, err := tx.exec(deleteUpload, upload); err != nil {
				return fmt.Errorf("seal blob %s: %w", digest, err)
			}
			return nil
		}
	}
	return tx.dropUpload(upload, digest)
}

// dropUpload drops an upload unless it is what digest's blob is made of (it
// is being sealed again).
func (tx *Tx) dropUpload(upload, digest string) error {
	var sealed string
	if err := one(tx, selectBlob, []any{digest}, &sealed, new(int64), new(int64)); err != nil {
		return fmt.Errorf("seal blob %s: %w", digest, err)
	}
	if sealed == upload {
		return nil
	}
	return tx.DropUpload(upload)
}

const selectSealed = `SELECT digest FROM blobs WHERE upload = $1`

// DropUpload forgets an upload that was not sealed; no error when there is
// none. What a sealed blob is made of stays.
func (tx *Tx) DropUpload(upload string) error {
	sealed, err := strs(tx, selectSealed, upload)
	if err != nil {
		return fmt.Errorf("drop upload: %w", err)
	}
	if len(sealed) > 0 {
		return nil
	}
	for _, text := range []string{deletePieces, deleteUpload} {
		if _, err := tx.exec(text, upload); err != nil {
			return fmt.Errorf("drop upload: %w", err)
		}
	}
	return nil
}

// touchEvery is how exact the time of a blob's last use is.
const touchEvery = time.Hour

// MissingBlobs are those of digests that are not stored, in their order. The
// others count as used now: they stay long enough for a job to name them.
func (s *Store) MissingBlobs(ctx context.Context, digests []string) ([]string, error) {
	used, err := s.lastUses(ctx, digests)
	if err != nil {
		return nil, err
	}
	var stale []string
	for _, d := range digests {
		if at, ok := used[d]; ok && s.cfg.Now().Sub(fromMicro(at)) > touchEvery {
			stale = append(stale, d)
			delete(used, d)
		}
	}
	if len(stale) > 0 {
		s.touch(ctx, stale)
		still, err := s.lastUses(ctx, stale) // those may just have been pruned
		if err != nil {
			return nil, err
		}
		maps.Copy(used, still)
	}
	missing := []string{}
	for _, d := range digests {
		if _, ok := used[d]; !ok {
			missing = append(missing, d)
		}
	}
	return missing, nil
}

// lastUses are the times of last use of those that are stored.
func (s *Store) lastUses(ctx context.Context, digests []string) (map[string]int64, error) {
	used := make(map[string]int64, len(digests))
	for part := range slices.Chunk(digests, 256) {
		args := make([]any, len(part))
		marks := make([]string, len(part))
		for i, d := range part {
			args[i], marks[i] = d, fmt.Sprintf("$%d", i+1)
		}
		err := each(s.read(ctx), `SELECT digest, used_at FROM blobs WHERE digest IN (`+strings.Join(marks, ", ")+`)`, args,
			func(rows *sql.Rows) error {
				var (
					digest string
					at     int64
				)
				if err := rows.Scan(&digest, &at); err != nil {
					return err
				}
				used[digest] = at
				return nil
			})
		if err != nil {
			return nil, fmt.Errorf("look for blobs: %w", err)
		}
	}
	return used, nil
}

// touch records that blobs were used. It is of no matter to the caller when
// that cannot be written: pruning cannot then either.
func (s *Store) touch(ctx context.Context, digests []string) {
	if len(digests) == 0 {
		return
	}
	now := s.cfg.Now().UnixMicro()
	if err := s.Update(ctx, func(tx *Tx) error {
		for _, d := range digests {
			if _, err := tx.exec(touchBlob, now, d); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		s.cfg.Logger.Warn("record use of blobs", "error", err)
	}
}

// BlobSize is the size of a blob, or NotFound.
func (s *Store) BlobSize(ctx context.Context, digest string) (int64, error) {
	var size, used int64
	switch err := one(s.read(ctx), selectBlob, []any{digest}, new(string), &size, &used); {
	case errors.Is(err, errNoRow):
		return 0, notFound("blob", digest)
	case err != nil:
		return 0, fmt.Errorf("look for blob: %w", err)
	}
	if s.cfg.Now().Sub(fromMicro(used)) > touchEvery {
		s.touch(ctx, []string{digest})
	}
	return size, nil
}

// BlobChunk is what is stored of a blob from offset on, up to the end of a
// chunk; empty at the blob's end. NotFound if there is no such blob.
func (s *Store) BlobChunk(ctx context.Context, digest string, offset int64) ([]byte, error) {
	var (
		start int64
		data  []byte
	)
	switch err := one(s.read(ctx), selectPiece, []any{digest, offset}, &start, &data); {
	case errors.Is(err, errNoRow): // an empty blob, or none
		_, err := s.BlobSize(ctx, digest)
		return nil, err
	case err != nil:
		return nil, fmt.Errorf("read blob: %w", err)
	}
	return data[min(offset-start, int64(len(data))):], nil
}
