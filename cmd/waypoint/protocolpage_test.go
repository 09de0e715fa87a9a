package main

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/waypointd/waypoint/mux/wire"
)

// protocol is what the sources of mux/wire declare.
type protocol struct {
	methods map[string][]string // by name: the types that the comment behind it names, request and reply
	types   map[string]ast.Expr // by name
	docs    map[string]string   // of the types
	values  map[string][]string // by type: its constants, where these are words
	consts  map[string]string   // by their names in Go: what all of those are
}

func readProtocol(t *testing.T) protocol {
	t.Helper()
	p := protocol{
		methods: map[string][]string{}, types: map[string]ast.Expr{}, docs: map[string]string{}, values: map[string][]string{}, consts: map[string]string{},
	}
	files, err := filepath.Glob(filepath.Join(root, "mux", "wire", "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	var decls []*ast.GenDecl
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range f.Decls {
			if g, ok := d.(*ast.GenDecl); ok {
				decls = append(decls, g)
			}
		}
	}
	for _, g := range decls {
		for _, s := range g.Specs {
			if ts, ok := s.(*ast.TypeSpec); ok {
				p.types[ts.Name.Name] = ts.Type
				p.docs[ts.Name.Name] = g.Doc.Text()
			}
		}
	}
	for _, g := range decls {
		for _, s := range g.Specs {
			vs, ok := s.(*ast.ValueSpec)
			if !ok || g.Tok != token.CONST || len(vs.Values) == 0 {
				continue
			}
			text, err := strconv.Unquote(litText(vs.Values[0]))
			if err != nil {
				continue // a number
			}
			name := vs.Names[0].Name
			p.consts[name] = text
			if strings.HasPrefix(name, "Method") {
				p.methods[text] = p.named(vs.Comment.Text())
			}
			if of, ok := vs.Type.(*ast.Ident); ok {
				p.values[of.Name] = append(p.values[of.Name], text)
			}
		}
	}
	if len(p.methods) < 20 || len(p.types) < 40 {
		t.Fatalf("only %d methods and %d types were found in mux/wire", len(p.methods), len(p.types))
	}
	return p
}

func litText(e ast.Expr) string {
	if lit, ok := e.(*ast.BasicLit); ok {
		return lit.Value
	}
	return ""
}

// named are the types of the protocol that a text names.
func (p protocol) named(text string) []string {
	var names []string
	for _, w := range strings.FieldsFunc(text, func(r rune) bool {
		return !('A' <= r && r <= 'Z' || 'a' <= r && r <= 'z')
	}) {
		if p.types[w] != nil && !slices.Contains(names, w) {
			names = append(names, w)
		}
	}
	return names
}

// access reads who may call what from the server's table.
func access(t *testing.T, p protocol) map[string]string {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), filepath.Join(root, "daemon", "api.go"), nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	who := map[string]string{}
	ast.Inspect(f, func(n ast.Node) bool {
		row, ok := n.(*ast.CompositeLit)
		if !ok || len(row.Elts) != 5 {
			return true
		}
		name, ok := row.Elts[0].(*ast.SelectorExpr)
		if !ok {
			return true
		}
		var roles []string
		ast.Inspect(row.Elts[1], func(n ast.Node) bool {
			if id, ok := n.(*ast.Ident); ok {
				roles = append(roles, strings.TrimSuffix(id.Name, "s"))
			}
			return true
		})
		who[p.consts[name.Sel.Name]] = strings.Join(roles, ", ")
		return true
	})
	if len(who) < 20 {
		t.Fatalf("only %d rows were found in daemon/api.go", len(who))
	}
	return who
}

// TestProtocolMethods: the page's table of methods is the one of the code.
func TestProtocolMethods(t *testing.T) {
	p, page := readProtocol(t), readPage(t, "waypoint-protocol.7")
	documented := map[string][]string{} // caller, request, reply
	for _, row := range page.rows("Method") {
		if len(row) != 4 {
			t.Fatalf("row %q has %d cells", row, len(row))
		}
		documented[row[0]] = row[1:]
	}
	who := access(t, p)
	for _, name := range slices.Sorted(maps.Keys(p.methods)) {
		row, ok := documented[name]
		if !ok {
			t.Errorf("method %s is missing from the page", name)
			continue
		}
		delete(documented, name)
		want := who[name]
		switch {
		case strings.HasPrefix(name, "agent."):
			want = "host"
		case want == "":
			want = "all"
		case want == "operator, runner":
			want = "both"
		}
		if row[0] != want {
			t.Errorf("%s: the page lets %q call it, the code %q", name, row[0], want)
		}
		if name == "hello" || name == "ping" {
			continue // of every table, said in the text
		}
		if got := p.named(row[1] + " " + row[2]); !reflect.DeepEqual(got, p.methods[name]) {
			t.Errorf("%s: the page has %v, the code %v", name, got, p.methods[name])
		}
	}
	for name := range documented {
		t.Errorf("the page has the method %s, which does not exist", name)
	}
}

