// Package waypoint_test holds the rules of ARCHITECTURE.md: who imports whom,
// who may touch the process, and how files and folders look. Each failure says
// why the rule is there.
package waypoint_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/waypointd/waypoint/daemon"
)

const module = "github.com/waypointd/waypoint"

// pkg is what `go list` says of a package. Test files are not looked at: a
// test may stand on both sides of a rule.
type pkg struct {
	ImportPath string
	Dir        string
	Standard   bool
	Doc        string
	GoFiles    []string
	CgoFiles   []string
	Imports    []string // its own
	Deps       []string // and theirs
}

// rel is the path within the module; ok is false for everyone else's.
func rel(path string) (string, bool) {
	if path == module {
		return "", true
	}
	return strings.CutPrefix(path, module+"/")
}

// within reports whether a package is one of the folders or below one.
func within(path string, folders ...string) bool {
	p, ok := rel(path)
	return ok && slices.ContainsFunc(folders, func(f string) bool { return p == f || strings.HasPrefix(p, f+"/") })
}

var list = sync.OnceValues(func() (map[string]*pkg, error) {
	cmd := exec.Command("go", "list", "-deps", "-json=ImportPath,Dir,Standard,Doc,GoFiles,CgoFiles,Imports,Deps", "./...")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, errors.Join(err, errors.New(stderr.String()))
	}
	all := map[string]*pkg{}
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		switch err := d.Decode(&p); {
		case errors.Is(err, io.EOF):
			return all, nil
		case err != nil:
			return nil, err
		}
		all[p.ImportPath] = &p
	}
})

func packages(t *testing.T) map[string]*pkg {
	t.Helper()
	all, err := list()
	if err != nil {
		t.Fatalf("list packages: %v", err)
	}
	return all
}

// ours calls f for each package of this module.
func ours(t *testing.T, f func(p *pkg)) {
	n := 0
	for path, p := range packages(t) {
		if _, ok := rel(path); ok {
			n++
			f(p)
		}
	}
	if n < 5 {
		t.Fatalf("only %d packages were found: the rules were tried on next to nothing", n)
	}
}

func TestImports(t *testing.T) {
	all := packages(t)
	standard := func(path string) bool { return all[path] != nil && all[path].Standard }
	ours(t, func(p *pkg) {
		for _, dep := range p.Deps {
			if within(p.ImportPath, "daemon") && !within(p.ImportPath, "daemon/daemontest") && within(dep, "runner") {
				t.Errorf("%s depends on %s: server and runner meet in mux/wire only, so that either can be read, tested and replaced without the other", p.ImportPath, dep)
			}
			if within(p.ImportPath, "runner") && within(dep, "daemon") {
				t.Errorf("%s depends on %s: runner and server meet in mux/wire only, so that either can be read, tested and replaced without the other", p.ImportPath, dep)
			}
			if within(p.ImportPath, "mux", "statedir") && within(dep, "daemon", "runner") {
				t.Errorf("%s depends on %s: the wire and the disk know nothing of the two ends that use them", p.ImportPath, dep)
			}
			if within(p.ImportPath, "mux/wire") && !standard(dep) {
				t.Errorf("%s depends on %s: the protocol is the one thing that everything depends on, so it depends on the standard library alone", p.ImportPath, dep)
			}
			if within(p.ImportPath, "daemon/queue", "daemon/adoption") && !standard(dep) && !within(dep, "mux/wire") {
				t.Errorf("%s depends on %s: rules are pure; they know the protocol's nouns and nothing else", p.ImportPath, dep)
			}
		}
		for _, path := range p.Imports {
			if within(path, "cmd") && !within(p.ImportPath, "cmd") {
				t.Errorf("%s imports %s: commands put the packages together, nothing is built on a command", p.ImportPath, path)
			}
			if path == "github.com/hashicorp/yamux" && !exactly(p.ImportPath, "mux") {
				t.Errorf("%s imports yamux: its hazards are closed off in one place, package mux", p.ImportPath)
			}
			if strings.HasPrefix(path, "github.com/prometheus/") && !exactly(p.ImportPath, "daemon/metrics") {
				t.Errorf("%s imports %s: what is counted is plain calls, so that Prometheus' library can be left out or replaced in one place, package daemon/metrics", p.ImportPath, path)
			}
			if path == "testing" && !within(p.ImportPath, "contrib") && !strings.HasSuffix(p.ImportPath, "test") {
				t.Errorf("%s imports testing: what ships does not", p.ImportPath)
			}
			if strings.HasSuffix(path, "test") && within(path, "mux", "daemon") && !within(p.ImportPath, "contrib") && !strings.HasSuffix(p.ImportPath, "test") {
				t.Errorf("%s imports %s, which is for tests only", p.ImportPath, path)
			}
		}
	})
}

