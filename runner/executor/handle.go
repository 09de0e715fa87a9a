package executor

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// handle is what the handle file says: enough to find a tree whose holder
// has died.
type handle struct {
	Version int    `json:"version"`
	Boot    string `json:"boot"`                 // of the kernel; after another boot nothing is left
	Cgroup  string `json:"cgroup,omitempty"`     // of the tree
	Shim    int    `json:"shim,omitempty"`       // process number of the shim
	Start   uint64 `json:"shim_start,omitempty"` // and when it started, in ticks since boot
}

const handleVersion = 1

// bootID names this boot of the kernel.
var bootID = sync.OnceValue(func() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(b))
})

// writeHandle writes the handle file. It is complete before anything is
// started, so a torn one is that of an empty tree.
func writeHandle(path string, h handle) error {
	if path == "" {
		return nil
	}
	h.Version, h.Boot = handleVersion, bootID()
	b, err := json.Marshal(h)
	if err != nil {
		return err
	}
	if err := overwrite(path, b); err != nil {
		return fmt.Errorf("write process handle: %w", err)
	}
	return nil
}

// overwrite gives a file its content, over what it may have already. It is not
// cut to nothing before: ext4 writes a file out at once that was, and is filled
// again.
func overwrite(path string, b []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	if _, err = f.WriteAt(b, 0); err == nil {
		err = f.Truncate(int64(len(b)))
	}
	return errors.Join(err, f.Close())
}

// KillLeftovers kills what is left of the tree that the handle file names,
// once the process that held the tree is gone, and removes the file. Without
// the file there is nothing to do.
func KillLeftovers(path string) error {
	if err := EndLeftovers(path); err != nil {
		return err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove process handle: %w", err)
	}
	return nil
}

// EndLeftovers is KillLeftovers, but leaves the file: it says that something
// was started.
func EndLeftovers(path string) error {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read process handle: %w", err)
	}
	var h handle
	if json.Unmarshal(b, &h) == nil && h.Boot == bootID() {
		if h.Version > handleVersion {
			return fmt.Errorf("read process handle %s: version %d is of a newer waypoint", path, h.Version)
		}
		return h.kill()
	}
	return nil
}

func (h handle) kill() error {
	if h.Cgroup != "" && strings.HasPrefix(filepath.Base(filepath.Dir(h.Cgroup)), rootPrefix) {
		if _, err := os.Stat(filepath.Join(h.Cgroup, "cgroup.procs")); err == nil {
			if err := (cgroup{path: h.Cgroup}).end(); err != nil {
				return err
			}
			os.Remove(filepath.Dir(h.Cgroup)) // stays while others are in it
		}
	}
	if h.Shim > 1 {
		return h.killShim()
	}
	return nil
}

// killShim waits for a shim to end, which has seen its holder go and is
// killing its tree; one that does not is helped.
func (h handle) killShim() error {
	s, ok := readStat(h.Shim)
	if !ok || s.start != h.Start || s.dead {
		return nil
	}
	deadline := time.Now().Add(endLimit)
	if fd, err := unix.PidfdOpen(h.Shim, 0); err == nil {
		defer unix.Close(fd)
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		if !s.alive() {
			return nil
		}
		if n, _ := unix.Poll(fds, 2000); n > 0 {
			return nil
		}
	}
	left := killBelow(h.Shim, deadline)
	s.signal(unix.SIGKILL, s.alive)
	if left > 0 {
		return fmt.Errorf("kill processes of shim %d: %d do not end", h.Shim, left)
	}
	return nil
}
