package main

import (
	"bytes"
	"crypto/sha256"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/waypointd/waypoint/mux/muxtest"
	"github.com/waypointd/waypoint/mux/wire"
	"github.com/waypointd/waypoint/runner/executor"
)

// bound is how long a script waits for anything. It is long because the
// machine may be busy, and costs nothing where things work.
const bound = 30 * time.Second

// between is how often a condition is looked at. A command that asks costs
// both ends some milliseconds of a processor, so it is waited for ever longer.
const (
	between = 20 * time.Millisecond
	rarely  = 320 * time.Millisecond
)

func TestMain(m *testing.M) {
	if version, ok := stampedNumber(os.Args[0]); ok {
		number = version
		main()
		return
	}
	if hiddenEntry(os.Args) {
		main()
		return
	}
	testscript.Main(m, map[string]func(){"waypoint": main})
}

// hiddenEntry reports that this process was started by the program itself,
// under whatever name.
func hiddenEntry(args []string) bool {
	return args[0] == executor.ShimArg || len(args) > 2 && args[1] == "runner" && args[2] == "supervisor"
}

// TestScript runs each script of testdata/script, one behaviour a file.
func TestScript(t *testing.T) {
	testscript.Run(t, params(t, filepath.Join("testdata", "script")))
}

// prologues set up what a body of testdata/modes runs in.
var prologues = map[string]string{
	"local":     "env TOKEN=secret\n", // shown to nobody, so it need not be one
	"inprocess": "server s\nexec waypoint user token\nkeep TOKEN\n",
	"remote":    "server s\nexec waypoint user token\nkeep TOKEN\nagent r1\nadopted r1\n",

	"tcp-inprocess": "server s --listen tcp://127.0.0.1:0\n" + overTCP,
	"tcp-remote":    "server s --listen tcp://127.0.0.1:0\nagent r1\nadopted r1\n" + overTCP,
}

// overTCP logs in to the server, which nothing names from then on.
const overTCP = `exec waypoint user token
keep TOKEN
exec waypoint server status --json
keep ADDR '(tcp://[0-9.:]+)'
env WAYPOINT_SERVER_ADDR=
exec waypoint login $ADDR --token $TOKEN
`

