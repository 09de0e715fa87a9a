package operation

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/waypointd/waypoint/mux/wire"
)

const shop = `project = "shop"

[source]
type = "upload"
ignore = ["node_modules/", "*.tmp"]

[env]
LOG_LEVEL = "info"
MODE = "project"

[[app]]
name = "web"
profile = "default"

  [app.build]
  use = "exec"
  command = ["make", "release"]
  output = ["bin/web", "static/"]
  dir = "services/web"
  env = { MODE = "build" }

  [[app.build.hook]]
  when = "before"
  command = ["./scripts/check.sh"]
  on_failure = "continue"

  [app.deploy]
  script = """
  cp -r "$WAYPOINT_ARTIFACT" /srv
  """

[[app]]
name = "api"
`

func TestLoad(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, ProjectFile)
	writeFile(t, path, shop)
	sub := filepath.Join(dir, "a", "b")
	if err := os.MkdirAll(sub, 0o755); err != nil {
		t.Fatal(err)
	}
	p, err := Find(sub)
	if err != nil {
		t.Fatal(err)
	}
	if p.Name() != "shop" || p.Root() != dir || p.SourceType() != "upload" {
		t.Errorf("got %q in %q by %q", p.Name(), p.Root(), p.SourceType())
	}
	if got := p.Apps(); !reflect.DeepEqual(got, []string{"web", "api"}) {
		t.Errorf("apps = %q", got)
	}
	if got := p.Ignore(); !reflect.DeepEqual(got, []string{"node_modules/", "*.tmp"}) {
		t.Errorf("ignore = %q", got)
	}
	got, err := p.Spec(wire.OpBuild, "web")
	if err != nil {
		t.Fatal(err)
	}
	want := wire.JobSpec{
		Operation: wire.OpBuild, Project: "shop", App: "web", Profile: "default", Use: "exec",
		Command: []string{"make", "release"}, Output: []string{"bin/web", "static/"}, Dir: "services/web",
		Hooks: []wire.Hook{{When: "before", Command: []string{"./scripts/check.sh"}, OnFailure: "continue"}},
		Env:   map[string]string{"LOG_LEVEL": "info", "MODE": "build"},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	// The first one's own variables are not in the next one's.
	got, err = p.Spec(wire.OpDeploy, "web")
	if err != nil || got.Env["MODE"] != "project" || !strings.Contains(got.Script, "cp -r") {
		t.Errorf("deploy = %+v, %v", got, err)
	}
	for _, c := range []struct {
		op  wire.Operation
		app string
	}{{wire.OpRelease, "web"}, {wire.OpBuild, "api"}, {wire.OpBuild, "nobody"}, {wire.OpDestroy, "web"}} {
		if _, err := p.Spec(c.op, c.app); wire.KindOf(err) != wire.NotFound {
			t.Errorf("spec of %s of %s: %v, want not found", c.op, c.app, err)
		}
	}
}

func TestLoadNothing(t *testing.T) {
	dir := t.TempDir()
	if _, err := Find(dir); wire.KindOf(err) != wire.NotFound {
		t.Errorf("find: %v, want not found", err)
	}
	if _, err := Load(filepath.Join(dir, ProjectFile)); wire.KindOf(err) != wire.NotFound {
		t.Errorf("load: %v, want not found", err)
	}
}

