package executor

import (
	"bytes"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// closeOnExec marks all open files from number first on.
func closeOnExec(first int) {
	if unix.CloseRange(uint(first), 1<<32-1, unix.CLOSE_RANGE_CLOEXEC) == nil {
		return
	}
	// A kernel before 5.11: one by one.
	d, err := os.Open("/proc/self/fd")
	if err != nil {
		return
	}
	defer d.Close()
	names, _ := d.Readdirnames(-1)
	for _, n := range names {
		if fd, err := strconv.Atoi(n); err == nil && fd >= first {
			unix.CloseOnExec(fd)
		}
	}
}

// stat is what /proc/PID/stat says of a process.
type stat struct {
	pid, ppid int
	session   int
	dead      bool   // a zombie, none of its threads runs
	start     uint64 // clock ticks since boot: with the pid it names a process for good
}

// readStat reads one; ok is false where there is no such process (any more).
func readStat(pid int) (s stat, ok bool) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return stat{}, false
	}
	return parseStat(b)
}

// parseStat reads "pid (comm) state ppid pgrp session … starttime …"; comm may hold
// anything, brackets and blanks included.
func parseStat(b []byte) (s stat, ok bool) {
	open, end := bytes.IndexByte(b, '('), bytes.LastIndexByte(b, ')')
	if open < 1 || end < open {
		return stat{}, false
	}
	f := bytes.Fields(b[end+1:])
	if len(f) < 20 || len(f[0]) != 1 {
		return stat{}, false
	}
	var err [4]error
	// The first thread of a process can be a zombie while others run.
	s.dead = (f[0][0] == 'Z' || f[0][0] == 'X') && string(f[17]) == "1"
	s.pid, err[0] = strconv.Atoi(string(bytes.TrimSpace(b[:open])))
	s.ppid, err[1] = strconv.Atoi(string(f[1]))
	s.session, err[2] = strconv.Atoi(string(f[3]))
	s.start, err[3] = strconv.ParseUint(string(f[19]), 10, 64)
	for _, e := range err {
		if e != nil {
			return stat{}, false
		}
	}
	return s, true
}

// processes is every process there is.
func processes() []stat {
	d, err := os.Open("/proc")
	if err != nil {
		return nil
	}
	defer d.Close()
	names, _ := d.Readdirnames(-1)
	all := make([]stat, 0, len(names))
	for _, n := range names {
		if pid, err := strconv.Atoi(n); err == nil {
			if s, ok := readStat(pid); ok {
				all = append(all, s)
			}
		}
	}
	return all
}

// descendants are the live processes below root, without it and without
// zombies, whose children are somebody else's by then.
func descendants(root int) []stat {
	children := map[int][]stat{}
	for _, s := range processes() {
		children[s.ppid] = append(children[s.ppid], s)
	}
	var found []stat
	for todo := []int{root}; len(todo) > 0; todo = todo[1:] {
		for _, s := range children[todo[0]] {
			todo = append(todo, s.pid)
			if !s.dead {
				found = append(found, s)
			}
		}
	}
	return found
}

// signal sends sig to the process s if still says so of the process that
// has its number now. The pidfd is opened first, so that a process that takes
// the number in between is never hit.
func (s stat) signal(sig unix.Signal, still func() bool) error {
	fd, err := unix.PidfdOpen(s.pid, 0)
	switch err {
	case nil:
		defer unix.Close(fd)
		if !still() {
			return unix.ESRCH
		}
		return unix.PidfdSendSignal(fd, sig, nil, 0)
	case unix.ENOSYS, unix.EPERM:
		// A kernel before 5.3, or a filter: as near as can be had.
		if !still() {
			return unix.ESRCH
		}
		return unix.Kill(s.pid, sig)
	}
	return err
}

// alive reports whether the process is still the one s was read of.
func (s stat) alive() bool {
	now, ok := readStat(s.pid)
	return ok && now.start == s.start
}

// killBelow kills every process below root until there is none, or until the
// deadline; it returns how many were left.
func killBelow(root int, deadline time.Time) int {
	wait := time.Millisecond
	for {
		// Stopped first, or a process that forks fast enough would always
		// have a child that was not in the list.
		seen := map[stat]bool{}
		for {
			fresh := false
			for _, s := range descendants(root) {
				k := stat{pid: s.pid, start: s.start}
				if !seen[k] {
					seen[k], fresh = true, true
					s.signal(unix.SIGSTOP, s.alive)
				}
			}
			if !fresh {
				break
			}
		}
		left := descendants(root)
		for _, s := range left {
			s.signal(unix.SIGKILL, s.alive)
		}
		if len(left) == 0 || time.Now().After(deadline) {
			return len(left)
		}
		// The dying need a moment; there is no event for "none below".
		time.Sleep(wait)
		wait = min(2*wait, 100*time.Millisecond)
	}
}
