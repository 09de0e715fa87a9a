package mux_test

import (
	"context"
	"io"
	"net"
	"runtime"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/waypointd/waypoint/mux"
	"github.com/waypointd/waypoint/mux/muxtest"
	"github.com/waypointd/waypoint/mux/wire"
)

// The writers of a session that ends are woken before yamux learns of the end:
// it would have each of them spin until it is told to stop, and with hundreds
// nothing else of the program gets a turn.
func TestEndWakesWriters(t *testing.T) {
	const streams, window = 400, 256 << 10
	for name, end := range map[string]func(raw net.Conn){
		"hang up":            func(raw net.Conn) { raw.Close() },
		"break the protocol": func(raw net.Conn) { raw.Write(yframe(9, 0, 0, 0)) },
		"overrun a window":   func(raw net.Conn) { raw.Write(yframe(yData, 0, 3, 1<<30)) },
	} {
		t.Run(name, func(t *testing.T) {
			var sent, returned atomic.Int64
			table := mux.Table{"flood": func(_ context.Context, st *mux.Stream) error {
				defer returned.Add(1)
				for block := make([]byte, wire.MaxData); ; {
					if err := st.SendData(wire.Data{Bytes: block}); err != nil {
						return err
					}
					sent.Add(1)
				}
			}}
			settle(t)
			raw, near := socketPair(t)
			accepted, done := make(chan struct{}), make(chan struct{})
			go func() {
				defer close(done)
				s, err := mux.Accept(t.Context(), near, mux.Config{}, muxtest.AdmitAll(table))
				if err != nil {
					t.Error(err)
					return
				}
				close(accepted)
				<-s.Done()
				s.Close()
			}()
			go io.Copy(io.Discard, raw)
			if _, err := raw.Write(helloBytes(t)); err != nil {
				t.Fatal(err)
			}
			await(t, "the handshake", accepted)
			for i := range int64(streams) {
				id := uint32(3 + 2*i)
				if _, err := raw.Write(join(yframe(yWindow, ySYN, id, 0), ydata(id, frame(t, wire.FrameCall, `{"m":"flood"}`)))); err != nil {
					t.Fatal(err)
				}
				for limit := time.Now().Add(10 * time.Second); sent.Load() < (i+1)*(window/(wire.MaxData+64)); runtime.Gosched() {
					if time.Now().After(limit) {
						t.Fatalf("stream %d is not filled: %d blocks are sent", i, sent.Load())
					}
				}
			}
			began, used := time.Now(), cpuTime(t)
			end(raw)
			await(t, "the end of all calls", done)
			took, used := time.Since(began), cpuTime(t)-used
			if n := returned.Load(); n != streams {
				t.Errorf("%d of %d handlers have returned", n, streams)
			}
			t.Logf("%d writers ended in %s, with %s of processor time", streams, took, used)
			if used > 2*time.Second {
				t.Errorf("the end of %d writers took %s of processor time", streams, used)
			}
		})
	}
}

// cpuTime is what this process has used.
func cpuTime(t *testing.T) time.Duration {
	t.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// socketPair is two ends of a Unix socket.
func socketPair(t *testing.T) (a, b net.Conn) {
	t.Helper()
	l, err := net.Listen("unix", t.TempDir()+"/s")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if a, err = net.Dial("unix", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if b, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}
