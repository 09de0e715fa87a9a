package torture

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/waypointd/waypoint/mux/wire"
)

// TestBadCommands holds what the command line promises of what cannot be: an
// exit code, one line that says why, no stack trace.
func TestBadCommands(t *testing.T) {
	ctx := bounded(t, 3*time.Minute)
	s := newSite(t)
	s.open(ctx)
	write := func(name, text string) string {
		path := filepath.Join(s.dir, name)
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	state := filepath.Join(s.dir, "other")
	long := "unix://" + filepath.Join(s.dir, strings.Repeat("x", 120))
	server := func(args ...string) []string {
		return append([]string{"server", "run", "--state-dir", state}, args...)
	}
	listen := "unix://" + filepath.Join(s.dir, "other.sock")
	agent := func(args ...string) []string {
		return append([]string{"runner", "agent", "--server-addr", "unix://" + s.sock, "--state-dir", state}, args...)
	}
	here := []string{"--server-addr", "unix://" + s.sock}
	for _, test := range []struct {
		name string
		args []string
		code int
		says []string // all on stderr
	}{
		{"unknown flag", append(here, "server", "status", "--nonsense"), 2, []string{"--nonsense", "hint: "}},
		{"unknown command", append(here, "fly"), 2, []string{"fly"}},
		{"unknown flag of the server", server("--listen", listen, "--nonsense"), 2, []string{"--nonsense"}},
		{"malformed TOML", server("--listen", listen, "--config", write("bad.toml", "lease = \n")), 2, []string{"bad.toml:1"}},
		{"unknown key", server("--listen", listen, "--config", write("key.toml", "# one\nlaese = \"1m\"\n")), 2, []string{"key.toml:2", "laese", "lease"}},
		{"wrong type", server("--listen", listen, "--config", write("type.toml", "retain_jobs = \"many\"\n")), 2, []string{"type.toml:1", "retain_jobs"}},
		{"negative limit", server("--listen", listen, "--config", write("neg.toml", "lease = \"-1m\"\n")), 2, []string{"lease"}},
		{"no such configuration", server("--listen", listen, "--config", filepath.Join(s.dir, "nothing.toml")), 2, []string{"nothing.toml"}},
		{"configuration is binary", server("--listen", listen, "--config", program), 2, []string{"read configuration"}},
		{"unknown key of the runner", agent("--config", write("runner.toml", "concurency = 3\n")), 2, []string{"runner.toml:1", "concurrency"}},
		{"unknown flag of the runner", agent("--nonsense"), 2, []string{"--nonsense"}},
		{"bad id of the runner", agent("--id", "../../etc/passwd"), 2, []string{"../../etc/passwd"}},
		{"bad label of the runner", agent("--label", "a b=c"), 2, []string{"a b"}},
		{"socket path too long", server("--listen", long), 2, []string{"107", "hint: "}},
		{"socket path too long to dial", []string{"--server-addr", long, "server", "status"}, 2, []string{"107"}},
		{"socket in no directory", server("--listen", "unix://"+filepath.Join(s.dir, "no/such/s")), 2, []string{"no/such/s"}},
		{"listen where another does", server("--listen", "unix://"+s.sock), 6, []string{s.sock}},
		{"listen where a file is", server("--listen", "unix://"+write("file", "precious")), 6, []string{"file"}},
		{"state directory in use", []string{"server", "run", "--state-dir", s.serverState, "--listen", listen}, 6, []string{s.serverState, "pid"}},
		{"state directory of an agent in use", []string{"runner", "agent", "--server-addr", "unix://" + s.sock, "--state-dir", s.agentState, "--id", runnerID}, 6, []string{s.agentState, "pid"}},
		{"state directory is a file", []string{"server", "run", "--state-dir", write("statefile", ""), "--listen", listen}, 2, []string{"statefile"}},
		{"no server", []string{"--server-addr", "unix://" + filepath.Join(s.dir, "nobody"), "server", "status"}, 5, []string{"nobody", "hint: "}},
		{"no such command", append(here, "run", "--no-local", "--", "nosuch-command"), 127, []string{"nosuch-command"}},
		{"not executable", append(here, "run", "--no-local", "--", write("plain", "no program")), 126, []string{"plain"}},
		{"exit code", append(here, "run", "--no-local", "--", "sh", "-c", "exit 41"), 41, nil},
		{"signal", append(here, "run", "--no-local", "--", "sh", "-c", "kill -9 $$"), 137, nil},
		{"no such job", append(here, "job", "stream", "nosuchjob"), 3, []string{"nosuchjob"}},
		{"empty id of a job", append(here, "job", "inspect", ""), 3, nil},
		{"nothing to run", append(here, "run", "--"), 2, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			checkAnswer(t, command(ctx, t, nil, test.args...), test.code, test.says)
		})
	}
	if b, err := os.ReadFile(filepath.Join(s.dir, "file")); string(b) != "precious" {
		t.Errorf("a file in the socket's place is %q now (%v)", b, err)
	}
	s.mustAnswer(ctx, "all of that")
}

