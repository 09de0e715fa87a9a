package operation

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"

	"github.com/klauspost/compress/zstd"

	"github.com/waypointd/waypoint/mux/wire"
)

// Unpack unpacks an archive made by Pack into dir, which is made where it is
// missing and has to be empty. Refused are, before they are written: paths that are absolute or
// leave dir, what is there twice or lies below a link or a file, links that
// leave dir, anything but files, directories and links, and more than the
// limits. After an error dir may hold a part of it.
func Unpack(ctx context.Context, r io.Reader, dir string) error {
	root, err := openEmpty("unpack artifact", dir)
	if err != nil {
		return err
	}
	defer root.Close()
	z, err := zstd.NewReader(contextReader{ctx, r}, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(packWindow))
	if err != nil {
		return wire.Errorf(wire.Internal, "unpack artifact: %v", err)
	}
	defer z.Close()
	b := bufio.NewReader(z)
	if _, err := b.Peek(1); err != nil {
		return wire.Errorf(wire.BadUsage, "unpack artifact: read archive: %v", err)
	}
	if err := unpack(ctx, b, root); err != nil {
		return fmt.Errorf("unpack artifact: %w", err)
	}
	// Whatever follows the end of the archive is none of ours, but a damaged
	// stream is seen only at its end.
	if n, err := io.CopyN(io.Discard, b, maxTrailer+1); n > maxTrailer {
		return wire.Errorf(wire.BadUsage, "unpack artifact: more than an archive")
	} else if !errors.Is(err, io.EOF) {
		return wire.Errorf(wire.BadUsage, "unpack artifact: %v", err)
	}
	return nil
}

// maxTrailer is how much padding may stand behind an archive's end.
const maxTrailer = 1 << 20

func unpack(ctx context.Context, r io.Reader, root *os.Root) error {
	c := checker{what: "archive", seen: map[string]entryType{}}
	buf := make([]byte, 64<<10)
	var links []entry
	t := tar.NewReader(r)
	for {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if cause := context.Cause(ctx); cause != nil {
			return cause
		}
		if err != nil {
			return wire.Errorf(wire.BadUsage, "read archive: %v", err)
		}
		e, err := entryOf(h)
		if err != nil {
			return err
		}
		if err := c.add(&e); err != nil {
			return err
		}
		switch e.Type {
		case entryDir:
			err = makeDir(root, e.Path)
		case entryLink:
			links = append(links, e)
		case entryFile:
			err = createFile(root, e.Path, e.Exec, func(f *os.File) error {
				n, err := copyContext(ctx, f, t, buf)
				if err == nil && n != e.Size {
					err = fmt.Errorf("%s has %d bytes, its header says %d", e.Path, n, e.Size)
				}
				return err
			})
		}
		if err != nil {
			return err
		}
	}
	// Links come last, so that nothing was written with one in place.
	for _, e := range links {
		if err := root.Symlink(e.Target, e.Path); err != nil {
			return err
		}
	}
	return nil
}

// entryOf refuses the kinds of entry that Pack does not make.
func entryOf(h *tar.Header) (entry, error) {
	e := entry{Path: h.Name}
	switch h.Typeflag {
	case tar.TypeDir:
		e.Type = entryDir
		e.Path = strings.TrimSuffix(h.Name, "/")
	case tar.TypeReg:
		e.Type, e.Size, e.Exec = entryFile, h.Size, h.Mode&0o100 != 0
	case tar.TypeSymlink:
		e.Type, e.Target = entryLink, h.Linkname
	default:
		return e, wire.Errorf(wire.BadUsage, "read archive: %q is of type %q: only files, directories and links are unpacked", h.Name, h.Typeflag)
	}
	if e.Path != path.Clean(e.Path) {
		return e, wire.Errorf(wire.BadUsage, "read archive: path %q is not a plain relative one", h.Name)
	}
	return e, nil
}
