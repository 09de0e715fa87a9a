package metrics

import (
	"bufio"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"testing"
	"testing/synctest"
	"time"
)

// pipes is a listener in memory.
type pipes struct {
	conns chan net.Conn
	ctx   context.Context
}

func (p pipes) Accept() (net.Conn, error) {
	select {
	case conn := <-p.conns:
		return conn, nil
	case <-p.ctx.Done():
		return nil, net.ErrClosed
	}
}

func (p pipes) Close() error   { return nil }
func (p pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipes", Net: "unix"} }

// dial connects, once the server takes it.
func (p pipes) dial() net.Conn {
	near, far := net.Pipe()
	p.conns <- far
	return near
}

// Who holds connections open keeps others waiting, and not for long: one that asks
// for nothing more, or never comes to the end of what it asks, is closed.
func TestSilentScrapers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		l := pipes{make(chan net.Conn), ctx}
		served := make(chan error, 1)
		go func() {
			served <- New("test").Serve(ctx, l, Source{Health: func(context.Context) ([]string, error) { return nil, nil }}, slog.New(slog.DiscardHandler))
		}()
		ask := func(conn net.Conn) {
			t.Helper()
			if _, err := io.WriteString(conn, "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
				t.Fatal(err)
			}
			res, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil {
				t.Fatal(err)
			}
			if body, err := io.ReadAll(res.Body); err != nil || string(body) != "ok\n" {
				t.Fatalf("%q, %v", body, err)
			}
		}
		closed := func(conn net.Conn, after time.Duration) {
			t.Helper()
			began := time.Now()
			if n, err := io.Copy(io.Discard, conn); n != 0 || err != nil {
				t.Errorf("%d bytes came, %v", n, err)
			}
			if took := time.Since(began); took < after || took > after+time.Second {
				t.Errorf("closed after %s, want %s", took, after)
			}
		}

		var open []net.Conn
		for range maxConns {
			conn := l.dial()
			ask(conn)
			open = append(open, conn)
		}
		late := make(chan net.Conn)
		go func() { late <- l.dial() }()
		synctest.Wait()
		select {
		case <-late:
			t.Fatalf("%d connections are open", maxConns+1)
		default:
		}
		closed(open[0], idle)
		conn := <-late
		ask(conn)
		conn.Close()

		half := l.dial()
		if _, err := io.WriteString(half, "GET /healthz HTTP/1.1\r\nHost:"); err != nil {
			t.Fatal(err)
		}
		closed(half, patience)

		cancel()
		if err := <-served; err != nil && !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
		for _, conn := range open {
			conn.Close()
		}
	})
}
