package torture

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/waypointd/waypoint/mux/client"
	"github.com/waypointd/waypoint/mux/wire"
)

// TestKillDuringAdoption kills a runner, and now and then the server, at
// random moments between its first start and its first job. It is the same
// runner throughout, its directory is usable, and it ends adopted, after at
// most one more `runner adopt`.
func TestKillDuringAdoption(t *testing.T) {
	t.Parallel()
	rounds := number(t, "TORTURE_ADOPTIONS", 25)
	seed := seed(t)
	ctx := bounded(t, time.Minute+time.Duration(rounds)*15*time.Second)
	s := newSite(t)
	s.startServer()
	s.awaitServer(ctx)
	o := &operator{s: s, c: s.client(ctx), known: map[string]bool{}}

	// A round without a death: how long it takes.
	begin := time.Now()
	o.round(ctx, 0, nil)
	whole := time.Since(begin)
	t.Logf("undisturbed, a runner is adopted and has done its first job after %s", whole.Round(time.Millisecond))

	r := rand.New(rand.NewPCG(seed, 0))
	for n := 1; n <= rounds && !t.Failed(); n++ {
		var deaths []death
		for range 1 + r.IntN(3) {
			deaths = append(deaths, death{
				pause:  time.Duration(r.Int64N(int64(whole))), // until its first job is done
				server: r.IntN(5) == 0,
			})
		}
		o.round(ctx, n, deaths)
	}
	t.Logf("%d rounds, %d deaths of runners, %d of them between adoption and token, %d of the server; when they came to themselves %v; %d adopted again",
		rounds, o.agents, o.between, o.servers, o.found, o.again)
	if o.agents == 0 {
		t.Error("nothing was proved")
	}
}

// death is a kill -9 so long behind a start.
type death struct {
	pause  time.Duration
	server bool // the server as well
}

// operator adopts whatever asks for it.
type operator struct {
	s     *site
	c     *client.Client
	known map[string]bool // runners of earlier rounds

	agents, servers, again int
	between                int            // deaths when the server had adopted and the runner had no token yet
	found                  map[string]int // states in which the survivors were
}

// newcomer is the one runner that was not known before this round; ok is false
// while there is none.
func (o *operator) newcomer(ctx context.Context) (r wire.Runner, ok bool) {
	t := o.s.t
	t.Helper()
	all, err := o.c.Runners(ctx, wire.RunnerFilter{Limit: 500})
	if err != nil {
		return wire.Runner{}, false // the server may be dead at the moment
	}
	for _, a := range all {
		if o.known[a.ID] {
			continue
		}
		if ok && a.ID != r.ID {
			t.Errorf("one runner has become two, %s and %s", r.ID, a.ID)
		}
		r, ok = a, true
	}
	return r, ok
}

// adoptOnce adopts the newcomer as soon as there is one, until ctx ends.
func (o *operator) adoptOnce(ctx context.Context) {
	poll(ctx, func() error {
		r, ok := o.newcomer(ctx)
		switch {
		case !ok:
			return fmt.Errorf("nobody waits")
		case r.State == wire.Adopted: // by a call whose answer was lost
			return nil
		}
		_, err := o.c.Adopt(ctx, r.ID, "")
		return err
	})
}

