package store

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/waypointd/waypoint/mux/wire"
)

// Output is appended in pieces of all sizes, some of them twice, and read from
// every kind of offset.
func TestLog(t *testing.T) {
	onEach(t, func(t *testing.T, dsn string) {
		b := newBench(t, dsn)
		id := b.one(run())
		ref := b.given(id)[0].JobRef
		rnd := rand.New(rand.NewPCG(7, 7))
		var whole []byte
		var marks []byte // the stream of each byte
		appendLog := func(chunks ...wire.Data) (n int64, err error) {
			err = b.Update(t.Context(), func(tx *Tx) (err error) { n, err = tx.AppendLog(ref, "r1", chunks); return err })
			return n, err
		}
		chunk := func(offset, n int) wire.Data {
			for len(whole) < offset+n {
				whole = append(whole, byte(rnd.IntN(256)))
				marks = append(marks, byte(1+len(whole)/1000%3))
			}
			return wire.Data{Offset: int64(offset), Bytes: whole[offset : offset+n], Stream: wire.StreamID(marks[offset]), Time: b.now}
		}
		stored := 0
		for i := range 300 {
			var list []wire.Data
			offset := max(0, stored-rnd.IntN(50))
			pieces := 1 + rnd.IntN(4)
			if i%40 == 0 { // more than a row holds
				pieces = 200
			}
			for range pieces {
				n := 1 + rnd.IntN(100)
				if i%40 == 0 {
					n = 1 + rnd.IntN(2*maxRow)
				}
				// A chunk is of one stream.
				c := chunk(offset, n)
				for k := range c.Bytes {
					if marks[offset+k] != marks[offset] {
						c.Bytes = c.Bytes[:k]
						break
					}
				}
				list = append(list, c)
				offset += len(c.Bytes)
			}
			stored = max(stored, offset)
			n, err := appendLog(list...)
			if err != nil || n != int64(stored) {
				t.Fatalf("append %d: %d, %v; want %d", i, n, err, stored)
			}
		}
		whole = whole[:stored]
		_, err := appendLog(wire.Data{Offset: int64(stored) + 1, Bytes: []byte("x")})
		want(t, err, wire.Conflict, "gap")

		read := func(offset int64, limit int) []wire.Data {
			t.Helper()
			chunks, length, err := b.Log(t.Context(), id, 0, offset, limit)
			if err != nil || length != int64(stored) {
				t.Fatal(err, length)
			}
			return chunks
		}
		for range 200 {
			offset, limit := int64(rnd.IntN(stored)), 1+rnd.IntN(200_000)
			at := offset
			for _, c := range read(offset, limit) {
				if c.Offset != at || len(c.Bytes) == 0 || len(c.Bytes) > wire.MaxData {
					t.Fatalf("chunk of %d at %d, want it at %d", len(c.Bytes), c.Offset, at)
				}
				if !bytes.Equal(c.Bytes, whole[at:at+int64(len(c.Bytes))]) {
					t.Fatalf("other bytes at %d", at)
				}
				for k := range c.Bytes {
					if byte(c.Stream) != marks[int(at)+k] {
						t.Fatalf("stream %d at %d, want %d", c.Stream, int(at)+k, marks[int(at)+k])
					}
				}
				if !c.Time.Equal(b.now) {
					t.Fatal(c.Time)
				}
				at += int64(len(c.Bytes))
			}
			if end := min(int64(stored), offset+int64(limit)); at != end {
				t.Fatalf("from %d at most %d: read to %d, want %d", offset, limit, at, end)
			}
		}
		if c := read(int64(stored), 10); len(c) != 0 {
			t.Fatal(c)
		}
		if c := read(int64(stored)+100, 10); len(c) != 0 {
			t.Fatal(c)
		}
		if j := b.job(id); j.LogBytes != int64(stored) {
			t.Fatal(j.LogBytes)
		}
		var rows, longest int64
		if err := one(b.read(t.Context()), `SELECT COUNT(*), MAX(length(data)) FROM log_chunks`, nil, &rows, &longest); err != nil {
			t.Fatal(err)
		}
		if longest > maxRow || rows > 100 {
			t.Fatalf("%d rows, the longest of %d bytes", rows, longest)
		}

		// A result that overtook its output.
		late := wire.Result{State: wire.Success, LogBytes: int64(stored) + 1}
		want(t, b.Update(t.Context(), func(tx *Tx) error { return tx.Finish(ref, "r1", late, b.now) }), wire.Conflict, "bytes of its output")
		b.is(id, wire.Assigned, "")
		b.finish(id, wire.Result{State: wire.Success, LogBytes: int64(stored)})
		if j := b.job(id); j.LogBytes != int64(stored) {
			t.Fatal(j.LogBytes)
		}
		_, err = appendLog(wire.Data{Offset: int64(stored), Bytes: []byte("x")})
		want(t, err, wire.Conflict)
		_, _, err = b.Log(t.Context(), "nonsense", 0, 0, 1)
		want(t, err, wire.NotFound)
		_, _, err = b.Log(t.Context(), id, 2, 0, 1)
		want(t, err, wire.NotFound)
		_, _, err = b.Log(t.Context(), id, 0, -1, 1)
		want(t, err, wire.BadUsage)
	})
}

