package mux_test

import (
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/waypointd/waypoint/mux"
	"github.com/waypointd/waypoint/mux/muxtest"
	"github.com/waypointd/waypoint/mux/wire"
)

// tcpEnd makes the end of a link look like TCP between two addresses.
type tcpEnd struct {
	net.Conn
	local, remote string
}

func (e tcpEnd) LocalAddr() net.Addr  { return &net.TCPAddr{IP: net.ParseIP(e.local), Port: 9701} }
func (e tcpEnd) RemoteAddr() net.Addr { return &net.TCPAddr{IP: net.ParseIP(e.remote), Port: 40000} }

func loopbackEnd(c net.Conn) net.Conn { return tcpEnd{c, "127.0.0.1", "127.0.0.1"} }

// tlsLink is a link that both ends take for TCP with TLS, its faults those of
// link; the handshake is made with the first byte that is written. With it
// comes the accepting side's configuration.
func tlsLink(link *muxtest.Link, cert tls.Certificate) (*muxtest.Link, *tls.Config) {
	client := tls.Client(loopbackEnd(link.A), &tls.Config{InsecureSkipVerify: true, SessionTicketsDisabled: true})
	return &muxtest.Link{A: client, B: loopbackEnd(link.B)}, &tls.Config{Certificates: []tls.Certificate{cert}}
}

