package torture

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/waypointd/waypoint/mux"
	"github.com/waypointd/waypoint/mux/client"
	"github.com/waypointd/waypoint/mux/wire"
)

// site is a server and one runner on a Unix socket, in a directory of its own.
type site struct {
	t           testing.TB
	dir         string
	sock        string
	serverState string
	agentState  string
	concurrency int
	serverArgs  []string
	reach       func(ctx context.Context) (net.Conn, error) // how clients connect; nil: by the socket
	login       string                                      // their token where they come over TCP
	tcp         string                                      // where the server listens for them; "": on its socket only

	server *process
	agent  *process // nil until startAgent
	id     string   // of the server, as it says
	cgroup string   // of all jobs' cgroups, "" where there are none
}

const runnerID = "r1"

// siteMark is what all sites' directories are in, below base.
const siteMark = "/t"

// newSite starts a server. Its end, whatever the test's, leaves no process.
func newSite(t testing.TB, serverArgs ...string) *site {
	t.Helper()
	dir, err := os.MkdirTemp(base+siteMark, "*-") // none is the beginning of another
	if err != nil {
		t.Fatal(err)
	}
	s := &site{
		t: t, dir: dir, sock: filepath.Join(dir, "s"), concurrency: 8,
		serverState: filepath.Join(dir, "server"), agentState: filepath.Join(dir, "agent"),
		serverArgs: serverArgs,
	}
	t.Cleanup(s.close)
	return s
}

// open starts server and agent and waits until jobs can run.
func (s *site) open(ctx context.Context) {
	s.t.Helper()
	s.startServer()
	s.awaitServer(ctx)
	s.startAgent()
	s.adopt(ctx)
}

func (s *site) startServer() {
	args := append([]string{"server", "run", "--state-dir", s.serverState, "--listen", "unix://" + s.sock}, s.serverArgs...)
	s.server = launch(s.t, s.dir, "server", nil, args...)
}

func (s *site) startAgent() { s.launchAgent("unix://" + s.sock) }

func (s *site) launchAgent(server string, args ...string) {
	s.agent = launch(s.t, s.dir, "agent", nil, append([]string{"runner", "agent", "--server-addr", server,
		"--state-dir", s.agentState, "--id", runnerID, "--concurrency", strconv.Itoa(s.concurrency)}, args...)...)
}

// address is where commands find the server.
func (s *site) address() string {
	if s.tcp != "" {
		return "tcp://" + s.tcp
	}
	return "unix://" + s.sock
}

// awaitServer waits until the server answers.
func (s *site) awaitServer(ctx context.Context) {
	s.t.Helper()
	await(ctx, s.t, "server", func() error {
		if err := s.server.hopeless(); err != nil {
			return err
		}
		c, err := s.dial(ctx)
		if err != nil {
			return err
		}
		defer c.Close()
		st, err := c.ServerStatus(ctx)
		if s.id != "" && err == nil && st.ID != s.id {
			s.t.Errorf("the server's id was %s and is %s", s.id, st.ID)
		}
		s.id = st.ID
		return err
	})
}

// adopt admits the runner and waits until it takes jobs.
func (s *site) adopt(ctx context.Context) {
	s.t.Helper()
	c := s.client(ctx)
	defer c.Close()
	await(ctx, s.t, "runner to ask for adoption", func() error {
		if err := s.agent.hopeless(); err != nil {
			return err
		}
		_, err := c.Adopt(ctx, runnerID, "")
		return err
	})
	s.awaitRunner(ctx, c)
	s.findCgroup(ctx, c)
}

func (s *site) awaitRunner(ctx context.Context, c *client.Client) {
	s.t.Helper()
	await(ctx, s.t, "runner", func() error {
		if err := s.agent.hopeless(); err != nil {
			return err
		}
		ok, err := c.Match(ctx, wire.Target{Any: true})
		if err == nil && !ok {
			err = fmt.Errorf("not online and adopted yet")
		}
		return err
	})
}

func (s *site) dial(ctx context.Context) (*client.Client, error) {
	reach := s.reach
	if reach == nil {
		reach = func(ctx context.Context) (net.Conn, error) {
			return mux.Dial(ctx, mux.Address{Network: "unix", Path: s.sock}, mux.Trust{})
		}
	}
	return client.Dial(ctx, client.Config{Software: "waypoint torture", Dial: reach, Token: func() string { return s.login }})
}

