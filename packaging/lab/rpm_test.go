package lab

import (
	"strings"
	"testing"
)

// TestRPM is the life of the rpm: the scripts are run by rpm itself under a
// real systemd. The lab is a Debian, so its dependencies are not asked for.
func TestRPM(t *testing.T) {
	onEach(t, func(l *lab, p packages) {
		// As on Fedora: what no preset names is not enabled.
		l.write("/usr/lib/systemd/system-preset/99-default-disable.preset", "disable *", 0o644)
		files := l.push(p.old.rpm, p.new.rpm)
		l.run("rpm", "--install", "--nodeps", files[0])
		equal(l, "what is enabled", l.enabled("waypoint-server.socket", "waypoint-server-runner.socket", "waypoint-server-tcp.socket", "waypoint-server.service", "waypoint-runner.service"),
			"enabled enabled disabled disabled disabled")
		equal(l, "what the installation starts", l.active("waypoint-server.socket", "waypoint-server-runner.socket", "waypoint-server.service", "waypoint-runner.service"), "inactive inactive inactive inactive")
		equal(l, "rpm --verify after the installation", l.try("rpm", "--verify", "--nodeps", "waypoint").stdout, "")

		l.run("systemctl", "start", "waypoint-server.socket", "waypoint-server-runner.socket")
		l.firstJob(p.old)
		id := l.runners()[0].ID

		l.sh(`echo '# mine' >>/etc/waypoint/server.toml; echo secret >/etc/waypoint/credentials/runner/other`)
		kept := "stat -c '%n %a %U:%G' /etc/waypoint/*.toml /var/lib/waypoint* && cat /etc/waypoint/*.toml /etc/waypoint/credentials/runner/other"
		before := l.sh(kept)
		l.billed(p.old)
		job := l.running(counting)
		server, jobs := l.property("waypoint-server", "MainPID"), l.property("waypoint-jobs", "InvocationID")
		l.run("chgrp", "waypoint", "/etc/waypoint/server.toml") // as a package has left it whose operators could read it
		l.run("rpm", "--upgrade", "--nodeps", files[1])
		if l.property("waypoint-server", "MainPID") == server {
			l.t.Error("the upgrade left the old server running")
		}
		contains(l, "the server after the upgrade", l.waypoint("server", "status"), p.new.number)
		l.awaitRunner("itself and of the new version", func(r remote) bool { return ready(r) && r.ID == id && r.is(p.new) && r.RunningJobs == 1 })
		equal(l, "the jobs' service while a job runs", l.property("waypoint-jobs", "InvocationID"), jobs)
		l.run("touch", "/tmp/enough")
		l.counted(job)
		l.awaitChange("waypoint-jobs.service", "InvocationID", jobs)
		equal(l, "configuration, state and credentials after the upgrade", l.sh(kept), before)
		equal(l, "a job after the upgrade", l.waypoint("run", "--no-local", "--", "echo", "again"), "again")
		verify := l.try("rpm", "--verify", "--nodeps", "waypoint").stdout
		if lines := strings.Split(verify, "\n"); len(lines) != 1 || !strings.HasSuffix(verify, " /etc/waypoint/server.toml") {
			l.t.Errorf("rpm --verify says more than that server.toml was edited:\n%s", verify)
		}

		l.run("rpm", "--erase", "--nodeps", "waypoint")
		equal(l, "units after the removal", l.active("waypoint-server.socket", "waypoint-server-runner.socket", "waypoint-server.service", "waypoint-runner.service", "waypoint-jobs.service"),
			"inactive inactive inactive inactive inactive")
		equal(l, "processes after the removal", l.try("pgrep", "--list-full", "waypoint").stdout, "")
		contains(l, "the configuration after the removal", l.run("cat", "/etc/waypoint/server.toml.rpmsave"), "# mine")
		equal(l, "a credential after the removal", l.run("cat", "/etc/waypoint/credentials/runner/other"), "secret")
		equal(l, "links in /etc/systemd after the removal", l.run("find", "/etc/systemd/system", "-name", "*waypoint*"), "")
		equal(l, "units that systemd still knows", l.run("systemctl", "list-units", "--all", "--no-legend", "waypoint*"), "")
		equal(l, "failed units", l.run("systemctl", "--failed", "--no-legend"), "")
	})
}