// tlsPair is a session over TLS in memory; faults are made on the link that
// is returned with it.
func tlsPair(t testing.TB, table mux.Table, o muxtest.Options) (*muxtest.Pair, *muxtest.Link) {
	t.Helper()
	link := muxtest.NewLink()
	a := muxtest.NewAuthority(t)
	over, cfg := tlsLink(link, a.Issue(t, muxtest.Leaf{}))
	o.Server.TLS = cfg
	p, err := muxtest.Connect(t.Context(), over, table, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p, link
}

// acceptor is a server on a loopback address.
type acceptor struct {
	addr    mux.Address
	refused chan error // what Accept returned; buffered
}

func accept(t testing.TB, cfg mux.Config, table mux.Table) *acceptor {
	t.Helper()
	l, err := mux.Listen(t.Context(), mux.Address{Network: "tcp", Path: "127.0.0.1:0"}, 0)
	if err != nil {
		t.Fatal(err)
	}
	return &acceptor{mux.Address{Network: "tcp", Path: l.Addr().String()}, serve(t, l, cfg, table)}
}

// serve accepts sessions until the test ends; what Accept refused is sent,
// where there is room.
func serve(t testing.TB, l net.Listener, cfg mux.Config, table mux.Table) chan error {
	refused := make(chan error, 100)
	var sessions sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	sessions.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			sessions.Go(func() {
				session, err := mux.Accept(ctx, conn, cfg, muxtest.AdmitAll(table))
				if err != nil {
					select {
					case refused <- err:
					default:
					}
					return
				}
				select {
				case <-session.Done():
				case <-ctx.Done():
				}
				session.Close()
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		cancel()
		sessions.Wait()
	})
	return refused
}

func withCertificate(c tls.Certificate) mux.Config {
	return mux.Config{TLS: &tls.Config{Certificates: []tls.Certificate{c}}}
}

// dialSession is Dial and Connect as a client.
func dialSession(ctx context.Context, a mux.Address, trust mux.Trust) (*mux.Session, error) {
	conn, err := mux.Dial(ctx, a, trust)
	if err != nil {
		return nil, err
	}
	return mux.Connect(ctx, conn, mux.Config{}, wire.Hello{Role: wire.RoleClient}, nil, nil)
}

var whoTable = mux.Table{
	"encrypted": mux.Unary(func(_ context.Context, p *mux.Peer, _ struct{}) (bool, error) { return p.TLS, nil }),
}

func TestTrust(t *testing.T) {
	settle(t)
	ca, other := muxtest.NewAuthority(t), muxtest.NewAuthority(t)
	good := ca.Issue(t, muxtest.Leaf{})
	elsewhere := ca.Issue(t, muxtest.Leaf{Names: []string{"elsewhere.example", "192.0.2.7"}})
	expired := ca.Issue(t, muxtest.Leaf{NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: time.Now().Add(-time.Minute)})
	early := ca.Issue(t, muxtest.Leaf{NotBefore: time.Now().Add(time.Hour)})
	// The authority that is trusted is presented with a certificate that it never signed.
	foreign := other.Issue(t, muxtest.Leaf{})
	foreign.Certificate[1] = ca.Cert.Raw
	lonely := ca.Issue(t, muxtest.Leaf{})
	lonely.Certificate = lonely.Certificate[:1]

	caPrint, file := mux.Fingerprint(ca.Cert), ca.File(t)
	pin := func(c tls.Certificate) string { return mux.Fingerprint(c.Leaf) }
	for _, c := range []struct {
		name  string
		cert  tls.Certificate
		host  string // in place of 127.0.0.1
		trust mux.Trust
		err   string // "": trusted; else what the error, which is Denied, has
		hint  string
	}{
		{name: "roots of the system", cert: good, err: "(" + caPrint + ")", hint: "waypoint server status"},
		{name: "roots of the system, hint", cert: good, err: "is not trusted", hint: "--server-tls-ca FILE"},
		{name: "roots of the system, hint of the pin", cert: good, err: "is not trusted", hint: "--server-tls-fingerprint"},
		{name: "roots of the system, no authority presented", cert: lonely, err: "(" + pin(lonely) + ")", hint: "token of that server"},
		{name: "roots of the system, authority of another", cert: foreign, err: "(" + pin(foreign) + ")", hint: "token"},
		{name: "CA file", cert: good, trust: mux.Trust{CAFile: file}},
		{name: "CA file, by name", cert: good, host: "localhost", trust: mux.Trust{CAFile: file}},
		{name: "CA file, authority not presented", cert: lonely, trust: mux.Trust{CAFile: file}},
		{name: "other CA file", cert: good, trust: mux.Trust{CAFile: other.File(t)}, err: caPrint, hint: "compare"},
		{name: "CA file, other host", cert: elsewhere, trust: mux.Trust{CAFile: file}, err: "for elsewhere.example, 192.0.2.7, not for 127.0.0.1", hint: "names"},
		{name: "CA file, expired", cert: expired, trust: mux.Trust{CAFile: file}, err: "it expired at 20", hint: "renew"},
		{name: "CA file, early", cert: early, trust: mux.Trust{CAFile: file}, err: "not valid before 20", hint: "clocks"},
		{name: "pin of the server", cert: good, trust: mux.Trust{Pins: []string{pin(good)}}},
		{name: "pin of the server, no authority presented", cert: lonely, trust: mux.Trust{Pins: []string{pin(lonely)}}},
		{name: "pin of the authority", cert: good, trust: mux.Trust{Pins: []string{"SHA256:other", caPrint}}},
		{name: "pin of the authority, other host", cert: elsewhere, trust: mux.Trust{Pins: []string{caPrint}}},
		{name: "pin beside another CA file", cert: good, trust: mux.Trust{CAFile: other.File(t), Pins: []string{caPrint}}},
		{name: "CA file beside another pin", cert: good, trust: mux.Trust{CAFile: file, Pins: []string{mux.Fingerprint(other.Cert)}}},
		{name: "pin of the authority, authority not presented", cert: lonely, trust: mux.Trust{Pins: []string{caPrint}}, err: pin(lonely), hint: "compare"},
		{name: "pin of the authority, signed by another", cert: foreign, trust: mux.Trust{Pins: []string{caPrint}}, err: pin(foreign), hint: "compare"},
		{name: "other pin", cert: good, trust: mux.Trust{Pins: []string{"", mux.Fingerprint(other.Cert)}}, err: caPrint, hint: "compare"},
		{name: "pin of the server, expired", cert: expired, trust: mux.Trust{Pins: []string{pin(expired)}}, err: "expired", hint: "renew"},
		{name: "pin of the authority, expired", cert: expired, trust: mux.Trust{Pins: []string{caPrint}}, err: "expired", hint: "renew"},
		{name: "pin of the server, early", cert: early, trust: mux.Trust{Pins: []string{pin(early)}}, err: "not valid before", hint: "clocks"},
		{name: "no verification", cert: expired, trust: mux.Trust{SkipVerify: true}},
		{name: "no verification, foreign", cert: foreign, trust: mux.Trust{SkipVerify: true, CAFile: "/nonexistent", Pins: []string{"x"}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			server := accept(t, withCertificate(c.cert), whoTable)
			if c.host != "" {
				server.addr.Path = strings.Replace(server.addr.Path, "127.0.0.1", c.host, 1)
			}
			s, err := dialSession(t.Context(), server.addr, c.trust)
			if c.err != "" {
				wantKind(t, err, wire.Denied, c.err)
				if e, _ := errors.AsType[*wire.Error](err); !strings.Contains(e.Hint, c.hint) || !strings.Contains(e.Message, server.addr.String()) {
					t.Errorf("error %q, hint %q", e.Message, e.Hint)
				}
				wantKind(t, await(t, "refusal at the server", server.refused), wire.Unavailable, "bad certificate")
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			var encrypted bool
			if err := s.Call(t.Context(), "encrypted", struct{}{}, &encrypted); err != nil || !encrypted || !s.Peer().TLS {
				t.Errorf("call: %v; the server sees TLS %v, the client %v", err, encrypted, s.Peer().TLS)
			}
		})
	}
}

func TestTrustMisused(t *testing.T) {
	dir := t.TempDir()
	empty := filepath.Join(dir, "empty.pem")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	garbage := filepath.Join(dir, "garbage.pem")
	if err := os.WriteFile(garbage, []byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, addr string
		trust      mux.Trust
		text       string
	}{
		{"no CA file", "127.0.0.1:1", mux.Trust{CAFile: filepath.Join(dir, "none.pem")}, "none.pem"},
		{"directory as CA file", "127.0.0.1:1", mux.Trust{CAFile: dir}, dir},
		{"empty CA file", "127.0.0.1:1", mux.Trust{CAFile: empty}, empty},
		{"garbage as CA file", "127.0.0.1:1", mux.Trust{CAFile: garbage}, garbage},
		{"plaintext to elsewhere", "192.0.2.1:9701", mux.Trust{Plain: true}, "192.0.2.1:9701: without TLS"},
		{"plaintext to all addresses", "[2001:db8::1]:9701", mux.Trust{Plain: true}, "without TLS"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := mux.Dial(t.Context(), mux.Address{Network: "tcp", Path: c.addr}, c.trust)
			wantKind(t, err, wire.BadUsage, c.text)
			wantKind(t, c.trust.Check(mux.Address{Network: "tcp", Path: c.addr}), wire.BadUsage, c.text)
			if err := c.trust.Check(mux.Address{Network: "unix", Path: "/s"}); err != nil {
				t.Errorf("of a Unix socket: %v", err)
			}
		})
	}
	for _, addr := range []string{"127.0.0.1:1", "[::1]:1", "elsewhere.example:1"} {
		if err := (mux.Trust{Plain: true}).Check(mux.Address{Network: "tcp", Path: addr}); err != nil {
			t.Errorf("plaintext to %s: %v", addr, err)
		}
	}
}

// speak listens and has f deal with the one connection that comes.
func speak(t *testing.T, f func(net.Conn)) mux.Address {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		f(conn)
	}()
	t.Cleanup(func() {
		l.Close()
		<-done
	})
	return mux.Address{Network: "tcp", Path: l.Addr().String()}
}

