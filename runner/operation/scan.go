package operation

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"unicode/utf8"

	"github.com/waypointd/waypoint/mux/client"
	"github.com/waypointd/waypoint/mux/wire"
)

// Tree is a scanned source tree: a manifest and the files it lists.
type Tree struct {
	Digest string        // of the manifest
	Blobs  []client.Blob // manifest and files, each once; Open refuses a file that has changed since
	Files  int
	Size   int64

	// Skipped are the paths of sockets, devices and pipes, which are no part
	// of a tree. Whoever scans says so.
	Skipped []string
}

// Scan reads the tree under root: the whole of it but .git and what
// .gitignore and .waypointignore (at every level) and ignore (patterns of the
// same form, the last word) leave out. Ignore files above root are not read. Empty directories are part of the
// tree, symbolic links stay links, of the modes the executable bit is kept. A link that leaves the
// tree, a name that is not UTF-8 and a file that changes while it is read are
// errors. progress (may be nil) is told of files as they are hashed.
func Scan(ctx context.Context, root string, ignore []string, progress func(files int, bytes int64)) (*Tree, error) {
	abs, err := filepath.Abs(root)
	if err != nil {
		return nil, err
	}
	r, err := os.OpenRoot(abs)
	if err != nil {
		return nil, wire.Errorf(wire.BadUsage, "scan source: %v", err)
	}
	defer r.Close()
	s := &scanner{
		ctx: ctx, root: r, base: abs, progress: progress,
		tree: &Tree{}, blobs: map[string]bool{}, sum: sha256.New(), buf: make([]byte, 128<<10),
	}
	for _, line := range ignore {
		if rule, ok := parseRule(line, 0); ok {
			s.last = append(s.last, rule)
		}
	}
	if err := s.dir("", nil, nil); err != nil {
		return nil, err
	}
	return s.finish()
}

type scanner struct {
	ctx      context.Context
	root     *os.Root
	base     string // root's path
	last     rules  // asked before those of the ignore files
	progress func(files int, bytes int64)
	tree     *Tree
	entries  []entry
	blobs    map[string]bool // digests that tree.Blobs has
	sum      hash.Hash
	buf      []byte
}

// dir adds what is in a directory; rs are the rules of those above it.
func (s *scanner) dir(dir string, names []string, rs rules) error {
	if err := context.Cause(s.ctx); err != nil {
		return err
	}
	own, err := readRules(s.root, dir, len(names))
	if err != nil {
		return wire.Errorf(wire.BadUsage, "scan source: %v", err)
	}
	rs = append(slices.Clip(rs), own...)
	f, err := s.root.Open(cmp.Or(dir, "."))
	if err != nil {
		return wire.Errorf(wire.BadUsage, "scan source: %v", err)
	}
	list, err := f.ReadDir(-1)
	f.Close()
	if err != nil {
		return wire.Errorf(wire.BadUsage, "scan source: %v", err)
	}
	for _, d := range list {
		if d.Name() == ".git" {
			continue
		}
		path := slashJoin(dir, d.Name())
		names := append(slices.Clip(names), d.Name())
		if s.ignored(names, d.IsDir(), rs) {
			continue
		}
		if !utf8.ValidString(path) {
			return wire.Errorf(wire.BadUsage, "scan source: the name %q is not UTF-8", path).
				WithHint("rename it, or exclude it in .waypointignore")
		}
		if err := s.add(path, names, d, rs); err != nil {
			return err
		}
	}
	return nil
}

func (s *scanner) ignored(names []string, dir bool, rs rules) bool {
	for i := len(s.last) - 1; i >= 0; i-- {
		if s.last[i].match(names, dir) {
			return !s.last[i].include
		}
	}
	return rs.ignored(names, dir)
}

func (s *scanner) add(path string, names []string, d fs.DirEntry, rs rules) error {
	switch d.Type() {
	case fs.ModeDir:
		s.entries = append(s.entries, entry{Path: path, Type: entryDir})
		return s.dir(path, names, rs)
	case fs.ModeSymlink:
		target, err := s.root.Readlink(path)
		if err != nil {
			return wire.Errorf(wire.BadUsage, "scan source: %v", err)
		}
		if why := badLink(path, target); why != "" {
			return wire.Errorf(wire.BadUsage, "scan source: link %s to %s %s", path, target, why).
				WithHint("exclude it in .waypointignore, or make it point to something in the project")
		}
		s.entries = append(s.entries, entry{Path: path, Type: entryLink, Target: target})
		return nil
	case 0:
		return s.file(path)
	}
	s.tree.Skipped = append(s.tree.Skipped, path)
	return nil
}

