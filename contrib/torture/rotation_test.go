package torture

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/waypointd/waypoint/mux/client"
	"github.com/waypointd/waypoint/mux/wire"
)

// noticed is how long the replacement of a token may take to be noticed.
const noticed = 2 * time.Second

// token makes a runner token by command.
func (s *site) token(ctx context.Context, args ...string) string {
	s.t.Helper()
	a := s.cli(ctx, append([]string{"runner", "token"}, args...)...)
	text, ok := strings.CutSuffix(a.stdout, "\n")
	if a.code != 0 || !ok || strings.ContainsAny(text, " \n") {
		s.t.Fatalf("make a token: %s", a)
	}
	return text
}

// tokenFile is where the agent looks first.
func (s *site) tokenFile() string { return filepath.Join(s.agentState, "token") }

// putToken is what an administrator does before the first start.
func (s *site) putToken(text string) {
	s.t.Helper()
	if err := os.MkdirAll(s.agentState, 0o700); err != nil {
		s.t.Fatal(err)
	}
	if err := os.WriteFile(s.tokenFile(), []byte(text+"\n"), 0o600); err != nil {
		s.t.Fatal(err)
	}
}

// inspect is `waypoint runner inspect --json`.
func (s *site) inspect(ctx context.Context, id string) wire.Runner {
	s.t.Helper()
	a := s.cli(ctx, "runner", "inspect", "--json", id)
	var r wire.Runner
	if a.code != 0 || json.Unmarshal([]byte(a.stdout), &r) != nil {
		s.t.Fatalf("inspect runner %s: %s", id, a)
	}
	return r
}

// expiryOf is when a token says that it expires.
func expiryOf(t testing.TB, text string) time.Time {
	t.Helper()
	c, err := wire.ReadToken(text)
	if err != nil {
		t.Fatalf("read token: %v", err)
	}
	return c.Expiry
}

// counted is how often the log at path says text.
func counted(t testing.TB, path, text string) int {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Count(string(b), text)
}

// way is one of the ways in which people replace a file.
type way struct {
	name string
	argv []string // NEW is a file with the new token, TOKEN the token file, TEXT the token, LINK a free path
}

var ways = []way{
	{"mv", []string{"mv", "-f", "NEW", "TOKEN"}},
	{"cp", []string{"cp", "NEW", "TOKEN"}},
	{"link", []string{"sh", "-c", `ln -s "$1" "$2" && mv -T "$2" "$3"`, "sh", "NEW", "LINK", "TOKEN"}},
	{"echo", []string{"sh", "-c", `echo "$1" > "$2"`, "sh", "TEXT", "TOKEN"}},
	{"ed", []string{"sh", "-c", `printf '%s\n' ,d a "$1" . w q | ed -s "$2"`, "sh", "TEXT", "TOKEN"}},
	{"vim", []string{"vim", "-u", "NONE", "-es", "-c", "set backup writebackup backupcopy=no", "-c", "%d", "-c", "call setline(1, 'TEXT')", "-c", "wq", "TOKEN"}},
}

// replace puts text in place of the token file.
func (s *site) replace(ctx context.Context, w way, n int, text string) {
	s.t.Helper()
	file := filepath.Join(s.dir, fmt.Sprintf("token-%d", n))
	// Open to others, as most people's files are: it is to be repaired.
	if err := os.WriteFile(file, []byte(text+"\n"), 0o644); err != nil {
		s.t.Fatal(err)
	}
	words := strings.NewReplacer("NEW", file, "TOKEN", s.tokenFile(), "TEXT", text, "LINK", file+".link")
	argv := make([]string, len(w.argv))
	for i, a := range w.argv {
		argv[i] = words.Replace(a)
	}
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = append(cleanEnv(), "TERM=dumb")
	if out, err := cmd.CombinedOutput(); err != nil {
		s.t.Fatalf("replace token by %s: %v\n%s", w.name, err, out)
	}
}

// chatter is a job that prints until it is told to end.
type chatter struct {
	script
	id    string
	count string // file with the number of its lines, at the end
	heard *heard
}

