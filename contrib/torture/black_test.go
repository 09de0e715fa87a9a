package torture

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/waypointd/waypoint/mux/client"
	"github.com/waypointd/waypoint/mux/wire"
)

// TestBlackConnection has the connections of clients that follow a job, and that
// wait for it, swallow all that is sent, for ever and without a word: they are
// told, make another, and miss nothing.
func TestBlackConnection(t *testing.T) {
	t.Parallel()
	ctx := bounded(t, 2*time.Minute)
	s := newRemote(ctx, t, 10*time.Minute, time.Second)
	s.overNetwork()
	reach := s.reach
	var dialed, away, back atomic.Int64
	var port atomic.Pointer[net.TCPAddr]
	s.reach = func(ctx context.Context) (net.Conn, error) {
		conn, err := reach(ctx)
		if err == nil {
			port.Store(conn.LocalAddr().(*net.TCPAddr))
			dialed.Add(1)
		}
		return conn, err
	}
	c, err := client.Dial(ctx, client.Config{Software: "waypoint torture", Dial: s.reach, Token: func() string { return s.login },
		Reconnecting: func(err error) {
			if err != nil {
				away.Add(1)
			} else {
				back.Add(1)
			}
		}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()

	w := script{tag: "black", lines: 2000}
	gate := filepath.Join(s.dir, "gate")
	spec := w.spec(tracesIn(s.dir))
	spec.Command[2] = fmt.Sprintf("while [ ! -e %s ]; do sleep 0.05; done\n%s", gate, spec.Command[2])
	id := submitOne(ctx, t, c, spec).ID
	followed, waited := make(chan *heard, 1), make(chan error, 1)
	go func() { followed <- listen(ctx, c, wire.StreamRequest{ID: id, Follow: true}) }()
	go func() { _, err := c.Wait(ctx, id); waited <- err }()
	await(ctx, t, "the job to run", func() error {
		j, err := s.operator.Job(ctx, id)
		if err == nil && j.State != wire.Running {
			err = fmt.Errorf("it is %s", j.State)
		}
		return err
	})
	if _, err := c.Job(ctx, id); err != nil { // behind the beginning of the other two
		t.Fatal(err)
	}
	p := port.Load().Port
	s.n.damage(rule(fmt.Sprintf(`iifname "to-PLACE" tcp sport %d drop; oifname "to-PLACE" tcp dport %d drop;`, p, p)), atClient)
	began := time.Now()
	if err := os.WriteFile(gate, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	await(ctx, t, "the client to be told that nothing comes", func() error {
		if away.Load() == 0 {
			return errors.New("it is not")
		}
		return nil
	})
	told := time.Since(began)
	h := <-followed
	if err := h.check(w); err != nil {
		t.Error(err)
	}
	if err := <-waited; err != nil {
		t.Error(err)
	}
	t.Logf("told after %s, all there after %s", told.Round(time.Millisecond), time.Since(began).Round(time.Millisecond))
	if dialed.Load() != 2 || back.Load() != 1 {
		t.Errorf("dialed %d times, told %d times that the server is back", dialed.Load(), back.Load())
	}
	s.checkNothingLeft(ctx)
}
