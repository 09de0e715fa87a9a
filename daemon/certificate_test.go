package daemon

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/waypointd/waypoint/daemon/store"
	"github.com/waypointd/waypoint/mux"
	"github.com/waypointd/waypoint/mux/muxtest"
	"github.com/waypointd/waypoint/mux/wire"
)

// pairFiles are a certificate's two files.
type pairFiles struct{ cert, key string }

func newPairFiles(t *testing.T) pairFiles {
	dir := t.TempDir()
	return pairFiles{filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")}
}

func put(t *testing.T, name string, text []byte) {
	t.Helper()
	if err := os.WriteFile(name, text, 0o600); err != nil {
		t.Fatal(err)
	}
}

func (f pairFiles) putCert(t *testing.T, c tls.Certificate) {
	put(t, f.cert, muxtest.CertificatePEM(c.Certificate...))
}
func (f pairFiles) putKey(t *testing.T, c tls.Certificate) {
	put(t, f.key, muxtest.KeyPEM(t, c.PrivateKey))
}

// shownBy is the fingerprint that a TLS handshake finds, all of it real.
func shownBy(t *testing.T, c *certificate) string {
	t.Helper()
	near, far := net.Pipe()
	defer near.Close()
	defer far.Close()
	go tls.Server(far, c.config()).Handshake()
	client := tls.Client(near, &tls.Config{InsecureSkipVerify: true})
	if err := client.Handshake(); err != nil {
		t.Fatal(err)
	}
	return mux.Fingerprint(client.ConnectionState().PeerCertificates[0])
}

func TestPairOfEachKind(t *testing.T) {
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	ecKey, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	_, edKey, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	ca := muxtest.NewAuthority(t)
	for name, key := range map[string]crypto.Signer{"RSA": rsaKey, "ECDSA": ecKey, "Ed25519": edKey} {
		t.Run(name, func(t *testing.T) {
			f, pair := newPairFiles(t), ca.Issue(t, muxtest.Leaf{Key: key})
			f.putCert(t, pair)
			f.putKey(t, pair)
			p, err := openPair(f.cert, f.key, slog.New(slog.DiscardHandler), time.Now())
			if err != nil {
				t.Fatal(err)
			}
			c := &certificate{files: p, now: time.Now}
			if got, want := shownBy(t, c), mux.Fingerprint(pair.Leaf); got != want || c.fingerprint() != want {
				t.Errorf("%s is shown, %s is said, want %s", got, c.fingerprint(), want)
			}
			if got := c.expiry(t.Context()); !got.Equal(pair.Leaf.NotAfter) {
				t.Errorf("expiry %v, want %v", got, pair.Leaf.NotAfter)
			}
		})
	}
}

// A renewal is taken up by the next handshake, in whichever order the two files
// are written; what does not fit meanwhile changes nothing, and is said once.
func TestPairRenewed(t *testing.T) {
	ca := muxtest.NewAuthority(t)
	first, second, third := ca.Issue(t, muxtest.Leaf{}), ca.Issue(t, muxtest.Leaf{}), ca.Issue(t, muxtest.Leaf{})
	for _, certFirst := range []bool{true, false} {
		f := newPairFiles(t)
		f.putCert(t, first)
		f.putKey(t, first)
		var log bytes.Buffer
		now := time.Now()
		p, err := openPair(f.cert, f.key, slog.New(slog.NewTextHandler(&log, nil)), now)
		if err != nil {
			t.Fatal(err)
		}
		c := &certificate{files: p, now: func() time.Time { return now }}
		check := func(when string, want tls.Certificate, warnings int) {
			t.Helper()
			for range 3 { // as often as one likes
				if got := shownBy(t, c); got != mux.Fingerprint(want.Leaf) {
					t.Fatalf("certificate first: %v; %s: another certificate is shown", certFirst, when)
				}
				now = now.Add(pairPause)
			}
			if n := strings.Count(log.String(), "certificate not renewed"); n != warnings {
				t.Fatalf("certificate first: %v; %s: %d warnings, want %d:\n%s", certFirst, when, n, warnings, log.String())
			}
		}
		check("at first", first, 0)

		one, two := f.putCert, f.putKey
		if !certFirst {
			one, two = two, one
		}
		one(t, second)
		check("half of it", first, 1)
		two(t, second)
		check("both", second, 1)
		if strings.Count(log.String(), "certificate renewed") != 1 || !strings.Contains(log.String(), "another key") {
			t.Errorf("the log says\n%s", log.String())
		}

		put(t, f.cert, []byte("garbage"))
		check("garbage", second, 2)
		put(t, f.cert, []byte("other garbage"))
		check("other garbage", second, 3)
		if err := os.Remove(f.key); err != nil {
			t.Fatal(err)
		}
		check("no key", second, 4)
		f.putKey(t, third)
		f.putCert(t, third)
		check("whole again", third, 4)
		if strings.Contains(log.String(), "PRIVATE") {
			t.Error("the key is in the log")
		}
	}
}

// The files are looked at no more than once a second, and a file that was
// written twice within one tick of the clock is not taken for the first one.
func TestPairLooks(t *testing.T) {
	ca := muxtest.NewAuthority(t)
	first, second := ca.Issue(t, muxtest.Leaf{}), ca.Issue(t, muxtest.Leaf{})
	f := newPairFiles(t)
	f.putCert(t, first)
	f.putKey(t, first)
	now := time.Now()
	p, err := openPair(f.cert, f.key, slog.New(slog.DiscardHandler), now)
	if err != nil {
		t.Fatal(err)
	}
	f.putCert(t, second)
	f.putKey(t, second)
	if got := p.look(now.Add(pairPause - 1)); !got.Leaf.Equal(first.Leaf) {
		t.Error("the files were looked at again within a second")
	}
	if p.stamps, _, err = p.stat(now); err != nil { // as if the clock had stood still
		t.Fatal(err)
	}
	if got := p.look(now.Add(pairPause)); !got.Leaf.Equal(second.Leaf) {
		t.Error("what was written in the same tick was not seen")
	}
	// Once they are old, files that look the same are not read.
	if err := os.Chmod(f.key, 0); err != nil {
		t.Fatal(err)
	}
	if p.stamps, _, err = p.stat(now); err != nil {
		t.Fatal(err)
	}
	p.sum = [32]byte{}
	if got := p.look(now.Add(time.Minute)); !got.Leaf.Equal(second.Leaf) || p.said != "" || p.sum != [32]byte{} {
		t.Errorf("old files were read again: %q", p.said)
	}
}

func TestCertificateMisconfigured(t *testing.T) {
	ca := muxtest.NewAuthority(t)
	good, other := newPairFiles(t), newPairFiles(t)
	pair, another := ca.Issue(t, muxtest.Leaf{}), ca.Issue(t, muxtest.Leaf{})
	good.putCert(t, pair)
	good.putKey(t, pair)
	other.putKey(t, another)
	put(t, other.cert, []byte("garbage"))
	for name, c := range map[string]struct {
		cfg  Config
		text string
	}{
		"certificate alone":   {Config{TLSCert: good.cert}, "together"},
		"key alone":           {Config{TLSKey: good.key}, "together"},
		"no such certificate": {Config{TLSCert: "/nonexistent/cert.pem", TLSKey: good.key}, "/nonexistent/cert.pem"},
		"no such key":         {Config{TLSCert: good.cert, TLSKey: "/nonexistent/key.pem"}, "/nonexistent/key.pem"},
		"another key":         {Config{TLSCert: good.cert, TLSKey: other.key}, other.key},
		"garbage":             {Config{TLSCert: other.cert, TLSKey: other.key}, other.cert},
		"directory":           {Config{TLSCert: t.TempDir(), TLSKey: good.key}, "no regular file"},
		"no name":             {Config{TLSNames: []string{""}}, `""`},
		"bad name":            {Config{TLSNames: []string{"example.org", "https://example.org"}}, "https://example.org"},
		"name with a port":    {Config{TLSNames: []string{"example.org:9701"}}, "example.org:9701"},
		"name beyond ASCII":   {Config{TLSNames: []string{"bücher.example"}}, "bücher.example"},
	} {
		t.Run(name, func(t *testing.T) {
			c.cfg.StateDir = t.TempDir()
			_, err := New(t.Context(), c.cfg)
			if wire.KindOf(err) != wire.BadUsage || !strings.Contains(err.Error(), c.text) || strings.Contains(err.Error(), "PRIVATE") {
				t.Errorf("got %v", err)
			}
		})
	}
}

func openTestStore(t *testing.T, path string) *store.Store {
	t.Helper()
	st, err := store.Open(t.Context(), path, store.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { st.Close() })
	return st
}

// Everybody who opens a store's authority gets the same one, also those who
// come at the same moment, and later.
func TestAuthorityIsOne(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s.db")
	st := openTestStore(t, path)
	now := time.Now()
	prints := make([]string, 8)
	var all sync.WaitGroup
	for i := range prints {
		all.Go(func() {
			a, err := openAuthority(t.Context(), st, "id", now)
			if err != nil {
				t.Error(err)
				return
			}
			prints[i] = mux.Fingerprint(a.cert)
		})
	}
	all.Wait()
	if err := st.Close(); err != nil {
		t.Fatal(err)
	}
	st = openTestStore(t, path)
	old, err := openAuthority(t.Context(), st, "id", now)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range prints {
		if p != mux.Fingerprint(old.cert) {
			t.Fatalf("authorities differ: %v", prints)
		}
	}

	// Before its certificate is over it gets another, for the same key: who
	// trusts the fingerprint, or has the old certificate in a file, goes on.
	later := now.Add(authorityLife - leafLife)
	renewed, err := openAuthority(t.Context(), st, "id", later)
	if err != nil || mux.Fingerprint(renewed.cert) != prints[0] || !renewed.cert.NotAfter.After(old.cert.NotAfter) {
		t.Fatalf("renewed: %v", err)
	}
	if kept, err := openAuthority(t.Context(), st, "id", later); err != nil || !kept.cert.Equal(renewed.cert) {
		t.Errorf("the renewed one was not kept: %v", err)
	}
	leaf, err := renewed.issue([]string{"a.example"}, later)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(old.cert)
	if _, err := leaf.Leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: "a.example", CurrentTime: later}); err != nil {
		t.Errorf("with the old certificate in a file: %v", err)
	}
}

