package mux

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"testing"
	"testing/synctest"
	"time"
)

func TestPipeCarriesBytes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := Pipe()
		sent := make([]byte, 3<<20)
		rng := rand.NewChaCha8([32]byte{1})
		rng.Read(sent)
		go func() {
			for rest := sent; len(rest) > 0; {
				n := min(len(rest), rand.IntN(70_000))
				if m, err := a.Write(rest[:n]); m != n || err != nil {
					t.Errorf("write: %d of %d, %v", m, n, err)
				}
				rest = rest[n:]
			}
			a.Close()
		}()
		var got []byte
		buf := make([]byte, 50_000)
		for {
			n, err := b.Read(buf[:rand.IntN(len(buf))+1])
			got = append(got, buf[:n]...)
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		if !bytes.Equal(sent, got) {
			t.Fatalf("%d bytes were sent, %d others arrived", len(sent), len(got))
		}
	})
}

func TestPipeDeadlines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := Pipe()
		buf := make([]byte, 1)
		began := time.Now()
		a.SetReadDeadline(began.Add(time.Second))
		if _, err := a.Read(buf); !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(began) != time.Second {
			t.Fatalf("read: %v after %v", err, time.Since(began))
		}
		if _, err := a.Read(buf); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("a deadline that has passed: %v", err)
		}
		a.SetDeadline(time.Time{})
		go func() {
			time.Sleep(time.Minute)
			b.Write([]byte("x"))
		}()
		if _, err := a.Read(buf); err != nil {
			t.Fatalf("read without a deadline: %v", err)
		}

		a.SetWriteDeadline(time.Now().Add(time.Second))
		n, err := a.Write(make([]byte, pipeCapacity+5))
		if n != pipeCapacity || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("write into a full pipe: %d, %v", n, err)
		}
		// A deadline that is replaced does not strike.
		a.SetWriteDeadline(time.Now().Add(time.Second))
		a.SetWriteDeadline(time.Now().Add(time.Hour))
		go func() {
			time.Sleep(time.Minute)
			io.CopyN(io.Discard, b, pipeCapacity)
		}()
		if n, err := a.Write(make([]byte, 5)); n != 5 || err != nil {
			t.Fatalf("write that waits for a read: %d, %v", n, err)
		}
		// A read that waits is woken by a deadline in the past.
		go func() {
			time.Sleep(time.Second)
			a.SetReadDeadline(time.Unix(1, 0))
		}()
		if _, err := a.Read(buf); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("read with a deadline in the past: %v", err)
		}
		a.Close()
		b.Close()
	})
}

func TestPipeClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := Pipe()
		a.Write([]byte("last words"))
		got := make(chan error, 2)
		go func() { _, err := a.Read(make([]byte, 1)); got <- err }()
		synctest.Wait()
		a.Close()
		if err := <-got; !errors.Is(err, net.ErrClosed) {
			t.Fatalf("read of a closed end: %v", err)
		}
		if _, err := a.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
			t.Fatalf("write to a closed end: %v", err)
		}
		if b2, err := io.ReadAll(b); string(b2) != "last words" || err != nil {
			t.Fatalf("the other end read %q, %v", b2, err)
		}
		if _, err := b.Write([]byte("x")); !errors.Is(err, io.ErrClosedPipe) {
			t.Fatalf("write to an end whose other is closed: %v", err)
		}
		if a.LocalAddr().Network() != "memory" || b.RemoteAddr().Network() != "memory" {
			t.Fatal("a pipe is not in memory")
		}
	})
}
