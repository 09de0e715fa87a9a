package mux_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/waypointd/waypoint/mux"
	"github.com/waypointd/waypoint/mux/muxtest"
	"github.com/waypointd/waypoint/mux/wire"
)

type echo struct {
	Text string `json:"text"`
}

// hold is a handler that says when it has begun and with what cause its
// context ended.
type hold struct {
	begun chan struct{}
	cause chan error
}

func newHold() *hold { return &hold{make(chan struct{}, 1), make(chan error, 1)} }

func (h *hold) serve(ctx context.Context, _ *mux.Stream) error {
	h.begun <- struct{}{}
	<-ctx.Done()
	h.cause <- context.Cause(ctx)
	return ctx.Err()
}

func await[T any](t testing.TB, what string, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(10 * time.Second):
		buf := make([]byte, 1<<20)
		t.Fatalf("%s did not happen in 10 s\n%s", what, buf[:runtime.Stack(buf, true)])
		panic("unreached")
	}
}

// settle fails the test if, at its end, more goroutines run than at its start.
func settle(t testing.TB) {
	before := runtime.NumGoroutine()
	t.Cleanup(func() {
		deadline := time.Now().Add(10 * time.Second)
		for runtime.NumGoroutine() > before {
			if time.Now().After(deadline) {
				buf := make([]byte, 1<<20)
				t.Errorf("%d goroutines were left, %d at the start\n%s", runtime.NumGoroutine(), before, buf[:runtime.Stack(buf, true)])
				return
			}
			time.Sleep(time.Millisecond)
		}
	})
}

func wantKind(t testing.TB, err error, kind wire.Kind, text string) {
	t.Helper()
	if wire.KindOf(err) != kind || !strings.Contains(fmt.Sprint(err), text) {
		t.Fatalf("got error %v of kind %q, want %q with %q", err, wire.KindOf(err), kind, text)
	}
}

func TestCall(t *testing.T) {
	settle(t)
	p := muxtest.NewPair(t, mux.Table{
		"echo": mux.Unary(func(_ context.Context, _ *mux.Peer, r echo) (echo, error) { return r, nil }),
		"conflict": func(context.Context, *mux.Stream) error {
			return fmt.Errorf("end job: %w", wire.Errorf(wire.Conflict, "the job has ended").WithHint("look at it"))
		},
		"secret":  func(context.Context, *mux.Stream) error { return errors.New("password is hunter2") },
		"panics":  func(context.Context, *mux.Stream) error { panic("at the disco") },
		"nothing": func(context.Context, *mux.Stream) error { return nil },
		"too much": mux.Unary(func(context.Context, *mux.Peer, echo) (echo, error) {
			return echo{strings.Repeat("x", wire.MaxMsg)}, nil
		}),
	}, muxtest.Options{Back: mux.Table{
		"back": mux.Unary(func(_ context.Context, _ *mux.Peer, r echo) (echo, error) { return echo{r.Text + "!"}, nil }),
	}})
	call := func(s *mux.Session, method string, body any) (string, error) {
		var reply echo
		err := s.Call(t.Context(), method, body, &reply)
		return reply.Text, err
	}
	for _, size := range []int{0, 1, 5000, 64 << 10, wire.MaxCall - 30} {
		text := strings.Repeat("é", size/2)
		if got, err := call(p.Client, "echo", echo{text}); err != nil || got != text {
			t.Fatalf("echo of %d bytes: got %d bytes, %v", size, len(got), err)
		}
	}
	if got, err := call(p.Server, "back", echo{"hi"}); err != nil || got != "hi!" {
		t.Fatalf("call from server to client: %q, %v", got, err)
	}
	for _, s := range []*mux.Session{p.Client, p.Server} {
		if err := s.Call(t.Context(), wire.MethodPing, nil, nil); err != nil {
			t.Fatalf("ping: %v", err)
		}
	}
	for _, c := range []struct {
		method string
		body   any
		kind   wire.Kind
		text   string
	}{
		{"conflict", nil, wire.Conflict, "the job has ended"},
		{"secret", nil, wire.Internal, "internal error"},
		{"panics", nil, wire.Internal, "internal error"},
		{"nothing", nil, wire.Internal, "without a message"},
		{"unheard of", nil, wire.Unimplemented, "unheard of"},
		{"echo", nil, wire.BadUsage, "needs a body"},
		{"echo", 5, wire.BadUsage, "decode body of echo"},
		{"too much", echo{}, wire.TooLarge, "over the limit"},
		{"echo", echo{strings.Repeat("x", wire.MaxMsg)}, wire.TooLarge, "over the limit"},
	} {
		_, err := call(p.Client, c.method, c.body)
		wantKind(t, err, c.kind, c.text)
		if strings.Contains(err.Error(), "hunter2") {
			t.Fatal("an internal error was shown to the caller")
		}
	}
	var e *wire.Error
	if _, err := call(p.Client, "conflict", nil); !errors.As(err, &e) || e.Hint != "look at it" {
		t.Fatalf("the hint got lost: %#v", err)
	}
	_, err := call(p.Server, "echo", echo{})
	wantKind(t, err, wire.Unimplemented, "echo")
	if err := p.Client.Call(t.Context(), "nothing", nil, nil); err != nil {
		t.Fatalf("the session did not survive: %v", err)
	}
}

