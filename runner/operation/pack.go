package operation

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
	"syscall"

	"github.com/klauspost/compress/zstd"

	"github.com/waypointd/waypoint/mux/wire"
)

// The compressor's settings are part of the format: with others the same
// bytes would give another digest.
const (
	packLevel  = zstd.SpeedDefault
	packWindow = 4 << 20
)

// Pack makes the content-addressed tar.zst of outputs (relative to dir, which
// is below top) at path and returns its digest and size. The same bytes give the same digest. A
// missing output is BadUsage naming it; so is what no archive can hold: a
// socket, a link that leaves dir. TooLarge is more than Unpack takes. An output that is itself a link is
// followed within dir, and dir within top, as whose files they are may be another user,
// who could have anything of ours packed otherwise; links inside of outputs stay links. Files are streamed, never held in memory; one that
// changes meanwhile is Conflict. On error nothing is left at path.
func Pack(ctx context.Context, top, dir string, outputs []string, path string) (wire.BlobHeader, error) {
	root, err := openBelow(top, dir)
	if err != nil {
		return wire.BlobHeader{}, wire.Errorf(wire.BadUsage, "pack outputs: %v", err)
	}
	defer root.Close()
	p := &packer{ctx: ctx, root: root, entries: map[string]packed{}}
	for _, out := range outputs {
		if err := p.output(out); err != nil {
			return wire.BlobHeader{}, err
		}
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return wire.BlobHeader{}, fmt.Errorf("pack outputs: %w", err)
	}
	h, err := p.write(f)
	if err = errors.Join(err, f.Close()); err != nil {
		os.Remove(path)
		return wire.BlobHeader{}, fmt.Errorf("pack outputs: %w", err)
	}
	return h, nil
}

// openBelow opens a directory below another, which no link leads out of.
func openBelow(top, dir string) (*os.Root, error) {
	root, err := os.OpenRoot(top)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	return root.OpenRoot(dir)
}

// badOutput says what is wrong with an output of a project file; "" is
// nothing.
func badOutput(out string) string {
	switch {
	case out == "" || strings.ContainsRune(out, 0):
		return "is no path"
	case !fs.ValidPath(path.Clean(out)):
		return "leaves the working directory"
	}
	return ""
}

type packer struct {
	ctx     context.Context
	root    *os.Root
	entries map[string]packed
	size    int64 // bytes of the files in entries
	names   int   // bytes of their names and targets
}

// maxArchive is how large an archive may be, in bytes: a server takes no more.
const maxArchive = 16 << 30

// keep adds an entry, while there is no more than Unpack takes: who has built it could
// have the agent at work with it for days, or out of memory, before anybody refuses it.
func (p *packer) keep(name string, e packed) error {
	if _, known := p.entries[name]; !known {
		p.names += len(name) + len(e.target)
		if e.info.Mode().IsRegular() {
			p.size += e.info.Size()
		}
		switch {
		case len(p.entries) >= maxEntries:
			return wire.Errorf(wire.TooLarge, "pack outputs: more than %d files and directories", maxEntries)
		case p.names > maxNames:
			return wire.Errorf(wire.TooLarge, "pack outputs: their names have more than %d bytes", maxNames)
		case p.size < 0 || p.size > maxUnpacked:
			return wire.Errorf(wire.TooLarge, "pack outputs: with %s they have more than %d bytes", name, int64(maxUnpacked))
		}
	}
	p.entries[name] = e
	return nil
}

// packed is one entry of the archive to be.
type packed struct {
	info   fs.FileInfo
	source string // path below root
	target string // of a link
}

func (p *packer) output(out string) error {
	if why := badOutput(out); why != "" {
		return wire.Errorf(wire.BadUsage, "pack outputs: output %q %s", out, why)
	}
	name := path.Clean(out)
	info, err := p.root.Stat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return wire.Errorf(wire.BadUsage, "pack outputs: output %q is missing after the build", out)
	}
	if err != nil {
		return wire.Errorf(wire.BadUsage, "pack outputs: output %q: %v", out, err)
	}
	if strings.HasSuffix(out, "/") && !info.IsDir() {
		return wire.Errorf(wire.BadUsage, "pack outputs: output %q is not a directory", out)
	}
	for parent := path.Dir(name); parent != "."; parent = path.Dir(parent) {
		d, err := p.root.Stat(parent)
		if err != nil {
			return wire.Errorf(wire.BadUsage, "pack outputs: output %q: %v", out, err)
		}
		if err := p.keep(parent, packed{info: d, source: parent}); err != nil {
			return err
		}
	}
	return p.add(name, info)
}

