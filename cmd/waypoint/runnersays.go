package main

import (
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/waypointd/waypoint/cmd/internal/output"
	"github.com/waypointd/waypoint/cmd/internal/systemd"
	"github.com/waypointd/waypoint/mux/wire"
	"github.com/waypointd/waypoint/runner"
)

// agentSays tells a person, on stderr, and the service manager how the runner
// fares. What calls for somebody is said once, with what to type; STATUS
// always says how things are now; the rest is in the log. No token is ever
// said.
//
// Where the log is the journal, stderr ends there too: what was said would be
// there twice, the second time as no fields; and lines of JSON are for programs. So
// nothing is said there, and the log has what to do as a hint (remedy).
type agentSays struct {
	a           *app
	silent      bool // the log is the journal, or JSON
	addr        string
	fingerprint string
	tokenFile   string
	managed     bool         // its supervisor is the service manager's
	fault       func() error // what is wrong with that file, so that it counts as absent; nil: nothing ever is

	mu       sync.Mutex
	state    string // what was said last of whether it gets jobs; guarded by mu
	refusal  string // and of the server's refusal, "" while it is not refused; guarded by mu
	rejected bool   // by an operator; guarded by mu
	low      int    // the mark below which the token's life was said to be; guarded by mu
	line     string // STATUS; guarded by mu
	extended func() // ends the asking for more time; nil while none is asked for; guarded by mu
}

// notify is told of each change by the runner.
func (s *agentSays) notify(e runner.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case e.Err != nil:
		s.tellRefusal(e.ID, e.Err)
	case e.State != "" && e.Standing != nil:
		s.refusal, s.rejected = "", e.State == wire.Rejected
		s.tellState(e.ID, e.Standing)
		s.tellLife(e)
	}
	s.extend(e.Supervisor == wire.SupervisorLeaving)
	if line := s.status(e); line != s.line {
		s.line = line
		systemd.Status(line) // whether anybody listens was seen at the start
	}
}

// extend asks the service manager for time while the supervisor ends its jobs:
// where that is because the agent is stopped as well, the agent is to report
// how they ended. mu is held.
func (s *agentSays) extend(on bool) {
	switch {
	case on && s.extended == nil:
		s.extended = systemd.Extending(extension)
	case !on && s.extended != nil:
		s.extended()
		s.extended = nil
	}
}

// why is a problem with its detail.
func why(p wire.Problem, detail string) string {
	if p == wire.NoToken {
		return problemWords(p) // there is no more to it
	}
	return strings.TrimSuffix(problemWords(p)+": "+detail, ": ")
}

// why is what keeps the runner from jobs.
func (s *agentSays) why(st *wire.Standing) string {
	if st.Problem == wire.NoToken && s.fault != nil {
		if err := s.fault(); err != nil {
			return problemWords(st.Problem) + ": " + oneLine(err.Error())
		}
	}
	return why(st.Problem, st.Detail)
}

// tellState says whether jobs are given, and what to do if not.
func (s *agentSays) tellState(id string, st *wire.Standing) {
	what := string(st.State)
	if !st.Admitted {
		what += " " + s.why(st)
	}
	if s.state == what {
		return
	}
	s.state = what
	switch {
	case st.State == wire.Rejected:
		s.tell(s.remedy(id, *st), "runner %s was rejected by an operator: it gets no jobs", id)
	case st.State == wire.Pending && s.bare(st):
		s.tell(s.remedy(id, *st), "runner %s is pending: it gets no jobs until it is adopted; its key is %s", id, s.fingerprint)
	case st.State == wire.Pending:
		s.tell(s.remedy(id, *st), "runner %s is pending: it gets no jobs until it is adopted (%s); its key is %s", id, s.why(st), s.fingerprint)
	case st.Granted: // a token is under way
		s.state = ""
	case !st.Admitted:
		s.tell(s.remedy(id, *st), "runner %s is %s, but gets no jobs: %s", id, st.State, s.why(st))
	default:
		s.tell("", "runner %s is %s: it gets jobs", id, st.State)
	}
}

// tell says a line to a person, and a second one with what to do, if there is
// something.
func (s *agentSays) tell(hint, format string, args ...any) {
	if s.silent {
		return
	}
	s.a.note(format, args...)
	if hint != "" {
		s.a.hint("%s", hint)
	}
}

// bare reports whether the runner has shown no token, nor has one that cannot
// be shown.
func (s *agentSays) bare(st *wire.Standing) bool {
	return st.Problem == "" || s.why(st) == problemWords(wire.NoToken)
}

