package main

import (
	"bytes"
	"flag"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/alecthomas/kong"

	"github.com/waypointd/waypoint/cmd/internal/argv"
	"github.com/waypointd/waypoint/cmd/internal/manual"
)

// updateManual has TestManual write the pages instead of comparing them: make man.
var updateManual = flag.Bool("update", false, "write the manual pages of the commands")

// root is that of the repository.
var root = filepath.Join("..", "..")

// usualExits are what exit codes mean where a page says nothing else.
var usualExits = map[int]string{
	exitDone:        "It is done.",
	exitFailed:      "It failed.",
	exitUsage:       "Wrong usage: an option, an argument or a file that was named cannot be used as it is.",
	exitNotFound:    "What was named was not found.",
	exitDenied:      "Denied: there is no token or a bad or expired one, the server's certificate is not trusted, the socket may not be opened, or it is not permitted.",
	exitUnreachable: "No server could be reached within 10 seconds.",
	exitConflict:    "It conflicts with the present state.",
	exitTimeout:     "There was no answer in time.",
	exitJobTimeout:  "The job ran into its time limit.",
	exitJobEnded:    "The job ended in another way than by the end of its command: it expired, was canceled or was lost.",
	126:             "The command is not executable.",
	127:             "The command was not found.",
	exitInterrupt:   "It was interrupted.",
}

// manualSection is where pages belong: what is for those who run servers and
// runners is in 8.
func manualSection(words []string) int {
	if len(words) > 0 && (words[0] == "server" || words[0] == "runner") {
		return 8
	}
	return 1
}

// firstVersion is the date of the pages until there is a release.
const firstVersion = "November 22, 2026"

var releaseHeading = regexp.MustCompile(`(?m)^## .*\b(\d{4}-\d{2}-\d{2})\b`)

// manualDate is the date of the newest release, so that the same source makes
// the same pages.
func manualDate(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, "CHANGELOG.md"))
	if err != nil {
		t.Fatal(err)
	}
	found := releaseHeading.FindSubmatch(text)
	if found == nil {
		return firstVersion
	}
	day, err := time.Parse(time.DateOnly, string(found[1]))
	if err != nil {
		t.Fatal(err)
	}
	return day.Format("January 2, 2006")
}

func newManual(t *testing.T) *manual.Manual {
	return &manual.Manual{
		App: model(t), Prose: os.DirFS(filepath.Join(root, "man", "prose")), Date: manualDate(t),
		Section: manualSection, Exits: usualExits,
	}
}

func manualPages(t *testing.T) map[string]string {
	t.Helper()
	pages, err := newManual(t).Pages()
	if err != nil {
		t.Fatal(err)
	}
	if len(pages) < 40 {
		t.Fatalf("there are %d pages only", len(pages))
	}
	return pages
}

// TestManual: what is in man/ is what the command line and the prose make.
func TestManual(t *testing.T) {
	pages := manualPages(t)
	for name, want := range pages {
		path := filepath.Join(root, "man", name)
		if *updateManual {
			if err := os.WriteFile(path, []byte(want), 0o644); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if got, err := os.ReadFile(path); err != nil || string(got) != want {
			t.Errorf("%s is not what the command line makes of it now: make man (%v)", name, err)
		}
	}
	for _, path := range glob(t, filepath.Join(root, "man", "*.[18]")) {
		if pages[filepath.Base(path)] == "" {
			if *updateManual {
				if err := os.Remove(path); err != nil {
					t.Fatal(err)
				}
				continue
			}
			t.Errorf("%s is the page of no command", path)
		}
	}
	for _, path := range glob(t, filepath.Join(root, "man", "prose", "*")) {
		base := strings.TrimSuffix(filepath.Base(path), ".mdoc")
		if pages[base+".1"] == "" && pages[base+".8"] == "" {
			t.Errorf("%s is the prose of no command", path)
		}
	}
}

func glob(t *testing.T, pattern string) []string {
	t.Helper()
	paths, err := filepath.Glob(pattern)
	if err != nil || len(paths) == 0 {
		t.Fatalf("%s: no files (%v)", pattern, err)
	}
	return paths
}

// manFiles are all pages there are, also those that people wrote, by name.
func manFiles(t *testing.T) map[string]string {
	t.Helper()
	pages := map[string]string{}
	for _, path := range glob(t, filepath.Join(root, "man", "*.[1-8]")) {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		pages[filepath.Base(path)] = string(text)
	}
	return pages
}

// systemPages are those of others that ours refer to.
var systemPages = []string{
	"bash.1", "fish.1", "zsh.1", "id.1", "journalctl.1", "systemctl.1", "systemd-creds.1", "systemd-analyze.1", "busctl.1", "jq.1", "ssh.1",
	"systemd.exec.5", "systemd.unit.5", "systemd.service.5", "systemd.socket.5", "systemd.resource-control.5", "systemd.slice.5",
	"sysusers.d.5", "tmpfiles.d.5", "journald.conf.5", "cgroups.7", "capabilities.7", "credentials.7", "unix.7", "mdoc.7",
	"systemd-journald.service.8", "systemd-sysusers.8", "systemd-tmpfiles.8", "useradd.8",
}

var xr = regexp.MustCompile(`(?m)^\.(?:It )?Xr (\S+) ([1-8])`)

// TestManualReferences: every reference leads to a page.
func TestManualReferences(t *testing.T) {
	pages := manFiles(t)
	n := 0
	for name, text := range pages {
		for _, found := range xr.FindAllStringSubmatch(strings.ReplaceAll(text, `\-`, "-"), -1) {
			n++
			to := found[1] + "." + found[2]
			if pages[to] == "" && !slices.Contains(systemPages, to) {
				t.Errorf("%s refers to %s(%s), which is no page", name, found[1], found[2])
			}
			if to == name {
				t.Errorf("%s refers to itself", name)
			}
		}
	}
	if n < 100 {
		t.Errorf("there are %d references only: are they still found?", n)
	}
}

// TestManualLint: mandoc and groff find nothing to say about any page.
func TestManualLint(t *testing.T) {
	if testing.Short() {
		t.Skip("the pages are the same for whoever reads them")
	}
	paths := glob(t, filepath.Join(root, "man", "*.[1-8]"))
	for _, tool := range [][]string{{"mandoc", "-Tlint", "-Wstyle"}, {"groff", "-mandoc", "-k", "-ww", "-z", "-Tutf8"}} {
		t.Run(tool[0], func(t *testing.T) {
			needProgram(t, tool[0])
			cmd := exec.Command(tool[0], append(tool[1:], paths...)...)
			var out, errs bytes.Buffer
			cmd.Stdout, cmd.Stderr = &out, &errs
			err := cmd.Run()
			for line := range strings.Lines(out.String() + errs.String()) {
				// It looks among what is installed here; TestManualReferences looks at all.
				if strings.Contains(line, "referenced manual not found") || strings.Contains(line, "outdated mandoc.db") {
					continue
				}
				t.Errorf("%s", strings.TrimSpace(line))
			}
			if err != nil && out.Len()+errs.Len() == 0 {
				t.Error(err)
			}
		})
	}
}

// needProgram skips a test where a program is not here, but not in CI, which
// installs what tests need.
func needProgram(t *testing.T, name string) {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatalf("%v: CI has to install it", err)
		}
		t.Skipf("SKIPPED: %s is not here", name)
	}
}

// TestManualHelp: a page and --help speak of the same flags, --help names the
// page, and nothing is without a text.
func TestManualHelp(t *testing.T) {
	pages := manualPages(t)
	m := newManual(t)
	inHelp := regexp.MustCompile(`(?m)^ +(?:-[a-z], )?--(\[no-\])?([a-z][a-z0-9-]*)`)
	inPage := regexp.MustCompile(`(?m)^\.It Fl .*$`)
	names := regexp.MustCompile(`Fl -([a-z][a-z0-9-]+)`)
	manual.Visit(m.App.Node, func(n *kong.Node) {
		if n.Help == "" {
			t.Errorf("%s has no help", manual.Name(n))
		}
		for _, a := range n.Positional {
			if a.Help == "" {
				t.Errorf("%s: %s has no help", manual.Name(n), a.Name)
			}
		}
		var stdout, stderr bytes.Buffer
		if code := run(t.Context(), append(manual.Words(n), "--help"), strings.NewReader(""), &stdout, &stderr, nil); code != 0 {
			t.Fatalf("%s --help: exit code %d: %s", manual.Name(n), code, &stderr)
		}
		if !strings.Contains(stdout.String(), "man "+manual.Name(n)+"\n") {
			t.Errorf("%s --help does not name the page", manual.Name(n))
		}
		help := stdout.String()
		if n.Parent != nil {
			help, _, _ = strings.Cut(help, "\nFlags of every command:")
		}
		want := map[string]bool{}
		for _, found := range inHelp.FindAllStringSubmatch(help, -1) {
			want[found[2]] = true
			if found[1] != "" {
				want["no-"+found[2]] = true
			}
		}
		if n.Parent != nil {
			delete(want, "help")
		}
		got := map[string]bool{}
		text := strings.ReplaceAll(pages[m.File(n)], `\-`, "-")
		if _, options, ok := strings.Cut(text, ".Sh OPTIONS\n"); ok {
			options, _, _ = strings.Cut(options, "\n.Sh ")
			for _, line := range inPage.FindAllString(options, -1) {
				for _, found := range names.FindAllStringSubmatch(line, -1) {
					got[found[1]] = true
				}
			}
		}
		if !maps.Equal(got, want) {
			t.Errorf("%s: the page has the flags %q, --help has %q", manual.Name(n),
				slices.Sorted(maps.Keys(got)), slices.Sorted(maps.Keys(want)))
		}
	})
}

