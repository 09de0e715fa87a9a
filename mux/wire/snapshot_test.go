package wire

import (
	"bytes"
	"crypto/sha256"
	"math/rand/v2"
	"strings"
	"testing"
)

// sealed makes a snapshot of a size, which need not be a real database.
func sealed(t *testing.T, h SnapshotHeader, size int) []byte {
	t.Helper()
	data := make([]byte, size)
	for i := range data {
		data[i] = byte(rand.Uint32())
	}
	copy(data, sqliteMagic)
	sum := sha256.New()
	sum.Write(data)
	seal, err := h.Seal(sum)
	if err != nil {
		t.Fatal(err)
	}
	return append(data, seal...)
}

// checked writes it in pieces of a size.
func checked(snapshot []byte, piece int) (SnapshotHeader, error) {
	c := NewSnapshotCheck()
	for len(snapshot) > 0 {
		n := min(piece, len(snapshot))
		c.Write(snapshot[:n])
		snapshot = snapshot[n:]
	}
	return c.Header()
}

func TestSnapshotCheck(t *testing.T) {
	for _, size := range []int{512, maxSeal - 1, maxSeal, 2*maxSeal + 1, 3 * maxSeal, 200_000} {
		h := SnapshotHeader{Format: 1, Schema: 3, ServerID: "s1", TakenAt: when, Software: "waypoint 0.1.0", Engine: "sqlite", Size: int64(size)}
		whole := sealed(t, h, size)
		for _, piece := range []int{7, maxSeal - 1, maxSeal, maxSeal + 1, 2*maxSeal + 1, 16 << 10, len(whole)} {
			if got, err := checked(whole, piece); err != nil || got != h {
				t.Errorf("%d bytes in pieces of %d: %+v, %v", size, piece, got, err)
			}
		}
		// One bit, anywhere; every bit of the last line.
		for at := range whole {
			if at > 100 && at < size && at%997 != 0 {
				continue
			}
			bad := bytes.Clone(whole)
			bad[at] ^= 1 << (at % 8)
			if _, err := checked(bad, 16<<10); KindOf(err) != BadUsage {
				t.Fatalf("%d bytes, another bit at %d: %v", size, at, err)
			}
		}
		for cut := 1; cut < len(whole); cut += max(1, len(whole)/500) {
			if _, err := checked(whole[:len(whole)-cut], 16<<10); KindOf(err) != BadUsage {
				t.Fatalf("%d bytes, %d cut off: %v", size, cut, err)
			}
		}
		if _, err := checked(append(bytes.Clone(whole), '\n'), 16<<10); KindOf(err) != BadUsage {
			t.Errorf("%d bytes and one more: %v", size, err)
		}
		h.Size++
		if _, err := checked(sealed(t, h, size), 16<<10); KindOf(err) != BadUsage {
			t.Errorf("%d bytes that claim one more: %v", size, err)
		}
		h.Size, h.Format, h.Software = int64(size), SnapshotFormat+1, "waypoint 9.0.0"
		if _, err := checked(sealed(t, h, size), 16<<10); KindOf(err) != Conflict || !strings.Contains(err.Error(), "format 2") ||
			!strings.Contains(err.Error(), "up to 1") || !strings.Contains(err.Error(), "waypoint 9.0.0") {
			t.Errorf("a newer format: %v", err)
		}
	}
	for _, text := range []string{"", "\n", "SQLite format 3\x00", strings.Repeat("x", 100_000)} {
		if _, err := checked([]byte(text), 16<<10); KindOf(err) != BadUsage {
			t.Errorf("%.20q: %v", text, err)
		}
	}
}
