package lab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// disk is a file system of the lab's own, ext4 with a journal as a host has it, over a
// file on the machine that the tests run on. Its power can be cut.
type disk struct {
	image, at string
	dirs      []string // where each of its directories is in the lab
}

// state are the directories that server, runner and jobs keep.
var state = []string{"/var/lib/waypoint", "/var/lib/waypoint-runner", "/var/lib/waypoint-jobs"}

// disk makes one of so many megabytes, on which the directories are, before
// the lab is started.
func (l *lab) disk(megabytes int64, dirs ...string) *disk {
	l.t.Helper()
	name := fmt.Sprintf("disk%d", len(l.disks))
	d := &disk{image: filepath.Join(l.dir, "memory", name), at: filepath.Join(l.dir, name), dirs: dirs}
	err := os.WriteFile(d.image, nil, 0o600)
	if err == nil {
		err = errors.Join(unix.Truncate(d.image, megabytes<<20), os.Mkdir(d.at, 0o755))
	}
	if err != nil {
		l.t.Fatal(err)
	}
	if out, err := command(time.Minute, "mke2fs", "-q", "-F", "-t", "ext4", "-m", "0", d.image); err != nil {
		l.t.Fatalf("make a disk: %v\n%s", err, out)
	}
	l.disks = append(l.disks, d)
	d.mount(l)
	for _, dir := range dirs {
		if err := errors.Join(os.MkdirAll(d.on(dir), 0o755), os.MkdirAll(filepath.Join(l.root(), dir), 0o755)); err != nil {
			l.t.Fatal(err)
		}
	}
	return d
}

// on is where a directory of the lab is on the disk.
func (d *disk) on(dir string) string { return filepath.Join(d.at, filepath.Base(dir)) }

// binds are the options that show systemd-nspawn the disk.
func (d *disk) binds() []string {
	var all []string
	for _, dir := range d.dirs {
		all = append(all, "--bind="+d.on(dir)+":"+dir)
	}
	return all
}

// mount reads the journal, after a cut.
func (d *disk) mount(l *lab) {
	l.t.Helper()
	if out, err := command(time.Minute, "mount", "-t", "ext4", "-o", "loop", d.image, d.at); err != nil {
		l.t.Fatalf("mount a disk: %v\n%s", err, out)
	}
}

// cut is what a loss of power does: what the file system has not written is
// not there, and nothing is written any more.
func (d *disk) cut(l *lab) {
	l.t.Helper()
	const (
		shutdown   = 0x8004587d // EXT4_IOC_SHUTDOWN
		noLogFlush = 2          // EXT4_GOING_FLAGS_NOLOGFLUSH
	)
	f, err := os.Open(d.at)
	if err != nil {
		l.t.Fatal(err)
	}
	defer f.Close()
	if err := unix.IoctlSetPointerInt(int(f.Fd()), shutdown, noLogFlush); err != nil {
		l.t.Fatalf("cut the power of a disk: %v", err)
	}
}

// cut is the loss of the host's power, and its return.
func (l *lab) cut() {
	l.t.Helper()
	for _, d := range l.disks {
		d.cut(l)
	}
	l.kill()
	for _, d := range l.disks {
		// Of another file: the dead file system lives for as long as anybody has
		// it mounted, and would be mounted again.
		if err := unix.Unmount(d.at, unix.MNT_DETACH); err != nil {
			l.t.Fatalf("unmount a disk after a cut: %v", err)
		}
		after := d.image + "+"
		if out, err := command(time.Minute, "cp", "--sparse=always", d.image, after); err != nil {
			l.t.Fatalf("copy a disk: %v\n%s", err, out)
		}
		if err := os.Remove(d.image); err != nil {
			l.t.Fatal(err)
		}
		d.image = after
		d.mount(l)
	}
}
