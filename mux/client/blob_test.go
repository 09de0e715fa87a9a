package client_test

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/waypointd/waypoint/mux/client"
	"github.com/waypointd/waypoint/mux/wire"
)

func blob(b []byte) client.Blob {
	return client.Blob{
		BlobHeader: wire.BlobHeader{Digest: digest(b), Size: int64(len(b))},
		Open:       func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(string(b))), nil },
	}
}

func TestBlobs(t *testing.T) {
	s := newServer(t)
	var blobs []client.Blob
	var digests []string
	want := map[string]string{}
	add := func(b []byte) {
		blobs = append(blobs, blob(b))
		digests = append(digests, digest(b))
		want[digest(b)] = string(b)
	}
	for _, n := range []int{0, 1, wire.MaxData - 1, wire.MaxData, wire.MaxData + 1, 3 << 20} {
		add(make([]byte, n))
	}
	for i := range 5000 { // more than one message may name
		add(fmt.Append(nil, "blob ", i))
	}
	add([]byte("blob 7")) // the same twice
	s.dropAt(wire.MethodBlobPut, 3, 200)
	c := dial(t, s, nil)
	if err := c.PutBlobs(t.Context(), blobs); err != nil {
		t.Fatal(err)
	}
	if len(s.blobs) != len(want) {
		t.Fatalf("%d blobs are stored of %d", len(s.blobs), len(want))
	}
	puts := s.made(wire.MethodBlobPut)
	if err := c.PutBlobs(t.Context(), blobs); err != nil || s.made(wire.MethodBlobPut) != puts {
		t.Fatalf("blobs that are there were sent again: %v", err)
	}

	s.dropAt(wire.MethodBlobGet, 2, 6, 3000)
	var got []string
	err := c.GetBlobs(t.Context(), digests, func(h wire.BlobHeader, r io.Reader) error {
		b, err := io.ReadAll(r)
		if err != nil {
			return errors.New("a text that says nothing")
		}
		if string(b) != want[h.Digest] || h.Size != int64(len(b)) {
			return fmt.Errorf("blob %s has %d other bytes", h.Digest, len(b))
		}
		got = append(got, h.Digest)
		return nil
	})
	if err != nil || !slices.Equal(got, digests) {
		t.Fatalf("%d blobs came of %d: %v", len(got), len(digests), err)
	}
}

func TestBlobErrors(t *testing.T) {
	s := newServer(t)
	c := dial(t, s, nil)
	short, long := blob([]byte("hello")), blob([]byte("hello"))
	short.Size, long.Size = 6, 4
	gone := blob([]byte("gone"))
	mine := errors.New("no such file")
	gone.Open = func() (io.ReadCloser, error) { return nil, mine }
	lie := blob([]byte("truth"))
	lie.Digest = digest([]byte("other"))
	huge := blob(nil)
	huge.Size = 1 << 40
	huge.Open = func() (io.ReadCloser, error) { return io.NopCloser(endless{}), nil }
	for _, b := range []struct {
		name string
		blob client.Blob
		kind wire.Kind
		text string
	}{
		{"short", short, wire.Conflict, "no longer has the 6 bytes"},
		{"long", long, wire.Conflict, "no longer has the 4 bytes"},
		{"gone", gone, wire.Internal, "no such file"},
		{"wrong digest", lie, wire.BadUsage, "not what it should be"},
		{"refused while it is sent", huge, wire.TooLarge, "no room for that"},
	} {
		err := c.PutBlobs(t.Context(), []client.Blob{b.blob})
		if wire.KindOf(err) != b.kind || !strings.Contains(fmt.Sprint(err), b.text) {
			t.Errorf("%s: %v of kind %q", b.name, err, wire.KindOf(err))
		}
	}

	bad := digest([]byte("good"))
	s.mu.Lock()
	s.blobs[bad] = []byte("evil")
	s.blobs[digest(nil)] = nil
	s.mu.Unlock()
	ignore := func(wire.BlobHeader, io.Reader) error { return nil }
	if err := c.GetBlobs(t.Context(), []string{bad}, ignore); wire.KindOf(err) != wire.Internal || !strings.Contains(err.Error(), "arrived with the digest") {
		t.Errorf("a blob with a wrong digest: %v", err)
	}
	if err := c.GetBlobs(t.Context(), []string{digest([]byte("none"))}, ignore); wire.KindOf(err) != wire.NotFound {
		t.Errorf("a blob that is not there: %v", err)
	}
	if err := c.GetBlobs(t.Context(), []string{digest(nil)}, func(wire.BlobHeader, io.Reader) error { return mine }); !errors.Is(err, mine) {
		t.Errorf("a sink that fails: %v", err)
	}
}

type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }
