package daemon

import (
	"github.com/waypointd/waypoint/mux"
	"github.com/waypointd/waypoint/mux/wire"
)

// role is who may call a method: of people the least role, and besides them.
type role int

const (
	runners   role = 1 << iota // a runner whose identity key has been proved; what needs adoption checks it, as it changes while connected
	invited                    // who shows an invite
	viewers                    // a person who sees
	operators                  // a person who has jobs run
	admins                     // a person who has people in, or the whole of the server
)

// scope is how a method goes with the limits that a person may have.
type scope int

const (
	nowhere   scope = iota // it has to do with no project: they change nothing
	unlimited              // it has to do with all of them: who has limits may not call it
	byJob                  // "id" is a job: one that is outside is NotFound
	byFilter               // what is outside is left out of the answer
	bySpec                 // what is asked for must be inside
	byBlob                 // only what the caller has sent, or may see; see blobs.go
)

// method is one row of the API.
type method struct {
	name   string
	who    role
	limits scope
	call   mux.Handler
}

// api is the whole API.
func (s *Server) api() []method {
	return []method{
		{wire.MethodServerStatus, viewers, byFilter, mux.Unary(s.serverStatus)},
		{wire.MethodServerReload, admins, nowhere, mux.Unary(s.serverReload)},
		{wire.MethodServerSnapshot, admins, nowhere, s.serverSnapshot()},
		{wire.MethodServerBootstrap, admins, nowhere, mux.Unary(s.serverBootstrap)},
		{wire.MethodTokenKeyRotate, admins, nowhere, mux.Unary(s.tokenKeyRotate)},

		{wire.MethodUserSelf, viewers, nowhere, mux.Unary(s.userSelf)},
		{wire.MethodUserToken, viewers, nowhere, mux.Unary(s.userToken)},
		{wire.MethodUserTokens, viewers, nowhere, mux.Unary(s.userTokens)},
		{wire.MethodUserRevoke, viewers, nowhere, mux.Unary(s.userRevoke)},
		{wire.MethodUserAccept, invited, nowhere, mux.Unary(s.userAccept)},
		{wire.MethodUserInvite, admins, nowhere, mux.Unary(s.userInvite)},
		{wire.MethodUserList, admins, nowhere, mux.Unary(s.userList)},
		{wire.MethodUserSet, admins, nowhere, mux.Unary(s.userSet)},
		{wire.MethodUserDelete, admins, nowhere, mux.Unary(s.userDelete)},

		{wire.MethodJobSubmit, operators, bySpec, mux.Unary(s.jobSubmit)},
		{wire.MethodJobGet, viewers, byJob, mux.Unary(s.jobGet)},
		{wire.MethodJobList, viewers, byFilter, mux.Unary(s.jobList)},
		{wire.MethodJobWhy, viewers, byJob, mux.Unary(s.jobWhy)},
		{wire.MethodJobCancel, operators, byJob, mux.Unary(s.jobCancel)},
		{wire.MethodJobRetry, operators, byJob, mux.Unary(s.jobRetry)},
		{wire.MethodJobWait, viewers, byJob, mux.Unary(s.jobWait)},
		{wire.MethodJobStream, viewers, byJob, s.jobStream},

		{wire.MethodRecordList, viewers, byFilter, mux.Unary(s.recordList)},

		{wire.MethodBlobMissing, operators | runners, byBlob, s.ifAdmitted(mux.Unary(s.blobMissing))},
		{wire.MethodBlobPut, operators | runners, byBlob, s.ifAdmitted(s.blobPut)},
		{wire.MethodBlobGet, operators | runners, byBlob, s.ifAdmitted(s.blobGet)},

		{wire.MethodRunnerList, viewers, nowhere, mux.Unary(s.runnerList)},
		{wire.MethodRunnerInspect, viewers, nowhere, mux.Unary(s.runnerInspect)},
		{wire.MethodRunnerAdopt, operators, unlimited, mux.Unary(s.runnerAdopt)},
		{wire.MethodRunnerReject, operators, unlimited, mux.Unary(s.runnerReject)},
		{wire.MethodRunnerForget, operators, unlimited, mux.Unary(s.runnerForget)},
		{wire.MethodRunnerDrain, operators, unlimited, mux.Unary(s.runnerDrain)},
		{wire.MethodRunnerWait, viewers, nowhere, mux.Unary(s.runnerWait)},
		{wire.MethodRunnerToken, admins, unlimited, mux.Unary(s.runnerToken)}, // operator, where access.runner_tokens says so
		{wire.MethodRunnerMatch, viewers, nowhere, mux.Unary(s.runnerMatch)},

		{wire.MethodAuthenticate, runners, nowhere, mux.Unary(s.authenticate)},
		{wire.MethodWork, runners, nowhere, s.runnerWork},
		{wire.MethodReport, runners, nowhere, s.runnerReport}, // for jobs the runner was given: the attempt is the permission
	}
}

// table is the API with its guards; who comes by a session is asked at each call.
func (s *Server) table() mux.Table {
	t := mux.Table{}
	for _, m := range s.api() {
		t[m.name] = s.guard(m)
	}
	return s.counted(t)
}
