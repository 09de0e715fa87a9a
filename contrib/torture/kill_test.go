package torture

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/waypointd/waypoint/mux/client"
	"github.com/waypointd/waypoint/mux/wire"
)

// TestKillRounds kills server and agent at random moments under a stream of
// jobs and holds the model afterwards.
func TestKillRounds(t *testing.T) {
	rounds := number(t, "TORTURE_ROUNDS", 6)
	var during time.Duration
	if v := os.Getenv("TORTURE_DURATION"); v != "" {
		var err error
		if during, err = time.ParseDuration(v); err != nil {
			t.Fatalf("TORTURE_DURATION: %v", err)
		}
	}
	seed := uint64(number(t, "TORTURE_SEED", int(time.Now().UnixNano()&0xffffff)))
	t.Logf("TORTURE_SEED=%d", seed)
	ctx := bounded(t, 5*time.Minute+during+time.Duration(rounds)*3*time.Second)
	s := newSite(t)
	s.open(ctx)

	l := &load{s: s, tr: tracesIn(s.dir), room: make(chan struct{}, 40)}
	stop := l.start(ctx, seed)
	k := &killer{s: s, r: rand.New(rand.NewPCG(seed, 0))}
	k.run(ctx, rounds, during)
	stop()
	l.drained.Wait()

	s.awaitServer(ctx)
	c := s.client(ctx)
	s.awaitRunner(ctx, c)
	l.check(ctx, c, k)
	s.checkNothingLeft(ctx)
}

// load is the clients: they submit, wait and follow until they are told to
// stop, and remember what they were promised.
type load struct {
	s       *site
	tr      traces
	room    chan struct{} // a token for each job under way
	drained sync.WaitGroup

	mu   sync.Mutex
	jobs []*promise
}

// promise is a job whose Submit has returned.
type promise struct {
	script
	id       string
	end      wire.Job // as Wait said
	waitErr  error
	live     *heard  // by one who followed from the start; nil where nobody did
	command  *answer // the same by `waypoint job stream`; nil likewise
	from, to time.Time
}

