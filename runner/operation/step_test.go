package operation

import (
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/waypointd/waypoint/mux/wire"
	"github.com/waypointd/waypoint/runner/supervisor"
)

func TestSteps(t *testing.T) {
	got, err := Steps(wire.JobSpec{Operation: wire.OpRun, Command: []string{"true"}})
	if want := []supervisor.Step{{Argv: []string{"true"}}}; err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
	got, err = Steps(wire.JobSpec{Operation: wire.OpBuild, Use: "exec", Script: "exit 3", Hooks: []wire.Hook{
		{When: "after", Command: []string{"rm", "x"}, OnFailure: "continue"},
		{When: "before", Command: []string{"./check"}, OnFailure: "fail"},
	}})
	want := []supervisor.Step{
		{Name: "hook before build: ./check", Argv: []string{"./check"}},
		{Name: "build", Argv: []string{"sh", "-eu", "-c", "exit 3"}},
		{Name: "hook after build: rm x", Argv: []string{"rm", "x"}, Continue: true},
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
	for name, spec := range map[string]wire.JobSpec{
		"nothing":   {},
		"both":      {Command: []string{"x"}, Script: "x"},
		"component": {Use: "systemd", Command: []string{"x"}},
		"hook":      {Command: []string{"x"}, Hooks: []wire.Hook{{When: "before"}}},
		"when":      {Command: []string{"x"}, Hooks: []wire.Hook{{When: "x", Command: []string{"x"}}}},
		"failure":   {Command: []string{"x"}, Hooks: []wire.Hook{{When: "after", Command: []string{"x"}, OnFailure: "x"}}},
	} {
		if _, err := Steps(spec); wire.KindOf(err) != wire.BadUsage {
			t.Errorf("%s: %v, want an error of usage", name, err)
		}
	}
}

func TestEnvClean(t *testing.T) {
	t.Setenv("WAYPOINT_SERVER_TOKEN", "secret")
	t.Setenv("SECRET", "secret")
	a := wire.Assignment{
		JobRef: wire.JobRef{Job: "j1", Attempt: 2}, Sequence: 7,
		Spec: wire.JobSpec{
			Operation: wire.OpRelease, Project: "shop", App: "web",
			Vars: map[string]string{"dir": "/srv"},
			Env:  map[string]string{"LOG_LEVEL": "info", "LANG": "de_DE.UTF-8", "WAYPOINT_SERVER_TOKEN": "x"},
		},
		Deployment: &wire.Record{Number: 5, Outputs: map[string]string{"dir": "/srv/5", "a-b.c": "x"}},
	}
	got := Env(a, Layout{Home: "/j/home", Artifact: "/j/artifact", Output: "/j/output", User: "job"}, nil)
	want := []string{
		"HOME=/j/home", "LANG=de_DE.UTF-8", "LOG_LEVEL=info", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"TMPDIR=/j/home/tmp", "USER=job", "WAYPOINT_APP=web", "WAYPOINT_ARTIFACT=/j/artifact", "WAYPOINT_ATTEMPT=2",
		"WAYPOINT_DEPLOYMENT=5", "WAYPOINT_DEPLOYMENT_A_B_C=x", "WAYPOINT_DEPLOYMENT_DIR=/srv/5", "WAYPOINT_JOB_ID=j1",
		"WAYPOINT_OPERATION=release", "WAYPOINT_OUTPUT=/j/output", "WAYPOINT_PROJECT=shop", "WAYPOINT_SEQUENCE=7",
		"WAYPOINT_WORKSPACE=default", "WP_VAR_dir=/srv",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

func TestEnvLocal(t *testing.T) {
	base := []string{
		"PATH=/mine", "HOME=/home/me", "WAYPOINT_SERVER_TOKEN=secret", "WAYPOINT_JOB_ID=outer", "WAYPOINT_DEPLOYMENT_DIR=outer",
		"WAYPOINT_SERVER_ADDR=unix:///x", "EMPTY=", "broken",
	}
	got := Env(wire.Assignment{JobRef: wire.JobRef{Job: "j", Attempt: 1}, Spec: wire.JobSpec{Operation: wire.OpRun}}, Layout{}, base)
	want := []string{
		"EMPTY=", "HOME=/home/me", "PATH=/mine", "WAYPOINT_ATTEMPT=1", "WAYPOINT_JOB_ID=j", "WAYPOINT_OPERATION=run",
		"WAYPOINT_SERVER_ADDR=unix:///x", "WAYPOINT_WORKSPACE=default",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

func TestReadOutputs(t *testing.T) {
	path := filepath.Join(t.TempDir(), "output")
	if got, err := ReadOutputs(path); got != nil || err != nil {
		t.Errorf("missing: %v, %v", got, err)
	}
	for _, c := range []struct {
		text string
		want map[string]string
	}{
		{"", map[string]string{}},
		{"a=1\n\nb = 2=3\nurl=http://x/?a=b\na=4", nil},
		{"a=1\n\nb=2=3 \na=4", map[string]string{"a": "4", "b": "2=3 "}},
		{"a\n", nil}, {"=1\n", nil}, {"a b=1\n", nil}, {"a=\xff\n", nil}, {"a=\x00\n", nil}, {"ü=1\n", nil},
		{"a=" + strings.Repeat("x", maxOutputs), nil},
	} {
		writeFile(t, path, c.text)
		got, err := ReadOutputs(path)
		if (err != nil) != (c.want == nil) || err == nil && !reflect.DeepEqual(got, c.want) {
			t.Errorf("%.40q: %v, %v, want %v", c.text, got, err, c.want)
		}
	}
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadOutputs(link); wire.KindOf(err) != wire.BadUsage {
		t.Errorf("link: %v, want an error of usage", err)
	}
	if _, err := ReadOutputs(t.TempDir()); wire.KindOf(err) != wire.BadUsage {
		t.Errorf("directory: %v, want an error of usage", err)
	}
}
