package main

import (
	"encoding/json"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/waypointd/waypoint/mux/wire"
)

// TestRunnerKeys: with --json a runner has the keys that scripts are promised,
// and no others.
func TestRunnerKeys(t *testing.T) {
	var r wire.Runner
	v := reflect.ValueOf(&r).Elem()
	for _, f := range v.Fields() {
		switch f.Interface().(type) {
		case time.Time:
			f.Set(reflect.ValueOf(time.Unix(1, 0)))
		case map[string]string:
			f.Set(reflect.ValueOf(map[string]string{"k": "v"}))
		case []wire.Wait:
			f.Set(reflect.ValueOf([]wire.Wait{{For: "x"}}))
		default:
			switch f.Kind() {
			case reflect.String:
				f.SetString("x")
			case reflect.Int:
				f.SetInt(1)
			case reflect.Bool:
				f.SetBool(true)
			default:
				t.Fatalf("a field of type %s", f.Type())
			}
		}
	}
	keys := func(r wire.Runner) []string {
		text, err := json.Marshal(scripted(r)[0])
		if err != nil {
			t.Fatal(err)
		}
		var doc map[string]any
		if err := json.Unmarshal(text, &doc); err != nil {
			t.Fatal(err)
		}
		return slices.Sorted(maps.Keys(doc))
	}
	for _, c := range []struct {
		name string
		r    wire.Runner
		want string
	}{
		{"all", r, `id state problem problem_detail kind labels offered_labels online first_seen last_seen fingerprint token_source
			token_expires_at version hostname os arch isolation concurrency running_jobs draining`},
		{"none", wire.Runner{}, "id state kind online first_seen last_seen running_jobs"},
	} {
		want := strings.Fields(c.want)
		slices.Sort(want)
		if got := keys(c.r); !slices.Equal(got, want) {
			t.Errorf("%s: keys %v, want %v", c.name, got, want)
		}
	}
}

func TestRunnerState(t *testing.T) {
	for want, r := range map[string]wire.Runner{
		"pending":                        {State: wire.Pending, Problem: wire.NoToken},
		"pending, token expired":         {State: wire.Pending, Problem: wire.TokenExpired},
		"adopted, no token":              {State: wire.Adopted, Problem: wire.NoToken},
		"adopted":                        {State: wire.Adopted, Admitted: true},
		"adopted, token invalid":         {State: wire.Adopted, Problem: wire.TokenInvalid},
		"adopted, a token passed over":   {State: wire.Adopted, Admitted: true, Problem: wire.TokenInvalid},
		"adopted, draining":              {State: wire.Adopted, Admitted: true, Draining: true},
		"rejected, token of another key": {State: wire.Rejected, Problem: wire.OtherKey},
	} {
		if got := runnerState(r); got != want {
			t.Errorf("%+v: %q, want %q", r, got, want)
		}
	}
}

// A runner that waits for something itself takes no jobs; one whose job waits does.
func TestAgentThatWaits(t *testing.T) {
	s := wire.AgentStatus{
		Connected: true, Standing: &wire.Standing{State: wire.Adopted, Admitted: true},
		Supervisor: wire.AgentSupervisor{State: wire.SupervisorReady},
	}
	for want, waits := range map[string][]wire.Wait{
		"yes": {{JobRef: wire.JobRef{Job: "j", Attempt: 1}, For: "room"}},
		"no":  {{For: "its disk"}, {JobRef: wire.JobRef{Job: "j", Attempt: 1}, For: "room"}},
	} {
		s.Waits = waits
		var text strings.Builder
		if err := agentFields(s, time.Now()).Write(&text); err != nil {
			t.Fatal(err)
		}
		if !slices.ContainsFunc(strings.Split(text.String(), "\n"), func(line string) bool {
			return slices.Equal(strings.Fields(line), []string{"Gets", "jobs:", want})
		}) {
			t.Errorf("it gets jobs: want %q in\n%s", want, &text)
		}
	}
}
