package daemon

import (
	"cmp"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"sync"

	"github.com/waypointd/waypoint/mux/wire"
)

// Who is limited to projects may use a blob only where he has shown that he has
// its content, or where it is the artifact of a build that he may see: to know a
// digest, or to guess one, is not enough.

// maxProofs bounds what is remembered of all users, and with it the files of one
// user's source tree.
const maxProofs = 1 << 20

// proofs are which blobs users have sent, since this process began: what is
// forgotten is sent once more.
type proofs struct {
	mu   sync.Mutex
	sent map[string]map[[32]byte]struct{} // by user; guarded by mu
	size int                              // guarded by mu
}

func digestOf(text string) (sum [32]byte, ok bool) {
	text, ok = strings.CutPrefix(text, "sha256:")
	if !ok || len(text) != hex.EncodedLen(len(sum)) {
		return sum, false
	}
	_, err := hex.Decode(sum[:], []byte(text))
	return sum, err == nil && text == strings.ToLower(text)
}

func (p *proofs) add(user string, digests []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, text := range digests {
		sum, ok := digestOf(text)
		if !ok {
			continue
		}
		if p.size >= maxProofs || p.sent == nil {
			p.sent, p.size = map[string]map[[32]byte]struct{}{}, 0
		}
		if p.sent[user] == nil {
			p.sent[user] = map[[32]byte]struct{}{}
		}
		if _, known := p.sent[user][sum]; !known {
			p.sent[user][sum] = struct{}{}
			p.size++
		}
	}
}

func (p *proofs) has(user, digest string) bool {
	sum, ok := digestOf(digest)
	if !ok {
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	_, ok = p.sent[user][sum]
	return ok
}

// prover is under whose name a caller's proofs are kept: his runner's are his too.
func (c *call) prover() string { return wire.UserKey(c.by.login.claims.User) }

// mayGet reports whether a caller may read a blob. Runners may read what their
// jobs need, and nobody knows all that these need.
func (s *Server) mayGet(ctx context.Context, c *call, digest string) (bool, error) {
	if c.by.limits.None() || s.proofs.has(c.prover(), digest) {
		return true, nil
	}
	if v, ok := c.peer.Data.(*visitor); ok {
		// The input of its job was his when that was queued, perhaps before this process began.
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
func (s *Server) mayLeave(c *call, artifact *wire.BlobHeader) error {
	if artifact == nil || artifact.Digest == "" || c.by.limits.None() || s.proofs.has(c.prover(), artifact.Digest) {
		return nil
	}
	return wire.Errorf(wire.Denied, "the artifact of the job is not what its runner has sent")
}

// mayFeed refuses a job with a source or an input that its caller has not sent, as
// far as this process knows.
func (s *Server) mayFeed(ctx context.Context, c *call, spec *wire.JobSpec) error {
	refused := func(what string) error {
		return wire.Errorf(wire.Denied, "the %s of the job is not what %s has sent", what, c.by.name).
			WithHint("run the command again: it sends what the server has forgotten")
	}
	if spec.Stdin != "" && !s.proofs.has(c.prover(), spec.Stdin) {
		return refused("input")
	}
	if spec.Source == nil || spec.Source.Tree == "" {
		return nil
	}
	if !s.proofs.has(c.prover(), spec.Source.Tree) {
		return refused("source")
	}
	d := json.NewDecoder(&blobReader{s: s, ctx: ctx, digest: spec.Source.Tree})
	err := eachDigest(d, func(digest string) error {
		if !s.proofs.has(c.prover(), digest) {
			return refused("source")
		}
		return nil
	})
	if _, ours := errors.AsType[*wire.Error](err); err != nil && !ours {
		err = wire.Errorf(wire.BadUsage, "read source tree: %v", err)
	}
	return err
}

// eachDigest calls f for each file that a manifest names: the "digest" of each of
// its "entries", wherever they are.
func eachDigest(d *json.Decoder, f func(digest string) error) error {
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return cmp.Or(err, errors.New("it is no object"))
	}
	for d.More() {
		if _, err := d.Token(); err != nil { // a key
			return err
		}
		t, err := d.Token()
		switch t {
		case json.Delim('['):
			for d.More() {
				var entry struct {
					Digest string `json:"digest"`
				}
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
