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

// What method.audit says.
const (
	recorded   = true
	unrecorded = false
)

// method is one row of the API.
type method struct {
	name   string
	who    role
	limits scope
	audit  bool // recorded however it comes out: what changes something, or hands out a credential or all there is
	call   mux.Handler
}

// api is the whole API.
func (s *Server) api() []method {
	return []method{
		{wire.MethodServerStatus, viewers, byFilter, unrecorded, mux.Unary(s.serverStatus)},
		{wire.MethodServerReload, admins, nowhere, recorded, mux.Unary(s.serverReload)},
		{wire.MethodServerSnapshot, admins, nowhere, recorded, s.serverSnapshot()},
		{wire.MethodServerBootstrap, admins, nowhere, recorded, mux.Unary(s.serverBootstrap)},
		{wire.MethodTokenKeyRotate, admins, nowhere, recorded, mux.Unary(s.tokenKeyRotate)},

		{wire.MethodUserSelf, viewers, nowhere, unrecorded, mux.Unary(s.userSelf)},
		{wire.MethodUserToken, viewers, nowhere, recorded, mux.Unary(s.userToken)},
		{wire.MethodUserTokens, viewers, nowhere, unrecorded, mux.Unary(s.userTokens)},
		{wire.MethodUserRevoke, viewers, nowhere, recorded, mux.Unary(s.userRevoke)},
		{wire.MethodUserAccept, invited, nowhere, recorded, mux.Unary(s.userAccept)},
		{wire.MethodUserInvite, admins, nowhere, recorded, mux.Unary(s.userInvite)},
		{wire.MethodUserList, admins, nowhere, unrecorded, mux.Unary(s.userList)},
		{wire.MethodUserSet, admins, nowhere, recorded, mux.Unary(s.userSet)},
		{wire.MethodUserDelete, admins, nowhere, recorded, mux.Unary(s.userDelete)},

		{wire.MethodAuditList, admins, nowhere, unrecorded, mux.Unary(s.auditList)},

		{wire.MethodJobSubmit, operators, bySpec, recorded, mux.Unary(s.jobSubmit)},
		{wire.MethodJobGet, viewers, byJob, unrecorded, mux.Unary(s.jobGet)},
		{wire.MethodJobList, viewers, byFilter, unrecorded, mux.Unary(s.jobList)},
		{wire.MethodJobWhy, viewers, byJob, unrecorded, mux.Unary(s.jobWhy)},
		{wire.MethodJobCancel, operators, byJob, recorded, mux.Unary(s.jobCancel)},
		{wire.MethodJobRetry, operators, byJob, recorded, mux.Unary(s.jobRetry)},
		{wire.MethodJobWait, viewers, byJob, unrecorded, mux.Unary(s.jobWait)},
		{wire.MethodJobStream, viewers, byJob, unrecorded, s.jobStream},

		{wire.MethodRecordList, viewers, byFilter, unrecorded, mux.Unary(s.recordList)},

		{wire.MethodBlobMissing, operators | runners, byBlob, unrecorded, s.ifAdmitted(mux.Unary(s.blobMissing))},
		{wire.MethodBlobPut, operators | runners, byBlob, unrecorded, s.ifAdmitted(s.blobPut)},
		{wire.MethodBlobGet, operators | runners, byBlob, unrecorded, s.ifAdmitted(s.blobGet)},

		{wire.MethodRunnerList, viewers, nowhere, unrecorded, mux.Unary(s.runnerList)},
		{wire.MethodRunnerInspect, viewers, nowhere, unrecorded, mux.Unary(s.runnerInspect)},
		{wire.MethodRunnerAdopt, operators, unlimited, recorded, mux.Unary(s.runnerAdopt)},
		{wire.MethodRunnerReject, operators, unlimited, recorded, mux.Unary(s.runnerReject)},
		{wire.MethodRunnerForget, operators, unlimited, recorded, mux.Unary(s.runnerForget)},
		{wire.MethodRunnerDrain, operators, unlimited, recorded, mux.Unary(s.runnerDrain)},
		{wire.MethodRunnerWait, viewers, nowhere, unrecorded, mux.Unary(s.runnerWait)},
		{wire.MethodRunnerToken, admins, unlimited, recorded, mux.Unary(s.runnerToken)}, // operator, where access.runner_tokens says so
		{wire.MethodRunnerMatch, viewers, nowhere, unrecorded, mux.Unary(s.runnerMatch)},

		{wire.MethodAuthenticate, runners, nowhere, unrecorded, mux.Unary(s.authenticate)},
		{wire.MethodWork, runners, nowhere, unrecorded, s.runnerWork},
		{wire.MethodReport, runners, nowhere, unrecorded, s.runnerReport}, // for jobs the runner was given: the attempt is the permission
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
