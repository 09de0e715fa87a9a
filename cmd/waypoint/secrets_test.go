package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/alecthomas/kong"

	"github.com/waypointd/waypoint/mux/wire"
)

// stage is a server and agents of one test, with every word that they and the
// commands say, and the secrets that must be in none of it.
type stage struct {
	t       *testing.T
	dir     string
	addr    string // over TCP
	secrets map[string]string
	said    map[string]*bytes.Buffer // by command; read once it has ended
	logs    []string                 // files
}

// secret takes note of a text that nobody is to see again.
func (s *stage) secret(what, text string) string {
	s.t.Helper()
	if text = strings.TrimSpace(text); len(text) < 16 {
		s.t.Fatalf("%s is no secret: %q", what, text)
	}
	s.secrets[what] = text
	return text
}

// command is one at its most talkative.
func (s *stage) command(env []string, args ...string) *exec.Cmd {
	cmd := itself(s.t, s.dir, append([]string{"-v", "-v"}, args...)...)
	cmd.Env = append(cmd.Env, env...)
	return cmd
}

// does runs a command to its end, whatever that is. What it says on stdout is
// looked at unless it is what a secret is made with.
func (s *stage) does(env []string, args ...string) (stdout string, code int) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), bound)
	defer cancel()
	cmd := s.command(env, args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	defer context.AfterFunc(ctx, func() { cmd.Process.Kill() })()
	cmd.Wait()
	name := fmt.Sprintf("%d: %s", len(s.said), strings.Join(args, " "))
	s.said[name] = &errs
	minted := len(args) > 1 && (args[0] == "user" || args[0] == "runner" || args[0] == "server") &&
		(args[1] == "token" || args[1] == "invite" || args[1] == "bootstrap")
	if !minted {
		s.said[name+" (stdout)"] = &out
	}
	if ctx.Err() != nil {
		s.t.Fatalf("%v does not end: %s", args, &errs)
	}
	return out.String(), cmd.ProcessState.ExitCode()
}

// must is does for a command that succeeds.
func (s *stage) must(args ...string) string {
	s.t.Helper()
	out, code := s.does(nil, args...)
	if code != 0 {
		s.t.Fatalf("%v: exit code %d", args, code)
	}
	return out
}

// runs starts a server or an agent. Its log is a file.
func (s *stage) runs(name string, env []string, args ...string) {
	s.t.Helper()
	cmd := s.command(env, args...)
	path := filepath.Join(s.dir, name+".log")
	f, err := os.Create(path)
	if err != nil {
		s.t.Fatal(err)
	}
	defer f.Close()
	cmd.Stdout, cmd.Stderr = f, f
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.logs = append(s.logs, path)
	s.t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		cmd.Wait()
	})
}

// until asks again and again until a command says something.
func (s *stage) until(pattern string, args ...string) {
	s.t.Helper()
	deadline := time.Now().Add(bound)
	for {
		cmd := s.command(nil, args...)
		out, _ := cmd.Output()
		if regexp.MustCompile(pattern).Match(out) {
			return
		}
		if time.Now().After(deadline) {
			s.t.Fatalf("%v never says %s: %s", args, pattern, out)
		}
		time.Sleep(between)
	}
}

func (s *stage) file(name, text string) string {
	s.t.Helper()
	path := filepath.Join(s.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		s.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		s.t.Fatal(err)
	}
	return path
}

