package torture

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/waypointd/waypoint/mux/client"
	"github.com/waypointd/waypoint/mux/wire"
)

// mountSmall makes dir a file system of its own with so much room.
func mountSmall(t *testing.T, dir string, size string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: only root can mount a small file system to fill")
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "mode=0700,size="+size); err != nil {
		t.Skipf("SKIPPED: cannot mount a small file system to fill: %v", err)
	}
	t.Cleanup(func() { syscall.Unmount(dir, syscall.MNT_DETACH) })
}

// fillUp takes all the room of a file system; free gives it back.
func fillUp(t *testing.T, dir string) (free func()) {
	t.Helper()
	path := filepath.Join(dir, "filler")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for size := 1 << 20; size > 0; size /= 2 {
		b := make([]byte, size)
		for err = nil; err == nil; {
			_, err = f.Write(b)
		}
	}
	if !strings.Contains(err.Error(), "no space") {
		t.Fatalf("fill %s: %v", dir, err)
	}
	return func() {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
}

// gated is a job that prints, waits until a file is there, and prints again:
// before, while and after the disk is full.
type gated struct {
	script
	dir  string
	id   string
	live <-chan *heard // by one who follows
}

// startGated starts some and waits until each has printed its first part.
func startGated(ctx context.Context, t *testing.T, s *site, c *client.Client) (all []gated) {
	t.Helper()
	for n := range 4 {
		g := gated{script: script{tag: fmt.Sprintf("g%d", n), lines: 120_000}, dir: s.dir}
		g.id = submitOne(ctx, t, c, g.spec()).ID
		g.live = follow(ctx, c, g.id)
		all = append(all, g)
	}
	for _, g := range all {
		g.awaitMark(ctx, t, 0)
	}
	return all
}

func (g gated) gate(n int) string { return filepath.Join(g.dir, fmt.Sprintf("%s.gate%d", g.tag, n)) }
func (g gated) mark(n int) string { return filepath.Join(g.dir, fmt.Sprintf("%s.mark%d", g.tag, n)) }

func (g gated) open(t *testing.T, n int) {
	t.Helper()
	if err := os.WriteFile(g.gate(n), nil, 0o644); err != nil {
		t.Fatal(err)
	}
}

// awaitMark waits until part n has been printed.
func (g gated) awaitMark(ctx context.Context, t *testing.T, n int) {
	t.Helper()
	await(ctx, t, fmt.Sprintf("job %s to print part %d", g.tag, n), func() error {
		_, err := os.Lstat(g.mark(n))
		return err
	})
}

func (g gated) spec() wire.JobSpec {
	third := g.lines / 3
	part := func(n int) string {
		return fmt.Sprintf("seq -f '%s %%.0f' %d %d; : >%s; ", g.tag, 1+third*n, third*(n+1), g.mark(n))
	}
	wait := func(n int) string { return fmt.Sprintf("until [ -e %s ]; do sleep 0.02; done; ", g.gate(n)) }
	return wire.JobSpec{
		Operation: wire.OpRun, Target: wire.Target{Any: true},
		Command: []string{"sh", "-c", part(0) + wait(0) + part(1) + wait(1) + part(2)},
	}
}

// finish lets the job end and holds that no byte of it was lost.
func (g gated) finish(ctx context.Context, t *testing.T, c *client.Client) {
	t.Helper()
	g.open(t, 1)
	end, err := c.Wait(ctx, g.id)
	if err == nil {
		err = g.checkEnd(end)
	}
	if err != nil {
		t.Errorf("job %s: %v", g.tag, err)
	}
	if err := listen(ctx, c, wire.StreamRequest{ID: g.id, Follow: true}).check(g.script); err != nil {
		t.Errorf("job %s afterwards: %v", g.tag, err)
	}
	if err := (<-g.live).check(g.script); err != nil {
		t.Errorf("job %s live: %v", g.tag, err)
	}
}

func follow(ctx context.Context, c *client.Client, id string) <-chan *heard {
	live := make(chan *heard, 1)
	go func() { live <- listen(ctx, c, wire.StreamRequest{ID: id, Follow: true}) }()
	return live
}

// TestServerDiskFull fills the server's disk under running jobs, and kills
// server and agent while it is full.
func TestServerDiskFull(t *testing.T) {
	t.Parallel()
	ctx := bounded(t, 3*time.Minute)
	s := newSite(t)
	mountSmall(t, s.serverState, "48m")
	s.open(ctx)
	c := s.client(ctx)

	all := startGated(ctx, t, s, c)
	accepted := s.cli(ctx, "run", "--detach", "--no-local", "--", "true")
	if accepted.code != 0 {
		t.Fatalf("run before the disk is full: %s", accepted)
	}

	free := fillUp(t, s.serverState)
	refusal := submitUntilRefused(ctx, t, s)
	checkAnswer(t, refusal, 5, []string{"space"})
	t.Logf("refused: %s", refusal.stderr)
	if took := patienceOf(func() { submitUntilRefused(ctx, t, s) }); took > 10*time.Second {
		t.Errorf("a refusal takes %s", took)
	}
	s.mustAnswer(ctx, "the disk is full")
	for i, g := range all {
		switch i {
		case 1:
			s.server.kill()
			s.startServer()
			s.awaitServer(ctx)
		case 2:
			s.agent.kill()
			s.startAgent()
			s.awaitRunner(ctx, c)
		}
		g.open(t, 0)
		g.awaitMark(ctx, t, 1) // the job goes on
		if a := s.cli(ctx, "job", "inspect", g.id, "--json"); a.code != 0 || !strings.Contains(a.stdout, `"running"`) {
			t.Errorf("running job %s, while the disk is full: %s", g.tag, a)
		}
	}
	checkAnswer(t, submitUntilRefused(ctx, t, s), 5, []string{"space"})
	for _, p := range []*process{s.server, s.agent} {
		if err := p.hopeless(); err != nil {
			t.Error(err)
		}
	}

	free()
	await(ctx, t, "submits to be taken again", func() error {
		if a := s.cli(ctx, "run", "--no-local", "--", "true"); a.code != 0 {
			return fmt.Errorf("%s", a)
		}
		return nil
	})
	for _, g := range all {
		g.finish(ctx, t, c)
	}
	if a := s.cli(ctx, "job", "wait", strings.TrimSpace(accepted.stdout)); a.code != 0 {
		t.Errorf("a job queued before the disk was full: %s", a)
	}
	s.mustAnswer(ctx, "all of that")
}

// submitUntilRefused queues jobs that ask for some room each.
func submitUntilRefused(ctx context.Context, t *testing.T, s *site) answer {
	t.Helper()
	big := "--env=X=" + strings.Repeat("x", 60_000)
	for range 500 {
		if a := s.cli(ctx, "run", "--detach", "--no-local", "--runner", "nobody", big, "--", "true"); a.code != 0 {
			return a
		}
	}
	t.Fatal("a server whose disk is full takes 500 jobs")
	return answer{}
}

func patienceOf(f func()) time.Duration {
	begin := time.Now()
	f()
	return time.Since(begin)
}

// TestRunnerDiskFull fills the runner's disk under running jobs, and kills agent
// and server while it is full.
func TestRunnerDiskFull(t *testing.T) {
	t.Parallel()
	ctx := bounded(t, 3*time.Minute)
	s := newSite(t)
	mountSmall(t, s.agentState, "16m")
	config := filepath.Join(s.dir, "server.toml")
	if err := os.WriteFile(config, []byte("heartbeat = \"500ms\"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	s.serverArgs = []string{"--config", config}
	s.open(ctx)
	c := s.client(ctx)

	all := startGated(ctx, t, s, c)
	free := fillUp(t, s.agentState)
	// They may stand still at their next write, but must not be killed or cut.
	second := submitOne(ctx, t, c, wire.JobSpec{Operation: wire.OpRun, Command: []string{"true"}, Target: wire.Target{Any: true}})
	ids := []string{second.ID}
	for i, g := range all {
		if i == 2 {
			s.server.kill()
			s.startServer()
			s.awaitServer(ctx)
		}
		g.open(t, 0)
		ids = append(ids, g.id)
	}
	held(ctx, t, 3*time.Second, func() error {
		if !s.agent.alive() {
			return fmt.Errorf("the agent has ended: %v", s.agent.err)
		}
		for _, id := range ids {
			j, err := c.Job(ctx, id)
			if err != nil {
				return err
			}
			if j.State.Ended() && j.State != wire.Success {
				return fmt.Errorf("job %s ended as %s %s: %s", id, j.State, j.Reason, j.Error)
			}
		}
		return nil
	})
	s.mustAnswer(ctx, "the runner's disk is full")
	awaitWaits(ctx, t, c, all)
	s.agent.kill()
	s.startAgent()
	await(ctx, t, "a new agent on the full disk", func() error {
		if err := s.agent.hopeless(); err != nil {
			return err
		}
		r, err := c.Runner(ctx, runnerID)
		if err == nil && (!r.Online || r.RunningJobs == 0) {
			err = fmt.Errorf("online %t with %d jobs", r.Online, r.RunningJobs)
		}
		return err
	})
	awaitWaits(ctx, t, c, all) // the new one says so too
	await(ctx, t, "why a job is not begun", func() error {
		w, err := c.Why(ctx, second.ID)
		if err == nil && (w.Job.State.Ended() || !strings.Contains(w.Sentence, "draining: "+runnerID+" (it waits for its disk to be writable again: ") && !strings.Contains(w.Sentence, "room on the runner's disk to start")) {
			err = fmt.Errorf("it is %s: %q %q", w.Job.State, w.Code, w.Sentence)
		}
		return err
	})

	free()
	await(ctx, t, "the runner to say that nothing waits", func() error {
		r, err := c.Runner(ctx, runnerID)
		if err == nil && len(r.Waits) > 0 {
			err = fmt.Errorf("it says %v", r.Waits)
		}
		return err
	})
	for _, g := range all {
		g.awaitMark(ctx, t, 1)
		g.finish(ctx, t, c)
	}
	if end, err := c.Wait(ctx, second.ID); err != nil || end.State != wire.Success {
		t.Errorf("a job queued while the runner's disk was full: %s %s %s, %v", end.State, end.Reason, end.Error, err)
	}
	if !s.agent.alive() {
		t.Errorf("the agent has ended: %v", s.agent.err)
	}
}

// awaitWaits waits until the runner says with its heartbeats that these jobs wait for
// room, and holds that a look at one of them, and at the runner, shows it.
func awaitWaits(ctx context.Context, t *testing.T, c *client.Client, all []gated) {
	t.Helper()
	const text = "room on the runner's disk to go on"
	for _, g := range all {
		await(ctx, t, fmt.Sprintf("job %s to be said to wait for room", g.tag), func() error {
			r, err := c.Runner(ctx, runnerID)
			if err != nil {
				return err
			}
			if !slices.ContainsFunc(r.Waits, func(w wire.Wait) bool { return w.Job == g.id && strings.Contains(w.For, text) }) {
				return fmt.Errorf("the runner waits for %v", r.Waits)
			}
			w, err := c.Why(ctx, g.id)
			if err == nil && (w.Code != "running" || !strings.Contains(w.Sentence, "it waits for "+text)) {
				err = fmt.Errorf("%q %q", w.Code, w.Sentence)
			}
			return err
		})
	}
}

// held asks for some time whether all is still well.
func held(ctx context.Context, t *testing.T, d time.Duration, f func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	poll(ctx, func() error {
		if err := f(); err != nil && ctx.Err() == nil {
			t.Fatal(err)
		}
		return fmt.Errorf("so far so good")
	})
}
