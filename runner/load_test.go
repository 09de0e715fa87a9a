package runner

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/waypointd/waypoint/mux/wire"
	"github.com/waypointd/waypoint/runner/supervisor"
)

// golden copies attempts that a release wrote, as far as they were on this
// boot of the host, into the bench's directory.
func (b *bench) golden(version int) {
	b.t.Helper()
	from := filepath.Join("testdata", "attempts", strconv.Itoa(version))
	err := filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		body, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		write(b.t, filepath.Join(b.cfg.Dir, rel), strings.ReplaceAll(string(body), "THIS-BOOT", bootID()))
		return nil
	})
	if err != nil {
		b.t.Fatal(err)
	}
}

// knows has the server have given an attempt to the runner.
func (b *bench) knows(ref wire.JobRef, started bool) *testJob {
	j := &testJob{Assignment: wire.Assignment{JobRef: ref}, byKind: map[wire.StreamID][]byte{}, started: started}
	b.s.jobs[ref] = j
	return j
}

// What each release's agent left at each stage of an attempt is taken up by this one.
func TestGolden(t *testing.T) {
	for version := range spoolVersion + 1 {
		t.Run(strconv.Itoa(version), func(t *testing.T) {
			b := newBench(t, nil)
			b.golden(version)
			b.s.put([]byte("input\n"))
			ref := func(name string) wire.JobRef { return wire.JobRef{Job: name, Attempt: 1} }
			b.knows(ref("assigned"), false)
			for _, name := range []string{"confirmed", "running", "ended"} {
				b.knows(ref(name), true)
			}
			b.knows(ref("reported"), true).result = &wire.Result{State: wire.Failed}
			b.start()
			for _, j := range []struct {
				name   string
				state  wire.State
				reason wire.Reason
				log    string
			}{
				{"assigned", wire.Success, "", "assigned\n"},
				{"confirmed", wire.Success, "", "input\nconfirmed\n"},
				{"running", wire.Failed, wire.ReasonRunnerLost, "err\nout\nhalf\n"},
				{"ended", wire.Failed, wire.ReasonFailed, "ended\n"},
			} {
				got := b.s.ended(ref(j.name))
				want(t, got, j.state, j.reason)
				if string(got.log) != j.log {
					t.Errorf("%s: output %q, want %q", j.name, got.log, j.log)
				}
			}
			if got := b.s.ended(ref("ended")); got.result.ExitCode == nil || *got.result.ExitCode != 3 || got.result.Outputs["k"] != "v" || got.result.Usage == nil {
				t.Errorf("the end of before is told as %+v", got.result)
			}
			for _, name := range []string{"assigned", "confirmed", "running", "ended", "reported"} {
				b.gone(ref(name))
			}
			if j := b.s.jobs[ref("assigned")]; j.acks == 0 {
				t.Error("what was not confirmed began without being so")
			}
		})
	}
}

// What this release writes has the newest format: a fixture of it has to be
// added with a new one.
func TestGoldenIsComplete(t *testing.T) {
	for version := range spoolVersion + 1 {
		if _, err := os.Stat(filepath.Join("testdata", "attempts", strconv.Itoa(version))); err != nil {
			t.Error(err)
		}
	}
	b := newBench(t, nil).start().connected()
	b.s.change(func() { b.s.hold = true })
	a := script("echo never")
	b.s.assign(a)
	b.s.await("it is held", func() bool { return b.s.jobs[a.JobRef].acks > 0 })
	body, err := os.ReadFile(filepath.Join(b.r.attemptDir(a.JobRef), fileAssignment))
	if err != nil || !strings.HasPrefix(string(body), fmt.Sprintf(`{"version":%d,`, spoolVersion)) {
		t.Errorf("an assignment is kept as %s, %v", body, err)
	}
	dir := t.TempDir()
	if err := supervisor.WriteEnd(dir, failedEnd(errors.New("x"))); err != nil {
		t.Fatal(err)
	}
	body, err = os.ReadFile(filepath.Join(dir, fileEnd))
	if err != nil || !strings.HasPrefix(string(body), fmt.Sprintf(`{"version":%d,`, supervisor.EndVersion)) {
		t.Errorf("an end is kept as %s, %v", body, err)
	}
}

