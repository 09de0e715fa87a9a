package lab

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
)

// counting is a job that says numbered lines until it is told that it is enough.
const counting = `i=0; until [ -e /tmp/enough ]; do i=$((i+1)); echo "line $i"; sleep 0.5; done; echo "end $i"`

// counted fails the test unless a job succeeded at its first attempt and all of
// its lines are there, each once.
func (l *lab) counted(id string) {
	l.t.Helper()
	j := l.ended(id)
	if j.State != "success" || j.Attempt != 1 {
		l.t.Errorf("job %s: %s", id, j)
	}
	var lines []string
	for line := range strings.Lines(l.output(id)) {
		if line = strings.TrimSpace(line); line != "begun" {
			lines = append(lines, line)
		}
	}
	for i, line := range lines {
		want := "line " + strconv.Itoa(i+1)
		if i == len(lines)-1 {
			want = "end " + strconv.Itoa(i)
		}
		if line != want {
			l.t.Errorf("job %s: line %d of %d is %q, and not %q", id, i+1, len(lines), line, want)
			return
		}
	}
	if len(lines) < 2 {
		l.t.Errorf("job %s: it said only %q", id, lines)
	}
}

// numberedLines fails the test unless lines are those of counting, each once.
func (l *lab) numberedLines(what, text string) {
	l.t.Helper()
	lines := strings.Split(text, "\n")
	for i, line := range lines {
		want := "line " + strconv.Itoa(i+1)
		if i == len(lines)-1 {
			want = "end " + strconv.Itoa(i)
		}
		if line != want {
			l.t.Errorf("%s: line %d of %d is %q, and not %q", what, i+1, len(lines), line, want)
			return
		}
	}
}

// shop is a project whose build counts, and makes what its source says.
const shop = `project = "shop"
[[app]]
name = "web"
  [app.build]
  script = """
  ` + counting + `
  mkdir out
  tr a-z A-Z <source >out/made
  """
  output = ["out/"]
`

// TestUpgrade lets the agent come and go in every way while 49 jobs and a build
// run: they go on under the same supervisor, and nothing of what they say is
// lost, nor what somebody reads who is attached to one. After the upgrade the
// supervisor renews itself when no job runs any more.
func TestUpgrade(t *testing.T) {
	onEach(t, func(l *lab, p packages) {
		l.install(p.old.deb)
		l.sh("echo 'concurrency = 60' >>/etc/waypoint/runner.toml")
		l.waypoint("server", "status")
		runner := l.adopted()
		var jobs []string
		for range 49 {
			jobs = append(jobs, l.submit(counting))
		}
		l.run("mkdir", "/root/shop")
		l.write("/root/shop/waypoint.toml", shop, 0o644)
		l.write("/root/shop/source", "wares", 0o644)
		build := l.begin("sh", "-c", "cd /root/shop && exec waypoint build --no-local")
		l.await("50 jobs run", func() bool { return l.runners()[0].RunningJobs == 50 })
		supervisor := l.property("waypoint-jobs", "MainPID")

		for _, how := range []struct {
			name string
			unit string // of which there is another process then
			do   func()
		}{
			{"restart", "waypoint-runner", func() { l.run("systemctl", "restart", "waypoint-runner") }},
			{"kill -9", "waypoint-runner", func() { l.run("systemctl", "kill", "--signal=KILL", "--kill-who=main", "waypoint-runner") }},
			{"restart of the server", "waypoint-server", func() { l.run("systemctl", "restart", "waypoint-server") }},
			{"kill -9 of the server", "waypoint-server", func() { l.run("systemctl", "kill", "--signal=KILL", "--kill-who=main", "waypoint-server") }},
			{"restart of both", "waypoint-runner", func() { l.run("systemctl", "restart", "waypoint-server", "waypoint-runner") }},
			{"kill -9 of both", "waypoint-runner", func() {
				l.run("systemctl", "kill", "--signal=KILL", "--kill-who=main", "waypoint-server", "waypoint-runner")
			}},
			{"upgrade", "waypoint-runner", func() {
				// As the README has it: what the package needs is there, so nothing is asked of a network.
				l.run("apt-get", "install", "--yes", l.push(p.new.deb)[0])
			}},
			{"installation of the same", "waypoint-runner", func() { l.install(p.new.deb) }},
		} {
			pid, before := l.property(how.unit, "MainPID"), l.job(jobs[0]).LogBytes
			how.do()
			l.awaitChange(how.unit, "MainPID", pid)
			l.awaitRunner("back with its jobs after "+how.name, func(r remote) bool { return r.ID == runner && ready(r) && r.RunningJobs == 50 })
			l.await("output comes after "+how.name, func() bool { return l.job(jobs[0]).LogBytes > before })
			equal(l, "the supervisor after "+how.name, l.property("waypoint-jobs", "MainPID"), supervisor)
		}
		l.run("touch", "/tmp/enough")
		for _, id := range jobs {
			l.counted(id)
		}
		built := build.wait()
		equal(l, "the exit code of the build: "+built.stderr, built.code, 0)
		l.numberedLines("the build", built.stdout)
		artifacts := decode[[]struct {
			App string
			ID  string `json:"id"`
		}](l, "waypoint", "--project", "shop", "artifact", "list", "--json")
		if len(artifacts) != 1 || artifacts[0].App != "web" {
			l.t.Errorf("the build's artifacts: %+v", artifacts)
		}
		l.awaitChange("waypoint-jobs", "MainPID", supervisor)
		l.awaitRunner("of the new version", func(r remote) bool { return r.is(p.new) && ready(r) })
		equal(l, "a job under the new supervisor", l.waypoint("run", "--no-local", "--", "echo", "on"), "on")
		equal(l, "failed units", l.run("systemctl", "--failed", "--no-legend"), "")
	})
}

