package daemon

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/waypointd/waypoint/mux"
	"github.com/waypointd/waypoint/mux/wire"
)

const (
	// leafLife is that of a certificate of the server's own; it is renewed
	// when a third of it is left.
	leafLife = 365 * 24 * time.Hour
	// leafPause is the least time between two certificates that are made
	// because the host has an address that the last one does not name.
	leafPause = time.Minute
	// maxAddresses of the host in its certificate: one with thousands would
	// make a certificate that no peer takes.
	maxAddresses = 64
)

// certificate is what the server shows on TCP: the pair of files that it was
// given, looked at again as time goes by, or one for this host's names and
// addresses, made in memory when it is first asked for and signed by an
// authority of the server's own, which is kept in the store.
//
// All methods may be called from any goroutine.
type certificate struct {
	log   *slog.Logger
	now   func() time.Time
	files *pair      // nil: the authority's
	own   *authority // nil: files
	names []string   // further ones that the own certificate is for

	mu     sync.Mutex
	issued *tls.Certificate // by own; guarded by mu, as are the next
	at     time.Time        // when
	made   *tls.Config      // what config returns; nil until it is asked for
}

// checkTLS checks what Config says of TLS; a pair of files is read.
func (c Config) checkTLS() error {
	for _, n := range c.TLSNames {
		if !certifiable(n) {
			return wire.Errorf(wire.BadUsage, "read TLS names: %q is neither a host name nor an address", n)
		}
	}
	if c.TLSCert == "" && c.TLSKey == "" {
		return nil
	}
	_, err := openPair(c.TLSCert, c.TLSKey, c.Logger, time.Now())
	return err
}

// certifiable reports whether a certificate can be for a name.
func certifiable(name string) bool {
	return net.ParseIP(name) != nil || name != "" && len(name) <= 253 && !strings.ContainsFunc(name, func(r rune) bool {
		return r <= ' ' || r > '~' || strings.ContainsRune(`/:@[]"'\`, r)
	})
}

// secure sees to the certificate before TCP is served.
func (s *Server) secure(ctx context.Context) error {
	s.reloading.Lock() // or a configuration that is read at this moment would have no certificate
	defer s.reloading.Unlock()
	if s.shown() != nil {
		return nil
	}
	c, err := s.certify(ctx, s.cfg())
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.certificate = c
	s.mu.Unlock()
	return nil
}

// certify is the certificate that a configuration asks for.
func (s *Server) certify(ctx context.Context, cfg *Config) (c *certificate, err error) {
	c = &certificate{log: s.log, now: time.Now, names: cfg.TLSNames}
	if cfg.TLSCert != "" {
		c.files, err = openPair(cfg.TLSCert, cfg.TLSKey, s.log, s.now())
	} else {
		c.own, err = openAuthority(ctx, s.store, s.id, s.now())
	}
	return c, err
}

// same reports whether c, fresh from certify, would be shown as before is.
func (c *certificate) same(before *certificate) bool {
	if c.files == nil || before.files == nil {
		return c.files == before.files && slices.Equal(c.names, before.names)
	}
	return c.files.certFile == before.files.certFile && c.files.keyFile == before.files.keyFile &&
		c.files.inUse().Leaf.Equal(before.files.inUse().Leaf)
}

// shown is the server's certificate, nil where no TCP is served.
func (s *Server) shown() *certificate {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.certificate
}

// pin is the fingerprint that tokens carry, so that whoever has one knows
// this server; "" where no TCP is served.
func (s *Server) pin() string {
	if c := s.shown(); c != nil {
		return c.fingerprint()
	}
	return ""
}

// config is for mux; nil where c is.
func (c *certificate) config() *tls.Config {
	if c == nil {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.made == nil {
		c.made = &tls.Config{MinVersion: tls.VersionTLS13, GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
			var local net.IP
			if a, ok := hello.Conn.LocalAddr().(*net.TCPAddr); ok {
				local = a.IP
			}
			return c.current(hello.Context(), local)
		}}
	}
	return c.made
}

// fingerprint is what clients and runners are to trust: the authority's,
// which outlives the certificates it signs, or that of the certificate in the
// file, whose authority may be everybody's.
func (c *certificate) fingerprint() string {
	if c.files != nil {
		c.files.look(c.now())
	}
	return c.pinned()
}

// pinned is fingerprint without another look at the files.
func (c *certificate) pinned() string {
	if c.files != nil {
		return mux.Fingerprint(c.files.inUse().Leaf)
	}
	return mux.Fingerprint(c.own.cert)
}

// expiry is when the certificate in use ends; zero where there is none.
func (c *certificate) expiry(ctx context.Context) time.Time {
	shown, err := c.current(ctx, nil)
	if err != nil {
		c.log.Error("certificate not made", "error", err)
		return time.Time{}
	}
	return shown.Leaf.NotAfter
}

// current is the certificate to show to a peer that came to a local address.
func (c *certificate) current(ctx context.Context, local net.IP) (*tls.Certificate, error) {
	now := c.now()
	if c.files != nil {
		return c.files.look(now), nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.issued != nil && !c.due(c.issued.Leaf, now, local) {
		return c.issued, nil
	}
	names := hostNames(ctx, c.names)
	if local != nil {
		names = append(names, local.String())
	}
	issued, err := c.own.issue(names, now)
	if err != nil {
		return nil, err
	}
	c.issued, c.at = issued, now
	c.log.Debug("certificate made", "names", names, "expires_at", issued.Leaf.NotAfter)
	return issued, nil
}

// due reports whether there is to be a new certificate: its life is nearly
// over, the clock was set back to before it, or the host has got an address
// since.
func (c *certificate) due(leaf *x509.Certificate, now time.Time, local net.IP) bool {
	if leaf.NotAfter.Sub(now) < leafLife/3 || now.Before(leaf.NotBefore) {
		return true
	}
	if local == nil || now.Sub(c.at) < leafPause {
		return false
	}
	return !slices.ContainsFunc(leaf.IPAddresses, local.Equal)
}

// hostNames are what this host may be called by its peers, and further names.
func hostNames(ctx context.Context, further []string) []string {
	names := append([]string{"localhost", "127.0.0.1", "::1"}, further...)
	if host, err := os.Hostname(); err == nil && certifiable(host) {
		names = append(names, host)
		// The name with its domain, where the host can tell: no peer waits
		// long because it cannot.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 500*time.Millisecond)
		defer cancel()
		if full, err := net.DefaultResolver.LookupCNAME(ctx, host); err == nil {
			if full = strings.TrimSuffix(full, "."); certifiable(full) {
				names = append(names, full)
			}
		}
	}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return names
	}
	n := 0
	for _, a := range addrs {
		if in, ok := a.(*net.IPNet); ok && n < maxAddresses && !in.IP.IsLoopback() {
			names = append(names, in.IP.String())
			n++
		}
	}
	return names
}

// announce says in the log where the server can be reached, and who it is there.
func (s *Server) announce(l wire.Listener, tcp bool) {
	if !tcp {
		s.log.Info("listening", "address", l.Address, "kind", l.Kind)
		return
	}
	s.log.Info("listening", "address", l.Address, "kind", l.Kind, "fingerprint", s.pin(), "certificate", cmp.Or(s.cfg().TLSCert, "own"))
	if s.cfg().Plain {
		s.log.Warn("listening without TLS as well, for this host's own connections", "address", l.Address)
	}
}
