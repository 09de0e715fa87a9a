package runner

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/waypointd/waypoint/mux/wire"
	"github.com/waypointd/waypoint/runner/supervisor"
)

// fillUp takes all the room of a file system but what files have left of their
// last pages; free gives it back.
func fillUp(t *testing.T, dir string) (free func()) {
	t.Helper()
	path := filepath.Join(dir, "taken")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for page := bytes.Repeat([]byte{'.'}, os.Getpagesize()); err == nil; {
		_, err = f.Write(page)
	}
	if !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
	return func() { os.Remove(path) }
}

// small makes the bench's directory one that can be filled up.
func (b *bench) small(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting a small file system needs root")
	}
	if err := os.MkdirAll(b.cfg.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", b.cfg.Dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Skipf("mount: %v", err)
	}
	t.Cleanup(func() { unix.Unmount(b.cfg.Dir, unix.MNT_DETACH) })
}

// A job that has been confirmed while the disk is full waits in the mark that it is about
// to run; it runs once, with a whole record, when there is room.
func TestMarkWithoutRoom(t *testing.T) {
	b := newBench(t, nil)
	b.small(t)
	b.start().connected()
	b.s.change(func() { b.s.hold = true })
	a := script("echo on")
	// Its record ends where a page does, as far as it goes, so a mark is torn.
	b.s.assign(a)
	b.s.await("it is held", func() bool { return b.s.jobs[a.JobRef].acks > 0 })
	path := filepath.Join(b.r.attemptDir(a.JobRef), fileAssignment)
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	pad(t, path, os.Getpagesize()-int(info.Size())-5)
	free := fillUp(t, b.cfg.Dir)
	b.s.change(func() { b.s.hold, b.s.jobs[a.JobRef].started = false, true })
	b.s.order(wire.WorkOrder{Start: &a.JobRef})
	b.s.await("no jobs are wanted", func() bool { return len(b.s.drains) > 0 && b.s.drains[0] })
	if supervisor.Begun(b.r.attemptDir(a.JobRef)) {
		t.Error("it runs, and no record says so")
	}
	free()
	j := b.s.ended(a.JobRef)
	want(t, j, wire.Success, "")
	if string(j.log) != "on\n" {
		t.Errorf("output %q", j.log)
	}
	b.s.await("jobs are wanted", func() bool { return !b.s.drains[len(b.s.drains)-1] })
}

// pad appends blanks, which are nothing in a record.
func pad(t *testing.T, path string, n int) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Write(append(bytes.Repeat([]byte{' '}, n-1), '\n')); err != nil {
		t.Fatal(err)
	}
}

// A torn mark is nothing; the one written behind it counts.
func TestTornMark(t *testing.T) {
	record := `{"version":1,"boot":"b","assignment":{"job":"j","attempt":1,"spec":{"operation":"run","target":{}}}}` + "\n"
	for text, want := range map[string]stage{
		"":      recorded,
		`{"rea`: recorded,
		"{\"rea\n" + `{"reached":"started"}` + "\n":                              started,
		`{"reached":"started"}` + "\n{\"reac\n" + `{"reached":"running"}` + "\n": given,
		`{"reached":"running"}` + "\n" + `{"reached":"started"}` + "\n":          given,
		`{"reached":"something else"}` + "\n" + `{"reached":"started"}` + "\n":   started,
		"   \n\n" + `{"reached":"started"}` + "\n" + `{"reached":"running"}`:     given,
	} {
		s, at, err := readRecord([]byte(record + text))
		if err != nil || at != want || s.Assignment.Job != "j" {
			t.Errorf("%q is %v of %+v, %v; want %v", text, at, s, err, want)
		}
	}
}

// An end that the agent cannot record is reported all the same.
func TestConcludeWithoutRoom(t *testing.T) {
	b := newBench(t, nil)
	b.small(t)
	b.start().connected()
	a := script("")
	a.Spec.Dir = "not/there"
	b.s.change(func() { b.s.hold = true })
	b.s.assign(a)
	b.s.await("it is held", func() bool { return b.s.jobs[a.JobRef].acks > 0 })
	free := fillUp(t, b.cfg.Dir)
	b.s.change(func() { b.s.hold, b.s.jobs[a.JobRef].started = false, true })
	b.s.order(wire.WorkOrder{Start: &a.JobRef})
	j := b.s.ended(a.JobRef)
	want(t, j, wire.Failed, wire.ReasonFailed)
	if j.result.Error == "" {
		t.Error("it does not say why")
	}
	b.gone(a.JobRef)
	free()
	again := script("echo on")
	b.s.assign(again)
	want(t, b.s.ended(again.JobRef), wire.Success, "")
}