// TestSecretsStay: tokens, invites and passwords, good and bad, given in every
// way there is, are in no log, no error, no answer, no output and environment
// of a job, and in no file that others could read.
func TestSecretsStay(t *testing.T) {
	s := &stage{t: t, dir: t.TempDir(), secrets: map[string]string{}, said: map[string]*bytes.Buffer{}}

	// A store's password, in an address that is right, wrong, and none at all.
	password := s.secret("the store's password", "hunter2-and-then-some")
	for _, at := range []string{"127.0.0.1:1/db?connect_timeout=1", "127.0.0.1:1/db?sslmode=nonsense", "[bad/db", "127.0.0.1:99999999/db", "%zz/db"} {
		url := "postgres://waypoint:" + password + "@" + at
		for env, args := range map[string][]string{"": {"--store", url}, "WAYPOINT_SERVER_STORE=" + url: nil} {
			if _, code := s.does([]string{env}, append([]string{"server", "run", "--state-dir", filepath.Join(s.dir, "none"), "--listen", "unix://" + filepath.Join(s.dir, "none.sock")}, args...)...); code == 0 {
				t.Errorf("a server runs over %s", at)
			}
		}
	}

	s.runs("server", nil, "server", "run", "--log-format", "json", "--state-dir", filepath.Join(s.dir, "server"),
		"--listen", "unix://"+filepath.Join(s.dir, "sock"), "--listen", "tcp://127.0.0.1:0")
	s.until(`"uptime`, "server", "status", "--json")
	s.addr = regexp.MustCompile(`tcp://[0-9.:]+`).FindString(s.must("server", "status", "--json"))

	admin := s.secret("the bootstrap token", s.must("server", "bootstrap"))
	user := s.secret("a user's token", s.must("user", "token"))
	invite := s.secret("an invite", s.must("user", "invite", "Olga", "--role", "operator"))
	tokens := map[string]string{}
	for _, id := range []string{"file", "env", "flag", "bad"} {
		tokens[id] = s.secret("the runner token of "+id, s.must("runner", "token", "--id", id))
	}
	other := s.secret("another runner's token", s.must("runner", "token", "--id", "somebody"))
	short := s.secret("a token that expires", s.must("runner", "token", "--id", "bad", "--expires-in", "1s"))

	// What is no token, or no longer one.
	middle := len(user) / 2
	torn := s.secret("a torn token", user[:len(user)-20])
	changed := s.secret("a changed token", user[:middle]+string('A'+(user[middle]-'A'+1)%26)+user[middle+1:])
	misplaced := s.secret("a misplaced secret", "AKIA"+strings.Repeat("Zq7PlacedInTheWrongFile", 20))
	lines := s.secret("a key in PEM", "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIPrivatePrivatePrivatePrivatePrivatePriv\n-----END PRIVATE KEY-----")

	for what, text := range map[string]string{"admin": admin, "user": user, "runner": tokens["flag"], "invite": invite, "torn": torn, "changed": changed, "misplaced": misplaced, "pem": lines, "expired": short} {
		file := s.file("given/"+what, text)
		for _, words := range [][]string{{"--token", text}, {"--token-file", file}} {
			for _, verb := range [][]string{{"server", "status"}, {"job", "list", "--json"}, {"run", "--local", "--", "env"}} {
				s.does(nil, append(append([]string{"--server-addr", s.addr}, words...), verb...)...)
			}
			s.does(nil, append([]string{"login", s.addr, "--context", "in-" + what}, words...)...)
		}
		s.does([]string{tokenVariable + "=" + text}, "--server-addr", s.addr, "runner", "list", "--json")
		s.does([]string{tokenVariable + "=" + text}, "context", "create", "of-"+what, "--server-addr", s.addr)
	}
	for _, name := range []string{"in-user", "in-admin"} {
		s.must("context", "inspect", name, "--json")
		s.must("context", "verify", name, "--json")
	}
	s.must("context", "list", "--json")
	s.must("user", "list", "--json")
	s.must("user", "list", "--tokens", "--json")
	s.does(nil, "user", "revoke", user)

	// Runners, each with a token in another way, and others beside it that are not good.
	s.file("file/token", tokens["file"])
	s.file("bad/token", misplaced)
	agent := func(id string, env []string, more ...string) {
		s.runs(id, env, append([]string{"runner", "agent", "--log-format", "json", "--server-addr", s.addr, "--id", id, "--state-dir", filepath.Join(s.dir, id)}, more...)...)
	}
	pin := regexp.MustCompile(`SHA256:[A-Za-z0-9+/]{43}`).FindString(s.must("server", "status", "--json"))
	trust := "WAYPOINT_SERVER_TLS_FINGERPRINT=" + pin
	agent("file", []string{trust, tokenVariable + "=" + other})
	agent("env", []string{trust, tokenVariable + "=" + tokens["env"]})
	agent("flag", []string{trust}, "--token", tokens["flag"])
	agent("bad", []string{trust, tokenVariable + "=" + short, "CREDENTIALS_DIRECTORY=" + filepath.Dir(s.file("credentials/waypoint_token", changed))})
	agent("adopted", []string{trust})
	for _, id := range []string{"file", "env", "flag"} {
		s.until(`"state": "preadopted"`, "runner", "inspect", id, "--json")
	}
	for _, id := range []string{"bad", "adopted"} {
		s.until(`"state": "pending"`, "runner", "inspect", id, "--json")
	}
	s.must("runner", "adopt", "adopted")
	s.until(`"token_source": "file"`, "runner", "inspect", "adopted", "--json")
	granted, err := os.ReadFile(filepath.Join(s.dir, "adopted", "token"))
	if err != nil {
		t.Fatal(err)
	}
	s.secret("the token of an adoption", string(granted))
	s.does(nil, "runner", "adopt", tokens["bad"])
	s.does(nil, "runner", "inspect", tokens["bad"])

	// What a job sees: of itself, and, where it is no more than the agent is,
	// of everybody. Root may look into all.
	look := `env; cat /proc/self/environ /proc/$PPID/environ | tr '\0' '\n'`
	if os.Getuid() != 0 {
		look = `env; cat /proc/*/environ 2>/dev/null | tr '\0' '\n'`
	}
	for _, id := range []string{"file", "env", "flag", "adopted"} {
		if out := s.must("run", "--no-local", "--runner", id, "--", "sh", "-c", look); !strings.Contains(out, "PATH=") {
			t.Errorf("the job at %s saw no environment: %s", id, out)
		}
		s.must("runner", "status", "--state-dir", filepath.Join(s.dir, id), "--json")
	}
	s.file("bad/token", tokens["bad"]) // in the place of what was none
	s.until(`"state": "preadopted"`, "runner", "inspect", "bad", "--json")
	s.must("server", "token-key", "rotate")
	s.must("runner", "list", "--json")
	jobs := s.must("job", "list", "--json")
	var ids []struct{ ID string }
	if err := json.Unmarshal([]byte(jobs), &ids); err != nil || len(ids) < 4 {
		t.Fatalf("%d jobs: %v", len(ids), err)
	}
	for _, j := range ids {
		s.must("job", "inspect", j.ID, "--json")
		s.does(nil, "job", "stream", j.ID, "--no-follow")
	}

	cmdlines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil || len(cmdlines) == 0 {
		t.Errorf("no processes: %v", err)
	}
	for _, path := range cmdlines { // agents, their supervisors, and whoever else was given arguments
		if line, err := os.ReadFile(path); err == nil {
			s.said[path] = bytes.NewBuffer(line)
		}
	}
	s.search()
	for _, name := range []string{"server", "file", "env", "flag", "bad", "adopted", "waypoint"} {
		s.modes(filepath.Join(s.dir, name))
	}
}