func TestDialOthers(t *testing.T) {
	settle(t)
	old := withCertificate(muxtest.NewAuthority(t).Issue(t, muxtest.Leaf{})).TLS
	old.MaxVersion = tls.VersionTLS12
	for _, c := range []struct {
		name string
		f    func(net.Conn)
		text string
		hint string
	}{
		{"SSH", func(c net.Conn) { io.WriteString(c, "SSH-2.0-OpenSSH_9.6\r\n"); io.Copy(io.Discard, c) }, "the server does not speak TLS", "--no-server-tls"},
		{"HTTP", func(c net.Conn) {
			io.ReadFull(c, make([]byte, 5))
			io.WriteString(c, "HTTP/1.0 400 Bad Request\r\n\r\n")
			io.Copy(io.Discard, c)
		}, "the server does not speak TLS", "--no-server-tls"},
		{"closes", func(c net.Conn) { io.ReadFull(c, make([]byte, 1)) }, "may not speak TLS", "--no-server-tls"},
		{"closes in order", func(c net.Conn) { c.(*net.TCPConn).CloseWrite(); io.Copy(io.Discard, c) }, "may not speak TLS", "--no-server-tls"},
		{"TLS 1.2", func(c net.Conn) { tls.Server(c, old).Handshake() }, "protocol version", "TLS 1.3"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := mux.Dial(t.Context(), speak(t, c.f), mux.Trust{SkipVerify: true})
			wantKind(t, err, wire.Unavailable, c.text)
			if e, _ := errors.AsType[*wire.Error](err); !strings.Contains(e.Hint, c.hint) {
				t.Errorf("the hint is %q", e.Hint)
			}
		})
	}
	t.Run("plaintext server", func(t *testing.T) {
		server := accept(t, mux.Config{Plain: true}, nil)
		_, err := mux.Dial(t.Context(), server.addr, mux.Trust{SkipVerify: true})
		wantKind(t, err, wire.Unavailable, "may not speak TLS")
		wantKind(t, await(t, "refusal", server.refused), wire.Unavailable, "the peer speaks TLS, which is not available here")
	})
	t.Run("silence", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		_, err := mux.Dial(ctx, speak(t, func(c net.Conn) {
			io.ReadFull(c, make([]byte, 1))
			cancel()
			io.Copy(io.Discard, c)
		}), mux.Trust{})
		if !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("plaintext to another TLS server", func(t *testing.T) {
		_, err := dialSession(t.Context(), speak(t, func(c net.Conn) {
			io.ReadFull(c, make([]byte, 1))
			c.Write([]byte{0x15, 3, 3, 0, 2, 2, 70})
			io.Copy(io.Discard, c)
		}), mux.Trust{Plain: true})
		wantKind(t, err, wire.Unavailable, "the peer speaks TLS")
		if e, _ := errors.AsType[*wire.Error](err); !strings.Contains(e.Hint, "--no-server-tls") {
			t.Errorf("the hint is %q", e.Hint)
		}
	})
}

