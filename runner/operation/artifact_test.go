package operation

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/waypointd/waypoint/mux/wire"
)

func pack(tb testing.TB, dir string, outputs ...string) (string, wire.BlobHeader) {
	tb.Helper()
	path := filepath.Join(tb.TempDir(), "artifact")
	h, err := Pack(tb.Context(), dir, ".", outputs, path)
	if err != nil {
		tb.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		tb.Fatal(err)
	}
	if h.Digest != digestBytes(data) || h.Size != int64(len(data)) {
		tb.Fatalf("header %+v is not of the file", h)
	}
	return path, h
}

func unpackFile(tb testing.TB, path, dir string) error {
	tb.Helper()
	f, err := os.Open(path)
	if err != nil {
		tb.Fatal(err)
	}
	defer f.Close()
	return Unpack(tb.Context(), f, dir)
}

func TestPackRoundTrip(t *testing.T) {
	dir := t.TempDir()
	files := map[string]string{
		"bin/web": "#!x", "other": "not wanted", "static/empty/": "", "static/a b/ü": "y", "static/l": "->a b/ü",
		"static/up": "->../bin/web", "real/x": "1", "alias": "->real",
	}
	for i := range 2000 {
		files[fmt.Sprintf("static/many/%d/%d", i%13, i)] = fmt.Sprint("content ", i)
	}
	plant(t, dir, files)
	path, _ := pack(t, dir, "static/", "bin/web", "static/many", "alias")
	dst := filepath.Join(t.TempDir(), "new")
	if err := unpackFile(t, path, dst); err != nil {
		t.Fatal(err)
	}
	// What should be there: the tree without what was not wanted, and the
	// link that is an output followed.
	for _, p := range []string{"other", "real", "alias"} {
		if err := os.RemoveAll(filepath.Join(dir, p)); err != nil {
			t.Fatal(err)
		}
	}
	plant(t, dir, map[string]string{"alias/x": "1"})
	if a, b := listing(t, dir), listing(t, dst); !slices.Equal(a, b) {
		t.Errorf("got %d entries, want %d", len(b), len(a))
	}
	if err := unpackFile(t, path, dst); wire.KindOf(err) != wire.Conflict {
		t.Errorf("unpack into a directory that is not empty: %v, want conflict", err)
	}
}

// What nobody would unpack is refused before it is read.
func TestPackWithoutEnd(t *testing.T) {
	dir := t.TempDir()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	deep := strings.Repeat(strings.Repeat("d", 250)+"/", 17)
	if err := root.MkdirAll("deep/"+deep[:len(deep)-1], 0o755); err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(dir, "large"), "")
	for i := range 3 {
		if err := os.Truncate(filepath.Join(dir, "large"), maxUnpacked/2); err != nil {
			t.Skipf("NOT TESTED: this file system has no file of %d bytes: %v", int64(maxUnpacked/2), err)
		}
		if err := os.Rename(filepath.Join(dir, "large"), filepath.Join(dir, fmt.Sprint("large", i))); err != nil {
			t.Fatal(err)
		}
		writeFile(t, filepath.Join(dir, "large"), "")
	}
	path := filepath.Join(t.TempDir(), "artifact")
	if _, err := Pack(t.Context(), dir, ".", []string{"deep"}, path); wire.KindOf(err) != wire.BadUsage || !strings.Contains(err.Error(), "is too long") {
		t.Errorf("a deep one: %v", err)
	}
	// Twice the same is once.
	p := &packer{ctx: t.Context(), root: root, entries: map[string]packed{}}
	for range 2 {
		if err := errors.Join(p.output("large0"), p.output("large1")); err != nil {
			t.Error(err)
		}
	}
	if _, err := Pack(t.Context(), dir, ".", []string{"large0", "large1", "large2"}, path); wire.KindOf(err) != wire.TooLarge {
		t.Errorf("a large one: %v", err)
	}
	if _, err := (&countWriter{w: io.Discard, n: maxArchive}).Write([]byte("x")); wire.KindOf(err) != wire.TooLarge {
		t.Errorf("a large archive: %v", err)
	}
}

func TestPackIsDeterministic(t *testing.T) {
	data := make([]byte, 3<<20)
	r := rand.New(rand.NewPCG(1, 2))
	for i := range data {
		data[i] = byte(r.IntN(20))
	}
	var want wire.BlobHeader
	for i := range 3 {
		dir := t.TempDir()
		names := []string{"a/1", "a/2", "a/3", "b"}
		if i > 0 {
			slices.Reverse(names) // made in another order
		}
		for _, n := range names {
			writeFile(t, filepath.Join(dir, n), string(data))
		}
		at := time.Unix(int64(1e9*(i+1)), 0)
		if err := errors.Join(os.Chtimes(filepath.Join(dir, "a/1"), at, at), os.Chmod(filepath.Join(dir, "b"), 0o600)); err != nil {
			t.Fatal(err)
		}
		_, h := pack(t, dir, []string{"a", "b", "a/1"}[:2+i%2]...)
		if i == 0 {
			want = h
		} else if h != want {
			t.Errorf("archive %d is %+v, the first one %+v", i, h, want)
		}
	}
}

