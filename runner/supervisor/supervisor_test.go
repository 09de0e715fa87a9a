package supervisor

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/waypointd/waypoint/mux/wire"
	"github.com/waypointd/waypoint/runner/executor"
	"github.com/waypointd/waypoint/statedir/joblog"
)

// The test binary is also the shim, the supervisor process, and a source of
// much output.
func TestMain(m *testing.M) {
	switch {
	case os.Args[0] == executor.ShimArg:
		os.Exit(executor.ShimMain())
	case len(os.Args) == 5 && os.Args[1] == "supervise":
		idle, _ := time.ParseDuration(os.Args[4])
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
		defer stop()
		err := Run(ctx, ProcessConfig{Dir: os.Args[2], Isolation: os.Args[3], IdleExit: idle, Logger: slog.New(slog.NewTextHandler(os.Stderr, nil))})
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	case len(os.Args) == 5 && os.Args[1] == "supervise-as":
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
		defer stop()
		err := Run(ctx, ProcessConfig{Dir: os.Args[2], Isolation: os.Args[3], JobUser: os.Args[4], Logger: slog.New(slog.NewTextHandler(os.Stderr, nil))})
		if err != nil {
			fmt.Fprintln(os.Stderr, wire.KindOf(err), err)
			os.Exit(1)
		}
		os.Exit(0)
	case len(os.Args) == 3 && os.Args[1] == "deep":
		n, _ := strconv.Atoi(os.Args[2])
		for range n {
			if os.Mkdir("d", 0o755) != nil || os.WriteFile("f", nil, 0o600) != nil || os.Chdir("d") != nil {
				os.Exit(1)
			}
		}
		os.Exit(0)
	case len(os.Args) == 3 && os.Args[1] == "flood":
		n, _ := strconv.ParseInt(os.Args[2], 10, 64)
		b := bytes.Repeat([]byte("0123456789abcde\n"), 4<<10)
		for ; n > 0; n -= int64(len(b)) {
			os.Stdout.Write(b[:min(n, int64(len(b)))])
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func kinds(t testing.TB) []string {
	e, err := executor.New(executor.Config{Dir: t.TempDir(), Isolation: executor.IsolationCgroup})
	if err != nil {
		t.Logf("no cgroups here: %v", err)
		return []string{executor.IsolationProcessGroup}
	}
	e.Close()
	return []string{executor.IsolationCgroup, executor.IsolationProcessGroup}
}

// each runs f with a supervisor of each isolation, in this process and, with
// remote set, behind a socket in another.
func each(t *testing.T, f func(t *testing.T, j Jobs)) {
	for _, kind := range kinds(t) {
		t.Run(kind, func(t *testing.T) {
			s, err := New(Config{Dir: t.TempDir(), Isolation: kind, Logger: slog.New(slog.NewTextHandler(t.Output(), nil))})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := s.Close(); err != nil {
					t.Error(err)
				}
			})
			f(t, s)
			if s.Isolation() != kind {
				t.Errorf("isolation is %s", s.Isolation())
			}
		})
	}
	t.Run("socket", func(t *testing.T) {
		dir := t.TempDir()
		j, err := Ensure(t.Context(), dir, self(dir, "", "100ms"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { j.Close() })
		f(t, j)
	})
}

func self(dir, isolation, idle string) []string {
	return []string{"/proc/self/exe", "supervise", dir, isolation, idle}
}

var jobNumber int

func spec(t testing.TB, argv ...string) Spec {
	t.Helper()
	jobNumber++
	work := t.TempDir()
	return Spec{
		JobRef:  wire.JobRef{Job: fmt.Sprintf("job%d", jobNumber), Attempt: 1},
		Dir:     filepath.Join(t.TempDir(), "attempt"),
		WorkDir: work,
		Steps:   []Step{{Argv: argv}},
		Env:     []string{"PATH=/usr/local/bin:/usr/bin:/bin"},
		Grace:   5 * time.Second,
	}
}

func sh(t testing.TB, script string) Spec { return spec(t, "sh", "-c", script) }

// ended waits for the end of an attempt that has been started.
func ended(t testing.TB, j Jobs, ref wire.JobRef) End {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	done := fmt.Errorf("ended")
	ctx, stop := context.WithCancelCause(ctx)
	err := j.Watch(ctx, func(e Event) {
		if e.JobRef == ref && e.Ended {
			stop(done)
		}
	})
	if err != done {
		t.Fatalf("watch: %v", err)
	}
	all, err := j.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range all {
		if s.JobRef == ref && s.End != nil {
			return *s.End
		}
	}
	t.Fatal("the attempt that ended is not listed")
	return End{}
}

func start(t testing.TB, j Jobs, s Spec) {
	t.Helper()
	if err := j.Start(t.Context(), s); err != nil {
		t.Fatal(err)
	}
}

// run runs an attempt to its end, and checks what holds for all of them.
func run(t testing.TB, j Jobs, s Spec) End {
	t.Helper()
	start(t, j, s)
	end := ended(t, j, s.JobRef)
	check(t, s, end)
	return end
}

func check(t testing.TB, s Spec, end End) {
	t.Helper()
	kept, err := readEnd(s.Dir)
	if err != nil || kept == nil || kept.State != end.State || kept.LogBytes != end.LogBytes {
		t.Errorf("end.json holds %+v (%v), the supervisor says %+v", kept, err, end)
	}
	if n := len(logOf(t, s, 0)); int64(n) != end.LogBytes {
		t.Errorf("the log has %d bytes, the end says %d", n, end.LogBytes)
	}
	if end.Usage == nil || end.Usage.WallSeconds <= 0 || end.At.IsZero() {
		t.Errorf("usage is %+v", end.Usage)
	}
}

// logOf is what the log holds of a stream, or of all (0).
func logOf(t testing.TB, s Spec, stream wire.StreamID) string {
	t.Helper()
	r, err := joblog.Open(filepath.Join(s.Dir, LogFile), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var b bytes.Buffer
	for {
		d, err := r.Next()
		if err == io.EOF {
			return b.String()
		}
		if err != nil {
			t.Fatal(err)
		}
		if stream == 0 || d.Stream == stream {
			b.Write(d.Bytes)
		}
	}
}

func await(t testing.TB, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !f(); {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain: %s", what)
		}
		unix.Poll(nil, 2)
	}
}

func alive(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && !strings.Contains(string(b), ") Z ")
}

// pid reads a process number that a job has written.
func pid(t testing.TB, file string) int {
	t.Helper()
	var n int
	await(t, "a process number in "+file, func() bool {
		b, _ := os.ReadFile(file)
		n, _ = strconv.Atoi(strings.TrimSpace(string(b)))
		return n > 0 && strings.HasSuffix(string(b), "\n")
	})
	return n
}

func same(a, b *int) bool { return (a == nil) == (b == nil) && (a == nil || *a == *b) }

func TestEnds(t *testing.T) {
	each(t, func(t *testing.T, j Jobs) {
		for name, c := range map[string]struct {
			spec Spec
			end  End
		}{
			"success":        {sh(t, "exit 0"), End{State: wire.Success, ExitCode: new(0)}},
			"code":           {sh(t, "exit 7"), End{State: wire.Failed, Reason: wire.ReasonFailed, ExitCode: new(7), Error: "the command exited with code 7"}},
			"signal":         {sh(t, "kill -SEGV $$"), End{State: wire.Failed, Reason: wire.ReasonFailed, Signal: "SIGSEGV", Error: "the command was ended by SIGSEGV"}},
			"not found":      {spec(t, "nosuch"), End{State: wire.Failed, Reason: wire.ReasonFailed, ExitCode: new(127), Error: "command not found: nosuch"}},
			"not executable": {spec(t, "/etc/passwd"), End{State: wire.Failed, Reason: wire.ReasonFailed, ExitCode: new(126), Error: "/etc/passwd cannot be executed: permission denied"}},
		} {
			end := run(t, j, c.spec)
			if end.State != c.end.State || end.Reason != c.end.Reason || end.Signal != c.end.Signal || end.Error != c.end.Error || !same(end.ExitCode, c.end.ExitCode) {
				t.Errorf("%s: got %+v, want %+v", name, end, c.end)
			}
		}
		gone := sh(t, "exit 0")
		os.Remove(gone.WorkDir)
		if end := run(t, j, gone); end.State != wire.Failed || end.ExitCode != nil || !strings.Contains(end.Error, "open working directory") {
			t.Errorf("without working directory: %+v", end)
		}
	})
}

func TestSteps(t *testing.T) {
	each(t, func(t *testing.T, j Jobs) {
		s := spec(t)
		s.Steps = []Step{
			{Name: "hook before", Argv: []string{"sh", "-c", "echo one; echo warn >&2; sleep 1000 & echo $! > pid"}},
			{Name: "build", Argv: []string{"sh", "-c", "echo two; kill -0 $(cat pid) && echo it lives; exit 3"}, Continue: true},
			{Argv: []string{"sh", "-c", "echo three"}},
			{Name: "last", Argv: []string{"sh", "-c", "echo four; exit 4"}},
			{Name: "never", Argv: []string{"sh", "-c", "echo five"}},
		}
		end := run(t, j, s)
		if end.State != wire.Failed || !same(end.ExitCode, new(4)) || end.Error != "last exited with code 4" {
			t.Errorf("got %+v", end)
		}
		want := "==> hook before\none\nwarn\n==> build\ntwo\nit lives\n==> build exited with code 3; going on\nthree\n==> last\nfour\n"
		got := logOf(t, s, 0)
		if got != want && got != strings.Replace(want, "one\nwarn\n", "warn\none\n", 1) {
			t.Errorf("the log is %q", got)
		}
		if got := logOf(t, s, wire.Notice); !strings.HasPrefix(got, "==> hook before\n==> build\n") {
			t.Errorf("the notices are %q", got)
		}
		if n := pid(t, filepath.Join(s.WorkDir, "pid")); alive(n) {
			t.Error("what a step left running lives after the end")
		}
		s = spec(t)
		s.Steps = []Step{{Name: "a", Argv: []string{"false"}, Continue: true}}
		if end := run(t, j, s); end.State != wire.Success {
			t.Errorf("got %+v", end)
		}
	})
}

func TestStdin(t *testing.T) {
	each(t, func(t *testing.T, j Jobs) {
		file := filepath.Join(t.TempDir(), "in")
		text := strings.Repeat("some text\n", 100_000)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		s := spec(t, "cat")
		s.Stdin = file
		if end := run(t, j, s); end.State != wire.Success || logOf(t, s, wire.Stdout) != text {
			t.Errorf("got %+v", end)
		}
		if end := run(t, j, spec(t, "cat")); end.State != wire.Success || end.LogBytes != 0 {
			t.Errorf("without standard input: %+v", end)
		}
	})
}

func TestLeftoverHoldsOutput(t *testing.T) {
	each(t, func(t *testing.T, j Jobs) {
		s := sh(t, `sleep 1000 & echo $! > a; (setsid env -i /bin/sh -c 'echo $$ > b; exec sleep 1000' &) ; while [ ! -s b ]; do sleep 0.01; done; echo done`)
		began := time.Now()
		if end := run(t, j, s); end.State != wire.Success || logOf(t, s, 0) != "done\n" {
			t.Errorf("got %+v", end)
		}
		if d := time.Since(began); d > 10*time.Second {
			t.Errorf("its end took %v", d)
		}
		for _, f := range []string{"a", "b"} {
			if n := pid(t, filepath.Join(s.WorkDir, f)); alive(n) {
				t.Errorf("process %s is left", f)
			}
		}
	})
}

func TestConflicts(t *testing.T) {
	each(t, func(t *testing.T, j Jobs) {
		ctx := t.Context()
		s := sh(t, "echo ready; exec sleep 1000")
		start(t, j, s)
		await(t, "ready", func() bool { return logOf(t, s, 0) == "ready\n" })
		if err := j.Start(ctx, s); wire.KindOf(err) != wire.Conflict {
			t.Errorf("second start: %v", err)
		}
		if err := j.Forget(ctx, s.JobRef); wire.KindOf(err) != wire.Conflict {
			t.Errorf("forget while it runs: %v", err)
		}
		if err := j.Stop(ctx, s.JobRef, true); err != nil {
			t.Error(err)
		}
		end := ended(t, j, s.JobRef)
		if end.State != wire.Canceled || end.Reason != wire.ReasonCanceled || end.Signal != "SIGKILL" {
			t.Errorf("got %+v", end)
		}
		if err := j.Start(ctx, s); wire.KindOf(err) != wire.Conflict {
			t.Errorf("start after the end: %v", err)
		}
		if err := j.Stop(ctx, s.JobRef, false); err != nil {
			t.Errorf("stop after the end: %v", err)
		}
		if err := j.Forget(ctx, s.JobRef); err != nil {
			t.Error(err)
		}
		if err := j.Start(ctx, s); wire.KindOf(err) != wire.Conflict {
			t.Errorf("start of one that was forgotten: %v", err)
		}
		for name, err := range map[string]error{"stop": j.Stop(ctx, s.JobRef, false), "forget": j.Forget(ctx, s.JobRef)} {
			if wire.KindOf(err) != wire.NotFound {
				t.Errorf("%s: %v", name, err)
			}
		}
		for _, change := range []func(*Spec){
			func(s *Spec) { s.Job = "../x" },
			func(s *Spec) { s.Job = "" },
			func(s *Spec) { s.Dir = "relative" },
			func(s *Spec) { s.Steps = nil },
			func(s *Spec) { s.Timeout = -1 },
		} {
			bad := sh(t, "true")
			change(&bad)
			if err := j.Start(ctx, bad); wire.KindOf(err) != wire.BadUsage {
				t.Errorf("%+v: %v", bad, err)
			}
		}
		if all, err := j.List(ctx); len(all) != 0 || err != nil {
			t.Error(all, err)
		}
	})
}

func TestStop(t *testing.T) {
	each(t, func(t *testing.T, j Jobs) {
		ctx := t.Context()
		ready := func(s Spec, text string) {
			await(t, text, func() bool { return strings.Contains(logOf(t, s, 0), text) })
		}
		// It ends well, after its child: canceled all the same.
		s := sh(t, `sh -c 'trap "echo child; exit" TERM; echo ready; while :; do sleep 0.05; done' & trap 'wait; echo bye; exit 0' TERM; echo ready; wait; wait`)
		start(t, j, s)
		await(t, "both ready", func() bool { return strings.Count(logOf(t, s, 0), "ready\n") == 2 })
		if err := j.Stop(ctx, s.JobRef, false); err != nil {
			t.Fatal(err)
		}
		end := ended(t, j, s.JobRef)
		if end.State != wire.Canceled || end.Reason != wire.ReasonCanceled || !same(end.ExitCode, new(0)) {
			t.Errorf("got %+v", end)
		}
		if got := strings.ReplaceAll(logOf(t, s, 0), "Terminated\n", ""); !strings.HasSuffix(got, "child\nbye\n") {
			t.Errorf("the log is %q", got)
		}
		// A child that needs longer than its parent has its grace.
		s = sh(t, `sh -c 'trap "sleep 0.3; echo cleaned up; exit" TERM; echo ready; while :; do sleep 0.05; done' & wait`)
		start(t, j, s)
		ready(s, "ready")
		j.Stop(ctx, s.JobRef, false)
		if end := ended(t, j, s.JobRef); end.Signal != "SIGTERM" || !strings.Contains(logOf(t, s, 0), "cleaned up") {
			t.Errorf("got %+v, %q", end, logOf(t, s, 0))
		}
		// It ignores TERM.
		s = sh(t, `trap 'echo no' TERM; echo ready; while :; do sleep 0.05; done`)
		s.Grace = 2 * time.Second // for the trap, too, on a busy machine
		start(t, j, s)
		ready(s, "ready")
		j.Stop(ctx, s.JobRef, false)
		if end := ended(t, j, s.JobRef); end.Signal != "SIGKILL" || end.State != wire.Canceled || end.Usage.WallSeconds < 2 {
			t.Errorf("got %+v", end)
		}
		if !strings.Contains(logOf(t, s, 0), "no\n") {
			t.Error("it was not asked first")
		}
		// Force after asking does not wait for the grace; nor does it need it.
		s = sh(t, `trap 'echo no' TERM; echo ready; while :; do sleep 0.05; done`)
		s.Grace = time.Hour
		start(t, j, s)
		ready(s, "ready")
		j.Stop(ctx, s.JobRef, false)
		ready(s, "no\n")
		j.Stop(ctx, s.JobRef, true)
		if end := ended(t, j, s.JobRef); end.Signal != "SIGKILL" || end.State != wire.Canceled {
			t.Errorf("got %+v", end)
		}
		// No step is started after a stop.
		s = sh(t, `trap 'exit 0' TERM; echo ready; while :; do sleep 0.05; done`)
		s.Steps = append(s.Steps, Step{Argv: []string{"echo", "second step"}})
		start(t, j, s)
		ready(s, "ready")
		j.Stop(ctx, s.JobRef, false)
		if end := ended(t, j, s.JobRef); end.State != wire.Canceled || strings.Contains(logOf(t, s, 0), "second") {
			t.Errorf("got %+v, %q", end, logOf(t, s, 0))
		}
		// Right away: whatever moment it hits.
		for range 10 {
			s = sh(t, `exec sleep 1000`)
			start(t, j, s)
			j.Stop(ctx, s.JobRef, false)
			if end := ended(t, j, s.JobRef); end.State != wire.Canceled {
				t.Errorf("got %+v", end)
			}
		}
	})
}

func TestTimeout(t *testing.T) {
	each(t, func(t *testing.T, j Jobs) {
		s := sh(t, `trap 'echo asked; exit 0' TERM; while :; do sleep 0.02; done`)
		s.Timeout = 3 * time.Second // by then the trap is set, on a busy machine too
		end := run(t, j, s)
		if end.State != wire.Failed || end.Reason != wire.ReasonTimeout || end.Error != "ran longer than 3s" || !strings.Contains(logOf(t, s, 0), "asked\n") {
			t.Errorf("got %+v, %q", end, logOf(t, s, 0))
		}
		s = sh(t, "true")
		s.Timeout = time.Hour
		if end := run(t, j, s); end.State != wire.Success {
			t.Errorf("got %+v", end)
		}
	})
}

// readEnd reads an attempt's end.json; nil where there is none, or one that a
// host which lost power has left unreadable.
func readEnd(dir string) (*End, error) {
	b, err := os.ReadFile(filepath.Join(dir, endFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read end of attempt: %w", err)
	}
	var end End
	if json.Unmarshal(b, &end) != nil || !end.State.Ended() {
		return nil, nil
	}
	return &end, nil
}