// search finds secrets, whole or a good part of one, in what was said.
func (s *stage) search() {
	s.t.Helper()
	for _, path := range s.logs {
		text, err := os.ReadFile(path)
		if err != nil {
			s.t.Fatal(err)
		}
		if len(text) == 0 {
			s.t.Errorf("%s is empty", path)
		}
		s.said[path] = bytes.NewBuffer(text)
	}
	for what, secret := range s.secrets {
		// A text may have been cut. What two tokens have in common is no secret:
		// what is theirs alone is the signature, which is before the checksum.
		parts := []string{secret}
		switch n := len(secret); {
		case tokenText.MatchString(secret):
			parts = []string{secret[n-28 : n-6], secret[n-60 : n-38]}
		case n > 48:
			parts = []string{secret[:24], secret[n/2 : n/2+24], secret[n-24:]}
		}
		for where, text := range s.said {
			for _, part := range parts {
				quoted, _ := json.Marshal(part)
				if bytes.Contains(text.Bytes(), []byte(part)) || bytes.Contains(text.Bytes(), bytes.Trim(quoted, `"`)) {
					s.t.Errorf("%s is in what %s says:\n%.2000s", what, where, text)
					break
				}
			}
		}
	}
}

// modes finds files that others than their owner may read or write. What is
// below a directory that is closed is looked at all the same: it may be copied.
func (s *stage) modes(dir string) {
	s.t.Helper()
	seen := 0
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if e.IsDir() && e.Name() == "jobs" { // the jobs' own
			return fs.SkipDir
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		if mode := info.Mode(); mode&fs.ModeSymlink == 0 && mode.Perm()&0o077 != 0 {
			s.t.Errorf("%s has mode %v", path, mode)
		}
		seen++
		return nil
	})
	if err != nil || seen < 3 {
		s.t.Errorf("%s: %d files, %v", dir, seen, err)
	}
}

// TestSecretFlags: what a flag's name or value says to be a secret is hidden
// from the list of processes, however the flag is written, and its help says
// how to do without.
func TestSecretFlags(t *testing.T) {
	named, valued := regexp.MustCompile(`token|secret|passw|passphrase|credential|dsn|private`), regexp.MustCompile(`TOKEN|SECRET|PASSW|CREDENTIAL|URL`)
	seen := map[string]bool{}
	_ = kong.Visit(model(t), func(node kong.Visitable, next kong.Next) error {
		f, ok := node.(*kong.Flag)
		if !ok {
			return next(nil)
		}
		hidden := slices.Contains(secretFlags, f.Name) || slices.Contains(urlFlags, f.Name)
		text := f.Target.Kind() == reflect.String || f.Target.Kind() == reflect.Slice || f.Target.Kind() == reflect.Map
		switch secret := text && f.PlaceHolder != "FILE" && (named.MatchString(f.Name) || valued.MatchString(f.PlaceHolder)); {
		case secret && !hidden:
			t.Errorf("--%s is given a secret, which everybody can see: it belongs to secretFlags or urlFlags", f.Name)
		case hidden && (f.Short != 0 || len(f.Aliases) > 0):
			t.Errorf("--%s has other names, under which nothing is hidden", f.Name)
		case hidden && !strings.Contains(f.Help, "list of processes"):
			t.Errorf("--%s does not say who sees it: %s", f.Name, f.Help)
		}
		seen[f.Name] = true
		return next(nil)
	})
	for _, name := range slices.Concat(secretFlags, urlFlags) {
		if !seen[name] {
			t.Errorf("no command has a flag --%s", name)
		}
	}
}

