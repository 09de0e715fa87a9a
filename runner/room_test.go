package runner

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

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
	step := filepath.Join(t.TempDir(), "step")
	a := script("echo on; " + until(step) + "true")
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
	var why string
	b.s.await("why", func() bool {
		if len(b.s.waits) > 0 && b.s.waits[0].Job == "" {
			why = b.s.waits[0].For
		}
		return why != ""
	})
	if want := "its disk to be writable again: " + syscall.ENOSPC.Error(); why != want {
		t.Errorf("it waits for %q, want %q: who may not see the job is told as well", why, want)
	}
	told := b.r.unnamed(wire.Errorf(wire.Unavailable, "start job %s: too many open files", a.Job)).Error()
	if strings.Contains(told, a.Job) || !strings.Contains(told, "too many open files") {
		t.Errorf("of its supervisor's trouble it tells %q", told)
	}
	if supervisor.Begun(b.r.attemptDir(a.JobRef)) {
		t.Error("it runs, and no record says so")
	}
	free()
	b.s.await("it runs", func() bool { return b.s.jobs[a.JobRef].length > 0 })
	body, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, at, err := readRecord(body); at != given || err != nil {
		t.Errorf("it runs, and its record says %v, %v: %q", at, err, body[len(body)-60:])
	}
	let(t, step)
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

// take leaves so many bytes of the small file system's megabyte.
func take(t *testing.T, dir string, left int) (free func()) {
	t.Helper()
	path := filepath.Join(dir, "taken")
	write(t, path, strings.Repeat(".", 1<<20-left))
	return func() { os.Remove(path) }
}

// noise is text that no compressor makes shorter.
func noise(n int) string {
	b := make([]byte, n)
	rand.Read(b)
	return string(b)
}