func TestAuthorityUnreadable(t *testing.T) {
	st := openTestStore(t, filepath.Join(t.TempDir(), "s.db"))
	if err := st.Update(t.Context(), func(tx *store.Tx) error { return tx.PutSetting(authoritySetting, "garbage") }); err != nil {
		t.Fatal(err)
	}
	if _, err := openAuthority(t.Context(), st, "id", time.Now()); err == nil || strings.Contains(err.Error(), "garbage") {
		t.Errorf("got %v", err) // and it was not replaced: others trust it
	}
	if text, err := st.Setting(t.Context(), authoritySetting); err != nil || text != "garbage" {
		t.Errorf("the store has %q, %v", text, err)
	}
}

// The own certificate is for all names of this host, and is made anew in time.
func TestOwnCertificate(t *testing.T) {
	now := time.Now()
	ca, err := openAuthority(t.Context(), openTestStore(t, filepath.Join(t.TempDir(), "s.db")), "id", now)
	if err != nil {
		t.Fatal(err)
	}
	c := &certificate{
		log: slog.New(slog.DiscardHandler), own: ca, names: []string{"way.example", "*.jobs.example", "192.0.2.99"},
		now: func() time.Time { return now },
	}
	current := func(local net.IP) *x509.Certificate {
		t.Helper()
		shown, err := c.current(t.Context(), local)
		if err != nil {
			t.Fatal(err)
		}
		if len(shown.Certificate) != 2 || !bytes.Equal(shown.Certificate[1], ca.cert.Raw) {
			t.Fatalf("%d certificates are presented", len(shown.Certificate))
		}
		return shown.Leaf
	}
	leaf := current(nil)
	names := []string{"localhost", "127.0.0.1", "::1", "way.example", "a.jobs.example", "192.0.2.99"}
	if host, err := os.Hostname(); err == nil {
		names = append(names, host)
	}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		names = append(names, a.(*net.IPNet).IP.String())
	}
	roots := x509.NewCertPool()
	roots.AddCert(ca.cert)
	for _, n := range names {
		if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: n, CurrentTime: now}); err != nil {
			t.Errorf("for %s: %v", n, err)
		}
	}
	if back := now.Sub(leaf.NotBefore); back < 59*time.Minute || back > 61*time.Minute {
		t.Errorf("it is valid from %v ago", back)
	}
	if life := leaf.NotAfter.Sub(now); life < leafLife-time.Minute || life > leafLife+time.Minute {
		t.Errorf("it is valid for %v", life)
	}
	if !c.expiry(t.Context()).Equal(leaf.NotAfter) || c.fingerprint() != mux.Fingerprint(ca.cert) {
		t.Error("another fingerprint or expiry is said")
	}

	same := func(want bool, when string, local net.IP) {
		t.Helper()
		if got := current(local); got.Equal(leaf) != want {
			t.Fatalf("%s: the same certificate: %v", when, !want)
		} else {
			leaf = got
		}
	}
	strange := net.ParseIP("198.51.100.1")
	now = now.Add(leafPause - 1)
	same(true, "at a new address, soon after", strange)
	now = now.Add(1)
	same(true, "at a known address", net.ParseIP("127.0.0.1"))
	same(false, "at a new address", strange)
	same(true, "again", strange)
	now = now.Add(leafLife * 2 / 3).Add(-time.Hour)
	same(true, "before two thirds of its life", nil)
	now = now.Add(2 * time.Hour)
	same(false, "after two thirds of its life", nil)
	now = now.Add(-2 * leafLife)
	same(false, "when the clock was set back", nil)
}

// Where nobody can connect by TCP nothing is made, read or kept.
func TestNoCertificateWithoutTCP(t *testing.T) {
	s, err := New(t.Context(), Config{StateDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	l, err := mux.Listen(t.Context(), mux.Address{Network: "unix", Path: filepath.Join(t.TempDir(), "s")}, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	go func() { served <- s.Serve(ctx, l) }()
	conn, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	cancel()
	text, settingErr := s.store.Setting(t.Context(), authoritySetting)
	if err := errors.Join(<-served, settingErr); err != nil || text != "" || s.pin() != "" || s.shown().config() != nil {
		t.Errorf("%v; authority %q, pin %q", err, text, s.pin())
	}
}
