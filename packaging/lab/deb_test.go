package lab

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
)

// TestDeb is the life of the package on a Debian, as its administrator sees it.
func TestDeb(t *testing.T) {
	onEach(t, func(l *lab, p packages) {
		l.install(p.old.deb)
		equal(l, "sockets after the installation", l.active("waypoint-server.socket", "waypoint-server-runner.socket", "waypoint-server-tcp.socket"), "active active inactive")
		equal(l, "services after the installation", l.active("waypoint-server.service", "waypoint-runner.service", "waypoint-jobs.service"), "inactive inactive inactive")
		equal(l, "what is enabled", l.enabled("waypoint-server.socket", "waypoint-server-runner.socket", "waypoint-server-tcp.socket", "waypoint-server.service", "waypoint-runner.service"),
			"enabled enabled disabled disabled disabled")
		equal(l, "modes", l.sh("stat -c '%n %a %U:%G' /etc/waypoint /etc/waypoint/*.toml /etc/waypoint/credentials /etc/waypoint/credentials/* /run/waypoint /run/waypoint/*"), strings.Join([]string{
			"/etc/waypoint 755 root:root",
			"/etc/waypoint/runner.toml 640 root:waypoint-runner",
			"/etc/waypoint/server.toml 640 root:waypoint-server",
			"/etc/waypoint/credentials 700 root:root",
			"/etc/waypoint/credentials/runner 700 root:root",
			"/etc/waypoint/credentials/server 700 root:root",
			"/run/waypoint 755 root:root",
			"/run/waypoint/runner.sock 660 root:waypoint-runner",
			"/run/waypoint/waypoint.sock 660 root:waypoint",
		}, "\n"))

		l.firstJob(p.old)
		l.documented()
		l.billed(p.old)
		id := l.runners()[0].ID

		// What an administrator has changed.
		l.sh(`echo '# mine' >>/etc/waypoint/server.toml; echo '# mine' >>/etc/waypoint/runner.toml; echo secret >/etc/waypoint/credentials/runner/other; chmod 600 /etc/waypoint/credentials/runner/other`)
		kept := "stat -c '%n %a %U:%G' /etc/waypoint/*.toml /etc/waypoint/credentials/runner/other /var/lib/waypoint* && cat /etc/waypoint/*.toml /etc/waypoint/credentials/runner/other"
		before, jobs := l.sh(kept), l.waypoint("job", "list", "--json")
		server, agent := l.property("waypoint-server", "MainPID"), l.property("waypoint-runner", "MainPID")

		// As a package has left it whose operators could read it, and a tool that replaces files.
		l.sh("chgrp waypoint /etc/waypoint/server.toml; cp /etc/waypoint/runner.toml /tmp/replaced; mv /tmp/replaced /etc/waypoint/runner.toml; chmod 644 /etc/waypoint/runner.toml")
		l.install(p.new.deb)
		if l.property("waypoint-server", "MainPID") == server || l.property("waypoint-runner", "MainPID") == agent {
			l.t.Error("the upgrade left the old server or the old agent running")
		}
		contains(l, "the server after the upgrade", l.waypoint("server", "status"), p.new.number)
		equal(l, "configuration, state and credentials after the upgrade", l.sh(kept), before)
		equal(l, "jobs after the upgrade", l.waypoint("job", "list", "--json"), jobs)
		l.awaitRunner("itself and of the new version", func(r remote) bool { return ready(r) && r.ID == id && r.is(p.new) })
		equal(l, "a job after the upgrade", l.waypoint("run", "--no-local", "--", "echo", "again"), "again")

		l.run("dpkg", "--remove", "waypoint")
		equal(l, "units after the removal", l.active("waypoint-server.socket", "waypoint-server-runner.socket", "waypoint-server.service", "waypoint-runner.service", "waypoint-jobs.service"),
			"inactive inactive inactive inactive inactive")
		equal(l, "configuration, state and credentials after the removal", l.sh(kept), before)
		equal(l, "processes after the removal", l.try("pgrep", "--list-full", "waypoint").stdout, "")

		l.install(p.new.deb)
		l.run("systemctl", "start", "waypoint-runner")
		l.awaitRunner("the same, adopted as before", func(r remote) bool { return ready(r) && r.ID == id && r.State == "adopted" })
		equal(l, "a job after the second installation", l.waypoint("run", "--no-local", "--", "echo", "back"), "back")

		l.run("dpkg", "--purge", "waypoint")
		equal(l, "what a purge leaves", l.left(), "")
		equal(l, "failed units", l.run("systemctl", "--failed", "--no-legend"), "")
		equal(l, "units that systemd still knows", l.run("systemctl", "list-units", "--all", "--no-legend", "waypoint*"), "")
	})
}

