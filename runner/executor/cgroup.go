package executor

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// cgroupRoot is the cgroup below which trees get theirs: waypoint-KEY.
type cgroupRoot struct {
	path string
	lock *os.File // of the directory, shared: its executor lives
}

// rootPrefix is how the names of cgroups made here begin.
const rootPrefix = "waypoint-"

// openCgroupRoot finds out whether this process can make cgroups and start
// processes in them, and makes the root.
func openCgroupRoot(dir string, controllers bool) (*cgroupRoot, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	own, err := ownCgroup("/proc/self")
	if err != nil {
		return nil, err
	}
	// With arguments this wrong the call is refused as such where it exists
	// at all; filters of system calls answer before that.
	if _, _, errno := unix.RawSyscall(unix.SYS_CLONE3, 0, 0, 0); errno != unix.EINVAL {
		return nil, fmt.Errorf("call clone3: %w", errno)
	}
	base := own
	if controllers {
		base = takeControllers(own)
	}
	// A process is moved from here to below: both files must be writable.
	if err := unix.Access(filepath.Join(base, "cgroup.procs"), unix.W_OK); err != nil {
		return nil, fmt.Errorf("write to cgroup %s: %w", base, err)
	}
	sum := sha256.Sum256([]byte(abs))
	r := &cgroupRoot{path: filepath.Join(base, rootPrefix+hex.EncodeToString(sum[:6]))}
	if err := r.hold(); err != nil {
		return nil, fmt.Errorf("make cgroup: %w", err)
	}
	if b, err := os.ReadFile(filepath.Join(r.path, "cgroup.type")); err != nil || strings.TrimSpace(string(b)) != "domain" {
		r.close()
		return nil, fmt.Errorf("make cgroup: %s is no domain of processes", r.path)
	}
	enableControllers(r.path)
	sweepRoots(base)
	return r, nil
}

// hold makes the root and locks it; what an executor that died has left in it
// is killed and removed.
func (r *cgroupRoot) hold() error {
	for try := 0; ; try++ {
		if err := os.Mkdir(r.path, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		f, err := os.Open(r.path)
		if errors.Is(err, fs.ErrNotExist) && try < 10 {
			continue // swept away before it was locked
		}
		if err != nil {
			return err
		}
		if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			entries, _ := os.ReadDir(r.path)
			for _, e := range entries {
				if e.IsDir() {
					cgroup{filepath.Join(r.path, e.Name())}.end() // what does not end is no hindrance
				}
			}
		}
		unix.Flock(int(f.Fd()), unix.LOCK_SH)
		have, err := f.Stat()
		if now, serr := os.Stat(r.path); err == nil && serr == nil && os.SameFile(have, now) {
			r.lock = f
			return nil
		}
		f.Close()
		if try >= 10 {
			return fmt.Errorf("%s does not stay", r.path)
		}
	}
}

func (r *cgroupRoot) close() {
	os.Remove(r.path) // stays while another executor has a tree in it
	r.lock.Close()
}

// sweepRoots removes the roots of executors that have died, where no process
// is left in them. Those with processes are their successors' to end.
func sweepRoots(base string) {
	entries, err := os.ReadDir(base)
	if err != nil {
		return
	}
	for _, e := range entries {
		if !e.IsDir() || !strings.HasPrefix(e.Name(), rootPrefix) {
			continue
		}
		c := cgroup{filepath.Join(base, e.Name())}
		f, err := os.Open(c.path)
		if err != nil {
			continue
		}
		if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil && !c.populated() {
			c.remove()
		}
		f.Close()
	}
}

// ownCgroup is the directory of the version 2 cgroup that a process is in.
func ownCgroup(proc string) (string, error) {
	info, err := os.ReadFile(filepath.Join(proc, "mountinfo"))
	if err != nil {
		return "", err
	}
	mount, root, ok := cgroupMount(info)
	if !ok {
		return "", errors.New("no cgroup version 2 file system is mounted")
	}
	b, err := os.ReadFile(filepath.Join(proc, "cgroup"))
	if err != nil {
		return "", err
	}
	path, ok := cgroupPath(b)
	if !ok {
		return "", errors.New("this process is in no cgroup of version 2")
	}
	rel, err := filepath.Rel(root, path)
	if err != nil || rel == ".." || strings.HasPrefix(rel, "../") || strings.Contains(path, "/..") {
		return "", fmt.Errorf("cgroup %s of this process is outside of what is mounted at %s", path, mount)
	}
	return filepath.Join(mount, rel), nil
}