func TestLoadRefuses(t *testing.T) {
	app := "project = \"p\"\n[[app]]\nname = \"a\"\n" // three lines
	for _, c := range []struct{ name, text, want string }{
		{"syntax", "project = \"p\"\n\nname =\n", "f.toml:3: "},
		{"no project", "[env]\n", `f.toml: "project", its name, is missing`},
		{"bad project", "project = \"a b\"\n", `f.toml:1: project name "a b" has characters`},
		{"project type", "\nproject = 3\n", "f.toml:2: project is a number, not a string"},
		{"unknown top", "project = \"p\"\nprojct = 1\n", `f.toml:2: unknown key "projct"; the nearest known one is "project"`},
		{"instead of a known one", app + "[app.build]\ncomand = [\"x\"]\n", `f.toml:5: unknown key "comand"; the nearest known one is "command"`},
		{"instead of the name", "projct = \"p\"\n", `f.toml:1: unknown key "projct"; the nearest known one is "project"`},
		{"far from all", "project = \"p\"\nzzzzzzzz = 1\n", `f.toml:2: unknown key "zzzzzzzz"; known here: app, env, project, source`},
		{"unknown source", "project = \"p\"\n[source]\ntyp = \"none\"\n", `f.toml:3: unknown key "typ"; the nearest known one is "type"`},
		{"git", "project = \"p\"\n[source]\ntype = \"git\"\nurl = \"x\"\n", `f.toml:3: source type "git" is not available in this version`},
		{"url", "project = \"p\"\n[source]\nurl = \"x\"\n", "f.toml:3: url is not available in this version"},
		{"unknown source type", "project = \"p\"\n[source]\ntype = \"tar\"\n", `f.toml:3: unknown source type "tar"`},
		{"env number", "project = \"p\"\n[env]\nPORT = 8080\n", "f.toml:3: PORT is a number, not a string in quotes"},
		{"env name", "project = \"p\"\n[env]\n\"A B\" = \"x\"\n", `f.toml:3: "A B" cannot be the name of a variable`},
		{"env token", "project = \"p\"\n[env]\nWAYPOINT_SERVER_TOKEN = \"x\"\n", "f.toml:3: WAYPOINT_SERVER_TOKEN is never given to a job"},
		{"no app name", "project = \"p\"\n[[app]]\nprofile = \"x\"\n", `f.toml:2: "name" of an app is missing`},
		{"bad app name", "project = \"p\"\n[[app]]\nname = \"../x\"\n", `f.toml:3: app name "../x" does not begin with`},
		{"duplicate", app + "[[app]]\nname = \"a\"\n", `f.toml:5: app "a" is defined twice`},
		{"app is a table", "project = \"p\"\n[app]\nname = \"a\"\n", "f.toml:2: app is a table; each one is a table of its own: [[app]]"},
		{"second app's key", app + "[app.build]\nscript = \"x\"\n[[app]]\nname = \"b\"\n[app.build]\nscript = \"x\"\ncomand = [\"x\"]\n", `f.toml:10: unknown key "comand"; the nearest known one is "command"`},
		{"component", app + "[app.deploy]\nuse = \"systemd\"\ncommand = [\"x\"]\n", `f.toml:5: component "systemd" is not available in this version; known: exec`},
		{"health", app + "[app.deploy]\nscript = \"x\"\nhealth = { http = \"x\" }\n", "f.toml:6: health is not available in this version"},
		{"memory", app + "[app.deploy]\nscript = \"x\"\nmemory_max = \"1M\"\n", "f.toml:6: memory_max is not available in this version"},
		{"both", app + "[app.build]\nscript = \"x\"\ncommand = [\"x\"]\n", `f.toml:5: "command" and "script" exclude each other`},
		{"neither", app + "[app.build]\nuse = \"exec\"\n", `f.toml:4: "command" or "script" of build is missing`},
		{"command type", app + "[app.build]\ncommand = \"make\"\n", "f.toml:5: command is a string, not an array"},
		{"command element", app + "[app.build]\ncommand = [\"make\", 1]\n", "f.toml:5: element 2 of command is a number"},
		{"command empty", app + "[app.build]\ncommand = []\n", "f.toml:5: the command is empty"},
		{"output leaves", app + "[app.build]\nscript = \"x\"\noutput = [\"../x\"]\n", `f.toml:6: output "../x" leaves the working directory`},
		{"output absolute", app + "[app.build]\nscript = \"x\"\noutput = [\"/x\"]\n", `f.toml:6: output "/x" leaves`},
		{"output elsewhere", app + "[app.deploy]\nscript = \"x\"\noutput = [\"x\"]\n", "f.toml:6: output belongs to build"},
		{"dir", app + "[app.build]\nscript = \"x\"\ndir = \"/tmp\"\n", `f.toml:6: dir "/tmp" leaves the project`},
		{"hook when", app + "[app.build]\nscript = \"x\"\n[[app.build.hook]]\nwhen = \"now\"\ncommand = [\"x\"]\n", `f.toml:7: "when" of a hook is "before" or "after", not "now"`},
		{"hook key", app + "[app.build]\nscript = \"x\"\n[[app.build.hook]]\nwhen = \"after\"\ncommand = [\"x\"]\non_fail = \"fail\"\n", `f.toml:9: unknown key "on_fail"; the nearest known one is "on_failure"`},
		{"inline hook", app + "[app.build]\nscript = '''\nx = [\n'''\nhook = [\n  { when = \"after\", command = [\"x\"] },\n  { when = \"after\", comand = [\"x\"] },\n]\n", "f.toml:10: "},
		{"behind long strings", "project = \"p\"\n[env]\nA = \"\"\"\n[source]\n\\\"\"\"\"\nB = '''\n'''\n[sorce]\n", `f.toml:8: unknown key "sorce"; the nearest known one is "source"`},
		{"dotted", "project = \"p\"\nsource.type = \"none\"\nsource.ignored = []\n", `f.toml:3: unknown key "ignored"; the nearest known one is "ignore"`},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := parseProject("f.toml", []byte(c.text))
			if wire.KindOf(err) != wire.BadUsage {
				t.Fatalf("error %v, want one of usage", err)
			}
			if !strings.HasPrefix(err.Error(), "read project file: "+c.want) {
				t.Errorf("got  %s\nwant read project file: %s…", err, c.want)
			}
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("error of more than a line: %q", err)
			}
		})
	}
}

func TestExample(t *testing.T) {
	for _, name := range []string{"shop", "my shop", "", "…", "-x"} {
		p, err := parseProject("f.toml", []byte(Example(name)))
		if err != nil {
			t.Fatalf("example of %q: %v", name, err)
		}
		for _, op := range []wire.Operation{wire.OpBuild, wire.OpDeploy, wire.OpRelease} {
			spec, err := p.Spec(op, p.Apps()[0])
			if err != nil {
				t.Fatal(err)
			}
			if _, err := Steps(spec); err != nil {
				t.Error(err)
			}
		}
	}
}

func FuzzProject(f *testing.F) {
	f.Add(shop)
	f.Add(Example("x"))
	f.Add("project='p'\n[[app]]\nname='a'\nbuild={script='x',hook=[{when='after',command=['x']}]}\n")
	f.Fuzz(func(t *testing.T, text string) {
		p, err := parseProject("f", []byte(text))
		if err != nil {
			if wire.KindOf(err) != wire.BadUsage {
				t.Fatalf("error of kind %s: %v", wire.KindOf(err), err)
			}
			return
		}
		// What is accepted can be run.
		for _, a := range p.apps {
			for op := range a.operations {
				spec, err := p.Spec(op, a.name)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := Steps(spec); err != nil {
					t.Fatalf("accepted, but: %v", err)
				}
			}
		}
	})
}