// TestArgumentsAreHidden: of a program that has begun, everybody sees the words
// of its command line, but not the secrets among them, which it knows
// all the same.
func TestArgumentsAreHidden(t *testing.T) {
	dir := t.TempDir()
	for i, c := range []struct{ given, shown string }{
		{"runner agent --id r --token SECRET --concurrency 2", "runner agent --id r --token HIDDEN --concurrency 2"},
		{"-token=SECRET job list --token SECRET --json", "-token=HIDDEN job list --token HIDDEN --json"},
		{"--token=SECRET run -token SECRET -- echo --token shown", "--token=HIDDEN run -token HIDDEN -- echo --token shown"},
		{"server run --listen tcp://127.0.0.1:0 --store postgres://me:SECRET@ADDR/db --log-level error", "server run --listen tcp://127.0.0.1:0 --store postgres://HIDDEN --log-level error"},
		{"server run --listen tcp://127.0.0.1:0 --store=postgres://ADDR/db?password=SECRET --log-level error", "server run --listen tcp://127.0.0.1:0 --store=postgres://HIDDEN --log-level error"},
	} {
		network, at := "unix", filepath.Join(dir, fmt.Sprint(i))
		if strings.Contains(c.given, "ADDR") {
			network, at = "tcp", "127.0.0.1:0"
		}
		l, err := net.Listen(network, at)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		secret := wire.TokenParts{Kind: wire.UserToken, Claims: []byte(`{"user":"me","expires_at":"2100-01-01T00:00:00Z"}`)}.String()
		if strings.HasPrefix(c.given, "runner") {
			secret = wire.TokenParts{Kind: wire.RunnerToken, Claims: []byte(`{"id":"r","expires_at":"2100-01-01T00:00:00Z"}`)}.String()
		}
		given := strings.NewReplacer("SECRET", secret, "ADDR", l.Addr().String()).Replace(c.given)
		cmd := itself(t, dir, strings.Fields(given)...)
		cmd.Dir = dir
		cmd.Env = append(cmd.Env, "WAYPOINT_SERVER_ADDR=unix://"+at, "WAYPOINT_RUNNER_STATE_DIR="+filepath.Join(dir, "state"), "WAYPOINT_SERVER_STATE_DIR="+filepath.Join(dir, "state"))
		var said bytes.Buffer
		cmd.Stderr = &said
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		ended := make(chan struct{})
		go func() {
			cmd.Wait()
			close(ended)
			l.Close()
		}()
		// It comes, so it has read its words, and waits for an answer.
		conn, err := l.Accept()
		if err != nil {
			t.Errorf("waypoint %s does not come: %s", c.given, &said)
			continue
		}
		line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", cmd.Process.Pid))
		if err != nil {
			t.Error(err)
		}
		words := strings.Split(strings.TrimSuffix(string(line), "\x00"), "\x00")[1:]
		if got := regexp.MustCompile(`x{20,}`).ReplaceAllString(strings.Join(words, " "), "HIDDEN"); got != c.shown {
			t.Errorf("waypoint %s: everybody sees\n%s, want\n%s", c.given, got, c.shown)
		}
		conn.Close()
		cmd.Process.Kill()
		<-ended
	}
}

// TestClosedToOthers: neither a server nor an agent can be looked into by other
// processes of its user.
func TestClosedToOthers(t *testing.T) {
	if os.Getuid() == 0 {
		t.Skip("root may look into every process")
	}
	dir := t.TempDir()
	server := serving(t, dir, filepath.Join(dir, "server"))
	agent := itself(t, dir, "runner", "agent", "--id", "r", "--state-dir", filepath.Join(dir, "agent"))
	if err := agent.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { agent.Process.Signal(syscall.SIGTERM); agent.Wait() })
	for itself(t, dir, "runner", "inspect", "r").Run() != nil {
		if err := agent.Process.Signal(syscall.Signal(0)); err != nil {
			t.Fatalf("the agent has ended: %v", err)
		}
		time.Sleep(between)
	}
	for name, cmd := range map[string]*exec.Cmd{"server": server, "agent": agent} {
		for _, file := range []string{"environ", "maps", "mem"} {
			f, err := os.Open(fmt.Sprintf("/proc/%d/%s", cmd.Process.Pid, file))
			if err == nil {
				f.Close()
				t.Errorf("the file %s of the %s can be opened", file, name)
			}
		}
	}
}
