package lab

import (
	"fmt"
	"strings"
	"testing"
)

// TestMachine is of what takes a kernel of one's own. All of it is of one machine,
// whose boot takes longer than any part: make test-system RUN=TestMachine/trixie/clock
// is one part of it.
func TestMachine(t *testing.T) {
	onMachines(t, newest(), func(l *lab, p packages) {
		l.install(p.new.deb)
		l.sh("echo 'concurrency = 20' >>/etc/waypoint/runner.toml")
		l.dropIn("waypoint-jobs", "Environment=WAYPOINT_RUNNER_DRAIN_TIMEOUT=1s")
		l.adopted()
		l.run("systemctl", "enable", "waypoint-runner")
	}, func(l *lab) {
		l.run("systemctl", "start", "waypoint-server", "waypoint-runner") // takes longer than a call would wait
		l.awaitRunner("back", ready)
		l.part("limits", l.limits)
		if !l.t.Failed() {
			l.part("clock", l.clock)
		}
	})
}

// limits holds what takes all controllers: a job that takes too much memory ends
// for that reason, and alone; what jobs use is known; agent and server may run out
// of it; and the supervisor can be restarted while jobs live in cgroups below its own.
func (l *lab) limits() {
	group := l.property("waypoint-jobs", "ControlGroup")
	for _, controller := range []string{"memory", "pids", "cpu"} {
		contains(l, "controllers below the supervisor's cgroup", l.run("cat", "/sys/fs/cgroup"+group+"/cgroup.controllers"), controller)
	}

	modest := l.ended(l.submit("head -c 60M /dev/zero | tail >/dev/null"))
	equal(l, "a modest job", modest.State, "success")
	if rss := modest.Usage.MaxRSS; rss < 60<<20 || rss > 160<<20 {
		l.t.Errorf("a job that used 60 MiB is said to have used %d bytes", rss)
	}
	busy := l.ended(l.submit("i=0; while [ $i -lt 30000 ]; do i=$((i+1)); done"))
	if busy.Usage.CPUSeconds <= 0.05 {
		l.t.Errorf("a busy job is said to have used %v s of CPU time", busy.Usage.CPUSeconds)
	}

	agent, supervisor := l.property("waypoint-runner", "MainPID"), l.property("waypoint-jobs", "MainPID")
	l.run("systemctl", "set-property", "--runtime", "waypoint-jobs.slice", "MemoryMax=80M", "MemorySwapMax=0", "TasksMax=60")
	other := l.running("until [ -e /tmp/enough ]; do sleep 0.5; done; echo well")
	greedy := l.ended(l.submit("head -c 200M /dev/zero | tail >/dev/null"))
	equal(l, "a greedy job", fmt.Sprintf("%s %s", greedy.State, greedy.Reason), "error oom")
	many := l.ended(l.submit("i=0; while [ $i -lt 100 ]; do i=$((i+1)); sleep 1000 & done; wait"))
	equal(l, "a job of too many processes", many.State, "error")
	equal(l, "the agent and the supervisor after that", l.property("waypoint-runner", "MainPID")+" "+l.property("waypoint-jobs", "MainPID"), agent+" "+supervisor)
	l.run("touch", "/tmp/enough")
	equal(l, "a job that ran beside them", l.ended(other).State, "success")
	l.run("systemctl", "set-property", "--runtime", "waypoint-jobs.slice", "MemoryMax=infinity", "TasksMax=infinity")

	l.exhausted("waypoint-runner")
	if long() {
		l.exhausted("waypoint-server")
	}

	job := l.running("sleep 1000")
	l.run("systemctl", "restart", "waypoint-jobs")
	equal(l, "the supervisor after a restart with a job", l.active("waypoint-jobs"), "active")
	equal(l, "its result", l.property("waypoint-jobs", "Result"), "success")
	if j := l.ended(job); j.State == "success" {
		l.t.Errorf("a job whose supervisor was restarted: %s", j)
	}
	l.awaitRunner("ready", ready)
	equal(l, "a job after that", l.waypoint("run", "--no-local", "--", "echo", "on"), "on")
	// The same when the supervisor dies with a job alive.
	l.running("sleep 1000")
	pid := l.property("waypoint-jobs", "MainPID")
	l.run("kill", "-KILL", pid)
	l.awaitChange("waypoint-jobs", "MainPID", pid)
	equal(l, "a job after its death", l.waypoint("run", "--no-local", "--", "echo", "on"), "on")
}

// slowly is counting where a process is dear.
var slowly = strings.Replace(counting, "sleep 0.5", "sleep 3", 1)

// exhausted has the kernel end a unit for want of memory, more than once,
// while jobs run: they go on, and nothing of what they say is lost.
func (l *lab) exhausted(unit string) {
	l.t.Helper()
	// With 3 MiB it lives on for half a minute, reading its own program again and
	// again; with one it is ended as it is started.
	n, room := 5, "1M"
	if long() {
		n, room = 20, "3M"
	}
	l.run("rm", "/tmp/enough")
	var jobs []string
	for range n {
		jobs = append(jobs, l.submit(slowly))
	}
	l.awaitRunner("at work", func(r remote) bool { return r.RunningJobs == n })
	supervisor := l.property("waypoint-jobs", "MainPID")
	before := l.job(jobs[0]).LogBytes
	l.run("systemctl", "set-property", "--runtime", unit, "MemoryMax="+room, "MemorySwapMax=0")
	l.await(unit+" is ended and ended again", func() bool {
		return strings.Count(l.run("journalctl", "--output=cat", "--unit="+unit), "Failed with result 'oom-kill'") >= 2
	})
	l.run("systemctl", "set-property", "--runtime", unit, "MemoryMax=infinity")
	l.awaitRunner("back with its jobs after "+unit+" had no memory", func(r remote) bool { return ready(r) && r.RunningJobs == n })
	l.await("output comes after "+unit+" had no memory", func() bool { return l.job(jobs[0]).LogBytes > before })
	equal(l, "the supervisor after that", l.property("waypoint-jobs", "MainPID"), supervisor)
	l.run("touch", "/tmp/enough")
	for _, id := range jobs {
		l.counted(id)
	}
}
