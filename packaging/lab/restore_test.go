package lab

import (
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// wire joins two labs: they are 10.99.0.1 and 10.99.0.2 to one another.
func wire(one, two *lab) {
	one.t.Helper()
	must := func(args ...string) {
		one.t.Helper()
		if out, err := command(bound, args[0], args[1:]...); err != nil {
			one.t.Fatalf("%v: %s", err, out)
		}
	}
	must("ip", "link", "add", "wire", "netns", strconv.Itoa(one.leader), "type", "veth", "peer", "name", "wire", "netns", strconv.Itoa(two.leader))
	for i, l := range []*lab{one, two} {
		within := []string{"nsenter", "--target", strconv.Itoa(l.leader), "--net", "ip"}
		must(append(within, "address", "add", fmt.Sprintf("10.99.0.%d/24", i+1), "dev", "wire")...)
		must(append(within, "link", "set", "wire", "up")...)
	}
}

// listening has the server of the lab listen on TCP as well.
func (l *lab) listening() {
	l.t.Helper()
	l.run("systemctl", "enable", "waypoint-server-tcp.socket")
	l.run("systemctl", "restart", "waypoint-server")
	equal(l, "the TCP socket", l.active("waypoint-server-tcp.socket"), "active")
}

// TestRestoreElsewhere loses a server's host and restores the server on another one:
// from a snapshot that was taken under load, with nothing but commands of the
// manual's. The runner of the first host is told of the new address: it is let in
// as before, its job goes on, and so do operators' tokens.
func TestRestoreElsewhere(t *testing.T) {
	onNewest(t, func(l *lab, p packages) {
		other := boot(t, l.suite)
		wire(l, other)
		l.install(p.new.deb)
		l.waypoint("server", "status")
		l.listening()
		l.sh(`printf 'server_addr = "tcp://10.99.0.1:9701"\nconcurrency = 4\n' >>/etc/waypoint/runner.toml
			umask 077; waypoint user token >/root/user; waypoint runner token >/etc/waypoint/credentials/runner/token`)
		l.run("systemctl", "start", "waypoint-runner")
		runner := l.awaitRunner("admitted by its token", ready).ID
		id := decode[struct{ ID string }](l, "waypoint", "server", "status", "--json").ID

		long := l.running(counting)
		early := l.waypoint("run", "--no-local", "--detach", "--", "echo", "early")
		l.ended(early)
		load := l.begin("sh", "-euc", "until [ -e /tmp/loaded ]; do waypoint run --no-local --detach -- sh -c 'seq 1000' >>/root/ids; done")
		l.await("some load", func() bool { return strings.Count(l.sh("cat /root/ids || true"), "\n") >= 10 })
		known := strings.Fields(l.sh("head -n 10 /root/ids"))
		l.waypoint("server", "snapshot", "/root/snap.db")
		unknown := l.waypoint("run", "--no-local", "--detach", "--", "echo", "late")
		l.run("touch", "/tmp/loaded")
		if r := load.wait(); r.code != 0 {
			l.t.Errorf("load: exit code %d: %s", r.code, r.stderr)
		}
		l.run("systemctl", "stop", "waypoint-server.socket") // a runner calls all the time
		for _, unit := range []string{"waypoint-server.socket", "waypoint-server-runner.socket", "waypoint-server-tcp.socket", "waypoint-server.service"} {
			equal(l, unit, l.active(unit), "inactive")
		}
		l.run("systemctl", "disable", "waypoint-server.socket", "waypoint-server-runner.socket", "waypoint-server-tcp.socket")

		other.install(p.new.deb)
		other.run("systemctl", "stop", "waypoint-server.socket")
		snap := other.push(filepath.Join(l.root(), "root/snap.db"))[0]
		contains(other, "the answer to restore", other.waypoint("server", "restore", snap), "Restored server "+id+" as it was at ")
		equal(other, "what else there is", other.sh("ls -A /var/lib/waypoint | grep -Ev '^(waypoint.db|lock|version)$' || true"), "")
		other.run("systemctl", "enable", "--now", "waypoint-server.socket", "waypoint-server-runner.socket", "waypoint-server-tcp.socket")
		equal(other, "the server", decode[struct{ ID string }](other, "waypoint", "server", "status", "--json").ID, id)
		// The directory was not there before; the service manager gives it to its user.
		equal(other, "whose the store is", other.sh("stat -c '%a %U:%G' /var/lib/waypoint/waypoint.db"), "600 waypoint:waypoint")
		equal(other, "the TCP socket", other.active("waypoint-server-tcp.socket"), "active")
		equal(other, "what was said before the snapshot", other.output(early), "early")
		if r := other.try("waypoint", "job", "inspect", unknown); r.code != 3 {
			l.t.Errorf("a job from after the snapshot: exit code %d: %s", r.code, r.stdout)
		}

		l.sh("sed -i s/10.99.0.1/10.99.0.2/ /etc/waypoint/runner.toml")
		l.run("systemctl", "restart", "waypoint-runner")
		other.awaitRunner("the one of the first host", func(r remote) bool { return r.ID == runner && ready(r) })
		equal(other, "the job that ran at the snapshot", other.job(long).State, "running")
		for _, id := range known {
			j := other.ended(id)
			// What had ended since the snapshot, and had been confirmed, its runner does not have any more.
			if j.State != "success" && j.Reason != "runner_lost" {
				l.t.Errorf("job %s: %s", id, j)
			}
			if j.State == "success" && strings.Count(other.output(id), "\n") != 999 {
				l.t.Errorf("job %s: its output is %q", id, other.output(id))
			}
		}
		l.run("touch", "/tmp/enough")
		other.counted(long)
		l.waypoint("--server-addr", "tcp://10.99.0.2:9701", "--token-file", "/root/user", "job", "list")
		equal(l, "a job of who was an operator there", l.waypoint("--server-addr", "tcp://10.99.0.2:9701", "--token-file", "/root/user", "run", "--", "echo", "on"), "on")
		equal(other, "failed units", other.run("systemctl", "--failed", "--no-legend"), "")
	})
}
