package operation

import (
	"slices"
	"strings"

	"github.com/waypointd/waypoint/mux/wire"
	"github.com/waypointd/waypoint/runner/supervisor"
)

// Steps are the commands of an assignment: hooks before, the component's
// command, hooks after. A step has a name only where there are several.
func Steps(spec wire.JobSpec) ([]supervisor.Step, error) {
	if spec.Use != "" && spec.Use != exec {
		return nil, unknownComponent(spec.Use)
	}
	command, err := commandOf(spec)
	if err != nil {
		return nil, err
	}
	var before, after []supervisor.Step
	for i, h := range spec.Hooks {
		if len(h.Command) == 0 || h.Command[0] == "" {
			return nil, wire.Errorf(wire.BadUsage, "hook %d has no command", i+1)
		}
		s := supervisor.Step{Argv: slices.Clone(h.Command)}
		switch h.OnFailure {
		case "", "fail":
		case "continue":
			s.Continue = true
		default:
			return nil, wire.Errorf(wire.BadUsage, "hook %d has the unknown on_failure %q", i+1, h.OnFailure)
		}
		s.Name = "hook " + h.When + " " + string(spec.Operation) + ": " + strings.Join(h.Command, " ")
		switch h.When {
		case "before":
			before = append(before, s)
		case "after":
			after = append(after, s)
		default:
			return nil, wire.Errorf(wire.BadUsage, `hook %d has the unknown "when" %q`, i+1, h.When)
		}
	}
	step := supervisor.Step{Argv: command}
	if len(spec.Hooks) > 0 {
		step.Name = string(spec.Operation)
	}
	return slices.Concat(before, []supervisor.Step{step}, after), nil
}

func commandOf(spec wire.JobSpec) ([]string, error) {
	switch {
	case len(spec.Command) > 0 && spec.Script != "":
		return nil, wire.Errorf(wire.BadUsage, "the job has both a command and a script")
	case spec.Script != "":
		return []string{"sh", "-eu", "-c", spec.Script}, nil
	case len(spec.Command) == 0 || spec.Command[0] == "":
		return nil, wire.Errorf(wire.BadUsage, "the job has no command")
	}
	return slices.Clone(spec.Command), nil
}
