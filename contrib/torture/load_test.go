package torture

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/waypointd/waypoint/mux/client"
	"github.com/waypointd/waypoint/mux/wire"
)

// load is the clients: they submit, wait, follow and cancel until they are told
// to stop, as calls and as commands. Each job is held against the model as soon
// as it has ended, and all of them once more at the end.
type load struct {
	s        *site
	tr       traces
	room     chan struct{}                         // a token for each job under way
	draw     func(r *rand.Rand, tag string) script // the next job
	launch   func(start func() error) error        // calls start where commands are run
	suffered func(from, to time.Time) bool         // whether something broke meanwhile
	before   int                                   // jobs that the server had before
	// refusable: a call may be refused as unavailable, has changed nothing then, and
	// is made again.
	refusable bool
	drained   sync.WaitGroup

	mu      sync.Mutex
	open    map[*promise]bool // guarded by mu
	kept    []kept            // guarded by mu
	figures figures           // guarded by mu
}

// figures count what was held.
type figures struct {
	lines, bytes                         int64
	followed, throughFault               int
	streamed, ran, canceled, anew, reran int
}

// promise is a job that somebody waits for.
type promise struct {
	script
	id      string
	end     wire.Job // as Wait said
	waitErr error
	live    *heard  // by one who followed from the start; nil where nobody did
	command *answer // of the command that ran or followed it; nil likewise
	from    time.Time
	called  bool // its end was asked for
	ran     bool // by `waypoint run`
}

// kept is what is remembered of a job that has been checked.
type kept struct {
	script
	id      string
	state   wire.State
	attempt int
	bytes   int64
	called  bool
}

func newLoad(ctx context.Context, s *site, jobs int, draw func(*rand.Rand, string) script, a *adversary) *load {
	l := &load{
		s: s, tr: tracesIn(s.dir), room: make(chan struct{}, jobs), draw: draw, suffered: a.suffered,
		launch: func(start func() error) error { return start() }, open: map[*promise]bool{},
	}
	l.before = total(s.mustAnswer(ctx, "start"))
	return l
}

func total(st wire.ServerStatus) (n int) {
	for _, k := range st.Jobs {
		n += k
	}
	return n
}

// start begins with some clients; stop ends the submitting only.
func (l *load) start(ctx context.Context, seed uint64) (stop func()) {
	quit := make(chan struct{})
	var submitters sync.WaitGroup
	for n := range 6 {
		r := rand.New(rand.NewPCG(seed, uint64(1+n)))
		c := l.s.client(ctx)
		submitters.Go(func() {
			for i := 0; ; {
				select {
				case <-quit:
					return
				case <-ctx.Done():
					return
				case l.room <- struct{}{}:
				}
				i++
				l.submit(ctx, c, r, fmt.Sprintf("t%dx%d", n, i))
			}
		})
	}
	l.s.t.Cleanup(func() { // nothing is said behind the end of the test
		submitters.Wait()
		l.drained.Wait()
	})
	return func() {
		close(quit)
		submitters.Wait()
	}
}

