package lab

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// TestFullDisk fills the file systems of server and runner: the units stay up
// and are fed by their watchdogs' probes, jobs wait, and with room again all goes
// on by itself, also for a service that died meanwhile.
func TestFullDisk(t *testing.T) {
	units := []string{"waypoint-server", "waypoint-runner", "waypoint-jobs"}
	onNewest(t, func(l *lab, p packages) {
		l.install(p.new.deb)
		for _, unit := range units {
			l.dropIn(unit, "WatchdogSec=3s")
		}
		l.waypoint("server", "status")
		runner := l.adopted()
		job := l.running(counting)
		for _, full := range [][]string{{"/var/lib/waypoint"}, {"/var/lib/waypoint-jobs"}, {"/var/lib/waypoint", "/var/lib/waypoint-jobs"}} {
			l.fill(full...)
			if slices.Contains(full, "/var/lib/waypoint") {
				if r := l.try("waypoint", "run", "--no-local", "--detach", "--", "true"); r.code != 5 || !strings.Contains(r.stderr, "room") {
					l.t.Errorf("a new job without room: exit code %d: %s", r.code, r.stderr)
				}
			}
			l.fed(units...)
			l.room(full...)
			l.goesOn(runner, job, fmt.Sprint("room in ", full))
		}
		for _, unit := range units {
			equal(l, "restarts of "+unit, l.property(unit, "NRestarts"), "0")
		}
		for unit, dir := range map[string]string{"waypoint-server": "/var/lib/waypoint", "waypoint-runner": "/var/lib/waypoint-runner"} {
			l.fill(dir)
			l.run("systemctl", "kill", "--signal=KILL", "--kill-who=main", unit)
			l.await(unit+" is started", func() bool { return l.property(unit, "NRestarts") != "0" })
			l.room(dir)
			l.goesOn(runner, job, "a start of "+unit+" without room")
		}
		l.run("touch", "/tmp/enough")
		l.counted(job)
		equal(l, "failed units", l.run("systemctl", "--failed", "--no-legend"), "")
	}, func(l *lab) {
		l.disk(64, "/var/lib/waypoint")
		l.disk(64, "/var/lib/waypoint-runner", "/var/lib/waypoint-jobs")
	})
}

// fill leaves no room where directories are.
func (l *lab) fill(dirs ...string) {
	l.t.Helper()
	for _, dir := range dirs {
		l.sh("dd if=/dev/zero of=" + dir + "/fill bs=64k 2>/dev/null || dd if=/dev/zero of=" + dir + "/fill bs=1 oflag=append conv=notrunc 2>/dev/null || true")
	}
}

// room takes back what fill has done.
func (l *lab) room(dirs ...string) {
	l.t.Helper()
	for _, dir := range dirs {
		l.run("rm", dir+"/fill")
	}
}

// fed returns when each of the units has fed its watchdog for longer than that
// waits.
func (l *lab) fed(units ...string) {
	l.t.Helper()
	at := func(unit string) (usec int64) {
		fmt.Sscan(l.property(unit, "WatchdogTimestampMonotonic"), &usec)
		return usec
	}
	began, pids := map[string]int64{}, map[string]string{}
	for _, unit := range units {
		began[unit], pids[unit] = at(unit), l.property(unit, "MainPID")
	}
	for _, unit := range units {
		l.await(unit+" feeds its watchdog", func() bool { return at(unit) > began[unit]+5_000_000 })
		equal(l, "the process of "+unit, l.property(unit, "MainPID"), pids[unit])
	}
}

// goesOn returns when the job's output comes again, and another job has run.
func (l *lab) goesOn(runner, job, what string) {
	l.t.Helper()
	l.await("the runner is back after "+what, func() bool {
		r := l.try("waypoint", "runner", "inspect", runner)
		return r.code == 0
	})
	l.awaitRunner("ready after "+what, func(r remote) bool { return r.ID == runner && ready(r) })
	before := l.job(job).LogBytes
	l.await("output comes after "+what, func() bool { return l.job(job).LogBytes > before })
	var id string
	l.await("a job is taken after "+what, func() bool {
		r := l.try("waypoint", "run", "--no-local", "--detach", "--", "echo", "on")
		id = r.stdout
		return r.code == 0
	})
	equal(l, "its end", l.ended(id).State, "success")
}
