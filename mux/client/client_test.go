package client_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/waypointd/waypoint/mux"
	"github.com/waypointd/waypoint/mux/client"
	"github.com/waypointd/waypoint/mux/muxtest"
	"github.com/waypointd/waypoint/mux/wire"
)

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

// Who is told of a lost connection and never returns, as one who writes to a pipe
// that nobody reads, holds up neither Close nor a call beyond its deadline.
func TestListenerThatHangs(t *testing.T) {
	s := newServer(t)
	told, end := make(chan error, 10), make(chan struct{})
	defer close(end)
	c := dial(t, s, func(err error) {
		told <- err
		<-end
	})
	s.Drop()
	ctx, cancel := context.WithCancel(t.Context())
	got := make(chan error, 1)
	go func() { _, err := c.Job(ctx, "j"); got <- err }()
	<-told
	cancel()
	if err := <-got; !errors.Is(err, context.Canceled) {
		t.Errorf("a call that is over: %v", err)
	}
	go func() { _, err := c.Job(t.Context(), "j"); got <- err }()
	c.Close()
	if err := <-got; wire.KindOf(err) != wire.Unavailable {
		t.Errorf("a call of a client that is closed: %v", err)
	}
}

// deafConn is one on which nothing comes any more once it is deaf.
type deafConn struct {
	net.Conn
	deaf, closed chan struct{}
	once         sync.Once
}

func (c *deafConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	select {
	case <-c.deaf:
		<-c.closed
		return 0, net.ErrClosed
	default:
		return n, err
	}
}

func (c *deafConn) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}

// The same with a session on which nothing comes, which is told by who watches it.
func TestListenerThatHangsInSilence(t *testing.T) {
	if testing.Short() {
		t.Skip("silence is told of after five seconds")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		if s, err := mux.Accept(t.Context(), conn, mux.Config{Plain: true}, muxtest.AdmitAll(mux.Table{})); err == nil {
			<-t.Context().Done()
			s.Close()
		}
	}()
	deaf := make(chan struct{})
	told, end := make(chan error, 10), make(chan struct{})
	c, err := client.Dial(t.Context(), client.Config{
		Dial: func(ctx context.Context) (net.Conn, error) {
			conn, err := new(net.Dialer).DialContext(ctx, "tcp", l.Addr().String())
			return &deafConn{Conn: conn, deaf: deaf, closed: make(chan struct{})}, err
		},
		Reconnecting: func(err error) {
			told <- err
			<-end
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	close(deaf)
	select {
	case err := <-told:
		if err == nil {
			t.Error("told of contact")
		}
	case <-time.After(time.Minute):
		t.Fatal("told nothing")
	}
	closed := make(chan error, 1)
	go func() { closed <- c.Close() }()
	select {
	case <-closed:
		close(end)
	case <-time.After(30 * time.Second):
		close(end)
		<-closed
		t.Error("Close waits for who is told")
	}
}

// Each loss and its end are told one after the other, before the call goes on.
func TestToldInOrder(t *testing.T) {
	s := newServer(t)
	var mu sync.Mutex
	var told []bool // whether there was contact
	c := dial(t, s, func(err error) {
		mu.Lock()
		defer mu.Unlock()
		told = append(told, err == nil)
	})
	for range 5 {
		s.Drop()
		if _, err := c.Job(t.Context(), "none"); wire.KindOf(err) != wire.NotFound {
			t.Fatal(err)
		}
	}
	mu.Lock()
	defer mu.Unlock()
	if want := slices.Repeat([]bool{false, true}, 5); !slices.Equal(told, want) {
		t.Errorf("told %v", told)
	}
}