func (o *operator) round(ctx context.Context, n int, deaths []death) {
	s, t := o.s, o.s.t
	t.Helper()
	s.agentState = filepath.Join(s.dir, fmt.Sprintf("agent-%d", n))
	start := func() {
		s.agent = launch(t, s.dir, "agent", nil, "runner", "agent", "--server-addr", "unix://"+s.sock,
			"--state-dir", s.agentState, "--concurrency", "2")
	}
	once, cancel := context.WithCancel(ctx)
	defer cancel()
	var adopting sync.WaitGroup
	adopting.Go(func() { o.adoptOnce(once) })

	var id, fingerprint string
	same := func(r wire.Runner) {
		t.Helper()
		if id != "" && (r.ID != id || r.Fingerprint != fingerprint) {
			t.Errorf("round %d: the runner was %s with the key %s, and is %s with %s", n, id, fingerprint, r.ID, r.Fingerprint)
		}
		id, fingerprint = r.ID, r.Fingerprint
	}
	start()
	for _, d := range deaths {
		select {
		case <-time.After(d.pause): // the random moment
		case <-ctx.Done():
			t.Fatal(context.Cause(ctx))
		}
		if !s.agent.alive() {
			t.Errorf("round %d: the agent ended by itself: %v\n%s", n, s.agent.err, tail(s.agent.log, 2000))
		}
		s.agent.kill()
		o.agents++
		if d.server {
			s.server.kill()
			o.servers++
			s.startServer()
		}
		if r, ok := o.newcomer(ctx); ok {
			same(r)
			if _, err := os.Lstat(s.tokenFile()); r.State == wire.Adopted && os.IsNotExist(err) {
				o.between++
			}
		}
		start()
	}

	// From here on nobody dies. If the one adoption has not happened or was
	// lost, there is one more.
	var found wire.Runner
	await(ctx, t, "the runner", func() error {
		if err := s.agent.hopeless(); err != nil {
			return err
		}
		r, ok := o.newcomer(ctx)
		if !ok || !r.Online {
			return fmt.Errorf("it is not online")
		}
		found = r
		return nil
	})
	same(found)
	adopted := make(chan struct{})
	go func() { adopting.Wait(); close(adopted) }()
	select {
	case <-adopted:
	case <-time.After(patience):
		t.Errorf("round %d: nobody was there to be adopted within %s", n, patience)
	}
	if o.found == nil {
		o.found = map[string]int{}
	}
	o.found[string(found.State)]++
	admitted := func() error {
		if err := s.agent.hopeless(); err != nil {
			return err
		}
		ok, err := o.c.Match(ctx, wire.Target{ID: id})
		if err == nil && !ok {
			err = fmt.Errorf("it gets no jobs")
		}
		return err
	}
	if err := pollFor(ctx, patience/3, admitted); err != nil {
		r, _ := o.newcomer(ctx)
		t.Logf("round %d: adopted, and %v: %s, problem %q %s", n, err, r.State, r.Problem, r.Detail)
		o.again++
		if _, err := o.c.Adopt(ctx, id, ""); err != nil {
			t.Errorf("round %d: adopt again: %v", n, err)
		}
		await(ctx, t, "a runner that was adopted again", admitted)
	}
	job := submitOne(ctx, t, o.c, wire.JobSpec{Operation: wire.OpRun, Command: []string{"true"}, Target: wire.Target{ID: id}})
	if j, err := o.c.Wait(ctx, job.ID); err != nil || j.State != wire.Success {
		t.Errorf("round %d: its job ended as %s %s, %v", n, j.State, j.Error, err)
	}
	r := s.inspect(ctx, id)
	same(r)
	if r.State != wire.Adopted || r.Problem != "" || r.TokenSource != wire.SourceFile {
		t.Errorf("round %d: the runner is %s, token of %q, problem %q %s", n, r.State, r.TokenSource, r.Problem, r.Detail)
	}
	if b, err := os.ReadFile(filepath.Join(s.agentState, "id")); err != nil || strings.TrimSpace(string(b)) != id {
		t.Errorf("round %d: the directory is of runner %q, the server knows %q (%v)", n, b, id, err)
	}
	if fi, err := os.Stat(s.tokenFile()); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("round %d: the token file: %v, %v", n, fi, err)
	}
	if left, err := filepath.Glob(filepath.Join(s.agentState, ".tmp-*")); err != nil || len(left) > 0 {
		t.Errorf("round %d: left behind: %v", n, left)
	}
	o.known[id] = true
	if code := s.agent.stop(syscall.SIGTERM); code != 0 {
		t.Errorf("round %d: the agent's exit code is %d\n%s", n, code, tail(s.agent.log, 2000))
	}
	for _, pid := range s.supervisors() {
		syscall.Kill(pid, syscall.SIGTERM)
	}
}
