package main

import (
	"strings"
	"time"

	"github.com/waypointd/waypoint/mux/wire"
	"github.com/waypointd/waypoint/runner/operation"
	"github.com/waypointd/waypoint/statedir"
)

// jobFlags are the flags of everything that makes jobs.
type jobFlags struct {
	Local                  *bool         `negatable:"" help:"Run in this process, or with --no-local on a remote runner. Unset: remote if an admitted, online, matching runner exists or one is asked for by --runner or --runner-label, else in this process."`
	Runner                 string        `placeholder:"ID" help:"Only on the runner with this id."`
	RunnerLabel            []string      `sep:"none" placeholder:"K=V" help:"Only on a runner with this label; repeatable."`
	Detach                 bool          `help:"Print the id of each job and leave it to the server."`
	ExpiresIn              time.Duration `placeholder:"D" help:"Give up if no runner took it by then: 90s, 24h (default never)."`
	Timeout                time.Duration `placeholder:"D" help:"End it when it has run for so long: 90s, 2h (default no limit)."`
	Priority               int           `placeholder:"N" help:"Higher first, from -1000000 to 1000000 (default 0)."`
	DependsOn              []string      `sep:"none" placeholder:"JOB" help:"Not before this job has succeeded; repeatable."`
	AllowDependencyFailure bool          `help:"Run also if a job it depends on did not succeed."`
	Singleton              string        `placeholder:"KEY" help:"Of jobs with this key one runs at a time; this one takes the place of one that is still queued."`
	IdempotencyKey         string        `placeholder:"KEY" help:"Queue it once: where a job was queued with this key before, follow that one."`
	Var                    []string      `sep:"none" placeholder:"K=V" help:"A variable: WP_VAR_K in the job's environment; repeatable."`
}

// check finds flags that contradict each other or mean nothing.
func (f *jobFlags) check() error {
	bad := func(format string, args ...any) *wire.Error {
		return wire.Errorf(wire.BadUsage, "parse arguments: "+format, args...)
	}
	switch {
	case f.Timeout < 0:
		return bad("--timeout %s is negative", f.Timeout)
	case f.ExpiresIn < 0:
		return bad("--expires-in %s is negative", f.ExpiresIn)
	case f.Runner != "" && len(f.RunnerLabel) > 0:
		return bad("--runner and --runner-label exclude each other")
	case f.inProcess() && f.chosen():
		return bad("--local runs in this process and cannot be on a chosen runner").WithHint("leave out --local")
	case f.inProcess() && f.Detach:
		return detachError()
	case f.AllowDependencyFailure && len(f.DependsOn) == 0:
		return bad("--allow-dependency-failure without --depends-on means nothing")
	}
	if _, err := f.target(); err != nil {
		return err
	}
	vars, err := pairs("--var", f.Var)
	if err != nil {
		return err
	}
	for k := range vars {
		if operation.CheckVariable("WP_VAR_"+k) != nil {
			return bad("--var: %q cannot be part of a variable's name", k).WithHint("use letters, digits and '_'")
		}
	}
	return nil
}

func detachError() error {
	return wire.Errorf(wire.BadUsage, "detach: a job in this process cannot go on without it").
		WithHint("leave out --detach, or queue it for a remote runner with --no-local and a server")
}

// inProcess reports that this process was asked for; remote that it was
// refused.
func (f *jobFlags) inProcess() bool { return f.Local != nil && *f.Local }
func (f *jobFlags) remote() bool    { return f.Local != nil && !*f.Local }

// chosen reports that a runner was asked for by its id or its labels.
func (f *jobFlags) chosen() bool { return f.Runner != "" || len(f.RunnerLabel) > 0 }

// target is which remote runners may take the job.
func (f *jobFlags) target() (wire.Target, error) {
	labels, err := pairs("--runner-label", f.RunnerLabel)
	switch {
	case err != nil:
		return wire.Target{}, err
	case f.Runner != "":
		return wire.Target{ID: f.Runner}, nil
	case len(labels) > 0:
		return wire.Target{Labels: labels}, nil
	}
	return wire.Target{Any: true}, nil
}

// apply puts the flags into a command's jobs: what decides when a job may
// begin goes to those that wait for no other one of the same command.
func (f *jobFlags) apply(specs []wire.JobSpec, target wire.Target, workspace string) error {
	vars, err := pairs("--var", f.Var)
	if err != nil {
		return err
	}
	for i := range specs {
		s := &specs[i]
		s.Target, s.Workspace, s.Vars = target, workspace, vars
		s.Priority = f.Priority
		s.Timeout = wire.Duration(f.Timeout)
		if len(s.DependsOn) == 0 {
			s.DependsOn = f.DependsOn
			s.AllowDependencyFailure = f.AllowDependencyFailure
			s.ExpiresIn = wire.Duration(f.ExpiresIn)
		}
		s.Singleton, s.IdempotencyKey = f.Singleton, f.IdempotencyKey
		if len(specs) > 1 {
			// One key for several jobs: each is the only one of its kind.
			s.Singleton = keyOf(f.Singleton, *s)
			s.IdempotencyKey = keyOf(f.IdempotencyKey, *s)
		}
	}
	return nil
}

func keyOf(key string, s wire.JobSpec) string {
	if key == "" {
		return ""
	}
	return key + "/" + string(s.Operation) + "/" + s.App
}

// pairs reads the values of a repeatable flag of the form k=v.
func pairs(flag string, values []string) (map[string]string, error) {
	if len(values) == 0 {
		return nil, nil
	}
	m := make(map[string]string, len(values))
	for _, kv := range values {
		k, v, ok := strings.Cut(kv, "=")
		if !ok || k == "" {
			return nil, wire.Errorf(wire.BadUsage, "parse arguments: %s %q is not of the form k=v", flag, kv)
		}
		if before, twice := m[k]; twice && before != v {
			return nil, wire.Errorf(wire.BadUsage, "parse arguments: %s gives %q two values", flag, k)
		}
		m[k] = v
	}
	return m, nil
}

// validName reports whether s can name a workspace or a project.
func validName(s string) bool { return statedir.ValidID(s) }