func TestPackRefuses(t *testing.T) {
	dir := t.TempDir()
	plant(t, dir, map[string]string{
		"a/x": "1", "file": "x", "out/l": "->/etc/passwd", "up/l": "->../../x", "away": "->/etc", "hole": "->nowhere",
	})
	if len(dir) < 80 { // a socket's path is short
		l, err := net.Listen("unix", filepath.Join(dir, "s"))
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
	} else {
		writeFile(t, filepath.Join(dir, "s"), "")
	}
	for _, c := range []struct{ output, want string }{
		{"missing", `output "missing" is missing after the build`},
		{"a/missing", `output "a/missing" is missing`},
		{"hole", `output "hole" is missing`},
		{"file/", `output "file/" is not a directory`},
		{"../x", `output "../x" leaves the working directory`},
		{"a/../../x", "leaves the working directory"},
		{"/etc/passwd", "leaves the working directory"},
		{"", "is no path"},
		{"away/passwd", `output "away/passwd"`},
		{"away", `output "away"`},
		{"out", "link out/l to /etc/passwd leaves the tree"},
		{"up", "link up/l to ../../x leaves the tree"},
		{"s", "s is a socket"},
	} {
		path := filepath.Join(t.TempDir(), "artifact")
		_, err := Pack(t.Context(), dir, ".", []string{"a", c.output}, path)
		if wire.KindOf(err) != wire.BadUsage || !strings.Contains(err.Error(), c.want) {
			t.Errorf("pack of %q: %v, want %q", c.output, err, c.want)
		}
		if _, err := os.Stat(path); err == nil {
			t.Errorf("pack of %q left a file", c.output)
		}
	}
}

func TestPackBehindALink(t *testing.T) {
	dir := t.TempDir()
	plant(t, dir, map[string]string{"releases/1/x": "1", "d/current": "->../releases/1"})
	for _, outputs := range [][]string{{"d", "d/current/x"}, {"d/current/x", "d"}} {
		path, _ := pack(t, dir, outputs...)
		dst := t.TempDir()
		if err := unpackFile(t, path, dst); err != nil {
			t.Fatalf("outputs %q: %v", outputs, err)
		}
		if b, err := os.ReadFile(filepath.Join(dst, "d/current/x")); err != nil || string(b) != "1" {
			t.Errorf("outputs %q: %q, %v", outputs, b, err)
		}
	}
}

// archive makes a tar.zst of headers; a file's content is its Linkname.
func archive(tb testing.TB, headers ...tar.Header) []byte {
	tb.Helper()
	var raw bytes.Buffer
	w := tar.NewWriter(&raw)
	for _, h := range headers {
		content := ""
		if h.Typeflag == tar.TypeReg {
			content, h.Linkname = h.Linkname, ""
			h.Size = int64(len(content))
		}
		if err := w.WriteHeader(&h); err != nil {
			tb.Fatal(err)
		}
		if _, err := io.WriteString(w, content); err != nil {
			tb.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		tb.Fatal(err)
	}
	return compress(tb, raw.Bytes())
}

func compress(tb testing.TB, raw []byte) []byte {
	tb.Helper()
	z, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(packWindow))
	if err != nil {
		tb.Fatal(err)
	}
	defer z.Close()
	return z.EncodeAll(raw, nil)
}

func TestUnpackRefuses(t *testing.T) {
	file := func(name string) tar.Header { return tar.Header{Typeflag: tar.TypeReg, Name: name, Linkname: "x"} }
	dir := func(name string) tar.Header { return tar.Header{Typeflag: tar.TypeDir, Name: name} }
	link := func(name, to string) tar.Header {
		return tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: to}
	}
	good := archive(t, dir("a/"), file("a/x"))
	for _, c := range []struct {
		name string
		data []byte
		want string
	}{
		{"parent", archive(t, file("../x")), "not a plain relative one"},
		{"parent inside", archive(t, dir("a/"), file("a/../../x")), "not a plain relative one"},
		{"absolute", archive(t, file("/x")), "not a plain relative one"},
		{"dot", archive(t, dir("./")), "not a plain relative one"},
		{"unclean", archive(t, dir("a/"), file("a//x")), "not a plain relative one"},
		{"no parent", archive(t, file("a/x")), "no directory of its own"},
		{"twice", archive(t, file("x"), file("x")), "there twice"},
		{"over a link", archive(t, link("x", "y"), file("x")), "there twice"},
		{"through a link", archive(t, dir("d/"), link("l", "d"), file("l/x")), "no directory of its own"},
		{"through a file", archive(t, file("f"), file("f/x")), "no directory of its own"},
		{"link away", archive(t, link("l", "/etc")), "leaves the tree"},
		{"link up", archive(t, link("l", "../x")), "leaves the tree"},
		{"link up, hidden", archive(t, link("here", "."), link("l", "here/../x")), `".." behind another name`},
		{"hard link", archive(t, file("f"), tar.Header{Typeflag: tar.TypeLink, Name: "l", Linkname: "f"}), "only files, directories and links"},
		{"device", archive(t, tar.Header{Typeflag: tar.TypeChar, Name: "null", Devmajor: 1, Devminor: 3}), "only files, directories and links"},
		{"pipe", archive(t, tar.Header{Typeflag: tar.TypeFifo, Name: "p"}), "only files, directories and links"},
		{"long name", archive(t, file(strings.Repeat("n", 300))), "too long"},
		{"not compressed", []byte("plainly not compressed"), "read archive"},
		{"nothing", nil, "read archive: EOF"},
		{"cut", good[:len(good)-5], "read archive"},
	} {
		t.Run(c.name, func(t *testing.T) {
			outer := t.TempDir()
			err := Unpack(t.Context(), bytes.NewReader(c.data), filepath.Join(outer, "in"))
			if err == nil {
				t.Fatal("it was unpacked")
			}
			if wire.KindOf(err) != wire.BadUsage || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want %q", err, c.want)
			}
			checkInside(t, outer)
		})
	}
	if err := Unpack(t.Context(), bytes.NewReader(good), t.TempDir()); err != nil {
		t.Errorf("good one: %v", err)
	}
}

