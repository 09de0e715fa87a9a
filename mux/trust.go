package mux

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/waypointd/waypoint/mux/wire"
)

// Trust is how a server's certificate on TCP is judged. The zero value trusts
// the system's roots. On Unix sockets it has no meaning.
type Trust struct {
	Plain      bool   // no TLS; on loopback addresses only, else BadUsage
	SkipVerify bool   // any certificate will do
	CAFile     string // PEM, in place of the system's roots
	// Pins are fingerprints (see Fingerprint) any of which is trusted as well:
	// of the server's own key, or of the authority that signed its
	// certificate and was presented with it. The host's name is not looked
	// at then: a pinned key is that server's alone, so its name says nothing
	// more, and its addresses may change. So never pin a public authority.
	Pins []string
}

// Fingerprint is "SHA256:" and the unpadded base64 of the hash of the
// certificate's public key, so that it outlives the certificate's renewal.
func Fingerprint(cert *x509.Certificate) string {
	sum := sha256.Sum256(cert.RawSubjectPublicKeyInfo)
	return "SHA256:" + base64.RawStdEncoding.EncodeToString(sum[:])
}

// verifier judges the certificate of one server.
type verifier struct {
	Trust
	addr  Address
	host  string         // to be named in the certificate
	roots *x509.CertPool // nil: the system's
}

// verifier reads the CA file. Its errors are BadUsage.
func (t Trust) verifier(a Address) (*verifier, error) {
	host, _, err := net.SplitHostPort(a.Path)
	if err != nil {
		return nil, wire.Errorf(wire.BadUsage, "connect to %s: %v", a, err)
	}
	host, _, _ = strings.Cut(host, "%") // the zone of a link-local address
	v := &verifier{Trust: t, addr: a, host: host}
	if t.CAFile == "" || t.SkipVerify {
		return v, nil
	}
	pem, err := os.ReadFile(t.CAFile)
	if err != nil {
		return nil, wire.Errorf(wire.BadUsage, "read CA file: %v", err)
	}
	v.roots = x509.NewCertPool()
	if !v.roots.AppendCertsFromPEM(pem) {
		return nil, wire.Errorf(wire.BadUsage, "read CA file: %s has no certificate", t.CAFile).
			WithHint("give a file with certificates in PEM")
	}
	return v, nil
}

// Check finds, without connecting, that trust makes no sense for an address: a
// CA file that cannot be used, or plaintext to an address elsewhere. Errors are
// BadUsage. What a host's name stands for is Dial's to see.
func (t Trust) Check(a Address) error {
	if a.Network != "tcp" {
		return nil
	}
	if _, err := t.verifier(a); err != nil || !t.Plain {
		return err
	}
	if host, _, _ := net.SplitHostPort(a.Path); net.ParseIP(host) == nil {
		return nil
	}
	return onLoopback(context.Background(), a.Network, a.Path, nil)
}

// config is the dialing side's. crypto/tls is told to verify nothing, because
// a pin may be enough; verify does it in its place.
func (v *verifier) config() *tls.Config {
	return &tls.Config{
		MinVersion:                  tls.VersionTLS13,
		ServerName:                  v.host,
		InsecureSkipVerify:          true,
		VerifyConnection:            v.verify,
		SessionTicketsDisabled:      true,
		DynamicRecordSizingDisabled: true, // what is written is whole frames already
	}
}

// verify accepts a certificate that a pin or a root vouches for. Its errors
// are Denied.
func (v *verifier) verify(cs tls.ConnectionState) error {
	if v.SkipVerify {
		return nil
	}
	now := time.Now()
	if pinned(cs.PeerCertificates, v.Pins, now) {
		return nil
	}
	leaf := cs.PeerCertificates[0]
	_, err := leaf.Verify(x509.VerifyOptions{
		DNSName: v.host, Roots: v.roots, Intermediates: pool(cs.PeerCertificates[1:]), CurrentTime: now,
	})
	if err == nil {
		return nil
	}
	if bad, ok := errors.AsType[x509.HostnameError](err); ok {
		return v.denied(cs, "it is for %s, not for %s", strings.Join(names(bad.Certificate), ", "), v.host).
			WithHint("connect by one of these names, or add this one on the server")
	}
	if bad, ok := errors.AsType[x509.CertificateInvalidError](err); ok && bad.Reason == x509.Expired {
		if now.Before(bad.Cert.NotBefore) {
			return v.denied(cs, "it is not valid before %s", bad.Cert.NotBefore.UTC().Format(time.RFC3339)).
				WithHint("check the clocks of both hosts")
		}
		return v.denied(cs, "it expired at %s", bad.Cert.NotAfter.UTC().Format(time.RFC3339)).
			WithHint("renew it on the server")
	}
	why := err.Error()
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		why = "no authority that is trusted here has signed it"
	}
	return v.denied(cs, "%s", why).
		WithHint("compare the fingerprint with that of `waypoint server status` on the server; if it is the same, " +
			"trust it with --server-tls-fingerprint, or a token of that server, which carries it; or its certificate with --server-tls-ca FILE")
}