// cgroupMount finds the cgroup2 file system in /proc/PID/mountinfo: where it
// is mounted and which of its directories is seen there. On a hybrid system
// it has no controllers and is mounted beside those of version 1.
func cgroupMount(info []byte) (mount, root string, ok bool) {
	for sc := bufio.NewScanner(bytes.NewReader(info)); sc.Scan(); {
		head, tail, found := strings.Cut(sc.Text(), " - ")
		f := strings.Fields(head)
		if !found || len(f) < 6 || !strings.HasPrefix(tail, "cgroup2 ") {
			continue
		}
		return unescapeMount(f[4]), unescapeMount(f[3]), true
	}
	return "", "", false
}

// unescapeMount undoes the \040 of blanks and the like.
func unescapeMount(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// cgroupPath is the version 2 line of /proc/PID/cgroup.
func cgroupPath(b []byte) (string, bool) {
	for line := range strings.Lines(string(b)) {
		if p, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "0::"); ok && strings.HasPrefix(p, "/") {
			return p, true
		}
	}
	return "", false
}

// takeControllers makes memory and the like countable for each tree, where
// that has been delegated: a cgroup with controllers for its children must
// have no process of its own. It returns the cgroup to make the root in.
func takeControllers(own string) string {
	// systemd's DelegateSubgroup= has put this process into a leaf already.
	if parent := filepath.Dir(own); delegated(parent) && unix.Access(filepath.Join(parent, "cgroup.procs"), unix.W_OK) == nil {
		enableControllers(parent)
		return parent
	}
	if !delegated(own) || !controllerIn(own, "cgroup.controllers", "memory") || !alone(own) {
		return own
	}
	leaf := filepath.Join(own, "supervisor")
	if err := os.Mkdir(leaf, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return own
	}
	if err := os.WriteFile(filepath.Join(leaf, "cgroup.procs"), []byte(strconv.Itoa(os.Getpid())), 0); err != nil {
		os.Remove(leaf)
		return own
	}
	enableControllers(own)
	return own
}

// delegated reports whether systemd says that the cgroup is its user's to
// divide.
func delegated(path string) bool {
	var b [8]byte
	for _, attr := range []string{"user.delegate", "trusted.delegate"} {
		if n, err := unix.Getxattr(path, attr, b[:]); err == nil && string(b[:n]) == "1" {
			return true
		}
	}
	return false
}

// alone reports whether this process is the only one in the cgroup.
func alone(path string) bool {
	b, err := os.ReadFile(filepath.Join(path, "cgroup.procs"))
	return err == nil && strings.TrimSpace(string(b)) == strconv.Itoa(os.Getpid())
}

// enableControllers gives the cgroup's children what can be had; each for
// itself, as one that is missing would spoil the others.
func enableControllers(path string) {
	for _, c := range []string{"memory", "pids", "cpu"} {
		if controllerIn(path, "cgroup.controllers", c) && !controllerIn(path, "cgroup.subtree_control", c) {
			// Refused where the cgroup has processes: then there are no figures.
			os.WriteFile(filepath.Join(path, "cgroup.subtree_control"), []byte("+"+c), 0)
		}
	}
}

func controllerIn(path, file, controller string) bool {
	b, err := os.ReadFile(filepath.Join(path, file))
	if err != nil {
		return false
	}
	return slices.Contains(strings.Fields(string(b)), controller)
}

// cgroup is one directory of the cgroup file system.
type cgroup struct{ path string }

func (c cgroup) file(name string) string { return filepath.Join(c.path, name) }

// usage reads what its processes have used so far; what is not counted here
// is left as it is in u.
func (c cgroup) usage(u *Usage) {
	if us, ok := c.value("cpu.stat", "usage_usec"); ok {
		u.CPU = microseconds(us)
	}
	if b, err := os.ReadFile(c.file("memory.peak")); err == nil {
		if n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64); err == nil && n > 0 {
			u.MaxRSS = n
		}
	}
	if n, ok := c.value("memory.events", "oom_kill"); ok && n > 0 {
		u.OOM = true
	}
}

// value reads one key of a flat keyed file.
func (c cgroup) value(file, key string) (int64, bool) {
	b, err := os.ReadFile(c.file(file))
	if err != nil {
		return 0, false
	}
	return keyedValue(b, key)
}

func keyedValue(b []byte, key string) (int64, bool) {
	for line := range strings.Lines(string(b)) {
		if k, v, ok := strings.Cut(strings.TrimSpace(line), " "); ok && k == key {
			n, err := strconv.ParseInt(v, 10, 64)
			return n, err == nil
		}
	}
	return 0, false
}
