package runner

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/waypointd/waypoint/mux/wire"
	"github.com/waypointd/waypoint/statedir/joblog"
)

// refusesAt has the server refuse output from an offset on, until heal is called. Output
// of Waypoint's own is refused as well where notices says so.
func (b *bench) refusesAt(offset int64, kind wire.Kind, notices bool) (heal func(), refused func() int) {
	n, healed := 0, false
	b.s.refuseData = func(d wire.Data) (err error) {
		b.s.change(func() {
			if !healed && d.Offset+int64(len(d.Bytes)) > offset && (notices || d.Stream != wire.Notice) {
				n++
				err = wire.Errorf(kind, "the bytes are\x00 odd")
			}
		})
		return err
	}
	return func() { b.s.change(func() { healed = true }) }, func() int { b.s.mu.Lock(); defer b.s.mu.Unlock(); return n }
}

// logText is all that a log holds.
func logText(t *testing.T, path string) string {
	t.Helper()
	log, err := joblog.Open(path, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	var all bytes.Buffer
	for d, err := log.Next(); err == nil; d, err = log.Next() {
		all.Write(d.Bytes)
	}
	return all.String()
}

// A job whose output the server never takes ends all the same, as it did; what the server
// does not have stays on the runner's host, also when the agent is another one.
func TestOutputIsNotTaken(t *testing.T) {
	for name, c := range map[string]struct {
		kind    wire.Kind
		notices bool
		restart bool // while the result is refused as well
		code    string
		state   wire.State
	}{
		"not decodable":      {kind: wire.BadUsage, code: "0", state: wire.Success},
		"over a limit":       {kind: wire.TooLarge, code: "3", state: wire.Failed},
		"a defect":           {kind: wire.Internal, notices: true, code: "0", state: wire.Success},
		"not known":          {kind: wire.Unimplemented, code: "0", state: wire.Success},
		"a defect, restarts": {kind: wire.Internal, code: "3", restart: true, state: wire.Failed},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, nil)
			b.s.heartbeat = 50 * time.Millisecond
			heal, refused := b.refusesAt(3, c.kind, c.notices)
			results := 0
			b.s.refuseResult = func(wire.Result) (err error) {
				b.s.change(func() {
					if results++; c.restart && results < 3 {
						err = wire.Errorf(wire.Unavailable, "not now")
					}
				})
				return err
			}
			b.start().connected()
			taken, step := filepath.Join(t.TempDir(), "taken"), filepath.Join(t.TempDir(), "step")
			a := script("echo on\n" + until(taken) + "echo off\n" + until(step) + "exit " + c.code)
			b.s.assign(a)
			b.s.await("some of it is taken", func() bool { return b.s.jobs[a.JobRef].length == 3 })
			let(t, taken)
			b.s.await("its runner says that it waits", func() bool {
				return len(b.s.waits) == 1 && b.s.waits[0].JobRef == a.JobRef &&
					strings.Contains(b.s.waits[0].For, "from byte 3 on, which it refuses: the bytes are  odd")
			})
			many := refused()
			b.s.await("it is offered again", func() bool { return b.s.jobs[a.JobRef].reports > many })
			let(t, step)
			if c.restart {
				b.s.await("its result is refused", func() bool { return results > 0 })
				b.restart()
				b.connected()
			}
			j := b.s.ended(a.JobRef)
			if j.result.State != c.state || j.result.ExitCode == nil || string(j.byKind[wire.Stdout]) != "on\n" {
				t.Errorf("%+v, output %q", j.result, j.log)
			}
			kept := filepath.Join(b.cfg.Dir, refusedPrefix+filepath.Base(b.r.attemptDir(a.JobRef)))
			if e := j.result.Error; strings.Count(e, "its output from byte 3 on is not with the server, which refuses it: the bytes are  odd") != 1 ||
				!strings.Contains(e, "kept on runner runner-1 in "+kept) || (c.state == wire.Failed) != strings.Contains(e, "exited with code 3; ") {
				t.Errorf("its end says %q", e)
			}
			if said := string(j.byKind[wire.Notice]); c.notices != (said == "") || !c.notices && !strings.HasPrefix(said, "==> 4 bytes of output are missing") {
				t.Errorf("its output says %q", said)
			}
			b.gone(a.JobRef)
			if all := logText(t, filepath.Join(kept, fileLog)); all != "on\noff\n" {
				t.Errorf("kept is %q", all)
			}
			b.s.await("nothing waits", func() bool { return len(b.s.waits) == 0 })
			b.restart()
			b.connected()
			if _, err := os.Stat(kept); err != nil || b.r.count() != 0 {
				t.Errorf("behind a restart: %v, %d jobs", err, b.r.count())
			}
			again := script("echo on")
			heal()
			b.s.assign(again)
			want(t, b.s.ended(again.JobRef), wire.Success, "")
		})
	}
}

// A server that takes the output in the end, as one that was upgraded, gets all of it.
func TestOutputIsTakenLater(t *testing.T) {
	b := newBench(t, nil)
	b.s.heartbeat = 50 * time.Millisecond
	heal, _ := b.refusesAt(0, wire.Internal, true)
	b.start().connected()
	step := filepath.Join(t.TempDir(), "step")
	a := script("echo on\n" + until(step) + "echo off")
	b.s.assign(a)
	b.s.await("it waits", func() bool { return len(b.s.waits) == 1 })
	heal()
	b.s.await("nothing waits", func() bool { return len(b.s.waits) == 0 })
	let(t, step)
	j := b.s.ended(a.JobRef)
	want(t, j, wire.Success, "")
	if string(j.log) != "on\noff\n" || j.result.Error != "" {
		t.Errorf("%+v, output %q", j.result, j.log)
	}
	b.gone(a.JobRef)
	if kept, _ := filepath.Glob(filepath.Join(b.cfg.Dir, refusedPrefix+"*")); len(kept) > 0 {
		t.Errorf("kept %q", kept)
	}
}

// What a server refuses for now is offered in short pauses as long as it takes.
func TestOutputIsNotTakenNow(t *testing.T) {
	for _, kind := range []wire.Kind{wire.Unavailable, wire.Denied, wire.Timeout} {
		b := newBench(t, nil)
		heal, refused := b.refusesAt(0, kind, true)
		b.start().connected()
		a := script("echo on")
		b.s.assign(a)
		b.s.await("it was offered many times", func() bool { return b.s.jobs[a.JobRef].reports > 3*maxRefusals })
		heal()
		j := b.s.ended(a.JobRef)
		want(t, j, wire.Success, "")
		if string(j.log) != "on\n" || refused() < 3*maxRefusals || j.result.Error != "" {
			t.Errorf("%s: %+v, output %q", kind, j.result, j.log)
		}
		b.gone(a.JobRef)
	}
}