// TestModes runs each script of testdata/modes several times, with the same
// transcript: in local mode, in this process for a server, and remotely; these
// over a socket and over TCP.
func TestModes(t *testing.T) {
	bodies, err := filepath.Glob(filepath.Join("testdata", "modes", "*.txtar"))
	if err != nil || len(bodies) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	dir := t.TempDir()
	for _, body := range bodies {
		text, err := os.ReadFile(body)
		if err != nil {
			t.Fatal(err)
		}
		for mode, prologue := range prologues {
			name := filepath.Join(dir, mode+"-"+filepath.Base(body))
			script := "env MODE=" + mode + "\n" + prologue + string(text)
			if err := os.WriteFile(name, []byte(script), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	testscript.Run(t, params(t, dir))
}

func params(t *testing.T, dir string) testscript.Params {
	checkNoStop(t, dir)
	if systemSocketExists() {
		t.Skip("a packaged server runs on this machine")
	}
	return testscript.Params{
		Dir:                 dir,
		RequireExplicitExec: true,
		Setup: func(env *testscript.Env) error {
			b := &background{}
			env.Values["background"] = b
			env.Defer(func() { b.end(env.WorkDir) })
			env.Setenv("XDG_STATE_HOME", filepath.Join(env.WorkDir, ".state"))
			env.Setenv("XDG_CONFIG_HOME", filepath.Join(env.WorkDir, ".config"))
			env.Setenv("WAYPOINT_PLAIN", "1")
			env.Setenv("GORACE", "atexit_sleep_ms=0") // else each command of a race build lasts a second longer
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"server":    startServer,
			"agent":     startAgent,
			"adopted":   adopt,
			"start":     start,
			"halt":      halt,
			"signal":    signalTo,
			"ended":     ended,
			"until":     until,
			"exits":     exits,
			"json":      isJSON,
			"keep":      keep,
			"stale":     stale,
			"silent":    silent,
			"terminal":  terminal,
			"type":      typeText,
			"notify":    notifySocket,
			"usertoken": userTokenVar,
			"stamped":   stamped,
			"newer":     newer,
			"digest":    digest,
			"certificate": func(ts *testscript.TestScript, neg bool, args []string) {
				need(ts, neg, args, 1, "certificate NAME [HOST...]")
				certificate(t, ts, args[0], args[1:])
			},
		},
	}
}

// checkNoStop finds scripts that would end half-way and pass: "stop" is
// testscript's own command for that.
func checkNoStop(t *testing.T, dir string) {
	t.Helper()
	scripts, err := filepath.Glob(filepath.Join(dir, "*.txtar"))
	if err != nil || len(scripts) == 0 {
		t.Fatalf("no scripts in %s: %v", dir, err)
	}
	for _, script := range scripts {
		text, err := os.ReadFile(script)
		if err != nil {
			t.Fatal(err)
		}
		if regexp.MustCompile(`(?m)^(\[[^]]*\] *)*stop\b`).Match(text) {
			t.Errorf("%s uses stop, behind which nothing is run; halt ends a program", script)
		}
	}
}

// background are the processes of one script, by name.
type background struct {
	mu    sync.Mutex
	procs map[string]*process
}

type process struct {
	cmd      *exec.Cmd
	done     chan struct{} // closed when it has ended
	err      error         // of Wait; read after done
	terminal *os.File      // a person's end of its terminal, nil without
}

func of(ts *testscript.TestScript) *background { return ts.Value("background").(*background) }

// spawn starts a program of the script in the background; its output goes to
// NAME.out and NAME.err in the script's directory.
func (b *background) spawn(ts *testscript.TestScript, name string, args ...string) *process {
	p := &process{cmd: program(ts, args), done: make(chan struct{})}
	var files [2]*os.File
	for i, ext := range []string{".out", ".err"} {
		f, err := os.OpenFile(ts.MkAbs(name+ext), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
		ts.Check(err)
		files[i] = f
	}
	p.cmd.Stdout, p.cmd.Stderr = files[0], files[1]
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	ts.Check(p.cmd.Start())
	files[0].Close()
	files[1].Close()
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	b.add(ts, name, p)
	return p
}

func (b *background) add(ts *testscript.TestScript, name string, p *process) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if old := b.procs[name]; old != nil {
		select {
		case <-old.done:
		default:
			p.cmd.Process.Kill()
			ts.Fatalf("%s runs already", name)
		}
	}
	if b.procs == nil {
		b.procs = map[string]*process{}
	}
	b.procs[name] = p
}

// program is a command in the script's directory and environment.
func program(ts *testscript.TestScript, args []string) *exec.Cmd {
	path := args[0]
	for dir := range strings.SplitSeq(ts.Getenv("PATH"), ":") {
		if candidate := filepath.Join(dir, args[0]); isProgram(candidate) {
			path = candidate
			break
		}
	}
	cmd := exec.Command(path, args[1:]...)
	cmd.Args[0] = args[0]
	cmd.Dir = ts.MkAbs(".")
	for _, name := range []string{"PATH", "HOME", "TMPDIR", "XDG_STATE_HOME", "XDG_CONFIG_HOME", "WAYPOINT_SERVER_ADDR", "WAYPOINT_PLAIN", "NOTIFY_SOCKET", "GOCOVERDIR", "GORACE"} {
		if v := ts.Getenv(name); v != "" {
			cmd.Env = append(cmd.Env, name+"="+v)
		}
	}
	return cmd
}

// says is what a command says on stdout, and whether it succeeded. Unlike the
// script's own commands it leaves no trace in the script's log: it is asked
// again and again.
func says(ts *testscript.TestScript, args ...string) (string, bool) {
	out, err := program(ts, args).Output()
	return string(out), err == nil
}

func isProgram(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0
}

// end kills what the script left running, and the detached supervisors of its
// agents, which are found by the script's own directory.
func (b *background) end(workdir string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, p := range b.procs {
		p.cmd.Process.Kill()
		<-p.done
	}
	cmdlines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, path := range cmdlines {
		line, err := os.ReadFile(path)
		if err != nil || !bytes.Contains(line, []byte("\x00supervisor\x00")) || !bytes.Contains(line, []byte(workdir+"/")) {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path))); err == nil {
			syscall.Kill(pid, syscall.SIGKILL)
		}
	}
}

func (b *background) get(ts *testscript.TestScript, name string) *process {
	b.mu.Lock()
	defer b.mu.Unlock()
	p := b.procs[name]
	if p == nil {
		ts.Fatalf("%s was never started", name)
	}
	return p
}

// server NAME [ARG...]: starts a server on the socket $WORK/NAME.sock with
// the state directory $WORK/NAME, waits until it answers, and makes it the
// script's server.
func startServer(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, neg, args, 1, "server NAME [ARG...]")
	name := args[0]
	addr := "unix://" + ts.MkAbs(name+".sock")
	ts.Setenv("WAYPOINT_SERVER_ADDR", "")
	words := append([]string{"waypoint", "server", "run", "--state-dir", ts.MkAbs(name), "--listen", addr}, args[1:]...)
	p := of(ts).spawn(ts, name, words...)
	ts.Setenv("WAYPOINT_SERVER_ADDR", addr)
	wait(ts, "the server's socket", func() bool {
		select {
		case <-p.done:
			ts.Fatalf("server ended: %v\n%s", p.err, ts.ReadFile(name+".err"))
		default:
		}
		_, err := os.Stat(ts.MkAbs(name + ".sock"))
		return err == nil
	})
	waitRarely(ts, "the server to answer", func() bool {
		select {
		case <-p.done:
			ts.Fatalf("server ended: %v\n%s", p.err, ts.ReadFile(name+".err"))
		default:
		}
		_, ok := says(ts, "waypoint", "server", "status")
		return ok
	})
}

