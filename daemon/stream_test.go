package daemon

import "testing"

// A thousand readers that do not read must not take a thousand large batches.
func TestStreamBatchShrinks(t *testing.T) {
	for _, test := range []struct {
		readers int64
		want    int
	}{{0, streamMost}, {1, streamMost}, {64, streamMost}, {128, streamMost / 2}, {1024, streamLeast}, {20_000, streamLeast}} {
		if got := streamBatch(test.readers); got != test.want {
			t.Errorf("with %d readers a batch has %d bytes, want %d", test.readers, got, test.want)
		}
	}
	for _, readers := range []int64{1, 50, 100, 1000} {
		if all := readers * int64(streamBatch(readers)); all > streamAll {
			t.Errorf("%d readers take %d bytes, may take %d", readers, all, int64(streamAll))
		}
	}
}
