package daemon

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"hash"
	"io"
	"maps"
	"slices"

	"github.com/waypointd/waypoint/daemon/store"
	"github.com/waypointd/waypoint/mux"
	"github.com/waypointd/waypoint/mux/wire"
)

const (
	maxDigests = 4096     // in one message
	blobChunk  = 64 << 10 // bytes of a stored chunk
	blobBatch  = 1 << 20  // bytes of one transaction
	maxBlob    = 16 << 30 // bytes of one blob
)

func (s *Server) blobMissing(ctx context.Context, _ *mux.Peer, req wire.BlobDigests) (wire.BlobDigests, error) {
	if len(req.Digests) > maxDigests {
		return wire.BlobDigests{}, wire.Errorf(wire.TooLarge, "%d digests are more than the %d of one request", len(req.Digests), maxDigests)
	}
	c := callOf(ctx)
	if c.by.limits.None() {
		missing, err := s.store.MissingBlobs(ctx, req.Digests)
		return wire.BlobDigests{Digests: missing}, err
	}
	// What he has not sent himself is missing to him, be it there or not: by
	// asking for digests he learns nothing of what others have.
	sent, err := s.store.Proven(ctx, c.prover(), req.Digests)
	if err != nil {
		return wire.BlobDigests{}, err
	}
	gone, err := s.store.MissingBlobs(ctx, slices.Collect(maps.Keys(sent)))
	if err != nil {
		return wire.BlobDigests{}, err
	}
	for _, digest := range gone {
		delete(sent, digest)
	}
	reply := wire.BlobDigests{Digests: []string{}}
	for _, digest := range req.Digests {
		if !sent[digest] {
			reply.Digests = append(reply.Digests, digest)
		}
	}
	return reply, nil
}

// blobPut stores blobs as they arrive; each becomes visible under its digest
// once all its bytes are durable and hash to it.
func (s *Server) blobPut(ctx context.Context, st *mux.Stream) error {
	var stored wire.BlobDigests
	up := &upload{s: s, ctx: ctx}
	if c := callOf(ctx); !c.by.limits.None() {
		up.sender = c.prover()
	}
	defer up.drop()
	for {
		f, err := st.Recv()
		switch {
		case errors.Is(err, io.EOF):
			if up.open {
				return wire.Errorf(wire.BadUsage, "blob %s ended after %d of %d bytes", up.header.Digest, up.have, up.header.Size)
			}
			if err := up.flush(nil); err != nil {
				return err
			}
			return st.Send(stored)
		case err != nil:
			return err
		case f.IsData():
			err = up.write(f.Data)
		default:
			err = up.begin(f.Msg)
		}
		if err == nil && up.open && up.have == up.header.Size {
			err = up.seal()
			stored.Digests = append(stored.Digests, up.header.Digest)
			if len(stored.Digests) > maxDigests {
				err = wire.Errorf(wire.TooLarge, "more than %d blobs in one request", maxDigests)
			}
		}
		if err != nil {
			return err
		}
	}
}

// upload is the blob that is arriving, and small ones before it that are not
// yet durable: many small files share a transaction.
type upload struct {
	s      *Server
	ctx    context.Context
	sender string // who has to show that he has what he uses; else ""

	open   bool
	id     string
	header wire.BlobHeader
	have   int64
	sum    hash.Hash
	buf    []byte // of the open blob, at offset have-len(buf)

	waiting []func(*store.Tx) error
	size    int // bytes in waiting
}

func (u *upload) begin(msg []byte) error {
	if u.open {
		return wire.Errorf(wire.BadUsage, "blob %s ended after %d of %d bytes", u.header.Digest, u.have, u.header.Size)
	}
	var h wire.BlobHeader
	if err := json.Unmarshal(msg, &h); err != nil {
		return wire.Errorf(wire.BadUsage, "read blob header: %v", err)
	}
	if h.Size < 0 || h.Size > maxBlob {
		return wire.Errorf(wire.TooLarge, "blob of %d bytes is over the limit of %d", h.Size, int64(maxBlob))
	}
	u.open, u.id, u.header, u.have, u.sum, u.buf = true, rand.Text(), h, 0, sha256.New(), nil
	return nil
}

