package torture

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/waypointd/waypoint/mux/wire"
)

// script is a job as the model knows it: what it will do is known beforehand.
type script struct {
	tag    string
	lines  int           // on stdout: "<tag> <n>", n from 1
	errs   int           // on stderr: "<tag> e<n>", one behind each burst and the rest at the end
	burst  int           // lines at once; 0 is one
	pause  time.Duration // after each burst; 0: all lines are one burst
	exit   int
	signal string // "KILL": it ends itself by this signal instead
	daemon bool   // it leaves a process behind that has left its session
}

// randomScript draws a job: most are short, some print much, some take a while.
func randomScript(r *rand.Rand, tag string) script {
	s := script{tag: tag}
	switch r.IntN(10) {
	case 0, 1, 2, 3:
		s.lines, s.errs = r.IntN(40), r.IntN(5)
	case 4, 5:
		s.lines = 2000 + r.IntN(20000)
	case 6, 7:
		s.lines, s.errs, s.pause = 10+r.IntN(15), r.IntN(10), 40*time.Millisecond
	default:
		s.lines, s.pause = 20+r.IntN(20), 50*time.Millisecond
	}
	s.drawEnd(r)
	return s
}

// longScript draws a job for a load of jobs that run: they print for half a
// minute at most, little or much, and now and then one is short.
func longScript(r *rand.Rand, tag string) script {
	if r.IntN(6) == 0 {
		return randomScript(r, tag)
	}
	s := script{tag: tag, pause: time.Duration(150+r.IntN(500)) * time.Millisecond, burst: 1 + r.IntN(3)}
	switch r.IntN(12) {
	case 0:
		s.burst = 200 + r.IntN(300)
	case 1, 2:
		s.burst = 20 + r.IntN(80)
	}
	steps := int(time.Duration(8+r.IntN(24)) * time.Second / s.pause)
	s.lines, s.errs = steps*s.burst, r.IntN(steps)
	s.daemon = r.IntN(10) == 0
	s.drawEnd(r)
	return s
}

// drawEnd draws how it ends.
func (s *script) drawEnd(r *rand.Rand) {
	switch r.IntN(8) {
	case 0:
		s.exit = 1
	case 1:
		s.exit = 2 + r.IntN(120)
	case 2:
		s.signal = []string{"KILL", "TERM", "SEGV"}[r.IntN(3)]
	}
}

// lasts is for how long it runs at the least.
func (s script) lasts() time.Duration {
	return time.Duration(s.lines/max(1, s.burst)) * s.pause
}

// long reports whether it lives long enough to see something break.
func (s script) long() bool { return s.lasts() > 500*time.Millisecond }

// mark is in the environment of each of its processes.
func (s script) mark() string { return "TORTURE_JOB=" + s.tag + "." }

// spec is the job for the server.
func (s script) spec(tr traces) wire.JobSpec {
	var b strings.Builder
	b.WriteString(tr.begin(s.tag))
	if s.daemon {
		b.WriteString("setsid sleep 3600 </dev/null >/dev/null 2>&1 &\n")
	}
	print := fmt.Sprintf("echo \"%s $((i+1))\"", s.tag)
	burst := max(1, s.burst)
	if s.pause == 0 {
		burst = max(1, s.lines)
	}
	if burst > 1 {
		print = fmt.Sprintf("seq -f '%s %%.0f' $((i+1)) $((i+%d))", s.tag, burst)
	}
	fmt.Fprintf(&b, "i=0; e=0\nwhile [ $i -lt %d ]; do %s; i=$((i+%d))\n", s.lines, print, burst)
	fmt.Fprintf(&b, "[ $e -ge %[1]d ] || { e=$((e+1)); echo \"%[2]s e$e\" >&2; }\n", s.errs, s.tag)
	if s.pause > 0 {
		fmt.Fprintf(&b, "sleep %.3f\n", s.pause.Seconds())
	}
	fmt.Fprintf(&b, "done\nwhile [ $e -lt %d ]; do e=$((e+1)); echo \"%s e$e\" >&2; done\n", s.errs, s.tag)
	b.WriteString(tr.end(s.tag))
	if s.signal != "" {
		fmt.Fprintf(&b, "kill -%s $$\n", s.signal)
	}
	fmt.Fprintf(&b, "exit %d\n", s.exit)
	return wire.JobSpec{
		Operation: wire.OpRun, Command: []string{"sh", "-c", b.String()},
		Target: wire.Target{Any: true}, Env: map[string]string{"TORTURE_JOB": s.tag + "."},
	}
}

// stdout and stderr are its output.
func (s script) stdout() []byte { return numbered(s.tag+" %d\n", s.lines) }
func (s script) stderr() []byte { return numbered(s.tag+" e%d\n", s.errs) }

func numbered(format string, n int) []byte {
	var b bytes.Buffer
	for i := 1; i <= n; i++ {
		fmt.Fprintf(&b, format, i)
	}
	return b.Bytes()
}

// code is the exit code of commands that stand for the job.
func (s script) code() int {
	return map[string]int{"": s.exit, "KILL": 128 + 9, "TERM": 128 + 15, "SEGV": 128 + 11}[s.signal]
}

// checkEnd compares a job on record with its script.
func (s script) checkEnd(j wire.Job) error {
	want := wire.Job{State: wire.Success}
	if s.exit != 0 || s.signal != "" {
		want.State, want.Reason = wire.Failed, wire.ReasonFailed
	}
	if s.signal != "" {
		want.Signal = "SIG" + s.signal
	}
	if j.State != want.State || j.Reason != want.Reason || j.Signal != want.Signal {
		return fmt.Errorf("ended as %s %q signal %q (%s), want %s %q signal %q",
			j.State, j.Reason, j.Signal, j.Error, want.State, want.Reason, want.Signal)
	}
	if s.signal == "" && (j.ExitCode == nil || *j.ExitCode != s.exit) {
		return fmt.Errorf("exit code is %v, want %d", show(j.ExitCode), s.exit)
	}
	if n := int64(len(s.stdout()) + len(s.stderr())); j.LogBytes != n {
		return fmt.Errorf("log has %d bytes, want %d", j.LogBytes, n)
	}
	return nil
}

func show(n *int) string {
	if n == nil {
		return "missing"
	}
	return fmt.Sprint(*n)
}

// difference says where got leaves the way.
func difference(got, want []byte) error {
	if bytes.Equal(got, want) {
		return nil
	}
	n := 0
	for n < len(got) && n < len(want) && got[n] == want[n] {
		n++
	}
	around := func(b []byte) []byte { return b[max(0, min(n-40, len(b))):min(n+40, len(b))] }
	return fmt.Errorf("%d bytes, want %d; they part at byte %d: got %q, want %q", len(got), len(want), n, around(got), around(want))
}
