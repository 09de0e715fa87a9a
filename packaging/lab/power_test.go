package lab

import (
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// long tells whether the tests take the time that they have outside of a
// build: make test-system LONG=1.
func long() bool { return os.Getenv("LAB_LONG") != "" }

// load queues jobs of four kinds until it is killed. It writes down, where no cut
// of the lab's disks takes it, the id of each job that the server has accepted,
// and of each whose success somebody was told.
const load = `
	cd /root
	begin() { id=$(waypoint run --no-local --detach -- sh -c "$1") || return; echo "$id" >>accepted; }
	attached() {
		while :; do
			begin 'i=0; while [ $i -lt 200 ]; do i=$((i+1)); echo "line $i"; done; echo "end $i"' || continue
			waypoint job wait "$id" >/dev/null 2>&1 && echo "$id" >>succeeded
		done
	}
	attached & attached &
	while :; do
		begin 'i=0; while [ $i -lt 40 ]; do i=$((i+1)); echo "line $i"; sleep 0.05; done; echo "end $i"'
		begin 'head -c 3000000 /dev/zero >file; i=0; while [ $i -lt 4000 ]; do i=$((i+1)); echo "line $i"; done; echo "end $i"'
		begin 'echo well'
		n=$((n+1)); [ $((n % 8)) -ne 1 ] || begin 'i=0; until [ -e /tmp/enough ]; do i=$((i+1)); echo "line $i"; sleep 0.2; done; echo "end $i"'
	done`

// written are the lines of a file that load writes.
func (l *lab) written(name string) []string {
	return strings.Fields(l.try("cat", "/root/"+name).stdout)
}

// all are the server's jobs, by id.
func (l *lab) all() map[string]job {
	l.t.Helper()
	jobs := map[string]job{}
	for after := ""; ; {
		page := decode[[]job](l, "waypoint", "job", "list", "--json", "--limit", "500", "--after", after)
		for _, j := range page {
			jobs[j.ID] = j
			after = j.ID
		}
		if len(page) < 500 {
			return jobs
		}
	}
}

// TestPowerCut cuts the power of a host with server and runner, again and again,
// at moments that nothing is ready for. What the server has accepted it has, what
// it has called a success is one with all of its output, and what ran is
// lost as soon as the runner is back, with what it had said until some moment.
func TestPowerCut(t *testing.T) {
	cuts, latest := 2, 300*time.Millisecond
	if long() {
		cuts, latest = 25, 8*time.Second // the kernel begins to write by itself after five
	}
	onNewest(t, func(l *lab, p packages) {
		l.install(p.new.deb)
		l.sh("echo 'concurrency = 20' >>/etc/waypoint/runner.toml")
		l.waypoint("server", "status")
		runner, read, unheard := l.adopted(), map[string]bool{}, map[string]bool{}
		l.run("systemctl", "enable", "waypoint-runner")
		for n := range cuts {
			before := len(l.written("accepted"))
			calls := l.begin("sh", "-uc", load)
			enough := before + 5 + rand.IntN(60)
			l.await("jobs are accepted", func() bool { return len(l.written("accepted")) >= enough })
			<-time.After(rand.N(latest)) // any moment
			accepted, succeeded := len(l.written("accepted")), len(l.written("succeeded"))
			l.cut()
			calls.wait()
			l.start()
			// This host goes on for a moment when its disk is dead, and ext4 may call a sync
			// done whose transaction the cut has ended: what was told then, nobody had heard.
			for _, id := range slices.Concat(l.written("accepted")[accepted:], l.written("succeeded")[succeeded:]) {
				unheard[id] = true
			}
			l.awaitRunner("back and adopted after cut "+strconv.Itoa(n+1), func(r remote) bool { return r.ID == runner && ready(r) && r.State == "adopted" })
			l.recovered(time.Now(), read, unheard)
			if l.t.Failed() {
				return
			}
		}
	}, func(l *lab) { l.disk(600, state...) })
}

// recovered holds what load has written down against what there is after a cut
// of a runner that is back since then. Of whom it has read the output before it
// does not read it again. What was unheard may be as if nothing had been told.
func (l *lab) recovered(back time.Time, read, unheard map[string]bool) {
	l.t.Helper()
	l.run("touch", "/tmp/enough") // what was queued ends by itself
	accepted, succeeded := l.written("accepted"), map[string]bool{}
	for _, id := range l.written("succeeded") {
		succeeded[id] = true
	}
	var jobs map[string]job
	var lost time.Duration
	l.await("no job is left of the boot before", func() bool {
		jobs = l.all()
		active, queued := 0, 0
		for _, j := range jobs {
			switch j.State {
			case "running", "assigned":
				active++
			case "queued":
				queued++
			}
		}
		if lost == 0 && l.runners()[0].RunningJobs == active {
			lost = time.Since(back)
		}
		return active+queued == 0
	})
	l.t.Logf("%d jobs after a cut: none is with a runner that does not have it after %s, all have ended after %s",
		len(jobs), lost.Round(time.Millisecond), time.Since(back).Round(time.Millisecond))
	for _, id := range accepted {
		j, ok := jobs[id]
		switch {
		case !ok && unheard[id]:
		case !ok:
			l.t.Errorf("job %s was accepted, and there is none", id)
		case j.State != "success" && succeeded[id] && !unheard[id]:
			l.t.Errorf("job %s had succeeded, and is now %s", id, j)
		case j.State != "success" && j.Reason != "runner_lost":
			l.t.Errorf("job %s: %s", id, j)
		case read[id]:
		default:
			// Of a job that was lost there is what it had said until some moment.
			if whole := l.numbered(j); !whole && j.State == "success" {
				l.t.Errorf("job %s has succeeded, and not all of its %d bytes of output are there", id, j.LogBytes)
			}
			read[id] = true
		}
	}
	equal(l, "failed units", l.run("systemctl", "--failed", "--no-legend"), "")
	equal(l, "restarts of server, agent and supervisor", strings.Join([]string{l.property("waypoint-server", "NRestarts"), l.property("waypoint-runner", "NRestarts"), l.property("waypoint-jobs", "NRestarts")}, " "), "0 0 0")
	l.await("no attempt's directory is left", func() bool {
		return l.sh("find /var/lib/waypoint-jobs -mindepth 1 -maxdepth 1 -type d -not -name '.slot-*'") == ""
	})
	equal(l, "a job after a cut", l.waypoint("run", "--no-local", "--", "echo", "on"), "on")
}

// numbered fails the test unless the output of a job of load is the beginning of
// what it was to say, and reports whether it is all of that.
func (l *lab) numbered(j job) (whole bool) {
	l.t.Helper()
	out := l.said(j.ID)
	if unsaid := j.LogBytes - int64(len(out)); unsaid < 0 || unsaid > 1 { // the last line's end
		l.t.Errorf("job %s, %s: of its %d bytes of output %d are told", j.ID, j, j.LogBytes, len(out))
	}
	lines := strings.Split(out, "\n")
	for i, line := range lines {
		next, ends := "line "+strconv.Itoa(i+1), []string{"end " + strconv.Itoa(i)}
		if i == 0 {
			ends = append(ends, "well")
		}
		last := i == len(lines)-1
		begun := func(text string) bool { return strings.HasPrefix(text, line) }
		switch {
		case line == next:
		case last && slices.Contains(ends, line):
			return true
		case last && (begun(next) || slices.ContainsFunc(ends, begun)):
		default:
			l.t.Errorf("job %s, %s: line %d of %d is %q", j.ID, j, i+1, len(lines), line)
			return false
		}
	}
	return false
}
