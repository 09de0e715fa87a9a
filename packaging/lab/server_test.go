package lab

import (
	"fmt"
	"strings"
	"testing"
)

// TestGroup holds who may do what on the sockets of a host.
func TestGroup(t *testing.T) {
	onNewest(t, func(l *lab, p packages) {
		l.install(p.new.deb)
		l.sh("useradd --create-home alice; usermod --append --groups waypoint alice; useradd --create-home bob")
		for _, user := range []string{"root", "alice"} {
			if r := l.as(user, "waypoint", "job", "list", "--json"); r.code != 0 || r.stdout != "[]" {
				l.t.Errorf("%s cannot operate: exit code %d: %s%s", user, r.code, r.stdout, r.stderr)
			}
		}
		// A member operates; the database's password, in this file, would make him an admin.
		l.sh("echo 'store = \"postgres://waypoint:hush@127.0.0.1:1/waypoint\"' >>/etc/waypoint/server.toml")
		equal(l, "who is in the group of the configuration", l.run("getent", "group", "waypoint-server"), "waypoint-server:x:"+l.run("stat", "-c", "%g", "/etc/waypoint/server.toml")+":waypoint")
		for _, user := range []string{"alice", "bob", "waypoint-runner", "waypoint-job"} {
			for _, file := range []string{"/etc/waypoint/server.toml", "/etc/waypoint/credentials/server/tls.key"} {
				if r := l.as(user, "cat", file); r.code == 0 || !strings.Contains(r.stderr, "Permission denied") {
					l.t.Errorf("%s reads %s: exit code %d: %s%s", user, file, r.code, r.stdout, r.stderr)
				}
			}
		}
		r := l.as("alice", "waypoint", "server", "run", "--listen", "nonsense://")
		equal(l, "the exit code of who may not read the configuration", r.code, 2)
		contains(l, "what is said of it", r.stderr, "configuration /etc/waypoint/server.toml is passed over: it is not for this user")
		l.reloads("what only the server's user and root can read")
		l.sh("chgrp waypoint /etc/waypoint/server.toml")
		l.reloads("what operators can read")
		l.await("the server warns", func() bool {
			return len(l.journal.of("waypoint-server.service", "password can be read by others")) == 1
		})
		l.run("chown", "root:root", "/etc/waypoint/server.toml")
		l.run("install", "-m", "0664", "-g", "waypoint", "/etc/waypoint/server.toml", "/etc/waypoint/server.toml~")
		if r := l.try("waypoint", "server", "reload"); r.code == 0 || !strings.Contains(r.stderr, "systemd-tmpfiles --create waypoint.conf") {
			l.t.Errorf("a configuration that the server cannot read: exit code %d: %s", r.code, r.stderr)
		}
		l.run("systemd-tmpfiles", "--create", "waypoint.conf")
		l.reloads("what has its owner again")
		equal(l, "a copy beside it", l.run("stat", "-c", "%a %U:%G", "/etc/waypoint/server.toml~"), "640 root:waypoint-server")
		l.run("rm", "/etc/waypoint/server.toml~")
		l.run("sed", "-i", "/^store/d", "/etc/waypoint/server.toml")
		equal(l, "the configuration after an edit", l.run("stat", "-c", "%a %U:%G", "/etc/waypoint/server.toml"), "640 root:waypoint-server")

		r = l.as("bob", "waypoint", "job", "list")
		equal(l, "the exit code of who is not in the group", r.code, 4)
		contains(l, "what who is not in the group reads", r.stderr, "group waypoint")
		if strings.Contains(r.stderr, "group waypoint-runner") {
			l.t.Errorf("the group that is named is the runners':\n%s", r.stderr)
		}
		r = l.as("bob", "waypoint", "--server-addr", "unix:///run/waypoint/runner.sock", "job", "list")
		equal(l, "his exit code on the runners' socket", r.code, 4)
		contains(l, "what he reads there", r.stderr, "/run/waypoint/waypoint.sock")
		if strings.Contains(r.stderr, "group waypoint-runner") {
			l.t.Errorf("the group that is named is the runners':\n%s", r.stderr)
		}
		// The server is who says it, whatever the mode of the file is.
		l.run("chmod", "0666", "/run/waypoint/waypoint.sock", "/run/waypoint/runner.sock")
		for _, user := range []string{"root", "alice", "bob", "waypoint-runner"} {
			for _, call := range [][]string{{"job", "list"}, {"server", "status"}, {"runner", "list"}, {"runner", "token"}, {"run", "--no-local", "--detach", "--", "id"}} {
				r := l.as(user, append([]string{"waypoint", "--server-addr", "unix:///run/waypoint/runner.sock"}, call...)...)
				if r.code != 4 {
					l.t.Errorf("%s on the runners' socket: %s: exit code %d: %s %s", user, strings.Join(call, " "), r.code, r.stdout, r.stderr)
				}
			}
		}
		l.adopted()
		equal(l, "a job of alice", l.as("alice", "waypoint", "run", "--no-local", "--", "echo", "hers").stdout, "hers")
	})
}

// reloads has the server read its configuration again.
func (l *lab) reloads(what string) {
	l.t.Helper()
	if r := l.try("systemctl", "reload", "waypoint-server"); r.code != 0 {
		l.t.Errorf("a reload of %s: exit code %d: %s", what, r.code, r.stderr)
	}
}