// Whatever has become of an attempt's files, its job ends on record with the
// output there is, or is the server's to give away again; and the agent starts.
func TestDamaged(t *testing.T) {
	golden, err := os.ReadFile(filepath.Join("testdata", "attempts", "1", "running-1", "log"))
	if err != nil {
		t.Fatal(err)
	}
	log := string(golden)
	const record = `{"version":1,"boot":"THIS-BOOT","assignment":{"job":"JOB","attempt":1,"spec":{"operation":"run","target":{},"script":"echo again"}}}` + "\n"
	const ran = record + `{"reached":"running"}` + "\n"
	const all = "err\nout\nhalf\n"
	for _, c := range []struct {
		name  string
		files map[string]string
		mode  os.FileMode // of the directory
		held  bool        // it is on record; else it is given back and removed
		log   string
		says  string
	}{
		{name: "empty assignment, begun", files: map[string]string{fileAssignment: "", fileLog: log}, held: true, log: all, says: "damaged"},
		{name: "empty assignment, not begun", files: map[string]string{fileAssignment: ""}},
		{name: "torn assignment, begun", files: map[string]string{fileAssignment: ran[:40], fileLog: log}, held: true, log: all, says: "damaged"},
		{name: "assignment of zeros, begun", files: map[string]string{fileAssignment: strings.Repeat("\x00", 300), fileLog: log}, held: true, log: all, says: "damaged"},
		{name: "assignment is a directory, begun", files: map[string]string{fileAssignment + "/x": "", fileLog: log}, held: true, log: all, says: "damaged"},
		{name: "assignment of another job, begun", files: map[string]string{fileAssignment: strings.ReplaceAll(ran, "JOB", "another"), fileLog: log}, held: true, log: all, says: "damaged"},
		{name: "torn mark", files: map[string]string{fileAssignment: record + `{"reached":"star` + "\n" + `{"reached":"running"}` + "\n", fileLog: log}, held: true, log: all, says: "gone"},
		{name: "torn end", files: map[string]string{fileAssignment: ran, fileLog: log, fileEnd: `{"state":"succ`}, held: true, log: all, says: "gone"},
		{name: "empty end", files: map[string]string{fileAssignment: ran, fileLog: log, fileEnd: ""}, held: true, log: all, says: "gone"},
		{name: "end that is none", files: map[string]string{fileAssignment: ran, fileLog: log, fileEnd: `{"state":"running"}`}, held: true, log: all, says: "gone"},
		{name: "damaged assignment and end", files: map[string]string{fileAssignment: "?", fileLog: log, fileEnd: "?"}, held: true, log: all, says: "damaged"},
		{name: "log with a torn tail", files: map[string]string{fileAssignment: ran, fileLog: log[:len(log)-4]}, held: true, log: "err\n", says: "gone"},
		{name: "empty log", files: map[string]string{fileAssignment: ran, fileLog: ""}, held: true, says: "gone"},
		{name: "log that is none", files: map[string]string{fileAssignment: ran, fileLog: "nothing of the kind, but long"}, held: true, says: "gone"},
		{name: "log is a directory", files: map[string]string{fileAssignment: ran, fileLog + "/x": ""}, held: true, says: "gone"},
		{name: "torn handle", files: map[string]string{fileAssignment: ran, fileLog: log, "process": `{"ver`}, held: true, log: all, says: "gone"},
		{name: "closed directory", files: map[string]string{fileAssignment: ran, fileLog: log}, mode: 0o100, held: true, log: all, says: "gone"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBench(t, nil)
			a := script("")
			dir := filepath.Join(b.cfg.Dir, a.Job+"-1")
			for name, text := range c.files {
				write(t, filepath.Join(dir, name), strings.NewReplacer("JOB", a.Job, "THIS-BOOT", bootID()).Replace(text))
			}
			if c.mode != 0 {
				if err := os.Chmod(dir, c.mode); err != nil {
					t.Fatal(err)
				}
			}
			b.knows(a.JobRef, true)
			other := script("echo on")
			b.start().connected()
			b.s.assign(other)
			want(t, b.s.ended(other.JobRef), wire.Success, "") // it works in any case
			if held := len(b.s.begins[0].Held) == 1; held != c.held {
				t.Fatalf("held are %v", b.s.begins[0].Held)
			}
			if c.held {
				j := b.s.ended(a.JobRef)
				want(t, j, wire.Failed, wire.ReasonRunnerLost)
				if !strings.Contains(j.result.Error, c.says) || string(j.log) != c.log {
					t.Errorf("error %q, output %q", j.result.Error, j.log)
				}
			}
			b.gone(a.JobRef)
		})
	}
}

// A failure that is on record for good is told, although the assignment is damaged.
func TestDamagedAfterFailure(t *testing.T) {
	b := newBench(t, nil)
	b.golden(1)
	dir := filepath.Join(b.cfg.Dir, "ended-1")
	write(t, filepath.Join(dir, fileAssignment), "?")
	write(t, filepath.Join(dir, "kept"), "ended-1")
	ref := wire.JobRef{Job: "ended", Attempt: 1}
	b.knows(ref, true)
	b.start()
	j := b.s.ended(ref)
	want(t, j, wire.Failed, wire.ReasonFailed)
	if string(j.log) != "ended\n" || j.result.ExitCode == nil || *j.result.ExitCode != 3 {
		t.Errorf("result %+v, output %q", j.result, j.log)
	}
}

