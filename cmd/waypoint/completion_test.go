package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/alecthomas/kong"

	"github.com/waypointd/waypoint/cmd/internal/completion"
	"github.com/waypointd/waypoint/cmd/internal/manual"
)

// completes is a line up to the cursor, and what can stand in place of its
// last word.
type completes struct {
	line string
	want []string
}

// completionCases are tried with each shell. All commands and all flags are
// among them.
func completionCases(t *testing.T, dir string) []completes {
	cases := []completes{
		{"waypoint job ca", []string{"cancel"}},
		{"waypoint job nothing", nil},
		{"waypoint nothing ", nil},
		{"waypoint version ", nil},
		{"waypoint job attach --no", []string{"--no-follow", "--no-server", "--no-server-tls"}},
		{"waypoint job list --state ", []string{"queued", "assigned", "running", "success", "error", "canceled"}},
		{"waypoint job list --state=r", []string{"--state=running"}},
		{"waypoint job list --limit ", nil},
		{"waypoint -json -context x job li", []string{"list"}},
		{"waypoint --server-addr unix:///x job li", []string{"list"}},
		{"waypoint --server-addr=unix:///x job li", []string{"list"}},
		{"waypoint -p job -vv run --pri", []string{"--priority"}},
		{"waypoint --json server ru", []string{"run"}},
		{"waypoint server token-key ", []string{"rotate"}},
		{"waypoint release --dep", []string{"--depends-on", "--deployment"}},
		{"waypoint completion ", []string{"bash", "zsh", "fish"}},
		{"waypoint runner agent --log-level=w", []string{"--log-level=warn"}},
		{"waypoint run --dir " + dir + "/wpt", []string{dir + "/wpt-dir"}},
		{"waypoint --token-file=" + dir + "/wpt-f", []string{"--token-file=" + dir + "/wpt-file"}},
		{"waypoint server run --config " + dir + "/wpt", []string{dir + "/wpt-dir", dir + "/wpt-file"}},
		{"waypoint run ", []string{"--"}},
		{"waypoint run --source -- wpt-example-c", []string{"wpt-example-command"}},
		{"waypoint run -- wpt-example-command " + dir + "/wpt-f", []string{dir + "/wpt-file"}},
		{"waypoint --context la", []string{"lab"}},
		{"waypoint context delete pr", []string{"prod", "prowl"}},
	}
	app := model(t)
	global := flagWords(app.Flags)
	manual.Visit(app.Node, func(n *kong.Node) {
		at := strings.Join(append([]string{"waypoint"}, manual.Words(n)...), " ")
		want := slices.Clone(global)
		if n.Parent != nil {
			want = append(want, flagWords(manual.Flags(n))...)
		}
		cases = append(cases, completes{at + " --", want})
		var below []string
		for _, child := range n.Children {
			if !child.Hidden {
				below = append(append(below, child.Name), child.Aliases...)
			}
		}
		if below != nil {
			cases = append(cases, completes{at + " ", below})
		}
	})
	return cases
}

func flagWords(flags []*kong.Flag) []string {
	var words []string
	for _, f := range flags {
		words = append(words, "--"+f.Name)
		if f.Tag.Negatable != "" {
			words = append(words, "--no-"+f.Name)
		}
	}
	return words
}

// TestCompletion presses the key for completion in each shell.
func TestCompletion(t *testing.T) {
	if testing.Short() {
		t.Skip("the scripts are the same for whoever reads them")
	}
	if systemSocketExists() {
		t.Skip("a packaged server runs on this machine")
	}
	for _, shell := range completion.Shells {
		t.Run(shell, func(t *testing.T) {
			needProgram(t, shell)
			dir := t.TempDir()
			for _, name := range []string{"wpt-file", "lab.toml", "prod.toml", "prowl.toml", "bin/wpt-example-command", "wpt-dir/x"} {
				path := filepath.Join(dir, name)
				if strings.HasSuffix(name, ".toml") {
					path = filepath.Join(dir, "waypoint", "contexts", name)
				}
				if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, []byte(`server_addr = "unix:///nowhere"`+"\n"), 0o700); err != nil {
					t.Fatal(err)
				}
			}
			var script, stderr bytes.Buffer
			if code := run(t.Context(), []string{"completion", shell}, nil, &script, &stderr, nil); code != 0 {
				t.Fatalf("exit code %d: %s", code, &stderr)
			}
			file := filepath.Join(dir, "_waypoint")
			if err := os.WriteFile(file, script.Bytes(), 0o600); err != nil {
				t.Fatal(err)
			}
			cases := completionCases(t, dir)
			env := append(os.Environ(), "HOME="+dir, "XDG_CONFIG_HOME="+dir, "XDG_STATE_HOME="+dir, "XDG_DATA_HOME="+dir,
				"TERM=dumb", "LC_ALL=C", "PATH="+filepath.Join(dir, "bin")+":"+os.Getenv("PATH"), "GORACE=atexit_sleep_ms=0",
				"WAYPOINT_SERVER_ADDR=", "WAYPOINT_CONTEXT=", "INPUTRC=/dev/null")
			lines := make([]string, len(cases))
			for i, c := range cases {
				lines[i] = c.line
			}
			ctx, cancel := context.WithTimeout(t.Context(), 2*bound)
			defer cancel()
			out := map[string]func(context.Context, *testing.T, []string, string, []string) string{
				"bash": bashCompletes, "zsh": zshCompletes, "fish": fishCompletes,
			}[shell](ctx, t, env, dir, lines)
			answers := strings.Split(out, "\x02")
			if len(answers) != len(cases)+1 {
				t.Fatalf("%d answers for %d lines:\n%q", len(answers)-1, len(cases), out)
			}
			for i, c := range cases {
				text, _, _ := strings.Cut(answers[i+1], "\x03")
				got := map[string]bool{}
				last := c.line[strings.LastIndexByte(c.line, ' ')+1:]
				for word := range strings.SplitSeq(text, "\x1f") {
					if word = strings.TrimSuffix(word, "/"); word != "" && word != last {
						got[word] = true
					}
				}
				want := map[string]bool{}
				for _, w := range c.want {
					want[w] = true
				}
				if !maps.Equal(got, want) {
					t.Errorf("%q is completed to\n%q, want\n%q", c.line, slices.Sorted(maps.Keys(got)), slices.Sorted(maps.Keys(want)))
				}
			}
		})
	}
}