// TestStop: who stops the runner stops its jobs, after a while in which they
// may end, and the server hears how each has ended.
func TestStop(t *testing.T) {
	onEach(t, func(l *lab, p packages) {
		l.install(p.new.deb)
		l.waypoint("server", "status")
		runner := l.adopted()

		short := l.running("until [ -e /tmp/enough ]; do sleep 0.1; done; echo well")
		stop := l.begin("systemctl", "stop", "waypoint-runner")
		l.await("the jobs' service is being stopped", func() bool { return l.active("waypoint-jobs") == "deactivating" })
		late := l.submit("echo late")
		type why struct{ Code, Sentence string }
		var waits why
		l.await("a job that came during the stop says what it waits for", func() bool {
			waits = decode[why](l, "waypoint", "job", "why", "--json", late)
			return waits.Code == "runners_draining"
		})
		contains(l, "what it waits for", waits.Sentence, runner)
		l.run("touch", "/tmp/enough")
		if r := stop.wait(); r.code != 0 {
			l.t.Errorf("stop with a short job: exit code %d: %s", r.code, r.stderr)
		}
		j := l.ended(short)
		if j.State != "success" || !strings.Contains(l.output(short), "well") {
			l.t.Errorf("the short job: %s: %s", j, l.output(short))
		}
		equal(l, "units after the stop", l.active("waypoint-runner", "waypoint-jobs"), "inactive inactive")
		equal(l, "a job that came during the stop", l.job(late).State, "queued")

		// With less patience, and with a job that heeds nothing.
		l.dropIn("waypoint-jobs", "Environment=WAYPOINT_RUNNER_DRAIN_TIMEOUT=2s")
		l.run("systemctl", "start", "waypoint-runner")
		equal(l, "the job that came during the stop", l.ended(late).State, "success")
		l.awaitRunner("back", func(r remote) bool { return r.ID == runner && ready(r) })
		long := l.running(`trap 'echo asked' TERM; (trap '' TERM; exec setsid sleep 1000) & while :; do sleep 0.1; done`)
		if r := l.try("systemctl", "stop", "waypoint-runner"); r.code != 0 {
			l.t.Errorf("stop with a long job: exit code %d: %s", r.code, r.stderr)
		}
		j = l.job(long)
		if j.State != "error" || j.Reason != "runner_lost" || !strings.Contains(j.Error, "stopped on its host") {
			l.t.Errorf("the long job: %s", j)
		}
		contains(l, "the long job was asked to end", l.said(long), "asked")
		equal(l, "processes of jobs", l.try("pgrep", "--list-full", "-u", "waypoint-job").stdout, "")
		equal(l, "processes of the runner", l.try("pgrep", "--list-full", "-u", "waypoint-runner").stdout, "")

		// At any moment of a start.
		for n := range 12 {
			l.sh(fmt.Sprintf("systemctl start --no-block waypoint-runner; sleep 0.%03d; systemctl stop waypoint-runner", 4*n))
			equal(l, "the runner that was stopped as it started", l.active("waypoint-runner"), "inactive")
		}
		equal(l, "failed units", l.run("systemctl", "--failed", "--no-legend"), "")
	})
}