func TestPanicAndInternalErrorAreLogged(t *testing.T) {
	var out bytes.Buffer
	p := muxtest.NewPair(t, mux.Table{
		"secret": func(context.Context, *mux.Stream) error { return errors.New("hunter2") },
		"panics": func(context.Context, *mux.Stream) error { panic("at the disco") },
	}, muxtest.Options{Server: mux.Config{Logger: slog.New(slog.NewTextHandler(&out, nil))}})
	p.Client.Call(t.Context(), "secret", nil, nil)
	p.Client.Call(t.Context(), "panics", nil, nil)
	p.Close()
	for _, want := range []string{"hunter2", "at the disco", "method=panics", "session_test.go"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the log has no %q:\n%s", want, &out)
		}
	}
}

func TestStreamBothWays(t *testing.T) {
	settle(t)
	p := muxtest.NewPair(t, mux.Table{"sum": func(_ context.Context, st *mux.Stream) error {
		var n int64
		for {
			f, err := st.Recv()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				return err
			}
			if !f.IsData() {
				if err := st.Send(json.RawMessage(f.Msg)); err != nil {
					return err
				}
				continue
			}
			if f.Data.Offset != n || !f.Data.Time.Equal(time.UnixMicro(n+1)) || f.Data.Stream != wire.Stderr {
				return wire.Errorf(wire.BadUsage, "got %d bytes at %d, %v, want them at %d", len(f.Data.Bytes), f.Data.Offset, f.Data.Time, n)
			}
			n += int64(len(f.Data.Bytes))
		}
		return st.Send(n)
	}}, muxtest.Options{})
	st, err := p.Client.Open(t.Context(), "sum", nil)
	if err != nil {
		t.Fatal(err)
	}
	var n int64
	for i := range 2000 {
		d := wire.Data{Offset: n, Time: time.UnixMicro(n + 1), Stream: wire.Stderr, Bytes: make([]byte, (i*i)%(wire.MaxData+1))}
		if err := st.SendData(d); err != nil {
			t.Fatal(err)
		}
		n += int64(len(d.Bytes))
		if i%400 == 0 {
			var back int
			if err := st.Send(i); err != nil {
				t.Fatal(err)
			}
			if err := st.RecvMsg(&back); err != nil || back != i {
				t.Fatalf("message %d came back as %d, %v", i, back, err)
			}
		}
	}
	if err := st.SendData(wire.Data{Bytes: make([]byte, wire.MaxData+1)}); wire.KindOf(err) != wire.TooLarge {
		t.Fatalf("a DATA that is too large: %v", err)
	}
	if err := st.End(); err != nil {
		t.Fatal(err)
	}
	wantKind(t, st.Send(1), wire.Internal, "ended")
	var sum int64
	if err := st.RecvMsg(&sum); err != nil || sum != n {
		t.Fatalf("sum is %d, %v, want %d", sum, err, n)
	}
	for range 2 {
		if _, err := st.Recv(); !errors.Is(err, io.EOF) {
			t.Fatalf("after the status: %v", err)
		}
	}
	st.Close()
	st.Close()
}

