package daemon

import (
	"go/ast"
	"go/parser"
	"go/token"
	"go/types"
	"io/fs"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// secretNames are what a value is called that is a secret, or a text that may be one.
var secretNames = regexp.MustCompile(`(?i)^(\w*(secret|password|passphrase)|token|tokentext|text|grant|signature|nonce|proof|privatekey)$`)

// comparedSecrets are comparisons of such values that stop at the first byte that
// differs, each with the reason why that tells nobody anything.
var comparedSecrets = map[string]string{
	"arrival.go: t.text == rec.Grant":          "text is kept of what the server's own key has signed: a guess does not come so far",
	"arrival.go: stored == r.Grant":            "stored is such a text, see above",
	"decision.go: r.Grant == outstanding.text": "the server's own, read twice",
	"store/list.go: text == countBlocked":      "a statement of SQL",
}

// TestSecretsAreNotCompared: how long a comparison takes tells how much of a guess was
// right, so what a peer shows is verified as a signature and compared with nothing. It
// is for the ends that peers show something to; an agent compares its own tokens.
func TestSecretsAreNotCompared(t *testing.T) {
	used := map[string]bool{}
	fset, files := token.NewFileSet(), 0
	for _, folder := range []string{".", "../mux"} {
		err := filepath.WalkDir(folder, func(path string, _ fs.DirEntry, err error) error {
			if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			file, err := parser.ParseFile(fset, path, nil, parser.SkipObjectResolution)
			if err != nil {
				return err
			}
			files++
			check := func(n ast.Expr, operands ...ast.Expr) {
				secret := ""
				for _, e := range operands {
					switch e := e.(type) {
					case *ast.BasicLit:
						return // with what stands in the source
					case *ast.Ident:
						if e.Name == "nil" {
							return
						}
						if secretNames.MatchString(e.Name) {
							secret = e.Name
						}
					case *ast.SelectorExpr:
						if secretNames.MatchString(e.Sel.Name) {
							secret = e.Sel.Name
						}
					}
				}
				if secret == "" {
					return
				}
				key := path + ": " + types.ExprString(n)
				if _, ok := comparedSecrets[key]; ok {
					used[key] = true
					return
				}
				t.Errorf("%s: %s is compared byte by byte: verify it as a signature, compare it with crypto/subtle, or give a reason for %q in comparedSecrets", fset.Position(n.Pos()), secret, key)
			}
			ast.Inspect(file, func(n ast.Node) bool {
				switch n := n.(type) {
				case *ast.BinaryExpr:
					if n.Op == token.EQL || n.Op == token.NEQ {
						check(n, n.X, n.Y)
					}
				case *ast.CallExpr:
					fun, ok := n.Fun.(*ast.SelectorExpr)
					if !ok || len(n.Args) != 2 {
						break
					}
					switch of, _ := fun.X.(*ast.Ident); {
					case of == nil:
					case of.Name == "bytes" || of.Name == "strings" || of.Name == "slices" || of.Name == "reflect":
						switch fun.Sel.Name {
						case "Equal", "EqualFold", "Compare", "DeepEqual", "Contains", "Index":
							check(n, n.Args...)
						}
					}
				}
				return true
			})
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if files < 50 {
		t.Fatalf("only %d files were found", files)
	}
	for name := range comparedSecrets {
		if !used[name] {
			t.Errorf("the exception for %s is not needed any more: take it out", name)
		}
	}
}