// checkInside fails if anything but "in" has come into a directory, or a link
// in it can be followed out of it.
func checkInside(tb testing.TB, outer string) {
	tb.Helper()
	list, err := os.ReadDir(outer)
	if err != nil {
		tb.Fatal(err)
	}
	for _, d := range list {
		if d.Name() != "in" {
			tb.Fatalf("%s was written outside", d.Name())
		}
	}
	in, err := filepath.EvalSymlinks(filepath.Join(outer, "in"))
	if err != nil {
		return // never made
	}
	err = filepath.WalkDir(in, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.Type()&os.ModeSymlink == 0 {
			return err
		}
		if to, err := filepath.EvalSymlinks(path); err == nil && to != in && !strings.HasPrefix(to, in+"/") {
			tb.Fatalf("link %s leads to %s", path, to)
		}
		return nil
	})
	if err != nil {
		tb.Fatal(err)
	}
}

// TestPackHoldsNothing packs and unpacks 200 MB and looks at the memory taken.
func TestPackHoldsNothing(t *testing.T) {
	if testing.Short() {
		t.Skip("200 MB")
	}
	dir := t.TempDir()
	block := make([]byte, 1<<20)
	r := rand.New(rand.NewPCG(1, 2))
	f, err := os.Create(filepath.Join(dir, "big"))
	if err != nil {
		t.Fatal(err)
	}
	for range 200 {
		for i := range block {
			block[i] = byte(r.Uint32())
		}
		if _, err := f.Write(block); err != nil {
			t.Fatal(err)
		}
	}
	f.Close()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	path, h := pack2(t, dir, "big")
	if err := unpackFile(t, path, t.TempDir()); err != nil {
		t.Fatal(err)
	}
	runtime.ReadMemStats(&after)
	took := (after.TotalAlloc - before.TotalAlloc) >> 20
	t.Logf("%d MB packed into %d MB; %d MB allocated in all", 200, h.Size>>20, took)
	if took > 100 {
		t.Errorf("%d MB were allocated for an archive of 200", took)
	}
}

// pack2 is pack without reading the archive back.
func pack2(tb testing.TB, dir string, outputs ...string) (string, wire.BlobHeader) {
	tb.Helper()
	path := filepath.Join(tb.TempDir(), "artifact")
	h, err := Pack(tb.Context(), dir, ".", outputs, path)
	if err != nil {
		tb.Fatal(err)
	}
	return path, h
}

func FuzzUnpack(f *testing.F) {
	f.Add(archive(f, tar.Header{Typeflag: tar.TypeDir, Name: "a/"}, tar.Header{Typeflag: tar.TypeReg, Name: "a/x", Linkname: "x"}), false)
	var raw bytes.Buffer
	w := tar.NewWriter(&raw)
	for _, h := range []tar.Header{{Typeflag: tar.TypeDir, Name: "d/"}, {Typeflag: tar.TypeSymlink, Name: "d/l", Linkname: "../d"}, {Typeflag: tar.TypeReg, Name: "f"}} {
		if err := w.WriteHeader(&h); err != nil {
			f.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		f.Fatal(err)
	}
	f.Add(raw.Bytes(), true)
	f.Fuzz(func(t *testing.T, data []byte, compressed bool) {
		if compressed { // the archive is what is fuzzed, not the compressor
			data = compress(t, data)
		}
		outer := t.TempDir()
		_ = Unpack(t.Context(), bytes.NewReader(data), filepath.Join(outer, "in")) // refused or not: nothing may get out
		checkInside(t, outer)
	})
}