// remedy is what to do about a standing without jobs. It is asked for by the
// log as well, so it looks at nothing that changes.
func (s *agentSays) remedy(id string, st wire.Standing) string {
	switch {
	case st.State == wire.Rejected:
		return fmt.Sprintf("waypoint runner adopt %s, or put a token that is made from now on with waypoint runner token --id %s into %s", id, id, s.tokenFile)
	case st.State == wire.Pending && s.bare(&st):
		return fmt.Sprintf("waypoint runner adopt %s --fingerprint %s", id, s.fingerprint)
	case st.State == wire.Pending:
		return fmt.Sprintf("waypoint runner adopt %s --fingerprint %s, or put a new token into %s", id, s.fingerprint, s.tokenFile)
	}
	return s.heal(id)
}

// heal is what helps a runner without a usable token.
func (s *agentSays) heal(id string) string {
	return fmt.Sprintf("put a new token into %s, or: waypoint runner adopt %s", s.tokenFile, id)
}

// tellLife says what to do about a token that has not long to live; that it
// has not is in the log.
func (s *agentSays) tellLife(e runner.Event) {
	low := e.Low
	if !e.Standing.Admitted {
		low = 0
	}
	if low != 0 && low != s.low {
		s.tell(s.heal(e.ID), "the token of runner %s expires at %s: below %d %% of its life", e.ID, instant(e.Standing.Expiry), low)
	}
	s.low = low
}

// refuses reports whether this kind of error is a server's that is there, so
// that somebody has to do something.
func refuses(k wire.Kind) bool {
	switch k {
	case wire.Denied, wire.Unauthenticated, wire.Expired, wire.BadUsage, wire.Conflict, wire.Unimplemented:
		return true
	}
	return false
}

// tellRefusal says why a server that is there does not take the runner.
func (s *agentSays) tellRefusal(id string, err error) {
	kind := wire.KindOf(err)
	if !refuses(kind) {
		return // nobody is there; the log has it
	}
	if s.refusal == err.Error() || kind == wire.Denied && s.rejected {
		return
	}
	s.refusal, s.state = err.Error(), ""
	var hint string
	if e, ok := errors.AsType[*wire.Error](err); ok {
		hint = e.Hint
	}
	s.tell(hint, "runner %s is refused: %v; it goes on asking", id, err)
}

// status is the line for the service manager.
func (s *agentSays) status(e runner.Event) string {
	line := s.connection(e)
	if e.Stopping {
		return line
	}
	switch {
	case e.Supervisor == wire.SupervisorLeaving:
		return "The jobs' supervisor is stopping: no more jobs are taken. " + line
	case e.Supervisor == wire.SupervisorIncompatible:
		return "The jobs' supervisor is of another release and ends once its jobs have ended: no jobs are taken. " + line
	case e.Supervisor == wire.SupervisorMissing && s.managed:
		return "Waiting for waypoint-jobs.service (see: systemctl status 'waypoint-jobs*'): no jobs are taken. " + line
	}
	return line
}

// connection is how it fares with the server.
func (s *agentSays) connection(e runner.Event) string {
	jobs := output.Count(e.Jobs, "job") + " running"
	st := e.Standing
	switch {
	case e.Stopping && s.managed:
		return fmt.Sprintf("Handing over, %s goes on.", output.Count(e.Jobs, "job"))
	case e.Stopping:
		return fmt.Sprintf("Stopping, %s.", jobs)
	case e.Err != nil:
		line := fmt.Sprintf("Not connected to %s: %s", s.addr, oneLine(e.Err.Error()))
		if err, ok := errors.AsType[*wire.Error](e.Err); ok && err.Hint != "" && refuses(err.Kind) {
			return line + "; " + oneLine(err.Hint)
		}
		return line + "."
	case e.State == "" || st == nil:
		return fmt.Sprintf("Not connected to %s.", s.addr)
	case st.State == wire.Pending:
		return fmt.Sprintf("Waiting for: waypoint runner adopt %s --fingerprint %s", e.ID, s.fingerprint)
	case st.State == wire.Rejected:
		return "Rejected by an operator; waiting."
	case st.Granted:
		return fmt.Sprintf("Connected (%s), %s, its token is under way.", st.State, jobs)
	case !st.Admitted:
		return fmt.Sprintf("Connected (%s), %s, gets no jobs: %s; %s", st.State, jobs, s.why(st), s.heal(e.ID))
	}
	line := fmt.Sprintf("Connected (%s), %s, token from the %s until %s", st.State, jobs, sourceWords(st.Source), instant(st.Expiry))
	if e.Low != 0 {
		line += fmt.Sprintf(" (below %d %% of its life)", e.Low)
	}
	switch {
	case e.Draining:
		line += ", drained on this host"
	case st.Draining:
		line += ", drained at the server"
	}
	return line + "."
}
