package torture

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/waypointd/waypoint/mux/client"
	"github.com/waypointd/waypoint/mux/wire"
)

// findCgroup asks a job which cgroup it is in, and remembers the one that the
// supervisor has made for all of them; none where jobs are process groups.
func (s *site) findCgroup(ctx context.Context, c *client.Client) {
	s.t.Helper()
	job := submitOne(ctx, s.t, c, wire.JobSpec{
		Operation: wire.OpRun, Command: []string{"cat", "/proc/self/cgroup"}, Target: wire.Target{Any: true},
	})
	h := listen(ctx, c, wire.StreamRequest{ID: job.ID, Follow: true})
	if h.problem != nil || h.last.State != wire.Success {
		s.t.Fatalf("ask a job for its cgroup: %v, %+v", h.problem, h.last)
	}
	mounts, _ := os.ReadFile("/proc/self/mounts")
	for line := range strings.Lines(string(h.output[wire.Stdout])) {
		path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::")
		if !ok || !strings.Contains(path, job.ID) {
			continue
		}
		for mount := range strings.Lines(string(mounts)) {
			if f := strings.Fields(mount); len(f) > 2 && f[2] == "cgroup2" {
				s.cgroup = filepath.Join(f[1], filepath.Dir(path))
			}
		}
	}
}

// removeCgroups cleans up behind a supervisor that has been killed.
func (s *site) removeCgroups() {
	if s.cgroup == "" {
		return
	}
	entries, _ := os.ReadDir(s.cgroup)
	for _, e := range entries {
		if e.IsDir() {
			os.Remove(filepath.Join(s.cgroup, e.Name()))
		}
	}
	os.Remove(s.cgroup)
}

// processes are those of this site, and those of the program that are of none.
func (s *site) processes() []running {
	return append(processesOf(s.dir), slices.DeleteFunc(processesOf(program), func(p running) bool {
		return strings.Contains(p.marks, base+siteMark)
	})...)
}

// checkNothingLeft stops everything in good order and looks for what is left:
// jobs' processes while the supervisor lives, and then anything at all.
func (s *site) checkNothingLeft(ctx context.Context) {
	t := s.t
	t.Helper()
	supervisors := s.supervisors()
	own := map[int]bool{s.server.pid(): true, s.agent.pid(): true}
	for _, pid := range supervisors {
		own[pid] = true
	}
	await(ctx, t, "the end of all processes of jobs", func() error {
		for _, p := range s.processes() {
			if !own[p.pid] {
				return fmt.Errorf("%s is left", p)
			}
		}
		return nil
	})
	await(ctx, t, "the removal of attempts' directories", func() error {
		entries, err := os.ReadDir(filepath.Join(s.agentState, "jobs"))
		entries = slices.DeleteFunc(entries, func(e os.DirEntry) bool { return !e.IsDir() }) // the supervisor's own files
		for i, e := range entries {
			if !strings.HasPrefix(e.Name(), ".") { // a directory that is kept to be used again
				return fmt.Errorf("%s is left", e.Name())
			}
			if i >= 4*s.concurrency {
				return fmt.Errorf("%d directories are kept to be used again", len(entries))
			}
		}
		return err
	})
	if len(supervisors) != 1 {
		t.Errorf("there are %d supervisors, want one", len(supervisors))
	}
	if code := s.agent.stop(syscall.SIGTERM); code != 0 {
		t.Errorf("the agent's exit code is %d\n%s", code, tail(s.agent.log, 2000))
	}
	if code := s.server.stop(syscall.SIGTERM); code != 0 {
		t.Errorf("the server's exit code is %d\n%s", code, tail(s.server.log, 2000))
	}
	if _, err := os.Lstat(s.sock); err == nil {
		t.Errorf("the socket is left behind by a server that stopped in good order")
	}
	for _, pid := range s.supervisors() {
		syscall.Kill(pid, syscall.SIGTERM)
	}
	await(ctx, t, "the end of the supervisor", func() error {
		if left := s.processes(); len(left) > 0 {
			return fmt.Errorf("%v are left", left)
		}
		return nil
	})
	if s.cgroup == "" {
		t.Log("jobs are process groups here: their shims, which were looked for, are all that there could be")
	} else if _, err := os.Lstat(s.cgroup); err == nil {
		t.Errorf("cgroup %s is left", s.cgroup)
	}
}

// TestProcesses holds that a job's processes are of the site whose job it is, and
// not of another one, its shim among them.
func TestProcesses(t *testing.T) {
	ctx := bounded(t, time.Minute)
	own, other := newSite(t), newSite(t)
	own.open(ctx)
	other.open(ctx)
	before := map[*site]int{own: len(own.processes()), other: len(other.processes())}
	c := own.client(ctx)
	job := submitOne(ctx, t, c, wire.JobSpec{Operation: wire.OpRun, Command: []string{"sleep", "600"}, Target: wire.Target{Any: true}})
	await(ctx, t, "its start", func() error {
		j, err := c.Job(ctx, job.ID)
		if err == nil && j.State != wire.Running {
			err = fmt.Errorf("it is %s", j.State)
		}
		return err
	})
	if n, m := own.runningJobs(), other.runningJobs(); n != 1 || m != 0 {
		t.Errorf("of a job that runs, its site counts %d and another one %d", n, m)
	}
	if now := own.processes(); len(now) <= before[own] {
		t.Errorf("with a job, the processes of its site are %v", now)
	}
	if now := other.processes(); len(now) != before[other] {
		t.Errorf("with a job elsewhere, the processes of a site are %v", now)
	}
}
