package daemon_test

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/waypointd/waypoint/daemon"
	"github.com/waypointd/waypoint/daemon/daemontest"
	"github.com/waypointd/waypoint/mux"
	"github.com/waypointd/waypoint/mux/muxtest"
	"github.com/waypointd/waypoint/mux/wire"
)

// lines is a log that may be written from anywhere.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// serveTCP has the server listen on a loopback address.
func serveTCP(t *testing.T, s *daemontest.Server) (mux.Address, func()) {
	t.Helper()
	l, err := mux.Listen(t.Context(), mux.Address{Network: "tcp", Path: "127.0.0.1:0"}, 0)
	if err != nil {
		t.Fatal(err)
	}
	return mux.Address{Network: "tcp", Path: l.Addr().String()}, s.Serve(l)
}

func tryDial(t *testing.T, a mux.Address, trust mux.Trust) error {
	t.Helper()
	conn, err := mux.Dial(t.Context(), a, trust)
	if err == nil {
		conn.Close()
	}
	return err
}

// Who has the fingerprint that the server says trusts it, before and after it
// is started anew; nobody else does, and nobody gets in without TLS.
func TestOwnCertificateOverTCP(t *testing.T) {
	var log lines
	s := daemontest.Start(t, daemon.Config{Logger: slog.New(slog.NewTextHandler(&log, nil))})
	var pin string
	for range 2 {
		addr, end := serveTCP(t, s)
		if err := tryDial(t, addr, mux.Trust{SkipVerify: true}); err != nil {
			t.Fatal(err)
		}
		st, err := s.Client(t).ServerStatus(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if pin != "" && st.Fingerprint != pin {
			t.Errorf("the fingerprint was %s, and is %s", pin, st.Fingerprint)
		}
		pin = st.Fingerprint
		if left := time.Until(st.CertExpiry); left < 364*24*time.Hour || left > 366*24*time.Hour {
			t.Errorf("the certificate expires at %v", st.CertExpiry)
		}
		if err := tryDial(t, addr, mux.Trust{Pins: []string{pin}}); err != nil {
			t.Errorf("with the pin: %v", err)
		}
		err = tryDial(t, addr, mux.Trust{})
		if wire.KindOf(err) != wire.Denied || !strings.Contains(err.Error(), pin) {
			t.Errorf("without a pin: %v", err)
		}
		conn, err := mux.Dial(t.Context(), addr, mux.Trust{Plain: true})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := mux.Connect(t.Context(), conn, mux.Config{}, wire.Hello{Role: wire.RoleClient}, nil, nil); wire.KindOf(err) != wire.Unavailable {
			t.Errorf("without TLS: %v", err)
		}
		end()
		if !strings.Contains(log.String(), pin) || strings.Contains(log.String(), "level=WARN") {
			t.Errorf("the log says\n%s", log.String())
		}
		s.Restart()
	}
}

func TestCertificateFilesOverTCP(t *testing.T) {
	ca := muxtest.NewAuthority(t)
	pair := ca.Issue(t, muxtest.Leaf{})
	dir := t.TempDir()
	cfg := daemon.Config{TLSCert: filepath.Join(dir, "cert.pem"), TLSKey: filepath.Join(dir, "key.pem")}
	for name, text := range map[string][]byte{cfg.TLSCert: muxtest.CertificatePEM(pair.Certificate...), cfg.TLSKey: muxtest.KeyPEM(t, pair.PrivateKey)} {
		if err := os.WriteFile(name, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s := daemontest.Start(t, cfg)
	addr, end := serveTCP(t, s)
	defer end()
	if err := tryDial(t, addr, mux.Trust{CAFile: ca.File(t)}); err != nil {
		t.Errorf("with the CA file: %v", err)
	}
	st, err := s.Client(t).ServerStatus(t.Context())
	if err != nil || st.Fingerprint != mux.Fingerprint(pair.Leaf) || !st.CertExpiry.Equal(pair.Leaf.NotAfter) {
		t.Errorf("status: %v, %s until %v", err, st.Fingerprint, st.CertExpiry)
	}
	if err := tryDial(t, addr, mux.Trust{Pins: []string{st.Fingerprint}}); err != nil {
		t.Errorf("with the pin: %v", err)
	}
}

// Plaintext is said loudly, and is for those who ask for it.
func TestPlaintextOverTCP(t *testing.T) {
	var log lines
	s := daemontest.Start(t, daemon.Config{Plain: true, Logger: slog.New(slog.NewTextHandler(&log, nil))})
	addr, end := serveTCP(t, s)
	defer end()
	if err := tryDial(t, addr, mux.Trust{SkipVerify: true}); err != nil {
		t.Errorf("with TLS: %v", err)
	}
	conn, err := mux.Dial(t.Context(), addr, mux.Trust{Plain: true})
	if err != nil {
		t.Fatal(err)
	}
	// Whether it is admitted is another matter: it was heard.
	session, err := mux.Connect(t.Context(), conn, mux.Config{}, wire.Hello{Role: wire.RoleClient}, nil, nil)
	if err == nil {
		session.Close()
	} else if wire.KindOf(err) == wire.Unavailable {
		t.Errorf("without TLS: %v", err)
	}
	if !strings.Contains(log.String(), "level=WARN msg=\"listening without TLS as well") {
		t.Errorf("the log says\n%s", log.String())
	}
}
