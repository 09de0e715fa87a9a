package torture

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/waypointd/waypoint/mux"
	"github.com/waypointd/waypoint/mux/wire"
)

// openBehind starts a server that listens on TCP with TLS, and its runner behind
// a relay; clients that are made afterwards are behind another.
func openBehind(ctx context.Context, s *site, seed uint64, config string, runner, clients link) (forRunner, forClients *relay) {
	t := s.t
	t.Helper()
	file := filepath.Join(s.dir, "server.toml")
	if err := os.WriteFile(file, []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	port := freePort(t)
	s.serverArgs = []string{"--config", file, "--listen", "tcp://" + port}
	s.startServer()
	s.awaitServer(ctx)
	forRunner, forClients = newRelay(t, port, seed, runner), newRelay(t, port, seed+1, clients)
	s.putToken(s.token(ctx, "--id", runnerID))
	s.launchAgent("tcp://" + forRunner.addr())
	c := s.client(ctx)
	s.awaitRunner(ctx, c)
	s.findCgroup(ctx, c)
	login, err := c.UserToken(ctx, wire.UserTokenRequest{})
	if err != nil {
		t.Fatal(err)
	}
	s.login, s.tcp = login.Token, forClients.addr()
	s.reach = func(ctx context.Context) (net.Conn, error) {
		return mux.Dial(ctx, mux.Address{Network: "tcp", Path: forClients.addr()}, mux.Trust{Pins: []string{login.Fingerprint}})
	}
	return forRunner, forClients
}

// TestSlowLink has jobs print far more than their runner's link carries while
// they run, and followers on a link that is as slow. That is slow and nothing
// else: no session is lost, and neither side gathers in memory what waits.
func TestSlowLink(t *testing.T) {
	t.Parallel()
	const jobs, each, rate = 32, 64 << 10, 1 << 20
	seed := seed(t)
	ctx := bounded(t, 2*time.Minute)
	s := newSite(t)
	s.concurrency = jobs
	slow := link{latency: 60 * time.Millisecond, rate: rate, pieces: 1400}
	// What may be on its way is 256 KiB of each job: more than goes through in
	// the time of three heartbeats.
	openBehind(ctx, s, seed, "lease = \"4s\"\nheartbeat = \"300ms\"\n", slow, slow)
	c := s.client(ctx)
	gate := filepath.Join(s.dir, "gate") // all print at one moment
	var all []script
	var heards []*heard
	var readers sync.WaitGroup
	for i := range jobs {
		j := script{tag: fmt.Sprintf("slow-link-job-%d", i), lines: each / 22}
		spec := j.spec(tracesIn(s.dir))
		spec.Command[2] = fmt.Sprintf("while [ ! -e %s ]; do sleep 0.05; done\n%s", gate, spec.Command[2])
		id := submitOne(ctx, t, c, spec).ID
		h := new(heard)
		all, heards = append(all, j), append(heards, h)
		readers.Go(func() { *h = *listen(ctx, c, wire.StreamRequest{ID: id, Follow: true}) })
	}
	await(ctx, t, "all jobs to run", func() error {
		r, err := c.Runner(ctx, runnerID)
		if err == nil && r.RunningJobs != jobs {
			err = fmt.Errorf("%d run", r.RunningJobs)
		}
		return err
	})
	if err := os.WriteFile(gate, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	readers.Wait()
	var bytes int64
	for i, h := range heards {
		if err := h.check(all[i]); err != nil {
			t.Errorf("%s: %v", all[i].tag, err)
		}
		bytes += h.offset
	}
	if n := counted(t, s.agent.log, "runner disconnected"); n > 0 {
		t.Errorf("the runner lost its session %d times: slow is not dead", n)
	}
	if n := counted(t, s.server.log, "job lost"); n > 0 {
		t.Errorf("%d jobs were lost", n)
	}
	for _, p := range []*process{s.server, s.agent} {
		_, peak, err := memory(p.pid())
		t.Logf("%s through a link of %s/s: %s needed %s at most, %v", mib(bytes), mib(rate), p.name, mib(peak), err)
		if limit := int64(160 << 20); peak > limit && !raceBuild() {
			t.Errorf("%s needed %s, more than %s", p.name, mib(peak), mib(limit))
		}
	}
	s.checkNothingLeft(ctx)
}

// TestBadLink resets connections at random moments, at both ends or at one, on
// links that split what is written, and let a later connection overtake an
// earlier one.
func TestBadLink(t *testing.T) {
	rounds, during, seed := number(t, "TORTURE_ROUNDS", 8), given(t), seed(t)
	ctx := bounded(t, 2*time.Minute+during+time.Duration(rounds)*3*time.Second)
	s := newSite(t)
	bad := link{latency: 2 * time.Millisecond, pieces: 3000, hold: 200 * time.Millisecond}
	forRunner, forClients := openBehind(ctx, s, seed, "lease = \"10m\"\nheartbeat = \"300ms\"\n", bad, bad)
	operator := s.client(ctx)

	a := newAdversary(s, seed)
	var resets []fault
	for _, r := range []*relay{forRunner, forClients} {
		resets = append(resets, fault{"reset", []string{"server", "agent"}, func(context.Context) func() { r.reset(); return func() {} }})
	}
	l := newLoad(ctx, s, 24, randomScript, a)
	stop := l.start(ctx, seed)
	a.run(ctx, resets, rounds, during, func(int) { l.checkOverdue(ctx, operator) })
	stop()
	l.awaitDrained(ctx, operator)
	s.awaitRunner(ctx, operator)
	l.checkAll(ctx, operator)
	t.Logf("%s; the runner lost its session %d times", a.figures(), counted(t, s.agent.log, "runner disconnected"))
	s.checkNothingLeft(ctx)
}