// startChatters starts n jobs, each with a reader. end lets them end and
// holds that nothing has disturbed any of them.
func (s *site) startChatters(ctx context.Context, c *client.Client, n int) (end func()) {
	t := s.t
	t.Helper()
	stop := filepath.Join(s.dir, "stop")
	var all []*chatter
	var readers sync.WaitGroup
	for i := range n {
		ch := &chatter{script: script{tag: fmt.Sprintf("c%d", i)}}
		ch.count = filepath.Join(s.dir, ch.tag+".count")
		text := fmt.Sprintf("i=0; while [ ! -e %s ]; do i=$((i+1)); echo \"%s $i\"; sleep 0.1; done; echo $i >%s", stop, ch.tag, ch.count)
		job := submitOne(ctx, t, c, wire.JobSpec{Operation: wire.OpRun, Command: []string{"sh", "-c", text}, Target: wire.Target{Any: true}})
		ch.id = job.ID
		all = append(all, ch)
		readers.Go(func() { ch.heard = listen(ctx, c, wire.StreamRequest{ID: ch.id, Follow: true}) })
	}
	for _, ch := range all {
		await(ctx, t, "the start of "+ch.tag, func() error {
			j, err := c.Job(ctx, ch.id)
			if err == nil && (j.State != wire.Running || j.LogBytes == 0) {
				err = fmt.Errorf("it is %s with %d bytes", j.State, j.LogBytes)
			}
			return err
		})
	}
	return func() {
		t.Helper()
		for _, ch := range all {
			if j, err := c.Job(ctx, ch.id); err != nil || j.State != wire.Running || j.Attempt != 1 {
				t.Errorf("job %s has not gone on: %s, attempt %d, %v", ch.tag, j.State, j.Attempt, err)
			}
		}
		if err := os.WriteFile(stop, nil, 0o644); err != nil {
			t.Fatal(err)
		}
		readers.Wait()
		total := 0
		for _, ch := range all {
			b, err := os.ReadFile(ch.count)
			if err != nil {
				t.Errorf("job %s: %v", ch.tag, err)
				continue
			}
			if ch.lines, err = strconv.Atoi(strings.TrimSpace(string(b))); err != nil {
				t.Errorf("job %s: %v", ch.tag, err)
			}
			total += ch.lines
			if err := ch.heard.check(ch.script); err != nil {
				t.Errorf("job %s: %v", ch.tag, err)
			}
		}
		t.Logf("%d jobs have printed %d lines, all of them heard", len(all), total)
	}
}

