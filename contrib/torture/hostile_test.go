package torture

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/waypointd/waypoint/mux/wire"
)

// handshakeLimit is how long the server bears a peer that has not said hello:
// ten seconds, and some for a busy machine.
const handshakeLimit = 20 * time.Second

// writeLimit is how long it bears one that does not read.
const writeLimit = 60 * time.Second

// hostileMemory is what the server may take under a client that has as many
// streams of output open as it may, and reads none.
const hostileMemory = 200 << 20

// TestHostilePeers has one real server bear what comes over its socket. It
// answers a new command after each, is the same process to the end, and does
// not grow.
func TestHostilePeers(t *testing.T) {
	t.Parallel()
	ctx := bounded(t, 6*time.Minute)
	s := newSite(t)
	s.open(ctx)
	c := s.client(ctx)
	big := submitOne(ctx, t, c, wire.JobSpec{
		Operation: wire.OpRun, Command: []string{"sh", "-c", "head -c 20000000 /dev/zero"}, Target: wire.Target{Any: true},
	})
	if end, err := c.Wait(ctx, big.ID); err != nil || end.State != wire.Success {
		t.Fatalf("make a big log: %s %s, %v", end.State, end.Error, err)
	}
	s.mustAnswer(ctx, "start")
	sockets := openSockets(t, s.server.pid())
	_, before, _ := memory(s.server.pid())

	for _, test := range []struct {
		name string
		run  func(ctx context.Context, t *testing.T, s *site, job string)
	}{
		{"random bytes", randomBytes},
		{"silence", silence},
		{"silence in the middle of the hello", halfHello},
		{"claims of length", claims},
		{"ten thousand streams before hello", streamsBeforeHello},
		{"ten thousand streams", tenThousandStreams},
		{"flood of pings", pings},
		{"calls that make no sense", nonsense},
		{"never reads", neverReads},
		{"never reads with a huge window", neverReadsHugeWindow},
	} {
		t.Run(test.name, func(t *testing.T) {
			at := *s
			at.t = t // its connections end with this test
			test.run(ctx, t, &at, big.ID)
			at.mustAnswer(ctx, test.name)
		})
	}
	await(ctx, t, "the server to let go of all connections", func() error {
		if n := openSockets(t, s.server.pid()); n > sockets+1 {
			return fmt.Errorf("it has %d sockets open, had %d", n, sockets)
		}
		return nil
	})
	rss, after, _ := memory(s.server.pid())
	t.Logf("server: peak %s before, %s after, now %s", mib(before), mib(after), mib(rss))
	if after > hostileMemory && !raceBuild() {
		t.Errorf("the server took %s, may take %s", mib(after), mib(hostileMemory))
	}
	if end, err := c.Wait(ctx, submitOne(ctx, t, c, wire.JobSpec{
		Operation: wire.OpRun, Command: []string{"true"}, Target: wire.Target{Any: true},
	}).ID); err != nil || end.State != wire.Success {
		t.Errorf("a job after all that: %s %s, %v", end.State, end.Error, err)
	}
}

// randomBytes of many beginnings.
func randomBytes(ctx context.Context, t *testing.T, s *site, _ string) {
	r := rand.New(rand.NewPCG(1, 2))
	for n := range 60 {
		conn := s.raw()
		b := make([]byte, 1+r.IntN(64<<10))
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		switch n % 4 {
		case 1:
			b[0] = 0 // yamux's version
		case 2:
			copy(b, header(typeWindow, flagSYN, 1, 0)) // a stream, and then noise in it
			if len(b) > 24 {
				copy(b[12:], header(typeData, 0, 1, uint32(len(b)-24)))
			}
		case 3:
			b[0] = 0x16 // TLS
		}
		conn.SetWriteDeadline(time.Now().Add(5 * time.Second))
		conn.Write(b) // the server may hang up in the middle
		conn.(*net.UnixConn).CloseWrite()
		if err := awaitHangUp(ctx, conn, handshakeLimit); err != nil {
			t.Fatalf("beginning %d: %v", n, err)
		}
	}
}

// silence: connections that are opened and say nothing cost nothing for long.
func silence(ctx context.Context, t *testing.T, s *site, _ string) {
	const many = 500
	conns := make([]net.Conn, many)
	for i := range conns {
		conns[i] = s.raw()
	}
	s.mustAnswer(ctx, "500 silent connections") // while they are open
	awaitAll(ctx, t, conns)
}

// halfHello: the same with the first bytes of a hello.
func halfHello(ctx context.Context, t *testing.T, s *site, _ string) {
	conns := make([]net.Conn, 100)
	for i := range conns {
		conns[i] = s.raw()
		hello := append(header(typeWindow, flagSYN, 1, 0), data(1, 0, call(t, wire.MethodHello, wire.Hello{Role: wire.RoleClient}))...)
		if _, err := conns[i].Write(hello[:1+i%(len(hello)-1)]); err != nil {
			t.Fatal(err)
		}
	}
	s.mustAnswer(ctx, "100 halves of a hello")
	awaitAll(ctx, t, conns)
}

