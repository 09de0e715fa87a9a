// Package wire is the protocol: every noun and message that crosses a
// session, the frames that carry them, the kinds of error and the versions.
// It depends on the standard library alone, does no I/O of its own beyond the
// reader and writer it is given, and starts no goroutine.
//
// # Sessions and streams
//
// A session is one yamux connection (package mux). On Unix sockets it begins at
// once, on TCP behind a TLS 1.3 handshake without a client certificate; between loopback
// addresses plaintext may be allowed, and the first byte tells the two apart
// (0x16 is TLS, 0 is yamux). Each call is one yamux
// stream. Roles are symmetric: either side may open a stream, so a call from
// the server to a runner is a call like any other.
//
//	stream := CALL frame* STATUS
//	frame  := type u8 | length u24 big endian | payload
//
//	type    payload                                        limit
//	1 CALL   JSON {"m":method,"t":deadline in ms,"b":body}   1 MiB  (64 KiB before the hello)
//	2 MSG    JSON                                            1 MiB  (64 KiB before the hello)
//	3 DATA   offset u64 | time µs i64 | stream u8 | bytes     16 KiB of bytes
//	4 END    empty: this side sends no more MSG or DATA       0
//	5 STATUS JSON {"kind","message","hint"}; {} is success    64 KiB
//
// Types from 0x80 on may be ignored by a receiver that does not know them;
// any other unknown type is an error. Buffers grow as bytes arrive, never by
// a claimed length.
//
// The opener sends CALL and may send MSG and DATA, then END. The other side
// answers with MSG and DATA and always with exactly one STATUS, after which
// it closes the stream. END is a frame, so a half-closed stream never means
// cancel: to cancel, the opener closes the stream before STATUS has come.
// Deadlines travel as relative milliseconds; both sides enforce them.
//
// # Hello
//
// The first stream of a session is the call "hello" (see [Hello]), within ten
// seconds, opened by the side that dialed. Both sides name the range of
// protocol versions they speak and use the highest one they share. Unknown
// JSON fields are ignored; unknown methods are answered with
// [Unimplemented].
//
// A runner then proves that it holds its identity key: the reply to its Hello
// is a [Challenge], answered by a [Proof], answered by [Welcome]. On TLS the
// proof is bound to the connection: 32 bytes of keying material exported under
// the label "EXPORTER-waypoint-runner-identity". Everyone else gets Welcome at
// once.
package wire

// Protocol versions spoken by this build. A peer that shares none is refused
// with both ranges named.
const (
	VersionMin = 1
	VersionMax = 1
)

// Limits of one frame's payload, in bytes.
const (
	MaxCall        = 1 << 20  // a CALL's payload: method, deadline and body
	MaxMsg         = 1 << 20  // a MSG's payload
	MaxBeforeHello = 64 << 10 // any payload until the hello has succeeded
	MaxData        = 16 << 10 // the bytes of one DATA frame
	MaxStatus      = 64 << 10 // a STATUS's payload
)

// Methods. The server's table (daemon/api.go) says who may call which.
const (
	MethodHello = "hello"
	MethodPing  = "ping"

	MethodServerStatus    = "server.status"    // ServerStatusRequest -> ServerStatus
	MethodServerReload    = "server.reload"    // ReloadRequest -> Reloaded; BadUsage where the configuration is bad
	MethodServerSnapshot  = "server.snapshot"  // SnapshotRequest -> MSG SnapshotHeader, DATA*
	MethodServerBootstrap = "server.bootstrap" // BootstrapRequest -> TokenReply, once
	MethodTokenKeyRotate  = "token_key.rotate" // RotateRequest -> RotateReply

	MethodUserSelf   = "user.self"   // SelfRequest -> Self
	MethodUserToken  = "user.token"  // UserTokenRequest -> TokenReply
	MethodUserTokens = "user.tokens" // UserFilter -> UserTokenPage
	MethodUserRevoke = "user.revoke" // RevokeRequest -> UserTokenPage, of those that are revoked now
	MethodUserAccept = "user.accept" // AcceptRequest -> TokenReply, for an invite
	MethodUserInvite = "user.invite" // InviteRequest -> TokenReply
	MethodUserList   = "user.list"   // UserFilter -> UserPage
	MethodUserSet    = "user.set"    // UserSetRequest -> User
	MethodUserDelete = "user.delete" // UserRequest -> User, as it was

	MethodAuditList = "audit.list" // AuditFilter -> AuditPage

	MethodJobSubmit = "job.submit" // SubmitRequest -> SubmitReply
	MethodJobGet    = "job.get"    // JobRequest -> Job
	MethodJobList   = "job.list"   // JobFilter -> JobPage
	MethodJobWhy    = "job.why"    // JobRequest -> Why
	MethodJobCancel = "job.cancel" // CancelRequest -> Job
	MethodJobWait   = "job.wait"   // JobRequest -> Job, once it has ended
	MethodJobRetry  = "job.retry"  // JobRequest -> Job
	MethodJobStream = "job.stream" // StreamRequest -> (MSG StreamEvent | DATA)*, see StreamEvent

	MethodRecordList = "record.list" // RecordFilter -> RecordPage: artifacts, deployments, releases

	MethodBlobMissing = "blob.missing" // BlobDigests -> BlobDigests
	MethodBlobPut     = "blob.put"     // (MSG BlobHeader, DATA*)* END -> BlobDigests of what is now stored
	MethodBlobGet     = "blob.get"     // BlobDigests -> (MSG BlobHeader, DATA*)*

	MethodRunnerList    = "runner.list"    // RunnerFilter -> RunnerPage
	MethodRunnerInspect = "runner.inspect" // RunnerRequest -> Runner
	MethodRunnerAdopt   = "runner.adopt"   // AdoptRequest -> Runner
	MethodRunnerReject  = "runner.reject"  // RunnerRequest -> Runner
	MethodRunnerForget  = "runner.forget"  // RunnerRequest -> Runner, as it was
	MethodRunnerDrain   = "runner.drain"   // DrainRequest -> Runner
	MethodRunnerWait    = "runner.wait"    // RunnerRequest -> Runner, once it has no job
	MethodRunnerToken   = "runner.token"   // RunnerTokenRequest -> TokenReply
	MethodRunnerMatch   = "runner.match"   // MatchRequest -> MatchReply

	MethodAuthenticate = "runner.authenticate" // runner -> server: AuthenticateRequest -> Standing

	MethodWork   = "runner.work"   // runner -> server: WorkEvent* against WorkOrder*
	MethodReport = "runner.report" // runner -> server: ReportRequest; DATA*, Result against ReportOrder*

	MethodAgentStatus = "agent.status" // command line -> agent: AgentStatusRequest -> AgentStatus
	MethodAgentDrain  = "agent.drain"  // command line -> agent: DrainRequest -> AgentStatus
	MethodAgentWait   = "agent.wait"   // command line -> agent: AgentStatusRequest -> AgentStatus, once it has no job
)
