package mux_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/binary"
	"encoding/json"
	"errors"
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

// yamux's header, written by hand.
const (
	yData, yWindow, yPing  = 0, 1, 2
	ySYN, yACK, yFIN, yRST = 1, 2, 4, 8
)

func yframe(kind, flags int, id, length uint32, body ...byte) []byte {
	b := []byte{0, byte(kind), byte(flags >> 8), byte(flags)}
	b = binary.BigEndian.AppendUint32(b, id)
	return append(binary.BigEndian.AppendUint32(b, length), body...)
}

func ydata(id uint32, body []byte) []byte { return yframe(yData, 0, id, uint32(len(body)), body...) }

func frame(t testing.TB, kind wire.FrameType, payload string) []byte {
	t.Helper()
	b, err := wire.AppendFrame(nil, kind, []byte(payload))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func join(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

const helloBody = `{"m":"hello","b":{"version_min":1,"version_max":1,"role":"client"}}`

// helloBytes open stream 1 with a client's hello.
func helloBytes(t testing.TB) []byte {
	return join(yframe(yWindow, ySYN, 1, 0), ydata(1, frame(t, wire.FrameCall, helloBody)))
}

// acceptRaw accepts on one end of a pipe and gives the test the other.
func acceptRaw(t testing.TB, cfg mux.Config, table mux.Table) (raw net.Conn, accepted chan error, session chan *mux.Session) {
	t.Helper()
	raw, b := mux.Pipe()
	accepted, session = make(chan error, 1), make(chan *mux.Session, 1)
	done := make(chan struct{})
	go func() {
		defer close(done)
		s, err := mux.Accept(t.Context(), b, cfg, muxtest.AdmitAll(table))
		accepted <- err
		if err == nil {
			session <- s
			<-s.Done()
			s.Close()
		}
	}()
	t.Cleanup(func() {
		raw.Close()
		await(t, "end of the accepting side", done)
	})
	return raw, accepted, session
}

// readAll reads until the other side closes; what it wrote is returned.
func readAll(t testing.TB, raw net.Conn) []byte {
	t.Helper()
	raw.SetReadDeadline(time.Now().Add(10 * time.Second))
	b, err := io.ReadAll(raw)
	if err != nil {
		t.Fatalf("the other side did not close: %v", err)
	}
	return b
}

func TestHostileHandshake(t *testing.T) {
	quick := mux.Config{HandshakeTimeout: 50 * time.Millisecond}
	for _, c := range []struct {
		name  string
		send  []byte
		close bool
		kind  wire.Kind
		text  string // of Accept's error
		told  string // what the peer reads, among other bytes
	}{
		{name: "silent", kind: wire.Unavailable, text: "handshake"},
		{name: "half a header", send: []byte{0, 1, 0}, kind: wire.Unavailable, text: "handshake"},
		{name: "closed at once", close: true, kind: wire.Unavailable, text: "closed the connection"},
		{name: "TLS", send: []byte("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"), kind: wire.Unavailable, text: "TLS"},
		{name: "HTTP", send: []byte("GET / HTTP/1.1\r\n\r\n"), kind: wire.Unavailable, text: "0x47"},
		{name: "unknown frame", send: yframe(9, 0, 0, 0), kind: wire.Unavailable, text: "unknown type 9"},
		{name: "data of 1 GiB for no stream", send: yframe(yData, 0, 1, 1<<30), kind: wire.Unavailable, text: "handshake"},
		{name: "data of 1 GiB", send: join(yframe(yWindow, ySYN, 1, 0), yframe(yData, 0, 1, 1<<30)), kind: wire.Unavailable, text: ""},
		{name: "no call", send: yframe(yWindow, ySYN, 1, 0), kind: wire.Unavailable, text: "handshake"},
		{name: "even id", send: yframe(yWindow, ySYN, 2, 0), kind: wire.Unavailable, text: "not its own"},
		{name: "id 0", send: yframe(yWindow, ySYN, 0, 0), kind: wire.Unavailable, text: "not its own"},
		{name: "same id twice", send: join(yframe(yWindow, ySYN, 1, 0), yframe(yWindow, ySYN, 1, 0)), kind: wire.Unavailable, text: "twice"},
		{name: "second stream", send: join(yframe(yWindow, ySYN, 1, 0), yframe(yWindow, ySYN, 3, 0)), kind: wire.Unavailable, text: "before the hello"},
		{name: "frame of 16 MiB", send: join(yframe(yWindow, ySYN, 1, 0), ydata(1, []byte{2, 0xff, 0xff, 0xff})), kind: wire.TooLarge, text: "over the limit", told: `"too_large"`},
		{name: "call over the limit before the hello", send: join(yframe(yWindow, ySYN, 1, 0), ydata(1, []byte{1, 1, 0, 1})), kind: wire.TooLarge, text: "over the limit of 65536", told: `"too_large"`},
		{name: "not a call", send: join(yframe(yWindow, ySYN, 1, 0), ydata(1, frame(t, wire.FrameMsg, "{}"))), kind: wire.BadUsage, text: "began with a MSG", told: `"usage"`},
		{name: "no JSON", send: join(yframe(yWindow, ySYN, 1, 0), ydata(1, frame(t, wire.FrameCall, "}"))), kind: wire.BadUsage, text: "decode call", told: `"usage"`},
		{name: "other call first", send: join(yframe(yWindow, ySYN, 1, 0), ydata(1, frame(t, wire.FrameCall, `{"m":"job.list"}`))), kind: wire.Unauthenticated, text: "must be", told: `"unauthenticated"`},
		{name: "no version", send: join(yframe(yWindow, ySYN, 1, 0), ydata(1, frame(t, wire.FrameCall, `{"m":"hello","b":{"role":"client"}}`))), kind: wire.Unimplemented, text: "speaks 0 to 0, the server", told: "speaks 0 to 0, the server"},
		{name: "version from the future", send: join(yframe(yWindow, ySYN, 1, 0), ydata(1, frame(t, wire.FrameCall, `{"m":"hello","b":{"version_min":7,"version_max":9,"role":"client"}}`))), kind: wire.Unimplemented, text: `the command line ("") speaks 7 to 9, the server ("") speaks 1 to 1`, told: `"hint"`},
		{name: "runner without key", send: join(yframe(yWindow, ySYN, 1, 0), ydata(1, frame(t, wire.FrameCall, `{"m":"hello","b":{"version_min":1,"version_max":1,"role":"runner"}}`))), kind: wire.BadUsage, text: "public key", told: `"usage"`},
	} {
		t.Run(c.name, func(t *testing.T) {
			settle(t)
			raw, accepted, _ := acceptRaw(t, quick, nil)
			raw.Write(c.send)
			if c.close {
				raw.Close()
			}
			if c.told != "" {
				// Read before the end: the refused peer is to see why.
				buf := make([]byte, 4096)
				var got []byte
				raw.SetReadDeadline(time.Now().Add(10 * time.Second))
				for !strings.Contains(string(got), c.told) {
					n, err := raw.Read(buf)
					if got = append(got, buf[:n]...); err != nil {
						t.Fatalf("the peer was told %q, not %q: %v", got, c.told, err)
					}
				}
				raw.Close()
			}
			wantKind(t, await(t, "end of the handshake", accepted), c.kind, c.text)
			if !c.close && c.told == "" {
				readAll(t, raw)
			}
		})
	}
}

func TestBadProof(t *testing.T) {
	settle(t)
	pub, _, _ := ed25519.GenerateKey(nil)
	_, other, _ := ed25519.GenerateKey(nil)
	for _, c := range []struct {
		name string
		sign func(nonce []byte) []byte
	}{
		{"other key", func(nonce []byte) []byte { return ed25519.Sign(other, wire.ProofText(nonce, nil)) }},
		{"bare nonce", func(nonce []byte) []byte { return ed25519.Sign(other, nonce) }},
		{"empty", func([]byte) []byte { return nil }},
	} {
		t.Run(c.name, func(t *testing.T) {
			raw, accepted, _ := acceptRaw(t, mux.Config{}, nil)
			body, _ := json.Marshal(wire.Hello{VersionMin: 1, VersionMax: 1, Role: wire.RoleRunner, Runner: &wire.RunnerHello{PublicKey: pub}})
			raw.Write(join(yframe(yWindow, ySYN, 1, 0), ydata(1, frame(t, wire.FrameCall, `{"m":"hello","b":`+string(body)+`}`))))
			var challenge wire.Challenge
			kind, payload, err := wire.NewReader(yreader(raw), 0).Next()
			if err != nil || kind != wire.FrameMsg || json.Unmarshal(payload, &challenge) != nil || len(challenge.Nonce) != 32 {
				t.Fatalf("challenge: %v %q %v", kind, payload, err)
			}
			proof, _ := json.Marshal(wire.Proof{Signature: c.sign(challenge.Nonce)})
			raw.Write(ydata(1, frame(t, wire.FrameMsg, string(proof))))
			kind, payload, err = wire.NewReader(yreader(raw), 0).Next()
			if err != nil || kind != wire.FrameStatus || !strings.Contains(string(payload), `"unauthenticated"`) {
				t.Fatalf("answer to a bad proof: %v %q %v", kind, payload, err)
			}
			raw.Close()
			wantKind(t, await(t, "refusal", accepted), wire.Unauthenticated, "identity key")
		})
	}
}

// yreader reads the data of whatever yamux frames come.
func yreader(raw net.Conn) io.Reader {
	r, w := io.Pipe()
	go func() {
		var h [12]byte
		for {
			if _, err := io.ReadFull(raw, h[:]); err != nil {
				w.CloseWithError(err)
				return
			}
			if h[1] == yData {
				if _, err := io.CopyN(w, raw, int64(binary.BigEndian.Uint32(h[8:]))); err != nil {
					w.CloseWithError(err)
					return
				}
				if n := binary.BigEndian.Uint32(h[8:]); n > 0 {
					return // one frame's worth; the next reader goes on
				}
			}
		}
	}()
	return r
}

func TestPingFlood(t *testing.T) {
	settle(t)
	raw, accepted, session := acceptRaw(t, mux.Config{}, nil)
	raw.Write(helloBytes(t))
	if err := await(t, "handshake", accepted); err != nil {
		t.Fatal(err)
	}
	s := <-session
	before := runtime.NumGoroutine()
	go func() {
		flood := bytes.Repeat(yframe(yPing, ySYN, 0, 7), 1000)
		for range 300 {
			if _, err := raw.Write(flood); err != nil {
				return
			}
		}
	}()
	await(t, "end of the session", s.Done())
	if n := runtime.NumGoroutine() - before; n > 50 {
		t.Errorf("%d goroutines more after a flood of pings", n)
	}
	wantKind(t, s.Err(), wire.Unavailable, "pings")
	raw.Close()
}

// A peer may ping as often as it likes if it waits for the answers.
func TestPingsAnswered(t *testing.T) {
	settle(t)
	raw, accepted, session := acceptRaw(t, mux.Config{}, nil)
	raw.Write(helloBytes(t))
	if err := await(t, "handshake", accepted); err != nil {
		t.Fatal(err)
	}
	s := <-session
	raw.SetReadDeadline(time.Now().Add(10 * time.Second))
	for i := range uint32(100) {
		raw.Write(yframe(yPing, ySYN, 0, i))
		want := yframe(yPing, yACK, 0, i)
		var seen []byte
		buf := make([]byte, 512)
		for !bytes.Contains(seen, want) {
			n, err := raw.Read(buf)
			if err != nil {
				t.Fatalf("ping %d: %v; session: %v", i, err, s.Err())
			}
			seen = append(seen, buf[:n]...)
		}
	}
}

func TestTooManyStreams(t *testing.T) {
	for _, c := range []struct {
		name  string
		after func(id uint32) []byte
	}{
		{"left open", func(uint32) []byte { return nil }},
		{"closed at once", func(id uint32) []byte { return yframe(yWindow, yFIN, id, 0) }},
		{"reset at once", func(id uint32) []byte { return yframe(yWindow, yRST, id, 0) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			settle(t)
			release, limits := make(chan struct{}), make(chan string, 100)
			raw, accepted, session := acceptRaw(t, mux.Config{MaxStreams: 16, Limit: told(limits)}, mux.Table{
				// Deaf to its context, as a handler in a long system call is.
				"stuck": func(context.Context, *mux.Stream) error { <-release; return nil },
			})
			raw.Write(helloBytes(t))
			if err := await(t, "handshake", accepted); err != nil {
				t.Fatal(err)
			}
			s := <-session
			go io.Copy(io.Discard, raw)
			for id := uint32(3); s.Err() == nil && id < 10_000; id += 2 {
				b := join(yframe(yWindow, ySYN, id, 0), ydata(id, frame(t, wire.FrameCall, `{"m":"stuck"}`)), c.after(id))
				if _, err := raw.Write(b); err != nil {
					break
				}
				runtime.Gosched()
			}
			await(t, "end of the session", s.Done())
			if n := runtime.NumGoroutine(); n > 250 {
				t.Errorf("%d goroutines for a limit of 16 streams", n)
			}
			wantKind(t, s.Err(), wire.Unavailable, "more than")
			if got := await(t, "word of the limit", limits); !strings.HasPrefix(got, "streams ") {
				t.Errorf("told of %q", got)
			}
			close(release)
		})
	}
}

// A peer that does not read its socket loses the session after the write
// time-out, and whoever was writing to it is told.
func TestPeerThatNeverReads(t *testing.T) {
	settle(t)
	got := make(chan error, 1)
	p := muxtest.NewPair(t, mux.Table{"log": func(ctx context.Context, st *mux.Stream) error {
		for {
			if err := st.SendData(wire.Data{Bytes: make([]byte, wire.MaxData)}); err != nil {
				got <- err
				return err
			}
		}
	}}, muxtest.Options{Server: mux.Config{WriteTimeout: 100 * time.Millisecond}})
	st, err := p.Client.Open(t.Context(), "log", nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := st.Recv(); err != nil {
		t.Fatal(err)
	}
	p.Link.Stall(p.Link.B)
	go func() {
		for { // so that it is not the stream's window that stops the handler
			if _, err := st.Recv(); err != nil {
				return
			}
		}
	}()
	wantKind(t, await(t, "end of the handler", got), wire.Unavailable, "did not read")
	await(t, "end of the session", p.Server.Done())
	wantKind(t, p.Server.Err(), wire.Unavailable, "did not read for 100ms")
	await(t, "end of the client", p.Client.Done())
}

// A caller that does not read one stream holds up that stream alone.
func TestStreamThatIsNotRead(t *testing.T) {
	settle(t)
	written := make(chan int, 1000)
	p := muxtest.NewPair(t, mux.Table{"log": func(ctx context.Context, st *mux.Stream) error {
		for n := 0; ; n += wire.MaxData {
			if err := st.SendData(wire.Data{Bytes: make([]byte, wire.MaxData)}); err != nil {
				close(written)
				return err
			}
			written <- n
		}
	}}, muxtest.Options{})
	st, err := p.Client.Open(t.Context(), "log", nil)
	if err != nil {
		t.Fatal(err)
	}
	for range 100 {
		if err := p.Client.Call(t.Context(), wire.MethodPing, nil, nil); err != nil {
			t.Fatal(err)
		}
	}
	st.Close()
	most := 0
	for n := range written {
		most = max(most, n)
	}
	if most > 1<<20 {
		t.Errorf("%d bytes were written to a stream that nobody reads", most)
	}
}

// A half-open connection: the peer shuts its writing side down, or vanishes.
func TestHalfOpen(t *testing.T) {
	settle(t)
	h := newHold()
	raw, accepted, session := acceptRaw(t, mux.Config{}, mux.Table{"hold": h.serve})
	raw.Write(helloBytes(t))
	if err := await(t, "handshake", accepted); err != nil {
		t.Fatal(err)
	}
	raw.Write(join(yframe(yWindow, ySYN, 3, 0), ydata(3, frame(t, wire.FrameCall, `{"m":"hold"}`))))
	await(t, "begin", h.begun)
	raw.Close()
	s := <-session
	await(t, "end of the session", s.Done())
	if err := await(t, "end of the handler", h.cause); !errors.Is(err, mux.ErrLost) {
		t.Fatalf("the handler's cause is %v", err)
	}
}

// Frames that break the protocol end their call and nothing else.
func TestBadFramesInCalls(t *testing.T) {
	for _, c := range []struct {
		name string
		send []byte
		told string
	}{
		{"status from the opener", frame(t, wire.FrameStatus, "{}"), "a STATUS frame came where none may be"},
		{"second call", frame(t, wire.FrameCall, `{"m":"recv"}`), "a CALL frame came where none may be"},
		{"unknown frame", []byte{0x42, 0, 0, 0}, "unknown frame"},
		{"short data", []byte{3, 0, 0, 1, 0}, "shorter than its header"},
		{"negative offset", join([]byte{3, 0, 0, 17, 0xff}, make([]byte, 16)), "negative offset"},
		{"long end", []byte{4, 0, 0, 1, 0}, "over the limit"},
		{"message after the end", join(frame(t, wire.FrameEnd, ""), frame(t, wire.FrameMsg, "{}")), `{"got":"EOF"}`},
		{"ignorable frame", join([]byte{0x80, 0, 0, 3, 1, 2, 3}, frame(t, wire.FrameEnd, "")), `{"got":"EOF"}`},
	} {
		t.Run(c.name, func(t *testing.T) {
			settle(t)
			raw, accepted, session := acceptRaw(t, mux.Config{}, mux.Table{"recv": func(_ context.Context, st *mux.Stream) error {
				_, err := st.Recv()
				if errors.Is(err, io.EOF) {
					return st.Send(map[string]string{"got": "EOF"})
				}
				return err
			}})
			raw.Write(helloBytes(t))
			if err := await(t, "handshake", accepted); err != nil {
				t.Fatal(err)
			}
			raw.Write(join(yframe(yWindow, ySYN, 3, 0), ydata(3, frame(t, wire.FrameCall, `{"m":"recv"}`)), ydata(3, c.send)))
			raw.SetReadDeadline(time.Now().Add(10 * time.Second))
			var got []byte
			buf := make([]byte, 4096)
			for !strings.Contains(string(got), c.told) {
				n, err := raw.Read(buf)
				if got = append(got, buf[:n]...); err != nil {
					t.Fatalf("the peer was told %q, not %q: %v", got, c.told, err)
				}
			}
			if s := <-session; s.Err() != nil {
				t.Fatalf("the session ended: %v", s.Err())
			}
		})
	}
}

// A stream that never says what it wants does not stay.
func FuzzAccept(f *testing.F) {
	hello := helloBytes(f)
	f.Add([]byte{}, false)
	f.Add([]byte("\x16\x03\x01"), false)
	f.Add(yframe(yData, 0, 1, 1<<30), false)
	f.Add(yframe(yPing, ySYN, 0, 1), true)
	f.Add(hello, false)
	f.Add(join(yframe(yWindow, ySYN, 3, 0), ydata(3, frame(f, wire.FrameCall, `{"m":"ping"}`))), true)
	f.Add(join(yframe(yWindow, ySYN|yFIN, 3, 0), yframe(yWindow, yRST, 3, 0)), true)
	f.Add(join(yframe(yWindow, ySYN, 3, 0), ydata(3, frame(f, wire.FrameCall, `{"m":"echo","t":1,"b":{}}`)), yframe(yWindow, yFIN, 3, 0)), true)
	table := mux.Table{"echo": func(_ context.Context, st *mux.Stream) error {
		for {
			fr, err := st.Recv()
			if err != nil {
				return err
			}
			if err := st.Send(len(fr.Msg)); err != nil {
				return err
			}
		}
	}}
	f.Fuzz(func(t *testing.T, b []byte, admitted bool) {
		raw, accepted, session := acceptRaw(t, mux.Config{MaxStreams: 8, HandshakeTimeout: 5 * time.Second}, table)
		go io.Copy(io.Discard, raw)
		if admitted {
			raw.Write(hello)
			if err := await(t, "handshake", accepted); err != nil {
				t.Fatal(err)
			}
			<-session
		}
		raw.Write(b)
		raw.Close()
	})
}
