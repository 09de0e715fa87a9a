package daemon

import (
	"crypto/sha256"
	"crypto/tls"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/waypointd/waypoint/mux"
	"github.com/waypointd/waypoint/mux/wire"
)

const (
	// pairPause is the least time between two looks at the files.
	pairPause = time.Second
	// pairFresh is how long a file that was just written is read again, also
	// when it looks the same: a clock has ticks, and a file can be written twice in one.
	pairFresh = 2 * time.Second
)

// pair is a certificate and its key in two files. Who renews them writes one
// after the other, so what is there for a moment may not fit: then the pair
// before it stays in use.
type pair struct {
	certFile, keyFile string
	log               *slog.Logger

	mu     sync.Mutex
	cert   *tls.Certificate // in use; guarded by mu, as is all that follows
	looked time.Time
	stamps [2]fileStamp
	sum    [sha256.Size]byte // of what was read last
	said   string            // the last trouble with these contents
}

// fileStamp tells a file from what was there before.
type fileStamp struct {
	dev, ino     uint64
	size         int64
	mtime, ctime syscall.Timespec
}

// openPair reads the pair. Its errors are BadUsage and name the files.
func openPair(certFile, keyFile string, log *slog.Logger, now time.Time) (*pair, error) {
	if certFile == "" || keyFile == "" {
		return nil, wire.Errorf(wire.BadUsage, "read certificate: certificate and key are given together, or neither is")
	}
	p := &pair{certFile: certFile, keyFile: keyFile, log: log}
	if err := p.load(now); err != nil {
		return nil, wire.Errorf(wire.BadUsage, "read certificate: %v", err)
	}
	if leaf := p.cert.Leaf; now.After(leaf.NotAfter) {
		log.Warn("certificate has expired", "file", certFile, "expires_at", leaf.NotAfter)
	}
	return p, nil
}

// look returns the pair in use, after a look at the files, at most one each
// pairPause.
func (p *pair) look(now time.Time) *tls.Certificate {
	p.mu.Lock()
	defer p.mu.Unlock()
	if since := now.Sub(p.looked); since >= 0 && since < pairPause {
		return p.cert
	}
	before := mux.Fingerprint(p.cert.Leaf)
	old := p.cert
	err := p.load(now)
	switch {
	case err != nil && err.Error() != p.said:
		p.said = err.Error()
		p.log.Warn("certificate not renewed, the one before stays in use", "error", err)
	case err == nil && p.cert != old:
		p.said = ""
		after := mux.Fingerprint(p.cert.Leaf)
		p.log.Info("certificate renewed", "file", p.certFile, "expires_at", p.cert.Leaf.NotAfter, "fingerprint", after)
		if after != before {
			warnOfKey(p.log, before, after)
		}
	}
	return p.cert
}

// inUse is the pair in use, without another look at the files.
func (p *pair) inUse() *tls.Certificate {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.cert
}

func warnOfKey(log *slog.Logger, before, after string) {
	log.Warn("certificate has another key: tokens made before now name the old one's fingerprint", "before", before, "now", after)
}

// load reads the files where they may have changed. An error stays the same
// until they have changed again.
func (p *pair) load(now time.Time) error {
	p.looked = now
	stamps, fresh, err := p.stat(now)
	if err != nil {
		p.stamps = [2]fileStamp{}
		return err
	}
	if stamps == p.stamps && !fresh {
		return nil
	}
	cert, err := os.ReadFile(p.certFile)
	if err != nil {
		return err
	}
	key, err := os.ReadFile(p.keyFile)
	if err != nil {
		return err
	}
	p.stamps = stamps
	sum := sha256.Sum256(slices.Concat(cert, []byte{0}, key))
	if sum == p.sum {
		return nil
	}
	p.sum, p.said = sum, ""
	loaded, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return fmt.Errorf("%s with the key %s: %w", p.certFile, p.keyFile, err)
	}
	p.cert = &loaded
	return nil
}

// stat returns the files' stamps, and whether one was written a moment ago.
func (p *pair) stat(now time.Time) (stamps [2]fileStamp, fresh bool, err error) {
	for i, name := range []string{p.certFile, p.keyFile} {
		info, err := os.Stat(name)
		if err != nil {
			return stamps, false, err
		}
		if !info.Mode().IsRegular() {
			return stamps, false, fmt.Errorf("%s is no regular file", name)
		}
		st := info.Sys().(*syscall.Stat_t)
		stamps[i] = fileStamp{uint64(st.Dev), st.Ino, st.Size, st.Mtim, st.Ctim}
		age := now.Sub(time.Unix(st.Ctim.Unix()))
		fresh = fresh || age > -pairFresh && age < pairFresh
	}
	return stamps, fresh, nil
}
