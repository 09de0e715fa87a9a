package lab

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

const (
	day  = 24 * time.Hour
	year = 365 * day
)

// clock sets the clock of a host while jobs run, also while server or agent
// are not there. A job, its output and its lease know nothing of it; a runner whose
// token is from another time gets no jobs as long as it looks expired, and gets
// them again by itself.
func (l *lab) clock() {
	// Server and agent are hit by a jump alive and dead, or by all jumps in all ways.
	type jump struct {
		by   time.Duration
		down []string
	}
	jumps := []jump{
		{-time.Hour, []string{"waypoint-runner"}}, {day, []string{"waypoint-server"}},
	}
	if long() {
		jumps = nil
		for _, by := range []time.Duration{-time.Hour, time.Hour, day, -day, -day, day, 3 * year, -3 * year} {
			for _, down := range [][]string{nil, {"waypoint-server"}, {"waypoint-runner"}, {"waypoint-server", "waypoint-runner"}} {
				jumps = append(jumps, jump{by, down})
				if by == 3*year { // each way, so that the next is from the right time
					jumps = append(jumps, jump{-by, down})
				}
			}
		}
	}
	runner := l.runners()[0].ID
	l.run("rm", "-f", "/tmp/enough")
	job := l.running(slowly)
	l.run("systemd-run", "--unit=attached", "--property=RemainAfterExit=yes", "--property=StandardOutput=file:/root/attached", "--property=StandardError=journal", "waypoint", "run", "--no-local", "--", "sh", "-c", slowly)
	l.await("the attached job runs", func() bool { return l.runners()[0].RunningJobs == 2 })
	expires := l.submit("echo never", "--runner", "nobody", "--expires-in", "2h")
	ids := []string{job, expires}
	wrong := time.Duration(0)
	for _, j := range jumps {
		what := fmt.Sprintf("%s with %v down", j.by, j.down)
		before := l.job(job).LogBytes
		var kill strings.Builder
		for _, unit := range j.down {
			fmt.Fprintf(&kill, "systemctl kill --signal=KILL --kill-who=main %s; ", unit)
		}
		l.sh(fmt.Sprintf(`%s date --set=@$(($(date +%%s) + %d)) >/dev/null`, kill.String(), int64(j.by/time.Second)))
		wrong += j.by
		l.await("the runner is back with its jobs after "+what, func() bool {
			r := l.runners()
			return len(r) == 1 && r[0].ID == runner && r[0].Online && r[0].RunningJobs == 2
		})
		l.await("output comes after "+what, func() bool { return l.job(job).LogBytes > before })
		next := l.submit("echo on")
		if ids = append(ids, next); !slices.IsSorted(ids) {
			l.t.Errorf("after %s a job has the id %s, and those before it %v", what, next, ids)
		}
		if wrong > 30*day {
			l.await("its token has expired", func() bool { return l.runners()[0].Problem == "token_expired" })
			why, is := l.waypoint("job", "why", next), l.waypoint("runner", "inspect", runner)
			contains(l, "job why", why, "token")
			contains(l, "runner inspect", is, "expired")
			equal(l, "a job while the token looks expired", l.job(next).State, "queued")
			l.t.Logf("%s: %s", what, why)
			continue
		}
		// By itself: it asks again once a minute.
		l.await("a job runs after "+what, func() bool { return l.job(next).State == "success" })
		equal(l, "its output", l.output(next), "on")
		equal(l, "whether the runner gets jobs", l.runners()[0].Problem, "")
	}
	equal(l, "the job that expired in an hour of two", fmt.Sprint(l.job(expires).State, " ", l.job(expires).Reason), "error expired")
	l.run("touch", "/tmp/enough")
	l.counted(job)
	l.await("the attached command has ended", func() bool { return l.property("attached", "SubState") == "exited" })
	equal(l, "its exit code", l.property("attached", "ExecMainStatus"), "0")
	l.numberedLines("the attached command", l.run("cat", "/root/attached"))
	for _, j := range l.all() {
		if j.ID < job {
			continue // of before the clock was set
		}
		if !j.StartedAt.IsZero() && j.StartedAt.Before(j.QueuedAt) || j.FinishedAt.Before(j.StartedAt) || j.Attempt > 1 {
			l.t.Errorf("job %s: queued %s, started %s, finished %s, attempt %d", j.ID, j.QueuedAt, j.StartedAt, j.FinishedAt, j.Attempt)
		}
	}
	equal(l, "failed units", l.sh("systemctl --failed --plain --no-legend | grep waypoint- || true"), "")
}