// submit queues one job and waits for it behind the caller's back. An error is
// a broken promise: the client library repeats over every loss.
func (l *load) submit(ctx context.Context, c *client.Client, r *rand.Rand, tag string) {
	p := &promise{script: l.draw(r, tag), from: time.Now()}
	// Drawn here, whoever needs them: so a seed is always the same jobs.
	how, follow, after, force := r.IntN(16), r.IntN(3) == 0 || p.long() && r.IntN(2) == 0, r.Int64N(int64(p.lasts())+1), r.IntN(2) == 0
	l.mu.Lock()
	l.open[p] = true
	l.mu.Unlock()
	var watchers sync.WaitGroup
	if how == 0 {
		watchers.Go(func() { l.run(ctx, c, p) })
	} else {
		var jobs []wire.Job
		err := l.repeat(ctx, func() (err error) {
			jobs, err = c.Submit(ctx, p.spec(l.tr))
			return err
		})
		if err != nil || len(jobs) != 1 {
			l.complain(ctx, p, "submit", fmt.Errorf("%d jobs, %w", len(jobs), err))
			l.closed(p)
			return
		}
		l.mu.Lock()
		p.id = jobs[0].ID
		l.mu.Unlock()
		if follow {
			watchers.Go(func() { p.live = listen(ctx, c, wire.StreamRequest{ID: p.id, Follow: true}) })
		}
		watchers.Go(func() { p.end, p.waitErr = c.Wait(ctx, p.id) })
	}
	switch how {
	case 1:
		watchers.Go(func() { p.command = l.command(ctx, p, "job", "stream", p.id) })
	case 2:
		p.called = true
		watchers.Go(func() {
			pass(ctx, time.Duration(after))
			var j wire.Job
			if err := l.repeat(ctx, func() (err error) {
				j, err = c.Cancel(ctx, p.id, force)
				return err
			}); err != nil || j.CancelRequested.IsZero() && !j.State.Ended() {
				l.complain(ctx, p, "cancel", fmt.Errorf("%s, asked for at %s, %w", j.State, j.CancelRequested, err))
			}
		})
	}
	l.drained.Go(func() {
		watchers.Wait()
		l.check(ctx, c, p)
		l.closed(p)
	})
}

// repeat makes a call again as long as it may be refused.
func (l *load) repeat(ctx context.Context, f func() error) error {
	for {
		err := f()
		if !l.refusable || wire.KindOf(err) != wire.Unavailable || ctx.Err() != nil {
			return err
		}
		pass(ctx, 50*time.Millisecond)
	}
}

// complain says what is wrong with a job; after the end of the test everything is.
func (l *load) complain(ctx context.Context, p *promise, what string, err error) {
	if err != nil && ctx.Err() == nil {
		l.s.t.Errorf("job %s (%s): %s: %v\n%s", p.id, p.tag, what, err, l.s.said(p.id))
	}
}

// said is what the logs say of a job, and when the processes began and connected.
func (s *site) said(job string) string {
	var b strings.Builder
	for _, name := range []string{"server", "agent", "supervisor"} {
		log, _ := os.ReadFile(filepath.Join(s.dir, name+".log"))
		var around []string // since the last line that was taken
		for line := range strings.Lines(string(log)) {
			if strings.Contains(line, job) {
				b.WriteString(strings.Join(around[max(0, len(around)-3):], "") + name + ": " + line)
				around = nil
			} else if strings.HasPrefix(line, "-- ") || strings.Contains(line, "connected") || strings.Contains(line, "handing over") {
				around = append(around, name+": "+line)
			}
		}
		b.WriteString(strings.Join(around[:min(2, len(around))], ""))
	}
	return b.String()
}

// closed ends what is known of an open promise.
func (l *load) closed(p *promise) {
	l.mu.Lock()
	delete(l.open, p)
	l.mu.Unlock()
	<-l.room
}

// run has the job run by `waypoint run`.
func (l *load) run(ctx context.Context, c *client.Client, p *promise) {
	p.ran = true
	spec := p.spec(l.tr)
	args := []string{"run", "--no-local", "--verbose", "--idempotency-key", "load " + p.tag}
	for k, v := range spec.Env {
		args = append(args, "--env", k+"="+v)
	}
	p.command = l.command(ctx, p, append(append(args, "--"), spec.Command...)...)
	_, rest, _ := strings.Cut(p.command.stderr, "job ")
	id, _, _ := strings.Cut(rest, "\n")
	l.mu.Lock()
	p.id = id
	l.mu.Unlock()
	p.end, p.waitErr = c.Wait(ctx, p.id)
}

// command is a command that stands for the job. It may begin while there is no
// way to the server, which is an error of its own; then it begins again.
func (l *load) command(ctx context.Context, p *promise, args ...string) *answer {
	for {
		a := l.once(ctx, args...)
		if a.code != 5 || a.stdout != "" || !strings.Contains(a.stderr, "waypoint: ") || ctx.Err() != nil {
			return &a
		}
		l.mu.Lock()
		l.figures.reran++
		l.mu.Unlock()
		pass(ctx, 100*time.Millisecond) // as a person would
	}
}

