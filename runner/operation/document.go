package operation

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/BurntSushi/toml"

	"github.com/waypointd/waypoint/mux/wire"
)

// document is a TOML file being read, with what is wrong with it.
type document struct {
	name  string
	lines positions
	wrong []fault
}

type fault struct {
	line    int
	text    string
	unknown bool // a key that there is not
}

// table is one of a document's tables. Reading a key makes it known; done
// complains about the others.
type table struct {
	d      *document
	path   string // as in positions; "" is the document's own
	values map[string]any
	known  []string
}

func parseDocument(name string, data []byte) (*document, *table, error) {
	values := map[string]any{}
	d := &document{name: name}
	if line := tooDeep(string(data)); line > 0 {
		d.wrong = append(d.wrong, fault{line: line, text: fmt.Sprintf("nested more than %d deep", maxDepth)})
		return nil, nil, d.first()
	}
	if _, err := toml.Decode(string(data), &values); err != nil {
		line, text := 0, err.Error()
		if pe, ok := errors.AsType[toml.ParseError](err); ok {
			line, text = pe.Position.Line, pe.Message
		}
		d.wrong = append(d.wrong, fault{line: line, text: strings.TrimPrefix(text, "toml: ")})
		return nil, nil, d.first()
	}
	d.lines = scanPositions(string(data))
	return d, &table{d: d, values: values}, nil
}

// errorf notes a fault at a path ("" has no line of its own).
func (d *document) errorf(path, format string, args ...any) {
	d.wrong = append(d.wrong, fault{line: d.lines[path], text: fmt.Sprintf(format, args...)})
}

// first is the fault to speak of, nil where there is none: the earliest unknown
// key, because a misspelt one is also why another is missing, else the one on
// the earliest line.
func (d *document) first() error {
	if len(d.wrong) == 0 {
		return nil
	}
	f := slices.MinFunc(d.wrong, func(a, b fault) int {
		if a.unknown != b.unknown {
			if a.unknown {
				return -1
			}
			return 1
		}
		return cmp.Compare(a.line, b.line)
	})
	at := d.name
	if f.line > 0 {
		at = fmt.Sprintf("%s:%d", d.name, f.line)
	}
	return wire.Errorf(wire.BadUsage, "read project file: %s: %s", at, f.text)
}

func (t *table) at(key string) string {
	switch {
	case key == "":
		return t.path
	case t.path == "":
		return key
	}
	return t.path + "." + key
}

// errorf notes a fault of a key, or ("") of the table; a key that is not
// there has the table's line.
func (t *table) errorf(key, format string, args ...any) {
	if _, ok := t.values[key]; !ok {
		key = ""
	}
	t.d.errorf(t.at(key), format, args...)
}

func (t *table) has(key string) bool {
	_, ok := t.values[key]
	return ok
}

func (t *table) keys() []string { return slices.Sorted(maps.Keys(t.values)) }

// get makes a key known and returns its value, if it has one.
func (t *table) get(key string) (any, bool) {
	t.known = append(t.known, key)
	v, ok := t.values[key]
	return v, ok
}

func (t *table) text(key string) string {
	v, ok := t.get(key)
	if !ok {
		return ""
	}
	s, ok := v.(string)
	if !ok {
		t.errorf(key, "%s is a %s, not a string in quotes", key, kindOf(v))
	}
	return s
}

func (t *table) texts(key string) []string {
	v, ok := t.get(key)
	if !ok {
		return nil
	}
	list, ok := v.([]any)
	if !ok {
		t.errorf(key, `%s is a %s, not an array of strings ["…", "…"]`, key, kindOf(v))
		return nil
	}
	texts := make([]string, 0, len(list))
	for i, e := range list {
		s, ok := e.(string)
		if !ok {
			t.errorf(key, "element %d of %s is a %s, not a string in quotes", i+1, key, kindOf(e))
		}
		texts = append(texts, s)
	}
	return texts
}

// table is nil where the key is not there or no table.
func (t *table) table(key string) *table {
	v, ok := t.get(key)
	if !ok {
		return nil
	}
	m, ok := v.(map[string]any)
	if !ok {
		t.errorf(key, "%s is a %s, not a table [%s]", key, kindOf(v), key)
		return nil
	}
	return &table{d: t.d, path: t.at(key), values: m}
}

// tables reads an array of tables.
func (t *table) tables(key string) []*table {
	v, ok := t.get(key)
	if !ok {
		return nil
	}
	var list []map[string]any
	switch v := v.(type) {
	case []map[string]any:
		list = v
	case []any:
		for _, e := range v {
			m, ok := e.(map[string]any)
			if !ok {
				t.errorf(key, "an element of %s is a %s, not a table", key, kindOf(e))
				continue
			}
			list = append(list, m)
		}
	default:
		t.errorf(key, "%s is a %s; each one is a table of its own: [[%s]]", key, kindOf(v), t.at(key))
	}
	tables := make([]*table, len(list))
	for i, m := range list {
		tables[i] = &table{d: t.d, path: fmt.Sprintf("%s[%d]", t.at(key), i), values: m}
	}
	return tables
}

// later names keys that a version to come will know.
func (t *table) later(keys ...string) {
	for _, k := range keys {
		if t.has(k) {
			t.known = append(t.known, k)
			t.errorf(k, "%s is not available in this version", k)
		}
	}
}

// done complains about every key that nobody has read.
func (t *table) done() {
	for _, k := range t.keys() {
		if slices.Contains(t.known, k) {
			continue
		}
		if near := nearest(k, t.known); near != "" {
			t.errorf(k, "unknown key %q; the nearest known one is %q", k, near)
		} else {
			known := slices.Sorted(slices.Values(t.known))
			t.errorf(k, "unknown key %q; known here: %s", k, strings.Join(slices.Compact(known), ", "))
		}
		t.d.wrong[len(t.d.wrong)-1].unknown = true
	}
}

// kindOf names a TOML value's type as people do.
func kindOf(v any) string {
	switch v.(type) {
	case string:
		return "string"
	case int64, float64:
		return "number"
	case bool:
		return "boolean"
	case map[string]any:
		return "table"
	case []any, []map[string]any:
		return "list"
	}
	return "date"
}