// TestProtocolExample: the frames that the page shows are a ping and its
// answer; and its kinds of error have the exit codes of the code.
func TestProtocolExample(t *testing.T) {
	p := readPage(t, "waypoint-protocol.7")
	var stream []byte
	for _, b := range p.blocks() {
		raw, err := hex.DecodeString(strings.ReplaceAll(strings.TrimSpace(b), "\n", ""))
		if err == nil {
			stream = append(stream, raw...)
		}
	}
	r := wire.NewReader(bytes.NewReader(stream), wire.MaxBeforeHello)
	for _, want := range []struct {
		kind wire.FrameType
		body string
	}{{wire.FrameCall, `{"m":"` + wire.MethodPing + `"}`}, {wire.FrameMsg, "{}"}, {wire.FrameStatus, "{}"}} {
		kind, body, err := r.Next()
		if err != nil || kind != want.kind || string(body) != want.body {
			t.Errorf("the example has %s %s (%v), want %s %s", kind, body, err, want.kind, want.body)
		}
	}
	kinds := readProtocol(t).values["Kind"]
	for _, row := range p.rows("Kind") {
		if code := fmt.Sprint(kindCode(wire.Kind(row[0]))); code != row[1] {
			t.Errorf("kind %s: exit code %s, the page says %s", row[0], code, row[1])
		}
		i := slices.Index(kinds, row[0])
		if i < 0 {
			t.Errorf("the page has the kind %s, which does not exist", row[0])
			continue
		}
		kinds = slices.Delete(kinds, i, i+1)
	}
	if len(kinds) > 0 {
		t.Errorf("the page lacks the kinds %v", kinds)
	}
}

// TestProtocolFrames: the page's table of frames has their numbers and their
// limits, and it describes the version that is spoken.
func TestProtocolFrames(t *testing.T) {
	p := readPage(t, "waypoint-protocol.7")
	rows := p.rows("Type")
	if len(rows) != int(wire.FrameStatus) {
		t.Fatalf("the page has %d types of frame, the code %d", len(rows), wire.FrameStatus)
	}
	for i, row := range rows {
		kind := wire.FrameType(i + 1)
		if row[0] != kind.String() || row[1] != strconv.Itoa(i+1) {
			t.Errorf("frame %d is %s, the page has %s %s", kind, kind, row[0], row[1])
		}
		limit, ok := map[string]int{"0": 0, "16 KiB + 17": 16<<10 + 17, "64 KiB": 64 << 10, "1 MiB": 1 << 20}[row[2]]
		_, within := wire.AppendFrame(nil, kind, make([]byte, limit))
		_, over := wire.AppendFrame(nil, kind, make([]byte, limit+1))
		if !ok || within != nil || over == nil {
			t.Errorf("%s: %q is not the limit (%v, %v)", kind, row[2], within, over)
		}
	}
	if said := fmt.Sprintf("This page describes version %d, the only one.", wire.VersionMax); wire.VersionMin != wire.VersionMax || !slices.Contains(p.lines, said) {
		t.Errorf("the versions are %d to %d, and the page does not say so", wire.VersionMin, wire.VersionMax)
	}
}

