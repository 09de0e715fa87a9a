package runner

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/waypointd/waypoint/runner/supervisor"
)

// slotPrefix begins the names of directories in Dir that are no attempt's.
// A slot is an empty attempt's directory. It becomes an attempt's by its
// renaming, once the assignment has been written into it, and a slot again by
// another: so an attempt is there as a whole or not at all, and a short job
// makes and removes hardly a file. (To give new files their inodes costs
// ext4 up to a millisecond; to rename costs it ten microseconds.)
const slotPrefix = ".slot-"

// slotDirs are the directories in a slot, parents first.
func (r *Runner) slotDirs() []string {
	if r.local() {
		return nil
	}
	return []string{dirWork, dirHome, dirHome + "/tmp"}
}

// takeSlot returns a slot that is nobody's.
func (r *Runner) takeSlot() (string, error) {
	r.mu.Lock()
	if n := len(r.slots); n > 0 {
		slot := r.slots[n-1]
		r.slots = r.slots[:n-1]
		r.mu.Unlock()
		return slot, nil
	}
	r.mu.Unlock()
	slot := r.newSlotName()
	if err := os.Mkdir(slot, 0o700); err != nil {
		return "", err
	}
	for _, dir := range r.slotDirs() {
		if err := os.Mkdir(filepath.Join(slot, dir), 0o700); err != nil {
			return "", errors.Join(err, removeTree(r.ctx, slot))
		}
	}
	return slot, nil
}

func (r *Runner) newSlotName() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.slotCount++
	return filepath.Join(r.cfg.Dir, slotPrefix+strconv.Itoa(r.slotCount))
}

// freeSlot makes an attempt's directory a slot again, and removes it where
// enough are kept, or where that cannot be done.
func (r *Runner) freeSlot(dir string) error {
	slot := r.newSlotName()
	if err := os.Rename(dir, slot); err != nil {
		return removeTree(r.ctx, dir)
	}
	if !r.wantsSlot("") || r.cleanSlot(slot) != nil || !r.wantsSlot(slot) {
		return removeTree(r.ctx, slot)
	}
	return nil
}

// wantsSlot reports whether there is use for one more slot, and keeps the one that
// is given.
func (r *Runner) wantsSlot(slot string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.slots) >= r.cfg.Concurrency {
		return false
	}
	if slot != "" {
		r.slots = append(r.slots, slot)
	}
	return true
}

// cleanSlot removes all that an attempt has left in its directory but files
// that the next one writes over.
func (r *Runner) cleanSlot(slot string) error {
	kept := supervisor.Recycle(slot)
	entries, err := os.ReadDir(slot)
	if err != nil {
		return err
	}
	for _, e := range entries {
		switch name := e.Name(); {
		case name == fileAssignment && e.Type().IsRegular(), slices.Contains(kept, name):
		case (name == dirWork || name == dirHome) && !r.local(): // below
		default:
			if err := removeTree(r.ctx, filepath.Join(slot, name)); err != nil {
				return err
			}
		}
	}
	for _, dir := range r.slotDirs() {
		if err := emptyDir(r.ctx, filepath.Join(slot, dir), dir == dirHome); err != nil {
			return err
		}
	}
	return nil
}

// emptyDir makes sure that path is an empty directory, or one with nothing but
// "tmp" in it, as the job was given it: one that it changed is made anew.
func emptyDir(ctx context.Context, path string, tmp bool) error {
	info, err := os.Lstat(path)
	if err == nil && info.Mode() == fs.ModeDir|0o700 && !attributed(path) {
		if entries, err := os.ReadDir(path); err == nil &&
			(len(entries) == 0 || tmp && len(entries) == 1 && entries[0].Name() == "tmp") {
			return nil
		}
	}
	if err := removeTree(ctx, path); err != nil {
		return err
	}
	return os.Mkdir(path, 0o700)
}

// attributed reports whether a job has left attributes on a directory that the
// next one would find there: above all a default list of access, which its
// files would get, for whomever.
func attributed(path string) bool {
	names := make([]byte, 4096)
	n, err := unix.Llistxattr(path, names)
	if err != nil {
		return err != unix.ENOTSUP // too many
	}
	for name := range strings.SplitSeq(string(names[:n]), "\x00") {
		// Others are the system's: security.selinux.
		if strings.HasPrefix(name, "system.posix_acl_") || strings.HasPrefix(name, "user.") {
			return true
		}
	}
	return false
}

// isSlot tells a slot from an attempt's directory.
func isSlot(name string) bool { return strings.HasPrefix(name, slotPrefix) }

// removeTree removes a directory with all that is in it, whatever a job has made
// of it.
func removeTree(ctx context.Context, dir string) error { return supervisor.RemoveTree(ctx, dir) }

// disown makes a directory that is nobody's any more one to be swept, at once
// and as a whole.
func (r *Runner) disown(dir string) (slot string, err error) {
	slot = r.newSlotName()
	return slot, os.Rename(dir, slot)
}

// sweep removes slots of agents before this one, one after the other, which may
// take long: beside everything else, and no longer than the Run. What is
// left then is the next agent's to sweep.
func (r *Runner) sweep(slots []string) {
	for _, slot := range slots {
		if err := removeTree(r.ctx, slot); r.ctx.Err() != nil {
			return
		} else if err != nil {
			r.log.Error("leftover cannot be removed", "dir", slot, "error", err)
		}
	}
}

// skipSlotName takes note of a slot that is there, so that its name is not given
// again.
func (r *Runner) skipSlotName(slot string) {
	if n, err := strconv.Atoi(strings.TrimPrefix(filepath.Base(slot), slotPrefix)); err == nil {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.slotCount = max(r.slotCount, n)
	}
}