// once runs a command to its end, however long that takes.
func (l *load) once(ctx context.Context, args ...string) answer {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir = l.s.dir
	cmd.Env = append(cleanEnv(), "WAYPOINT_SERVER_ADDR="+l.s.address(), "WAYPOINT_SERVER_TOKEN="+l.s.login)
	cmd.WaitDelay = time.Second
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := l.launch(cmd.Start)
	if err == nil {
		err = cmd.Wait()
	}
	if _, exited := errors.AsType[*exec.ExitError](err); err != nil && !exited {
		return answer{code: -1, stderr: err.Error()}
	}
	return answer{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// check holds the model for a job that has ended.
func (l *load) check(ctx context.Context, c *client.Client, p *promise) {
	wrong := func(what string, err error) { l.complain(ctx, p, what, err) }
	if p.waitErr != nil {
		wrong("wait", p.waitErr)
		return
	}
	var now wire.Job
	if err := l.repeat(ctx, func() (err error) {
		now, err = c.Job(ctx, p.id)
		return err
	}); err != nil {
		wrong("look up", err)
		return
	}
	canceled := p.called && p.end.State == wire.Canceled
	if canceled != (now.State == wire.Canceled) || now.State != p.end.State || now.Attempt != p.end.Attempt {
		wrong("end on record", fmt.Errorf("%s in attempt %d, was %s in attempt %d", now.State, now.Attempt, p.end.State, p.end.Attempt))
	}
	if !canceled {
		wrong("end", p.checkEnd(p.end))
		wrong("end on record", p.checkEnd(now))
	}
	afterwards := listen(ctx, c, wire.StreamRequest{ID: p.id, Follow: true})
	heards := map[string]*heard{"afterwards": afterwards}
	if p.live != nil {
		heards["live"] = p.live
	}
	for when, h := range heards {
		if canceled {
			wrong("output "+when, h.checkCut(p.script))
		} else {
			wrong("output "+when, h.check(p.script))
		}
	}
	if p.command != nil {
		wrong("command", l.checkCommand(p))
	}
	if p.called || p.daemon {
		ctx, cancel := context.WithTimeout(ctx, slack(l.s.t))
		defer cancel()
		wrong("what it leaves", poll(ctx, func() error {
			if left := processesOf(p.mark()); len(left) > 0 {
				return fmt.Errorf("%v", left)
			}
			return nil
		}))
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.kept = append(l.kept, kept{p.script, p.id, now.State, now.Attempt, now.LogBytes, p.called})
	f := &l.figures
	f.bytes += afterwards.offset
	f.lines += int64(bytes.Count(afterwards.output[wire.Stdout], []byte("\n")) + bytes.Count(afterwards.output[wire.Stderr], []byte("\n")))
	if canceled {
		f.canceled++
	}
	if p.live != nil {
		f.followed++
		if l.suffered(p.live.began, p.live.ended) {
			f.throughFault++
		}
	}
	switch {
	case p.command == nil:
	case p.ran:
		f.ran++
	default:
		f.streamed++
	}
}

// checkCommand holds that a command said what the job said. On stderr there
// may be lines of its own.
func (l *load) checkCommand(p *promise) error {
	if p.command.code != p.code() {
		return fmt.Errorf("want exit code %d: %s", p.code(), p.command)
	}
	if err := difference([]byte(p.command.stdout), p.stdout()); err != nil {
		return fmt.Errorf("stdout: %w", err)
	}
	var own strings.Builder
	for line := range strings.Lines(p.command.stderr) {
		if strings.HasPrefix(line, p.tag+" ") {
			own.WriteString(line)
		}
	}
	if err := difference([]byte(own.String()), p.stderr()); err != nil {
		return fmt.Errorf("stderr: %w", err)
	}
	return nil
}

// slack is by how much a job may be late in a disturbed world before it counts
// as stuck: nothing of it is waited for where all is well.
func slack(t testing.TB) time.Duration {
	d := 2 * time.Minute
	if raceBuild() {
		d *= 3
	}
	return d
}

// checkOverdue holds that no job is stuck.
func (l *load) checkOverdue(ctx context.Context, c *client.Client) {
	l.mu.Lock()
	var stuck []*promise
	var ids []string
	for p := range l.open {
		if time.Since(p.from) > p.lasts()+slack(l.s.t) {
			stuck, ids = append(stuck, p), append(ids, p.id)
		}
	}
	l.mu.Unlock()
	for i, p := range stuck {
		why := "it is unknown what became of it"
		if ids[i] != "" {
			w, err := c.Why(ctx, ids[i])
			why = fmt.Sprintf("%s: %s (%v)", w.Job.State, w.Sentence, err)
		}
		l.s.t.Errorf("job %s (%s), queued %s ago to take %s, has not ended: %s", ids[i], p.tag, time.Since(p.from).Round(time.Second), p.lasts(), why)
	}
	if len(stuck) > 0 {
		l.s.t.FailNow()
	}
}

// checkAll holds the model over all that has happened.
func (l *load) checkAll(ctx context.Context, c *client.Client) {
	t := l.s.t
	t.Helper()
	traced, err := l.tr.read()
	if err != nil {
		t.Fatal(err)
	}
	known, ids := map[string]bool{}, map[string]string{}
	jobs := make(chan kept)
	var readers sync.WaitGroup
	for range 4 {
		readers.Go(func() {
			for k := range jobs {
				if err := l.checkKept(ctx, c, k, traced[k.tag]); err != nil {
					t.Errorf("job %s (%s), in the end: %v", k.id, k.tag, err)
				}
			}
		})
	}
	for _, k := range l.kept {
		known[k.tag] = true
		if other := ids[k.id]; other != "" {
			t.Errorf("job %s is both %s and %s", k.id, other, k.tag)
		}
		ids[k.id] = k.tag
		if k.attempt > 1 {
			l.figures.anew++
		}
		jobs <- k
	}
	close(jobs)
	readers.Wait()
	for tag := range traced {
		if !known[tag] {
			t.Errorf("a job %s ran that nobody was told of", tag)
		}
	}
	if n := total(l.s.mustAnswer(ctx, "all of it")) - l.before; n != len(l.kept) {
		t.Errorf("the server has %d jobs, %d were queued", n, len(l.kept))
	}
	if n := counted(t, l.s.server.log, "job lost"); n > 0 {
		t.Errorf("%d jobs were lost within the lease", n)
	}
	f := l.figures
	t.Logf("%d jobs, %d lines, %s of output: %d canceled, %d of a higher attempt than the first; %d followed live, %d of them through a fault; %d by waypoint run, %d by job stream, which began anew %d times",
		len(l.kept), f.lines, mib(f.bytes), f.canceled, f.anew, f.followed, f.throughFault, f.ran, f.streamed, f.reran)
	if len(l.kept) == 0 || f.throughFault == 0 {
		t.Errorf("nothing was proved: %d jobs, %d followed through a fault", len(l.kept), f.throughFault)
	}
}

// checkKept holds that a job is as it was when it had ended, and what its
// traces say.
func (l *load) checkKept(ctx context.Context, c *client.Client, k kept, traced []trace) error {
	now, err := c.Job(ctx, k.id)
	if err != nil {
		return err
	}
	// What a job that was ended by force had still printed may come later.
	if now.State != k.state || now.Attempt != k.attempt || now.LogBytes < k.bytes || now.LogBytes > k.bytes && k.state != wire.Canceled {
		return fmt.Errorf("%s in attempt %d with %d bytes of output, was %s in attempt %d with %d", now.State, now.Attempt, now.LogBytes, k.state, k.attempt, k.bytes)
	}
	h := listen(ctx, c, wire.StreamRequest{ID: k.id, Follow: true})
	if k.state == wire.Canceled {
		return errors.Join(checkTraces(traced, now.Attempt, true), h.checkCut(k.script))
	}
	return errors.Join(checkTraces(traced, now.Attempt, false), h.check(k.script))
}

// awaitDrained waits for the jobs under way.
func (l *load) awaitDrained(ctx context.Context, c *client.Client) {
	done := make(chan struct{})
	go func() {
		l.drained.Wait()
		close(done)
	}()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-done:
			return
		case <-tick.C:
			l.checkOverdue(ctx, c)
		}
	}
}