func TestPlaintext(t *testing.T) {
	settle(t)
	cert := withCertificate(muxtest.NewAuthority(t).Issue(t, muxtest.Leaf{}))
	both := cert
	both.Plain = true
	for _, c := range []struct {
		name    string
		cfg     mux.Config
		refused string // at the accepting side
	}{
		{"TLS only", cert, "plaintext is not allowed"},
		{"neither", mux.Config{}, "plaintext is not allowed"},
		{"both", both, ""},
		{"plaintext only", mux.Config{Plain: true}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			server := accept(t, c.cfg, whoTable)
			s, err := dialSession(t.Context(), server.addr, mux.Trust{Plain: true})
			if c.refused != "" {
				wantKind(t, err, wire.Unavailable, "")
				if e, _ := errors.AsType[*wire.Error](err); !strings.Contains(e.Hint, "leave out --no-server-tls") || !errors.Is(err, mux.ErrLost) {
					t.Errorf("%v, hint %q", err, e.Hint)
				}
				wantKind(t, await(t, "refusal", server.refused), wire.Denied, c.refused)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			encrypted := true
			if err := s.Call(t.Context(), "encrypted", struct{}{}, &encrypted); err != nil || encrypted || s.Peer().TLS {
				t.Errorf("call: %v, encrypted: %v", err, encrypted)
			}
		})
	}
	t.Run("TLS where both are allowed", func(t *testing.T) {
		s, err := dialSession(t.Context(), accept(t, both, whoTable).addr, mux.Trust{SkipVerify: true})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		var encrypted bool
		if err := s.Call(t.Context(), "encrypted", struct{}{}, &encrypted); err != nil || !encrypted {
			t.Errorf("call: %v, encrypted: %v", err, encrypted)
		}
	})
	for _, ends := range [][2]string{{"127.0.0.1", "192.0.2.1"}, {"192.0.2.1", "127.0.0.1"}, {"192.0.2.1", "192.0.2.1"}} {
		t.Run("from "+ends[1]+" to "+ends[0], func(t *testing.T) {
			for _, cfg := range []mux.Config{both, {Plain: true}} {
				a, b := mux.Pipe()
				a.Write(helloBytes(t))
				_, err := mux.Accept(t.Context(), tcpEnd{b, ends[0], ends[1]}, cfg, muxtest.AdmitAll(nil))
				wantKind(t, err, wire.Denied, "plaintext is not allowed")
				if rest := readAll(t, a); len(rest) > 0 {
					t.Errorf("the peer was told %q", rest)
				}
				a.Close()
			}
		})
	}
}