// A cancel reaches a handler wherever it is.
func TestCancelByCaller(t *testing.T) {
	settle(t)
	idle := newHold()
	cause := make(chan error, 1)
	begun := make(chan struct{}, 1)
	p := muxtest.NewPair(t, mux.Table{
		"idle": idle.serve,
		"receiving": func(ctx context.Context, st *mux.Stream) error {
			begun <- struct{}{}
			_, err := st.Recv()
			cause <- errors.Join(err, context.Cause(ctx))
			return err
		},
		"sending": func(ctx context.Context, st *mux.Stream) error {
			begun <- struct{}{}
			for {
				if err := st.SendData(wire.Data{Bytes: make([]byte, wire.MaxData)}); err != nil {
					cause <- errors.Join(err, context.Cause(ctx))
					return err
				}
			}
		},
	}, muxtest.Options{})
	for _, c := range []struct {
		method string
		begun  chan struct{}
		cause  chan error
	}{{"idle", idle.begun, idle.cause}, {"receiving", begun, cause}, {"sending", begun, cause}} {
		for _, how := range []string{"cancel", "close"} {
			t.Run(c.method+" "+how, func(t *testing.T) {
				ctx, cancel := context.WithCancelCause(t.Context())
				st, err := p.Client.Open(ctx, c.method, nil)
				if err != nil {
					t.Fatal(err)
				}
				await(t, "begin", c.begun)
				mine := errors.New("enough")
				if how == "close" {
					st.Close()
				}
				cancel(mine)
				if err := await(t, "end of the handler", c.cause); !errors.Is(err, mux.ErrCanceled) || !errors.Is(err, context.Canceled) {
					t.Fatalf("the handler's cause is %v", err)
				}
				for {
					if _, err := st.Recv(); err != nil {
						if !errors.Is(err, mine) {
							t.Fatalf("the caller's error is %v", err)
						}
						break
					}
				}
			})
		}
	}
	if err := p.Client.Call(t.Context(), wire.MethodPing, nil, nil); err != nil {
		t.Fatal(err)
	}
}

// A caller that is sending or receiving is woken by its own context.
func TestCancelWakesCaller(t *testing.T) {
	settle(t)
	h := newHold()
	p := muxtest.NewPair(t, mux.Table{"hold": h.serve}, muxtest.Options{})
	for _, sending := range []bool{true, false} {
		ctx, cancel := context.WithCancel(t.Context())
		st, err := p.Client.Open(ctx, "hold", nil)
		if err != nil {
			t.Fatal(err)
		}
		got := make(chan error, 1)
		go func() {
			for {
				var err error
				if sending {
					err = st.SendData(wire.Data{Bytes: make([]byte, wire.MaxData)})
				} else {
					_, err = st.Recv()
				}
				if err != nil {
					got <- err
					return
				}
			}
		}()
		await(t, "begin", h.begun)
		cancel()
		if err := await(t, "end of the caller", got); !errors.Is(err, context.Canceled) {
			t.Fatalf("sending %v: got %v", sending, err)
		}
		await(t, "end of the handler", h.cause)
	}
}

func TestDeadline(t *testing.T) {
	settle(t)
	h := newHold()
	deadlines := make(chan time.Time, 1)
	p := muxtest.NewPair(t, mux.Table{
		"hold": h.serve,
		"when": func(ctx context.Context, _ *mux.Stream) error {
			d, _ := ctx.Deadline()
			deadlines <- d
			return nil
		},
		// What its caller cannot know: a deadline of the handler's own.
		"late": func(ctx context.Context, st *mux.Stream) error {
			ctx, cancel := context.WithTimeout(ctx, time.Millisecond)
			defer cancel()
			<-ctx.Done()
			return fmt.Errorf("wait: %w", ctx.Err())
		},
	}, muxtest.Options{})

	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	wantKind(t, p.Client.Call(ctx, "hold", nil, nil), wire.Timeout, "deadline")
	await(t, "begin", h.begun)
	// Either the handler's own timer or the caller's close comes first.
	if err := await(t, "end of the handler", h.cause); !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, mux.ErrCanceled) {
		t.Fatalf("the handler's cause is %v", err)
	}
	_, err := p.Client.Open(ctx, "hold", nil)
	wantKind(t, err, wire.Timeout, "deadline")

	ctx, cancel = context.WithTimeout(t.Context(), time.Hour)
	defer cancel()
	want, _ := ctx.Deadline()
	if err := p.Client.Call(ctx, "when", nil, nil); err != nil {
		t.Fatal(err)
	}
	if got := <-deadlines; got.Sub(want).Abs() > 5*time.Second {
		t.Fatalf("the deadline came as %v, want %v", got, want)
	}
	wantKind(t, p.Client.Call(t.Context(), "late", nil, nil), wire.Timeout, "deadline")
}

