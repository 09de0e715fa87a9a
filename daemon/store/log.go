package store

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/waypointd/waypoint/mux/wire"
)

const (
	maxRow   = 64 << 10 // bytes of output in a row
	mergeRow = 4 << 10  // a last row that stays below this takes in what comes next
)

const (
	// What is stored, and where the last row starts.
	selectLogEnd = `SELECT state, runner_id, attempt,
	COALESCE((SELECT c.start FROM log_chunks c WHERE c.job_id = jobs.id AND c.attempt = jobs.attempt
		ORDER BY c.start DESC LIMIT 1), 0),
	COALESCE((SELECT length(c.data) FROM log_chunks c WHERE c.job_id = jobs.id AND c.attempt = jobs.attempt
		ORDER BY c.start DESC LIMIT 1), 0)
	FROM jobs WHERE id = $1`
	insertChunk = `INSERT INTO log_chunks (job_id, attempt, start, segments, data) VALUES ($1, $2, $3, $4, $5)`
	selectChunk = `SELECT segments, data FROM log_chunks WHERE job_id = $1 AND attempt = $2 AND start = $3`
	updateChunk = `UPDATE log_chunks SET segments = $1, data = $2 WHERE job_id = $3 AND attempt = $4 AND start = $5`
)

// AppendLog appends chunks of one attempt of a runner's job; idempotent:
// bytes below the stored length are skipped, a gap is Conflict. Returns the
// length now stored. Each chunk becomes (part of) a row of at most 64 KiB.
func (tx *Tx) AppendLog(ref wire.JobRef, runner string, chunks []wire.Data) (int64, error) {
	var (
		state       wire.State
		holder      string
		attempt     int
		start, tail int64
	)
	switch err := one(tx, selectLogEnd, []any{ref.Job}, &state, &holder, &attempt, &start, &tail); {
	case errors.Is(err, errNoRow):
		return 0, notFound("job", ref.Job)
	case err != nil:
		return 0, fmt.Errorf("append output of job %s: %w", ref.Job, err)
	}
	if attempt != ref.Attempt || holder != runner || state != wire.Assigned && state != wire.Running {
		return 0, wire.Errorf(wire.Conflict, "append output of job %s: attempt %d is not in progress on runner %q",
			ref.Job, ref.Attempt, runner)
	}
	return tx.appendChunks(ref, start, tail, chunks)
}

// appendChunks is AppendLog behind its check; start is where the last row
// starts, tail its length.
func (tx *Tx) appendChunks(ref wire.JobRef, start, tail int64, chunks []wire.Data) (int64, error) {
	var (
		data         []byte // of the row in the making
		segs         segments
		first, taken int64 // its offset; whether it is the last row again
	)
	end := start + tail
	flush := func() error {
		if len(data) == 0 {
			return nil
		}
		var err error
		if taken == 1 {
			_, err = tx.exec(updateChunk, []byte(segs), data, ref.Job, ref.Attempt, first)
		} else {
			_, err = tx.exec(insertChunk, ref.Job, ref.Attempt, first, []byte(segs), data)
		}
		if err != nil {
			return fmt.Errorf("append output of job %s: %w", ref.Job, err)
		}
		data, segs, taken = nil, nil, 0
		return nil
	}
	first = end
	before := end
	for _, c := range chunks {
		if c.Offset > end {
			return 0, wire.Errorf(wire.Conflict, "append output of job %s: a gap from %d to %d", ref.Job, end, c.Offset)
		}
		b := c.Bytes
		if skip := end - c.Offset; skip >= int64(len(b)) {
			continue
		} else {
			b = b[skip:]
		}
		if end == before && tail > 0 && tail+int64(len(b)) <= mergeRow {
			// Output that comes a line at a time would otherwise be a row a line.
			var old []byte
			if err := one(tx, selectChunk, []any{ref.Job, ref.Attempt, start}, &old, &data); err != nil {
				return 0, fmt.Errorf("append output of job %s: %w", ref.Job, err)
			}
			segs, first, taken = old, start, 1
		}
		for len(b) > 0 {
			if len(data) == maxRow {
				if err := flush(); err != nil {
					return 0, err
				}
				first = end
			}
			n := min(len(b), maxRow-len(data))
			if data == nil {
				data = make([]byte, 0, min(maxRow, sizeOf(chunks)))
			}
			data = append(data, b[:n]...)
			segs = segs.add(n, c)
			b = b[n:]
			end += int64(n)
		}
	}
	if err := flush(); err != nil {
		return 0, err
	}
	if end > before {
		tx.logs.add(ref.Job)
	}
	return end, nil
}

func sizeOf(chunks []wire.Data) int {
	n := 0
	for _, c := range chunks {
		n += len(c.Bytes)
	}
	return n
}

// segments is, for each run of a row's bytes from one stream at one time, its
// length (uvarint), stream (a byte) and time (varint, microseconds; 0 is
// none).
type segments []byte

func (s segments) add(n int, c wire.Data) segments {
	s = binary.AppendUvarint(s, uint64(n))
	s = append(s, byte(c.Stream))
	return binary.AppendVarint(s, micro(c.Time))
}

