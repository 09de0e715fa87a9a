package mux_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/waypointd/waypoint/mux"
	"github.com/waypointd/waypoint/mux/muxtest"
	"github.com/waypointd/waypoint/mux/wire"
)

// hoard is a session of which a raw peer may have little unread; its method
// "hold" takes nothing until it is told to.
func hoard(t *testing.T, cfg mux.Config, unread int64) (raw net.Conn, session *mux.Session, take chan struct{}) {
	t.Helper()
	raw, b := mux.Pipe()
	take = make(chan struct{})
	accepted := make(chan *mux.Session, 1)
	admit := func(ctx context.Context, p *mux.Peer) (*mux.Admission, error) {
		a, err := muxtest.AdmitAll(mux.Table{"hold": func(ctx context.Context, st *mux.Stream) error {
			select {
			case <-take:
			case <-ctx.Done():
				return ctx.Err()
			}
			for {
				if _, err := st.Recv(); err != nil {
					return nil
				}
			}
		}})(ctx, p)
		if err == nil {
			a.Bounds = mux.NewBounds(32, unread)
		}
		return a, err
	}
	go func() {
		s, err := mux.Accept(t.Context(), b, cfg, admit)
		if err != nil {
			t.Errorf("accept: %v", err)
		}
		accepted <- s
	}()
	t.Cleanup(func() { raw.Close() })
	raw.Write(helloBytes(t))
	go io.Copy(io.Discard, raw)
	if session = <-accepted; session == nil {
		t.FailNow()
	}
	t.Cleanup(func() { session.Close() })
	return raw, session, take
}

// fill has calls of "hold" sent what their windows have room for, as frames that
// are whole; the error is of a write that nobody reads within limit.
func fill(t *testing.T, raw net.Conn, calls int, limit time.Duration) error {
	t.Helper()
	raw.SetWriteDeadline(time.Now().Add(limit))
	for n := range calls {
		id := uint32(3 + 2*n)
		open := frame(t, wire.FrameCall, `{"m":"hold"}`)
		msg := frame(t, wire.FrameMsg, `"`+string(make([]byte, 200<<10))+`"`)
		if _, err := raw.Write(join(yframe(yWindow, ySYN, id, 0), ydata(id, open), ydata(id, msg))); err != nil {
			return err
		}
	}
	return nil
}

// told is a Config.Limit that sends what it is told.
func told(to chan<- string) func(string, int64) {
	return func(limit string, most int64) {
		select {
		case to <- fmt.Sprintf("%s %d", limit, most):
		default:
		}
	}
}

// Who sends what nobody takes is not read any further, and goes on when it is.
func TestUnreadOfOneSession(t *testing.T) {
	budget := mux.NewBudget(1 << 30)
	limits := make(chan string, 100)
	raw, session, take := hoard(t, mux.Config{Unread: budget, Limit: told(limits)}, 400<<10)
	sent := make(chan error, 1)
	go func() { sent <- fill(t, raw, 8, time.Minute) }()
	for budget.Held() < 400<<10 {
		if session.Err() != nil {
			t.Fatal(session.Err())
		}
		time.Sleep(time.Millisecond)
	}
	select {
	case err := <-sent: // 1.6 MB, of which the pipe holds 256 KiB
		t.Fatalf("all has been read, %v", err)
	default:
	}
	if n := budget.Held(); n > 700<<10 {
		t.Errorf("%d bytes are held", n)
	}
	if got := await(t, "word of the limit", limits); got != "unread 409600" {
		t.Errorf("told of %q", got)
	}
	close(take)
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
	session.Close()
	if n := budget.Held(); n != 0 {
		t.Errorf("%d bytes are held of a session that is over", n)
	}
}

// One of whom nothing is taken for ever loses the session.
func TestUnreadForEver(t *testing.T) {
	raw, session, _ := hoard(t, mux.Config{WriteTimeout: 50 * time.Millisecond}, 400<<10)
	go fill(t, raw, 8, time.Minute)
	await(t, "end of the session", session.Done())
	if wire.KindOf(session.Err()) != wire.Unavailable {
		t.Error(session.Err())
	}
}

// All sessions together have so much, and the share of each.
func TestUnreadOfAll(t *testing.T) {
	budget := mux.NewBudget(1)
	limits := make(chan string, 100)
	raw, _, take := hoard(t, mux.Config{Unread: budget, Limit: told(limits)}, 0)
	if err := fill(t, raw, 5, time.Minute); err != nil { // 1 MB: its share
		t.Fatal(err)
	}
	sent := make(chan error, 1)
	go func() { sent <- fillMore(t, raw) }()
	if got := await(t, "word of the limit", limits); got != "unread 1" {
		t.Errorf("told of %q", got)
	}
	other, _, free := hoard(t, mux.Config{Unread: budget}, 0)
	close(free)
	if err := fill(t, other, 8, time.Minute); err != nil {
		t.Errorf("another session: %v", err)
	}
	close(take)
	if err := <-sent; err != nil {
		t.Error(err)
	}
}

func fillMore(t *testing.T, raw net.Conn) error {
	raw.SetWriteDeadline(time.Now().Add(time.Minute))
	for id := uint32(13); id < 19; id += 2 {
		msg := frame(t, wire.FrameMsg, `"`+string(make([]byte, 200<<10))+`"`)
		if _, err := raw.Write(join(yframe(yWindow, ySYN, id, 0), ydata(id, frame(t, wire.FrameCall, `{"m":"hold"}`)), ydata(id, msg))); err != nil {
			return err
		}
	}
	return nil
}

// Calls that wait hold no memory for what they came with, and what follows is still
// to be received.
func TestWaitingCallsHoldNoBody(t *testing.T) {
	settle(t)
	const calls, size = 30, 900 << 10
	waiting, release := make(chan error, calls), make(chan struct{})
	wait := func(st *mux.Stream) error {
		var body string
		if err := st.Body(&body); wire.KindOf(err) != wire.BadUsage {
			t.Errorf("the body is there: %d bytes, %v", len(body), err)
		}
		waiting <- nil
		<-release
		return nil
	}
	p := muxtest.NewPair(t, mux.Table{
		"stream": func(_ context.Context, st *mux.Stream) error {
			var body, next string
			if err := st.Body(&body); err != nil || len(body) != size {
				t.Errorf("%d bytes came, %v", len(body), err)
			}
			st.Forget()
			if err := st.RecvMsg(&next); err != nil || next != "next" {
				t.Errorf("behind the body: %q, %v", next, err)
			}
			return wait(st)
		},
		"unary": func(ctx context.Context, st *mux.Stream) error {
			return mux.Unary(func(context.Context, *mux.Peer, string) (struct{}, error) { return struct{}{}, wait(st) })(ctx, st)
		},
	}, muxtest.Options{})
	held := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := held()
	for i := range calls {
		st, err := p.Client.Open(t.Context(), []string{"stream", "unary"}[i%2], strings.Repeat("x", size))
		if err != nil {
			t.Fatal(err)
		}
		defer st.Close()
		if err := st.Send("next"); err != nil {
			t.Fatal(err)
		}
		<-waiting
	}
	if after := held(); after > before+calls*size/2 {
		t.Errorf("%d calls of %d bytes each hold %d", calls, size, after-before)
	}
	close(release)
}
