package main

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/BurntSushi/toml"
	"github.com/alecthomas/kong"

	"github.com/waypointd/waypoint/cmd/internal/config"
	"github.com/waypointd/waypoint/daemon"
	"github.com/waypointd/waypoint/mux/wire"
)

func manPath(name string) string { return filepath.Join(root, "man", name) }

// page is the source of a manual page, by lines.
type page struct {
	name  string
	lines []string
}

func readPage(t *testing.T, name string) page {
	t.Helper()
	text, err := os.ReadFile(manPath(name))
	if err != nil {
		t.Fatal(err)
	}
	return page{name, strings.Split(string(text), "\n")}
}

// plain is a line without its roff.
func plain(s string) string {
	return strings.NewReplacer(`\(dq`, `"`, `\&`, "", `\e`, `\`, `\-`, "-").Replace(s)
}

// rows are the rows of the table whose first column is called name.
func (p page) rows(name string) [][]string {
	var rows [][]string
	for i, l := range p.lines {
		if !strings.HasPrefix(l, ".It Sy "+name+" Ta ") {
			continue
		}
		for _, l := range p.lines[i+1:] {
			text, ok := strings.CutPrefix(l, ".It ")
			if !ok {
				break
			}
			rows = append(rows, strings.Split(plain(text), " Ta "))
		}
	}
	return rows
}

// documented is a key as a page has it.
type documented struct {
	kind                       string // in parentheses
	value, flag, env, reloaded string // the inner list
	ranged                     string // likewise
	text                       []string
}

var keyLine = regexp.MustCompile(`^\.It Ic (\S+) Pq (.*)$`)

// keys are the keys below a heading, "" for all, in the page's order.
func (p page) keys(heading string) (names []string, by map[string]*documented) {
	by = map[string]*documented{}
	var key *documented
	under, item := heading == "", ""
	for _, l := range p.lines {
		if s, ok := strings.CutPrefix(l, ".Ss "); ok {
			under, key = heading == "" || s == heading, nil
		}
		if strings.HasPrefix(l, ".Sh ") {
			under, key = heading == "" && l == ".Sh KEYS", nil
		}
		if !under {
			continue
		}
		if m := keyLine.FindStringSubmatch(l); m != nil {
			key, item = &documented{kind: m[2]}, ""
			names, by[m[1]] = append(names, m[1]), key
			continue
		}
		if key == nil {
			continue
		}
		name, is := strings.CutPrefix(l, ".It ")
		switch {
		case l == ".El":
			item = ""
		case is:
			item = name
		case item == "default" && key.value == "":
			key.value = plain(strings.TrimSuffix(strings.TrimPrefix(l, ".Ql "), " :"))
		case item == "flag":
			key.flag = strings.TrimPrefix(l, ".Fl -")
		case item == "environment":
			key.env = strings.TrimPrefix(l, ".Ev ")
		case item == "range":
			key.ranged = l
		case item == "reload":
			key.reloaded = l
		case item == "":
			key.text = append(key.text, l)
		}
	}
	return names, by
}

// blocks are the page's literal blocks.
func (p page) blocks() []string {
	var blocks []string
	var b *strings.Builder
	for _, l := range p.lines {
		switch {
		case strings.HasPrefix(l, ".Bd -literal"):
			b = new(strings.Builder)
		case l == ".Ed" && b != nil:
			blocks, b = append(blocks, b.String()), nil
		case b != nil:
			b.WriteString(plain(l) + "\n")
		}
	}
	return blocks
}

// examples are the blocks that are no commands.
func (p page) examples(t *testing.T) []string {
	t.Helper()
	files := slices.DeleteFunc(p.blocks(), func(s string) bool { return strings.HasPrefix(s, "$ ") || strings.HasPrefix(s, "# ") })
	if len(files) == 0 {
		t.Fatalf("%s has no example", p.name)
	}
	return files
}

// settings are the blocks that set a key.
func (p page) settings(key string) []string {
	return slices.DeleteFunc(p.blocks(), func(s string) bool { return !strings.Contains(s, key+" = ") })
}

// configFile is one of the two configurations: its page, the file in the
// packages, what it is read into, and the command with its flags.
type configFile struct {
	page, file string
	empty      func() any
	command    string
}

var configFiles = []configFile{
	{"waypoint-server.toml.5", "server.toml", func() any { return new(serverConfig) }, "run"},
	{"waypoint-runner.toml.5", "runner.toml", func() any { return new(runnerConfig) }, "agent"},
}

func (c configFile) packaged(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, "packaging", "etc", c.file))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// commentedOut is a line of a packaged file that is to be a setting: prose has
// a space behind its "#".
var commentedOut = regexp.MustCompile(`(?m)^#([a-z_]+ = |\[)`)

// uncommented is the packaged file with every key set.
func (c configFile) uncommented(t *testing.T) string {
	return commentedOut.ReplaceAllString(c.packaged(t), "$1")
}

// leaves are the keys that have a value, dotted where they are a table's.
func leaves(of any) []string {
	all := config.Keys(of)
	return slices.DeleteFunc(slices.Clone(all), func(k string) bool {
		return slices.ContainsFunc(all, func(other string) bool { return strings.HasPrefix(other, k+".") })
	})
}

// value is the TOML of a key in a parsed file.
func value(t *testing.T, values map[string]any, key string) string {
	t.Helper()
	var v any = values
	for part := range strings.SplitSeq(key, ".") {
		table, _ := v.(map[string]any)
		if v = table[part]; v == nil {
			return ""
		}
	}
	switch v := v.(type) {
	case map[string]any:
		if len(v) == 0 {
			return "{}"
		}
	case []any:
		if len(v) == 0 {
			return "[]"
		}
	case string:
		return `"` + v + `"`
	case int64, bool:
		return fmt.Sprint(v)
	}
	t.Fatalf("%s has the default %v, which no page can show", key, v)
	return ""
}

// TestConfigPages: page, packaged file and code have the same keys, of the same
// types, with the same defaults; and each example is one.
func TestConfigPages(t *testing.T) {
	for _, c := range configFiles {
		t.Run(c.file, func(t *testing.T) {
			p := readPage(t, c.page)
			names, by := p.keys("")
			want := leaves(c.empty())
			for _, k := range want {
				if by[k] == nil {
					t.Errorf("%s does not document %s", c.page, k)
				}
			}
			for _, k := range names {
				if !slices.Contains(want, k) {
					t.Errorf("%s documents %s, which is no key", c.page, k)
				}
			}
			values := map[string]any{}
			if _, err := toml.Decode(c.uncommented(t), &values); err != nil {
				t.Fatal(err)
			}
			for _, k := range names {
				d := by[k]
				if got := value(t, values, k); got != d.value {
					t.Errorf("%s: the default is %s in %s and %s in %s", k, d.value, c.page, got, c.file)
				}
				if got := kindOfKey(t, c.empty(), k); !strings.HasPrefix(d.kind, got) {
					t.Errorf("%s is a %s, and %s says %s", k, got, c.page, d.kind)
				}
				if got := reloadOfKey(t, c.empty(), k); c.file == "server.toml" && got != d.reloaded {
					t.Errorf("%s: does a reload take it up? By the code %s, by %s %q", k, got, c.page, d.reloaded)
				}
				least, most, bounded := config.Range(fieldOfKey(t, c.empty(), k))
				if got := least + " to " + most; bounded && got != d.ranged || !bounded && d.ranged != "" {
					t.Errorf("%s: the range is %s by the code, and by %s %q", k, got, c.page, d.ranged)
				}
				if len(strings.Join(d.text, "")) < 20 {
					t.Errorf("%s says next to nothing of %s", c.page, k)
				}
			}
			examples := p.examples(t)
			if c.file == "runner.toml" { // the guide has one, too
				examples = append(examples, readPage(t, "waypoint.7").settings("server_addr")...)
			}
			for _, text := range examples {
				if err := config.Parse(c.page, text, c.empty()); err != nil {
					t.Errorf("example of %s: %v\n%s", c.page, err, text)
				}
			}
		})
	}
}

// reloadOfKey is yes where the running program takes a new value up.
func reloadOfKey(t *testing.T, of any, key string) string {
	if f := fieldOfKey(t, of, key); f.Tag.Get("reload") == "restart" {
		return "no"
	}
	return "yes"
}

// kindOfKey is the type of a key as pages call it.
func kindOfKey(t *testing.T, of any, key string) string {
	t.Helper()
	at := fieldOfKey(t, of, key).Type
	if at.Kind() == reflect.Pointer {
		at = at.Elem()
	}
	switch {
	case at == reflect.TypeFor[wire.Duration]():
		return "duration"
	case at.Kind() == reflect.Int, at.Kind() == reflect.Int64:
		return "integer"
	case at.Kind() == reflect.Bool:
		return "boolean"
	case at.Kind() == reflect.Slice:
		return "array of strings"
	case at.Kind() == reflect.Map:
		return "table of strings"
	case at.Kind() == reflect.String:
		return "string"
	}
	t.Fatalf("pages have no name for the type %s of %s", at, key)
	return ""
}

// fieldOfKey is the field that a dotted key is read into.
func fieldOfKey(t *testing.T, of any, key string) reflect.StructField {
	t.Helper()
	at, found := reflect.TypeOf(of).Elem(), reflect.StructField{}
	for part := range strings.SplitSeq(key, ".") {
		found = reflect.StructField{}
		for f := range at.Fields() {
			if name, _, _ := strings.Cut(f.Tag.Get("toml"), ","); name == part {
				found = f
			}
		}
		if found.Type == nil {
			t.Fatalf("no field is for the key %s", key)
		}
		at = found.Type
	}
	return found
}

// TestConfigTwins: the flag and the variable that a page gives for a key are
// the command's, and no flag that has a key is left out.
func TestConfigTwins(t *testing.T) {
	for _, c := range configFiles {
		t.Run(c.file, func(t *testing.T) {
			_, by := readPage(t, c.page).keys("")
			flags := commandFlags(t, strings.TrimSuffix(c.file, ".toml"), c.command)
			twins := map[string]string{}
			for k, d := range by {
				if d.flag == "" {
					if d.env != "" {
						t.Errorf("%s has the variable %s and no flag", k, d.env)
					}
					continue
				}
				f := flags[d.flag]
				if f == nil {
					t.Errorf("%s: there is no flag --%s", k, d.flag)
					continue
				}
				twins[d.flag] = k
				if variable := variableOf(f); variable != d.env {
					t.Errorf("%s: the variable of --%s is %q, the page says %q", k, d.flag, variable, d.env)
				}
			}
			keys := leaves(c.empty())
			for name := range flags {
				key := strings.ReplaceAll(name, "-", "_")
				if (slices.Contains(keys, key) || slices.Contains(keys, key+"s")) && twins[name] == "" {
					t.Errorf("%s does not say that --%s is the flag of a key", c.page, name)
				}
			}
		})
	}
}

// commandFlags are the flags of a command, those of every command included.
func commandFlags(t *testing.T, words ...string) map[string]*kong.Flag {
	t.Helper()
	a := newApp(t.Context(), new(bytes.Buffer), new(bytes.Buffer), new(bytes.Buffer), nil)
	defer a.close()
	k, err := a.parser(words)
	if err != nil {
		t.Fatal(err)
	}
	node := k.Model.Node
	flags := map[string]*kong.Flag{}
	add := func(n *kong.Node) {
		for _, f := range n.Flags {
			flags[f.Name] = f
		}
	}
	add(node)
	for _, w := range words {
		i := slices.IndexFunc(node.Children, func(n *kong.Node) bool { return n.Name == w })
		if i < 0 {
			t.Fatalf("there is no command %q", words)
		}
		node = node.Children[i]
		add(node)
	}
	return flags
}

var variableInHelp = regexp.MustCompile(`\(\$(WAYPOINT_[A-Z_]+)`)

// variableOf is the environment twin of a flag: of its tag, else of its help.
func variableOf(f *kong.Flag) string {
	if v := f.Tag.Get("from"); v != "" {
		return v
	}
	if m := variableInHelp.FindStringSubmatch(f.Help); m != nil {
		return m[1]
	}
	return ""
}

// TestPackagedConfig: the files in the packages change nothing as they are, and
// with every key set they say what the code does by itself.
func TestPackagedConfig(t *testing.T) {
	for _, c := range configFiles {
		t.Run(c.file, func(t *testing.T) {
			shipped, full := c.empty(), c.empty()
			if err := config.Parse(c.file, c.packaged(t), shipped); err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(shipped, c.empty()) {
				t.Errorf("%s changes something as it is: %+v", c.file, shipped)
			}
			if err := config.Parse(c.file, c.uncommented(t), full); err != nil {
				t.Fatal(err)
			}
			values := map[string]any{}
			if _, err := toml.Decode(c.uncommented(t), &values); err != nil {
				t.Fatal(err)
			}
			for _, k := range leaves(c.empty()) {
				if value(t, values, k) == "" {
					t.Errorf("%s does not have %s", c.file, k)
				}
			}
		})
	}
}

// TestPackagedServer: every key of server.toml set to what the file calls the
// default makes the same server as no file.
func TestPackagedServer(t *testing.T) {
	var cfg serverConfig
	if err := config.Parse("server.toml", configFiles[0].uncommented(t), &cfg); err != nil {
		t.Fatal(err)
	}
	if dir := unitValue(t, "waypoint-server.service", "StateDirectory"); cfg.StateDir != "/var/lib/"+dir {
		t.Errorf("state_dir is %s, the unit's StateDirectory %s", cfg.StateDir, dir)
	}
	if mode, err := cfg.socketMode(); err != nil {
		t.Errorf("socket_mode: %v", err)
	} else if none, _ := new(serverConfig).socketMode(); mode != none {
		t.Errorf("socket_mode is %o, and %o by default", mode, none)
	}
	sameLog(t, cfg.LogLevel, cfg.LogFormat)
	said, usual := effective(t, cfg.server(nil)), effective(t, new(serverConfig).server(nil))
	if cfg.Reserve == nil || *cfg.Reserve != 64<<20 {
		t.Errorf("store_reserve is %v, and by default 64 MiB at most", cfg.Reserve)
	}
	for name, v := range usual {
		if name != "StateDir" && name != "StoreReserve" && said[name] != v { // the reserve's default goes by the file system
			t.Errorf("daemon.Config.%s is %s by default, and %s by server.toml", name, v, said[name])
		}
	}
}

// effective is the configuration that a server goes by, by field.
func effective(t *testing.T, cfg daemon.Config) map[string]string {
	t.Helper()
	cfg, err := cfg.Effective()
	if err != nil {
		t.Fatal(err)
	}
	cfg.Logger = nil
	all := map[string]string{}
	for f, v := range reflect.ValueOf(cfg).Fields() {
		all[f.Name] = fmt.Sprint(v)
	}
	return all
}

// TestPackagedRunner: the same of runner.toml; and as it is, and with every key
// set, the agent goes to the server on this host.
func TestPackagedRunner(t *testing.T) {
	c := configFiles[1]
	for name, text := range map[string]string{"as it is": c.packaged(t), "every key set": c.uncommented(t)} {
		file := filepath.Join(t.TempDir(), "runner.toml")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		env := []string{"STATE_DIRECTORY=" + systemRunnerDir}
		a := newApp(t.Context(), new(bytes.Buffer), new(bytes.Buffer), new(bytes.Buffer), env)
		defer a.close()
		none := filepath.Join(t.TempDir(), "empty.toml")
		if err := os.WriteFile(none, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := (&runnerAgent{Config: file}).config(a)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		usual, err := (&runnerAgent{Config: none}).config(a)
		if err != nil {
			t.Fatal(err)
		}
		if got.addr.String() != "unix://"+runnerSocket || got.addr.String() != "unix://"+listenStream(t, "waypoint-server-runner.socket") {
			t.Errorf("%s: the agent goes to %s", name, got.addr)
		}
		sameLog(t, got.LogLevel, got.LogFormat)
		got.LogLevel, got.LogFormat = usual.LogLevel, usual.LogFormat
		if got.trust.Plain != usual.trust.Plain || got.trust.SkipVerify != usual.trust.SkipVerify || got.trust.CAFile != usual.trust.CAFile || len(got.trust.Pins) != 0 {
			t.Errorf("%s: the server is trusted by %+v, by default by %+v", name, got.trust, usual.trust)
		}
		got.ServerTLS, got.trust = usual.ServerTLS, usual.trust
		if len(got.Labels) == 0 {
			got.Labels = usual.Labels
		}
		if !reflect.DeepEqual(got, usual) {
			t.Errorf("%s: %+v, without a file %+v", name, got, usual)
		}
	}
}

// sameLog: a level and a format are what is logged by, and how, by default.
func sameLog(t *testing.T, level, format string) {
	t.Helper()
	a := newApp(t.Context(), new(bytes.Buffer), new(bytes.Buffer), new(bytes.Buffer), nil)
	defer a.close()
	named, _, err := programLog(a, serverIdentifier, level, format)
	if err != nil {
		t.Fatal(err)
	}
	usual, _, err := programLog(a, serverIdentifier, "", "")
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range []slog.Level{slog.LevelDebug, slog.LevelInfo, slog.LevelWarn} {
		if named.Enabled(t.Context(), l) != usual.Enabled(t.Context(), l) {
			t.Errorf("with log_level %q %s differs from the default", level, l)
		}
	}
	if n, u := reflect.TypeOf(named.Handler()), reflect.TypeOf(usual.Handler()); n != u {
		t.Errorf("log_format %q logs by %s, the default by %s", format, n, u)
	}
}

// unitValue is a setting of a packaged unit.
func unitValue(t *testing.T, unit, key string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, "packaging", "units", unit))
	if err != nil {
		t.Fatal(err)
	}
	for l := range strings.Lines(string(text)) {
		if v, ok := strings.CutPrefix(l, key+"="); ok {
			return strings.TrimSpace(v)
		}
	}
	t.Fatalf("%s has no %s=", unit, key)
	return ""
}

func listenStream(t *testing.T, unit string) string { return unitValue(t, unit, "ListenStream") }
