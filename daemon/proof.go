package daemon

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/waypointd/waypoint/mux/wire"
)

// Who is limited to projects may use a blob only where he has shown that he has
// its content, or where it is the artifact of a build that he may see: to know a
// digest, or to guess one, is not enough. Who has sent what is in the store, as
// long as the blob is.

// prover is under whose name a caller's proofs are kept: his runner's are his too.
func (c *call) prover() string { return wire.UserKey(c.by.login.claims.User) }

// hasSent reports whether a caller has sent all of the blobs.
func (s *Server) hasSent(ctx context.Context, c *call, digests ...string) (bool, error) {
	sent, err := s.store.Proven(ctx, c.prover(), digests)
	if err != nil {
		return false, err
	}
	for _, digest := range digests {
		if !sent[digest] {
			return false, nil
		}
	}
	return true, nil
}

// mayGet reports whether a caller may read a blob. Runners may read what their
// jobs need, and nobody knows all that these need.
func (s *Server) mayGet(ctx context.Context, c *call, digest string) (bool, error) {
	if c.by.limits.None() {
		return true, nil
	}
	if sent, err := s.hasSent(ctx, c, digest); err != nil || sent {
		return sent, err
	}
	if v, ok := c.peer.Data.(*visitor); ok {
		// The input of its job was his when that was queued.
		for _, ref := range s.fleet.heldBy(v.id) {
			if spec, err := s.store.Spec(ctx, ref.Job); err == nil && spec.Stdin == digest {
				return true, nil
			}
		}
	}
	return s.store.ArtifactWithin(ctx, digest, c.by.limits)
}

// heldBy are the attempts that a runner has.
func (f *fleet) heldBy(runner string) (refs []wire.JobRef) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, a := range f.held[runner] {
		refs = append(refs, a.JobRef)
	}
	return refs
}

// mayLeave refuses an artifact that the caller, a command line's own runner, has
// not sent: as the record of his project it would become his to read.
func (s *Server) mayLeave(ctx context.Context, c *call, artifact *wire.BlobHeader) error {
	if artifact == nil || artifact.Digest == "" || c.by.limits.None() {
		return nil
	}
	if sent, err := s.hasSent(ctx, c, artifact.Digest); err != nil || sent {
		return err
	}
	return wire.Errorf(wire.Denied, "the artifact of the job is not what its runner has sent")
}

// mayFeed refuses a job with a source or an input that its caller has not sent.
func (s *Server) mayFeed(ctx context.Context, c *call, spec *wire.JobSpec) error {
	sent := func(what string, digests ...string) error {
		ok, err := s.hasSent(ctx, c, digests...)
		if err == nil && !ok {
			err = wire.Errorf(wire.Denied, "the %s of the job is not what %s has sent", what, c.by.name).
				WithHint("run the command again: it sends what the server has no more")
		}
		return err
	}
	if spec.Stdin != "" {
		if err := sent("input", spec.Stdin); err != nil {
			return err
		}
	}
	if spec.Source == nil || spec.Source.Tree == "" {
		return nil
	}
	if err := sent("source", spec.Source.Tree); err != nil {
		return err
	}
	var (
		files   []string
		refused error
	)
	some := func() error {
		refused = sent("source", files...)
		files = files[:0]
		return refused
	}
	size, err := s.store.BlobSize(ctx, spec.Source.Tree)
	if err != nil {
		return err
	}
	if size > maxManifest {
		return wire.Errorf(wire.TooLarge, "the source tree of %d bytes is over the limit of %d", size, maxManifest)
	}
	err = eachDigest(&blobReader{s: s, ctx: ctx, digest: spec.Source.Tree}, func(digest string) error {
		if files = append(files, digest); len(files) < 256 {
			return nil
		}
		return some()
	})
	if err == nil {
		err = some()
	}
	if refused != nil {
		return refused
	}
	if _, ours := errors.AsType[*wire.Error](err); err != nil && !ours {
		err = wire.Errorf(wire.BadUsage, "read source tree: %v", err)
	}
	return err
}

// eachDigest calls f for each file that a manifest names: the "digest" of each of
// its "entries", wherever they are.
// Whoever has sent it may have made one value of all of it: as little of that is kept in memory as of any other.
func eachDigest(text io.Reader, f func(digest string) error) error {
	short := &ration{r: text}
	d := json.NewDecoder(short)
	short.left = maxEntry
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return cmp.Or(err, errors.New("it is no object"))
	}
	for d.More() {
		short.left = maxEntry
		if _, err := d.Token(); err != nil { // a key
			return err
		}
		short.left = maxEntry
		t, err := d.Token()
		switch t {
		case json.Delim('['):
			for d.More() {
				var entry struct {
					Digest string `json:"digest"`
				}
				short.left = maxEntry
				if err := d.Decode(&entry); err != nil {
					return err
				}
				if entry.Digest != "" {
					if err := f(entry.Digest); err != nil {
						return err
					}
				}
			}
			_, err = d.Token()
		case json.Delim('{'):
			err = errors.New("it is not flat")
		}
		if err != nil {
			return err
		}
	}
	_, err := d.Token()
	return err
}

const (
	maxManifest = 256 << 20 // bytes of a source tree's manifest, as runners take it
	maxEntry    = 64 << 10  // of one value in it: two paths at most
)

// ration is a reader of which so much may be read until it is given more.
type ration struct {
	r    io.Reader
	left int
}

func (r *ration) Read(p []byte) (int, error) {
	if r.left <= 0 {
		return 0, fmt.Errorf("a part of it is longer than %d bytes", maxEntry)
	}
	n, err := r.r.Read(p[:min(len(p), r.left)])
	r.left -= n
	return n, err
}

// blobReader reads a stored blob.
type blobReader struct {
	s      *Server
	ctx    context.Context
	digest string
	at     int64
	rest   []byte
}

func (r *blobReader) Read(b []byte) (int, error) {
	if len(r.rest) == 0 {
		data, err := r.s.store.BlobChunk(r.ctx, r.digest, r.at)
		if err != nil {
			return 0, err
		}
		if len(data) == 0 {
			return 0, io.EOF
		}
		r.rest = data
		r.at += int64(len(data))
	}
	n := copy(b, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}
