package operation

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io/fs"
	"path"
	"strings"
	"unicode/utf8"

	"github.com/waypointd/waypoint/mux/wire"
)

// Limits of a tree and of an archive: far above what is reasonable, low enough
// that nobody is drowned.
const (
	maxManifest = 256 << 20
	maxEntries  = 1 << 20
	maxUnpacked = 256 << 30
	maxNames    = 128 << 20 // bytes of the paths and targets of an archive, which compress to nothing
	maxPath     = 4095
	maxFileName = 255
)

const manifestVersion = 1

// manifest lists a tree; see the package comment.
type manifest struct {
	Version int     `json:"version"`
	Entries []entry `json:"entries"`
}

type entryType string

const (
	entryDir  entryType = "dir"
	entryFile entryType = "file"
	entryLink entryType = "link"
)

type entry struct {
	Path   string    `json:"path"`
	Type   entryType `json:"type"`
	Exec   bool      `json:"exec,omitempty"`
	Size   int64     `json:"size,omitempty"`
	Digest string    `json:"digest,omitempty"`
	Target string    `json:"target,omitempty"`
}

// encode writes the one text of a manifest whose entries are sorted.
func (m *manifest) encode() ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(m); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

// parseManifest reads a manifest and refuses one that Scan would not have
// made. What it returns can be written below a directory in its order.
func parseManifest(data []byte) (*manifest, error) {
	var m manifest
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(&m); err != nil {
		return nil, wire.Errorf(wire.BadUsage, "read manifest: %v", err)
	}
	if m.Version != manifestVersion {
		return nil, wire.Errorf(wire.BadUsage, "read manifest: version %d is not known; known: %d", m.Version, manifestVersion)
	}
	if len(m.Entries) > maxEntries {
		return nil, wire.Errorf(wire.TooLarge, "read manifest: %d entries are over the limit of %d", len(m.Entries), maxEntries)
	}
	c := checker{what: "manifest", seen: map[string]entryType{}}
	sizes := map[string]int64{}
	previous := ""
	for i := range m.Entries {
		e := &m.Entries[i]
		if i > 0 && e.Path <= previous {
			return nil, wire.Errorf(wire.BadUsage, "read manifest: %q comes after %q: out of order or twice", e.Path, previous)
		}
		previous = e.Path
		if err := c.add(e); err != nil {
			return nil, err
		}
		if e.Type != entryFile {
			if e.Exec || e.Digest != "" {
				return nil, wire.Errorf(wire.BadUsage, "read manifest: %q has content and is a %s", e.Path, e.Type)
			}
			continue
		}
		if !validDigest(e.Digest) {
			return nil, wire.Errorf(wire.BadUsage, "read manifest: %q has the bad digest %q", e.Path, e.Digest)
		}
		if size, ok := sizes[e.Digest]; ok && size != e.Size {
			return nil, wire.Errorf(wire.BadUsage, "read manifest: %q has the digest of a file of another size", e.Path)
		}
		sizes[e.Digest] = e.Size
	}
	// There is one text for a tree, or a tree would have several names.
	if text, err := m.encode(); err != nil || !bytes.Equal(text, data) {
		return nil, wire.Errorf(wire.BadUsage, "read manifest: it is not in its canonical form")
	}
	return &m, nil
}

// checker refuses entries that could reach out of the directory they are
// written to. Directories have to come before what is in them.
type checker struct {
	what  string // "manifest", whose length is bounded, or "archive"
	seen  map[string]entryType
	size  int64
	names int // bytes of paths and targets
}

func (c *checker) add(e *entry) error {
	if why := badPath(e.Path); why != "" {
		return c.refuse("path %q %s", e.Path, why)
	}
	if _, ok := c.seen[e.Path]; ok {
		return c.refuse("%q is there twice", e.Path)
	}
	if parent := path.Dir(e.Path); parent != "." && c.seen[parent] != entryDir {
		return c.refuse("%q is in something that is no directory of its own", e.Path)
	}
	if len(c.seen) >= maxEntries {
		return wire.Errorf(wire.TooLarge, "read %s: more than %d entries", c.what, maxEntries)
	}
	if c.names += len(e.Path) + len(e.Target); c.what == "archive" && c.names > maxNames {
		return wire.Errorf(wire.TooLarge, "read archive: it has names of more than %d bytes", maxNames)
	}
	switch e.Type {
	case entryDir:
	case entryFile:
		if c.size += e.Size; e.Size < 0 || c.size < 0 || c.size > maxUnpacked {
			return wire.Errorf(wire.TooLarge, "read %s: %q has %d bytes: all together are over the limit of %d", c.what, e.Path, e.Size, int64(maxUnpacked))
		}
	case entryLink:
		if why := badLink(e.Path, e.Target); why != "" {
			return c.refuse("link %q to %q %s", e.Path, e.Target, why)
		}
	default:
		return c.refuse("%q is of the unknown type %q", e.Path, e.Type)
	}
	if e.Type != entryFile && e.Size != 0 || e.Type != entryLink && e.Target != "" {
		return c.refuse("%q has what a %s does not have", e.Path, e.Type)
	}
	c.seen[e.Path] = e.Type
	return nil
}

func (c *checker) refuse(format string, args ...any) error {
	return wire.Errorf(wire.BadUsage, "read "+c.what+": "+format, args...)
}

// badPath says what is wrong with the path of an entry; "" is nothing.
func badPath(p string) string {
	switch {
	case !utf8.ValidString(p):
		return "is not UTF-8"
	case p == ".", !fs.ValidPath(p), strings.ContainsRune(p, 0):
		return "is not a plain relative one"
	case len(p) > maxPath:
		return "is too long"
	}
	for name := range strings.SplitSeq(p, "/") {
		if len(name) > maxFileName {
			return "has a name that is too long"
		}
	}
	return ""
}

// badLink says what is wrong with a link; "" is nothing. The rule: ".." comes
// only at the start of the target, and climbs no higher than the root. A link
// lies in real directories, so that leads to a real directory of the tree;
// from there it only descends, perhaps through links of which the same is
// true. So no chain of them leaves the tree.
func badLink(p, target string) string {
	switch {
	case target == "" || strings.ContainsRune(target, 0) || len(target) > maxPath:
		return "has no usable target"
	case !utf8.ValidString(target):
		return "is not UTF-8"
	case strings.HasPrefix(target, "/"):
		return "leaves the tree: its target is absolute"
	}
	depth, descending := strings.Count(p, "/"), false
	for name := range strings.SplitSeq(target, "/") {
		switch {
		case name == "" || name == ".":
		case name != "..":
			descending = true
		case descending:
			return `has ".." behind another name in its target`
		default:
			if depth--; depth < 0 {
				return "leaves the tree"
			}
		}
	}
	return ""
}

const digestPrefix = "sha256:"

func digestOf(sum []byte) string { return digestPrefix + hex.EncodeToString(sum) }

func digestBytes(b []byte) string {
	sum := sha256.Sum256(b)
	return digestOf(sum[:])
}

// validDigest reports whether s is "sha256:" and 64 lower-case hexadecimal
// digits.
func validDigest(s string) bool {
	hexed, ok := strings.CutPrefix(s, digestPrefix)
	return ok && len(hexed) == 2*sha256.Size && strings.Trim(hexed, "0123456789abcdef") == ""
}

// slashJoin joins a path of a tree ("" is its root) and a name.
func slashJoin(dir, name string) string {
	if dir == "" {
		return name
	}
	return dir + "/" + name
}