func TestLogOfEachAttempt(t *testing.T) {
	onEach(t, func(t *testing.T, dsn string) {
		b := newBench(t, dsn)
		id := b.one(run())
		for i := 1; i <= 2; i++ {
			ref := b.given(id)[0].JobRef
			update(t, b.Store, func(tx *Tx) error {
				_, err := tx.AppendLog(ref, "r1", []wire.Data{{Bytes: fmt.Appendf(nil, "attempt %d", i), Stream: wire.Stdout, Time: time.Time{}}})
				return err
			})
			if i == 1 {
				b.requeue(id)
			}
		}
		for attempt, text := range map[int]string{0: "attempt 2", 1: "attempt 1", 2: "attempt 2"} {
			c, _, err := b.Log(t.Context(), id, attempt, 0, 100)
			if err != nil || len(c) != 1 || string(c[0].Bytes) != text || !c[0].Time.IsZero() {
				t.Fatal(c, err)
			}
		}
	})
}

// A reader of output that is being pruned is told so, rather than that there
// was less.
func TestLogHasNoSilentGap(t *testing.T) {
	onEach(t, func(t *testing.T, dsn string) {
		b := newBench(t, dsn)
		id := b.one(run())
		b.given(id)
		ref, runner := b.ref(id)
		for i := range 3 {
			update(t, b.Store, func(tx *Tx) error {
				_, err := tx.AppendLog(ref, runner, []wire.Data{{Offset: int64(i) * 5000, Bytes: make([]byte, 5000)}})
				return err
			})
		}
		b.succeed(id)
		update(t, b.Store, func(tx *Tx) error {
			_, err := tx.exec(deleteLogStep, id, 1, 10_000)
			return err
		})
		for _, offset := range []int64{0, 4_000, 9_999} {
			_, _, err := b.Log(t.Context(), id, 0, offset, 100_000)
			want(t, err, wire.NotFound, "not kept")
		}
		if chunks, length, err := b.Log(t.Context(), id, 0, 10_001, 100_000); err != nil || length != 15_000 || chunks[0].Offset != 10_001 {
			t.Fatal(chunks, length, err)
		}
		// What is left goes with the job, between two looks of a reader: it had output.
		update(t, b.Store, func(tx *Tx) error {
			_, err := tx.exec(deleteLog, id)
			return err
		})
		for _, offset := range []int64{0, 10_001, 15_000} {
			_, _, err := b.Log(t.Context(), id, 0, offset, 100_000)
			want(t, err, wire.NotFound, "not kept")
		}
	})
}
