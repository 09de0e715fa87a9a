package daemon

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"slices"
	"time"

	"github.com/waypointd/waypoint/daemon/store"
)

// authorityLife is that of the authority's certificate. It is signed anew,
// with the same key and so the same fingerprint, before it is over.
const authorityLife = 10 * 365 * 24 * time.Hour

// authoritySetting is where the store keeps certificate and key, in PEM.
const authoritySetting = "tls_authority"

// notBefore is how far back a certificate reaches, for peers whose clock is slow.
const notBefore = time.Hour

// authority signs the server's own certificates. It is kept in the store, so
// that all servers of one database are the same to whoever trusts it, and it
// travels with a snapshot.
type authority struct {
	cert *x509.Certificate
	key  crypto.Signer
}

// openAuthority reads the store's authority, or makes it: of several servers
// that do so at once the first one's counts.
func openAuthority(ctx context.Context, st *store.Store, id string, now time.Time) (*authority, error) {
	text, err := st.Setting(ctx, authoritySetting)
	if err != nil {
		return nil, err
	}
	if text == "" {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return nil, fmt.Errorf("make certificate authority: %w", err)
		}
		made, err := newAuthority(key, "Waypoint server "+id, now)
		if err != nil {
			return nil, err
		}
		own, err := made.text()
		if err != nil {
			return nil, err
		}
		if err := st.Update(ctx, func(tx *store.Tx) (err error) {
			text, err = tx.KeepSetting(authoritySetting, own)
			return err
		}); err != nil {
			return nil, err
		}
	}
	a, err := readAuthority(text)
	if err != nil || a.cert.NotAfter.Sub(now) > 2*leafLife {
		return a, err
	}
	if a, err = newAuthority(a.key, a.cert.Subject.CommonName, now); err != nil {
		return nil, err
	}
	if text, err = a.text(); err != nil {
		return nil, err
	}
	return a, st.Update(ctx, func(tx *store.Tx) error { return tx.PutSetting(authoritySetting, text) })
}

func newAuthority(key crypto.Signer, name string, now time.Time) (*authority, error) {
	template := &x509.Certificate{
		SerialNumber:          serialNumber(),
		Subject:               pkix.Name{CommonName: name},
		NotBefore:             now.Add(-notBefore),
		NotAfter:              now.Add(authorityLife),
		IsCA:                  true,
		BasicConstraintsValid: true,
		MaxPathLenZero:        true, // it signs servers only
		KeyUsage:              x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("make certificate authority: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("make certificate authority: %w", err)
	}
	return &authority{cert, key}, nil
}

// text is what readAuthority reads.
func (a *authority) text() (string, error) {
	der, err := x509.MarshalPKCS8PrivateKey(a.key)
	if err != nil {
		return "", fmt.Errorf("encode certificate authority: %w", err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw})) +
		string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})), nil
}

func readAuthority(text string) (*authority, error) {
	c, err := tls.X509KeyPair([]byte(text), []byte(text))
	if err != nil {
		return nil, fmt.Errorf("read certificate authority from the store: %w", err)
	}
	key, ok := c.PrivateKey.(crypto.Signer)
	if !ok {
		return nil, errors.New("read certificate authority from the store: its key does not sign")
	}
	return &authority{c.Leaf, key}, nil
}

// issue makes a server's certificate, with the authority's behind it: that is
// how a peer that was told the authority's fingerprint finds it.
func (a *authority) issue(names []string, now time.Time) (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make certificate: %w", err)
	}
	template := &x509.Certificate{
		SerialNumber: serialNumber(),
		Subject:      pkix.Name{CommonName: "Waypoint server"},
		NotBefore:    now.Add(-notBefore),
		NotAfter:     now.Add(leafLife),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, n := range slices.Compact(slices.Sorted(slices.Values(names))) {
		if ip := net.ParseIP(n); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, n)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		return nil, fmt.Errorf("make certificate: %w", err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("make certificate: %w", err)
	}
	return &tls.Certificate{Certificate: [][]byte{der, a.cert.Raw}, PrivateKey: key, Leaf: leaf}, nil
}

func serialNumber() *big.Int {
	b := make([]byte, 16)
	rand.Read(b)
	b[0] &= 0x7f // positive
	b[0] |= 0x40 // and never zero
	return new(big.Int).SetBytes(b)
}
