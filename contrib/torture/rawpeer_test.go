package torture

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"github.com/waypointd/waypoint/mux/wire"
)

// rawPeer speaks yamux by hand, so that it can speak it wrongly.
//
//	header := version 0 | type | flags u16 | stream u32 | length u32
type rawPeer struct {
	net.Conn
	t testing.TB
}

const (
	typeData   = 0
	typeWindow = 1
	typePing   = 2

	flagSYN = 1
	flagFIN = 4
)

// header is one yamux header.
func header(kind byte, flags uint16, stream, length uint32) []byte {
	h := []byte{0, kind}
	h = binary.BigEndian.AppendUint16(h, flags)
	h = binary.BigEndian.AppendUint32(h, stream)
	return binary.BigEndian.AppendUint32(h, length)
}

// data is a yamux frame with bytes.
func data(stream uint32, flags uint16, body []byte) []byte {
	return append(header(typeData, flags, stream, uint32(len(body))), body...)
}

// call is a CALL frame.
func call(t testing.TB, method string, body any) []byte {
	t.Helper()
	b, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	payload, err := json.Marshal(wire.Call{Method: method, Body: b})
	if err != nil {
		t.Fatal(err)
	}
	frame, err := wire.AppendFrame(nil, wire.FrameCall, payload)
	if err != nil {
		t.Fatal(err)
	}
	return frame
}

// send writes, and does not mind a server that has hung up.
func (p *rawPeer) send(b []byte) error {
	p.SetWriteDeadline(time.Now().Add(5 * time.Second))
	_, err := p.Write(b)
	return err
}

// greet says a client's hello on stream 1 and reads until it is answered.
func (p *rawPeer) greet() {
	p.t.Helper()
	hello := wire.Hello{VersionMin: wire.VersionMin, VersionMax: wire.VersionMax, Role: wire.RoleClient, Software: "waypoint torture"}
	frames := header(typeWindow, flagSYN, 1, 0)
	frames = append(frames, data(1, 0, call(p.t, wire.MethodHello, hello))...)
	if err := p.send(frames); err != nil {
		p.t.Fatalf("say hello: %v", err)
	}
	p.SetReadDeadline(time.Now().Add(patience))
	var h [12]byte
	for {
		if _, err := io.ReadFull(p, h[:]); err != nil {
			p.t.Fatalf("read welcome: %v", err)
		}
		if h[1] == typeData {
			if _, err := io.CopyN(io.Discard, p, int64(binary.BigEndian.Uint32(h[8:]))); err != nil {
				p.t.Fatalf("read welcome: %v", err)
			}
		}
		if binary.BigEndian.Uint16(h[2:])&flagFIN != 0 {
			break
		}
	}
	if err := p.send(header(typeWindow, flagFIN, 1, 0)); err != nil {
		p.t.Fatalf("end hello: %v", err)
	}
}

// awaitHangUp reads until the server has closed the connection.
func awaitHangUp(ctx context.Context, conn net.Conn, limit time.Duration) error {
	conn.SetReadDeadline(time.Now().Add(limit))
	stop := context.AfterFunc(ctx, func() { conn.SetReadDeadline(time.Now()) })
	defer stop()
	n, err := io.Copy(io.Discard, conn)
	if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
		return fmt.Errorf("the server has not hung up within %s (%d bytes read)", limit, n)
	}
	return nil
}
