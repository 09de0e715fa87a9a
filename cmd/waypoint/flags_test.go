package main

import (
	"maps"
	"reflect"
	"testing"
	"time"

	"github.com/waypointd/waypoint/mux/wire"
)

func TestPairs(t *testing.T) {
	got, err := pairs("--env", []string{"A=1", "B=x=y;z,w", "C="})
	if want := map[string]string{"A": "1", "B": "x=y;z,w", "C": ""}; err != nil || !maps.Equal(got, want) {
		t.Errorf("pairs = %v, %v; want %v", got, err, want)
	}
	for _, bad := range [][]string{{"A"}, {"=1"}, {""}, {"A=1", "A=2"}} {
		if _, err := pairs("--env", bad); wire.KindOf(err) != wire.BadUsage {
			t.Errorf("pairs(%q): %v, want wrong usage", bad, err)
		}
	}
}

func TestCheck(t *testing.T) {
	yes, no := true, false
	for _, c := range []struct {
		name string
		f    jobFlags
		ok   bool
	}{
		{"nothing", jobFlags{}, true},
		{"negative timeout", jobFlags{Timeout: -1}, false},
		{"negative expiry", jobFlags{ExpiresIn: -1}, false},
		{"id and labels", jobFlags{Runner: "a", RunnerLabel: []string{"k=v"}}, false},
		{"bad label", jobFlags{RunnerLabel: []string{"k"}}, false},
		{"bad variable", jobFlags{Var: []string{"=v"}}, false},
		{"here and there", jobFlags{Local: &yes, Runner: "a"}, false},
		{"here and detached", jobFlags{Local: &yes, Detach: true}, false},
		{"there and detached", jobFlags{Local: &no, Detach: true, Runner: "a"}, true},
		{"failure of no dependency", jobFlags{AllowDependencyFailure: true}, false},
	} {
		if err := c.f.check(); (err == nil) != c.ok || err != nil && wire.KindOf(err) != wire.BadUsage {
			t.Errorf("%s: check = %v", c.name, err)
		}
	}
}

func TestApply(t *testing.T) {
	f := jobFlags{
		DependsOn: []string{"j"}, AllowDependencyFailure: true, ExpiresIn: time.Hour, Timeout: time.Minute,
		Priority: 3, Singleton: "s", IdempotencyKey: "k", Var: []string{"a=b"},
	}
	specs := []wire.JobSpec{
		{Operation: wire.OpBuild, App: "web"},
		{Operation: wire.OpDeploy, App: "web", DependsOn: []string{"#0"}},
	}
	if err := f.apply(specs, wire.Target{ID: "r"}, "w"); err != nil {
		t.Fatal(err)
	}
	common := wire.JobSpec{
		App: "web", Workspace: "w", Target: wire.Target{ID: "r"}, Vars: map[string]string{"a": "b"},
		Priority: 3, Timeout: wire.Duration(time.Minute),
	}
	first, second := common, common
	first.Operation, first.DependsOn, first.AllowDependencyFailure = wire.OpBuild, []string{"j"}, true
	first.ExpiresIn, first.Singleton, first.IdempotencyKey = wire.Duration(time.Hour), "s/build/web", "k/build/web"
	second.Operation, second.DependsOn = wire.OpDeploy, []string{"#0"}
	second.Singleton, second.IdempotencyKey = "s/deploy/web", "k/deploy/web"
	if want := []wire.JobSpec{first, second}; !reflect.DeepEqual(specs, want) {
		t.Errorf("apply made\n%+v, want\n%+v", specs, want)
	}
	one := []wire.JobSpec{{Operation: wire.OpRun}}
	if err := f.apply(one, wire.Target{Any: true}, "w"); err != nil || one[0].Singleton != "s" || one[0].IdempotencyKey != "k" {
		t.Errorf("apply to one job made %+v, %v", one, err)
	}
}
