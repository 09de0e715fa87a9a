package client

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"slices"

	"github.com/waypointd/waypoint/mux"
	"github.com/waypointd/waypoint/mux/wire"
)

// maxDigests is the most that one message may name.
const maxDigests = 4096

// Blob is one blob to store.
type Blob struct {
	wire.BlobHeader
	Open func() (io.ReadCloser, error) // called once more where a loss makes it be sent again
}

// PutBlobs sends the blobs that the server does not have yet.
func (c *Client) PutBlobs(ctx context.Context, blobs []Blob) error {
	return c.repeat(ctx, func(s *mux.Session) error { return PutBlobs(ctx, s, blobs) })
}

// PutBlobs sends the blobs that the server at the other end of s does not
// have yet. When it returns nil all of them are durable.
func PutBlobs(ctx context.Context, s *mux.Session, blobs []Blob) error {
	byDigest := make(map[string]Blob, len(blobs))
	digests := make([]string, 0, len(blobs))
	for _, b := range blobs {
		if _, twice := byDigest[b.Digest]; !twice {
			byDigest[b.Digest] = b
			digests = append(digests, b.Digest)
		}
	}
	for batch := range slices.Chunk(digests, maxDigests) {
		var missing wire.BlobDigests
		if err := s.Call(ctx, wire.MethodBlobMissing, wire.BlobDigests{Digests: batch}, &missing); err != nil {
			return err
		}
		if len(missing.Digests) == 0 {
			continue
		}
		if err := putMissing(ctx, s, missing.Digests, byDigest); err != nil {
			return err
		}
	}
	return nil
}

// putMissing is one blob.put.
func putMissing(ctx context.Context, s *mux.Session, digests []string, blobs map[string]Blob) error {
	st, err := s.Open(ctx, wire.MethodBlobPut, nil)
	if err != nil {
		return err
	}
	defer st.Close()
	for _, digest := range digests {
		b, asked := blobs[digest]
		if !asked {
			return wire.Errorf(wire.Internal, "the server misses blob %s, which it was not asked about", digest)
		}
		if err = putBlob(st, b); err != nil {
			break
		}
	}
	if err == nil {
		err = st.End()
	}
	if err != nil && !errors.Is(err, mux.ErrCallOver) {
		return err
	}
	var stored wire.BlobDigests
	if err := st.RecvMsg(&stored); err != nil {
		if errors.Is(err, io.EOF) {
			return wire.Errorf(wire.Internal, "the server did not say which blobs it stored")
		}
		return err
	}
	if _, err := st.Recv(); !errors.Is(err, io.EOF) {
		return err
	}
	if len(stored.Digests) != len(digests) {
		return wire.Errorf(wire.Internal, "the server stored %d blobs of %d", len(stored.Digests), len(digests))
	}
	return nil
}

// putBlob sends one blob, and what it read must be as long as was said.
func putBlob(st *mux.Stream, b Blob) error {
	r, err := b.Open()
	if err != nil {
		return fmt.Errorf("open blob %s: %w", b.Digest, err)
	}
	defer r.Close()
	if err := st.Queue(b.BlobHeader); err != nil {
		return err
	}
	buf := make([]byte, min(int64(wire.MaxData), b.Size+1)) // one more finds a file that has grown
	for at := int64(0); ; {
		n, err := io.ReadFull(r, buf)
		if at+int64(n) > b.Size || err != nil && at+int64(n) < b.Size {
			if err == nil || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
				err = wire.Errorf(wire.Conflict, "it no longer has the %d bytes it had", b.Size).WithHint("do not change files while they are sent")
			}
			return fmt.Errorf("read blob %s: %w", b.Digest, err)
		}
		if n > 0 {
			if err := st.SendData(wire.Data{Offset: at, Bytes: buf[:n]}); err != nil {
				return err
			}
		}
		if err != nil {
			return nil
		}
		at += int64(n)
	}
}

