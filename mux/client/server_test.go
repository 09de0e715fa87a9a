package client_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"testing"
	"time"

	"github.com/waypointd/waypoint/mux"
	"github.com/waypointd/waypoint/mux/muxtest"
	"github.com/waypointd/waypoint/mux/wire"
)

// server is what a real one keeps over its restarts, as far as a client can
// see.
type server struct {
	*muxtest.Listener
	t testing.TB

	mu    sync.Mutex
	jobs  map[string]wire.Job // by idempotency key
	blobs map[string][]byte
	log   []byte
	calls map[string]int
	fault func(method string, n int) // called before the n-th answer to a method

	attempts []int // asked for by streams
}

func newServer(t testing.TB) *server {
	s := &server{Listener: muxtest.Listen(), t: t, jobs: map[string]wire.Job{}, blobs: map[string][]byte{}, calls: map[string]int{}}
	done := make(chan struct{})
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		s.Serve(ctx, mux.Config{}, muxtest.AdmitAll(s.table()))
		close(done)
	}()
	t.Cleanup(func() {
		s.Close()
		cancel()
		select {
		case <-done:
		case <-time.After(10 * time.Second):
			t.Error("the server did not end")
		}
	})
	return s
}

// count notes a call and lets the test do harm before it is answered.
func (s *server) count(method string) {
	s.mu.Lock()
	s.calls[method]++
	n, fault := s.calls[method], s.fault
	s.mu.Unlock()
	if fault != nil {
		fault(method, n)
	}
}

func (s *server) made(method string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.calls[method]
}

func answer[Req, Reply any](s *server, method string, f func(Req) (Reply, error)) mux.Handler {
	return mux.Unary(func(_ context.Context, _ *mux.Peer, req Req) (Reply, error) {
		s.mu.Lock()
		reply, err := f(req)
		s.mu.Unlock()
		s.count(method) // after the effect: an answer that is lost
		return reply, err
	})
}

func (s *server) table() mux.Table {
	return mux.Table{
		wire.MethodJobSubmit: answer(s, wire.MethodJobSubmit, func(r wire.SubmitRequest) (reply wire.SubmitReply, err error) {
			for _, spec := range r.Jobs {
				if spec.IdempotencyKey == "" {
					return reply, wire.Errorf(wire.BadUsage, "no key")
				}
				j, ok := s.jobs[spec.IdempotencyKey]
				if !ok {
					j = wire.Job{ID: fmt.Sprint("job", len(s.jobs)), State: wire.Queued}
					s.jobs[spec.IdempotencyKey] = j
				}
				reply.Jobs = append(reply.Jobs, j)
			}
			return reply, nil
		}),
		wire.MethodJobRetry: answer(s, wire.MethodJobRetry, func(r wire.JobRequest) (wire.Job, error) { return wire.Job{ID: r.ID}, nil }),
		wire.MethodJobGet: answer(s, wire.MethodJobGet, func(r wire.JobRequest) (wire.Job, error) {
			if r.ID == "none" {
				return wire.Job{}, wire.Errorf(wire.NotFound, "job none does not exist")
			}
			return wire.Job{ID: r.ID}, nil
		}),
		wire.MethodJobWait: func(ctx context.Context, st *mux.Stream) error {
			s.count(wire.MethodJobWait)
			if s.made(wire.MethodJobWait) < 3 {
				<-ctx.Done() // until the session is lost
				return ctx.Err()
			}
			return st.Send(wire.Job{ID: "j", State: wire.Success})
		},
		wire.MethodJobStream: s.stream,
		wire.MethodBlobMissing: answer(s, wire.MethodBlobMissing, func(r wire.BlobDigests) (m wire.BlobDigests, _ error) {
			if len(r.Digests) > 4096 {
				return m, wire.Errorf(wire.TooLarge, "too many")
			}
			for _, d := range r.Digests {
				if _, ok := s.blobs[d]; !ok {
					m.Digests = append(m.Digests, d)
				}
			}
			return m, nil
		}),
		wire.MethodBlobPut: s.putBlobs,
		wire.MethodBlobGet: s.getBlobs,
	}
}

func (s *server) stream(_ context.Context, st *mux.Stream) error {
	var req wire.StreamRequest
	if err := st.Body(&req); err != nil {
		return err
	}
	s.mu.Lock()
	s.attempts = append(s.attempts, req.Attempt)
	s.mu.Unlock()
	running := wire.Job{ID: req.ID, State: wire.Running, Attempt: 7}
	if err := st.Send(wire.StreamEvent{Job: running}); err != nil {
		return err
	}
	at := req.Offset &^ 1023 // a chunk that began before the offset
	for at < int64(len(s.log)) {
		n := min(1024, len(s.log)-int(at))
		if err := st.SendData(wire.Data{Offset: at, Stream: wire.Stdout, Bytes: s.log[at : int(at)+n]}); err != nil {
			return err
		}
		if err := st.Flush(); err != nil {
			return err
		}
		at += int64(n)
		s.count(wire.MethodJobStream)
	}
	running.State = wire.Success
	return st.Send(wire.StreamEvent{Job: running, Last: true})
}

func (s *server) putBlobs(_ context.Context, st *mux.Stream) error {
	var stored wire.BlobDigests
	var h wire.BlobHeader
	var b []byte
	keep := func() error {
		if int64(len(b)) != h.Size || digest(b) != h.Digest {
			return wire.Errorf(wire.BadUsage, "blob %s is not what it should be", h.Digest)
		}
		s.mu.Lock()
		s.blobs[h.Digest] = b
		s.mu.Unlock()
		stored.Digests = append(stored.Digests, h.Digest)
		s.count(wire.MethodBlobPut)
		return nil
	}
	for first := true; ; first = false {
		f, err := st.Recv()
		if err == nil && f.IsData() {
			if f.Data.Offset != int64(len(b)) {
				return wire.Errorf(wire.BadUsage, "out of place")
			}
			b = append(b, f.Data.Bytes...)
			continue
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if !first {
			if err := keep(); err != nil {
				return err
			}
		}
		if err != nil {
			return st.Send(stored)
		}
		b = nil
		if err := json.Unmarshal(f.Msg, &h); err != nil {
			return err
		}
		if h.Size > 1<<30 {
			return wire.Errorf(wire.TooLarge, "no room for that")
		}
	}
}

func (s *server) getBlobs(_ context.Context, st *mux.Stream) error {
	var req wire.BlobDigests
	if err := st.Body(&req); err != nil {
		return err
	}
	for _, d := range req.Digests {
		s.mu.Lock()
		b, ok := s.blobs[d]
		s.mu.Unlock()
		if !ok {
			return wire.Errorf(wire.NotFound, "blob %s does not exist", d)
		}
		if err := st.Queue(wire.BlobHeader{Digest: d, Size: int64(len(b))}); err != nil {
			return err
		}
		for at := 0; at < len(b); at += wire.MaxData {
			if err := st.SendData(wire.Data{Offset: int64(at), Bytes: b[at:min(len(b), at+wire.MaxData)]}); err != nil {
				return err
			}
		}
		if err := st.Flush(); err != nil {
			return err
		}
		s.count(wire.MethodBlobGet)
	}
	return nil
}

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}
