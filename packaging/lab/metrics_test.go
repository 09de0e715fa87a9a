package lab

import (
	"strings"
	"testing"
)

// scraped is what somebody is told who asks over HTTP, and whether it is well.
func (l *lab) scraped(path string) (body string, ok bool) {
	l.t.Helper()
	r := l.try("bash", "-euc", `exec 3<>/dev/tcp/127.0.0.1/9702; printf 'GET %s HTTP/1.0\r\n\r\n' "$0" >&3; cat <&3`, path)
	head, body, _ := strings.Cut(r.stdout, "\r\n\r\n")
	status, _, _ := strings.Cut(head, "\r\n")
	return body, r.code == 0 && strings.HasSuffix(status, " 200 OK")
}

// socketed is scraped for who asks on the socket that the manual names.
func (l *lab) socketed(user, path string) (body string, ok bool) {
	l.t.Helper()
	r := l.as(user, "perl", "-MIO::Socket::UNIX", "-e", `
		my $s = IO::Socket::UNIX->new("/run/waypoint-server/metrics.sock") or die "$!\n";
		print $s "GET $ARGV[0] HTTP/1.0\r\n\r\n"; $s->flush; print while <$s>`, path)
	head, body, _ := strings.Cut(r.stdout, "\r\n\r\n")
	status, _, _ := strings.Cut(head, "\r\n")
	return body + r.stderr, r.code == 0 && strings.HasSuffix(status, " 200 OK")
}

// value is a series' in a page of metrics, "" where it has none.
func value(page, series string) string {
	for line := range strings.Lines(page) {
		if v, ok := strings.CutPrefix(line, series+" "); ok {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

// TestMetrics asks the packaged server for its metrics, in its sandbox: switched on in
// its file, and then in a unit's drop-in, as the manual has it. Full, it is well and says
// what is the matter.
func TestMetrics(t *testing.T) {
	onNewest(t, func(l *lab, p packages) {
		l.install(p.new.deb)
		l.waypoint("server", "status")
		if page, _ := l.scraped("/metrics"); page != "" {
			l.t.Errorf("there are metrics before they were asked for:\n%s", page)
		}
		l.sh(`echo 'metrics_listen = "127.0.0.1:9702"' >>/etc/waypoint/server.toml`)
		l.run("systemctl", "restart", "waypoint-server")
		l.adopted()
		equal(l, "a job", l.waypoint("run", "--no-local", "--", "echo", "on"), "on")
		l.await("a job and its runner are counted", func() bool {
			page, ok := l.scraped("/metrics")
			return ok && value(page, `waypoint_jobs_ended_total{operation="run",reason="",state="success"}`) == "1" && strings.Contains(page, "\nwaypoint_runners{")
		})
		// The numbers of a process are of files that the sandbox might have closed.
		page, _ := l.scraped("/metrics")
		for _, series := range []string{"process_open_fds", "process_resident_memory_bytes", "process_cpu_seconds_total"} {
			if value(page, series) == "" {
				l.t.Errorf("the server does not know its %s:\n%s", series, page)
			}
		}
		health, ok := l.scraped("/healthz")
		if !ok {
			l.t.Errorf("the server is not well: %s", health)
		}

		// On a socket, for root alone unless more is said.
		l.run("sed", "-i", `s|^metrics_listen.*|metrics_listen = "unix:///run/waypoint-server/metrics.sock"|`, "/etc/waypoint/server.toml")
		l.run("systemctl", "restart", "waypoint-server")
		for _, c := range []struct{ mode, users, others string }{{"", "root", "daemon"}, {"0666", "root daemon", ""}} {
			if c.mode != "" {
				l.sh("echo 'socket_mode = \"" + c.mode + "\"' >>/etc/waypoint/server.toml")
				l.run("systemctl", "kill", "--signal=KILL", "--kill-who=main", "waypoint-server")
				l.waypoint("server", "status") // the next one, in spite of the socket that was left behind
			}
			for user := range strings.FieldsSeq(c.users) {
				if page, ok := l.socketed(user, "/metrics"); !ok || value(page, "process_open_fds") == "" {
					l.t.Errorf("%s asks on a socket with the mode %q:\n%s", user, c.mode, page)
				}
			}
			for user := range strings.FieldsSeq(c.others) {
				if page, ok := l.socketed(user, "/metrics"); ok || !strings.Contains(page, "Permission denied") {
					l.t.Errorf("%s asks on a socket with the mode %q:\n%s", user, c.mode, page)
				}
			}
		}
		l.sh(`sed -i '/^metrics_listen/d; /^socket_mode/d' /etc/waypoint/server.toml`)
		l.dropIn("waypoint-server", "ExecStart=", "ExecStart=/usr/bin/waypoint server run --metrics-listen 127.0.0.1:9702")
		l.run("systemctl", "restart", "waypoint-server")
		if health, ok := l.scraped("/healthz"); !ok {
			l.t.Errorf("the server with a flag is not well: %s", health)
		}
		l.fill("/var/lib/waypoint")
		l.await("the server is well on a full disk, and says so", func() bool {
			health, ok = l.scraped("/healthz")
			return ok && strings.Contains(health, "store")
		})
		if says := l.waypoint("server", "status"); !strings.Contains(says, "no new work is taken") && !strings.Contains(says, "full, ") {
			l.t.Errorf("server status on a full disk:\n%s", says)
		}
		l.room("/var/lib/waypoint")
		l.await("there is room again", func() bool {
			health, ok = l.scraped("/healthz")
			return ok && strings.TrimSpace(health) == "ok"
		})
		equal(l, "failed units", l.run("systemctl", "--failed", "--no-legend"), "")
	}, func(l *lab) { l.disk(64, "/var/lib/waypoint") })
}