func exactly(path, folder string) bool {
	p, ok := rel(path)
	return ok && p == folder
}

// process is what touches the process as a whole; names are package.name, or
// the package for all of it.
var process = []string{
	"os.Exit", "os.Args", "os.Getenv", "os.LookupEnv", "os.Environ", "os.ExpandEnv", "os.Setenv", "os.Unsetenv", "os.Clearenv",
	"flag", "os/signal", "log.Fatal", "log.Fatalf", "log.Fatalln",
}

// processExceptions are the files outside of cmd that may, each with its
// reason.
var processExceptions = map[string]string{
	"runner/executor/shim.go": "the shim is a process of its own between the supervisor and a job: main hands over to it before anything else is read",
}

// TestProcessIsTheCommands: nothing below cmd decides from the environment, or
// ends the process, so all of it can be run many times in one test.
func TestProcessIsTheCommands(t *testing.T) {
	used := map[string]bool{}
	ours(t, func(p *pkg) {
		if within(p.ImportPath, "cmd", "contrib") { // contrib's programs are commands of their own
			return
		}
		eachFile(t, p, func(name string, fset *token.FileSet, file *ast.File) {
			for _, use := range uses(file) {
				if !slices.Contains(process, use.name) && !slices.Contains(process, use.path) {
					continue
				}
				if _, ok := processExceptions[name]; ok {
					used[name] = true
					continue
				}
				t.Errorf("%s: %s: only cmd reads flags, environment and signals, and only it exits; hand it in from there", fset.Position(use.pos), use.name)
			}
		})
	})
	for name := range processExceptions {
		if !used[name] {
			t.Errorf("the exception for %s is not needed any more: take it out", name)
		}
	}
}

// TestRulesArePure: with time as an argument and nothing running behind them a
// model can hold the rules of queue and adoption over any history.
func TestRulesArePure(t *testing.T) {
	impure := []string{
		"time.Now", "time.Since", "time.Until", "time.Sleep", "time.After", "time.AfterFunc", "time.NewTimer", "time.NewTicker", "time.Tick",
		"os", "net", "sync", "sync/atomic", "math/rand", "math/rand/v2", "crypto/rand", "context",
	}
	found := 0
	ours(t, func(p *pkg) {
		if !exactly(p.ImportPath, "daemon/queue") && !exactly(p.ImportPath, "daemon/adoption") {
			return
		}
		found++
		eachFile(t, p, func(name string, fset *token.FileSet, file *ast.File) {
			for _, use := range uses(file) {
				if slices.Contains(impure, use.name) || slices.Contains(impure, use.path) {
					t.Errorf("%s: %s: rules have no clock, no I/O, no lock and no chance; take it as an argument", fset.Position(use.pos), use.name)
				}
			}
			ast.Inspect(file, func(n ast.Node) bool {
				switch n := n.(type) {
				case *ast.GoStmt:
					t.Errorf("%s: rules start no goroutine", fset.Position(n.Pos()))
				case *ast.ChanType:
					t.Errorf("%s: rules have no channel", fset.Position(n.Pos()))
				}
				return true
			})
		})
	})
	if found != 2 {
		t.Errorf("%d of the packages daemon/queue and daemon/adoption were found", found)
	}
}

// TestPackageComments: the package comment is the specification.
func TestPackageComments(t *testing.T) {
	ours(t, func(p *pkg) {
		if len(p.GoFiles) > 0 && p.Doc == "" {
			t.Errorf("%s has no package comment: that is where its purpose and its guarantees are written down", p.ImportPath)
		}
	})
}

// maxLines keeps a file to one subject.
const maxLines = 600

// folders is all that lies at the top. A new one is a decision: it is
// explained in ARCHITECTURE.md first.
var folders = []string{"cmd", "contrib", "daemon", "man", "mux", "packaging", "runner", "statedir"}