// next splits off the first segment.
func (s segments) next() (n int, of wire.Data, rest segments, err error) {
	length, k := binary.Uvarint(s)
	if k <= 0 || length > maxRow || len(s) < k+1 {
		return 0, of, nil, errors.New("segments of a row of output are damaged")
	}
	s = s[k:]
	of.Stream = wire.StreamID(s[0])
	at, k := binary.Varint(s[1:])
	if k <= 0 {
		return 0, of, nil, errors.New("segments of a row of output are damaged")
	}
	of.Time = fromMicro(at)
	return int(length), of, s[1+k:], nil
}

const (
	// Of a row's bytes, those from $3 to before $4.
	selectChunks = `SELECT start, segments,
	substr(data, CAST(CASE WHEN start < $3 THEN $3 - start ELSE 0 END + 1 AS INTEGER),
		CAST($4 - CASE WHEN start < $3 THEN $3 ELSE start END AS INTEGER))
	FROM log_chunks WHERE job_id = $1 AND attempt = $2
	AND start >= COALESCE((SELECT MAX(c.start) FROM log_chunks c WHERE c.job_id = $1 AND c.attempt = $2 AND c.start <= $3), 0)
	AND start < $4 ORDER BY start`
	selectLength = `SELECT start + length(data) FROM log_chunks WHERE job_id = $1 AND attempt = $2 ORDER BY start DESC LIMIT 1`
	selectTry    = `SELECT attempt, CASE WHEN finished_at > 0 THEN log_bytes ELSE 0 END FROM jobs WHERE id = $1`
)

// Log reads output of an attempt (0: newest) from offset, at most about limit
// bytes, in chunks of at most wire.MaxData that never cross a stored segment
// (stream, time). Length is what is stored in all. An unknown job or attempt
// is NotFound, as is output that is just being pruned.
func (s *Store) Log(ctx context.Context, id string, attempt int, offset int64, limit int) (chunks []wire.Data, length int64, err error) {
	if offset < 0 || attempt < 0 {
		return nil, 0, wire.Errorf(wire.BadUsage, "read output of job %s: negative offset or attempt", id)
	}
	q := s.read(ctx)
	var (
		newest int
		whole  int64 // of the newest, once it has ended
	)
	switch err := one(q, selectTry, []any{id}, &newest, &whole); {
	case errors.Is(err, errNoRow):
		return nil, 0, notFound("job", id)
	case err != nil:
		return nil, 0, fmt.Errorf("read output of job %s: %w", id, err)
	}
	if attempt == 0 {
		attempt = newest
	}
	if attempt > newest {
		return nil, 0, wire.Errorf(wire.NotFound, "attempt %d of job %s not found: there are %d", attempt, id, newest)
	}
	// The length first: it is never more than what can be read then.
	switch err := one(q, selectLength, []any{id, attempt}, &length); {
	case errors.Is(err, errNoRow) && attempt == newest && whole > 0: // it was removed since the job was read
		return nil, 0, notKept(id, offset)
	case errors.Is(err, errNoRow):
		return nil, 0, nil
	case err != nil:
		return nil, 0, fmt.Errorf("read output of job %s: %w", id, err)
	}
	if offset >= length || limit <= 0 {
		return nil, length, nil
	}
	to := offset + int64(limit)
	err = each(q, selectChunks, []any{id, attempt, offset, to}, func(rows *sql.Rows) error {
		var (
			start      int64
			segs, data sql.RawBytes
		)
		if err := rows.Scan(&start, &segs, &data); err != nil {
			return err
		}
		chunks, err = cut(chunks, start, segments(segs), data, offset, to)
		return err
	})
	if err != nil {
		return nil, 0, fmt.Errorf("read output of job %s: %w", id, err)
	}
	if len(chunks) == 0 || chunks[0].Offset != offset { // never a gap in silence
		return nil, 0, notKept(id, offset)
	}
	last := chunks[len(chunks)-1]
	return chunks, max(length, last.Offset+int64(len(last.Bytes))), nil
}

func notKept(id string, offset int64) error {
	return wire.Errorf(wire.NotFound, "output of job %s from byte %d on is not kept any more", id, offset)
}

// cut appends copies of a row's bytes between from and to, which are data, in
// chunks that do not cross its segments.
func cut(chunks []wire.Data, start int64, segs segments, data []byte, from, to int64) ([]wire.Data, error) {
	for len(segs) > 0 && start < to {
		n, of, rest, err := segs.next()
		if err != nil {
			return nil, err
		}
		at, end := max(start, from), min(start+int64(n), to)
		segs, start = rest, start+int64(n)
		if end-at > int64(len(data)) {
			return nil, errors.New("segments of a row of output are longer than it is")
		}
		for at < end {
			k := min(end-at, wire.MaxData)
			chunks = append(chunks, wire.Data{Offset: at, Time: of.Time, Stream: of.Stream, Bytes: bytes.Clone(data[:k])})
			at, data = at+k, data[k:]
		}
	}
	return chunks, nil
}