// TestRestart restarts the server under calls, none of which may fail: the
// sockets are systemd's, so who calls meanwhile waits.
func TestRestart(t *testing.T) {
	onEach(t, func(l *lab, p packages) {
		l.install(p.new.deb)
		l.waypoint("server", "status")
		calls := l.begin("sh", "-c", `
			well=0; bad=0
			until [ -e /tmp/enough ]; do
				for call in "job list" "server status" "run --no-local --detach -- true"; do
					if waypoint $call >/dev/null 2>>/tmp/said; then well=$((well+1)); else bad=$((bad+1)); echo "$call: $?" >>/tmp/said; fi
					echo $well >/tmp/well
				done
			done
			echo $well $bad`)
		count := func() (n int) {
			fmt.Sscan(l.try("cat", "/tmp/well").stdout, &n)
			return n
		}
		for range 20 {
			l.run("systemctl", "restart", "waypoint-server")
			before := count()
			l.await("calls are answered", func() bool { return count() > before })
		}
		l.run("touch", "/tmp/enough")
		var well, bad int
		fmt.Sscan(calls.wait().stdout, &well, &bad)
		if bad > 0 || well < 20 {
			l.t.Errorf("of %d calls %d failed:\n%s", well+bad, bad, l.run("cat", "/tmp/said"))
		}
		equal(l, "failed units", l.run("systemctl", "--failed", "--no-legend"), "")
	})
}

// TestReload: a good configuration is taken, a bad one is refused by the
// reload itself and changes nothing.
func TestReload(t *testing.T) {
	onEach(t, func(l *lab, p packages) {
		l.install(p.new.deb)
		l.waypoint("server", "status")
		pid := l.property("waypoint-server", "MainPID")
		l.sh("echo 'log_level = \"debug\"' >>/etc/waypoint/server.toml")
		l.run("systemctl", "reload", "waypoint-server")
		l.await("the journal says what has changed", func() bool {
			return len(l.journal.find(func(e entry) bool {
				return e["_SYSTEMD_UNIT"] == "waypoint-server.service" && strings.Contains(e["WAYPOINT_CHANGED"], "log_level")
			})) > 0
		})
		l.sh("cp -a /etc/waypoint/server.toml /root/good; echo 'nonsense = [' >>/etc/waypoint/server.toml")
		if r := l.try("systemctl", "reload", "waypoint-server"); r.code == 0 {
			l.t.Error("a bad configuration does not fail the reload")
		}
		l.await("the journal names the file", func() bool { return len(l.journal.of("waypoint-server.service", "/etc/waypoint/server.toml")) > 0 })
		equal(l, "the server after a bad reload", l.active("waypoint-server.service"), "active")
		equal(l, "failed units", l.run("systemctl", "--failed", "--no-legend"), "")
		l.waypoint("server", "status")
		l.sh("cp -a /root/good /etc/waypoint/server.toml")
		l.run("systemctl", "reload", "waypoint-server")
		equal(l, "the process after three reloads", l.property("waypoint-server", "MainPID"), pid)
	})
}

// TestBrokenConfiguration: while the server cannot start, callers wait, and
// the sockets stay; the repair answers them.
func TestBrokenConfiguration(t *testing.T) {
	onEach(t, func(l *lab, p packages) {
		l.install(p.new.deb)
		l.sh("cp -a /etc/waypoint/server.toml /root/good; echo 'nonsense = [' >>/etc/waypoint/server.toml")
		// It is held longer than a server may take to come back.
		call := l.begin("waypoint", "server", "status")
		l.await("the server has tried to start", func() bool {
			return len(l.journal.of("waypoint-server.service", "/etc/waypoint/server.toml")) >= 2
		})
		equal(l, "the sockets meanwhile", l.active("waypoint-server.socket", "waypoint-server-runner.socket"), "active active")
		l.sh("cp -a /root/good /etc/waypoint/server.toml")
		if r := call.wait(); r.code != 0 {
			l.t.Errorf("the call that waited for the repair: exit code %d: %s", r.code, r.stderr)
		}
		l.waypoint("server", "status")
		equal(l, "failed units", l.run("systemctl", "--failed", "--no-legend"), "")
	})
}

// TestWatchdog stops each service in its tracks: systemd notices, ends it with
// its goroutines in the journal, and starts it anew.
func TestWatchdog(t *testing.T) {
	onEach(t, func(l *lab, p packages) {
		l.install(p.new.deb)
		for _, unit := range []string{"waypoint-server", "waypoint-runner", "waypoint-jobs"} {
			if l.property(unit, "WatchdogUSec") == "0" {
				l.t.Errorf("%s has no watchdog", unit)
			}
			l.dropIn(unit, "WatchdogSec=2s")
		}
		id := l.adopted()
		for _, unit := range []string{"waypoint-server", "waypoint-runner", "waypoint-jobs"} {
			pid := l.property(unit, "MainPID")
			l.run("kill", "-STOP", pid)
			l.awaitChange(unit, "MainPID", pid)
			l.await("the goroutines of "+unit+" are in the journal", func() bool {
				return len(l.journal.of(unit+".service", "goroutine ")) > 0
			})
			equal(l, unit+" was restarted", l.property(unit, "NRestarts"), "1")
			l.awaitRunner("back", func(r remote) bool { return r.ID == id && ready(r) })
			equal(l, "a job after "+unit+" was restarted", l.waypoint("run", "--no-local", "--", "echo", "on"), "on")
		}
	})
}

// dropIn adds lines to a service.
func (l *lab) dropIn(unit string, lines ...string) {
	l.t.Helper()
	dir := "/etc/systemd/system/" + unit + ".service.d"
	l.run("mkdir", "-p", dir)
	l.write(dir+"/lab.conf", "[Service]\n"+strings.Join(lines, "\n"), 0o644)
	l.run("systemctl", "daemon-reload")
}
