package muxtest

import (
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"testing/synctest"
	"time"
)

func TestCutAfter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := NewLink()
		l.CutAfter(10)
		if n, err := l.A.Write(make([]byte, 6)); n != 6 || err != nil {
			t.Fatalf("before the cut: %d, %v", n, err)
		}
		if n, err := l.B.Write(make([]byte, 6)); n != 4 || err == nil {
			t.Fatalf("over the cut: %d, %v", n, err)
		}
		if _, err := l.A.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
			t.Fatalf("after the cut: %v", err)
		}
	})
}

func TestStall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := NewLink()
		defer l.Drop()
		l.Stall(l.A)
		if _, err := l.B.Write([]byte("x")); err != nil {
			t.Fatalf("the other end: %v", err)
		}
		began := time.Now()
		l.A.SetWriteDeadline(began.Add(time.Second))
		if _, err := l.A.Write([]byte("x")); !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(began) != time.Second {
			t.Fatalf("a stalled write: %v after %v", err, time.Since(began))
		}
		l.A.SetWriteDeadline(time.Time{})
		go func() {
			time.Sleep(time.Minute)
			l.Resume()
		}()
		if _, err := l.A.Write([]byte("x")); err != nil {
			t.Fatalf("a resumed write: %v", err)
		}
		l.Stall()
		go func() {
			time.Sleep(time.Minute)
			l.Drop()
		}()
		if _, err := l.A.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
			t.Fatalf("a stalled write on a link that is dropped: %v", err)
		}
	})
}

func TestDelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := NewLink()
		defer l.Drop()
		l.Delay(time.Hour)
		began := time.Now()
		go l.A.Write([]byte("x"))
		if _, err := io.ReadFull(l.B, make([]byte, 1)); err != nil || time.Since(began) != time.Hour {
			t.Fatalf("a delayed byte: %v after %v", err, time.Since(began))
		}
	})
}
