package torture

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/waypointd/waypoint/daemon/store/storetest"
)

// several are servers over one database, behind one socket: each connection
// goes to one of those that are there.
type several struct {
	t    testing.TB
	s    *site
	dsn  string
	l    net.Listener
	wg   sync.WaitGroup
	ends atomic.Int64 // servers that have ended by themselves

	mu      sync.Mutex
	r       *rand.Rand            // guarded by mu
	servers []*process            // guarded by mu
	stopped map[int]bool          // by SIGSTOP; guarded by mu
	conns   map[net.Conn]net.Conn // of clients and agents -> of servers; guarded by mu
	over    bool                  // guarded by mu
}

func newSeveral(t testing.TB, n int, dsn string, seed uint64) *several {
	t.Helper()
	s := newSite(t)
	v := &several{t: t, s: s, dsn: dsn, r: rand.New(rand.NewPCG(seed, 7)), servers: make([]*process, n),
		stopped: map[int]bool{}, conns: map[net.Conn]net.Conn{}}
	for i := range n {
		v.start(i)
	}
	var err error
	if v.l, err = net.Listen("unix", s.sock); err != nil {
		t.Fatal(err)
	}
	v.wg.Go(v.accept)
	t.Cleanup(func() { // before the site's, which kills what is left
		v.mu.Lock()
		v.over = true
		v.mu.Unlock()
		v.l.Close()
		v.cut()
		v.wg.Wait()
		if t.Failed() {
			for i := range n {
				t.Logf("end of server %d:\n%s", i, tail(v.process(i).log, 4000))
			}
		}
	})
	return v
}

func (v *several) sock(i int) string { return filepath.Join(v.s.dir, fmt.Sprintf("s%d", i)) }

func (v *several) process(i int) *process {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.servers[i]
}

// start starts a server, and again whenever it has ended by itself, as systemd does.
func (v *several) start(i int) {
	p := launch(v.t, v.s.dir, fmt.Sprintf("server%d", i), nil, "server", "run", "--store", v.dsn,
		"--state-dir", filepath.Join(v.s.dir, fmt.Sprintf("state%d", i)), "--listen", "unix://"+v.sock(i))
	v.mu.Lock()
	v.servers[i] = p
	if i == 0 {
		v.s.server = p
	}
	v.mu.Unlock()
}

// revive starts the servers that have ended.
func (v *several) revive(may string) {
	for i := range v.servers {
		if p := v.process(i); !p.alive() {
			v.ends.Add(1)
			if may == "" || p.cmd.ProcessState.ExitCode() != 1 {
				v.t.Errorf("%s ended by itself: %v\n%s", p.name, p.err, tail(p.log, 2000))
			}
			v.start(i)
		}
	}
}

// kill kills a server and starts it again.
func (v *several) kill(i int) {
	v.process(i).kill()
	v.start(i)
}

// stop stops a server for a while, with SIGSTOP.
func (v *several) stop(ctx context.Context, i int, d time.Duration) {
	v.mu.Lock()
	p := v.servers[i]
	v.stopped[i] = true
	v.mu.Unlock()
	syscall.Kill(p.pid(), syscall.SIGSTOP)
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
	syscall.Kill(p.pid(), syscall.SIGCONT)
	v.mu.Lock()
	v.stopped[i] = false
	v.mu.Unlock()
}

// cut ends all connections: everybody comes again, to any server.
func (v *several) cut() {
	v.mu.Lock()
	defer v.mu.Unlock()
	for near, far := range v.conns {
		near.Close()
		far.Close()
	}
}

// leave ends all servers but one, which has everybody then. None has lost a job.
func (v *several) leave() {
	for i := range v.servers {
		if n := counted(v.t, v.process(i).log, "job lost"); n > 0 {
			v.t.Errorf("server %d has lost %d jobs within the lease", i, n)
		}
	}
	for i := 1; i < len(v.servers); i++ {
		if code := v.process(i).stop(syscall.SIGTERM); code != 0 {
			v.t.Errorf("server %d ended with exit code %d", i, code)
		}
	}
	v.l.Close() // the socket goes with it
}

func (v *several) accept() {
	for {
		c, err := v.l.Accept()
		if err != nil {
			return
		}
		v.wg.Go(func() { v.serve(c) })
	}
}

func (v *several) serve(near net.Conn) {
	defer near.Close()
	v.mu.Lock()
	order := v.r.Perm(len(v.servers))
	v.mu.Unlock()
	for _, i := range order {
		v.mu.Lock()
		skip := v.stopped[i]
		v.mu.Unlock()
		if skip {
			continue
		}
		far, err := net.Dial("unix", v.sock(i))
		if err != nil {
			continue
		}
		defer far.Close()
		v.mu.Lock()
		if v.over {
			v.mu.Unlock()
			return
		}
		v.conns[near] = far
		v.mu.Unlock()
		var both sync.WaitGroup
		pass := func(to, from net.Conn) {
			io.Copy(to, from)
			to.Close()
			from.Close()
		}
		both.Go(func() { pass(near, far) })
		both.Go(func() { pass(far, near) })
		both.Wait()
		v.mu.Lock()
		delete(v.conns, near)
		v.mu.Unlock()
		return
	}
}

