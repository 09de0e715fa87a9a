package torture

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/waypointd/waypoint/mux"
	"github.com/waypointd/waypoint/mux/client"
	"github.com/waypointd/waypoint/mux/wire"
)

// The places of a network, each a network namespace with one cable to the router
// in the middle, where whatever is broken breaks: at both ends packets only
// stay away, as in the world.
const (
	atRouter = "router"
	atServer = "server"
	atSpare  = "spare" // where the server moves to
	atRunner = "runner"
	atClient = "client"
)

// leaves are the places around the router; the n-th is 10.117.n.2, and its
// router 10.117.n.1.
var leaves = []string{atServer, atSpare, atRunner, atClient}

const (
	serverIP   = "10.117.9.9" // routed to where the server is
	serverPort = "9701"
	nowhere    = "10.117.9.10" // an address from which nothing comes back
)

// network is namespaces of the kernel.
type network struct {
	t  testing.TB
	of string // what its namespaces' names begin with
}

var networks atomic.Int64 // so far

// noNetwork says why there can be no network of namespaces; "" where there can.
func noNetwork() string {
	if os.Getuid() != 0 {
		return "network namespaces take root"
	}
	for _, tool := range []string{"ip", "nft"} {
		if _, err := exec.LookPath(tool); err != nil {
			return "a broken network takes " + tool + " (iproute2, nftables)"
		}
	}
	return ""
}

// newNetwork makes the places and their cables, for root only.
func newNetwork(t testing.TB) *network {
	t.Helper()
	if why := noNetwork(); why != "" {
		if os.Getenv("CI") != "" && os.Getuid() == 0 {
			t.Fatal(why)
		}
		t.Skip(why)
	}
	n := &network{t: t, of: fmt.Sprintf("%s-%d-", filepath.Base(base), networks.Add(1))}
	t.Cleanup(func() { removeNetworks(n.of) })
	n.ip("netns", "add", n.name(atRouter))
	if err := n.inside(atRouter, func() error { return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0) }); err != nil {
		t.Fatal(err)
	}
	for i, leaf := range leaves {
		n.ip("netns", "add", n.name(leaf))
		cable := "to-" + leaf
		n.ip("link", "add", cable, "netns", n.name(atRouter), "type", "veth", "peer", "name", "cable", "netns", n.name(leaf))
		n.at(atRouter, "addr", "add", leafIP(i, 1)+"/24", "dev", cable)
		n.at(atRouter, "link", "set", cable, "up")
		n.at(leaf, "addr", "add", leafIP(i, 2)+"/24", "dev", "cable")
		n.at(leaf, "link", "set", "lo", "up")
		n.at(leaf, "link", "set", "cable", "up")
		n.at(leaf, "route", "add", "default", "via", leafIP(i, 1))
	}
	for _, home := range []string{atServer, atSpare} {
		n.at(home, "addr", "add", serverIP+"/32", "dev", "lo")
	}
	n.at(atRouter, "route", "add", "blackhole", nowhere)
	n.moveServer(atServer)
	n.heal()
	return n
}

func leafIP(leaf, host int) string { return fmt.Sprintf("10.117.%d.%d", leaf, host) }

// namespace is the name of a place: that of this run's directory is in it.
func (n *network) name(place string) string { return n.of + place }

// removeNetworks removes the namespaces whose names begin with that.
func removeNetworks(of string) {
	entries, _ := os.ReadDir("/run/netns")
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), of) {
			exec.Command("ip", "netns", "del", e.Name()).Run()
		}
	}
}

