package torture

import (
	"context"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/waypointd/waypoint/mux/wire"
)

// TestMoves has the server move to another host under one address, the runner
// get another address, and both with the old connections open at one end only.
// Jobs and those who follow them notice nothing.
func TestMoves(t *testing.T) {
	t.Parallel()
	ctx := bounded(t, 3*time.Minute)
	s := newRemote(ctx, t, 10*time.Minute, 300*time.Millisecond)
	n := s.n
	s.overNetwork()
	end := s.startChatters(ctx, s.client(ctx), 4)

	// Another host under the same address: it knows nothing of the connections.
	s.server.kill()
	n.moveServer(atSpare)
	s.startServer(atSpare)
	s.awaitOnline(ctx, true)

	// Back again, with the way gone meanwhile: no connection hears of its end.
	n.damage(cutBoth, atRunner, atClient)
	s.server.kill()
	n.moveServer(atServer)
	s.startServer(atServer)
	n.heal()
	s.awaitOnline(ctx, true)

	// The runner has another address: its old session is open at the server
	// when the new one comes, and is replaced.
	n.renumber(atRunner)
	s.awaitPeer(ctx, leafIP(2, 3))

	// The same for what the router forgets: old connections are black, new ones pass.
	for _, up := range []bool{true, false} {
		back := counted(t, s.agent.log, connectedText)
		r, err := n.half(atRunner, up, !up)
		if err != nil || r == "" {
			t.Fatalf("the runner's connections: %v, %v", r, err)
		}
		n.damage(r, atRunner)
		s.awaitSaid(ctx, s.agent, connectedText, back)
	}

	// A black hole where it dials again.
	back := counted(t, s.agent.log, connectedText)
	n.damage(blackDial+resetAll, atRunner)
	await(ctx, t, "the runner to dial a black hole", func() error {
		if !n.dropped() {
			return context.DeadlineExceeded
		}
		return nil
	})
	n.heal()
	s.awaitSaid(ctx, s.agent, connectedText, back)

	end()
	if lost := counted(t, s.server.log, "job lost"); lost > 0 {
		t.Errorf("%d jobs were lost", lost)
	}
	s.checkNothingLeft(ctx)
}

// connectedText is what the agent's log says when the server has taken it.
const connectedText = `"runner connected"`

// renumber gives a place its other address, n.3, instead of the one it has.
func (n *network) renumber(place string) {
	n.t.Helper()
	for i, leaf := range leaves {
		if leaf == place {
			n.at(place, "addr", "flush", "dev", "cable")
			n.at(place, "addr", "add", leafIP(i, 3)+"/24", "dev", "cable")
			n.at(place, "route", "add", "default", "via", leafIP(i, 1))
		}
	}
}

// awaitPeer waits until the runner is connected from an address.
func (s *remote) awaitPeer(ctx context.Context, ip string) {
	s.t.Helper()
	await(ctx, s.t, "the runner from "+ip, func() error {
		r, err := s.operator.Runner(ctx, runnerID)
		if err == nil && (!r.Online || !strings.Contains(r.Peer, ip)) {
			err = wire.Errorf(wire.Unavailable, "it is online=%v from %s", r.Online, r.Peer)
		}
		return err
	})
}

// TestStopped stops runner and server by SIGSTOP, for less and for more than
// the lease, and lets them go on.
func TestStopped(t *testing.T) {
	t.Parallel()
	ctx := bounded(t, 3*time.Minute)
	const never, short = 10 * time.Minute, time.Second
	s := newRemote(ctx, t, never, 200*time.Millisecond)
	dialed := s.n.dialNowhere(ctx)
	s.overNetwork()
	end := s.startChatters(ctx, s.client(ctx), 4)

	// Less than the lease, until the other side has noticed.
	s.agent.signal(syscall.SIGSTOP)
	s.awaitOnline(ctx, false)
	back := counted(t, s.agent.log, connectedText)
	s.agent.signal(syscall.SIGCONT)
	s.awaitSaid(ctx, s.agent, connectedText, back)
	s.stopServer(ctx, 0)

	// The server does not run for longer than the lease: that is not its runners' fault.
	s.setLease(ctx, 2*short)
	s.stopServer(ctx, 3*short)

	// Neither is it where the runner had just lost its session.
	s.n.damage(cutBoth, atRunner)
	s.awaitOnline(ctx, false)
	s.server.signal(syscall.SIGSTOP)
	s.n.heal()
	pass(ctx, 3*short)
	s.server.signal(syscall.SIGCONT)
	s.awaitOnline(ctx, true)
	end()
	if lost := counted(t, s.server.log, "job lost"); lost > 0 {
		t.Errorf("%d jobs were lost", lost)
	}

	// The runner does not run for longer than the lease: its jobs are lost.
	s.setLease(ctx, short)
	a := s.startAbsence(ctx, "stopped")
	s.agent.signal(syscall.SIGSTOP)
	a.lost(ctx)
	s.agent.signal(syscall.SIGCONT)
	a.back(ctx, "a stop")

	if a := <-dialed; a.code != 5 || !strings.Contains(a.stderr, "no answer within") {
		t.Errorf("a black hole at connect: want exit code 5 and a reason: %s", a)
	}
	s.checkNothingLeft(ctx)
}

// dialNowhere is a command for a server from whose address nothing comes back,
// which takes its time to find out.
func (n *network) dialNowhere(ctx context.Context) <-chan answer {
	dialed := make(chan answer, 1)
	go func() {
		var a answer
		err := n.inside(atClient, func() error {
			a = command(ctx, n.t, nil, "--server-addr", "tcp://"+nowhere+":"+serverPort, "server", "status")
			return nil
		})
		if err != nil {
			n.t.Errorf("ask an address that is nobody's: %v", err)
		}
		dialed <- a
	}()
	return dialed
}

// stopServer stops the server until the runner has noticed and some time more has passed.
func (s *remote) stopServer(ctx context.Context, more time.Duration) {
	s.t.Helper()
	said := counted(s.t, s.agent.log, "runner disconnected")
	s.server.signal(syscall.SIGSTOP)
	s.awaitSaid(ctx, s.agent, "runner disconnected", said)
	back := counted(s.t, s.agent.log, connectedText)
	pass(ctx, more)
	s.server.signal(syscall.SIGCONT)
	s.awaitSaid(ctx, s.agent, connectedText, back)
}

// pass lets time pass, where how long something lasts is what is tested.
func pass(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}
