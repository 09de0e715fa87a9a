package operation

import (
	"path/filepath"
	"slices"
	"strings"

	"github.com/waypointd/waypoint/mux/wire"
)

// parseProject reads the text of a project file; name is what errors call it.
// Where several things are wrong the error is about the first line.
func parseProject(name string, data []byte) (*Project, error) {
	d, top, err := parseDocument(name, data)
	if err != nil {
		return nil, err
	}
	p := &Project{name: top.text("project"), sourceType: "upload"}
	if why := validName(p.name); !top.has("project") {
		d.errorf("", `"project", its name, is missing`)
	} else if why != "" {
		top.errorf("project", "project name %q %s", p.name, why)
	}
	if src := top.table("source"); src != nil {
		p.readSource(src)
	}
	if env := top.table("env"); env != nil {
		p.env = env.environment()
	}
	seen := map[string]bool{}
	for _, t := range top.tables("app") {
		a := readApp(t)
		if seen[a.name] {
			t.errorf("name", "app %q is defined twice", a.name)
		}
		seen[a.name] = true
		p.apps = append(p.apps, a)
	}
	top.done()
	if err := d.first(); err != nil {
		return nil, err
	}
	return p, nil
}

func (p *Project) readSource(t *table) {
	if s := t.text("type"); t.has("type") {
		p.sourceType = s
	}
	switch p.sourceType {
	case "upload", "none":
	case "git":
		t.errorf("type", `source type "git" is not available in this version; known: upload, none`)
	default:
		t.errorf("type", "unknown source type %q; known: upload, none", p.sourceType)
	}
	p.ignore = t.texts("ignore")
	t.later("url", "ref", "path")
	t.done()
}

func readApp(t *table) app {
	a := app{name: t.text("name"), profile: t.text("profile"), operations: map[wire.Operation]appOperation{}}
	if why := validName(a.name); !t.has("name") {
		t.errorf("", `"name" of an app is missing`)
	} else if why != "" {
		t.errorf("name", "app name %q %s", a.name, why)
	}
	for _, op := range []wire.Operation{wire.OpBuild, wire.OpDeploy, wire.OpRelease} {
		if ot := t.table(string(op)); ot != nil {
			a.operations[op] = readOperation(op, ot)
		}
	}
	t.later("destroy")
	t.done()
	return a
}

func readOperation(op wire.Operation, t *table) appOperation {
	o := appOperation{
		use:     exec,
		command: t.texts("command"),
		script:  t.text("script"),
		dir:     t.text("dir"),
	}
	if s := t.text("use"); t.has("use") {
		o.use = s
	}
	if o.use != exec {
		t.errorf("use", "%v", unknownComponent(o.use))
	}
	switch command, script := t.has("command"), t.has("script"); {
	case command && script:
		t.errorf("script", `"command" and "script" exclude each other`)
	case !command && !script:
		t.errorf("", `"command" or "script" of %s is missing`, op)
	case command:
		t.checkCommand("command", o.command)
	case strings.TrimSpace(o.script) == "":
		t.errorf("script", "the script is empty")
	case strings.ContainsRune(o.script, 0):
		t.errorf("script", "the script contains a NUL byte")
	}
	if o.dir != "" && !filepath.IsLocal(o.dir) {
		t.errorf("dir", "dir %q leaves the project", o.dir)
	}
	if op == wire.OpBuild {
		o.output = t.texts("output")
		for _, out := range o.output {
			if why := badOutput(out); why != "" {
				t.errorf("output", "output %q %s", out, why)
			}
		}
	} else if t.has("output") {
		t.known = append(t.known, "output")
		t.errorf("output", "output belongs to build; %s makes no artifact", op)
	}
	if env := t.table("env"); env != nil {
		o.env = env.environment()
	}
	for _, h := range t.tables("hook") {
		o.hooks = append(o.hooks, readHook(h))
	}
	t.later("health", "memory_max")
	t.done()
	return o
}

func readHook(t *table) wire.Hook {
	h := wire.Hook{When: t.text("when"), Command: t.texts("command"), OnFailure: t.text("on_failure")}
	if !slices.Contains([]string{"before", "after"}, h.When) {
		t.errorf("when", `"when" of a hook is "before" or "after", not %q`, h.When)
	}
	if t.has("on_failure") && !slices.Contains([]string{"fail", "continue"}, h.OnFailure) {
		t.errorf("on_failure", `"on_failure" of a hook is "fail" or "continue", not %q`, h.OnFailure)
	}
	if t.has("command") {
		t.checkCommand("command", h.Command)
	} else {
		t.errorf("", `"command" of a hook is missing`)
	}
	t.done()
	return h
}

func (t *table) checkCommand(key string, argv []string) {
	switch {
	case len(argv) == 0 || argv[0] == "":
		t.errorf(key, "the command is empty")
	case slices.ContainsFunc(argv, func(s string) bool { return strings.ContainsRune(s, 0) }):
		t.errorf(key, "the command contains a NUL byte")
	}
}

// environment reads a table of variables.
func (t *table) environment() map[string]string {
	env := map[string]string{}
	for _, k := range t.keys() {
		v := t.text(k)
		if err := CheckVariable(k); err != nil {
			t.errorf(k, "%v", err)
		} else if strings.ContainsRune(v, 0) {
			t.errorf(k, "the value of %s contains a NUL byte", k)
		}
		env[k] = v
	}
	return env
}