func TestFiles(t *testing.T) {
	top, err := os.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range top {
		switch {
		case !d.IsDir() || strings.HasPrefix(d.Name(), "."):
			if strings.HasSuffix(d.Name(), ".go") && d.Name() != "arch_test.go" {
				t.Errorf("%s: the root has no package: a root package only grows", d.Name())
			}
		case d.Name() == "bin", d.Name() == "dist": // what make builds
		case !slices.Contains(folders, d.Name()):
			t.Errorf("folder %s: the folders at the top are fixed: %s", d.Name(), strings.Join(folders, ", "))
		}
	}
	err = filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (d.Name() == "bin" || d.Name() == "testdata" || len(d.Name()) > 1 && strings.HasPrefix(d.Name(), ".")) {
			return fs.SkipDir
		}
		if !strings.HasSuffix(path, ".go") {
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if n := bytes.Count(text, []byte("\n")); n > maxLines {
			t.Errorf("%s has %d lines, over %d: it has more than one subject, split it by noun", path, n, maxLines)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// eachFile parses a package's files; name is the path within the module.
func eachFile(t *testing.T, p *pkg, f func(name string, fset *token.FileSet, file *ast.File)) {
	t.Helper()
	folder, _ := rel(p.ImportPath)
	fset := token.NewFileSet()
	for _, base := range slices.Concat(p.GoFiles, p.CgoFiles) {
		name := filepath.Join(folder, base)
		file, err := parser.ParseFile(fset, name, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		f(name, fset, file)
	}
}

type use struct {
	path string // of the package
	name string // path.Name
	pos  token.Pos
}

// uses are the qualified identifiers of a file.
func uses(file *ast.File) []use {
	imported := map[string]string{}
	for _, i := range file.Imports {
		path := strings.Trim(i.Path.Value, `"`)
		name := path[strings.LastIndexByte(path, '/')+1:]
		if name == "v2" {
			name = "rand"
		}
		if i.Name != nil {
			name = i.Name.Name
		}
		imported[name] = path
	}
	var all []use
	ast.Inspect(file, func(n ast.Node) bool {
		if s, ok := n.(*ast.SelectorExpr); ok {
			if x, ok := s.X.(*ast.Ident); ok && imported[x.Name] != "" {
				path := imported[x.Name]
				all = append(all, use{path, path + "." + s.Sel.Name, s.Pos()})
			}
		}
		return true
	})
	return all
}

// TestDependencies: every direct dependency, and every tool that is built here,
// has its reason in ARCHITECTURE.md, and nothing has one that is not there.
func TestDependencies(t *testing.T) {
	page, err := os.ReadFile("ARCHITECTURE.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, ok := strings.Cut(string(page), "\n## Dependencies and why\n")
	if !ok {
		t.Fatal("ARCHITECTURE.md has no section of dependencies")
	}
	section, _, _ = strings.Cut(section, "\n## ")
	shipped, tools, ok := strings.Cut(section, "| tool |")
	if !ok {
		t.Fatal("ARCHITECTURE.md has no table of tools")
	}

	direct, _ := requirements(t, "go.mod")
	sameModules(t, "go.mod", direct, reasons(shipped))
	var used []string
	for _, file := range []string{"contrib/tools.mod", "packaging/tools.mod"} {
		direct, tools := requirements(t, file)
		used = append(append(used, direct...), tools...)
	}
	sameModules(t, "contrib/tools.mod or packaging/tools.mod", used, reasons(tools))
}

// requirements are the modules that a file requires for packages of ours, and
// those that its tools are of.
func requirements(t *testing.T, file string) (direct, tools []string) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "go", "mod", "edit", "-json", file).Output()
	if err != nil {
		t.Fatalf("go mod edit -json %s: %v", file, err)
	}
	var mod struct {
		Require []struct {
			Path     string
			Indirect bool
		}
		Tool []struct{ Path string }
	}
	if err := json.Unmarshal(out, &mod); err != nil {
		t.Fatal(err)
	}
	for _, r := range mod.Require {
		if !r.Indirect {
			direct = append(direct, r.Path)
		}
		for _, tool := range mod.Tool {
			if strings.HasPrefix(tool.Path, r.Path+"/") {
				tools = append(tools, r.Path)
			}
		}
	}
	if len(direct)+len(tools) == 0 {
		t.Fatalf("%s requires nothing", file)
	}
	return direct, tools
}

// reasons are the modules in the first column of a table: "github.com/" is
// left away there, and "golang.org/" behind the first of several.
func reasons(table string) []string {
	var all []string
	for line := range strings.Lines(table) {
		cells := strings.Split(line, "|")
		if len(cells) != 4 || strings.HasPrefix(cells[1], "---") || strings.TrimSpace(cells[2]) == "for" || strings.TrimSpace(cells[2]) == "" {
			continue
		}
		for name := range strings.SplitSeq(cells[1], ",") {
			name = strings.TrimSpace(name)
			switch first, _, _ := strings.Cut(name, "/"); {
			case first == "x":
				name = "golang.org/" + name
			case !strings.Contains(first, "."):
				name = "github.com/" + name
			}
			all = append(all, name)
		}
	}
	return all
}

func sameModules(t *testing.T, file string, required, explained []string) {
	t.Helper()
	for _, m := range required {
		if !slices.Contains(explained, m) {
			t.Errorf("%s has %s, and ARCHITECTURE.md no reason for it: a dependency that nobody can explain is one too many", file, m)
		}
	}
	for _, m := range explained {
		if !slices.Contains(required, m) {
			t.Errorf("ARCHITECTURE.md has a reason for %s, which %s does not require", m, file)
		}
	}
}

// TestSecurityPage: the tests that SECURITY.md names are there, and the limits
// that it tells are the code's.
func TestSecurityPage(t *testing.T) {
	b, err := os.ReadFile("SECURITY.md")
	if err != nil {
		t.Fatal(err)
	}
	page := string(b)

	written := map[string]bool{}
	err = filepath.WalkDir(".", func(path string, _ fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		text, err := os.ReadFile(path)
		for _, m := range regexp.MustCompile(`(?m)^func (Test\w+)\(`).FindAllStringSubmatch(string(text), -1) {
			written[m[1]] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	named := regexp.MustCompile(`\bTest[A-Z]\w+`).FindAllString(page, -1)
	for _, name := range named {
		if !written[name] {
			t.Errorf("SECURITY.md names %s, which is no test: a promise that nothing holds is none", name)
		}
	}

	rows := regexp.MustCompile("(?m)^\\| .* \\| ([0-9,]+)( [A-Za-z]+)? \\| `([a-z/]+)\\.([A-Za-z.]+)` \\|$").FindAllStringSubmatch(page, -1)
	_, table, _ := strings.Cut(page, "| limit | default | in the code |\n|---|---|---|\n")
	table, _, _ = strings.Cut(table, "\n\n")
	if n := strings.Count(table, "\n") + 1; len(rows) != n || n < 20 || len(named) < 20 {
		t.Fatalf("SECURITY.md: %d limits are understood of %d, %d tests", len(rows), n, len(named))
	}
	defaults, err := daemon.Config{}.Effective()
	if err != nil {
		t.Fatal(err)
	}
	units := map[string]int64{
		"": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30,
		"s": int64(time.Second), "min": int64(time.Minute), "h": int64(time.Hour), "days": 24 * int64(time.Hour),
	}
	for _, row := range rows {
		said, err := strconv.ParseInt(strings.ReplaceAll(row[1], ",", ""), 10, 64)
		unit := units[strings.TrimSpace(row[2])]
		if err != nil || unit == 0 {
			t.Errorf("SECURITY.md: %s is no number", row[0])
			continue
		}
		var is int64
		if field, ok := strings.CutPrefix(row[4], "Config."); ok && row[3] == "daemon" {
			v := reflect.ValueOf(defaults)
			for part := range strings.SplitSeq(field, ".") {
				if v.Kind() == reflect.Struct {
					v = v.FieldByName(part)
				}
			}
			if !v.IsValid() || !v.CanInt() {
				t.Errorf("there is no daemon.Config.%s", field)
				continue
			}
			is = v.Int()
		} else if is, ok = numberOf(t, row[3], row[4]); !ok {
			t.Errorf("there is no number %s.%s", row[3], row[4])
			continue
		}
		if said*unit != is {
			t.Errorf("SECURITY.md says %s%s of %s.%s, which is %d", row[1], row[2], row[3], row[4], is)
		}
	}
}

// numberOf is a constant of a package, or the default of a field of its Config
// as it stands in the second place of cmp.Or.
func numberOf(t *testing.T, folder, name string) (n int64, ok bool) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(folder, "*.go"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no files in %s: %v", folder, err)
	}
	field, isField := strings.CutPrefix(name, "Config.")
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(f, func(node ast.Node) bool {
			switch node := node.(type) {
			case *ast.ValueSpec:
				for i, id := range node.Names {
					if !isField && id.Name == name && i < len(node.Values) {
						n, ok = evaluated(node.Values[i])
					}
				}
			case *ast.CallExpr:
				if !isField || len(node.Args) != 2 {
					return true
				}
				fun, isSel := node.Fun.(*ast.SelectorExpr)
				of, ofField := node.Args[0].(*ast.SelectorExpr)
				if isSel && ofField && fun.Sel.Name == "Or" && of.Sel.Name == field {
					n, ok = evaluated(node.Args[1])
				}
			}
			return true
		})
	}
	return n, ok
}

// evaluated is the value of a constant expression of numbers and durations.
func evaluated(e ast.Expr) (int64, bool) {
	switch e := e.(type) {
	case *ast.BasicLit:
		n, err := strconv.ParseInt(strings.ReplaceAll(e.Value, "_", ""), 0, 64)
		return n, err == nil
	case *ast.SelectorExpr:
		n, ok := map[string]time.Duration{
			"Millisecond": time.Millisecond, "Second": time.Second, "Minute": time.Minute, "Hour": time.Hour,
		}[e.Sel.Name]
		return int64(n), ok
	case *ast.CallExpr: // a conversion
		if len(e.Args) == 1 {
			return evaluated(e.Args[0])
		}
	case *ast.BinaryExpr:
		x, left := evaluated(e.X)
		y, right := evaluated(e.Y)
		switch e.Op {
		case token.MUL:
			return x * y, left && right
		case token.SHL:
			return x << y, left && right
		}
	}
	return 0, false
}
