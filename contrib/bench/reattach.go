package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/waypointd/waypoint/mux/client"
	"github.com/waypointd/waypoint/mux/wire"
)

const (
	reattached     = 200                    // jobs that run while their agent dies
	reattachedLess = 40                     // the same with -quick
	beatEvery      = 200 * time.Millisecond // between two lines of one of them
	beatWait       = time.Minute            // for all of them to be heard of again

	// beatCommand makes this program a job that prints the time, see beat.
	beatCommand = "beat"
)

// beat prints the time in nanoseconds at which it is written, line by line,
// until the file of that name is there. Its first line says "begun".
func beat(until string) {
	fmt.Println("begun")
	t := time.NewTicker(beatEvery)
	for {
		if _, err := os.Lstat(until); err == nil {
			return
		}
		fmt.Println(time.Now().UnixNano())
		<-t.C
	}
}

// hearing is what a follower of one beat has heard.
type hearing struct {
	mu    sync.Mutex
	rest  []byte      // of a line whose end has not come
	lines int         // of times; guarded by mu
	last  int64       // the newest of them; guarded by mu
	marks []int64     // a time that is waited for, ascending; guarded by mu
	came  []time.Time // when the first line younger than each mark came; guarded by mu
}

func (h *hearing) add(b []byte) error {
	now := time.Now()
	h.mu.Lock()
	defer h.mu.Unlock()
	h.rest = append(h.rest, b...)
	for {
		line, rest, whole := bytes.Cut(h.rest, []byte("\n"))
		if !whole {
			return nil
		}
		h.rest = rest
		if string(line) == "begun" {
			continue
		}
		at, err := strconv.ParseInt(string(line), 10, 64)
		if err != nil {
			return fmt.Errorf("read line: %w", err)
		}
		if at <= h.last {
			return fmt.Errorf("read line: %d comes behind %d", at, h.last)
		}
		h.lines, h.last = h.lines+1, at
		for len(h.came) < len(h.marks) && at > h.marks[len(h.came)] {
			h.came = append(h.came, now)
		}
	}
}

// await forgets what was waited for before.
func (h *hearing) await(marks ...time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.marks, h.came = nil, nil
	for _, m := range marks {
		h.marks = append(h.marks, m.UnixNano())
	}
}

// heard is when lines younger than each mark came, as far as they have.
func (h *hearing) heard() []time.Time {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]time.Time(nil), h.came...)
}

// herd is a server, a runner whose supervisor is somebody else's, as a
// packaged one's is, and many jobs on it, each with a follower.
type herd struct {
	*bench
	c          *client.Client
	addr       string // of the server, for the runner
	serverArgs []string
	supervisor *process
	runner     *process
	ids        []string
	ears       []*hearing
	ends       chan error // one for each follower
	over       string     // the file that ends the jobs
}

// measureReattach has the agent, and the server too, killed and restarted under
// many running jobs, and times how long it takes until the server has the report
// of each of them again.
func measureReattach(ctx context.Context, b *bench) error {
	n := reattached
	if b.quick {
		n = reattachedLess
	}
	for _, network := range []string{"unix", "tcp"} {
		dir := b.path("reattach-" + network)
		if err := makeDir(dir); err != nil {
			return err
		}
		h := &herd{bench: &bench{config: b.config, dir: dir, report: b.report}, ends: make(chan error, n), over: dir + "/over"}
		err := h.measure(ctx, network, n)
		if err != nil {
			err = fmt.Errorf("over %s: %w%s", network, err, h.lastWords())
		}
		if err := errors.Join(err, h.end()); err != nil {
			return err
		}
	}
	return nil
}

func (h *herd) measure(ctx context.Context, network string, n int) error {
	if err := h.begin(ctx, network); err != nil {
		return err
	}
	if err := h.fill(ctx, n); err != nil {
		return err
	}
	floor, err := repeat(ctx, h.span(300*time.Millisecond), func() error { return h.command([]string{h.binary, "version"}) })
	if err != nil {
		return err
	}
	over := map[string]string{"unix": "Unix", "tcp": "TLS"}[network]
	for _, way := range []struct {
		name   string
		signal syscall.Signal
		server bool
	}{
		{"kill -9", syscall.SIGKILL, false},
		{"SIGTERM", syscall.SIGTERM, false},
		{"server too", syscall.SIGKILL, true},
	} {
		var reports, live samples
		for range h.rounds() {
			r, l, err := h.restart(ctx, way.signal, way.server)
			if err != nil {
				return fmt.Errorf("%s: %w", way.name, err)
			}
			reports, live = append(reports, r), append(live, l)
		}
		h.report.took(fmt.Sprintf("%d jobs, %s, %s", n, way.name, over), reports.quantile(1), floor.p50(), "waypoint version", "reported in < 2 s")
		h.report.took("   their next lines, one each 200 ms", live.quantile(1), floor.p50(), "waypoint version", "followed in < 2 s")
	}
	if err := os.WriteFile(h.over, nil, 0o600); err != nil {
		return fmt.Errorf("end jobs: %w", err)
	}
	for range n {
		if err := <-h.ends; err != nil {
			return err
		}
	}
	return nil
}