// A job that runs while its record is damaged is ended, and that is on record.
func TestDamagedWhileRunning(t *testing.T) {
	b := newBench(t, nil).start().connected()
	a := script("echo on; sleep 1000")
	b.s.assign(a)
	b.s.await("it runs", func() bool { return len(b.s.jobs[a.JobRef].log) > 0 })
	b.kill()
	b.wait()
	write(t, filepath.Join(b.cfg.Dir, a.Job+"-1", fileAssignment), "")
	b.start()
	j := b.s.ended(a.JobRef)
	want(t, j, wire.Failed, wire.ReasonRunnerLost)
	if string(j.log) != "on\n" || !strings.Contains(j.result.Error, "damaged") {
		t.Errorf("error %q, output %q", j.result.Error, j.log)
	}
	b.gone(a.JobRef)
}

// What a newer release wrote is left alone, and its job stays on record as this
// runner's until that release is back.
func TestNewerLeftAlone(t *testing.T) {
	for name, change := range map[string]func(dir string) (path, text string){
		"assignment": func(dir string) (string, string) {
			return filepath.Join(dir, fileAssignment), `{"version":2,"assignment":"somewhere else"}`
		},
		"end": func(dir string) (string, string) {
			return filepath.Join(dir, fileEnd), `{"version":2,"state":["whatever"]}`
		},
		"log": func(dir string) (string, string) {
			return filepath.Join(dir, fileLog), "joblog\x00\x02whatever"
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, nil)
			b.golden(1)
			for _, e := range []string{"assigned-1", "confirmed-1", "running-1", "reported-1"} {
				os.RemoveAll(filepath.Join(b.cfg.Dir, e))
			}
			dir := filepath.Join(b.cfg.Dir, "ended-1")
			path, text := change(dir)
			before, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			write(t, path, text)
			b.s.heartbeat = 100 * time.Millisecond
			ref := wire.JobRef{Job: "ended", Attempt: 1}
			b.knows(ref, true)
			b.start().connected()
			if held := b.s.begins[0].Held; len(held) != 1 || held[0].JobRef != ref || !held[0].Started {
				t.Errorf("held are %+v", held)
			}
			if refs := b.r.holds(); len(refs) != 1 || refs[0] != ref {
				t.Errorf("a heartbeat says %v", refs)
			}
			waits := []wire.Wait{{JobRef: ref, For: waitsForNewer}}
			b.s.await("the server hears what it waits for", func() bool { return slices.Equal(b.s.waits, waits) })
			if st := b.r.Status(); !slices.Equal(st.Waits, waits) {
				t.Errorf("here it says %+v", st.Waits)
			}
			other := script("echo on")
			b.s.assign(other)
			want(t, b.s.ended(other.JobRef), wire.Success, "")
			b.stop()
			if err := b.wait(); err != nil { // it does not keep the agent from ending
				t.Fatal(err)
			}
			if got, err := os.ReadFile(path); err != nil || string(got) != text {
				t.Errorf("it has become %q, %v", got, err)
			}
			if j := b.s.jobs[ref]; j.result != nil || j.reports > 0 {
				t.Errorf("it was reported: %+v", j.result)
			}
			// The release that wrote it, as far as this one can be that.
			write(t, path, string(before))
			b.start()
			want(t, b.s.ended(ref), wire.Failed, wire.ReasonFailed)
			b.gone(ref)
			b.s.await("nothing waits", func() bool { return len(b.s.waits) == 0 })
		})
	}
}