// ip is a command of iproute2.
func (n *network) ip(args ...string) {
	n.t.Helper()
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		n.t.Fatalf("ip %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// at is such a command in a place.
func (n *network) at(place string, args ...string) {
	n.t.Helper()
	n.ip(append([]string{"-n", n.name(place)}, args...)...)
}

// inside does something in a place, on a thread that is there meanwhile: the
// processes that f starts, and the sockets that it opens, are of that place.
// `ip netns exec` would hide the cgroups as well.
func (n *network) inside(place string, f func() error) error {
	there, err := os.Open("/run/netns/" + n.name(place))
	if err != nil {
		return err
	}
	defer there.Close()
	runtime.LockOSThread()
	back, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer back.Close()
	if err := unix.Setns(int(there.Fd()), unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("go to %s: %w", place, err)
	}
	err = f()
	if back := unix.Setns(int(back.Fd()), unix.CLONE_NEWNET); back != nil {
		return errors.Join(err, back) // the thread stays locked, and ends with its goroutine
	}
	runtime.UnlockOSThread()
	return err
}

// moveServer has the server's address lead to a place.
func (n *network) moveServer(to string) {
	n.t.Helper()
	via := map[string]string{atServer: leafIP(0, 2), atSpare: leafIP(1, 2)}[to]
	n.at(atRouter, "route", "replace", serverIP, "via", via)
}

// rule is what the router does with packets; places are by their cables.
type rule string

// The ways in which a network breaks between two places. PLACE is the one that
// dials, and what comes from it goes up.
const (
	cutUp     rule = `iifname "to-PLACE" drop;`
	cutDown   rule = `oifname "to-PLACE" drop;`
	cutBoth   rule = cutUp + cutDown
	resetUp   rule = `iifname "to-PLACE" meta l4proto tcp reject with tcp reset;`
	resetAll  rule = resetUp + `oifname "to-PLACE" meta l4proto tcp reject with tcp reset;`
	blackDial rule = `iifname "to-PLACE" tcp flags & (syn | ack) == syn counter drop;` // nobody answers who is not talked with already
	resetOld  rule = `iifname "to-PLACE" meta l4proto tcp reject with tcp reset;`      // behind blackDial: whom is talked with
	lossy     rule = `iifname "to-PLACE" numgen random mod 100 < 25 drop;oifname "to-PLACE" numgen random mod 100 < 25 drop;`
	// In each direction: what is more than that is lost.
	slow rule = `iifname "to-PLACE" limit rate over 64 kbytes/second burst 96 kbytes drop;oifname "to-PLACE" limit rate over 64 kbytes/second burst 96 kbytes drop;`
)

// breach is one way to break the network between somebody and the server.
type breach struct {
	name string
	rule rule
	half bool // of the connections that there are now only
	up   bool // what half breaks
	down bool
}

var breaches = []breach{
	{name: "cut", rule: cutBoth},
	{name: "cut up", rule: cutUp},
	{name: "cut down", rule: cutDown},
	{name: "half-open", half: true, up: true, down: true},
	{name: "half-open up", half: true, up: true},
	{name: "half-open down", half: true, down: true},
	{name: "reset by the server's side", rule: resetUp},
	{name: "reset", rule: resetAll},
	{name: "reset, and a black hole", rule: blackDial + resetOld},
	{name: "lossy", rule: lossy},
	{name: "slow", rule: slow},
}

// half drops what belongs to the connections that a place has now, and lets
// new ones through: what a router does that has lost its memory.
func (n *network) half(place string, up, down bool) (r rule, err error) {
	var ports []string
	err = n.inside(place, func() (err error) {
		ports, err = portsHere()
		return err
	})
	if err != nil || len(ports) == 0 {
		return "", err
	}
	list := strings.Join(ports, ", ")
	if up {
		r += rule(`iifname "to-PLACE" tcp sport { ` + list + ` } drop;`)
	}
	if down {
		r += rule(`oifname "to-PLACE" tcp dport { ` + list + ` } drop;`)
	}
	return r, nil
}

// portsHere are the local ports of the connections in the network of this thread.
func portsHere() ([]string, error) {
	b, err := os.ReadFile("/proc/thread-self/net/tcp")
	if err != nil {
		return nil, err
	}
	var ports []string
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) < 4 || f[3] != "01" { // established
			continue
		}
		_, port, _ := strings.Cut(f[1], ":")
		if p, err := strconv.ParseUint(port, 16, 16); err == nil {
			ports = append(ports, strconv.FormatUint(p, 10))
		}
	}
	return ports, nil
}

// damage has the router keep a rule for these places, instead of those before.
func (n *network) damage(r rule, places ...string) {
	n.t.Helper()
	rules := map[string]rule{}
	for _, p := range places {
		rules[p] = r
	}
	n.keep(rules)
}

// keep has the router keep these rules, by place, instead of those before.
func (n *network) keep(rules map[string]rule) {
	n.t.Helper()
	var b strings.Builder
	b.WriteString("table ip broken\ndelete table ip broken\n") // in one transaction with what follows
	b.WriteString("table ip broken { chain way { type filter hook forward priority 0; policy accept;\n")
	for place, r := range rules {
		b.WriteString(strings.ReplaceAll(strings.ReplaceAll(string(r), "PLACE", place), ";", "\n") + "\n")
	}
	b.WriteString("}\n}\n")
	err := n.inside(atRouter, func() error {
		cmd := exec.Command("nft", "-f", "-")
		cmd.Stdin = bytes.NewBufferString(b.String())
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("nft: %w\n%s\n%s", err, out, b.String())
		}
		return nil
	})
	if err != nil {
		n.t.Fatal(err)
	}
}

// heal mends everything.
func (n *network) heal() {
	n.t.Helper()
	n.damage("")
}

