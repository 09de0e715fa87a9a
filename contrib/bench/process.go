package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/waypointd/waypoint/mux"
	"github.com/waypointd/waypoint/mux/client"
	"github.com/waypointd/waypoint/mux/wire"
)

const (
	startWait = 15 * time.Second       // for a process to do what it was started for
	stopWait  = 15 * time.Second       // for a process to end after it was told
	look      = 500 * time.Microsecond // between two looks at whether something is there
)

// process is the server or an agent.
type process struct {
	name string
	cmd  *exec.Cmd
	log  string        // its stderr
	done chan struct{} // closed when it has ended
	err  error         // of Wait; read after done
}

func (b *bench) launch(name string, args ...string) (*process, error) {
	p := &process{name: name, log: b.path(name + ".log"), done: make(chan struct{})}
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("make log: %w", err)
	}
	defer log.Close()
	p.cmd = exec.Command(b.binary, args...)
	p.cmd.Dir = b.dir
	p.cmd.Stderr = log
	p.cmd.Env = environment()
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// environment is this process's without what would change the program's ways.
func environment() []string {
	var env []string
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "WAYPOINT_") && !strings.HasPrefix(kv, "NOTIFY_SOCKET=") {
			env = append(env, kv)
		}
	}
	return env
}

func (p *process) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// stop asks for the end and says whether it was a good one.
func (p *process) stop() error {
	p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(stopWait):
		p.cmd.Process.Kill()
		<-p.done
		return fmt.Errorf("stop %s: it goes on %s after SIGTERM", p.name, stopWait)
	}
	if p.err != nil {
		return fmt.Errorf("stop %s: %w", p.name, p.err)
	}
	return nil
}

// agent is a runner with the supervisor it has started.
type agent struct {
	*process
	id         string
	supervisor int // 0 where it has none of its own
}

func (b *bench) socket() string { return b.path("server.sock") }

// startServer starts it and returns once it has answered, with the time that
// took.
func (b *bench) startServer(ctx context.Context, stateDir string, extra ...string) (time.Duration, error) {
	began := time.Now()
	args := append([]string{"server", "run", "--state-dir", stateDir, "--listen", "unix://" + b.socket()}, extra...)
	var err error
	if b.server, err = b.launch("server", args...); err != nil {
		return 0, err
	}
	err = b.await(ctx, b.server, "answer", func() bool {
		// Looking costs it nothing until it listens.
		conn, err := net.Dial("unix", b.socket())
		if err != nil {
			return false
		}
		conn.Close()
		return true
	})
	if err != nil {
		return 0, err
	}
	c, err := b.client(ctx)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	if _, err := c.ServerStatus(ctx); err != nil {
		return 0, fmt.Errorf("ask server: %w", err)
	}
	return time.Since(began), nil
}

// await looks again and again until a process has done something.
func (b *bench) await(ctx context.Context, p *process, what string, is func() bool) error {
	for end := time.Now().Add(startWait); !is(); time.Sleep(look) {
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case p.ended():
			return fmt.Errorf("start %s: it ended before it could %s (%v)%s", p.name, what, p.err, b.lastWords())
		case time.Now().After(end):
			return fmt.Errorf("start %s: it did not %s within %s%s", p.name, what, startWait, b.lastWords())
		}
	}
	return nil
}

// startAgent starts a runner and adopts it.
func (b *bench) startAgent(ctx context.Context, id string, concurrency int) (*agent, error) {
	dir := b.path(id)
	p, err := b.launch(id, "runner", "agent", "--server-addr", "unix://"+b.socket(),
		"--id", id, "--state-dir", dir, "--concurrency", strconv.Itoa(concurrency))
	if err != nil {
		return nil, err
	}
	a := &agent{process: p, id: id}
	c, err := b.client(ctx)
	if err != nil {
		return a, err
	}
	defer c.Close()
	adopted := false
	err = b.await(ctx, p, "be adopted", func() bool {
		if r, err := c.Runner(ctx, id); err != nil || !r.Online {
			return false
		}
		if !adopted {
			_, err := c.Adopt(ctx, id, "")
			adopted = err == nil
			return false
		}
		ok, err := c.Match(ctx, wire.Target{ID: id})
		return err == nil && ok
	})
	a.supervisor = supervisorOf(dir)
	return a, err
}

// supervisorOf finds the process that an agent has started to be the parent
// of its jobs: it is told the agent's state directory.
func supervisorOf(stateDir string) int {
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		words := strings.Split(string(bytes.TrimRight(text, "\x00")), "\x00")
		line := strings.Join(words, " ")
		if len(words) > 2 && words[1] == "runner" && words[2] == "supervisor" && strings.Contains(line, stateDir) {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(file)))
			return pid
		}
	}
	return 0
}

// client is a new connection to the server.
func (b *bench) client(ctx context.Context) (*client.Client, error) {
	addr := mux.Address{Network: "unix", Path: b.socket()}
	c, err := client.Dial(ctx, client.Config{
		Dial:     func(ctx context.Context) (net.Conn, error) { return mux.Dial(ctx, addr, mux.Trust{}) },
		Software: "waypoint-bench",
	})
	if err != nil {
		return nil, fmt.Errorf("connect to the server: %w", err)
	}
	return c, nil
}

// alive says which process has ended without having been told to.
func (b *bench) alive() error {
	for _, p := range b.processes() {
		if p.ended() {
			return fmt.Errorf("%s ended by itself: %v", p.name, p.err)
		}
	}
	return nil
}

func (b *bench) processes() []*process {
	var ps []*process
	for _, a := range []*agent{b.wide, b.plain} {
		if a != nil {
			ps = append(ps, a.process)
		}
	}
	if b.server != nil {
		ps = append(ps, b.server)
	}
	return ps
}

// stop ends everything that runs, agents first.
func (b *bench) stop() error {
	err := b.stopAgents()
	if b.server != nil && !b.server.ended() {
		err = errors.Join(err, b.server.stop())
	}
	return err
}

// stopAgents ends the agents, and then what they have left for the next one:
// the parents of their jobs.
func (b *bench) stopAgents() error {
	var errs []error
	for _, a := range []*agent{b.wide, b.plain} {
		if a == nil {
			continue
		}
		if !a.ended() {
			errs = append(errs, a.stop())
		}
		if pid := supervisorOf(b.path(a.id)); pid != 0 {
			errs = append(errs, stopSupervisor(pid, b.path(a.id)))
		}
	}
	b.wide, b.plain = nil, nil
	return errors.Join(errs...)
}

// stopSupervisor ends a process that is no child of this one.
func stopSupervisor(pid int, stateDir string) error {
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
		return fmt.Errorf("stop supervisor: %w", err)
	}
	for end := time.Now().Add(stopWait); supervisorOf(stateDir) == pid; time.Sleep(10 * look) {
		if time.Now().After(end) {
			syscall.Kill(pid, syscall.SIGKILL)
			return fmt.Errorf("stop supervisor: it goes on %s after SIGTERM", stopWait)
		}
	}
	return nil
}

// lastWords are the ends of the logs of the processes.
func (b *bench) lastWords() string {
	const enough = 1500
	var text strings.Builder
	for _, p := range b.processes() {
		log, err := os.ReadFile(p.log)
		if err != nil || len(log) == 0 {
			continue
		}
		fmt.Fprintf(&text, "\n--- %s\n%s", p.name, log[max(0, len(log)-enough):])
	}
	return text.String()
}