// What the agent itself brings to its disk, or makes there, waits for room: the job says
// so, its runner says so, and it goes on by itself.
func TestContentWithoutRoom(t *testing.T) {
	const much = 400 << 10
	artifact := func(t *testing.T, b *bench) wire.Assignment {
		// Made by a runner with more room.
		o := newBench(t, nil)
		o.start().connected()
		build := script(fmt.Sprintf("head -c %d /dev/urandom >out", much))
		build.Spec.Operation, build.Spec.Output = wire.OpBuild, []string{"out"}
		o.s.assign(build)
		art := o.s.ended(build.JobRef).result.Artifact
		if art == nil {
			t.Fatal("no artifact")
		}
		b.s.put(o.s.blobs[art.Digest])
		a := script("wc -c <$WAYPOINT_ARTIFACT/out")
		a.Spec.Operation = wire.OpDeploy
		a.Artifact = &wire.Record{Kind: wire.RecordArtifact, Number: 1, Digest: art.Digest, Size: art.Size}
		return a
	}
	source := func(t *testing.T, b *bench) wire.Assignment {
		src := t.TempDir()
		write(t, filepath.Join(src, "small"), "x")
		write(t, filepath.Join(src, "twice"), noise(much/2))
		if err := os.Link(filepath.Join(src, "twice"), filepath.Join(src, "again")); err != nil {
			t.Fatal(err)
		}
		a := script("cat twice again | wc -c")
		a.Spec.Source = &wire.Source{Tree: b.s.upload(src)}
		return a
	}
	input := func(t *testing.T, b *bench) wire.Assignment {
		a := script("wc -c")
		a.Spec.Stdin = b.s.put([]byte(noise(much)))
		return a
	}
	pack := func(t *testing.T, b *bench) wire.Assignment {
		a := script(fmt.Sprintf("head -c %d /dev/urandom >out; wc -c <out", much))
		a.Spec.Operation, a.Spec.Output = wire.OpBuild, []string{"out"}
		return a
	}
	for name, c := range map[string]struct {
		job   func(t *testing.T, b *bench) wire.Assignment
		left  int
		doing string
	}{
		"source":   {source, much / 2, "prepare the job"},
		"artifact": {artifact, much / 2, "prepare the job"},
		"input":    {input, much / 2, "prepare the job"},
		"pack":     {pack, much * 3 / 2, "pack the artifact"},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, nil)
			b.small(t)
			b.s.heartbeat = 50 * time.Millisecond
			b.start().connected()
			a, second := c.job(t, b), c.job(t, b)
			second.JobRef = script("").JobRef
			free := take(t, b.cfg.Dir, c.left)
			for _, a := range []wire.Assignment{a, second} {
				b.s.assign(a)
				b.s.await("it waits", func() bool {
					return len(b.s.waits) == 1 && b.s.waits[0].JobRef == a.JobRef &&
						strings.Contains(b.s.waits[0].For, "room on the runner's disk to "+c.doing) &&
						strings.Contains(b.s.waits[0].For, "no space left")
				})
				if st := b.r.Status(); len(st.Waits) != 1 || st.Waits[0].JobRef != a.JobRef {
					t.Errorf("here it says %+v", st.Waits)
				}
				// What is small enough finds room, as what waits holds it only while it
				// tries: what is given back at such a moment is given again.
				if strings.HasPrefix(c.doing, "prepare") {
					var small wire.Assignment
					var j *testJob
					for j == nil || j.result == nil {
						small = script(fmt.Sprintf("head -c %d /dev/zero >out && wc -c <out", c.left/2))
						given := len(b.s.nacks)
						b.s.assign(small)
						b.s.await("it has ended, or is given back", func() bool {
							j = b.s.jobs[small.JobRef]
							return j.result != nil || len(b.s.nacks) > given
						})
					}
					want(t, j, wire.Success, "")
					b.gone(small.JobRef)
				}
				if a.JobRef == second.JobRef {
					break
				}
				b.s.order(wire.WorkOrder{Cancel: &wire.CancelJob{JobRef: a.JobRef}})
				want(t, b.s.ended(a.JobRef), wire.Canceled, wire.ReasonCanceled)
				b.gone(a.JobRef)
				b.s.await("nothing waits", func() bool { return len(b.s.waits) == 0 })
			}
			if len(b.s.drains) > 0 && len(b.s.nacks) == 0 {
				t.Error("no jobs were wanted, and there was room for some")
			}
			free()
			j := b.s.ended(second.JobRef)
			want(t, j, wire.Success, "")
			said := regexp.MustCompile(`(?m)^==> waited .* for room on the runner's disk to ` + c.doing + `\n`)
			if log := string(j.log); len(said.FindAllString(log, -1)) != 1 || said.ReplaceAllString(log, "") != fmt.Sprintln(much) {
				t.Errorf("output %q", log)
			}
			b.gone(second.JobRef)
			b.s.await("nothing waits", func() bool { return len(b.s.waits) == 0 })
		})
	}
}

// An agent that dies while a job waits for room is followed by one that goes on with it.
func TestRestartWithoutRoom(t *testing.T) {
	b := newBench(t, nil)
	b.small(t)
	b.s.heartbeat = 50 * time.Millisecond
	b.start().connected()
	a := script("wc -c")
	a.Spec.Stdin = b.s.put([]byte(noise(400 << 10)))
	free := take(t, b.cfg.Dir, 200<<10)
	b.s.assign(a)
	waits := func() bool { return len(b.s.waits) == 1 && b.s.waits[0].JobRef == a.JobRef }
	b.s.await("it waits", waits)
	b.restart()
	b.s.change(func() { b.s.waits = nil })
	b.connected()
	b.s.await("it waits again", waits)
	free()
	want(t, b.s.ended(a.JobRef), wire.Success, "")
	b.gone(a.JobRef)
}

// The disk that a job has filled itself is that job's failure.
func TestJobFillsItsDisk(t *testing.T) {
	b := newBench(t, nil)
	b.small(t)
	b.start().connected()
	a := script("head -c 4194304 /dev/zero >out || { rm out; exit 7; }")
	b.s.assign(a)
	j := b.s.ended(a.JobRef)
	want(t, j, wire.Failed, wire.ReasonFailed)
	if j.result.ExitCode == nil || *j.result.ExitCode != 7 {
		t.Errorf("%+v", j.result)
	}
}