// TestManualExits: waypoint(1) names every exit code, and no page another one.
func TestManualExits(t *testing.T) {
	pages := manualPages(t)
	codes := regexp.MustCompile(`(?m)^\.It (\d+)$`)
	of := func(name string) []int {
		_, text, ok := strings.Cut(pages[name], ".Sh EXIT STATUS\n")
		if !ok {
			t.Fatalf("%s says nothing of exit codes", name)
		}
		text, _, _ = strings.Cut(text, "\n.Sh ")
		var all []int
		for _, found := range codes.FindAllStringSubmatch(text, -1) {
			n, err := strconv.Atoi(found[1])
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, n)
		}
		return all
	}
	if got, want := of("waypoint.1"), slices.Sorted(maps.Keys(usualExits)); !slices.Equal(got, want) {
		t.Errorf("waypoint(1) has the exit codes %v, there are %v", got, want)
	}
	for name := range pages {
		got := of(name)
		for _, n := range got {
			if usualExits[n] == "" {
				t.Errorf("%s has the exit code %d, which is none of ours", name, n)
			}
		}
		if !slices.Contains(got, exitDone) || !slices.Contains(got, exitUsage) || !slices.IsSorted(got) {
			t.Errorf("%s has the exit codes %v", name, got)
		}
	}
}

// TestExamplesParse: whatever documents say to type is something that can be
// typed.
func TestExamplesParse(t *testing.T) {
	tried := 0
	try := func(where, line string) {
		for _, words := range shellCommands(line) {
			args, ok := waypointArgs(words)
			if !ok {
				continue
			}
			tried++
			if err := parses(t, args); err != nil {
				t.Errorf("%s: %s\n%v", where, line, err)
			}
		}
	}
	for name, text := range manFiles(t) {
		n := 0
		for line := range strings.Lines(text) {
			line = strings.NewReplacer(`\-`, "-", `\(aq`, "'", `\(dq`, `"`, `\(ti`, "~", `\(ha`, "^", `\(ga`, "`", `\(rs`, `\`, `\e`, `\`, `\&`, "").Replace(strings.TrimSpace(line))
			if typed, ok := strings.CutPrefix(line, "$ "); ok {
				try(name, typed)
				n++
			}
		}
		if n == 0 && regexp.MustCompile(`[18]$`).MatchString(name) {
			t.Errorf("%s has no example", name)
		}
	}
	for _, path := range readmes(t) {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		shown := false
		for line := range strings.Lines(string(text)) {
			line = strings.TrimSpace(line)
			if strings.HasPrefix(line, "```") {
				shown = !shown
			} else if shown {
				try(path, strings.TrimPrefix(line, "$ "))
			}
		}
	}
	if tried < 150 {
		t.Errorf("%d commands were tried only: are they still found?", tried)
	}
}

func readmes(t *testing.T) []string {
	t.Helper()
	paths := []string{filepath.Join(root, "README.md")}
	for _, dir := range []string{"contrib", "packaging"} {
		err := filepath.WalkDir(filepath.Join(root, dir), func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.Name() == "README.md" {
				paths = append(paths, path)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return paths
}

// waypointArgs are the arguments of the waypoint that a command runs, also by
// way of another one.
func waypointArgs(words []string) (args []string, ok bool) {
	more := false
	for len(words) > 0 {
		switch first := words[0]; {
		case first == "waypoint" || strings.HasSuffix(first, "/bin/waypoint"):
			if args = words[1:]; more {
				args = append(slices.Clone(args), "x")
			}
			return args, true
		case first == "xargs": // it adds what its input says
			more = true
			if len(words) > 2 && words[1] == "-n" {
				words = words[2:]
			}
		case first == "ssh" && len(words) > 1: // and a host
			words = words[1:]
		case slices.Contains([]string{"sudo", "env", "exec", "do", "then", "!"}, first), strings.Contains(first, "="):
		default:
			return nil, false
		}
		words = words[1:]
	}
	return nil, false
}

// parses tries words as the program would, up to the point where it would do
// something.
func parses(t *testing.T, args []string) (err error) {
	t.Helper()
	a := newApp(t.Context(), strings.NewReader(""), new(bytes.Buffer), new(bytes.Buffer), nil)
	defer a.close()
	defer func() {
		if r := recover(); r != nil {
			if _, ok := r.(helpShown); !ok {
				panic(r)
			}
			err = nil
		}
	}()
	parser, err := a.parser(args)
	if err != nil {
		return err
	}
	args = flagNames(parser.Model).Rewrite(args)
	_, _, found := argv.Split(args)
	if _, err = parser.Parse(args); err != nil {
		return usageError(err, found)
	}
	return nil
}
