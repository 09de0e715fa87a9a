package lab

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"testing"
	"time"
)

// TestCredentials: a token that an administrator leaves in the directory of
// credentials, or gives encrypted, admits the runner at its first start.
func TestCredentials(t *testing.T) {
	onEach(t, func(l *lab, p packages) {
		l.install(p.new.deb)
		l.sh("umask 077; waypoint runner token >/etc/waypoint/credentials/runner/token")
		l.run("systemctl", "start", "waypoint-runner")
		first := l.awaitRunner("admitted by its token", ready)
		equal(l, "the state of a runner with a token", first.State, "preadopted")
		equal(l, "a job", l.waypoint("run", "--no-local", "--", "echo", "on"), "on")
		// Who can read it: the runner, by way of its credentials, and root.
		if r := l.as("waypoint-runner", "cat", "/etc/waypoint/credentials/runner/token"); r.code == 0 {
			l.t.Error("the user of the runner can read the file of root")
		}

		// A second runner on the same host, with a token that only this host can read.
		l.run("systemctl", "stop", "waypoint-runner")
		l.sh(`rm -rf /var/lib/waypoint-runner/* /etc/waypoint/credentials/runner/token
			waypoint runner token | systemd-creds encrypt --with-key=host --name=waypoint_token - /etc/waypoint/credentials/token.cred`)
		l.dropIn("waypoint-runner", "LoadCredentialEncrypted=waypoint_token:/etc/waypoint/credentials/token.cred")
		l.run("systemctl", "start", "waypoint-runner")
		second := l.awaitRunner("admitted by its encrypted token", func(r remote) bool { return r.ID != first.ID && ready(r) })
		equal(l, "the state of a runner with an encrypted token", second.State, "preadopted")
		equal(l, "a job of the second", l.waypoint("run", "--runner", second.ID, "--", "echo", "on"), "on")
	})
}

// TestTCP switches the TCP socket on, with the server's own certificate and then
// with one of the administrator's, and runs a job on an agent that comes that way.
func TestTCP(t *testing.T) {
	onEach(t, func(l *lab, p packages) {
		l.install(p.new.deb)
		if r := l.try("ss", "--no-header", "--listening", "--tcp"); r.stdout != "" {
			l.t.Errorf("somebody listens on TCP before it was asked for: %s", r.stdout)
		}
		l.waypoint("server", "status")
		l.run("systemctl", "enable", "waypoint-server-tcp.socket")
		l.run("systemctl", "restart", "waypoint-server")
		equal(l, "the socket", l.active("waypoint-server-tcp.socket"), "active")

		l.sh("install -d -m 0700 /var/lib/elsewhere; umask 077; waypoint runner token --id elsewhere >/var/lib/elsewhere/token")
		l.run("systemd-run", "--unit=elsewhere", "--property=Type=notify", "waypoint", "runner", "agent", "--server-addr", "tcp://127.0.0.1:9701", "--state-dir", "/var/lib/elsewhere", "--id", "elsewhere", "--config", "/dev/null")
		l.awaitRunner("admitted over TCP", func(r remote) bool { return r.ID == "elsewhere" && ready(r) })
		equal(l, "a job over TCP", l.waypoint("run", "--runner", "elsewhere", "--", "echo", "far"), "far")

		r := l.try("waypoint", "--server-addr", "tcp://127.0.0.1:9701", "job", "list")
		equal(l, "the exit code of who has no token", r.code, 4)
		l.sh("umask 077; waypoint user token >/root/user")
		l.waypoint("--server-addr", "tcp://127.0.0.1:9701", "--token-file", "/root/user", "job", "list")

		certificate, key := selfSigned(l)
		l.write("/etc/waypoint/credentials/server/tls.crt", certificate, 0o600)
		l.write("/etc/waypoint/credentials/server/tls.key", key, 0o600)
		l.write("/root/ca.pem", certificate, 0o644)
		l.run("systemctl", "restart", "waypoint-server")
		l.sh("umask 077; waypoint user token >/root/user")
		l.waypoint("--server-addr", "tcp://127.0.0.1:9701", "--server-tls-ca", "/root/ca.pem", "--token-file", "/root/user", "job", "list")
		equal(l, "failed units", l.run("systemctl", "--failed", "--no-legend"), "")
	})
}

// selfSigned is a certificate for 127.0.0.1 and its key, in PEM.
func selfSigned(l *lab) (certificate, key string) {
	l.t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		l.t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "lab"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &k.PublicKey, k)
	if err != nil {
		l.t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		l.t.Fatal(err)
	}
	text := func(kind string, der []byte) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
	}
	return text("CERTIFICATE", der), text("PRIVATE KEY", private)
}
