package operation

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/waypointd/waypoint/mux/wire"
)

// blobs is a server's store of blobs, for Checkout.
type blobs map[string][]byte

// put reads all blobs of a tree, as an upload does.
func (b blobs) put(tb testing.TB, tree *Tree) {
	tb.Helper()
	for _, blob := range tree.Blobs {
		r, err := blob.Open()
		if err != nil {
			tb.Fatal(err)
		}
		data, err := io.ReadAll(r)
		if err := errors.Join(err, r.Close()); err != nil {
			tb.Fatal(err)
		}
		if digestBytes(data) != blob.Digest || int64(len(data)) != blob.Size {
			tb.Fatalf("blob %+v has other bytes", blob.BlobHeader)
		}
		b[blob.Digest] = data
	}
}

func (b blobs) get(ctx context.Context, digests []string, sink func(h wire.BlobHeader, r io.Reader) error) error {
	for _, d := range digests {
		data, ok := b[d]
		if !ok {
			return wire.Errorf(wire.NotFound, "no blob %s", d)
		}
		if err := sink(wire.BlobHeader{Digest: d, Size: int64(len(data))}, bytes.NewReader(data)); err != nil {
			return err
		}
	}
	return nil
}

func writeFile(tb testing.TB, path, text string) {
	tb.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		tb.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		tb.Fatal(err)
	}
}

// plant makes files of "path" → content; a path that ends with "/" is a
// directory, a content that begins with "->" a link, with "#!" a program.
func plant(tb testing.TB, root string, files map[string]string) {
	tb.Helper()
	for path, text := range files {
		full := filepath.Join(root, path)
		target, link := strings.CutPrefix(text, "->")
		switch {
		case strings.HasSuffix(path, "/"):
			if err := os.MkdirAll(full, 0o755); err != nil {
				tb.Fatal(err)
			}
		case link:
			if err := errors.Join(os.MkdirAll(filepath.Dir(full), 0o755), os.Symlink(target, full)); err != nil {
				tb.Fatal(err)
			}
		default:
			writeFile(tb, full, text)
			if strings.HasPrefix(text, "#!") {
				if err := os.Chmod(full, 0o755); err != nil {
					tb.Fatal(err)
				}
			}
		}
	}
}

// listing describes all that is in a directory.
func listing(tb testing.TB, root string) []string {
	tb.Helper()
	var list []string
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == root {
			return err
		}
		rel, _ := filepath.Rel(root, path)
		info, err := d.Info()
		if err != nil {
			return err
		}
		line := fmt.Sprintf("%s %s", rel, info.Mode())
		switch {
		case d.Type() == fs.ModeSymlink:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			line += " -> " + target
		case d.Type().IsRegular():
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			line += " " + digestBytes(data)
		}
		list = append(list, line)
		return nil
	})
	if err != nil {
		tb.Fatal(err)
	}
	slices.Sort(list)
	return list
}

func paths(tree []entry) []string {
	var list []string
	for _, e := range tree {
		list = append(list, e.Path)
	}
	return list
}

func scan(tb testing.TB, root string, ignore ...string) (*Tree, []entry) {
	tb.Helper()
	tree, err := Scan(tb.Context(), root, ignore, nil)
	if err != nil {
		tb.Fatal(err)
	}
	b := blobs{}
	b.put(tb, tree)
	m, err := parseManifest(b[tree.Digest])
	if err != nil {
		tb.Fatal(err)
	}
	return tree, m.Entries
}

