// Package config reads the configuration files of the server and the runner:
// TOML whose every key must be known. A mistake is answered with the file,
// the line and, for an unknown key, the nearest one that exists, so that a
// misspelt limit is never silently no limit.
package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"reflect"
	"strings"

	"github.com/BurntSushi/toml"

	"github.com/waypointd/waypoint/mux/wire"
)

// Load reads the file at path into the struct that into points to. Errors are
// BadUsage but for a file that may not be read (Denied) or is not there
// (fs.ErrNotExist).
func Load(path string, into any) error {
	text, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrPermission):
		return wire.Errorf(wire.Denied, "read configuration: %v", err)
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("read configuration: %w", err)
	case err != nil:
		return wire.Errorf(wire.BadUsage, "read configuration: %v", err)
	}
	return Parse(path, string(text), into)
}

// Parse is Load of a text; path is only named in errors.
func Parse(path, text string, into any) error {
	values := map[string]any{}
	md, err := toml.Decode(text, &values)
	if err == nil {
		if err := checkKinds(path, text, values, into); err != nil {
			return err
		}
		md, err = toml.Decode(text, into)
	}
	if err != nil {
		if pe, ok := errors.AsType[toml.ParseError](err); ok {
			what := pe.Message
			if what == "" {
				what = strings.TrimPrefix(pe.Error(), "toml: ")
			}
			if pe.LastKey != "" {
				what = pe.LastKey + ": " + what
			}
			return wire.Errorf(wire.BadUsage, "read configuration: %s:%d: %s", path, max(pe.Position.Line, 1), what)
		}
		return wire.Errorf(wire.BadUsage, "read configuration: %s: %s", path, strings.TrimPrefix(err.Error(), "toml: "))
	}
	undecoded := md.Undecoded()
	if len(undecoded) == 0 {
		return nil
	}
	key := undecoded[0]
	e := wire.Errorf(wire.BadUsage, "read configuration: %s:%d: unknown key %q", path, line(text, key), key.String())
	if near := nearest(key.String(), Keys(into)); near != "" {
		return e.WithHint("the nearest known key is %q", near)
	}
	return e.WithHint("known keys are: %s", strings.Join(Keys(into), ", "))
}

// Keys are the keys a file for this struct may have, in its order; those of a
// table in it are dotted.
func Keys(of any) []string { return keys(reflect.TypeOf(of), "") }

func keys(t reflect.Type, prefix string) []string {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	var names []string
	for f := range t.Fields() {
		name := keyName(f)
		if name == "" {
			continue
		}
		names = append(names, prefix+name)
		if f.Type.Kind() == reflect.Struct {
			names = append(names, keys(f.Type, prefix+name+".")...)
		}
	}
	return names
}

// line finds where a key is written: the line that assigns its last part
// under the table of the others, 1 where that cannot be told.
func line(text string, key toml.Key) int {
	name, table := key[len(key)-1], strings.Join(key[:len(key)-1], ".")
	current, n := "", 0
	for l := range strings.Lines(text) {
		n++
		l = strings.TrimSpace(l)
		if strings.HasPrefix(l, "[") {
			current = strings.Trim(strings.SplitN(l, "#", 2)[0], "[] \t")
			if current == key.String() {
				return n
			}
			continue
		}
		left, _, assigned := strings.Cut(l, "=")
		left = strings.Trim(strings.TrimSpace(left), `"'`)
		if assigned && (current == table && left == name || left == key.String()) {
			return n
		}
	}
	return 1
}

// nearest is the name that takes the fewest edits to become key, "" where
// none takes less than half of its letters.
func nearest(key string, names []string) string {
	best, least := "", len(key)/2+1
	for _, name := range names {
		if d := distance(key, name); d < least {
			best, least = name, d
		}
	}
	return best
}

// distance is how many letters must be put in, taken out or changed to make b
// of a.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			diagonal, row[j+1] = row[j+1], min(row[j+1]+1, row[j]+1, diagonal+cost)
		}
	}
	return row[len(b)]
}
