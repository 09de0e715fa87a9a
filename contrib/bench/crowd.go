package main

import (
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/waypointd/waypoint/mux"
	"github.com/waypointd/waypoint/mux/client"
	"github.com/waypointd/waypoint/mux/wire"
)

// What a crowd is: connections that say nothing, connections that speak rubbish,
// and one that opens streams for ever. Each is made again a while after it was closed.
const (
	crowdSilent  = 10_000
	crowdRubbish = 1_000
	crowdAgain   = 5 * time.Second

	// crowdCommand makes this program a crowd, see crowd.
	crowdCommand = "crowd"
)

// crowd presses on a server until its standard input ends: "many ADDRESS" comes
// from as many addresses as there are connections, "one ADDRESS" from one.
func crowd(what string) {
	kind, server, _ := strings.Cut(what, " ")
	from := func(n int) string {
		if kind == "one" {
			return "127.0.0.9"
		}
		return fmt.Sprintf("127.%d.%d.%d", 10+n/60_000, n/250%240, 1+n%250)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var open atomic.Int64
	var wg sync.WaitGroup
	press := func(n int, do func(conn net.Conn)) {
		wg.Go(func() {
			pause := time.Duration(rand.Int64N(int64(crowdAgain / 2)))
			for {
				select {
				case <-time.After(pause):
				case <-ctx.Done():
					return
				}
				pause = crowdAgain
				d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from(n))}, Timeout: 10 * time.Second}
				conn, err := d.DialContext(ctx, "tcp", server)
				if err != nil {
					continue
				}
				open.Add(1)
				stop := context.AfterFunc(ctx, func() { conn.Close() })
				do(conn)
				io.Copy(io.Discard, conn) // until the server hangs up
				stop()
				conn.Close()
				open.Add(-1)
			}
		})
	}
	for n := range crowdSilent {
		press(n, func(net.Conn) {})
	}
	for n := range crowdRubbish {
		press(crowdSilent+n, func(conn net.Conn) {
			noise := make([]byte, 2000)
			for i := range noise {
				noise[i] = byte(rand.Uint32())
			}
			noise[0] = []byte{0, 0x16, 'G', noise[0]}[n%4]
			conn.Write(noise)
		})
	}
	press(crowdSilent+crowdRubbish, openForEver)
	go func() {
		for range time.Tick(200 * time.Millisecond) {
			fmt.Println(open.Load())
		}
	}()
	io.Copy(io.Discard, os.Stdin)
	cancel()
	wg.Wait()
}

// openForEver is a runner that nobody knows, which opens calls until it is put out.
func openForEver(conn net.Conn) {
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		return
	}
	tc := tls.Client(conn, &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13})
	s, err := mux.Connect(context.Background(), tc, mux.Config{Software: "waypoint bench", MaxStreams: 1 << 20},
		wire.Hello{Role: wire.RoleRunner, Runner: &wire.RunnerHello{ID: fmt.Sprintf("press-%d", rand.Int64()), Kind: wire.KindRemote, Concurrency: 1}}, key, nil)
	if err != nil {
		return
	}
	defer s.Close()
	for s.Err() == nil {
		st, err := s.Open(context.Background(), wire.MethodAuthenticate, nil)
		if err != nil {
			return
		}
		_ = st // never closed
	}
}

// measureCrowd has a crowd press on a server, and times good clients meanwhile:
// one over TLS, one on the Unix socket, and one that connects anew each time. A
// crowd that presses on another server of this host shows what the host has of it.
func measureCrowd(ctx context.Context, b *bench) error {
	var benches []*bench
	for _, name := range []string{"crowd", "other"} {
		dir := b.path(name)
		if err := makeDir(dir); err != nil {
			return err
		}
		benches = append(benches, &bench{config: b.config, dir: dir, report: b.report})
	}
	own, other := benches[0], benches[1]
	err := own.measureCrowd(ctx, other)
	if err != nil {
		err = fmt.Errorf("crowd: %w%s", err, own.lastWords())
	}
	return errors.Join(err, own.stop(), other.stop())
}

// startOnTCP starts a server that listens on TCP as well.
func (b *bench) startOnTCP(ctx context.Context) (mux.Address, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return mux.Address{}, fmt.Errorf("find port: %w", err)
	}
	addr := mux.Address{Network: "tcp", Path: l.Addr().String()}
	l.Close()
	_, err = b.startServer(ctx, b.path("server"), "--listen", "tcp://"+addr.Path)
	return addr, err
}

