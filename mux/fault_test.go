package mux_test

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"testing"
	"time"

	"github.com/waypointd/waypoint/mux"
	"github.com/waypointd/waypoint/mux/muxtest"
	"github.com/waypointd/waypoint/mux/wire"
)

// shortCall is a handshake and one call with a little of everything; it
// returns what went wrong at the caller's side.
func shortCall(ctx context.Context, link *muxtest.Link, encrypted *tls.Config) error {
	p, err := muxtest.Connect(ctx, link, mux.Table{"work": func(_ context.Context, st *mux.Stream) error {
		for {
			f, err := st.Recv()
			if errors.Is(err, io.EOF) {
				return st.Send(echo{"done"})
			}
			if err != nil {
				return err
			}
			if f.IsData() {
				if err := st.SendData(f.Data); err != nil {
					return err
				}
			}
		}
	}}, muxtest.Options{Client: mux.Config{HandshakeTimeout: 5 * time.Second}, Server: mux.Config{HandshakeTimeout: 5 * time.Second, TLS: encrypted}})
	if err != nil {
		return err
	}
	defer p.Close()
	st, err := p.Client.Open(ctx, "work", echo{"hello"})
	if err != nil {
		return err
	}
	defer st.Close()
	if err := errors.Join(st.Send(echo{"begin"}), st.SendData(wire.Data{Bytes: make([]byte, 100)}), st.End()); err != nil {
		return err
	}
	if f, err := st.Recv(); err != nil || len(f.Data.Bytes) != 100 {
		return errors.Join(err, errors.New("the data did not come back"))
	}
	var reply echo
	if err := st.RecvMsg(&reply); err != nil {
		return err
	}
	if _, err := st.Recv(); !errors.Is(err, io.EOF) {
		return err
	}
	return nil
}

// Wherever a connection is cut, both sides come to an end with a clear error,
// nothing hangs and nothing is left.
func TestCutAtEveryByte(t *testing.T) {
	cutEvery(t, 1, 300, func(link *muxtest.Link) (*muxtest.Link, *tls.Config) { return link, nil })
}

// Over TLS most of the bytes are its handshake's.
func TestTLSCutAnywhere(t *testing.T) {
	a := muxtest.NewAuthority(t)
	cert := a.Issue(t, muxtest.Leaf{})
	cutEvery(t, 13, 150, func(link *muxtest.Link) (*muxtest.Link, *tls.Config) { return tlsLink(link, cert) })
}

// cutEvery cuts a call's link after each number of bytes, by steps, until the
// call comes through; over makes the sessions' link of the one that is cut.
func cutEvery(t *testing.T, step int64, least int, over func(*muxtest.Link) (*muxtest.Link, *tls.Config)) {
	settle(t)
	cuts, whole := 0, 0
	for n := int64(1); whole < 3; n += step {
		link := muxtest.NewLink()
		link.CutAfter(n)
		ends, encrypted := over(link)
		got := make(chan error, 1)
		go func() { got <- shortCall(t.Context(), ends, encrypted) }()
		err := await(t, "end of the call", got)
		link.Drop()
		switch {
		case err == nil:
			whole++
		case wire.KindOf(err) != wire.Unavailable:
			t.Fatalf("cut after %d bytes: %v", n, err)
		default:
			whole = 0
			cuts++
		}
		if n > 5000 {
			t.Fatal("the call never succeeds")
		}
	}
	if cuts < least {
		t.Fatalf("only %d places to cut", cuts)
	}
}

func TestSlowLink(t *testing.T) {
	settle(t)
	link := muxtest.NewLink()
	link.Delay(2 * time.Millisecond)
	if err := shortCall(t.Context(), link, nil); err != nil {
		t.Fatal(err)
	}
}

// A stall that ends costs nothing but time.
func TestStallAndResume(t *testing.T) {
	settle(t)
	p := muxtest.NewPair(t, mux.Table{}, muxtest.Options{})
	for range 3 {
		p.Link.Stall()
		got := make(chan error, 1)
		go func() { got <- p.Client.Call(t.Context(), wire.MethodPing, nil, nil) }()
		select {
		case err := <-got:
			t.Fatalf("a call passed through a stalled link: %v", err)
		case <-time.After(10 * time.Millisecond):
		}
		p.Link.Resume()
		if err := await(t, "reply", got); err != nil {
			t.Fatal(err)
		}
	}
}

// The server that stops in the middle of a handshake does not hold the client.
func TestConnectToSilence(t *testing.T) {
	settle(t)
	a, b := mux.Pipe()
	defer b.Close()
	_, err := mux.Connect(t.Context(), a, mux.Config{HandshakeTimeout: 20 * time.Millisecond}, wire.Hello{Role: wire.RoleClient}, nil, nil)
	wantKind(t, err, wire.Unavailable, "handshake")
	if errors.Is(err, mux.ErrLost) {
		t.Error("a handshake that took too long is not a lost session, and is not repeated at once")
	}

	a, b2 := mux.Pipe()
	defer b2.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	_, err = mux.Connect(ctx, a, mux.Config{}, wire.Hello{Role: wire.RoleClient}, nil, nil)
	wantKind(t, err, wire.Timeout, "deadline")

	a, b3 := mux.Pipe()
	b3.Close()
	_, err = mux.Connect(t.Context(), a, mux.Config{}, wire.Hello{Role: wire.RoleClient}, nil, nil)
	wantKind(t, err, wire.Unavailable, "")
	if !errors.Is(err, mux.ErrLost) {
		t.Errorf("%v is not a lost session", err)
	}
}
