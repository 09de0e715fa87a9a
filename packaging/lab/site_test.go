package lab

import (
	"fmt"
	"path/filepath"
	"strings"
	"time"
)

// install installs a deb as `dpkg -i` does for an administrator who keeps what
// he has edited.
func (l *lab) install(deb string) {
	l.t.Helper()
	l.run("dpkg", "--install", "--force-confdef", "--force-confold", l.push(deb)[0])
}

// waypoint runs a command of the program that has to succeed.
func (l *lab) waypoint(args ...string) string {
	l.t.Helper()
	return l.run(append([]string{"waypoint"}, args...)...)
}

// remote is what `runner list` says of a runner.
type remote struct {
	ID, State, Kind, Problem string
	Online                   bool
	Version, Isolation       string
	RunningJobs              int `json:"running_jobs"`
}

// runners are those that have come to the server.
func (l *lab) runners() []remote {
	l.t.Helper()
	return decode[[]remote](l, "waypoint", "runner", "list", "--json")
}

// runner is one of those, or the zero value.
func (l *lab) runner(id string) remote {
	l.t.Helper()
	for _, r := range l.runners() {
		if r.ID == id {
			return r
		}
	}
	return remote{}
}

// awaitRunner returns the only runner once it is as wanted.
func (l *lab) awaitRunner(what string, wanted func(r remote) bool) remote {
	l.t.Helper()
	var found remote
	l.await("a runner that is "+what, func() bool {
		for _, r := range l.runners() {
			if wanted(r) {
				found = r
				return true
			}
		}
		return false
	})
	return found
}

// is tells whether the runner is of a version of the package.
func (r remote) is(v version) bool { return strings.HasSuffix(r.Version, " "+v.number) }

func ready(r remote) bool {
	return r.Online && r.Problem == "" && (r.State == "adopted" || r.State == "preadopted")
}

// adopted starts the packaged runner and adopts it; it returns its id.
func (l *lab) adopted() string {
	l.t.Helper()
	l.run("systemctl", "start", "waypoint-runner")
	r := l.awaitRunner("pending", func(r remote) bool { return r.State == "pending" && r.Online })
	equal(l, "the answer to adopt", l.waypoint("runner", "adopt", r.ID), fmt.Sprintf("Runner %q adopted.", r.ID))
	return l.awaitRunner("adopted and ready", ready).ID
}

// job is a job's record.
type job struct {
	ID, State, Reason, Error string
	ExitCode                 *int   `json:"exit_code"`
	RunnerID                 string `json:"runner_id"`
	Attempt                  int
	LogBytes                 int64 `json:"log_bytes"`

	QueuedAt   time.Time `json:"queued_at"`
	StartedAt  time.Time `json:"started_at"`
	FinishedAt time.Time `json:"finished_at"`
	Usage      struct {
		CPUSeconds float64 `json:"cpu_seconds"`
		MaxRSS     int64   `json:"max_rss_bytes"`
	}
}

func (j job) String() string {
	code := "none"
	if j.ExitCode != nil {
		code = fmt.Sprint(*j.ExitCode)
	}
	return fmt.Sprintf("%s %s code=%s attempt=%d %s", j.State, j.Reason, code, j.Attempt, j.Error)
}

func (l *lab) job(id string) job {
	l.t.Helper()
	return decode[job](l, "waypoint", "job", "inspect", "--json", id)
}

// submit queues a shell script and returns the job's id.
func (l *lab) submit(script string, flags ...string) string {
	l.t.Helper()
	args := append([]string{"run", "--no-local", "--detach"}, flags...)
	return l.waypoint(append(args, "--", "sh", "-c", script)...)
}

// running queues a shell script and returns when it has said "begun".
func (l *lab) running(script string, flags ...string) string {
	l.t.Helper()
	id := l.submit("echo begun; "+script, flags...)
	l.await("job "+id+" runs", func() bool {
		return strings.Contains(l.output(id), "begun")
	})
	return id
}

// output is what a job has said by now.
func (l *lab) output(id string) string {
	l.t.Helper()
	return l.waypoint("job", "stream", "--no-follow", id)
}

// said is output of a job however it has ended.
func (l *lab) said(id string) string {
	l.t.Helper()
	r := l.try("waypoint", "job", "stream", "--no-follow", id)
	if lost := r.code == 125; r.code != 0 && !lost {
		l.t.Errorf("the output of job %s: exit code %d: %s", id, r.code, r.stderr)
	}
	return r.stdout
}

// ended returns a job's record when it has ended.
func (l *lab) ended(id string) job {
	l.t.Helper()
	l.try("waypoint", "job", "wait", id)
	return l.job(id)
}

// property is one of a unit's.
func (l *lab) property(unit, name string) string {
	l.t.Helper()
	return l.run("systemctl", "show", "--property", name, "--value", unit)
}

// active is the state of units, in one line.
func (l *lab) active(units ...string) string {
	return strings.Join(strings.Fields(l.try(append([]string{"systemctl", "is-active"}, units...)...).stdout), " ")
}

// enabled is whether units are, in one line.
func (l *lab) enabled(units ...string) string {
	return strings.Join(strings.Fields(l.try(append([]string{"systemctl", "is-enabled"}, units...)...).stdout), " ")
}

// awaitChange returns a property of a unit once it is another, and the unit up.
func (l *lab) awaitChange(unit, name, from string) string {
	l.t.Helper()
	var now string
	l.await(fmt.Sprintf("%s has another %s than %s", unit, name, from), func() bool {
		now = l.property(unit, name)
		return now != from && now != "0" && now != "" && l.active(unit) == "active"
	})
	return now
}

// left are files and processes whose name has something of the program's. The
// pages that man has formatted are man's own affair.
func (l *lab) left() string {
	l.t.Helper()
	files := l.sh(`find / -xdev \( -path /proc -o -path /sys -o -path /run -o -path /root -o -path /tmp -o -path /var/cache/man \) -prune -o -name '*waypoint*' -print; find /run -name '*waypoint*' -not -path '/run/systemd/*' -not -path '/run/log/*'`)
	processes := l.try("pgrep", "--list-full", "waypoint").stdout
	return strings.TrimSpace(files + "\n" + processes)
}

// units are the files of the package that systemd reads.
func (l *lab) units() []string {
	l.t.Helper()
	var all []string
	for f := range strings.Lines(l.sh("ls /usr/lib/systemd/system/waypoint*")) {
		all = append(all, strings.TrimSpace(f))
	}
	if len(all) < 8 {
		l.t.Fatalf("the package has only these units: %s", strings.Join(all, " "))
	}
	return all
}

// verifiable are units in the form that systemd-analyze takes: of a template
// an instance.
func verifiable(units []string) []string {
	var all []string
	for _, u := range units {
		all = append(all, strings.Replace(filepath.Base(u), "@.", "@a.", 1))
	}
	return all
}