func awaitAll(ctx context.Context, t *testing.T, conns []net.Conn) {
	t.Helper()
	var wg sync.WaitGroup
	for i, conn := range conns {
		wg.Go(func() {
			if err := awaitHangUp(ctx, conn, handshakeLimit); err != nil {
				t.Errorf("connection %d: %v", i, err)
			}
		})
	}
	wg.Wait()
}

// claims says that very much will come.
func claims(ctx context.Context, t *testing.T, s *site, _ string) {
	frame := func(kind wire.FrameType, length uint32) []byte {
		return append([]byte{byte(kind)}, binary.BigEndian.AppendUint32(nil, length)[1:]...)
	}
	for name, bytes := range map[string][]byte{
		"1 GiB in a stream":           append(header(typeWindow, flagSYN, 1, 0), header(typeData, 0, 1, 1<<30)...),
		"1 GiB in no stream":          header(typeData, 0, 77, 1<<30),
		"4 GiB in a stream":           append(header(typeWindow, flagSYN, 1, 0), header(typeData, 0, 1, 0xffffffff)...),
		"a CALL of 16 MiB":            append(header(typeWindow, flagSYN, 1, 0), data(1, 0, frame(wire.FrameCall, 0xffffff))...),
		"a CALL of 1 MiB, too early":  append(header(typeWindow, flagSYN, 1, 0), data(1, 0, frame(wire.FrameCall, 1<<20))...),
		"a frame of an unknown type":  append(header(typeWindow, flagSYN, 1, 0), data(1, 0, frame(0x7f, 10))...),
		"a window of 4 GiB":           append(header(typeWindow, flagSYN, 1, 0), header(typeWindow, 0, 1, 0xffffffff)...),
		"the server's own stream":     header(typeWindow, flagSYN, 2, 0),
		"stream 0":                    header(typeWindow, flagSYN, 0, 0),
		"an unknown type of frame":    header(9, 0, 0, 0),
		"a go-away and then silence":  header(3, 0, 0, 0),
		"data of a stream never seen": data(99, 0, []byte("hello")),
	} {
		for _, greeted := range []bool{false, true} {
			p := &rawPeer{s.raw(), t}
			b := bytes
			if greeted {
				p.greet()
				b = reStream(bytes)
			}
			p.send(b)
			p.send(make([]byte, 1000))
			p.Conn.(*net.UnixConn).CloseWrite() // no more will come
			if err := awaitHangUp(ctx, p, handshakeLimit); err != nil {
				t.Errorf("%s (after hello: %t): %v", name, greeted, err)
			}
		}
	}
}

// reStream moves frames on stream 1, which hello has used, to stream 3.
func reStream(b []byte) []byte {
	out := append([]byte(nil), b...)
	for at := 0; at+12 <= len(out); at += 12 {
		if binary.BigEndian.Uint32(out[at+4:]) == 1 {
			binary.BigEndian.PutUint32(out[at+4:], 3)
		}
	}
	return out
}

// streamsBeforeHello opens streams without saying who it is.
func streamsBeforeHello(ctx context.Context, t *testing.T, s *site, _ string) {
	p := &rawPeer{s.raw(), t}
	var b []byte
	for i := range uint32(10_000) {
		b = append(b, header(typeWindow, flagSYN, 1+2*i, 0)...)
	}
	p.send(b)
	if err := awaitHangUp(ctx, p, handshakeLimit); err != nil {
		t.Error(err)
	}
}

// tenThousandStreams: a client that is one, and opens far too many calls.
func tenThousandStreams(ctx context.Context, t *testing.T, s *site, job string) {
	for name, one := range map[string]func(id uint32) []byte{
		"empty": func(id uint32) []byte { return header(typeWindow, flagSYN, id, 0) },
		"calls": func(id uint32) []byte {
			return append(header(typeWindow, flagSYN, id, 0), data(id, 0, call(t, wire.MethodJobStream, wire.StreamRequest{ID: job, Follow: true}))...)
		},
	} {
		p := &rawPeer{s.raw(), t}
		p.greet()
		var b []byte
		for i := range uint32(10_000) {
			b = append(b, one(3+2*i)...)
		}
		go io.Copy(io.Discard, p)
		p.SetDeadline(time.Now().Add(writeLimit))
		if _, err := p.Write(b); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: the server does not read for %s", name, writeLimit)
		}
		// It hangs up, or resets what it has no room for: it serves others.
		s.mustAnswer(ctx, "ten thousand streams, "+name)
		p.Close()
		_, peak, _ := memory(s.server.pid())
		t.Logf("%s: the server's peak is %s", name, mib(peak))
	}
}