// agent NAME [ARG...]: starts a runner with the id NAME and the state
// directory $WORK/NAME.
func startAgent(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, neg, args, 1, "agent NAME [ARG...]")
	name := args[0]
	words := append([]string{"waypoint", "runner", "agent", "--id", name, "--state-dir", ts.MkAbs(name)}, args[1:]...)
	of(ts).spawn(ts, name, words...)
}

// adopted NAME: adopts a runner as soon as the server knows it, and waits
// until it is there to take jobs.
func adopt(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, neg, args, 1, "adopted NAME")
	waitRarely(ts, "runner "+args[0]+" to be known", func() bool {
		_, ok := says(ts, "waypoint", "runner", "adopt", args[0])
		return ok
	})
	waitRarely(ts, "runner "+args[0]+" to be online", func() bool {
		out, ok := says(ts, "waypoint", "runner", "list", "--state", "adopted")
		return ok && regexp.MustCompile(`(?m)^`+args[0]+` +adopted(, draining)? .* yes `).MatchString(out)
	})
}

// start NAME PROGRAM [ARG...]: starts any program in the background.
func start(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, neg, args, 2, "start NAME PROGRAM [ARG...]")
	of(ts).spawn(ts, args[0], args[1:]...)
}

// halt NAME [CODE]: SIGTERM, and waits for the end with that exit code. It is
// not called stop: that is testscript's own, and ends the script there.
func halt(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, neg, args, 1, "halt NAME [CODE]")
	signalTo(ts, false, []string{args[0], "TERM"})
	ended(ts, false, args)
}

// signal NAME SIGNAL: sends INT, HUP, TERM, KILL, STOP or CONT.
func signalTo(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, neg, args, 2, "signal NAME SIGNAL")
	sig := map[string]syscall.Signal{
		"INT": syscall.SIGINT, "HUP": syscall.SIGHUP, "TERM": syscall.SIGTERM, "KILL": syscall.SIGKILL, "STOP": syscall.SIGSTOP, "CONT": syscall.SIGCONT,
	}[args[1]]
	if sig == 0 {
		ts.Fatalf("unknown signal %s", args[1])
	}
	ts.Check(of(ts).get(ts, args[0]).cmd.Process.Signal(sig))
}