// dropped reports whether the rule with a counter has met a packet.
func (n *network) dropped() (yes bool) {
	n.t.Helper()
	err := n.inside(atRouter, func() error {
		out, err := exec.Command("nft", "list", "table", "ip", "broken").CombinedOutput()
		yes = bytes.Contains(out, []byte("counter packets")) && !bytes.Contains(out, []byte("counter packets 0 "))
		return err
	})
	if err != nil {
		n.t.Fatal(err)
	}
	return yes
}

// remote is a site over a network: TCP with TLS between its places, and a
// socket for the operator, who is everywhere.
type remote struct {
	*site
	n        *network
	operator *client.Client // by the socket
	pin      string         // fingerprint of the server's key

	config    string // the server's file
	heartbeat time.Duration
	managed   bool // the supervisor is no child of the agent's, which leaves it the jobs when it ends
}

// newRemote starts server and runner, and waits until jobs can run.
func newRemote(ctx context.Context, t testing.TB, lease, heartbeat time.Duration) *remote {
	t.Helper()
	s := &remote{site: newSite(t), n: newNetwork(t), heartbeat: heartbeat}
	s.open(ctx, lease)
	return s
}

// open starts server and runner, and waits until jobs can run. Without a
// network all are at one place.
func (s *remote) open(ctx context.Context, lease time.Duration) {
	t := s.t
	t.Helper()
	s.config = filepath.Join(s.dir, "server.toml")
	s.writeConfig(lease)
	s.tcp = serverIP + ":" + serverPort
	listen := "0.0.0.0:" + serverPort
	if s.n == nil {
		s.tcp = freePort(t)
		listen = s.tcp
	}
	s.serverArgs = []string{"--config", s.config, "--listen", "tcp://" + listen}
	s.startServer(atServer)
	s.awaitServer(ctx)
	s.putToken(s.token(ctx, "--id", runnerID))
	if s.managed {
		launch(t, s.dir, "supervisor", nil, "runner", "supervisor", "--dir", filepath.Join(s.agentState, "jobs"))
	}
	s.startAgent()
	c := s.client(ctx)
	s.awaitRunner(ctx, c)
	s.findCgroup(ctx, c)
	login, err := c.UserToken(ctx, wire.UserTokenRequest{})
	if err != nil {
		t.Fatal(err)
	}
	s.login, s.pin, s.operator = login.Token, login.Fingerprint, c
}

// inside is the network's, where there is one.
func (s *remote) inside(place string, f func() error) error {
	if s.n == nil {
		return f()
	}
	return s.n.inside(place, f)
}

// at does something in a place that starts a process.
func (s *remote) at(place string, f func()) {
	s.t.Helper()
	if err := s.inside(place, func() error { f(); return nil }); err != nil {
		s.t.Fatal(err)
	}
}

func (s *remote) startServer(place string) { s.at(place, s.site.startServer) }
func (s *remote) startAgent() {
	args := []string{}
	if s.managed {
		args = append(args, "--managed")
	}
	s.at(atRunner, func() { s.launchAgent("tcp://"+s.tcp, args...) })
}

// overNetwork has the clients that are made from now on sit in their place.
func (s *remote) overNetwork() {
	s.reach = func(ctx context.Context) (conn net.Conn, err error) {
		nerr := s.inside(atClient, func() error {
			conn, err = mux.Dial(ctx, mux.Address{Network: "tcp", Path: s.tcp}, mux.Trust{Pins: []string{s.pin}})
			return nil
		})
		return conn, errors.Join(err, nerr)
	}
}

// awaitOnline waits until the server sees the runner so.
func (s *remote) awaitOnline(ctx context.Context, online bool) {
	s.t.Helper()
	await(ctx, s.t, fmt.Sprintf("runner's online=%v", online), func() error {
		r, err := s.operator.Runner(ctx, runnerID)
		if err == nil && r.Online != online {
			err = fmt.Errorf("online is %v", r.Online)
		}
		return err
	})
}

// setLease has the server go by another lease from now on.
func (s *remote) setLease(ctx context.Context, lease time.Duration) {
	s.t.Helper()
	s.writeConfig(lease)
	if a := s.cli(ctx, "server", "reload"); a.code != 0 {
		s.t.Fatalf("reload: %s", a)
	}
}

func (s *remote) writeConfig(lease time.Duration) {
	s.t.Helper()
	text := fmt.Sprintf("lease = %q\nheartbeat = %q\n", lease, s.heartbeat)
	if err := os.WriteFile(s.config, []byte(text), 0o644); err != nil {
		s.t.Fatal(err)
	}
}

// awaitSaid waits until a log says text more often than n times.
func (s *remote) awaitSaid(ctx context.Context, p *process, text string, n int) {
	s.t.Helper()
	await(ctx, s.t, p.name+" to say "+strconv.Quote(text), func() error {
		if err := p.hopeless(); err != nil {
			return err
		}
		if counted(s.t, p.log, text) <= n {
			return errors.New("it has not")
		}
		return nil
	})
}