// Whatever a connection begins with, the accepting side is done with it when
// the handshake's time is over.
func TestTLSHandshakeLate(t *testing.T) {
	settle(t)
	cfg := withCertificate(muxtest.NewAuthority(t).Issue(t, muxtest.Leaf{}))
	cfg.HandshakeTimeout = 50 * time.Millisecond
	for _, plain := range []bool{false, true} {
		cfg.Plain = plain
		for name, send := range map[string][]byte{
			"silent":              nil,
			"one byte":            {0x16},
			"half a header":       {0x16, 3, 1},
			"half a client hello": []byte("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"),
		} {
			t.Run(name, func(t *testing.T) {
				a, b := mux.Pipe()
				defer a.Close()
				a.Write(send)
				began := time.Now()
				_, err := mux.Accept(t.Context(), loopbackEnd(b), cfg, muxtest.AdmitAll(nil))
				wantKind(t, err, wire.Unavailable, "the handshake was not done in time")
				if took := time.Since(began); took < cfg.HandshakeTimeout {
					t.Errorf("it took %v", took)
				}
				readAll(t, a)
			})
		}
	}
	t.Run("silent behind TLS", func(t *testing.T) {
		server := accept(t, cfg, nil)
		conn, err := mux.Dial(t.Context(), server.addr, mux.Trust{SkipVerify: true})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		wantKind(t, await(t, "end of the handshake", server.refused), wire.Unavailable, "the handshake was not done in time")
	})
}

func TestOldTLSIsRefused(t *testing.T) {
	settle(t)
	cfg := withCertificate(muxtest.NewAuthority(t).Issue(t, muxtest.Leaf{}))
	cfg.TLS.MinVersion = tls.VersionTLS12 // whatever the caller says
	server := accept(t, cfg, nil)
	_, err := tls.Dial("tcp", server.addr.Path, &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12})
	if err == nil || !strings.Contains(err.Error(), "protocol version") {
		t.Errorf("TLS 1.2: %v", err)
	}
	wantKind(t, await(t, "refusal", server.refused), wire.Unavailable, "TLS handshake")
	if cfg.TLS.MinVersion != tls.VersionTLS12 {
		t.Error("the caller's configuration was changed")
	}
}

// Somebody in the middle, to whom the runner speaks as to its server, cannot
// be that runner at the server.
func TestRelayedProof(t *testing.T) {
	settle(t)
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	hello := wire.Hello{Role: wire.RoleRunner, Runner: &wire.RunnerHello{Kind: wire.KindRemote, ID: "r"}}
	a := muxtest.NewAuthority(t)
	server := accept(t, withCertificate(a.Issue(t, muxtest.Leaf{})), whoTable)
	connect := func(addr mux.Address) error {
		conn, err := mux.Dial(t.Context(), addr, mux.Trust{SkipVerify: true})
		if err != nil {
			return err
		}
		s, err := mux.Connect(t.Context(), conn, mux.Config{}, hello, key, nil)
		if err == nil {
			s.Close()
		}
		return err
	}
	if err := connect(server.addr); err != nil {
		t.Fatalf("without anybody in between: %v", err)
	}
	mallory := withCertificate(muxtest.NewAuthority(t).Issue(t, muxtest.Leaf{})).TLS
	err = connect(speak(t, func(c net.Conn) {
		victim := tls.Server(c, mallory)
		onward, err := tls.Dial("tcp", server.addr.Path, &tls.Config{InsecureSkipVerify: true})
		if err != nil {
			t.Error(err)
			return
		}
		defer onward.Close()
		go func() {
			io.Copy(onward, victim)
			onward.Close()
		}()
		io.Copy(victim, onward)
	}))
	wantKind(t, err, wire.Unauthenticated, "did not prove")
	wantKind(t, await(t, "refusal", server.refused), wire.Unauthenticated, "did not prove")
}