// TestManualMessages: what the page says of the messages' fields is made
// from their declarations. make man writes it anew.
func TestManualMessages(t *testing.T) {
	const begin, end = ".\\\" What follows is made from mux/wire.\n", ".\\\" What precedes is made from mux/wire.\n"
	path := manPath("waypoint-protocol.7")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(text), begin)
	was, after, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatal("the page has no place for the messages")
	}
	want := readProtocol(t).messages(t)
	if was == want {
		return
	}
	if *updateManual {
		if err := os.WriteFile(path, []byte(before+begin+want+end+after), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	t.Errorf("the messages have changed; make man writes the page anew. They are:\n%s", want)
}

// messages describes each type that a session begins with or a method names,
// and those that these are made of.
func (p protocol) messages(t *testing.T) string {
	t.Helper()
	todo := []string{"Hello", "Challenge", "Proof", "Welcome"}
	for _, name := range slices.Sorted(maps.Keys(p.methods)) {
		todo = append(todo, p.methods[name]...)
	}
	todo = append(todo, "Claims")
	var b strings.Builder
	seen := map[string]bool{}
	for len(todo) > 0 {
		name := todo[0]
		todo = todo[1:]
		if seen[name] || name == "Duration" {
			continue
		}
		seen[name] = true
		fmt.Fprintf(&b, ".Ss %s\n", name)
		for sentence := range strings.SplitSeq(roff(p.docs[name]), ". ") {
			for _, l := range wrap(strings.TrimSuffix(sentence, ".")+".", 78) {
				b.WriteString(l + "\n")
			}
		}
		st, ok := p.types[name].(*ast.StructType)
		if !ok {
			if len(p.values[name]) == 0 {
				t.Fatalf("type %s is neither a message nor a list of words", name)
			}
			b.WriteString(".Pp\n")
			for i, v := range p.values[name] {
				b.WriteString(".Ql " + v)
				if i < len(p.values[name])-1 {
					b.WriteString(" ,")
				}
				b.WriteString("\n")
			}
			continue
		}
		fields, of := p.fieldsOf(t, st)
		if len(fields) == 0 {
			continue
		}
		b.WriteString(".Pp\n.Bl -tag -width Ds -compact\n" + strings.Join(fields, "") + ".El\n")
		todo = append(of, todo...)
	}
	return b.String()
}

// fieldsOf describes the fields of a message, and names the types they are of.
func (p protocol) fieldsOf(t *testing.T, st *ast.StructType) (items, types []string) {
	t.Helper()
	for _, f := range st.Fields.List {
		if len(f.Names) == 0 { // the fields of another are its own
			inner, of := p.fieldsOf(t, p.types[f.Type.(*ast.Ident).Name].(*ast.StructType))
			items, types = append(items, inner...), append(types, of...)
			continue
		}
		tag := reflect.StructTag(strings.Trim(f.Tag.Value, "`")).Get("json")
		key, options, _ := strings.Cut(tag, ",")
		if key == "-" {
			continue
		}
		kind, of := p.kind(t, f.Type)
		if of != "" {
			types = append(types, of)
		}
		if strings.HasPrefix(options, "omit") {
			kind += ", optional"
		}
		var item strings.Builder
		item.WriteString(".It Ic " + key + " Pq " + kind + "\n")
		if said := strings.TrimSpace(f.Doc.Text() + " " + f.Comment.Text()); said != "" {
			for _, l := range wrap(roff(said), 78) {
				item.WriteString(l + "\n")
			}
		}
		items = append(items, item.String())
	}
	return items, types
}

// kind names a field's type as JSON has it; of is the message or list of words
// that it is made of.
func (p protocol) kind(t *testing.T, e ast.Expr) (kind, of string) {
	t.Helper()
	switch e := e.(type) {
	case *ast.StarExpr:
		return p.kind(t, e.X)
	case *ast.ArrayType:
		if id, ok := e.Elt.(*ast.Ident); ok && id.Name == "byte" {
			return "base64", ""
		}
		kind, of = p.kind(t, e.Elt)
		return "array of " + kind, of
	case *ast.MapType:
		kind, of = p.kind(t, e.Value)
		return "object of " + kind, of
	case *ast.SelectorExpr:
		if e.Sel.Name == "Time" {
			return "time", ""
		}
	case *ast.Ident:
		switch e.Name {
		case "string":
			return "string", ""
		case "bool":
			return "boolean", ""
		case "int", "int64":
			return "integer", ""
		case "float64":
			return "number", ""
		case "Duration":
			return "duration", ""
		}
		if p.types[e.Name] != nil {
			return e.Name, e.Name
		}
	}
	t.Fatalf("what %T is on the wire is not known here", e)
	return "", ""
}

// roff makes plain text fit for a line of a page.
func roff(s string) string {
	s = strings.NewReplacer("\\", "\\e", "…", "\\&...", "->", "\\(->", "\n", " ").Replace(s)
	return strings.Join(strings.Fields(s), " ")
}

// wrap breaks a text into lines, none of which looks like a request.
func wrap(s string, width int) []string {
	var lines []string
	line := ""
	for w := range strings.FieldsSeq(s) {
		if line != "" && len(line)+1+len(w) > width {
			lines, line = append(lines, line), ""
		}
		switch {
		case line != "":
			line += " " + w
		case strings.ContainsAny(w[:1], ".'"):
			line = "\\&" + w
		default:
			line = w
		}
	}
	return append(lines, line)
}
