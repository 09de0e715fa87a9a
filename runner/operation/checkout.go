package operation

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"slices"

	"github.com/waypointd/waypoint/mux/wire"
)

// fetchBatch is how many files are asked for at once: their digests fit into
// one CALL, and the answer is long enough to hide the round trip.
const fetchBatch = 512

// Checkout writes the tree of that digest into dir, which is made where it is missing
// and has to be empty. Digests are checked; a manifest that Scan would not have made is refused before
// anything is written. After an error dir may hold a part of the tree.
func Checkout(ctx context.Context, digest, dir string, fetch Fetch) error {
	text, err := fetchManifest(ctx, digest, fetch)
	if err != nil {
		return err
	}
	m, err := parseManifest(text)
	if err != nil {
		return err
	}
	root, err := openEmpty("check out source", dir)
	if err != nil {
		return err
	}
	defer root.Close()
	c := &checkout{ctx: ctx, root: root, files: map[string][]*entry{}, sum: sha256.New(), buf: make([]byte, 64<<10)}
	var digests []string
	var links []*entry
	for i := range m.Entries {
		switch e := &m.Entries[i]; e.Type {
		case entryDir:
			if err := makeDir(root, e.Path); err != nil {
				return fmt.Errorf("check out source: %w", err)
			}
		case entryLink:
			links = append(links, e)
		case entryFile:
			if c.files[e.Digest] == nil {
				digests = append(digests, e.Digest)
			}
			c.files[e.Digest] = append(c.files[e.Digest], e)
		}
	}
	for batch := range slices.Chunk(digests, fetchBatch) {
		if err := c.fetch(batch, fetch); err != nil {
			return err
		}
	}
	// Links come last, so that nothing was written with one in place.
	for _, e := range links {
		if err := root.Symlink(e.Target, e.Path); err != nil {
			return fmt.Errorf("check out source: %w", err)
		}
	}
	return nil
}

func fetchManifest(ctx context.Context, digest string, fetch Fetch) ([]byte, error) {
	if !validDigest(digest) {
		return nil, wire.Errorf(wire.BadUsage, "check out source: bad digest %q", digest)
	}
	var text []byte
	err := fetch(ctx, []string{digest}, func(h wire.BlobHeader, r io.Reader) error {
		if h.Size > maxManifest {
			return wire.Errorf(wire.TooLarge, "manifest of %d bytes is over the limit of %d", h.Size, maxManifest)
		}
		var b bytes.Buffer
		if _, err := io.Copy(&b, io.LimitReader(r, maxManifest+1)); err != nil {
			return err
		}
		text = b.Bytes()
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("check out source: get manifest: %w", err)
	}
	if digestBytes(text) != digest {
		return nil, wire.Errorf(wire.Internal, "check out source: get manifest: what came is not %s", digest)
	}
	return text, nil
}

type checkout struct {
	ctx   context.Context
	root  *os.Root
	files map[string][]*entry // by digest; taken out when written
	sum   hash.Hash
	buf   []byte
}

func (c *checkout) fetch(digests []string, fetch Fetch) error {
	next := 0
	err := fetch(c.ctx, digests, func(h wire.BlobHeader, r io.Reader) error {
		if next >= len(digests) || h.Digest != digests[next] {
			return wire.Errorf(wire.Internal, "%s was not asked for, or not now", h.Digest)
		}
		next++
		return c.write(h, r)
	})
	if err != nil {
		return fmt.Errorf("check out source: %w", err)
	}
	if next < len(digests) {
		return wire.Errorf(wire.NotFound, "check out source: %s did not come", digests[next])
	}
	return nil
}

// write makes all files of one digest.
func (c *checkout) write(h wire.BlobHeader, r io.Reader) error {
	entries := c.files[h.Digest]
	first := entries[0]
	if h.Size != first.Size {
		return wire.Errorf(wire.Internal, "%s has %d bytes, its manifest says %d", h.Digest, h.Size, first.Size)
	}
	c.sum.Reset()
	err := createFile(c.root, first.Path, first.Exec, func(f *os.File) error {
		// One byte more than there should be, so that too many are seen.
		_, err := copyContext(c.ctx, io.MultiWriter(f, c.sum), io.LimitReader(r, first.Size+1), c.buf)
		return err
	})
	if err != nil {
		return err
	}
	if digestOf(c.sum.Sum(nil)) != h.Digest {
		return wire.Errorf(wire.Internal, "the bytes of %s are not what their digest says", first.Path)
	}
	for _, e := range entries[1:] {
		err := createFile(c.root, e.Path, e.Exec, func(f *os.File) error {
			src, err := c.root.Open(first.Path)
			if err != nil {
				return err
			}
			defer src.Close()
			_, err = io.Copy(f, src)
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// openEmpty opens a directory that is to be filled.
func openEmpty(doing, dir string) (*os.Root, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("%s: %w", doing, err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", doing, err)
	}
	f, err := root.Open(".")
	if err == nil {
		_, err = f.Readdirnames(1)
		f.Close()
	}
	switch {
	case errors.Is(err, io.EOF):
		return root, nil
	case err == nil:
		err = wire.Errorf(wire.Conflict, "%s: %s is not empty", doing, dir)
	default:
		err = fmt.Errorf("%s: %w", doing, err)
	}
	root.Close()
	return nil, err
}

// makeDir makes a directory whose mode does not depend on the umask: a job
// may run as another user.
func makeDir(root *os.Root, path string) error {
	if err := root.Mkdir(path, 0o755); err != nil {
		return err
	}
	return root.Chmod(path, 0o755)
}

// createFile makes a new file and has it filled; one that exists is an error.
func createFile(root *os.Root, path string, executable bool, fill func(f *os.File) error) error {
	f, err := root.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	err = fill(f)
	if err == nil {
		err = f.Chmod(fileMode(executable))
	}
	return errors.Join(err, f.Close())
}

func fileMode(executable bool) fs.FileMode {
	if executable {
		return 0o755
	}
	return 0o644
}
