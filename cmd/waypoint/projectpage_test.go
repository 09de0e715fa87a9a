package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/waypointd/waypoint/runner/operation"
)

// TestProjectPage: waypoint.toml(5) has the keys that the reader of the project
// file knows, of their types, and its examples are project files.
func TestProjectPage(t *testing.T) {
	p := readPage(t, "waypoint.toml.5")
	const app = "project = \"p\"\n[[app]]\nname = \"a\"\n"
	const hook = "command = [\"true\"]\n[[app.%s.hook]]\n"
	for _, c := range []struct {
		heading string
		before  []string // of the places where the keys below it may be
		rest    []string // what has to be there as well, if it is not the key itself
	}{
		{"The project", []string{""}, []string{`project = "p"`}},
		{"The table source", []string{"project = \"p\"\n[source]\n"}, nil},
		{"A table app", []string{"project = \"p\"\n[[app]]\n"}, []string{`name = "a"`}},
		{"The tables build, deploy and release of an app", []string{app + "[app.build]\n", app + "[app.deploy]\n", app + "[app.release]\n"},
			[]string{`command = ["true"]`}},
		{"A table hook of an operation", []string{app + "[app.build]\n" + fmt.Sprintf(hook, "build"),
			app + "[app.deploy]\n" + fmt.Sprintf(hook, "deploy"), app + "[app.release]\n" + fmt.Sprintf(hook, "release")},
			[]string{`when = "after"`, `command = ["true"]`}},
	} {
		names, by := p.keys(c.heading)
		var known []string
		for _, before := range c.before {
			here := knownKeys(t, before)
			known = append(known, here...)
			for _, k := range names {
				if !slices.Contains(here, k) {
					continue // output is a build's alone
				}
				var text strings.Builder
				text.WriteString(before + k + " = 1\n")
				for _, l := range c.rest {
					if !strings.HasPrefix(l, k+" ") && !(k == "script" && strings.HasPrefix(l, "command ")) {
						text.WriteString(l + "\n")
					}
				}
				said := tryProject(t, text.String())
				want := map[string]string{
					"string": "not a string in quotes", "array of strings": "not an array of strings", "table": "not a table",
					"table of strings": "not a table", "array of tables": "each one is a table of its own",
				}[strings.TrimSuffix(by[k].kind, ", required")]
				if want == "" || !strings.Contains(said, k+" is a number") || !strings.Contains(said, want) {
					t.Errorf("%s: the page calls %s a %s; a number there: %s", c.heading, k, by[k].kind, said)
				}
			}
		}
		slices.Sort(known)
		if known = slices.Compact(known); !slices.Equal(known, slices.Sorted(slices.Values(names))) {
			t.Errorf("%s: the page has the keys %v, the reader knows %v", c.heading, names, known)
		}
	}
	for _, text := range p.examples(t) {
		if said := tryProject(t, text); said != "" {
			t.Errorf("example of %s: %s\n%s", p.name, said, text)
		}
	}
}

// tryProject is what is said of a project file, "" where it is good.
func tryProject(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), operation.ProjectFile)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := operation.Load(path); err != nil {
		return err.Error()
	}
	return ""
}

// knownKeys are the keys that the reader lists where it is given none of them.
func knownKeys(t *testing.T, before string) []string {
	t.Helper()
	said := tryProject(t, before+"qqqqqqqqqqqqqqqqqqqq = 1\n")
	_, list, ok := strings.Cut(said, "known here: ")
	if !ok {
		t.Fatalf("an unknown key is answered with %q", said)
	}
	return strings.Split(list, ", ")
}
