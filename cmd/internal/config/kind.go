package config

import (
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/BurntSushi/toml"

	"github.com/waypointd/waypoint/mux/wire"
)

// checkKinds compares the values of a file with the fields of a struct, and with their
// ranges. The decoder does the first too, but speaks of Go's types, and takes what is no table
// for an empty one.
func checkKinds(path, text string, values map[string]any, into any) error {
	return checkTable(path, text, nil, values, reflect.TypeOf(into).Elem())
}

// checkTable is checkKinds for one table of the file, whose own key is table.
func checkTable(path, text string, table toml.Key, values map[string]any, t reflect.Type) error {
	for f := range t.Fields() {
		name := keyName(f)
		v, ok := values[name]
		if !ok || name == "" {
			continue
		}
		key := append(slices.Clone(table), name)
		if want := wanted(f.Type, v); want != "" {
			return wire.Errorf(wire.BadUsage, "read configuration: %s:%d: %s is %s, not %s",
				path, line(text, key), key, kindOf(v), want)
		}
		if err := checkRange(path, text, key, v, f); err != nil {
			return err
		}
		if f.Type.Kind() != reflect.Struct {
			continue
		}
		if err := checkTable(path, text, key, v.(map[string]any), f.Type); err != nil {
			return err
		}
	}
	return nil
}

// keyName is a field's key in a file, "" where it has none.
func keyName(f reflect.StructField) string {
	name, _, _ := strings.Cut(f.Tag.Get("toml"), ",")
	if name == "-" {
		return ""
	}
	return name
}

// wanted names what a field takes, "" where v is that.
func wanted(t reflect.Type, v any) string {
	if t.Kind() == reflect.Pointer { // a value that may be left open
		t = t.Elem()
	}
	fits, want := true, ""
	switch t.Kind() {
	case reflect.String:
		_, fits = v.(string)
		want = "a string in quotes"
	case reflect.Int:
		_, fits = v.(int64)
		want = "a whole number"
	case reflect.Int64:
		if t.PkgPath() != "" { // a duration
			_, fits = v.(string)
			want = `a duration in quotes, like "90s"`
			break
		}
		_, fits = v.(int64)
		want = "a whole number"
	case reflect.Bool:
		_, fits = v.(bool)
		want = "true or false"
	case reflect.Slice:
		var list []any
		list, fits = v.([]any)
		for _, e := range list {
			fits = fits && wanted(t.Elem(), e) == ""
		}
		want = `a list of strings ["...", "..."]`
	case reflect.Map:
		var table map[string]any
		table, fits = v.(map[string]any)
		for _, e := range table {
			fits = fits && wanted(t.Elem(), e) == ""
		}
		want = `a table of strings { k = "v" }`
	case reflect.Struct:
		_, fits = v.(map[string]any)
		want = "a table"
	}
	if fits {
		return ""
	}
	return want
}

// kindOf names a value's type as people do.
func kindOf(v any) string {
	switch v := v.(type) {
	case string:
		return fmt.Sprintf("the string %q", v)
	case int64, float64:
		return fmt.Sprintf("the number %v", v)
	case bool:
		return fmt.Sprintf("%v", v)
	case map[string]any:
		return "a table"
	case []any, []map[string]any:
		return "a list"
	}
	return "a date"
}
