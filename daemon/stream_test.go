package daemon

import "testing"

// A few readers get large batches. A thousand of them that do not read must
// not hold a thousand large ones, and what is given back is there again.
func TestBatchesShrink(t *testing.T) {
	var (
		room  batchRoom
		taken []int64
		all   int64
	)
	for reader := range int64(20_000) {
		n := room.take()
		if reader < 32 && n != streamMost {
			t.Errorf("reader %d gets a batch of %d bytes, want %d", reader, n, streamMost)
		}
		if reader >= 200 && n != streamLeast {
			t.Fatalf("reader %d gets a batch of %d bytes, want %d", reader, n, streamLeast)
		}
		taken = append(taken, n)
		if all += n; all > streamRoom+(reader+1)*streamLeast {
			t.Fatalf("%d readers hold %d bytes", reader+1, all)
		}
	}
	for _, n := range taken {
		room.free(n)
	}
	if n := room.take(); n != streamMost {
		t.Errorf("behind them all a batch has %d bytes, want %d", n, streamMost)
	}
}