// A handler that ends early wakes a caller that is sending, who then finds
// the status.
func TestHandlerEndsWhileCallerSends(t *testing.T) {
	settle(t)
	p := muxtest.NewPair(t, mux.Table{"refuse": func(_ context.Context, st *mux.Stream) error {
		st.Recv()
		return wire.Errorf(wire.TooLarge, "no more, please")
	}}, muxtest.Options{})
	for range 20 {
		st, err := p.Client.Open(t.Context(), "refuse", nil)
		if err != nil {
			t.Fatal(err)
		}
		for err == nil {
			err = st.SendData(wire.Data{Bytes: make([]byte, wire.MaxData)})
		}
		if !errors.Is(err, mux.ErrCallOver) {
			t.Fatalf("send: %v", err)
		}
		_, err = st.Recv()
		wantKind(t, err, wire.TooLarge, "no more, please")
	}
}

func TestSessionEndsCalls(t *testing.T) {
	for _, how := range []string{"client closes", "server closes", "server aborts", "link drops"} {
		t.Run(how, func(t *testing.T) {
			settle(t)
			h := newHold()
			p := muxtest.NewPair(t, mux.Table{"hold": h.serve}, muxtest.Options{})
			got := make(chan error, 1)
			go func() { got <- p.Client.Call(t.Context(), "hold", nil, nil) }()
			await(t, "begin", h.begun)
			switch how {
			case "client closes":
				p.Client.Close()
			case "server closes":
				p.Server.Close()
			case "server aborts":
				p.Server.Abort(wire.Errorf(wire.Conflict, "forgotten"))
			case "link drops":
				p.Link.Drop()
			}
			wantKind(t, await(t, "end of the call", got), wire.Unavailable, "")
			if err := await(t, "end of the handler", h.cause); wire.KindOf(err) != wire.Unavailable {
				t.Fatalf("the handler's cause is %v", err)
			}
			for _, s := range []*mux.Session{p.Client, p.Server} {
				await(t, "Done", s.Done())
				wantKind(t, s.Err(), wire.Unavailable, "")
				wantKind(t, s.Call(t.Context(), "hold", nil, nil), wire.Unavailable, "")
			}
			if how == "server aborts" {
				wantKind(t, p.Server.Err(), wire.Unavailable, "forgotten")
			}
		})
	}
}

func TestCloseWaitsForHandlers(t *testing.T) {
	settle(t)
	h := newHold()
	slow := make(chan struct{})
	var ended bool
	p := muxtest.NewPair(t, mux.Table{"slow": func(ctx context.Context, st *mux.Stream) error {
		h.serve(ctx, st)
		<-slow
		ended = true // read behind Close, which orders the two
		return nil
	}}, muxtest.Options{})
	if _, err := p.Client.Open(t.Context(), "slow", nil); err != nil {
		t.Fatal(err)
	}
	await(t, "begin", h.begun)
	go func() {
		<-h.cause
		close(slow)
	}()
	p.Server.Close()
	if !ended {
		t.Fatal("Close returned while a handler ran")
	}
}