// checkAnswer holds the rules for errors: the code, one line of ours that says
// what it must, no trace of the program's inside.
func checkAnswer(t *testing.T, a answer, code int, says []string) {
	t.Helper()
	if a.code != code {
		t.Errorf("want exit code %d: %s", code, a)
	}
	for _, text := range says {
		if !strings.Contains(a.stderr, text) {
			t.Errorf("want %q on stderr: %s", text, a)
		}
	}
	if len(says) > 0 && !strings.Contains(a.stderr, "waypoint: ") {
		t.Errorf("want a line \"waypoint: …\" on stderr: %s", a)
	}
	if strings.Contains(a.stderr, "goroutine ") || strings.Contains(a.stderr, "panic") {
		t.Errorf("a stack trace: %s", a)
	}
	if a.stdout != "" {
		t.Errorf("stdout carries more than the answer: %s", a)
	}
}

// TestNotWritable starts server and agent as nobody in directories that are
// not nobody's.
func TestNotWritable(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: only root can become nobody")
	}
	ctx := bounded(t, time.Minute)
	s := newSite(t)
	if err := os.Chmod(s.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	nobody := &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	private := filepath.Join(s.dir, "private")
	if err := os.Mkdir(private, 0o700); err != nil {
		t.Fatal(err)
	}
	sock := "unix://" + filepath.Join(private, "s")
	for _, dir := range []string{private, filepath.Join(private, "below"), filepath.Join(s.dir, "new")} {
		a := command(ctx, t, nobody, "server", "run", "--state-dir", dir, "--listen", sock)
		checkAnswer(t, a, 4, []string{dir, "permission", "hint: "})
		a = command(ctx, t, nobody, "runner", "agent", "--state-dir", dir, "--server-addr", sock)
		checkAnswer(t, a, 1, []string{dir, "permission", "hint: "})
	}
	s.startServer()
	s.awaitServer(ctx)
	a := command(ctx, t, nobody, "--server-addr", "unix://"+s.sock, "server", "status")
	checkAnswer(t, a, 4, []string{"permission denied", "group", "hint: "})
}

// TestStaleSocket starts a server where a dead one has left its socket.
func TestStaleSocket(t *testing.T) {
	ctx := bounded(t, time.Minute)
	s := newSite(t)
	l, err := net.Listen("unix", s.sock)
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
	s.startServer()
	s.awaitServer(ctx)
	s.server.kill()
	if info, err := os.Lstat(s.sock); err != nil || info.Mode()&os.ModeSocket == 0 {
		t.Fatalf("a killed server leaves no socket behind, so this proves nothing: %v, %v", info, err)
	}
	s.startServer()
	s.awaitServer(ctx)
	if info, err := os.Lstat(s.sock); err != nil || info.Mode().Perm()&0o007 != 0 {
		t.Errorf("the socket is open to everybody: %v, %v", info.Mode(), err)
	}
	var st wire.ServerStatus = s.mustAnswer(ctx, "a stale socket")
	if len(st.Listeners) != 1 {
		t.Errorf("listeners are %v", st.Listeners)
	}
}