// start begins with some clients; stop ends the submitting only.
func (l *load) start(ctx context.Context, seed uint64) (stop func()) {
	quit := make(chan struct{})
	var submitters sync.WaitGroup
	for n := range 4 {
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
	return func() {
		close(quit)
		submitters.Wait()
	}
}

// submit queues one job and waits for it behind the caller's back. An error is
// a broken promise: the client library repeats over every loss.
func (l *load) submit(ctx context.Context, c *client.Client, r *rand.Rand, tag string) {
	p := &promise{script: randomScript(r, tag), from: time.Now()}
	follow, byCommand := r.IntN(3) == 0 || p.long(), r.IntN(12) == 0
	jobs, err := c.Submit(ctx, p.spec(l.tr))
	if err != nil || len(jobs) != 1 {
		l.s.t.Errorf("submit %s: %d jobs, %v", tag, len(jobs), err)
		<-l.room
		return
	}
	p.id = jobs[0].ID
	l.mu.Lock()
	l.jobs = append(l.jobs, p)
	l.mu.Unlock()
	var watchers sync.WaitGroup
	if follow {
		watchers.Go(func() { p.live = listen(ctx, c, wire.StreamRequest{ID: p.id, Follow: true}) })
	}
	if byCommand {
		watchers.Go(func() { p.command = l.stream(ctx, p.id) })
	}
	watchers.Go(func() { p.end, p.waitErr = c.Wait(ctx, p.id) })
	l.drained.Go(func() {
		watchers.Wait()
		p.to = time.Now()
		<-l.room
	})
}

// stream is `waypoint job stream`. It may begin while the server is dead,
// which is an error of its own; then it begins again.
func (l *load) stream(ctx context.Context, id string) *answer {
	for {
		a := l.s.cli(ctx, "job", "stream", id)
		if a.code == 5 && a.stdout == "" && ctx.Err() == nil {
			continue
		}
		return &a
	}
}

// check holds the model.
func (l *load) check(ctx context.Context, c *client.Client, k *killer) {
	t := l.s.t
	starts, err := readTraces(l.tr.starts)
	if err != nil {
		t.Fatal(err)
	}
	ends, err := readTraces(l.tr.ends)
	if err != nil {
		t.Fatal(err)
	}
	var again, followed, throughDeath, byCommand int
	var bytes int64
	known := map[string]bool{}
	ids := map[string]string{}
	for _, p := range l.jobs {
		known[p.tag] = true
		wrong := func(what string, err error) {
			if err != nil {
				t.Errorf("job %s (%s): %s: %v", p.id, p.tag, what, err)
			}
		}
		if other := ids[p.id]; other != "" {
			t.Errorf("job %s is both %s and %s", p.id, other, p.tag)
		}
		ids[p.id] = p.tag
		if p.waitErr != nil {
			wrong("wait", p.waitErr)
			continue
		}
		wrong("end", p.checkEnd(p.end))
		now, err := c.Job(ctx, p.id)
		wrong("look up", err)
		wrong("end on record", p.checkEnd(now))
		wrong("starts", checkStarts(starts[p.tag], ends[p.tag], now.Attempt))
		wrong("output afterwards", listen(ctx, c, wire.StreamRequest{ID: p.id, Follow: true}).check(p.script))
		if p.live != nil {
			followed++
			if k.during(p.live.began, p.live.ended) {
				throughDeath++
			}
			wrong("output live", p.live.check(p.script))
		}
		if p.command != nil {
			byCommand++
			wrong("job stream's stdout", difference([]byte(p.command.stdout), p.stdout()))
			if p.command.code != p.code() {
				t.Errorf("job %s (%s): job stream: want exit code %d: %s", p.id, p.tag, p.code(), p.command)
			}
		}
		again += len(starts[p.tag]) - 1
		bytes += now.LogBytes
	}
	for tag := range starts {
		if !known[tag] {
			t.Errorf("a job %s ran that nobody was told of", tag)
		}
	}
	for i, p := range l.jobs {
		if i%10 == 0 && p.waitErr == nil {
			a := l.s.cli(ctx, "job", "stream", p.id)
			if err := difference([]byte(a.stdout), p.stdout()); err != nil || a.code != p.code() {
				t.Errorf("job %s (%s): job stream afterwards: %v; want exit code %d: %s", p.id, p.tag, err, p.code(), a)
			}
		}
	}
	t.Logf("%d deaths of the server, %d of the agent; %d jobs, %s of output, %d started again as a higher attempt; %d followed live, %d of them through a death; %d by command",
		k.servers.Load(), k.agents.Load(), len(l.jobs), mib(bytes), again, followed, throughDeath, byCommand)
	if len(l.jobs) == 0 || throughDeath == 0 {
		t.Errorf("nothing was proved: %d jobs, %d followed through a death", len(l.jobs), throughDeath)
	}
}

// killer kills server and agent and starts them again.
type killer struct {
	s               *site
	r               *rand.Rand
	servers, agents atomic.Int64
	times           []time.Time
}

// run kills for so many rounds, or for a time.
func (k *killer) run(ctx context.Context, rounds int, during time.Duration) {
	t := k.s.t
	t.Helper()
	begin := time.Now()
	for round := 0; ; round++ {
		if during == 0 && round >= rounds || during > 0 && time.Since(begin) > during {
			return
		}
		pause := time.Duration(50+k.r.IntN(1200)) * time.Millisecond
		if k.r.IntN(4) == 0 { // while it starts
			pause = time.Duration(k.r.IntN(60)) * time.Millisecond
		}
		select {
		case <-time.After(pause): // the random moment
		case <-ctx.Done():
			t.Fatal(context.Cause(ctx))
		}
		for _, p := range []*process{k.s.server, k.s.agent} {
			if !p.alive() {
				t.Errorf("%s ended by itself: %v\n%s", p.name, p.err, tail(p.log, 2000))
			}
		}
		what := k.r.IntN(5)
		k.times = append(k.times, time.Now())
		if what != 1 && what != 2 {
			k.s.server.kill()
			k.servers.Add(1)
		}
		if what != 3 && what != 4 {
			k.s.agent.kill()
			k.agents.Add(1)
		}
		if !k.s.agent.alive() {
			k.s.startAgent()
		}
		if !k.s.server.alive() {
			k.s.startServer()
		}
		if round%8 == 7 { // let it come to itself: progress is promised too
			k.s.awaitServer(ctx)
		}
	}
}

// during reports whether somebody died between two moments.
func (k *killer) during(from, to time.Time) bool {
	for _, at := range k.times {
		if at.After(from) && at.Before(to) {
			return true
		}
	}
	return false
}