func (u *upload) write(d wire.Data) error {
	if !u.open || d.Offset != u.have || u.have+int64(len(d.Bytes)) > u.header.Size {
		return wire.Errorf(wire.BadUsage, "blob bytes at offset %d are out of place", d.Offset)
	}
	u.sum.Write(d.Bytes)
	u.buf = append(u.buf, d.Bytes...)
	u.have += int64(len(d.Bytes))
	if len(u.buf) >= blobChunk {
		return u.chunk()
	}
	return nil
}

// chunk moves the buffer to what waits for a transaction.
func (u *upload) chunk() error {
	if len(u.buf) == 0 {
		return nil
	}
	id, data := u.id, u.buf
	at := u.have - int64(len(data))
	u.buf = nil
	u.waiting = append(u.waiting, func(tx *store.Tx) error { return tx.PutBlobChunk(id, at, data) })
	u.size += len(data)
	if u.size >= blobBatch {
		return u.flush(nil)
	}
	return nil
}

// seal closes the open blob.
func (u *upload) seal() error {
	if got := "sha256:" + hex.EncodeToString(u.sum.Sum(nil)); got != u.header.Digest {
		return wire.Errorf(wire.BadUsage, "blob's bytes have the digest %s, not %s", got, u.header.Digest)
	}
	if err := u.chunk(); err != nil {
		return err
	}
	id, h := u.id, u.header
	u.open = false
	u.waiting = append(u.waiting, func(tx *store.Tx) error {
		if err := tx.SealBlob(id, h.Digest, h.Size, u.s.now()); err != nil || u.sender == "" {
			return err
		}
		return tx.Prove(u.sender, h.Digest)
	})
	if len(u.waiting) >= 256 {
		return u.flush(nil)
	}
	return nil
}

// flush makes what waits durable, with f.
func (u *upload) flush(f func(*store.Tx) error) error {
	ops := u.waiting
	if f != nil {
		ops = append(ops, f)
	}
	if len(ops) == 0 {
		return nil
	}
	u.waiting, u.size = nil, 0
	return u.s.store.Update(u.ctx, func(tx *store.Tx) error {
		for _, op := range ops {
			if err := op(tx); err != nil {
				return err
			}
		}
		return nil
	})
}

// drop forgets a blob that will not be finished.
func (u *upload) drop() {
	if !u.open {
		return
	}
	id := u.id
	if err := u.s.store.Update(u.s.ctx, func(tx *store.Tx) error { return tx.DropUpload(id) }); err != nil && u.s.ctx.Err() == nil {
		u.s.log.Warn("unfinished upload left for retention", "error", err)
	}
}

// blobGet sends blobs in the order asked for.
func (s *Server) blobGet(ctx context.Context, st *mux.Stream) error {
	var req wire.BlobDigests
	if err := st.Body(&req); err != nil {
		return err
	}
	if len(req.Digests) > maxDigests {
		return wire.Errorf(wire.TooLarge, "%d digests are more than the %d of one request", len(req.Digests), maxDigests)
	}
	for _, digest := range req.Digests {
		if may, err := s.mayGet(ctx, callOf(ctx), digest); err != nil || !may {
			return cmp.Or(err, error(wire.Errorf(wire.NotFound, "blob %q not found", digest)))
		}
		if err := s.sendBlob(ctx, st, digest); err != nil {
			return err
		}
	}
	return nil
}

func (s *Server) sendBlob(ctx context.Context, st *mux.Stream, digest string) error {
	size, err := s.store.BlobSize(ctx, digest)
	if err != nil {
		return err
	}
	if err := st.Send(wire.BlobHeader{Digest: digest, Size: size}); err != nil {
		return err
	}
	for at := int64(0); at < size; {
		data, err := s.store.BlobChunk(ctx, digest, at)
		if err != nil {
			return err
		}
		if len(data) == 0 {
			return wire.Errorf(wire.Internal, "blob %s ends at %d of %d bytes", digest, at, size)
		}
		for len(data) > 0 {
			n := min(len(data), wire.MaxData)
			if err := st.SendData(wire.Data{Offset: at, Bytes: data[:n]}); err != nil {
				return err
			}
			at, data = at+int64(n), data[n:]
		}
	}
	return st.Flush()
}
