package mux

import (
	"encoding/binary"
	"net"
	"testing"
	"time"
)

// Data on any stream breaks a session's silence, a ping does not: yamux answers
// it for a program that hangs.
func TestSilence(t *testing.T) {
	near, far := net.Pipe()
	defer near.Close()
	defer far.Close()
	g := newGuard(near, false, time.Second)
	g.lost = func(err error) { t.Errorf("lost: %v", err) }
	frame := func(kind uint8, flags uint16, id, length uint32) []byte {
		h := make([]byte, yamuxHeader+int(length))
		h[1] = kind
		binary.BigEndian.PutUint16(h[2:], flags)
		binary.BigEndian.PutUint32(h[4:], id)
		binary.BigEndian.PutUint32(h[8:], length)
		return h
	}
	read := func(b []byte) {
		t.Helper()
		go far.Write(b)
		for got, p := 0, make([]byte, 64); got < len(b); {
			n, err := g.Read(p)
			if err != nil {
				t.Fatal(err)
			}
			got += n
		}
	}
	read(frame(yamuxPing, yamuxACK, 0, 0))
	read(frame(yamuxWindowUpdate, yamuxSYN, 1, 0))
	if at := g.dataAt.Load(); at != 0 {
		t.Fatalf("a ping and a new stream are data, after %s", time.Duration(at))
	}
	read(frame(yamuxData, 0, 1, 100))
	first := g.dataAt.Load()
	if first == 0 {
		t.Fatal("data is silence")
	}
	read(frame(yamuxPing, yamuxACK, 0, 0))
	if g.dataAt.Load() != first {
		t.Error("a ping behind data is data")
	}
	read(frame(yamuxData, 0, 1, 3))
	if g.dataAt.Load() <= first {
		t.Error("more data does not count")
	}
}
