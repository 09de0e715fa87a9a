package operation

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/waypointd/waypoint/mux/wire"
)

// A project file may be of anybody's tree: no file takes more memory or time than
// its length allows, and what is no plain file is not read.
func TestLoadHostile(t *testing.T) {
	const many = 300_000
	deep := func(n int, open, inside, closed string) string {
		return strings.Repeat(open, n) + inside + strings.Repeat(closed, n)
	}
	strs := "a = \"\"\"\\\"\"\"\"\"\nb = '''\n'''''\n# [\n"
	for name, text := range map[string]string{
		"arrays":            "a = " + deep(many, "[", "", "]"),
		"arrays, not ended": "a = " + strings.Repeat("[", many),
		"inline tables":     "a = " + deep(many/4, "{a=", "1", "}"),
		"dotted key":        deep(many, "a.", "a = 1", ""),
		"dotted header":     "[" + deep(many, "a.", "a]", ""),
		"quoted, dotted":    deep(many/4, `"x".`, "a = 1", ""),
		"behind strings":    strs + "c = " + strings.Repeat("[", many),
	} {
		if _, err := parseProject("f.toml", []byte(text)); wire.KindOf(err) != wire.BadUsage || !strings.Contains(err.Error(), "nested more than 64 deep") {
			t.Errorf("%s: %v", name, err)
		}
	}
	project := "project = \"p\"\n[env]\n"
	for name, text := range map[string]string{
		"strings":        project + `A = "` + strings.Repeat("[.", 100) + "\"\nB = '''" + strings.Repeat("{.'\n\"", 100) + "''''\nC = '" + strings.Repeat(`[".`, 100) + "'\n",
		"comments":       project + "A = 'x' # " + strings.Repeat("[.", 100) + "\n#" + strings.Repeat("[", 100),
		"escaped quotes": project + `A = "\"` + strings.Repeat("[", 100) + "\"\nB = \"\"\"\\\"\"\"" + strings.Repeat("[", 100) + "\"\"\"\n",
		"a long array":   "project = \"p\"\n[source]\nignore = [" + strings.Repeat(`"a.b", `, 1000) + "]\n",
	} {
		if _, err := parseProject("f.toml", []byte(text)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}

	dir := t.TempDir()
	path := filepath.Join(dir, ProjectFile)
	for name, put := range map[string]func() error{
		"a pipe":      func() error { return syscall.Mkfifo(path, 0o600) },
		"a device":    func() error { return os.Symlink("/dev/zero", path) },
		"a directory": func() error { return os.Mkdir(path, 0o700) },
	} {
		if err := put(); err != nil {
			t.Fatal(err)
		}
		if _, err := Find(dir); wire.KindOf(err) != wire.BadUsage || !strings.Contains(err.Error(), "is no plain file") {
			t.Errorf("%s: %v", name, err)
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(path, make([]byte, maxProjectFile+1), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(path); wire.KindOf(err) != wire.TooLarge {
		t.Error(err)
	}
}
