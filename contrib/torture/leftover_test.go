package torture

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// cgroupRoots are where a cgroup v2 tree is mounted.
func cgroupRoots() []string {
	mounts, _ := os.ReadFile("/proc/self/mounts")
	var roots []string
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 2 && f[2] == "cgroup2" {
			roots = append(roots, f[1])
		}
	}
	return roots
}

// cgroups are all there are, by path.
func cgroups(t testing.TB) map[string]bool {
	m := map[string]bool{}
	for _, root := range cgroupRoots() {
		filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				m[path] = true
			}
			return nil
		})
	}
	return m
}

// checkNothingLeft stops everything in good order and looks for what is left:
// jobs' processes while the supervisor lives, and then anything at all.
func (s *site) checkNothingLeft(ctx context.Context, cgroupsBefore map[string]bool) {
	t := s.t
	t.Helper()
	supervisors := s.supervisors()
	own := map[int]bool{s.server.pid(): true, s.agent.pid(): true}
	for _, pid := range supervisors {
		own[pid] = true
	}
	await(ctx, t, "the end of all processes of jobs", func() error {
		for _, p := range append(processesOf(s.dir), processesOf(program)...) {
			if !own[p.pid] {
				return fmt.Errorf("%s is left", p)
			}
		}
		return nil
	})
	await(ctx, t, "the removal of attempts' directories", func() error {
		entries, err := os.ReadDir(filepath.Join(s.agentState, "jobs"))
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
		if left := append(processesOf(s.dir), processesOf(program)...); len(left) > 0 {
			return fmt.Errorf("%v are left", left)
		}
		return nil
	})
	for path := range cgroups(t) {
		if !cgroupsBefore[path] && strings.Contains(path, "waypoint") {
			t.Errorf("cgroup %s is left", path)
		}
	}
}