// A write that is not read in time ends the session over TLS as well.
func TestTLSPeerThatNeverReads(t *testing.T) {
	settle(t)
	p, link := tlsPair(t, mux.Table{"log": func(_ context.Context, st *mux.Stream) error {
		for {
			if err := st.SendData(wire.Data{Bytes: make([]byte, wire.MaxData)}); err != nil {
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
	link.Stall(link.B)
	go func() {
		for {
			if _, err := st.Recv(); err != nil {
				return
			}
		}
	}()
	await(t, "end of the session", p.Server.Done())
	wantKind(t, p.Server.Err(), wire.Unavailable, "did not read for 100ms")
	await(t, "end of the client", p.Client.Done())
}

// A session that is given up does not wait for a peer that does not read.
func TestTLSCloseDoesNotWait(t *testing.T) {
	settle(t)
	p, link := tlsPair(t, nil, muxtest.Options{})
	link.Stall()
	began := time.Now()
	p.Server.Abort(errors.New("enough"))
	p.Client.Close()
	p.Server.Close()
	if took := time.Since(began); took > 3*time.Second { // TLS's own Close would take five
		t.Errorf("it took %v", took)
	}
}

// Frames of every size come through whole, over TLS and plaintext TCP: what is
// copied behind its header and what is written by itself.
func TestFramesOverTCP(t *testing.T) {
	settle(t)
	cfg := withCertificate(muxtest.NewAuthority(t).Issue(t, muxtest.Leaf{}))
	cfg.Plain = true
	server := accept(t, cfg, mux.Table{
		"echo": mux.Unary(func(_ context.Context, _ *mux.Peer, r echo) (echo, error) { return r, nil }),
	})
	for _, trust := range []mux.Trust{{SkipVerify: true}, {Plain: true}} {
		s, err := dialSession(t.Context(), server.addr, trust)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		for _, size := range []int{0, 1, 4000, 4060, 4096, 4097, 16 << 10, 17 << 10, 70 << 10, wire.MaxCall - 100} {
			text := strings.Repeat("x", size)
			var got echo
			if err := s.Call(t.Context(), "echo", echo{text}, &got); err != nil || got.Text != text {
				t.Fatalf("%d bytes: %v, %d came back", size, err, len(got.Text))
			}
		}
	}
}

// FuzzFirstBytes sends what a stranger may to a server's TCP port. Whatever it
// is, the accepting side comes to an end with it, and only a hello is admitted.
func FuzzFirstBytes(f *testing.F) {
	f.Add([]byte(nil), false)
	f.Add(helloBytes(f), true)
	f.Add(helloBytes(f), false)
	f.Add([]byte("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"), true)
	f.Add([]byte("\x16\x03\x01\x00\x05\x01\x00\x00\x01\x03"), false)
	f.Add([]byte("\x15\x03\x03\x00\x02\x02\x46"), true)
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"), false)
	cfg := withCertificate(muxtest.NewAuthority(f).Issue(f, muxtest.Leaf{}))
	cfg.HandshakeTimeout = 5 * time.Second // for the worst; the end of the bytes comes first
	f.Fuzz(func(t *testing.T, b []byte, plain bool) {
		if len(b) > 64<<10 {
			return
		}
		cfg := cfg
		cfg.Plain = plain
		raw, conn := mux.Pipe()
		admitted := false
		ended := make(chan error, 1)
		go func() {
			s, err := mux.Accept(context.Background(), loopbackEnd(conn), cfg, func(context.Context, *mux.Peer) (*mux.Admission, error) {
				admitted = true
				return &mux.Admission{}, nil
			})
			if err == nil {
				s.Close()
			}
			ended <- err
		}()
		raw.Write(b)
		raw.Close()
		if err := await(t, "end of the accepting side", ended); admitted && (!plain || len(b) == 0 || b[0] != 0) {
			t.Errorf("%q was admitted (%v)", b, err)
		}
	})
}