func (b *bench) measureCrowd(ctx context.Context, other *bench) error {
	addr, err := b.startOnTCP(ctx)
	if err != nil {
		return err
	}
	elsewhere, err := other.startOnTCP(ctx)
	if err != nil {
		return err
	}
	local, err := b.client(ctx)
	if err != nil {
		return err
	}
	defer local.Close()
	token, err := local.UserToken(ctx, wire.UserTokenRequest{User: "good", Role: wire.Viewer, ExpiresIn: wire.Duration(time.Hour)})
	if err != nil {
		return fmt.Errorf("make token: %w", err)
	}
	dial := func(ctx context.Context) (*client.Client, error) {
		return client.Dial(ctx, client.Config{
			Dial:     func(ctx context.Context) (net.Conn, error) { return mux.Dial(ctx, addr, mux.Trust{SkipVerify: true}) },
			Token:    func() string { return token.Token },
			Software: "waypoint-bench",
		})
	}
	remote, err := dial(ctx)
	if err != nil {
		return err
	}
	defer remote.Close()
	ask := func(c *client.Client) error {
		_, err := c.Runners(ctx, wire.RunnerFilter{Limit: 10})
		return err
	}
	type good struct {
		name string
		do   func() error
	}
	goods := []good{
		{"call over TLS", func() error { return ask(remote) }},
		{"call on the Unix socket", func() error { return ask(local) }},
		{"connect over TLS, and call", func() error {
			c, err := dial(ctx)
			if err != nil {
				return err
			}
			defer c.Close()
			return ask(c)
		}},
	}
	// One after the other, each a few milliseconds apart: an operator, no load.
	times := func() ([]samples, error) {
		all := make([]samples, len(goods))
		for end := time.Now().Add(b.span(6 * time.Second)); time.Now().Before(end) && ctx.Err() == nil; time.Sleep(2 * time.Millisecond) {
			for i, g := range goods {
				began := time.Now()
				if err := g.do(); err != nil {
					return nil, fmt.Errorf("%s: %w", g.name, err)
				}
				all[i] = append(all[i], time.Since(began))
			}
		}
		return all, context.Cause(ctx)
	}
	alone, err := times()
	if err != nil {
		return err
	}
	rss, files := b.weight()
	b.report.plain("server without a crowd", megabytes(rss), fmt.Sprintf("%d files", files))
	for _, crowd := range []struct {
		kind, name string
		at         mux.Address
	}{
		{"one", "crowd of %s from one", addr},
		{"many", "crowd of %s from many", addr},
		{"many", "crowd of %s at another server", elsewhere},
	} {
		pressed, open, err := b.pressed(ctx, crowd.kind+" "+crowd.at.Path, func() (got []samples, err error) {
			got, err = times()
			rss, files = b.weight()
			return got, err
		})
		if err != nil {
			return err
		}
		b.report.plain(fmt.Sprintf(crowd.name+": %d are open", number(crowdSilent+crowdRubbish+1), open), megabytes(rss), fmt.Sprintf("%d files", files))
		for i, g := range goods {
			b.report.took("   "+g.name+", p50", pressed[i].p50(), alone[i].p50(), "without the crowd", "at most twice")
			b.report.took("   "+g.name+", p99", pressed[i].p99(), alone[i].p99(), "without the crowd", "at most twice")
		}
	}
	return nil
}

// pressed is what do gives while a crowd presses; open is how many of it are connected then.
func (b *bench) pressed(ctx context.Context, what string, do func() ([]samples, error)) (got []samples, open int, err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, 0, fmt.Errorf("find program: %w", err)
	}
	// It yields the processors of this host, of which one elsewhere would take none.
	cmd := exec.CommandContext(ctx, "nice", "-n", "19", self, crowdCommand, what)
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, 0, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, 0, err
	}
	if err := cmd.Start(); err != nil {
		return nil, 0, fmt.Errorf("start crowd: %w", err)
	}
	defer func() {
		in.Close()
		err = errors.Join(err, cmd.Wait())
	}()
	var last atomic.Int64
	read := make(chan struct{})
	go func() {
		defer close(read)
		for n := 0; ; {
			if _, err := fmt.Fscanln(out, &n); err != nil {
				return
			}
			last.Store(int64(n))
		}
	}()
	defer func() { in.Close(); <-read }()
	for end := time.Now().Add(crowdAgain); time.Now().Before(end) && ctx.Err() == nil; {
		time.Sleep(100 * time.Millisecond) // until all have come once
	}
	got, err = do()
	return got, int(last.Load()), err
}

// weight is the server's resident memory and how many files it has open.
func (b *bench) weight() (rss int64, files int) {
	pid := b.server.cmd.Process.Pid
	if text, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid)); err == nil {
		var size, resident int64
		fmt.Sscan(string(text), &size, &resident)
		rss = resident * int64(os.Getpagesize())
	}
	entries, _ := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	return rss, len(entries)
}