func postgres(t testing.TB) *storetest.Postgres {
	t.Helper()
	pg, err := storetest.NewPostgres()
	if err != nil {
		t.Skipf("NOT TESTED: there is no PostgreSQL: %v", err)
	}
	t.Cleanup(pg.Close)
	return pg
}

// TestSeveralServers kills and stops servers of one database, kills the agent
// and has everybody move between servers, under a stream of jobs. The model is
// that of one server.
func TestSeveralServers(t *testing.T) {
	rounds, during, seed := number(t, "TORTURE_ROUNDS", 10), given(t), seed(t)
	ctx := bounded(t, 6*time.Minute+2*during+time.Duration(rounds)*5*time.Second)
	pg := postgres(t)
	v := newSeveral(t, 3, pg.Database(t), seed)
	s := v.s
	s.awaitServer(ctx)
	s.startAgent()
	s.adopt(ctx)

	a := newAdversary(s, seed)
	l := newLoad(ctx, s, 30, randomScript, a)
	stop := l.start(ctx, seed)
	r := rand.New(rand.NewPCG(seed, 0))
	begin := time.Now()
	kills, agents, moves, pauses := 0, 0, 0, 0
	for round := 0; during == 0 && round < rounds || during > 0 && time.Since(begin) < during; round++ {
		select {
		case <-time.After(time.Duration(100+r.IntN(1500)) * time.Millisecond): // the random moment
		case <-ctx.Done():
			t.Fatal(context.Cause(ctx))
		}
		v.revive("a transaction that was stopped for too long has been ended")
		a.note()
		i := r.IntN(len(v.servers))
		switch what := r.IntN(8); {
		case round == 3: // longer than it takes to be missed
			pauses++
			v.stop(ctx, i, 20*time.Second)
		case what < 3:
			v.kill(i)
			kills++
		case what == 3:
			v.kill(i)
			v.kill((i + 1) % len(v.servers))
			kills += 2
		case what == 4:
			pauses++
			v.stop(ctx, i, time.Duration(r.IntN(3000))*time.Millisecond)
		case what == 5:
			s.agent.kill()
			s.startAgent()
			agents++
		default:
			moves++
			v.cut()
		}
	}
	stop()
	c := s.client(ctx)
	l.awaitDrained(ctx, c)
	t.Logf("servers were killed %d times and stopped %d times, agents killed %d times, everybody moved %d times", kills, pauses, agents, moves)
	v.revive("a transaction that was stopped for too long has been ended")
	s.awaitRunner(ctx, c)
	l.checkAll(ctx, c)
	v.leave()
	s.checkNothingLeft(ctx)
}

// TestDatabaseRestarts ends the database under load, properly and by a crash, and
// keeps it away for 10 s: what was acknowledged is there, and nothing runs twice.
func TestDatabaseRestarts(t *testing.T) {
	t.Parallel()
	seed := seed(t)
	ctx := bounded(t, 6*time.Minute)
	pg := postgres(t)
	v := newSeveral(t, 2, pg.Database(t), seed)
	s := v.s
	s.awaitServer(ctx)
	s.startAgent()
	s.adopt(ctx)

	a := newAdversary(s, seed)
	l := newLoad(ctx, s, 30, randomScript, a)
	l.refusable = true
	stop := l.start(ctx, seed)
	revived := make(chan struct{})
	var reviver sync.WaitGroup
	reviver.Go(func() {
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-revived:
				return
			case <-tick.C:
				v.revive("the outcome of a commit was unknown, or the database away at the start")
			}
		}
	})
	for _, outage := range []struct {
		sig syscall.Signal
		d   time.Duration
	}{{syscall.SIGINT, 0}, {syscall.SIGQUIT, 0}, {syscall.SIGINT, 10 * time.Second}} {
		select {
		case <-time.After(2 * time.Second): // of load
		case <-ctx.Done():
			t.Fatal(context.Cause(ctx))
		}
		a.note()
		pg.Stop(outage.sig)
		time.Sleep(outage.d)
		if err := pg.Start(); err != nil {
			t.Fatal(err)
		}
	}
	stop()
	c := s.client(ctx)
	l.awaitDrained(ctx, c)
	close(revived)
	reviver.Wait()
	t.Logf("servers ended by themselves %d times", v.ends.Load())
	s.awaitRunner(ctx, c)
	l.checkAll(ctx, c)
	v.leave()
	s.checkNothingLeft(ctx)
}