// begin starts the processes.
func (h *herd) begin(ctx context.Context, network string) error {
	h.addr = "unix://" + h.socket()
	if network == "tcp" {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return fmt.Errorf("find port: %w", err)
		}
		h.addr = "tcp://" + l.Addr().String()
		l.Close()
		h.serverArgs = []string{"--listen", h.addr}
	}
	if _, err := h.startServer(ctx, h.path("server"), h.serverArgs...); err != nil {
		return err
	}
	var err error
	if h.c, err = h.client(ctx); err != nil {
		return err
	}
	token, err := h.c.RunnerToken(ctx, wire.RunnerTokenRequest{ID: "herd", ExpiresIn: wire.Duration(time.Hour)})
	if err != nil {
		return fmt.Errorf("make token: %w", err)
	}
	if err := os.Mkdir(h.path("herd"), 0o700); err != nil {
		return fmt.Errorf("make directory: %w", err)
	}
	if err := os.WriteFile(h.path("herd/token"), []byte(token.Token), 0o600); err != nil {
		return fmt.Errorf("write token: %w", err)
	}
	if h.supervisor, err = h.launch("supervisor", "runner", "supervisor", "--dir", h.path("herd/jobs")); err != nil {
		return err
	}
	if err := h.startRunner(); err != nil {
		return err
	}
	return h.await(ctx, h.runner, "get jobs", func() bool {
		ok, err := h.c.Match(ctx, wire.Target{ID: "herd"})
		return err == nil && ok
	})
}

func (h *herd) startRunner() (err error) {
	h.runner, err = h.launch("agent", "runner", "agent", "--managed", "--server-addr", h.addr,
		"--id", "herd", "--state-dir", h.path("herd"), "--concurrency", strconv.Itoa(reattached+50))
	if err == nil {
		h.wide = &agent{process: h.runner, id: "herd", supervisor: h.supervisor.cmd.Process.Pid} // as such its last words are known
	}
	return err
}

// fill has n jobs run, each followed.
func (h *herd) fill(ctx context.Context, n int) error {
	program, err := h.ticker()
	if err != nil {
		return err
	}
	begun := time.Now()
	for range n {
		j, err := submit(ctx, h.c, command(wire.Target{ID: "herd"}, program, beatCommand, h.over))
		if err != nil {
			return err
		}
		ear := &hearing{}
		ear.await(begun)
		h.ids, h.ears = append(h.ids, j.ID), append(h.ears, ear)
		go func() {
			last, err := follow(ctx, h.c, j.ID, ear.add)
			if err == nil {
				err = succeeded(last)
			}
			h.ends <- err
		}()
	}
	_, err = h.listen(ctx, 1)
	return err
}

// listen waits until every job was heard of after its marks, and returns when
// the last one was, for each mark.
func (h *herd) listen(ctx context.Context, marks int) ([]time.Time, error) {
	for end := time.Now().Add(beatWait); ; {
		last, missing := make([]time.Time, marks), 0
		for _, ear := range h.ears {
			came := ear.heard()
			if len(came) < marks {
				missing++
				continue
			}
			for i, at := range came {
				if at.After(last[i]) {
					last[i] = at
				}
			}
		}
		if missing == 0 {
			return last, nil
		}
		select {
		case err := <-h.ends:
			return nil, fmt.Errorf("a job has ended: %w", err)
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(time.Millisecond):
		}
		if time.Now().After(end) {
			return nil, fmt.Errorf("nothing is heard of %d jobs for %s", missing, beatWait)
		}
	}
}

// restart ends the agent, and has it started again after a while. It returns
// how long after that start the last job was reported, which is when there came what it
// had printed without an agent, and when what it prints from the start on.
func (h *herd) restart(ctx context.Context, with syscall.Signal, server bool) (reported, live time.Duration, err error) {
	h.runner.cmd.Process.Signal(with)
	if server {
		h.server.cmd.Process.Signal(with)
		<-h.server.done
	}
	select {
	case <-h.runner.done:
	case <-time.After(stopWait):
		return 0, 0, fmt.Errorf("the agent goes on %s after %s", stopWait, with)
	}
	gone := time.Now()
	// Each job is to have printed something meanwhile.
	select {
	case <-time.After(2 * beatEvery):
	case <-ctx.Done():
		return 0, 0, context.Cause(ctx)
	}
	if server {
		args := append([]string{"server", "run", "--state-dir", h.path("server"), "--listen", "unix://" + h.socket()}, h.serverArgs...)
		if h.bench.server, err = h.launch("server", args...); err != nil {
			return 0, 0, err
		}
	}
	began := time.Now()
	for _, ear := range h.ears {
		ear.await(gone, began)
	}
	if err := h.startRunner(); err != nil {
		return 0, 0, err
	}
	last, err := h.listen(ctx, 2)
	if err != nil {
		return 0, 0, err
	}
	return last[0].Sub(began), last[1].Sub(began), nil
}

// end ends what begin has started, jobs included.
func (h *herd) end() error {
	var errs []error
	if h.c != nil {
		h.c.Close()
	}
	for _, p := range []*process{h.runner, h.supervisor, h.bench.server} {
		if p != nil && !p.ended() {
			errs = append(errs, p.stop())
		}
	}
	return errors.Join(errs...)
}