// ended NAME [CODE]: waits for the end of a program, with that exit code.
func ended(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, neg, args, 1, "ended NAME [CODE]")
	p := of(ts).get(ts, args[0])
	select {
	case <-p.done:
	case <-time.After(bound):
		ts.Fatalf("%s has not ended within %v\nstdout: %s\nstderr: %s", args[0], bound, ts.ReadFile(args[0]+".out"), ts.ReadFile(args[0]+".err"))
	}
	want := "0"
	if len(args) > 1 {
		want = args[1]
	}
	if got := strconv.Itoa(p.cmd.ProcessState.ExitCode()); got != want {
		ts.Fatalf("%s: exit code %s, want %s\nstdout: %s\nstderr: %s", args[0], got, want, ts.ReadFile(args[0]+".out"), ts.ReadFile(args[0]+".err"))
	}
}

// until [!] REGEXP FILE: waits until a file (does not) match.
// until [!] REGEXP waypoint ARG...: waits until a command that succeeds says so (not).
func until(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: until REGEXP FILE | until REGEXP waypoint ARG...")
	}
	want := regexp.MustCompile("(?m)" + args[0])
	what := "output of " + strings.Join(args[1:], " ") + " to match " + args[0]
	if len(args) > 2 {
		waitRarely(ts, what, func() bool {
			out, ok := says(ts, args[1:]...)
			return ok && want.MatchString(out) != neg
		})
		return
	}
	wait(ts, what, func() bool {
		text, err := os.ReadFile(ts.MkAbs(args[1]))
		return err == nil && want.Match(text) != neg
	})
}

// exits CODE PROGRAM [ARG...]: runs a program that ends with that exit code;
// stdout and stderr see what it said.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, neg, args, 2, "exits CODE PROGRAM [ARG...]")
	err := ts.Exec(args[1], args[2:]...)
	got := 0
	if ee, ok := errors.AsType[*exec.ExitError](err); ok {
		got = ee.ExitCode()
	} else if err != nil {
		ts.Fatalf("run %s: %v", args[1], err)
	}
	if strconv.Itoa(got) != args[0] {
		ts.Fatalf("exit code %d, want %s", got, args[0])
	}
}

// json FILE TYPE [KEY...]: FILE ("stdout") holds exactly one JSON document,
// an object or an array (or lines, each an object); every object has the keys.
func isJSON(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, neg, args, 2, "json FILE object|array|lines [KEY...]")
	d := json.NewDecoder(strings.NewReader(ts.ReadFile(args[0])))
	var objects []any
	for n := 0; ; n++ {
		var v any
		if err := d.Decode(&v); err == io.EOF && (n == 1 || args[1] == "lines") {
			break
		} else if err != nil {
			ts.Fatalf("document %d of %s: %v", n, args[0], err)
		}
		list, isArray := v.([]any)
		switch {
		case isArray != (args[1] == "array"):
			ts.Fatalf("%s holds a %T, want %s", args[0], v, args[1])
		case isArray:
			objects = append(objects, list...)
		default:
			objects = append(objects, v)
		}
	}
	for _, o := range objects {
		for _, key := range args[2:] {
			if m, ok := o.(map[string]any); !ok || m[key] == nil {
				ts.Fatalf("no key %q in %v", key, o)
			}
		}
	}
}

// keep VAR [REGEXP]: what the last command said on stdout, or the first group
// of the expression in it, becomes a variable.
func keep(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, neg, args, 1, "keep VAR [REGEXP]")
	text := strings.TrimSpace(ts.ReadFile("stdout"))
	if len(args) > 1 {
		m := regexp.MustCompile("(?m)" + args[1]).FindStringSubmatch(text)
		if len(m) < 2 {
			ts.Fatalf("%q does not match %s", text, args[1])
		}
		text = m[1]
	}
	if text == "" {
		ts.Fatalf("nothing was said on stdout")
	}
	ts.Setenv(args[0], text)
}

