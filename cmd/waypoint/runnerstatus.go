package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/waypointd/waypoint/cmd/internal/config"
	"github.com/waypointd/waypoint/cmd/internal/output"
	"github.com/waypointd/waypoint/mux"
	"github.com/waypointd/waypoint/mux/wire"
	"github.com/waypointd/waypoint/runner"
)

// runnerStatus is `waypoint runner status`.
type runnerStatus struct {
	StateDir string `placeholder:"DIR" help:"The agent's state directory ($$WAYPOINT_RUNNER_STATE_DIR; default that of the agent of this host, or of this user)."`
}

func (*runnerStatus) Help() string {
	return `It asks the agent itself, through a socket in its state directory, so it works without a server. For root and for the
user that the agent runs as.`
}

func (c *runnerStatus) Run(a *app) error {
	return a.withAgent(c.StateDir, func(ctx context.Context, ag *agentHere) error {
		s, err := ag.status(ctx)
		if err != nil {
			return fmt.Errorf("ask agent: %w", err)
		}
		if err := a.print(s, func(w io.Writer) error { return agentFields(s, time.Now()).Write(w) }); err != nil {
			return err
		}
		if st := s.Standing; st != nil && !st.Admitted && !st.Granted && !a.JSON {
			says := agentSays{fingerprint: s.Fingerprint, tokenFile: "the file token in its state directory"}
			a.hint("%s", says.remedy(s.ID, *st))
		}
		return nil
	})
}

// agentFields are an agent's state, for people.
func agentFields(s wire.AgentStatus, now time.Time) *output.Fields {
	f := new(output.Fields)
	f.Add("ID", s.ID)
	f.Add("Fingerprint", s.Fingerprint)
	f.Add("Server", s.Server)
	f.Add("Connected", strings.TrimSuffix(yesNo(s.Connected)+": "+s.Error, ": "))
	if st := s.Standing; st != nil {
		f.Add("State", string(st.State))
		f.Add("Gets jobs", yesNo(st.Admitted && s.Connected && !s.Draining && !st.Draining && !s.Stopping && s.Supervisor.State == wire.SupervisorReady && !itselfWaits(s.Waits)))
		if st.Problem != "" {
			f.Add("Problem", why(st.Problem, st.Detail))
		}
		addToken(f, now, st.Source, st.Issued, st.Expiry)
		for _, r := range st.Refused {
			f.Add("Passed over", sourceWords(r.Source)+": "+why(r.Problem, r.Detail))
		}
	}
	f.Add("Draining", drainWords(s))
	f.Add("Jobs", fmt.Sprintf("%d of %d", len(s.Jobs), s.Concurrency))
	for _, j := range s.Jobs {
		f.Add("Job", fmt.Sprintf("%s, attempt %d", j.Job, j.Attempt))
	}
	addWaits(f, s.Waits)
	f.Add("Version", s.Version)
	f.Add("PID", strconv.Itoa(s.PID))
	addSupervisor(f, s.Supervisor)
	return f
}

// itselfWaits reports whether the runner takes no jobs until what it waits for is there.
func itselfWaits(waits []wire.Wait) bool {
	return slices.ContainsFunc(waits, func(w wire.Wait) bool { return w.Job == "" })
}

// addSupervisor adds what is known of the parent of the jobs.
func addSupervisor(f *output.Fields, s wire.AgentSupervisor) {
	switch s.State {
	case wire.SupervisorMissing:
		f.Add("Supervisor", "missing: no jobs are taken until there is one (with systemd: systemctl status 'waypoint-jobs*')")
	case wire.SupervisorIncompatible:
		f.Add("Supervisor", "of another release: its jobs go on, and no jobs are taken until they have ended and it is replaced ("+s.Problem+")")
	case wire.SupervisorLeaving:
		f.Add("Supervisor", "stopping: no jobs are taken until there is another")
	default:
		f.Add("Supervisor", string(s.State))
		user := s.User
		if user == "" {
			user = "the supervisor's own user"
		}
		f.Add("Jobs run as", user)
		f.Add("Isolation", s.Isolation)
	}
	f.Add("Jobs directory", s.Dir)
	if s.PID != 0 {
		f.Add("Supervisor version", s.Version)
		f.Add("Supervisor PID", strconv.Itoa(s.PID))
	}
}