// firstJob is a host's way from the installation to its first job.
func (l *lab) firstJob(v version) {
	l.t.Helper()
	contains(l, "the first call", l.waypoint("server", "status"), v.number)
	equal(l, "the server after the first call", l.active("waypoint-server.service"), "active")
	l.adopted()
	equal(l, "supervisor and slice", l.active("waypoint-jobs.service", "waypoint-jobs.slice"), "active active")

	equal(l, "who a job is", l.waypoint("run", "--no-local", "--", "id", "-un"), "waypoint-job")
	own, parent := l.waypoint("run", "--no-local", "--", "cat", "/proc/self/cgroup"), l.property("waypoint-jobs.service", "ControlGroup")
	contains(l, "a job's cgroup", own, "/waypoint-jobs.slice/waypoint-jobs.service/")
	other := l.waypoint("run", "--no-local", "--", "cat", "/proc/self/cgroup")
	if own == other || !strings.HasPrefix(parent, "/waypoint.slice/waypoint-jobs.slice/") && !strings.HasPrefix(parent, "/waypoint-jobs.slice/") && !strings.Contains(parent, "waypoint-jobs.slice") {
		l.t.Errorf("two jobs are in the cgroups %q and %q of %q", own, other, parent)
	}
	for _, secret := range []string{"/var/lib/waypoint-runner", "/var/lib/waypoint", "/etc/waypoint/runner.toml", "/etc/waypoint/credentials"} {
		r := l.try("waypoint", "run", "--no-local", "--", "cat", secret)
		if r.code == 0 || !strings.Contains(r.stderr, "Permission denied") {
			l.t.Errorf("a job that reads %s: exit code %d: %s", secret, r.code, r.stderr)
		}
	}
	for capability, set := range l.capabilities() {
		if n, err := strconv.ParseUint(set, 16, 64); err != nil || n != 0 && capability != "CapBnd" {
			l.t.Errorf("a job has capabilities: %s %s", capability, set)
		}
	}
}

// capabilities are those that a job has, by the name of their set.
func (l *lab) capabilities() map[string]string {
	l.t.Helper()
	all := map[string]string{}
	for line := range strings.Lines(l.waypoint("run", "--no-local", "--", "grep", "^Cap", "/proc/self/status")) {
		name, set, _ := strings.Cut(line, ":")
		all[name] = strings.TrimSpace(set)
	}
	if len(all) != 5 {
		l.t.Errorf("a job sees these sets of capabilities: %v", all)
	}
	return all
}

// billed asks for the bill of materials, which has to be that of the program beside it.
func (l *lab) billed(v version) {
	l.t.Helper()
	bom := decode[struct {
		BOMFormat string
		Metadata  struct {
			Component struct {
				Version string
				Hashes  []struct{ Content string }
			}
		}
		Components []struct{ Name string }
	}](l, "cat", "/usr/share/doc/waypoint/waypoint.cdx.json")
	sum, _, _ := strings.Cut(l.run("sha256sum", "/usr/bin/waypoint"), " ")
	c := bom.Metadata.Component
	if bom.BOMFormat != "CycloneDX" || c.Version != v.number || len(c.Hashes) != 1 || c.Hashes[0].Content != sum || len(bom.Components) == 0 {
		l.t.Errorf("the bill of materials of %s with the hash %s says: %+v", v.number, sum, bom)
	}
}

// documented asks for what an administrator looks up.
func (l *lab) documented() {
	l.t.Helper()
	for _, page := range []string{"waypoint", "waypoint-run", "waypoint-runner-adopt", "waypoint-server-run"} {
		l.run("man", "-w", page)
	}
	l.run("bash", "-euc", `. /usr/share/bash-completion/bash_completion; _comp_load waypoint 2>/dev/null || __load_completion waypoint || . /usr/share/bash-completion/completions/waypoint; complete -p waypoint`)
	l.run("test", "-s", "/usr/share/zsh/vendor-completions/_waypoint")
	l.run("test", "-s", "/usr/share/fish/vendor_completions.d/waypoint.fish")

	verify := l.try(append([]string{"systemd-analyze", "verify"}, verifiable(l.units())...)...)
	equal(l, "systemd-analyze verify", fmt.Sprintf("%d %s%s", verify.code, verify.stdout, verify.stderr), "0 ")
	exposure := l.run("systemd-analyze", "security", "--no-pager", "waypoint-server.service")
	_, level, _ := strings.Cut(exposure, "waypoint-server.service: ")
	level, _, _ = strings.Cut(level, " ")
	if n, err := strconv.ParseFloat(level, 64); err != nil || n > 1.3 {
		l.t.Errorf("the server's exposure is %q, and not at most 1.3", level)
	}
}