// TestTokenRotation replaces the token of a runner under load, by every means
// that people have. Each is in use within two seconds, the one that is none is
// refused and said, and neither jobs nor the connection notice.
func TestTokenRotation(t *testing.T) {
	t.Parallel()
	ctx := bounded(t, 5*time.Minute)
	s := newSite(t)
	s.startServer()
	s.awaitServer(ctx)
	s.putToken(s.token(ctx, "--id", runnerID, "--expires-in", "1000h"))
	s.startAgent()
	c := s.client(ctx)
	s.awaitRunner(ctx, c)
	s.findCgroup(ctx, c)
	if r := s.inspect(ctx, runnerID); r.State != wire.Preadopted || r.TokenSource != wire.SourceFile {
		t.Fatalf("the runner is %s with a token of %q", r.State, r.TokenSource)
	}
	end := s.startChatters(ctx, c, s.concurrency)

	var usable []way
	for _, w := range ways {
		if _, err := exec.LookPath(w.argv[0]); err != nil || w.name == "ed" && !installed("ed") {
			t.Logf("SKIPPED: %s is not installed", w.name)
			continue
		}
		usable = append(usable, w)
	}
	var worst time.Duration
	tried := map[string]int{}
	inUse := expiryOf(t, s.tokenText())
	for n := range 50 {
		w := usable[n%len(usable)]
		if n%17 == 8 {
			s.refuseGarbage(ctx, c, w, n, inUse)
			continue
		}
		text := s.token(ctx, "--id", runnerID, "--expires-in", fmt.Sprintf("%dh", 1001+n))
		s.replace(ctx, w, n, text)
		begin := time.Now()
		want := expiryOf(t, text)
		err := pollFor(ctx, 2*noticed, func() error {
			r, err := c.Runner(ctx, runnerID)
			if err == nil && !r.TokenExpiry.Equal(want) {
				err = fmt.Errorf("the token in use expires at %s, want %s (%s: %s)", r.TokenExpiry, want, r.Problem, r.Detail)
			}
			return err
		})
		took := time.Since(begin)
		if err != nil || took > noticed {
			t.Fatalf("token %d, replaced by %s, is not in use after %s: %v", n, w.name, took, err)
		}
		worst = max(worst, took)
		inUse = want
		tried[w.name]++
	}
	t.Logf("in use within %s at worst; %v", worst.Round(time.Millisecond), tried)

	r := s.inspect(ctx, runnerID)
	if !r.TokenExpiry.Equal(inUse) || r.State != wire.Preadopted || !r.Online || r.Problem != "" {
		t.Errorf("in the end the runner is %+v", r)
	}
	await(ctx, t, "the repair of the token file", func() error {
		fi, err := os.Stat(s.tokenFile())
		if err == nil && fi.Mode().Perm() != 0o600 {
			err = fmt.Errorf("its mode is %o", fi.Mode().Perm())
		}
		return err
	})
	if n := counted(t, s.server.log, "runner connected"); n != 1 {
		t.Errorf("the runner has connected %d times", n)
	}
	if n := counted(t, s.server.log, "runner disconnected"); n != 0 {
		t.Errorf("the runner has disconnected %d times", n)
	}
	if counted(t, s.agent.log, "mode 0644") == 0 {
		t.Error("the agent does not say that a token file was open to others")
	}
	for _, log := range []string{s.server.log, s.agent.log} {
		if counted(t, log, "wprun_")+counted(t, log, "wpusr_") != 0 {
			t.Errorf("there is a token in %s", log)
		}
	}
	end()
	s.checkNothingLeft(ctx)
}

func (s *site) tokenText() string {
	s.t.Helper()
	b, err := os.ReadFile(s.tokenFile())
	if err != nil {
		s.t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

// refuseGarbage puts in the token's place what is none: it is refused and
// said, at the server and on the runner's host, and the one before stays in use.
func (s *site) refuseGarbage(ctx context.Context, c *client.Client, w way, n int, inUse time.Time) {
	t := s.t
	t.Helper()
	garbage := fmt.Sprintf("wprun_garbage%d", n)
	before := counted(t, s.agent.log, "token_invalid")
	s.replace(ctx, w, n, garbage)
	begin := time.Now()
	err := pollFor(ctx, 2*noticed, func() error {
		r, err := c.Runner(ctx, runnerID)
		if err == nil && r.Problem != wire.TokenInvalid {
			err = fmt.Errorf("the problem is %q", r.Problem)
		}
		return err
	})
	if took := time.Since(begin); err != nil || took > noticed {
		t.Fatalf("garbage, by %s, is not refused after %s: %v", w.name, took, err)
	}
	r := s.inspect(ctx, runnerID)
	if !r.TokenExpiry.Equal(inUse) || r.State != wire.Preadopted || !r.Online {
		t.Errorf("with garbage in the file the runner is %+v", r)
	}
	if ok, err := c.Match(ctx, wire.Target{ID: runnerID}); err != nil || !ok {
		t.Errorf("with garbage in the file it gets no jobs: %v", err)
	}
	await(ctx, t, "the agent to say so", func() error {
		if counted(t, s.agent.log, "token_invalid") == before {
			return fmt.Errorf("it does not")
		}
		return nil
	})
	a := command(ctx, t, nil, "runner", "status", "--state-dir", s.agentState)
	if a.code != 0 || !strings.Contains(a.stdout, "invalid") {
		t.Errorf("runner status does not say that the file holds no token: %s", a)
	}
	if counted(t, s.agent.log, garbage)+counted(t, s.server.log, garbage) != 0 || strings.Contains(a.stdout+a.stderr, garbage) {
		t.Error("what the file holds is said")
	}
}

// pollFor is poll with a limit of its own.
func pollFor(ctx context.Context, limit time.Duration, f func() error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return poll(ctx, f)
}

func installed(program string) bool {
	_, err := exec.LookPath(program)
	return err == nil
}