// drainWords say whether the agent is drained, and where that was said.
func drainWords(s wire.AgentStatus) string {
	var by []string
	if s.Draining {
		by = append(by, "on this host")
	}
	if s.Standing != nil && s.Standing.Draining {
		by = append(by, "at the server")
	}
	if s.Stopping {
		by = append(by, "it ends when its jobs have ended")
	}
	if len(by) == 0 {
		return "no"
	}
	return "yes: " + strings.Join(by, ", ")
}

// agentHere is the agent on this host, reached through the socket in its
// state directory.
type agentHere struct{ session *mux.Session }

// withAgent calls f with the agent whose state directory was named, or the
// usual one, and a context for one question.
func (a *app) withAgent(named string, f func(ctx context.Context, ag *agentHere) error) error {
	dir, err := a.agentDir(named)
	if err != nil {
		return err
	}
	log, err := a.logger()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(a.ctx, connectTimeout)
	defer cancel()
	conn, err := runner.DialControl(ctx, dir)
	if err != nil {
		return noAgent(dir, err)
	}
	s, err := mux.Connect(ctx, conn, mux.Config{Software: software(), Logger: log}, wire.Hello{Role: wire.RoleClient}, nil, nil)
	if err != nil {
		return noAgent(dir, err)
	}
	defer s.Close()
	ask, cancel := a.ask()
	defer cancel()
	return f(ask, &agentHere{s})
}

func (ag *agentHere) status(ctx context.Context) (s wire.AgentStatus, err error) {
	err = ag.session.Call(ctx, wire.MethodAgentStatus, wire.AgentStatusRequest{}, &s)
	return s, err
}

func (ag *agentHere) drain(ctx context.Context, on bool) (s wire.AgentStatus, err error) {
	err = ag.session.Call(ctx, wire.MethodAgentDrain, wire.DrainRequest{Drain: on}, &s)
	return s, err
}

// wait blocks until the agent has no job.
func (ag *agentHere) wait(ctx context.Context) (s wire.AgentStatus, err error) {
	err = ag.session.Call(ctx, wire.MethodAgentWait, wire.AgentStatusRequest{}, &s)
	return s, err
}

// noAgent is the error of a state directory in which no agent could be asked.
func noAgent(dir string, err error) error {
	switch {
	case errors.Is(err, fs.ErrPermission), wire.KindOf(err) == wire.Denied:
		return wire.Errorf(wire.Denied, "ask agent: no permission for its state directory %s", dir).
			WithHint("use sudo, or be the user that the agent runs as")
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ENOTDIR), wire.KindOf(err) == wire.Unavailable:
		return wire.Errorf(wire.Unavailable, "ask agent: no agent runs with the state directory %s", dir).
			WithHint("start one with waypoint runner agent, or name another directory with --state-dir")
	}
	return fmt.Errorf("ask agent in %s: %w", dir, err)
}

// agentDir is the state directory of the agent that is meant: the one named,
// else the environment's, else this user's own where there is one, else the
// packaged agent's.
func (a *app) agentDir(named string) (string, error) {
	if named == "" {
		named = a.env.get("WAYPOINT_RUNNER_STATE_DIR")
	}
	if named == "" {
		cfg := new(runnerConfig)
		if config.Load(runnerConfigFile, cfg) == nil {
			named = cfg.StateDir
		}
	}
	own, err := a.stateDir(named, systemRunnerDir, "waypoint-runner")
	if err != nil || named != "" {
		return own, err
	}
	if missing(own) && !missing(systemRunnerDir) {
		return systemRunnerDir, nil
	}
	return own, nil
}
