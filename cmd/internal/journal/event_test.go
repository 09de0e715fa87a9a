package journal

import (
	"flag"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the catalog")

const (
	root        = "../../.."
	catalogFile = root + "/packaging/waypoint.catalog"
)

func TestCatalog(t *testing.T) {
	if *update {
		if err := os.WriteFile(catalogFile, []byte(Catalog()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	is, err := os.ReadFile(catalogFile)
	if err != nil {
		t.Fatal(err)
	}
	if string(is) != Catalog() {
		t.Error("packaging/waypoint.catalog is not what the table says: go test ./cmd/internal/journal -update")
	}
}

func TestEventsAreWhole(t *testing.T) {
	id := regexp.MustCompile(`^[0-9a-f]{32}$`)
	seen := map[string]bool{}
	for _, e := range Events {
		if !id.MatchString(e.ID) || seen[e.ID] || seen[e.Text] {
			t.Errorf("%q: its id or its text is another's as well, or the id is none", e.Text)
		}
		seen[e.ID], seen[e.Text] = true, true
		if e.Subject == "" || strings.Contains(e.Subject, "\n") || strings.TrimSpace(e.Body) == "" {
			t.Errorf("%q has no subject of one line, or no explanation", e.Text)
		}
		for line := range strings.Lines(e.Body) {
			if strings.HasPrefix(line, "--") || strings.HasPrefix(line, "#") {
				t.Errorf("%q: the catalog would read %q as its own", e.Text, line)
			}
		}
	}
}

// logCall is a call of a logger with a literal message.
type logCall struct {
	at   token.Position
	keys []string // of the attributes that can be seen at the call and of those its log has
}

// logCalls are all such calls of what ships, by message.
func logCalls(t *testing.T) map[string][]logCall {
	t.Helper()
	calls := map[string][]logCall{}
	files := token.NewFileSet()
	for _, dir := range []string{"cmd", "daemon", "mux", "runner", "statedir"} {
		err := filepath.WalkDir(filepath.Join(root, dir), func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.IsDir() || d.Name() == "testdata" {
				return err
			}
			names, err := filepath.Glob(filepath.Join(path, "*.go"))
			if err != nil {
				return err
			}
			var parsed []*ast.File
			for _, name := range names {
				if strings.HasSuffix(name, "_test.go") {
					continue
				}
				f, err := parser.ParseFile(files, name, nil, parser.SkipObjectResolution)
				if err != nil {
					return err
				}
				parsed = append(parsed, f)
			}
			own := logsOwn(parsed)
			for _, f := range parsed {
				for _, decl := range f.Decls {
					if fn, ok := decl.(*ast.FuncDecl); ok {
						inFunction(files, fn, own, calls)
					}
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return calls
}

// logsOwn are the keys that the log of an attempt has by itself: of the With
// in a literal's field "log".
func logsOwn(files []*ast.File) (keys []string) {
	for _, f := range files {
		ast.Inspect(f, func(n ast.Node) bool {
			if kv, ok := n.(*ast.KeyValueExpr); ok {
				if name, ok := kv.Key.(*ast.Ident); ok && name.Name == "log" {
					if call, ok := kv.Value.(*ast.CallExpr); ok && method(call) == "With" {
						keys = append(keys, keysOf(call.Args)...)
					}
				}
			}
			return true
		})
	}
	return keys
}

// inFunction finds the calls in a function. Attributes that come as a list
// are those that the function puts into lists.
func inFunction(files *token.FileSet, fn *ast.FuncDecl, own []string, calls map[string][]logCall) {
	var lists []string
	var found []*ast.CallExpr
	ast.Inspect(fn, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.CompositeLit:
			if a, ok := n.Type.(*ast.ArrayType); ok && textOf(a.Elt) == "any" {
				lists = append(lists, keysOf(n.Elts)...)
			}
		case *ast.CallExpr:
			switch m := method(n); m {
			case "append", "With", "because":
				if m == "because" {
					lists = append(lists, "error")
				}
				if len(n.Args) > 0 && m != "With" {
					lists = append(lists, keysOf(n.Args[1:])...)
				} else {
					lists = append(lists, keysOf(n.Args)...)
				}
			case "Debug", "Info", "Warn", "Error", "Log":
				found = append(found, n)
			}
		}
		return true
	})
	for _, call := range found {
		args := call.Args
		if method(call) == "Log" && len(args) > 2 {
			args = args[2:]
		}
		if len(args) == 0 {
			continue
		}
		lit, ok := args[0].(*ast.BasicLit)
		if !ok || lit.Kind != token.STRING {
			continue
		}
		message, err := strconv.Unquote(lit.Value)
		if err != nil {
			continue
		}
		c := logCall{at: files.Position(call.Pos()), keys: keysOf(args[1:])}
		switch on := textOf(call.Fun.(*ast.SelectorExpr).X); {
		case on == "a.log":
			c.keys = append(c.keys, own...)
		case on == "log", call.Ellipsis != token.NoPos:
			c.keys = append(c.keys, lists...)
		}
		calls[message] = append(calls[message], c)
	}
}

func textOf(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.Ident:
		return e.Name
	case *ast.SelectorExpr:
		return textOf(e.X) + "." + e.Sel.Name
	}
	return ""
}

func method(call *ast.CallExpr) string {
	switch f := call.Fun.(type) {
	case *ast.Ident:
		return f.Name
	case *ast.SelectorExpr:
		return f.Sel.Name
	}
	return ""
}

// keysOf are the keys among alternating keys and values.
func keysOf(args []ast.Expr) (keys []string) {
	for i := 0; i < len(args); i += 2 {
		if lit, ok := args[i].(*ast.BasicLit); ok && lit.Kind == token.STRING {
			if key, err := strconv.Unquote(lit.Value); err == nil {
				keys = append(keys, key)
			}
		}
	}
	return keys
}

// Each event is said somewhere, with every field that its explanation names.
func TestEventsAreLogged(t *testing.T) {
	calls := logCalls(t)
	if len(calls) < 50 {
		t.Fatalf("only %d messages were found", len(calls))
	}
	field := regexp.MustCompile(`@([^@\s]+)@`)
	for _, e := range Events {
		if len(calls[e.Text]) == 0 {
			t.Errorf("%q is logged nowhere", e.Text)
		}
		for _, c := range calls[e.Text] {
			for _, m := range field.FindAllStringSubmatch(e.Subject+e.Body, -1) {
				if !slices.ContainsFunc(c.keys, func(k string) bool { return "WAYPOINT_"+clean(k) == m[1] }) {
					t.Errorf("%q names %s, which it has not at %s", e.Text, m[1], c.at)
				}
			}
		}
	}
}

// The keys of a log are in one spelling: lower case, words joined by underscores.
func TestKeys(t *testing.T) {
	key := regexp.MustCompile(`^[a-z]+(_[a-z]+)*$`)
	other := map[string]string{"err": "error", "addr": "address", "expiry": "expires_at", "expires": "expires_at", "id": "what it is the id of"}
	for message, calls := range logCalls(t) {
		for _, c := range calls {
			for _, k := range c.keys {
				if !key.MatchString(k) || other[k] != "" {
					t.Errorf("%s: %q has the key %q, want %s", c.at, message, k, other[k])
				}
			}
		}
	}
}