// add adds a file, a link, or a directory with all that is in it.
func (p *packer) add(name string, info fs.FileInfo) error {
	if err := context.Cause(p.ctx); err != nil {
		return err
	}
	if why := badPath(name); why != "" && name != "." {
		return wire.Errorf(wire.BadUsage, "pack outputs: path %.200q %s", name, why)
	}
	e := packed{info: info, source: name}
	switch info.Mode().Type() {
	case 0:
	case fs.ModeSymlink:
		if p.entries[name].source != "" {
			return nil // an output lies behind it: it is a directory in the archive
		}
		target, err := p.root.Readlink(name)
		if err != nil {
			return wire.Errorf(wire.BadUsage, "pack outputs: %v", err)
		}
		if why := badLink(name, target); why != "" {
			return wire.Errorf(wire.BadUsage, "pack outputs: link %s to %s %s", name, target, why)
		}
		e.target = target
	case fs.ModeDir:
		list, err := p.list(name)
		if err != nil {
			return err
		}
		for _, d := range list {
			child := path.Join(name, d)
			info, err := p.root.Lstat(child)
			if err != nil {
				return wire.Errorf(wire.BadUsage, "pack outputs: %v", err)
			}
			if err := p.add(child, info); err != nil {
				return err
			}
		}
		if name == "." {
			return nil
		}
	default:
		return wire.Errorf(wire.BadUsage, "pack outputs: %s is a %s, which no artifact can hold", name, typeName(info.Mode()))
	}
	return p.keep(name, e)
}

// list is what a directory has, or TooLarge for one that has more than an archive.
func (p *packer) list(name string) ([]string, error) {
	f, err := p.root.Open(name)
	if err != nil {
		return nil, wire.Errorf(wire.BadUsage, "pack outputs: %v", err)
	}
	defer f.Close()
	names, err := f.Readdirnames(maxEntries + 1)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, wire.Errorf(wire.BadUsage, "pack outputs: %v", err)
	}
	if len(names) > maxEntries {
		return nil, wire.Errorf(wire.TooLarge, "pack outputs: %s has more than %d files", name, maxEntries)
	}
	return names, nil
}

func typeName(m fs.FileMode) string {
	switch {
	case m&fs.ModeSocket != 0:
		return "socket"
	case m&fs.ModeNamedPipe != 0:
		return "pipe"
	}
	return "device"
}

// write streams the archive into w.
func (p *packer) write(w io.Writer) (wire.BlobHeader, error) {
	sum := sha256.New()
	count := &countWriter{w: io.MultiWriter(w, sum)}
	z, err := zstd.NewWriter(count, zstd.WithEncoderLevel(packLevel), zstd.WithWindowSize(packWindow), zstd.WithEncoderConcurrency(1))
	if err != nil {
		return wire.BlobHeader{}, err
	}
	t := tar.NewWriter(z)
	buf := make([]byte, 128<<10)
	for _, name := range slices.Sorted(maps.Keys(p.entries)) {
		if err := p.entry(t, name, p.entries[name], buf); err != nil {
			z.Close() // ends the compressor; its error is of no use now
			return wire.BlobHeader{}, err
		}
	}
	if err := errors.Join(t.Close(), z.Close()); err != nil {
		return wire.BlobHeader{}, err
	}
	return wire.BlobHeader{Digest: digestOf(sum.Sum(nil)), Size: count.n}, nil
}

func (p *packer) entry(t *tar.Writer, name string, e packed, buf []byte) error {
	switch {
	case e.info.IsDir():
		return t.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: 0o755})
	case e.target != "":
		return t.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: e.target, Mode: 0o777})
	}
	// An output that is a link is followed; that what is opened is still the
	// file that was looked at is made sure of below.
	f, err := p.root.OpenFile(e.source, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	before, err := f.Stat()
	if err != nil {
		return err
	}
	if !sameFile(e.info, before) {
		return changed("read output", name)
	}
	size := before.Size()
	if err := t.WriteHeader(&tar.Header{
		Typeflag: tar.TypeReg, Name: name, Size: size, Mode: int64(fileMode(before.Mode()&0o100 != 0)),
	}); err != nil {
		return err
	}
	n, err := copyContext(p.ctx, t, io.LimitReader(f, size), buf)
	if err != nil {
		return err
	}
	after, err := f.Stat()
	if err != nil {
		return err
	}
	if n != size || !sameFile(before, after) {
		return changed("read output", name)
	}
	return nil
}

type countWriter struct {
	w io.Writer
	n int64
}

func (c *countWriter) Write(p []byte) (int, error) {
	if c.n+int64(len(p)) > maxArchive {
		return 0, wire.Errorf(wire.TooLarge, "the archive has more than %d bytes", int64(maxArchive))
	}
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}