// usertoken VAR: a token with the form of a person's, which no server made.
func userTokenVar(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, neg, args, 1, "usertoken VAR")
	ts.Setenv(args[0], wire.TokenParts{Kind: wire.UserToken, Claims: []byte(`{"user":"me","expires_at":"2100-01-01T00:00:00Z"}`)}.String())
}

// certificate NAME [HOST...]: writes NAME.pem and NAME.key, a server's pair,
// which is good for the hosts (else for this one), and NAME-ca.pem, who signed it.
func certificate(t *testing.T, ts *testscript.TestScript, name string, hosts []string) {
	if len(hosts) == 0 {
		hosts = nil
	}
	ca := muxtest.NewAuthority(t)
	pair := ca.Issue(t, muxtest.Leaf{Names: hosts})
	for file, text := range map[string][]byte{
		".pem":    muxtest.CertificatePEM(pair.Certificate...),
		".key":    muxtest.KeyPEM(t, pair.PrivateKey),
		"-ca.pem": muxtest.CertificatePEM(ca.Cert.Raw),
	} {
		ts.Check(os.WriteFile(ts.MkAbs(name+file), text, 0o600))
	}
}

// newer STORE: makes a store that no server has open one of a newer release,
// by a migration that this one does not have.
func newer(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, neg, args, 1, "newer STORE")
	db, err := sql.Open("sqlite", ts.MkAbs(args[0]))
	ts.Check(err)
	defer db.Close()
	_, err = db.Exec("INSERT INTO migrations (name, sum, applied_at) VALUES ('migrations/0812_flying.sql', 'x', 1)")
	ts.Check(err)
}

// digest DIR FILE: writes a line for each file and directory below a directory:
// its name, mode and the sum of what is in it. Not the lock's, which whoever
// takes it writes his name into.
func digest(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, neg, args, 2, "digest DIR FILE")
	var text strings.Builder
	root := ts.MkAbs(args[0])
	ts.Check(filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.Name() == "lock" {
			return err
		}
		var content []byte
		if e.Type().IsRegular() {
			if content, err = os.ReadFile(path); err != nil {
				return err
			}
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, path)
		fmt.Fprintf(&text, "%s %v %x\n", name, info.Mode(), sha256.Sum256(content))
		return err
	}))
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), []byte(text.String()), 0o600))
}

// stale SOCKET: leaves the file of a Unix socket behind which nobody accepts.
func stale(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, neg, args, 1, "stale SOCKET")
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	ts.Check(err)
	ts.Check(syscall.Bind(fd, &syscall.SockaddrUnix{Name: ts.MkAbs(args[0])}))
	ts.Check(syscall.Close(fd))
}

// silent SOCKET: takes connections on a Unix socket and says nothing.
func silent(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, neg, args, 1, "silent SOCKET")
	l, err := net.Listen("unix", ts.MkAbs(args[0]))
	ts.Check(err)
	ts.Defer(func() { l.Close() })
	go func() {
		var held []net.Conn
		for {
			conn, err := l.Accept()
			if err != nil {
				for _, c := range held {
					c.Close()
				}
				return
			}
			held = append(held, conn)
		}
	}()
}

func need(ts *testscript.TestScript, neg bool, args []string, n int, usage string) {
	if neg || len(args) < n {
		ts.Fatalf("usage: %s", usage)
	}
}

func wait(ts *testscript.TestScript, what string, cond func() bool) {
	waitBetween(ts, what, between, cond)
}

// waitRarely waits twice as long each time.
func waitRarely(ts *testscript.TestScript, what string, cond func() bool) {
	waitBetween(ts, what, rarely, cond)
}

func waitBetween(ts *testscript.TestScript, what string, longest time.Duration, cond func() bool) {
	deadline := time.Now().Add(bound)
	for pause := between; !cond(); pause = min(2*pause, longest) {
		if time.Now().After(deadline) {
			ts.Fatalf("waited %v for %s", bound, what)
		}
		time.Sleep(pause)
	}
}
