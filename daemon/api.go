package daemon

import (
	"context"

	"github.com/waypointd/waypoint/mux"
	"github.com/waypointd/waypoint/mux/wire"
)

// role is who may call a method.
type role int

const (
	client role = 1 << iota // an operator's command line
	runner                  // a runner whose identity key has been proved; what needs adoption checks it, as it changes while connected
)

// method is one row of the API.
type method struct {
	name string
	who  role
	call mux.Handler
}

// api is the whole API.
func (s *Server) api() []method {
	return []method{
		{wire.MethodServerStatus, client, mux.Unary(s.serverStatus)},
		{wire.MethodServerReload, client, mux.Unary(s.serverReload)},
		{wire.MethodServerSnapshot, client, s.serverSnapshot()},
		{wire.MethodServerBootstrap, client, mux.Unary(s.serverBootstrap)},
		{wire.MethodTokenKeyRotate, client, mux.Unary(s.tokenKeyRotate)},
		{wire.MethodUserToken, client, mux.Unary(s.userToken)},

		{wire.MethodJobSubmit, client, mux.Unary(s.jobSubmit)},
		{wire.MethodJobGet, client, mux.Unary(s.jobGet)},
		{wire.MethodJobList, client, mux.Unary(s.jobList)},
		{wire.MethodJobWhy, client, mux.Unary(s.jobWhy)},
		{wire.MethodJobCancel, client, mux.Unary(s.jobCancel)},
		{wire.MethodJobRetry, client, mux.Unary(s.jobRetry)},
		{wire.MethodJobWait, client, mux.Unary(s.jobWait)},
		{wire.MethodJobStream, client, s.jobStream},

		{wire.MethodRecordList, client, mux.Unary(s.recordList)},

		{wire.MethodBlobMissing, client | runner, s.ifAdmitted(mux.Unary(s.blobMissing))},
		{wire.MethodBlobPut, client | runner, s.ifAdmitted(s.blobPut)},
		{wire.MethodBlobGet, client | runner, s.ifAdmitted(s.blobGet)},

		{wire.MethodRunnerList, client, mux.Unary(s.runnerList)},
		{wire.MethodRunnerInspect, client, mux.Unary(s.runnerInspect)},
		{wire.MethodRunnerAdopt, client, mux.Unary(s.runnerAdopt)},
		{wire.MethodRunnerReject, client, mux.Unary(s.runnerReject)},
		{wire.MethodRunnerForget, client, mux.Unary(s.runnerForget)},
		{wire.MethodRunnerDrain, client, mux.Unary(s.runnerDrain)},
		{wire.MethodRunnerWait, client, mux.Unary(s.runnerWait)},
		{wire.MethodRunnerToken, client, mux.Unary(s.runnerToken)},
		{wire.MethodRunnerMatch, client, mux.Unary(s.runnerMatch)},

		{wire.MethodAuthenticate, runner, mux.Unary(s.authenticate)},
		{wire.MethodWork, runner, s.runnerWork},
		{wire.MethodReport, runner, s.runnerReport}, // for jobs the runner was given: the attempt is the permission
	}
}

// table is what peers of a role can reach, while their login is good; the rest
// is refused by name, or with why where that is set.
func (s *Server) table(r role, why *wire.Error) mux.Table {
	t := mux.Table{}
	for _, m := range s.api() {
		if m.who&r != 0 {
			t[m.name] = s.whileLoggedIn(m.call)
			continue
		}
		t[m.name] = func(context.Context, *mux.Stream) error {
			if why != nil {
				return why
			}
			return wire.Errorf(wire.Denied, "%s is not for this kind of peer", m.name)
		}
	}
	return t
}
