package client_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/waypointd/waypoint/mux"
	"github.com/waypointd/waypoint/mux/client"
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

func dial(t testing.TB, s *server, reconnecting func(error)) *client.Client {
	t.Helper()
	c, err := client.Dial(t.Context(), client.Config{Dial: s.Dial, Software: "test", Reconnecting: reconnecting})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// dropAt breaks all connections off before the n-th answers to a method.
func (s *server) dropAt(method string, at ...int) {
	s.fault = func(m string, n int) {
		if m == method && slices.Contains(at, n) {
			s.Drop()
		}
	}
}

func TestDialFails(t *testing.T) {
	s := newServer(t)
	s.Stop()
	_, err := client.Dial(t.Context(), client.Config{Dial: s.Dial})
	if wire.KindOf(err) != wire.Unavailable {
		t.Fatalf("dial: %v", err)
	}
}

// A connection that a going server took is tried once more, at once.
func TestDialRepeatsOnce(t *testing.T) {
	s := newServer(t)
	for _, broken := range []int{1, 2} {
		n := 0
		c, err := client.Dial(t.Context(), client.Config{Dial: func(ctx context.Context) (net.Conn, error) {
			if n++; n <= broken {
				a, b := mux.Pipe()
				b.Close()
				return a, nil
			}
			return s.Dial(ctx)
		}})
		if (err == nil) != (broken == 1) || n != 2 {
			t.Fatalf("%d broken connections: %d were made, %v", broken, n, err)
		}
		if err == nil {
			c.Close()
		}
	}
}

func TestSubmitOnceOverLosses(t *testing.T) {
	s := newServer(t)
	s.dropAt(wire.MethodJobSubmit, 1, 2)
	var back atomic.Int32
	c := dial(t, s, func(err error) {
		if err == nil {
			back.Add(1)
		}
	})
	specs := []wire.JobSpec{{Operation: wire.OpRun}, {Operation: wire.OpRun, IdempotencyKey: "mine"}}
	jobs, err := c.Submit(t.Context(), specs...)
	if err != nil {
		t.Fatal(err)
	}
	if len(jobs) != 2 || len(s.jobs) != 2 || s.made(wire.MethodJobSubmit) != 3 {
		t.Fatalf("%d jobs were returned, %d made in %d calls", len(jobs), len(s.jobs), s.made(wire.MethodJobSubmit))
	}
	if _, ok := s.jobs["mine"]; !ok || specs[0].IdempotencyKey != "" {
		t.Fatal("a key was replaced, or the caller's spec changed")
	}
	if back.Load() != 2 {
		t.Errorf("told %d times that the connection is back", back.Load())
	}
	if _, err := c.Submit(t.Context(), wire.JobSpec{Operation: wire.OpRun}); err != nil || len(s.jobs) != 3 {
		t.Fatalf("the same spec again is another job: %d jobs, %v", len(s.jobs), err)
	}
}

func TestRetryIsNotRepeated(t *testing.T) {
	s := newServer(t)
	s.dropAt(wire.MethodJobRetry, 1)
	c := dial(t, s, nil)
	_, err := c.Retry(t.Context(), "j")
	if wire.KindOf(err) != wire.Unavailable || s.made(wire.MethodJobRetry) != 1 {
		t.Fatalf("retry was made %d times: %v", s.made(wire.MethodJobRetry), err)
	}
	if _, err := c.Retry(t.Context(), "j"); err != nil {
		t.Fatalf("on a new session: %v", err)
	}
}

func TestWaitOverRestart(t *testing.T) {
	s := newServer(t)
	told := make(chan error, 1000)
	c := dial(t, s, func(err error) { told <- err })
	s.fault = func(method string, n int) {
		if method == wire.MethodJobWait && n < 3 {
			go s.Stop()
		}
	}
	got := make(chan error, 1)
	go func() {
		j, err := c.Wait(t.Context(), "j")
		if err == nil && j.State != wire.Success {
			err = fmt.Errorf("the job is %+v", j)
		}
		got <- err
	}()
	for range 2 {
		failed := 0
		for err := range told {
			if err == nil {
				break
			}
			if wire.KindOf(err) != wire.Unavailable {
				t.Fatalf("told of %v", err)
			}
			if failed++; failed == 3 {
				s.Start()
			}
		}
		if failed < 3 {
			t.Fatalf("back after %d attempts, while the server was down", failed)
		}
	}
	if err := <-got; err != nil {
		t.Fatal(err)
	}
}

func TestErrorsAreNotRepeated(t *testing.T) {
	s := newServer(t)
	c := dial(t, s, nil)
	if _, err := c.Job(t.Context(), "none"); wire.KindOf(err) != wire.NotFound || s.made(wire.MethodJobGet) != 1 {
		t.Fatalf("got %v in %d calls", err, s.made(wire.MethodJobGet))
	}
	s.Stop()
	ctx, cancel := context.WithTimeout(t.Context(), 120*time.Millisecond)
	defer cancel()
	if _, err := c.Job(ctx, "j"); wire.KindOf(err) != wire.Timeout {
		t.Fatalf("without a server: %v", err)
	}
	ctx, cancel = context.WithCancel(t.Context())
	cancel()
	if _, err := c.Job(ctx, "j"); !errors.Is(err, context.Canceled) {
		t.Fatalf("canceled: %v", err)
	}
	got := make(chan error, 1)
	go func() { _, err := c.Job(t.Context(), "j"); got <- err }()
	c.Close()
	if err := <-got; wire.KindOf(err) != wire.Unavailable {
		t.Fatalf("after Close: %v", err)
	}
}

// A server that now refuses the client ends the waiting.
func TestRefusalEndsReconnecting(t *testing.T) {
	s := newServer(t)
	refuse := false
	c, err := client.Dial(t.Context(), client.Config{Dial: func(ctx context.Context) (net.Conn, error) {
		if refuse {
			return nil, wire.Errorf(wire.Denied, "not you")
		}
		return s.Dial(ctx)
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	refuse = true
	s.Drop()
	if _, err := c.Job(t.Context(), "j"); wire.KindOf(err) != wire.Denied {
		t.Fatalf("got %v", err)
	}
}

func TestStreamOverLosses(t *testing.T) {
	s := newServer(t)
	s.log = make([]byte, 100_000)
	for i := range s.log {
		s.log[i] = byte(i * 7)
	}
	begun := make(chan struct{}) // some output has reached the reader
	s.fault = func(_ string, n int) {
		if n == 3 || n == 5 || n == 70 {
			<-begun
			s.Drop()
		}
	}
	c := dial(t, s, nil)
	const from = 1500
	var got []byte
	var events []wire.StreamEvent
	for item, err := range c.Stream(t.Context(), wire.StreamRequest{ID: "j", Offset: from, Follow: true}) {
		if err != nil {
			t.Fatal(err)
		}
		if item.Event != nil {
			events = append(events, *item.Event)
			continue
		}
		if item.Data.Offset != from+int64(len(got)) {
			t.Fatalf("a chunk at %d came where %d was due", item.Data.Offset, from+len(got))
		}
		if got == nil {
			close(begun)
		}
		got = append(got, item.Data.Bytes...)
	}
	if string(got) != string(s.log[from:]) {
		t.Fatalf("%d bytes arrived of %d, or others", len(got), len(s.log)-from)
	}
	if len(events) != 2 || events[0].Job.State != wire.Running || !events[1].Last {
		t.Fatalf("the events are %+v", events)
	}
	if len(s.attempts) != 4 || s.attempts[0] != 0 || slices.Contains(s.attempts[1:], 0) || s.attempts[3] != 7 {
		t.Fatalf("the streams asked for the attempts %v", s.attempts)
	}
}

func TestStreamThatIsLeft(t *testing.T) {
	s := newServer(t)
	s.log = make([]byte, 100_000)
	c := dial(t, s, nil)
	for item, err := range c.Stream(t.Context(), wire.StreamRequest{ID: "j"}) {
		if err != nil {
			t.Fatal(err)
		}
		if item.Event == nil {
			break
		}
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	mine := errors.New("enough")
	var last error
	for _, err := range c.Stream(ctx, wire.StreamRequest{ID: "j"}) {
		last = err
		cancel(mine)
	}
	if !errors.Is(last, mine) {
		t.Fatalf("a canceled stream ends with %v", last)
	}
}

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

// Many callers share one client while its server comes and goes.
func TestManyCallersOverRestarts(t *testing.T) {
	s := newServer(t)
	c := dial(t, s, nil)
	stop := make(chan struct{})
	var callers sync.WaitGroup
	var calls atomic.Int64
	for range 16 {
		callers.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				id := fmt.Sprint(i)
				if j, err := c.Job(t.Context(), id); err != nil || j.ID != id {
					t.Errorf("job %s: %+v, %v", id, j, err)
					return
				}
				calls.Add(1)
			}
		})
	}
	for range 20 {
		for before := calls.Load(); calls.Load() < before+100 && !t.Failed(); {
			time.Sleep(time.Millisecond)
		}
		s.Drop()
	}
	close(stop)
	callers.Wait()
}
