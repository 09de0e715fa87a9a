package operation

import (
	"context"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"testing"

	"github.com/waypointd/waypoint/mux/wire"
)

const emptyDigest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

// manifestText is a manifest of entries in JSON.
func manifestText(entries ...string) string {
	return `{"version":1,"entries":[` + strings.Join(entries, ",") + `]}`
}

func fileText(path string) string {
	return fmt.Sprintf(`{"path":%q,"type":"file","digest":%q}`, path, emptyDigest)
}

func dirText(path string) string { return fmt.Sprintf(`{"path":%q,"type":"dir"}`, path) }

func linkText(path, target string) string {
	return fmt.Sprintf(`{"path":%q,"type":"link","target":%q}`, path, target)
}

func checkoutText(t *testing.T, text string) error {
	store := blobs{emptyDigest: {}}
	digest := digestBytes([]byte(text))
	store[digest] = []byte(text)
	outer := t.TempDir()
	err := Checkout(t.Context(), digest, filepath.Join(outer, "in"), store.get)
	checkInside(t, outer)
	return err
}

func TestCheckoutRefuses(t *testing.T) {
	for _, c := range []struct{ name, text, want string }{
		{"parent", manifestText(fileText("../x")), "not a plain relative one"},
		{"parent inside", manifestText(dirText("a"), fileText("a/../../x")), "not a plain relative one"},
		{"absolute", manifestText(fileText("/x")), "not a plain relative one"},
		{"root", manifestText(dirText(".")), "not a plain relative one"},
		{"empty", manifestText(fileText("")), "not a plain relative one"},
		{"unclean", manifestText(dirText("a"), fileText("a//x")), "not a plain relative one"},
		{"through a link", manifestText(linkText("a", "b"), dirText("b"), fileText("a/x")), "out of order"},
		{"below a link", manifestText(linkText("a", "b"), fileText("a/x"), dirText("b")), "no directory of its own"},
		{"below a file", manifestText(fileText("a"), fileText("a/x")), "no directory of its own"},
		{"no parent", manifestText(fileText("a/x")), "no directory of its own"},
		{"twice", manifestText(fileText("x"), fileText("x")), "out of order or twice"},
		{"order", manifestText(fileText("y"), fileText("x")), "out of order"},
		{"link away", manifestText(linkText("l", "/etc")), "leaves the tree"},
		{"link up", manifestText(dirText("a"), linkText("a/l", "../../x")), "leaves the tree"},
		{"link up, hidden", manifestText(linkText("here", "."), linkText("l", "here/../x")), `".." behind another name`},
		{"link to nothing", manifestText(`{"path":"l","type":"link"}`), "no usable target"},
		{"type", manifestText(`{"path":"l","type":"device"}`), "unknown type"},
		{"digest", manifestText(`{"path":"l","type":"file","digest":"md5:x"}`), "bad digest"},
		{"digest path", manifestText(`{"path":"l","type":"file","digest":"sha256:../../../../../../../../../../../../../../../../../../../../../../"}`), "bad digest"},
		{"size", manifestText(fmt.Sprintf(`{"path":"l","type":"file","size":-1,"digest":%q}`, emptyDigest)), "over the limit"},
		{"sizes", manifestText(fmt.Sprintf(`{"path":"l","type":"file","size":9223372036854775807,"digest":%q}`, emptyDigest)), "over the limit"},
		{"two sizes", manifestText(fileText("a"), fmt.Sprintf(`{"path":"b","type":"file","size":1,"digest":%q}`, emptyDigest)), "another size"},
		{"dir with digest", manifestText(fmt.Sprintf(`{"path":"b","type":"dir","digest":%q}`, emptyDigest)), "has content"},
		{"file with target", manifestText(fmt.Sprintf(`{"path":"b","type":"file","digest":%q,"target":"x"}`, emptyDigest)), "does not have"},
		{"version", `{"version":2,"entries":[]}`, "version 2 is not known; known: 1"},
		{"unknown", `{"version":1,"entries":[],"x":1}`, "unknown field"},
		{"not canonical", `{"version":1, "entries":[]}`, "canonical"},
		{"trailing", `{"version":1,"entries":[]}x`, "canonical"},
		{"null", `{"version":1,"entries":null}`, ""},
		{"not JSON", "x", "read manifest"},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := checkoutText(t, c.text)
			if c.want == "" {
				return
			}
			kind := wire.KindOf(err)
			if err == nil || kind != wire.BadUsage && kind != wire.TooLarge || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v (%s), want %q", err, kind, c.want)
			}
		})
	}
	if err := checkoutText(t, manifestText(dirText("a"), linkText("a/l", "../b"), fileText("b"))); err != nil {
		t.Errorf("good one: %v", err)
	}
}

func TestCheckoutWrongBytes(t *testing.T) {
	src := t.TempDir()
	plant(t, src, map[string]string{"a": "one", "b": "two"})
	tree, _ := scan(t, src)
	for name, spoil := range map[string]func(h *wire.BlobHeader, r *io.Reader){
		"other bytes":    func(h *wire.BlobHeader, r *io.Reader) { *r = strings.NewReader("xyz") },
		"less":           func(h *wire.BlobHeader, r *io.Reader) { *r = strings.NewReader("tw") },
		"more":           func(h *wire.BlobHeader, r *io.Reader) { *r = strings.NewReader("twoo") },
		"another size":   func(h *wire.BlobHeader, r *io.Reader) { h.Size++ },
		"another digest": func(h *wire.BlobHeader, r *io.Reader) { h.Digest = emptyDigest },
	} {
		t.Run(name, func(t *testing.T) {
			store := blobs{}
			store.put(t, tree)
			two := digestBytes([]byte("two"))
			fetch := func(ctx context.Context, digests []string, sink func(h wire.BlobHeader, r io.Reader) error) error {
				return store.get(ctx, digests, func(h wire.BlobHeader, r io.Reader) error {
					if h.Digest == two {
						spoil(&h, &r)
					}
					return sink(h, r)
				})
			}
			if err := Checkout(t.Context(), tree.Digest, filepath.Join(t.TempDir(), "in"), fetch); err == nil {
				t.Error("it was checked out")
			}
		})
	}
	store := blobs{}
	store.put(t, tree)
	delete(store, digestBytes([]byte("two")))
	if err := Checkout(t.Context(), tree.Digest, t.TempDir(), store.get); wire.KindOf(err) != wire.NotFound {
		t.Errorf("a missing blob: %v, want not found", err)
	}
	silent := func(ctx context.Context, digests []string, sink func(h wire.BlobHeader, r io.Reader) error) error {
		if digests[0] == tree.Digest {
			return store.get(ctx, digests, sink)
		}
		return nil
	}
	if err := Checkout(t.Context(), tree.Digest, t.TempDir(), silent); wire.KindOf(err) != wire.NotFound {
		t.Errorf("nothing came: %v, want not found", err)
	}
	if err := Checkout(t.Context(), "sha256:x", t.TempDir(), store.get); wire.KindOf(err) != wire.BadUsage {
		t.Errorf("bad digest: %v, want one of usage", err)
	}
}

func FuzzManifest(f *testing.F) {
	f.Add(manifestText(dirText("a"), linkText("a/l", "../b"), fileText("b")))
	f.Add(manifestText(linkText("a", "."), linkText("b", "a/a/a")))
	f.Add(manifestText(fileText("a"), fileText("a.b"), fileText("c")))
	f.Fuzz(func(t *testing.T, text string) {
		if _, err := parseManifest([]byte(text)); err == nil {
			_ = checkoutText(t, text) // whatever comes of it: nothing may get out
		}
	})
}
