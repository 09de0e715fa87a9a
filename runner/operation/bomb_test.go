package operation

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/waypointd/waypoint/mux/wire"
)

// stream compresses what write puts into an archive, while it is read.
func stream(t *testing.T, write func(w *tar.Writer) error) io.Reader {
	t.Helper()
	r, w := io.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		z, err := zstd.NewWriter(w, zstd.WithWindowSize(packWindow), zstd.WithEncoderConcurrency(1))
		if err != nil {
			w.CloseWithError(err)
			return
		}
		tw := tar.NewWriter(z)
		err = write(tw)
		if err == nil {
			err = tw.Close()
		}
		if cerr := z.Close(); err == nil {
			err = cerr
		}
		w.CloseWithError(err)
	}()
	t.Cleanup(func() {
		r.Close()
		<-done
	})
	return r
}

// What is small and unpacks to more than there is: each is refused before it is
// written, and none takes more memory than a good one may.
func TestUnpackBombs(t *testing.T) {
	deepest := strings.Repeat(strings.Repeat("d", 200)+"/", 19)
	names := func(entry func(n int) tar.Header) func(w *tar.Writer) error {
		return func(w *tar.Writer) error {
			for at := 0; at < len(deepest); at += 201 {
				if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: deepest[:at+201]}); err != nil {
					return err
				}
			}
			for n := range maxEntries {
				h := entry(n)
				if err := w.WriteHeader(&h); err != nil {
					return err
				}
			}
			return nil
		}
	}
	sparse := func(size int64) []byte { // of GNU's, by records: all of it is a hole
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "hole", Format: tar.FormatPAX, PAXRecords: map[string]string{
			"WAY.point": strings.Repeat("x", 200), // room for the records below, which the writer does not make
		}}); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		raw := b.Bytes()
		at := bytes.Index(raw, []byte(" WAY.point="))
		for raw[at-1] >= '0' && raw[at-1] <= '9' {
			at--
		}
		end := at + bytes.IndexByte(raw[at:], '\n') + 1
		var records strings.Builder
		record := func(k, v string) {
			n := len(k) + len(v) + 3
			for n != len(fmt.Sprintf("%d %s=%s\n", n, k, v)) {
				n++
			}
			fmt.Fprintf(&records, "%d %s=%s\n", n, k, v)
		}
		record("GNU.sparse.major", "0")
		record("GNU.sparse.minor", "1")
		record("GNU.sparse.name", "hole")
		record("GNU.sparse.size", fmt.Sprint(size))
		record("GNU.sparse.numblocks", "1")
		record("GNU.sparse.map", fmt.Sprintf("%d,0", size))
		left := end - at - records.Len()
		record("X", strings.Repeat("x", left-len(fmt.Sprintf("%d X=\n", left))))
		if records.Len() != end-at {
			t.Fatalf("records of %d bytes for %d", records.Len(), end-at)
		}
		copy(raw[at:end], records.String())
		return compress(t, raw)
	}
	zeros := func(opts ...zstd.EOption) []byte { // 64 MiB behind an archive
		var b bytes.Buffer
		z, err := zstd.NewWriter(&b, opts...)
		if err != nil {
			t.Fatal(err)
		}
		w := tar.NewWriter(z)
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "x"}); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		for range 64 {
			if _, err := z.Write(make([]byte, 1<<20)); err != nil {
				t.Fatal(err)
			}
		}
		if err := z.Close(); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	// A frame that says it needs a window of 2 GiB, and one that says it holds 2^60 bytes.
	window := []byte{0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xa8, 1, 0, 0}
	content := []byte{0x28, 0xb5, 0x2f, 0xfd, 0xc0, 0x60, 0, 0, 0, 0, 0, 0, 0, 0x10, 1, 0, 0}

	for _, c := range []struct {
		name string
		r    io.Reader
		kind wire.Kind
		want string
	}{
		{"names", stream(t, names(func(n int) tar.Header {
			return tar.Header{Typeflag: tar.TypeReg, Name: deepest + fmt.Sprint(n)}
		})), wire.TooLarge, "names of more than"},
		{"targets of links", stream(t, names(func(n int) tar.Header {
			return tar.Header{Typeflag: tar.TypeSymlink, Name: fmt.Sprint("l", n), Linkname: strings.Repeat("x", 4000)}
		})), wire.TooLarge, "names of more than"},
		{"a size of 1 TiB", stream(t, func(w *tar.Writer) error {
			return w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "big", Size: 1 << 40})
		}), wire.TooLarge, "over the limit"},
		{"a hole of 1 TiB", bytes.NewReader(sparse(1 << 40)), wire.TooLarge, "over the limit"},
		{"much behind its end", bytes.NewReader(zeros(zstd.WithWindowSize(packWindow))), wire.BadUsage, "more than an archive"},
		{"a window of 8 MiB", bytes.NewReader(zeros(zstd.WithWindowSize(8 << 20))), wire.BadUsage, "window"},
		{"a window of 2 GiB", bytes.NewReader(window), wire.BadUsage, "window"},
		{"a content of 2^60 bytes", bytes.NewReader(content), wire.BadUsage, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			if testing.Short() && strings.HasPrefix(c.want, "names") {
				t.Skip("128 MiB of names")
			}
			outer := t.TempDir()
			var before, after runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&before)
			err := Unpack(t.Context(), c.r, filepath.Join(outer, "in"))
			runtime.ReadMemStats(&after)
			if wire.KindOf(err) != c.kind || !strings.Contains(fmt.Sprint(err), c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
			if held := int64(after.HeapSys) - int64(before.HeapSys); held > 600<<20 {
				t.Errorf("the heap has grown by %d MiB", held>>20)
			} else {
				t.Logf("the heap has grown by %d MiB", held>>20)
			}
			checkInside(t, outer)
			if info, err := os.Stat(filepath.Join(outer, "in", "hole")); err == nil && info.Size() > 0 {
				t.Errorf("%d bytes were written", info.Size())
			}
		})
	}
}
