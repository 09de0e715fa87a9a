package executor

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// endLimit bounds how long the end of killed processes is waited for. Only a
// process in an uninterruptible sleep takes that long.
const endLimit = 30 * time.Second

func microseconds(n int64) time.Duration { return time.Duration(n) * time.Microsecond }

// populated reports whether a process lives in the cgroup or below it.
func (c cgroup) populated() bool {
	n, ok := c.value("cgroup.events", "populated")
	return ok && n != 0
}

// awaitEmpty waits until nothing lives in it, at most for d. The kernel says
// so by an event on the file; the bounded wait is for the case that it comes
// between reading and polling.
func (c cgroup) awaitEmpty(d time.Duration) bool {
	if !c.populated() {
		return true
	}
	f, err := os.Open(c.file("cgroup.events"))
	if err != nil {
		return errors.Is(err, fs.ErrNotExist)
	}
	defer f.Close()
	deadline := time.Now().Add(d)
	var b [256]byte
	for {
		// Reading arms the poll.
		n, err := f.ReadAt(b[:], 0)
		if n == 0 && err != nil {
			return true // removed
		}
		if v, _ := keyedValue(b[:n], "populated"); v == 0 {
			return true
		}
		left := time.Until(deadline)
		if left <= 0 {
			return false
		}
		fds := []unix.PollFd{{Fd: int32(f.Fd()), Events: unix.POLLPRI}}
		unix.Poll(fds, int(min(left, time.Second).Milliseconds())+1)
	}
}

// kill kills everything in it and below.
func (c cgroup) kill() error {
	err := os.WriteFile(c.file("cgroup.kill"), []byte("1"), 0)
	if err == nil || !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if _, err := os.Stat(c.path); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	// Before Linux 5.14: frozen first, so that nothing is born meanwhile.
	os.WriteFile(c.file("cgroup.freeze"), []byte("1"), 0)
	c.signal(unix.SIGKILL)
	return os.WriteFile(c.file("cgroup.freeze"), []byte("0"), 0)
}

// signal sends sig to each process in it and below.
func (c cgroup) signal(sig unix.Signal) {
	for _, dir := range c.tree() {
		b, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		if err != nil {
			continue
		}
		for f := range strings.FieldsSeq(string(b)) {
			pid, err := strconv.Atoi(f)
			if err != nil || pid <= 1 {
				continue
			}
			s := stat{pid: pid}
			s.signal(sig, func() bool { return c.holds(pid) })
		}
	}
}

// holds reports whether the process is in the cgroup or below it.
func (c cgroup) holds(pid int) bool {
	own, err := ownCgroupOf(pid)
	return err == nil && (own == c.path || strings.HasPrefix(own, c.path+"/"))
}

// ownCgroupOf is the cgroup of another process, as this one sees it.
func ownCgroupOf(pid int) (string, error) {
	info, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", err
	}
	mount, root, ok := cgroupMount(info)
	if !ok {
		return "", fs.ErrNotExist
	}
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cgroup")
	if err != nil {
		return "", err
	}
	path, ok := cgroupPath(b)
	if !ok {
		return "", fs.ErrNotExist
	}
	rel, err := filepath.Rel(root, path)
	if err != nil {
		return "", err
	}
	return filepath.Join(mount, rel), nil
}

// tree is the cgroup and all below it, the deepest last.
func (c cgroup) tree() []string {
	dirs := []string{c.path}
	for i := 0; i < len(dirs); i++ {
		entries, err := os.ReadDir(dirs[i])
		if err != nil {
			continue
		}
		for _, e := range entries {
			if e.IsDir() {
				dirs = append(dirs, filepath.Join(dirs[i], e.Name()))
			}
		}
	}
	return dirs
}

// remove removes the cgroup and those its processes have made in it; nothing
// must live there.
func (c cgroup) remove() error {
	err := unix.Rmdir(c.path)
	if err == nil || err == unix.ENOENT {
		return nil
	}
	dirs := c.tree()
	for i := len(dirs) - 1; i >= 0; i-- {
		err = unix.Rmdir(dirs[i])
		if err == unix.ENOENT {
			err = nil
		}
	}
	if err != nil {
		return fmt.Errorf("remove cgroup %s: %w", c.path, err)
	}
	return nil
}

// end kills what is in it, waits until it is gone, and removes it.
func (c cgroup) end() error {
	deadline := time.Now().Add(endLimit)
	for {
		if err := c.kill(); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENODEV) {
			return fmt.Errorf("kill cgroup %s: %w", c.path, err)
		}
		empty := c.awaitEmpty(min(time.Second, time.Until(deadline)))
		if empty {
			// A process may move itself in again between the two.
			if err := c.remove(); err == nil || time.Now().After(deadline) {
				return err
			}
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("kill cgroup %s: its processes do not end", c.path)
		}
	}
}