// A job of a newer release that runs is not ended by an agent that cannot read
// its directory; a cancel ends it, and so does the server that has given it up.
func TestNewerRunning(t *testing.T) {
	for name, o := range map[string]func(ref wire.JobRef) wire.WorkOrder{
		"cancel": func(ref wire.JobRef) wire.WorkOrder {
			return wire.WorkOrder{Cancel: &wire.CancelJob{JobRef: ref, Force: true}}
		},
		"drop": func(ref wire.JobRef) wire.WorkOrder { return wire.WorkOrder{Drop: &ref} },
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, nil).start().connected()
			step := filepath.Join(t.TempDir(), "step")
			a := script("echo on; " + until(step) + "sleep 1000")
			b.s.assign(a)
			b.s.await("it runs", func() bool { return len(b.s.jobs[a.JobRef].log) > 0 })
			b.kill()
			b.wait()
			path := filepath.Join(b.cfg.Dir, a.Job+"-1", fileAssignment)
			write(t, path, `{"version":2}`)
			b.start()
			b.s.await("it is connected", func() bool { return len(b.s.begins) == 2 })
			other := script("echo on")
			b.s.assign(other)
			want(t, b.s.ended(other.JobRef), wire.Success, "")
			if held := b.s.begins[1].Held; len(held) != 1 || held[0].JobRef != a.JobRef || !held[0].Started {
				t.Errorf("held are %+v", held)
			}
			if _, err := os.Stat(filepath.Join(filepath.Dir(path), fileEnd)); !os.IsNotExist(err) {
				t.Fatalf("it has been ended: %v", err)
			}
			b.s.order(o(a.JobRef))
			awaitFile(t, filepath.Join(filepath.Dir(path), fileEnd))
			if end, err := supervisor.ReadEnd(filepath.Dir(path)); err != nil || end.State != wire.Canceled {
				t.Errorf("its end is %+v, %v", end, err)
			}
			if _, err := os.Stat(path); err != nil {
				t.Errorf("its directory was touched: %v", err)
			}
		})
	}
}

// Old slots are removed beside everything else, or by a later agent; their names
// are not in the way meanwhile.
func TestSweep(t *testing.T) {
	b := newBench(t, nil)
	for i := range 50 {
		write(t, filepath.Join(b.cfg.Dir, fmt.Sprintf("%s%d", slotPrefix, i+1), dirWork, "file"), "old")
	}
	count := func() (n int) {
		entries, err := os.ReadDir(b.cfg.Dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if isSlot(e.Name()) {
				n++
			}
		}
		return n
	}
	r, err := New(b.cfg)
	if err != nil {
		t.Fatal(err)
	}
	var end context.CancelCauseFunc
	r.ctx, end = context.WithCancelCause(t.Context())
	end(errReturned) // asked to end before it has begun
	if err := r.load(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.attempts.Wait()
	if n := count(); n != 50 {
		t.Errorf("an agent that is to end has removed %d slots first", 50-n)
	}
	if a, err := r.record(script("true")); err != nil {
		t.Errorf("no job can be taken beside old slots: %v", err)
	} else if err := os.RemoveAll(a.dir); err != nil {
		t.Error(err)
	}
	b.start().connected()
	for limit := time.Now().Add(20 * time.Second); count() > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(limit) {
			t.Fatalf("%d slots are left", count())
		}
	}
}

// A runner says the same name of its spool as long as the directory of its attempts and
// the boot of its host are the same, and another one behind any loss.
func TestSpoolName(t *testing.T) {
	b := newBench(t, nil)
	var said []string
	next := func(before func()) string {
		t.Helper()
		n := len(said)
		if before != nil {
			before()
		}
		b.start()
		b.s.await("the runner has begun", func() bool { return len(b.s.begins) > n })
		b.s.mu.Lock()
		said = append(said, b.s.begins[n].Spool)
		b.s.mu.Unlock()
		b.kill()
		if err := b.wait(); err != nil {
			t.Fatal(err)
		}
		return said[n]
	}
	first := next(nil)
	if first == "" || len(first) > wire.MaxSpool {
		t.Fatalf("the spool is named %q", first)
	}
	if again := next(nil); again != first {
		t.Errorf("the spool was %q and is %q", first, again)
	}
	file := filepath.Join(b.cfg.Dir, fileSpool)
	known := map[string]bool{first: true}
	for what, before := range map[string]func() error{
		"removed": func() error { return os.Remove(file) },
		"torn":    func() error { return os.Truncate(file, 3) },
		"lost":    func() error { return errors.Join(os.RemoveAll(b.cfg.Dir), os.Mkdir(b.cfg.Dir, 0o700)) },
	} {
		name := next(func() {
			if err := before(); err != nil {
				t.Fatal(err)
			}
		})
		if known[name] || name == "" {
			t.Errorf("%s: the spool is named %q, as before", what, name)
		}
		known[name] = true
		if again := next(nil); again != name {
			t.Errorf("%s: the spool was %q and is %q", what, name, again)
		}
	}
	r, err := New(b.cfg)
	if err != nil {
		t.Fatal(err)
	}
	r.boot = "another"
	r.nameSpool()
	if known[r.spool] {
		t.Errorf("the spool is named %q in another boot as well", r.spool)
	}
	r.cfg.Kind, r.spool = wire.KindLocal, ""
	if r.nameSpool(); r.spool != "" {
		t.Errorf("a command line's own runner has the spool %q", r.spool)
	}
}
