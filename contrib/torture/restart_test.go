package torture

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/waypointd/waypoint/mux/wire"
)

// barrier holds jobs, at no cost, until it is opened.
type barrier string

func newBarrier(t *testing.T, path string) barrier {
	t.Helper()
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	return barrier(path)
}

// pass is the shell's command that waits at it.
func (b barrier) pass() string { return ": <" + string(b) + "\n" }

// open lets all through, also those that come later in the test.
func (b barrier) open(t *testing.T) {
	t.Helper()
	f, err := os.OpenFile(string(b), os.O_RDWR, 0) // who reads is never waited for
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
}

// TestRestartUnderManyJobs kills the agent, and then agent and server, under 200
// running jobs, which print, and at last end, while nobody is there: all come back, each
// with its whole output, and none runs twice.
func TestRestartUnderManyJobs(t *testing.T) {
	n := 200
	if testing.Short() {
		n = 40
	}
	ctx := bounded(t, 5*time.Minute)
	s := newSite(t)
	s.concurrency = n + 8
	s.open(ctx)
	c := s.client(ctx)
	tr := tracesIn(s.dir)
	first, second := newBarrier(t, filepath.Join(s.dir, "first")), newBarrier(t, filepath.Join(s.dir, "second"))
	reached := func(part int) func() error { // by all jobs
		return func() error {
			marks, err := filepath.Glob(filepath.Join(s.dir, fmt.Sprintf("*.part%d", part)))
			if err == nil && len(marks) != n {
				err = fmt.Errorf("%d of %d jobs are there", len(marks), n)
			}
			return err
		}
	}

	scripts, ids, live := make([]script, n), make([]string, n), make([]<-chan *heard, n)
	for i := range n {
		sc := script{tag: fmt.Sprintf("m%d", i), lines: 300, exit: i % 3}
		part := func(k int) string {
			return fmt.Sprintf("seq -f '%s %%.0f' %d %d; : >%s.part%d\n", sc.tag, 1+100*k, 100*(k+1), filepath.Join(s.dir, sc.tag), k)
		}
		text := tr.begin(sc.tag) + part(0) + first.pass() + part(1) + second.pass() + part(2) + tr.end(sc.tag) + fmt.Sprintf("exit %d\n", sc.exit)
		j := submitOne(ctx, t, c, wire.JobSpec{Operation: wire.OpRun, Command: []string{"sh", "-c", text}, Target: wire.Target{Any: true}})
		scripts[i], ids[i], live[i] = sc, j.ID, follow(ctx, c, j.ID)
	}
	await(ctx, t, "all jobs to print", reached(0))

	s.agent.kill()
	first.open(t)
	await(ctx, t, "all jobs to print without an agent", reached(1))
	s.startAgent()
	await(ctx, t, "their output", func() error {
		for i, id := range ids {
			j, err := c.Job(ctx, id)
			want := int64(len(numbered(scripts[i].tag+" %d\n", 200)))
			if err == nil && (j.State != wire.Running || j.LogBytes != want) {
				err = fmt.Errorf("job %s is %s with %d bytes of %d", scripts[i].tag, j.State, j.LogBytes, want)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})

	s.agent.kill()
	s.server.kill()
	second.open(t)
	await(ctx, t, "all jobs to end without anybody", reached(2))
	s.startAgent()
	s.startServer()
	for i, id := range ids {
		if err := (<-live[i]).check(scripts[i]); err != nil {
			t.Errorf("job %s live: %v", scripts[i].tag, err)
		}
		if err := listen(ctx, c, wire.StreamRequest{ID: id, Follow: true}).check(scripts[i]); err != nil {
			t.Errorf("job %s afterwards: %v", scripts[i].tag, err)
		}
	}
	traced, err := tr.read()
	if err != nil {
		t.Fatal(err)
	}
	for i, id := range ids {
		j, err := c.Job(ctx, id)
		if err == nil {
			err = checkTraces(traced[scripts[i].tag], j.Attempt, false)
		}
		if err != nil {
			t.Errorf("job %s: %v", scripts[i].tag, err)
		}
	}
	if log, _ := os.ReadFile(s.agent.log); strings.Count(string(log), "job taken up again") < 2*n {
		t.Error("nothing was proved: not all jobs were taken up again twice")
	}
	s.checkNothingLeft(ctx)
}