// file hashes a file.
func (s *scanner) file(path string) error {
	f, err := s.root.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return wire.Errorf(wire.BadUsage, "scan source: %v", err)
	}
	defer f.Close()
	before, err := f.Stat()
	if err != nil {
		return wire.Errorf(wire.BadUsage, "scan source: %v", err)
	}
	if !before.Mode().IsRegular() {
		return changed("scan source", path)
	}
	s.sum.Reset()
	// One byte more than there was, so that a file that grows is seen to, and
	// one that never stops growing does not keep this from ending.
	n, err := copyContext(s.ctx, s.sum, io.LimitReader(f, before.Size()+1), s.buf)
	if err != nil {
		return err
	}
	after, err := f.Stat()
	if err != nil {
		return wire.Errorf(wire.BadUsage, "scan source: %v", err)
	}
	if n != before.Size() || !sameFile(before, after) {
		return changed("scan source", path)
	}
	digest := digestOf(s.sum.Sum(nil))
	s.entries = append(s.entries, entry{
		Path: path, Type: entryFile, Exec: before.Mode()&0o100 != 0, Size: n, Digest: digest,
	})
	if !s.blobs[digest] {
		s.blobs[digest] = true
		s.tree.Blobs = append(s.tree.Blobs, client.Blob{
			BlobHeader: wire.BlobHeader{Digest: digest, Size: n},
			Open:       func() (io.ReadCloser, error) { return openUnchanged(s.base, path, before) },
		})
	}
	s.tree.Files++
	s.tree.Size += n
	if s.progress != nil {
		s.progress(s.tree.Files, s.tree.Size)
	}
	return nil
}

// finish adds the manifest, as the first blob.
func (s *scanner) finish() (*Tree, error) {
	slices.SortFunc(s.entries, func(a, b entry) int { return cmp.Compare(a.Path, b.Path) })
	if len(s.entries) > maxEntries {
		return nil, wire.Errorf(wire.TooLarge, "scan source: %d files and directories are over the limit of %d", len(s.entries), maxEntries).
			WithHint("exclude what the job does not need in .waypointignore")
	}
	m := manifest{Version: manifestVersion, Entries: s.entries}
	if m.Entries == nil {
		m.Entries = []entry{}
	}
	text, err := m.encode()
	if err != nil {
		return nil, err
	}
	t := s.tree
	t.Digest = digestBytes(text)
	if !s.blobs[t.Digest] {
		t.Blobs = slices.Insert(t.Blobs, 0, client.Blob{
			BlobHeader: wire.BlobHeader{Digest: t.Digest, Size: int64(len(text))},
			Open:       func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(text)), nil },
		})
	}
	return t, nil
}

// sameFile reports whether nothing was written to a file between two looks.
func sameFile(a, b fs.FileInfo) bool {
	return os.SameFile(a, b) && a.Size() == b.Size() && a.ModTime().Equal(b.ModTime())
}

func changed(doing, path string) error {
	return wire.Errorf(wire.Conflict, "%s: %s changed while it was read", doing, path).
		WithHint("try again when nothing writes to it, or exclude it in .waypointignore")
}

// unchanged reads a file that is still what Scan saw, to its end.
type unchanged struct {
	*os.File
	path string
	was  fs.FileInfo
}

func openUnchanged(base, path string, was fs.FileInfo) (io.ReadCloser, error) {
	f, err := os.OpenFile(filepath.Join(base, filepath.FromSlash(path)), os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, wire.Errorf(wire.Conflict, "send source: %v", err)
	}
	u := &unchanged{File: f, path: path, was: was}
	if err := u.check(); err != nil {
		f.Close()
		return nil, err
	}
	return u, nil
}

func (u *unchanged) check() error {
	now, err := u.Stat()
	if err != nil {
		return err
	}
	if !sameFile(u.was, now) {
		return changed("send source", u.path)
	}
	return nil
}

func (u *unchanged) Read(p []byte) (int, error) {
	n, err := u.File.Read(p)
	if errors.Is(err, io.EOF) {
		if why := u.check(); why != nil {
			return n, why
		}
	}
	return n, err
}

// WriteTo hides the file's own, which would not check.
func (u *unchanged) WriteTo(w io.Writer) (int64, error) {
	return io.Copy(w, struct{ io.Reader }{u})
}

// copyContext is io.CopyBuffer that ends with its context.
func copyContext(ctx context.Context, w io.Writer, r io.Reader, buf []byte) (int64, error) {
	return io.CopyBuffer(struct{ io.Writer }{w}, contextReader{ctx, r}, buf)
}

type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c contextReader) Read(p []byte) (int, error) {
	if c.ctx.Err() != nil {
		return 0, context.Cause(c.ctx)
	}
	return c.r.Read(p)
}