// denied names the fingerprint that was presented: the leaf's and, where
// another certificate really signed it, that one's, because that is what a
// server with an authority of its own goes by.
func (v *verifier) denied(cs tls.ConnectionState, format string, args ...any) *wire.Error {
	e := wire.Errorf(wire.Denied, format, args...)
	leaf := cs.PeerCertificates[0]
	what := Fingerprint(leaf)
	if ca := authority(cs.PeerCertificates, time.Now()); ca != nil {
		what = Fingerprint(ca)
	}
	e.Message = "connect to " + v.addr.String() + ": the server's certificate (" + what + ") is not trusted: " + e.Message
	return e
}

// pinned reports whether a pin vouches for chain, whose first certificate is
// the server's: the pin is the leaf's, or that of an authority among the
// others by whose signature, and at this time, the leaf is good. That the
// authority was presented proves nothing by itself.
func pinned(chain []*x509.Certificate, pins []string, now time.Time) bool {
	if len(pins) == 0 {
		return false
	}
	leaf := chain[0]
	if slices.Contains(pins, Fingerprint(leaf)) {
		return !now.Before(leaf.NotBefore) && !now.After(leaf.NotAfter)
	}
	return slices.ContainsFunc(chain[1:], func(c *x509.Certificate) bool {
		return c.IsCA && slices.Contains(pins, Fingerprint(c)) && signedBy(chain, c, now)
	})
}

// authority is the presented certificate, signed by itself, that vouches for
// the leaf; nil where there is none.
func authority(chain []*x509.Certificate, now time.Time) *x509.Certificate {
	for _, c := range chain[1:] {
		if c.IsCA && c.CheckSignatureFrom(c) == nil && signedBy(chain, c, now) {
			return c
		}
	}
	return nil
}

// signedBy reports whether ca vouches for the leaf, over the other
// certificates in the chain if need be, and all of them are valid now.
func signedBy(chain []*x509.Certificate, ca *x509.Certificate, now time.Time) bool {
	_, err := chain[0].Verify(x509.VerifyOptions{
		Roots: pool([]*x509.Certificate{ca}), Intermediates: pool(chain[1:]), CurrentTime: now,
	})
	return err == nil
}

func pool(certs []*x509.Certificate) *x509.CertPool {
	p := x509.NewCertPool()
	for _, c := range certs {
		p.AddCert(c)
	}
	return p
}

// names are whom a certificate is for.
func names(c *x509.Certificate) []string {
	all := slices.Clone(c.DNSNames)
	for _, ip := range c.IPAddresses {
		all = append(all, ip.String())
	}
	if len(all) == 0 {
		all = append(all, "nobody")
	}
	return all
}

// handshake speaks TLS with the server. On error conn is closed.
func (v *verifier) handshake(ctx context.Context, conn net.Conn) (net.Conn, error) {
	tc := tls.Client(conn, v.config())
	err := tc.HandshakeContext(ctx)
	if err == nil {
		return tc, nil
	}
	conn.Close()
	if ctx.Err() != nil {
		return nil, err
	}
	if _, ok := errors.AsType[*wire.Error](err); ok {
		return nil, err
	}
	if _, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		return nil, v.plaintext("the server does not speak TLS")
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) {
		return nil, v.plaintext("the server broke the TLS handshake off; it may not speak TLS")
	}
	return nil, wire.Errorf(wire.Unavailable, "connect to %s: TLS handshake: %v", v.addr, err).
		WithHint("check that a Waypoint server is there; TLS 1.3 is asked for")
}

// plaintext is the error of a server without TLS.
func (v *verifier) plaintext(why string) error {
	e := wire.Errorf(wire.Unavailable, "connect to %s: %s", v.addr, why)
	if ip := net.ParseIP(v.host); ip != nil && ip.IsLoopback() || v.host == "localhost" {
		return e.WithHint("use --no-server-tls for a server that is to be without TLS, on loopback only")
	}
	return e.WithHint("check the address and its port")
}