// client is a connection of its own, closed with the test.
func (s *site) client(ctx context.Context) *client.Client {
	s.t.Helper()
	c, err := s.dial(ctx)
	if err != nil {
		s.t.Fatalf("dial: %v", err)
	}
	s.t.Cleanup(func() { c.Close() })
	return c
}

// raw is a bare connection to the server's socket.
func (s *site) raw() net.Conn {
	s.t.Helper()
	conn, err := net.Dial("unix", s.sock)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { conn.Close() })
	return conn
}

// cli runs a command against the server.
func (s *site) cli(ctx context.Context, args ...string) answer {
	s.t.Helper()
	return command(ctx, s.t, nil, append([]string{"--server-addr", "unix://" + s.sock}, args...)...)
}

// mustAnswer asks the server for its status with a new process, and that it
// is the same process as ever.
func (s *site) mustAnswer(ctx context.Context, after string) wire.ServerStatus {
	s.t.Helper()
	if !s.server.alive() {
		s.t.Fatalf("after %s the server is gone: %v\n%s", after, s.server.err, tail(s.server.log, 4000))
	}
	a := s.cli(ctx, "server", "status", "--json")
	var st wire.ServerStatus
	if a.code != 0 || json.Unmarshal([]byte(a.stdout), &st) != nil {
		s.t.Fatalf("after %s the server does not answer: %s\n%s", after, a, tail(s.server.log, 4000))
	}
	if st.ID != s.id {
		s.t.Fatalf("after %s the server's id is %q, was %q", after, st.ID, s.id)
	}
	return st
}

// supervisors are the pids of the agent's supervisor, by its state directory.
func (s *site) supervisors() []int {
	var pids []int
	for _, p := range processesOf(s.agentState) {
		if strings.Contains(p.cmdline, "runner supervisor") {
			pids = append(pids, p.pid)
		}
	}
	return pids
}

// close kills whatever the site has started.
func (s *site) close() {
	for _, p := range []*process{s.server, s.agent} {
		if raceBuild() && p != nil && counted(s.t, p.log, "WARNING: DATA RACE") > 0 {
			s.t.Errorf("the race detector speaks in %s", p.log)
		}
	}
	if s.t.Failed() {
		for _, p := range []*process{s.server, s.agent} {
			if p != nil {
				s.t.Logf("end of %s:\n%s", p.log, tail(p.log, 6000))
			}
		}
	}
	for _, p := range []*process{s.agent, s.server} {
		if p != nil {
			p.kill()
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	err := poll(ctx, func() error {
		left := processesOf(s.dir)
		for _, p := range left {
			syscall.Kill(p.pid, syscall.SIGKILL)
		}
		if len(left) > 0 {
			return fmt.Errorf("%v", left)
		}
		return nil
	})
	if err != nil {
		s.t.Errorf("kill leftovers: %v", err)
	}
	s.removeCgroups()
	if os.Getenv("TORTURE_KEEP") != "1" {
		os.RemoveAll(s.dir)
	}
}

// bounded is a context of the test's with a limit.
func bounded(t testing.TB, d time.Duration) context.Context {
	if raceBuild() {
		d *= 4
	}
	ctx, cancel := context.WithTimeoutCause(t.Context(), d, fmt.Errorf("the test's own limit of %s", d))
	t.Cleanup(cancel)
	return ctx
}

// given is TORTURE_DURATION, 0 where it is not set.
func given(t testing.TB) (d time.Duration) {
	v := os.Getenv("TORTURE_DURATION")
	if v == "" {
		return 0
	}
	d, err := time.ParseDuration(v)
	if err != nil {
		t.Fatalf("TORTURE_DURATION: %v", err)
	}
	return d
}

// seed is of what is random, and said.
func seed(t testing.TB) uint64 {
	t.Helper()
	n := number(t, "TORTURE_SEED", int(time.Now().UnixNano()&0xffffff))
	t.Logf("TORTURE_SEED=%d", n)
	return uint64(n)
}

// number is a knob.
func number(t testing.TB, name string, usual int) int {
	v := os.Getenv(name)
	if v == "" {
		return usual
	}
	n, err := strconv.Atoi(v)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}