// TestRestartBoth restarts agent and supervisor in one breath: the supervisor lets
// its jobs end first, and the server hears of each as it ends.
func TestRestartBoth(t *testing.T) {
	onEach(t, func(l *lab, p packages) {
		l.install(p.new.deb)
		l.waypoint("server", "status")
		runner := l.adopted()
		first := l.running("until [ -e /tmp/first ]; do sleep 0.1; done")
		second := l.running("until [ -e /tmp/second ]; do sleep 0.1; done")
		restart := l.begin("systemctl", "restart", "waypoint-runner", "waypoint-jobs")
		l.await("the jobs' service is being stopped", func() bool { return l.active("waypoint-jobs") == "deactivating" })
		l.run("touch", "/tmp/first")
		l.await("the server knows of the first end", func() bool { return l.job(first).State == "success" })
		equal(l, "the jobs' service meanwhile", l.active("waypoint-jobs"), "deactivating")
		l.run("touch", "/tmp/second")
		if r := restart.wait(); r.code != 0 {
			l.t.Errorf("restart: exit code %d: %s", r.code, r.stderr)
		}
		equal(l, "the second job", l.ended(second).State, "success")
		l.awaitRunner("back", func(r remote) bool { return r.ID == runner && ready(r) })
		equal(l, "a job after that", l.waypoint("run", "--no-local", "--", "echo", "on"), "on")
		equal(l, "failed units", l.run("systemctl", "--failed", "--no-legend"), "")
	})
}

// TestInstances runs two runners of the template on one host.
func TestInstances(t *testing.T) {
	onEach(t, func(l *lab, p packages) {
		l.install(p.new.deb)
		l.waypoint("server", "status")
		for _, name := range []string{"a", "b"} {
			l.sh(fmt.Sprintf("sed 's/^#*id *=.*//' /etc/waypoint/runner.toml >/etc/waypoint/runner-%[1]s.toml; echo 'id = \"host-%[1]s\"' | cat - /etc/waypoint/runner-%[1]s.toml >/tmp/x; cat /tmp/x >/etc/waypoint/runner-%[1]s.toml; chgrp waypoint-runner /etc/waypoint/runner-%[1]s.toml; chmod 640 /etc/waypoint/runner-%[1]s.toml", name))
			l.run("systemctl", "enable", "--now", "waypoint-runner@"+name)
			l.awaitRunner("pending "+name, func(r remote) bool { return r.ID == "host-"+name && r.State == "pending" && r.Online })
			l.waypoint("runner", "adopt", "host-"+name)
			l.awaitRunner("ready "+name, func(r remote) bool { return r.ID == "host-"+name && ready(r) })
		}
		equal(l, "the one runner that no instance is", l.active("waypoint-runner", "waypoint-jobs"), "inactive inactive")
		for _, name := range []string{"a", "b"} {
			got := l.waypoint("run", "--runner", "host-"+name, "--", "cat", "/proc/self/cgroup")
			contains(l, "the cgroup of a job of "+name, got, "waypoint-jobs@"+name+".service")
		}
		job := l.running(counting, "--runner", "host-b")
		l.run("systemctl", "stop", "waypoint-runner@a")
		equal(l, "the other instance", l.active("waypoint-runner@a", "waypoint-jobs@a", "waypoint-runner@b", "waypoint-jobs@b"), "inactive inactive active active")
		l.run("touch", "/tmp/enough")
		l.counted(job)
		l.run("dpkg", "--purge", "waypoint")
		equal(l, "what a purge leaves", l.left(), "")
	})
}

// TestReboot: a runner comes back by itself, adopted. What ran when the power
// was cut is lost, and the server says so as soon as the runner is back; what
// ran at a shutdown was ended and reported.
func TestReboot(t *testing.T) {
	onEach(t, func(l *lab, p packages) {
		l.install(p.new.deb)
		l.waypoint("server", "status")
		l.dropIn("waypoint-jobs", "Environment=WAYPOINT_RUNNER_DRAIN_TIMEOUT=1s")
		runner := l.adopted()
		l.run("systemctl", "enable", "waypoint-runner")

		job := l.running("echo said; sleep 1000")
		l.await("it has said all that it will", func() bool { return strings.Contains(l.output(job), "said") })
		l.powerOff()
		l.start()
		l.awaitRunner("back and adopted after a shutdown", func(r remote) bool { return r.ID == runner && ready(r) && r.State == "adopted" })
		// Its end was said before the host went down, and by the runner.
		if j := l.job(job); j.State != "error" || j.Reason != "runner_lost" || !strings.Contains(j.Error, "stopped on its host") {
			l.t.Errorf("a job that ran at the shutdown: %s", j)
		}
		equal(l, "the output of a job that ran at the shutdown", l.said(job), "begun\nsaid")

		job = l.running("echo said; sleep 1000")
		l.await("it has said all that it will", func() bool { return strings.Contains(l.output(job), "said") })
		l.kill()
		l.start()
		l.awaitRunner("back and adopted after a power cut", func(r remote) bool { return r.ID == runner && ready(r) && r.State == "adopted" })
		// The lease is 2 minutes: it is the runner that says what it does not have.
		l.await("the job is lost", func() bool { return l.job(job).State == "error" })
		equal(l, "a job that ran when the power was cut", l.job(job).Reason, "runner_lost")
		equal(l, "the output of a job that ran when the power was cut", l.said(job), "begun\nsaid")
		equal(l, "a job after that", l.waypoint("run", "--no-local", "--", "echo", "on"), "on")
	})
}