// GetBlobs fetches blobs in the order asked for, calling sink for each; sink reads r
// to its end, and the digest has been checked when r returns io.EOF. After a
// loss sink is called again for the blob that it could not read to its end.
func (c *Client) GetBlobs(ctx context.Context, digests []string, sink func(h wire.BlobHeader, r io.Reader) error) error {
	done := 0
	return c.repeat(ctx, func(s *mux.Session) error {
		return GetBlobs(ctx, s, digests[done:], func(h wire.BlobHeader, r io.Reader) error {
			if err := sink(h, r); err != nil {
				return err
			}
			// What sink left unread is read here, so that a loss in it is not
			// taken for a blob that is done.
			if _, err := io.Copy(io.Discard, r); err != nil {
				return err
			}
			done++
			return nil
		})
	})
}

// GetBlobs fetches blobs from the other end of s in the order asked for,
// calling sink for each; sink reads r to its end, and the digest has been
// checked when r returns io.EOF. A sink's error ends it, as does a blob whose
// bytes are not its digest's, even where sink did not look.
func GetBlobs(ctx context.Context, s *mux.Session, digests []string, sink func(h wire.BlobHeader, r io.Reader) error) error {
	for batch := range slices.Chunk(digests, maxDigests) {
		if err := getBatch(ctx, s, batch, sink); err != nil {
			return err
		}
	}
	return nil
}

func getBatch(ctx context.Context, s *mux.Session, digests []string, sink func(h wire.BlobHeader, r io.Reader) error) error {
	st, err := s.Open(ctx, wire.MethodBlobGet, wire.BlobDigests{Digests: digests})
	if err != nil {
		return err
	}
	defer st.Close()
	for _, digest := range digests {
		r := &blobReader{st: st, sum: sha256.New()}
		if err := st.RecvMsg(&r.header); err != nil {
			if errors.Is(err, io.EOF) {
				err = wire.Errorf(wire.Internal, "the server ended before blob %s", digest)
			}
			return err
		}
		if r.header.Digest != digest || r.header.Size < 0 {
			return wire.Errorf(wire.Internal, "the server sent blob %s of %d bytes for %s", r.header.Digest, r.header.Size, digest)
		}
		if err := sink(r.header, r); err != nil {
			if r.err != nil && !errors.Is(r.err, io.EOF) {
				return r.err // what sink made of it says less
			}
			return err
		}
		if _, err := io.Copy(io.Discard, r); err != nil {
			return err
		}
	}
	if _, err := st.Recv(); !errors.Is(err, io.EOF) {
		if err == nil {
			err = wire.Errorf(wire.Internal, "the server sent more blobs than were asked for")
		}
		return err
	}
	return nil
}

// blobReader reads one blob and checks it.
type blobReader struct {
	st     *mux.Stream
	header wire.BlobHeader
	sum    hash.Hash
	at     int64
	chunk  []byte // of the last frame, not yet read
	err    error
}

func (r *blobReader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for len(r.chunk) == 0 && r.err == nil {
		r.err = r.next()
	}
	if len(r.chunk) == 0 {
		return 0, r.err
	}
	n := copy(p, r.chunk)
	r.chunk = r.chunk[n:]
	return n, nil
}

// next receives a chunk, or ends the blob.
func (r *blobReader) next() error {
	if r.at == r.header.Size {
		if got := "sha256:" + hex.EncodeToString(r.sum.Sum(nil)); got != r.header.Digest {
			return wire.Errorf(wire.Internal, "blob %s arrived with the digest %s", r.header.Digest, got)
		}
		return io.EOF
	}
	f, err := r.st.Recv()
	if err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return err
	}
	if !f.IsData() || f.Data.Offset != r.at || r.at+int64(len(f.Data.Bytes)) > r.header.Size {
		return wire.Errorf(wire.Internal, "the bytes of blob %s are out of place at %d", r.header.Digest, r.at)
	}
	r.sum.Write(f.Data.Bytes)
	r.chunk = f.Data.Bytes
	r.at += int64(len(r.chunk))
	return nil
}
