package storetest

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// Relay is one client's way to a database on a Postgres, that a test can stop or cut.
type Relay struct {
	to  string // the server's socket
	url string
	l   net.Listener

	mu    sync.Mutex
	moves *sync.Cond
	held  bool              // nothing passes
	cut   bool              // nobody is let in
	conns map[net.Conn]bool // open
	wg    sync.WaitGroup
}

const socket = ".s.PGSQL.5432"

// NewRelay makes a way to the database of a URL of Postgres.Database.
func NewRelay(t testing.TB, url string) *Relay {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "wppr")
	if err != nil {
		t.Fatal(err)
	}
	base, host, ok := strings.Cut(url, "host=")
	if !ok {
		t.Fatalf("no socket in %s", url)
	}
	r := &Relay{to: filepath.Join(host, socket), url: base + "host=" + dir, conns: map[net.Conn]bool{}}
	r.moves = sync.NewCond(&r.mu)
	if r.l, err = net.Listen("unix", filepath.Join(dir, socket)); err != nil {
		t.Fatal(err)
	}
	r.wg.Go(r.accept)
	t.Cleanup(func() {
		r.l.Close()
		r.Hold(false)
		r.Cut(true)
		r.wg.Wait()
		os.RemoveAll(dir)
	})
	return r
}

// URL is the database's address by this way.
func (r *Relay) URL() string { return r.url }

// Hold keeps everything from passing, in both directions, or lets it go on.
func (r *Relay) Hold(on bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.held = on
	r.moves.Broadcast()
}

// Cut ends all connections, and lets no more in until it is taken back.
func (r *Relay) Cut(on bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cut = on
	if on {
		for c := range r.conns {
			c.Close()
		}
	}
	r.moves.Broadcast()
}

func (r *Relay) accept() {
	for {
		c, err := r.l.Accept()
		if err != nil {
			return
		}
		r.wg.Go(func() { r.serve(c) })
	}
}

func (r *Relay) serve(c net.Conn) {
	defer c.Close()
	d, err := net.Dial("unix", r.to)
	if err != nil {
		return
	}
	defer d.Close()
	r.mu.Lock()
	if r.cut {
		r.mu.Unlock()
		return
	}
	r.conns[c], r.conns[d] = true, true
	r.mu.Unlock()
	var both sync.WaitGroup
	pass := func(to, from net.Conn) {
		defer to.Close()
		defer from.Close()
		buf := make([]byte, 64<<10)
		for {
			n, err := from.Read(buf)
			if err != nil {
				return
			}
			r.mu.Lock()
			for r.held && !r.cut {
				r.moves.Wait()
			}
			over := r.cut
			r.mu.Unlock()
			if over {
				return
			}
			if _, err := to.Write(buf[:n]); err != nil {
				return
			}
		}
	}
	both.Go(func() { pass(c, d) })
	both.Go(func() { pass(d, c) })
	both.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.conns, c)
	delete(r.conns, d)
}