func TestRoundTrip(t *testing.T) {
	src := t.TempDir()
	files := map[string]string{
		"empty/": "", "nothing": "", "run": "#!/bin/sh\n", "sub/link": "->../run", "same/a": "same", "same/b": "same",
		"same-name": "x", "same/dangling": "->nowhere/at/all", "ünï/cödé & <html>": "y",
	}
	for i := range 3000 {
		files[fmt.Sprintf("many/%d/%d/file-%d", i%7, i%31, i)] = fmt.Sprint("content ", i%2000)
	}
	plant(t, src, files)
	var told int
	tree, err := Scan(t.Context(), src, nil, func(files int, bytes int64) { told = files })
	if err != nil {
		t.Fatal(err)
	}
	if want := 3000 + 6; tree.Files != want || told != want {
		t.Errorf("%d files, %d told, want %d", tree.Files, told, want)
	}
	store := blobs{}
	store.put(t, tree)
	if want := 2000 + 5 + 1; len(tree.Blobs) != want || len(store) != want {
		t.Errorf("%d blobs, %d of them different, want %d", len(tree.Blobs), len(store), want)
	}
	dst := filepath.Join(t.TempDir(), "new")
	if err := Checkout(t.Context(), tree.Digest, dst, store.get); err != nil {
		t.Fatal(err)
	}
	if a, b := listing(t, src), listing(t, dst); !slices.Equal(a, b) {
		t.Errorf("trees differ: %d against %d entries", len(a), len(b))
	}
	again, err := Scan(t.Context(), dst, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if again.Digest != tree.Digest {
		t.Errorf("digest of the copy %s, of the original %s", again.Digest, tree.Digest)
	}
	if err := Checkout(t.Context(), tree.Digest, dst, store.get); wire.KindOf(err) != wire.Conflict {
		t.Errorf("checkout into a directory that is not empty: %v, want conflict", err)
	}
}

func TestDigestIsStable(t *testing.T) {
	dir := t.TempDir()
	plant(t, dir, map[string]string{"b/x": "1", "a": "#!", "b.c": "2", "l": "->a"})
	tree, _ := scan(t, dir)
	const want = "sha256:df157c0d603f12c98bfa2b915569cb63d7e2d4614c05f739a3ec9f143dddc249"
	if tree.Digest != want {
		text, _ := tree.Blobs[0].Open()
		b, _ := io.ReadAll(text)
		t.Errorf("digest %s, want %s: the form of the manifest has changed:\n%s", tree.Digest, want, b)
	}
}

func TestScanIgnores(t *testing.T) {
	dir := t.TempDir()
	plant(t, dir, map[string]string{
		".git/config": "x", "sub/.git": "gitdir: elsewhere", "keep": "x", "sub/deep/keep": "x",
		".gitignore":      "*.o\n/build/\nlogs/**\n!logs/.gitkeep\n!.git\n",
		".waypointignore": "docs\n!wanted.o\n",
		"a.o":             "x", "wanted.o": "x", "build/x": "x", "sub/build/x": "x",
		"logs/.gitkeep": "", "logs/x": "x", "docs/x": "x", "sub/docs": "x",
		"sub/.gitignore": "!b.o\nlocal\n", "sub/a.o": "x", "sub/b.o": "x", "sub/local": "x", "local": "x",
		"node_modules/x": "x", "sub/node_modules/x": "x",
	})
	_, entries := scan(t, dir, "node_modules/")
	want := []string{
		".gitignore", ".waypointignore", "keep", "local", "logs", "logs/.gitkeep", "sub", "sub/.gitignore",
		"sub/b.o", "sub/build", "sub/build/x", "sub/deep", "sub/deep/keep", "wanted.o",
	}
	if got := paths(entries); !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

func TestScanSpecialFiles(t *testing.T) {
	dir := t.TempDir()
	plant(t, dir, map[string]string{"a": "x"})
	if err := syscall.Mkfifo(filepath.Join(dir, "pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	tree, entries := scan(t, dir)
	if !slices.Equal(tree.Skipped, []string{"pipe"}) || !slices.Equal(paths(entries), []string{"a"}) {
		t.Errorf("skipped %q, entries %q", tree.Skipped, paths(entries))
	}
}

func TestScanRefuses(t *testing.T) {
	for name, files := range map[string]map[string]string{
		"absolute link":    {"l": "->/etc/passwd"},
		"link out":         {"a/l": "->../../x"},
		"link out, hidden": {"here": "->.", "l": "->here/../../x"},
		"not UTF-8":        {"a\xff": "x"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			plant(t, dir, files)
			_, err := Scan(t.Context(), dir, nil, nil)
			if e, ok := errors.AsType[*wire.Error](err); !ok || e.Kind != wire.BadUsage || e.Hint == "" {
				t.Errorf("error %#v, want one of usage with a hint", err)
			}
		})
	}
}

func TestScanSeesChanges(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a")
	writeFile(t, path, "one")
	tree, _ := scan(t, dir)
	writeFile(t, path, "other")
	if _, err := tree.Blobs[1].Open(); wire.KindOf(err) != wire.Conflict {
		t.Errorf("open of a changed file: %v, want conflict", err)
	}

	// While it is being read.
	tree, _ = scan(t, dir)
	r, err := tree.Blobs[1].Open()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString("more"); err != nil {
		t.Fatal(err)
	}
	f.Close()
	if _, err := io.Copy(io.Discard, r); wire.KindOf(err) != wire.Conflict {
		t.Errorf("read of a changing file: %v, want conflict", err)
	}

	// While it is hashed: the progress of the file before is the moment.
	writeFile(t, filepath.Join(dir, "b"), strings.Repeat("x", 1<<20))
	grow := contextFunc{Context: t.Context(), f: func() {
		f, err := os.OpenFile(filepath.Join(dir, "b"), os.O_APPEND|os.O_WRONLY, 0)
		if err == nil {
			f.WriteString("more")
			f.Close()
		}
	}}
	if _, err := Scan(grow, dir, nil, nil); wire.KindOf(err) != wire.Conflict {
		t.Errorf("scan of a growing file: %v, want conflict", err)
	}
}

// contextFunc calls f whenever somebody looks whether it has ended: for each
// piece that is read.
type contextFunc struct {
	context.Context
	f func()
}

func (c contextFunc) Err() error { c.f(); return c.Context.Err() }

func TestScanEndsWithItsContext(t *testing.T) {
	dir := t.TempDir()
	plant(t, dir, map[string]string{"a": "x"})
	cause := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(cause)
	if _, err := Scan(ctx, dir, nil, nil); !errors.Is(err, cause) {
		t.Errorf("error %v, want %v", err, cause)
	}
}

func BenchmarkScan(b *testing.B) {
	dir := b.TempDir()
	data := make([]byte, 8<<10)
	const files = 5000
	for i := range files {
		rand.Read(data)
		writeFile(b, filepath.Join(dir, fmt.Sprint(i%50), fmt.Sprint(i)), string(data))
	}
	writeFile(b, filepath.Join(dir, ".gitignore"), strings.Repeat("*.o\nbuild/\n/a/b\n**/x/y\n", 10))
	b.SetBytes(files * int64(len(data)))
	for b.Loop() {
		if _, err := Scan(b.Context(), dir, nil, nil); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(files)*float64(b.N)/b.Elapsed().Seconds(), "files/s")
}