// told is a shell's function of the program's name that says its arguments
// from the one on that was completed; the shells' own ways of inserting every
// possibility make arguments of them.
const told = `waypoint() { shift $((FROM)); printf '\002'; printf '%s\037' "$@"; printf '\003\n'; }` + "\n"

// typed are the keys for lines in a shell that has told.
func typed(lines []string) string {
	var b strings.Builder
	for _, line := range lines {
		// A command of its own, so that the line itself is as a person types it.
		fmt.Fprintf(&b, "FROM=%d\n%s\t\n", strings.Count(line, " ")-1, line)
	}
	return b.String()
}

// bashCompletes has readline, which needs no terminal for it.
func bashCompletes(ctx context.Context, t *testing.T, env []string, dir string, lines []string) string {
	cmd := exec.CommandContext(ctx, "bash", "--norc", "--noprofile", "-i")
	cmd.Env = env
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // no terminal to be taken from anybody
	cmd.Stdin = strings.NewReader("bind 'TAB: insert-completions'\nsource " + dir + "/_waypoint\n" + told + typed(lines) + "exit 0\n")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("bash: %v", err)
	}
	return string(out)
}

func zshCompletes(ctx context.Context, t *testing.T, env []string, dir string, lines []string) string {
	near, far, err := openTerminal()
	if err != nil {
		t.Fatal(err)
	}
	defer near.Close()
	cmd := exec.CommandContext(ctx, "zsh", "-f", "-i")
	cmd.Env = env
	cmd.Stdin, cmd.Stdout, cmd.Stderr = far, far, far
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	far.Close()
	written := make(chan error, 1)
	go func() {
		_, err := io.WriteString(near, `unset zle_bracketed_paste; PS1=; setopt no_beep
fpath=(`+dir+` $fpath); autoload -U compinit; compinit -u -D
zstyle ':completion:*' completer _all_matches _complete; zstyle ':completion:*' insert true
zstyle ':completion:*' insert-tab false
`+told+typed(lines)+"exit 0\n")
		written <- err
	}()
	var out bytes.Buffer
	io.Copy(&out, near) // ends with an error when the shell has
	if err := cmd.Wait(); err != nil {
		t.Fatalf("zsh: %v\n%q", err, out.String())
	}
	if err := <-written; err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// fishCompletes asks fish, which has a command for it.
func fishCompletes(ctx context.Context, t *testing.T, env []string, dir string, lines []string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "source %s/_waypoint\n", dir)
	for _, line := range lines {
		fmt.Fprintf(&b, "printf '\\002'; for c in (complete -C '%s'); printf '%%s\\037' (string split \\t -- $c)[1]; end; printf '\\003\\n'\n", line)
	}
	cmd := exec.CommandContext(ctx, "fish", "--no-config", "-c", b.String())
	cmd.Env = env
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("fish: %v", err)
	}
	return string(out)
}

// TestCompletionLint: shellcheck has nothing to say about the script for bash.
func TestCompletionLint(t *testing.T) {
	if testing.Short() {
		t.Skip("the script is the same for whoever reads it")
	}
	needProgram(t, "shellcheck")
	var script, stderr bytes.Buffer
	if code := run(t.Context(), []string{"completion", "bash"}, nil, &script, &stderr, nil); code != 0 {
		t.Fatalf("exit code %d: %s", code, &stderr)
	}
	cmd := exec.Command("shellcheck", "-")
	cmd.Stdin = &script
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestCompletionValues: what completes a value is among what is taken.
func TestCompletionValues(t *testing.T) {
	manual.Visit(model(t).Node, func(n *kong.Node) {
		for _, f := range n.Flags {
			path := strings.Join(manual.Words(n), " ")
			values, ok := completions[strings.TrimSpace(path+" --"+f.Name)]
			if !ok {
				values = completions["--"+f.Name]
			}
			if strings.HasPrefix(string(values), "@") {
				continue
			}
			for v := range strings.FieldsSeq(string(values)) {
				if !strings.Contains(f.Help, v) {
					t.Errorf("%s --%s is completed with %q, of which its help says nothing", path, f.Name, v)
				}
			}
		}
	})
	maker := &completion.Completer{App: model(t), Values: map[string]completion.Values{"job lost --id": completion.Jobs}}
	if _, err := maker.Script("bash"); err == nil {
		t.Error("values for what is not there are taken")
	}
	for _, name := range serverFlags {
		if name = strings.TrimPrefix(name, "no-"); !slices.ContainsFunc(model(t).Flags, func(f *kong.Flag) bool { return f.Name == name || "no-"+name == f.Name }) {
			t.Errorf("there is no flag --%s", name)
		}
	}
}