// pings of which it reads no answer: 300,000.
func pings(ctx context.Context, t *testing.T, s *site, _ string) {
	for _, greeted := range []bool{false, true} {
		p := &rawPeer{s.raw(), t}
		if greeted {
			p.greet()
		}
		var b []byte
		for i := range uint32(300_000) {
			b = append(b, header(typePing, flagSYN, 0, i)...)
		}
		p.send(b)
		if err := awaitHangUp(ctx, p, handshakeLimit); err != nil {
			t.Errorf("after hello: %t: %v", greeted, err)
		}
	}
}

// nonsense is well formed, and means nothing: each is answered, and the
// session goes on.
func nonsense(ctx context.Context, t *testing.T, s *site, job string) {
	c := s.client(ctx)
	for _, test := range []struct {
		method string
		body   any
		want   wire.Kind
	}{
		{"no.such.method", nil, wire.Unimplemented},
		{wire.MethodWork, nil, wire.Denied},
		{wire.MethodReport, nil, wire.Denied},
		{wire.MethodJobGet, wire.JobRequest{ID: "no such job"}, wire.NotFound},
		{wire.MethodJobGet, wire.JobRequest{ID: "'; DROP TABLE jobs; --"}, wire.NotFound},
		{wire.MethodJobGet, []int{1, 2, 3}, wire.BadUsage},
		{wire.MethodJobStream, wire.StreamRequest{ID: job, Offset: -1}, wire.BadUsage},
		{wire.MethodJobStream, wire.StreamRequest{ID: job, Attempt: 1 << 40}, wire.NotFound},
		{wire.MethodJobSubmit, wire.SubmitRequest{}, wire.BadUsage},
		{wire.MethodJobSubmit, wire.SubmitRequest{Jobs: make([]wire.JobSpec, 100_00)}, wire.TooLarge},
		{wire.MethodJobSubmit, wire.SubmitRequest{Jobs: []wire.JobSpec{{Operation: "fly", Target: wire.Target{Any: true}}}}, wire.BadUsage},
		{wire.MethodJobSubmit, wire.SubmitRequest{Jobs: []wire.JobSpec{{
			Operation: wire.OpRun, Command: []string{"true"}, Target: wire.Target{Any: true}, DependsOn: []string{"#0"},
		}}}, wire.Conflict},
		{wire.MethodRunnerAdopt, wire.AdoptRequest{ID: "nobody"}, wire.NotFound},
	} {
		ctx, cancel := context.WithTimeout(ctx, patience)
		err := c.Call(ctx, test.method, test.body, nil)
		cancel()
		if k := wire.KindOf(err); k != test.want {
			t.Errorf("%s %.80v: %q (%v), want %q", test.method, test.body, k, err, test.want)
		}
	}
	if _, err := c.ServerStatus(ctx); err != nil {
		t.Errorf("status on the same session: %v", err)
	}
}

// neverReads opens a big log and reads nothing: its stream waits, and the
// session may live on; nobody else is held up.
func neverReads(ctx context.Context, t *testing.T, s *site, job string) {
	peers := make([]*rawPeer, 20)
	for i := range peers {
		peers[i] = &rawPeer{s.raw(), t}
		peers[i].greet()
		frames := header(typeWindow, flagSYN, 3, 0)
		frames = append(frames, data(3, 0, call(t, wire.MethodJobStream, wire.StreamRequest{ID: job}))...)
		if err := peers[i].send(frames); err != nil {
			t.Fatal(err)
		}
	}
	s.mustAnswer(ctx, "20 clients that do not read")
	if h := listen(ctx, s.client(ctx), wire.StreamRequest{ID: job}); h.problem != nil || h.offset != 20_000_000 {
		t.Errorf("somebody who reads got %d bytes: %v", h.offset, h.problem)
	}
	for _, p := range peers {
		p.Close()
	}
}

// neverReadsHugeWindow allows the server to send without end and does not
// read: the server hangs up in the end.
func neverReadsHugeWindow(ctx context.Context, t *testing.T, s *site, job string) {
	if testing.Short() {
		t.Skip("takes the server's write time-out of 30 s")
	}
	sockets := openSockets(t, s.server.pid())
	peers := make([]*rawPeer, 20)
	for i := range peers {
		peers[i] = &rawPeer{s.raw(), t}
		peers[i].greet()
		frames := header(typeWindow, flagSYN, 3, 1<<30)
		frames = append(frames, data(3, 0, call(t, wire.MethodJobStream, wire.StreamRequest{ID: job}))...)
		if err := peers[i].send(frames); err != nil {
			t.Fatal(err)
		}
	}
	s.mustAnswer(ctx, "20 clients with a huge window that do not read")
	ctx, cancel := context.WithTimeout(ctx, writeLimit)
	defer cancel()
	if err := poll(ctx, func() error {
		if n := openSockets(t, s.server.pid()); n > sockets+1 {
			return fmt.Errorf("the server has %d sockets open, had %d", n, sockets)
		}
		return nil
	}); err != nil {
		t.Errorf("the server does not hang up: %v", err)
	}
}