func TestManyStreams(t *testing.T) {
	settle(t)
	const n = 10_000
	cfg := mux.Config{MaxStreams: n}
	var begun sync.WaitGroup
	begun.Add(n)
	release := make(chan struct{})
	p := muxtest.NewPair(t, mux.Table{"wait": func(ctx context.Context, st *mux.Stream) error {
		begun.Done()
		<-release
		return st.Send(1)
	}}, muxtest.Options{Client: cfg, Server: cfg})
	errs := make(chan error, n)
	for range n {
		go func() {
			var one int
			errs <- p.Client.Call(t.Context(), "wait", nil, &one)
		}()
	}
	begun.Wait()
	close(release)
	for range n {
		if err := await(t, "reply", errs); err != nil {
			t.Fatal(err)
		}
	}
}

// More calls than the peer takes at once wait for one another; they do not
// end the session, not even for the moment in which an end is on its way.
func TestCallsWaitForRoom(t *testing.T) {
	settle(t)
	cfg := mux.Config{MaxStreams: 3}
	p := muxtest.NewPair(t, mux.Table{}, muxtest.Options{Client: cfg, Server: cfg})
	var calls sync.WaitGroup
	for range 32 {
		calls.Go(func() {
			for range 100 {
				if err := p.Client.Call(t.Context(), wire.MethodPing, nil, nil); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	calls.Wait()
}

func TestHandshakeOfRunner(t *testing.T) {
	settle(t)
	_, key, _ := ed25519.GenerateKey(nil)
	_, other, _ := ed25519.GenerateKey(nil)
	admit := func(_ context.Context, p *mux.Peer) (*mux.Admission, error) {
		if !p.Key.Equal(key.Public()) {
			return nil, wire.Errorf(wire.Denied, "who are you").WithHint("go away")
		}
		return &mux.Admission{
			Welcome: wire.Welcome{ServerID: "s1", RunnerID: p.Hello.Runner.ID},
			Data:    42,
			Table: mux.Table{"who": mux.Unary(func(_ context.Context, p *mux.Peer, _ struct{}) (string, error) {
				return fmt.Sprintf("%s %s %s %v %d", p.Hello.Software, p.Hello.Runner.ID, p.Network, p.Data, p.UID), nil
			})},
		}, nil
	}
	hello := wire.Hello{Role: wire.RoleRunner, Runner: &wire.RunnerHello{ID: "r1"}}
	p := muxtest.NewPair(t, nil, muxtest.Options{
		Client: mux.Config{Software: "test 1"}, Server: mux.Config{Software: "test 2"}, Hello: hello, Key: key, Admit: admit})
	if w := p.Client.Welcome(); w.RunnerID != "r1" || w.ServerID != "s1" || w.Software != "test 2" || w.Version != wire.VersionMax {
		t.Fatalf("welcome is %+v", w)
	}
	var who string
	if err := p.Client.Call(t.Context(), "who", struct{}{}, &who); err != nil || !strings.HasPrefix(who, "test 1 r1 memory 42 ") {
		t.Fatalf("the peer is %q, %v", who, err)
	}
	_, err := muxtest.Connect(t.Context(), muxtest.NewLink(), nil, muxtest.Options{Hello: hello, Key: other, Admit: admit})
	wantKind(t, err, wire.Denied, "who are you")
	if e, _ := errors.AsType[*wire.Error](err); e.Hint != "go away" {
		t.Fatalf("the hint got lost: %#v", e)
	}
	_, err = muxtest.Connect(t.Context(), muxtest.NewLink(), nil, muxtest.Options{Hello: hello, Admit: admit})
	wantKind(t, err, wire.BadUsage, "public key")
	_, err = muxtest.Connect(t.Context(), muxtest.NewLink(), nil, muxtest.Options{Hello: wire.Hello{Role: "king"}})
	wantKind(t, err, wire.BadUsage, "king")
}

// A client that claims to be a runner in passing is none.
func TestClientHasNoRunner(t *testing.T) {
	peers := make(chan *mux.Peer, 1)
	muxtest.NewPair(t, nil, muxtest.Options{
		Hello: wire.Hello{Role: wire.RoleClient, Runner: &wire.RunnerHello{ID: "r1", PublicKey: make([]byte, 32)}},
		Admit: func(_ context.Context, p *mux.Peer) (*mux.Admission, error) {
			peers <- p
			return &mux.Admission{}, nil
		},
	})
	if p := <-peers; p.Hello.Runner != nil || p.Key != nil {
		t.Fatalf("peer is %+v", p)
	}
}
