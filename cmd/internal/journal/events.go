package journal

// Events are the messages with an id, in the order of the catalog. A text
// that is changed here is changed where it is logged; an id never is.
var Events = []Event{
	{
		Text:    "server started",
		ID:      "0dc80ed36d394f0891fbcbdba6515b88",
		Subject: "Waypoint's server has started",
		Body: `
The server, version @WAYPOINT_VERSION@, takes jobs from here on. Jobs that were queued
or running before go on; what its runners hold is sorted out when they connect.`,
	},
	{
		Text:    "server stopped",
		ID:      "79e6a4cc547141a4bff122964993681f",
		Subject: "Waypoint's server has stopped",
		Body: `
Nothing was lost: jobs that run go on at their runners, and everything else is in
the store. Runners and command lines that wait for output connect again when the
server is back. The cause: @WAYPOINT_CAUSE@`,
	},
	{
		Text:    "listening",
		ID:      "02370f40ab394b00a6f6d1e27067f1b7",
		Subject: "Waypoint's server listens on @WAYPOINT_ADDRESS@",
		Body: `
Who connects there is asked for a token, or on a Unix socket known by user and groups.`,
	},
	{
		Text:    "runner connected",
		ID:      "f1ea7ba8a89c4de7b908d53a725854b4",
		Subject: "Runner @WAYPOINT_RUNNER@ has connected",
		Body: `
It gets jobs if it is adopted or has a usable token: see
waypoint runner inspect @WAYPOINT_RUNNER@`,
	},
	{
		Text:    "runner disconnected",
		ID:      "2536abc8b1334962a074dbfbf8c899b5",
		Subject: "Runner @WAYPOINT_RUNNER@ has no connection any more",
		Body: `
Its running jobs go on and are reported when it is back. If it stays away for
longer than the lease (two minutes, unless configured), they end as lost. Look on its
host: systemctl status waypoint-runner`,
	},
	{
		Text:    "runner pending",
		ID:      "895f5b9d2ef34fd7886e3bfd7770cb19",
		Subject: "Runner @WAYPOINT_RUNNER@ waits for adoption",
		Body: `
It has no usable token (@WAYPOINT_PROBLEM@), so it gets no jobs. Compare the fingerprint that
it shows on its own host with that of
  waypoint runner inspect @WAYPOINT_RUNNER@
and then either
  waypoint runner adopt @WAYPOINT_RUNNER@
or
  waypoint runner reject @WAYPOINT_RUNNER@`,
	},
	{
		Text:    "runner gets no jobs",
		ID:      "8280168e057e4916b7bf017497fd46a9",
		Subject: "Runner @WAYPOINT_RUNNER@ gets no jobs",
		Body: `
It is @WAYPOINT_STATE@. What keeps it from jobs: @WAYPOINT_DETAIL@
(problem: @WAYPOINT_PROBLEM@). Its running jobs go on. Mend it from the server with
  waypoint runner adopt @WAYPOINT_RUNNER@
or on its host with a new token of
  waypoint runner token --id @WAYPOINT_RUNNER@`,
	},
	{
		Text:    "runner adopted",
		ID:      "e9a95867e9074d9b9c00915a89444bb5",
		Subject: "Runner @WAYPOINT_RUNNER@ was adopted by @WAYPOINT_BY@",
		Body: `
It gets jobs, with a token that was made for its key @WAYPOINT_FINGERPRINT@ and is renewed by itself.
To take that back: waypoint runner reject @WAYPOINT_RUNNER@`,
	},
	{
		Text:    "runner rejected",
		ID:      "47d78dfd85ee43f3a15874ce9033b321",
		Subject: "Runner @WAYPOINT_RUNNER@ was rejected by @WAYPOINT_BY@",
		Body: `
It gets no further job; what it runs ends as usual. It stays listed, and goes on asking
now and then. To take that back: waypoint runner adopt @WAYPOINT_RUNNER@`,
	},
	{
		Text:    "runner forgotten",
		ID:      "05fa4e9cab0647f9b0ce931819a31c40",
		Subject: "Runner @WAYPOINT_RUNNER@ was forgotten by @WAYPOINT_BY@",
		Body: `
Its record and the binding of its id to its key are gone. If it connects again it is
as a new one: with a usable token it gets jobs, without one it waits for adoption. To keep
it away, reject it instead.`,
	},
	{
		Text:    "runner's drain has changed",
		ID:      "cf89c27c02b448f28d3a3052355a3c0d",
		Subject: "The drain of runner @WAYPOINT_RUNNER@ has changed",
		Body: `
Draining now: @WAYPOINT_DRAINING@. A drained runner gets no further job; what it runs ends
as usual. The drain of an operator and that of the host's own people are taken back where they
were made, with waypoint runner resume. By: @WAYPOINT_BY@`,
	},
	{
		Text:    "this host is drained: no jobs are taken",
		ID:      "e2aa92678fc34854998f029980114e4f",
		Subject: "This host's runner is drained",
		Body: `
Somebody on this host has drained its runner, and that outlives a restart. To take jobs again,
on this host: waypoint runner resume`,
	},
	{
		Text:    "token refused",
		ID:      "bd2d8829ff3e4744ac03f6a1135b7528",
		Subject: "The server cannot use a token of runner @WAYPOINT_RUNNER@",
		Body: `
The token from the @WAYPOINT_SOURCE@ is not used: @WAYPOINT_PROBLEM@ (@WAYPOINT_DETAIL@).
The runner goes on with the next one that it has. Replace or remove it; one is made with
  waypoint runner token --id @WAYPOINT_RUNNER@`,
	},
	{
		Text:    "token expires soon",
		ID:      "07728db2aba1465781738fa57fde4602",
		Subject: "The token of runner @WAYPOINT_RUNNER@ expires soon",
		Body: `
The token from the @WAYPOINT_SOURCE@ is good until @WAYPOINT_EXPIRES_AT@; from then on
this runner gets no jobs. Tokens of adopted runners are renewed by themselves; this one is not, or could
not be. Make a new one with
  waypoint runner token --id @WAYPOINT_RUNNER@
and put it into the file "token" in the runner's state directory: it is taken up at once.`,
	},
	{
		Text:    "granted token stored",
		ID:      "71f327783b2f4eefbcdd1ca3ca84b73c",
		Subject: "Runner @WAYPOINT_RUNNER@ has a new token",
		Body: `
The server has granted it, by adoption or renewal, and it is on disk. There is nothing to do.`,
	},
	{
		Text:    "granted token cannot be stored: it is used from memory, and lost when this process ends",
		ID:      "bd6f517716a847c1bbfc04d30116d769",
		Subject: "A new token of the runner cannot be stored",
		Body: `
The runner works, but after a restart it may have no usable token: @WAYPOINT_ERROR@
Make its state directory writable, or room on its disk; the runner tries again by itself.`,
	},
	{
		Text:    "refused by the server, which is asked again now and then",
		ID:      "41e7fd172d5a42b5abfbc290c351cf86",
		Subject: "The server refuses runner @WAYPOINT_RUNNER@",
		Body: `
The server says: @WAYPOINT_ERROR@
The runner stays up and asks again, at most once a minute. Where an operator has rejected it, one can adopt
it again; where its id is in use by another identity, give it an id of its own or have the other one
forgotten.`,
	},
	{
		Text:    "server cannot be used, and is tried again now and then",
		ID:      "242c9740bbee40fa958ea5e78c4b6b5d",
		Subject: "Runner @WAYPOINT_RUNNER@ does not trust the server",
		Body: `
@WAYPOINT_ERROR@
The runner does not show its tokens to a server that it cannot tell to be the right one. Compare the fingerprint with
that of waypoint server status on the server's host, and name it with server_tls_fingerprint in
/etc/waypoint/runner.toml.`,
	},
	{
		Text:    "job queued",
		ID:      "caa640d49140409b9003ef8e6b07b44c",
		Subject: "Job @WAYPOINT_JOB@ was queued by @WAYPOINT_BY@",
		Body: `
If it waits for long: waypoint job why @WAYPOINT_JOB@`,
	},
	{
		Text:    "job assigned",
		ID:      "d3b2e8831d9540d889787c1ff438d3d4",
		Subject: "Job @WAYPOINT_JOB@ was given to runner @WAYPOINT_RUNNER@",
		Body: `
This is attempt @WAYPOINT_ATTEMPT@. It starts as soon as the runner has acknowledged it.`,
	},
	{
		Text:    "job started",
		ID:      "2404978bbd6b4ea4bc31b93fd2cc21f9",
		Subject: "Job @WAYPOINT_JOB@ runs",
		Body: `
This is attempt @WAYPOINT_ATTEMPT@. Its output: waypoint job stream @WAYPOINT_JOB@`,
	},
	{
		Text:    "job ended",
		ID:      "7c605716955b4af8a246cef553af5aee",
		Subject: "Job @WAYPOINT_JOB@ has ended: @WAYPOINT_STATE@",
		Body: `
This was attempt @WAYPOINT_ATTEMPT@. All of it: waypoint job inspect @WAYPOINT_JOB@`,
	},
	{
		Text:    "job refused",
		ID:      "65f479ae3eb147209eb8b73be94b948b",
		Subject: "Runner @WAYPOINT_RUNNER@ has refused job @WAYPOINT_JOB@",
		Body: `
The job goes back to the queue. Why: @WAYPOINT_WHY@`,
	},
	{
		Text:    "job given back to the queue",
		ID:      "a875eb36d51d4bd4bdbe240f3ab8516b",
		Subject: "Job @WAYPOINT_JOB@ went back to the queue",
		Body: `
Attempt @WAYPOINT_ATTEMPT@ had not started: @WAYPOINT_WHY@. It is given to a runner again.`,
	},
	{
		Text:    "job is of a newer release, and is left alone until that is installed again",
		ID:      "cf4b544427e4469b97735666f9eda6c5",
		Subject: "Job @WAYPOINT_JOB@ is kept for a newer release",
		Body: `
A newer release has written @WAYPOINT_DIR@, which this one cannot read. The job is not lost: if it runs it goes
on, and it is on record as this runner's, but nothing of it is reported. Install that release
again on this host and it is; or give it up:
  waypoint job cancel --force @WAYPOINT_JOB@`,
	},
	{
		Text:    "job cannot be taken up again: its record is damaged",
		ID:      "ef821022ebd94bc983c5690e4b67df5b",
		Subject: "What the runner knows of job @WAYPOINT_JOB@ is damaged",
		Body: `
@WAYPOINT_DIR@ cannot be used (@WAYPOINT_ERROR@). What runs of the job is ended, and it
ends as runner_lost with the output there is. Look at the disk of the host.`,
	},
	{
		Text:    "job lost",
		ID:      "222f822617794671afdd8410a7efe422",
		Subject: "Job @WAYPOINT_JOB@ was lost",
		Body: `
Nobody knows how attempt @WAYPOINT_ATTEMPT@ would have ended: @WAYPOINT_WHY@. The job ends as
runner_lost. It may have done its work or a part of it, so it is not started again by itself; to do that:
  waypoint job retry @WAYPOINT_JOB@`,
	},
	{
		Text:    "late result of a lost job recorded",
		ID:      "f3f122f03b0c48218bdb13e74c286685",
		Subject: "What became of lost job @WAYPOINT_JOB@ is known: @WAYPOINT_STATE@",
		Body: `
Runner @WAYPOINT_RUNNER@ is back and has handed in the rest of the output of attempt @WAYPOINT_ATTEMPT@ and how it went. The
job stays runner_lost, and nothing that depends on it goes on by itself:
  waypoint job inspect @WAYPOINT_JOB@
  waypoint job stream @WAYPOINT_JOB@`,
	},
	{
		Text:    "store kept as it is before its schema changes",
		ID:      "c1ddbe34a87c844ea744e4ec7d9992d6",
		Subject: "The store is kept as it was before this release changes it",
		Body: `
To go back to the release before, install it and restore @WAYPOINT_FILE@
with waypoint server restore: what has happened since is lost then. Nobody who stays needs the file.`,
	},
	{
		Text:    "no room to keep the store as it is before its schema changes",
		ID:      "b70a2606c3cf7911574b15e43e9bca62",
		Subject: "The store is brought up to date, and was not kept as it was",
		Body: `
There was no room for @WAYPOINT_FILE@. The release before cannot read
the store any more; to go back to it needs a snapshot of waypoint server snapshot from before.`,
	},
	{
		Text:    "store is full: jobs and output wait for room",
		ID:      "5d9169d4082c48248878a21f76f099b3",
		Subject: "No room is left for the store",
		Body: `
Nothing that was stored is lost, and running jobs go on: their output waits on their runners. New jobs are
refused until there is room again in @WAYPOINT_STORE@. The server tries again by itself; it need not be
restarted.`,
	},
	{
		Text:    "store has its reserve left: no new work is taken",
		ID:      "98bb5ba2dd404c30bbaaa3346f3853dc",
		Subject: "Little room is left for the store",
		Body: `
@WAYPOINT_FREE@ are free for @WAYPOINT_STORE@; @WAYPOINT_RESERVE@ are kept for jobs that run, so that their output and
their ends can be recorded. New jobs and uploads are refused, and queued jobs wait. The server goes on by
itself once there is room. How much is kept is store_reserve in /etc/waypoint/server.toml.`,
	},
	{
		Text:    "store has room again",
		ID:      "bffb4bbb21aa46898fa997998e07253b",
		Subject: "The store has room again",
		Body: `
What has waited goes on.`,
	},
	{
		Text:    "store failed",
		ID:      "38ad34f43d594d9788b8178d99bea9f6",
		Subject: "The store cannot be trusted any more",
		Body: `
An I/O error, or a commit of unknown outcome: @WAYPOINT_ERROR@
The server ends, and is started anew from what is durable. If this is said again and again, look after
the disk (dmesg, smartctl) or the database.`,
	},
	{
		Text:    "server does not take the output of a job: it is kept here and offered again",
		ID:      "c2b8d1e07a5948b39f1d64a0be3d7721",
		Subject: "The server refuses output of a job",
		Body: `
From byte @WAYPOINT_OFFSET@ on: @WAYPOINT_ERROR@
It is a limit of a server of another release, or a defect. Output is offered again as long as the job runs; an upgrade of the
server may heal it. When the job has ended its end is reported without it.`,
	},
	{
		Text:    "output that the server has refused is kept here",
		ID:      "0d9a4f3b6ce14e0c8a77b5d2f98e6013",
		Subject: "A job has ended without all of its output, which is kept on its runner",
		Body: `
@WAYPOINT_DIR@ has the output as it was written (the file log) and, in the file refused, why the server does not have it.
Nothing removes it: keep what is of use, then remove the directory.`,
	},
	{
		Text:    "job waits for room on this host's disk",
		ID:      "5f3c1f0a7d0b4c52a9e64d8e21b7c36f",
		Subject: "A job waits for room on its runner's disk",
		Body: `
There is no room to @WAYPOINT_TO@: @WAYPOINT_ERROR@
What had been made of it was removed, so that others find room. It goes on by itself once there is room, or ends when it is
canceled: waypoint job cancel @WAYPOINT_JOB@`,
	},
	{
		Text:    "spool cannot be written: taking no jobs",
		ID:      "a9aaaaa94f4841ee9cb25d9a99997550",
		Subject: "The runner cannot write its jobs' directory",
		Body: `
@WAYPOINT_ERROR@
It takes no jobs until @WAYPOINT_DIR@ can be written again, which it tries by itself. Most often the disk is full.`,
	},
	{
		Text:    "certificate not renewed, the one before stays in use",
		ID:      "6ae32c873dcd49f9978c554ef28cd1d2",
		Subject: "The server's new certificate cannot be used",
		Body: `
@WAYPOINT_ERROR@
The one before stays in use until its end. Mend the files; the server looks at them again by itself.`,
	},
	{
		Text:    "certificate renewed",
		ID:      "6c1745033814407cbeed4a1546a85317",
		Subject: "The server has a new certificate",
		Body: `
It is good until @WAYPOINT_EXPIRES_AT@. Its fingerprint is @WAYPOINT_FINGERPRINT@.`,
	},
	{
		Text:    "supervisor started",
		ID:      "2d11cb6ec6744b0ab69a0b2099c637cb",
		Subject: "The supervisor of the jobs has started",
		Body: `
Process @WAYPOINT_PID@ is the parent of all jobs of this runner from here on, with isolation by @WAYPOINT_ISOLATION@.`,
	},
	{
		Text:    "supervisor lost",
		ID:      "1b0c019b194b4b36a8cf1ead7c409987",
		Subject: "The runner has lost the supervisor of its jobs",
		Body: `
@WAYPOINT_ERROR@
The supervisor is the parent of the jobs: if its process has died, so have they, and they end as runner_lost. The
runner waits for another one. Look for the reason: journalctl -u waypoint-jobs`,
	},
	{
		Text:    "supervisor found",
		ID:      "a71d97fe02ea4f03bed25ef6d3a7d945",
		Subject: "The runner has a supervisor of its jobs",
		Body: `
It holds @WAYPOINT_JOBS@ jobs. What the runner gave to one before it, and what this one does not have, ends as runner_lost.`,
	},
	{
		Text:    "supervisor is of a release that cannot be spoken with",
		ID:      "1b986f3304256f37a039ddc6ed1fb65a",
		Subject: "The runner cannot speak with the supervisor of its jobs",
		Body: `
@WAYPOINT_ERROR@
The runner was upgraded or downgraded over several releases at once. @WAYPOINT_JOBS@ jobs go on; what they say and how they
end is reported, and the supervisor is replaced when the last one has ended. Until then no jobs are taken, and a cancel waits.
To end them at once: systemctl restart waypoint-jobs`,
	},
	{
		Text:    "token key rotated",
		ID:      "f3cab92cd98e4d91b0f47fadfd47a648",
		Subject: "The key that signs tokens was rotated by @WAYPOINT_BY@",
		Body: `
New tokens are signed by @WAYPOINT_KEY@. With revocation (@WAYPOINT_REVOKED@) all older tokens are good
for nothing, and every runner and user needs a new one; without it they are good until they expire.`,
	},
	{
		Text:    "supervisor leaving: no more jobs are started",
		ID:      "2ca00df9a45e46d9b187af2ff7d00ced",
		Subject: "The supervisor of the jobs is about to end",
		Body: `
It was told to stop. @WAYPOINT_JOBS@ jobs run; they may go on for up to @WAYPOINT_DRAIN@ and are asked to end
then. That time is WAYPOINT_RUNNER_DRAIN_TIMEOUT of waypoint-jobs.service.`,
	},
	{
		Text:    "watchdog is not fed: a probe fails",
		ID:      "969c6a861cb248fdafc2776e66bccd0b",
		Subject: "A program of Waypoint does not do what it is for",
		Body: `
@WAYPOINT_ERROR@
The service manager is told nothing until that works again; if it lasts, it ends the program with
SIGABRT and starts it anew. The state of all goroutines is in the journal then: keep it for a report.`,
	},
	{
		Text:    "watchdog is fed again: the probe passes",
		ID:      "81eb4388f22a4d0d97ade466e696b15a",
		Subject: "A program of Waypoint does again what it is for",
		Body: `
There is nothing to do. If this comes again and again, look for a disk or a database that hangs.`,
	},
	{
		Text:    "login refused",
		ID:      "270c297a931845eba314819fb2403c2d",
		Subject: "A login was refused: @WAYPOINT_PEER@",
		Body: `
@WAYPOINT_ERROR@
Somebody has shown a token that is not valid here. Where that is a person with an old one, a new one is made on
the server's host with waypoint user token.`,
	},
	{
		Text:    "user invited",
		ID:      "18283e8e41d94e6301382851cda96c43",
		Subject: "@WAYPOINT_USER@ was invited by @WAYPOINT_BY@",
		Body: `
The invite @WAYPOINT_SERIAL@ is good for one login, until @WAYPOINT_EXPIRES_AT@. To withdraw it:
  waypoint user revoke @WAYPOINT_SERIAL@`,
	},
	{
		Text:    "user changed",
		ID:      "e7a57bbbd45684fad5665ac628868dd5",
		Subject: "What @WAYPOINT_USER@ may do was changed by @WAYPOINT_BY@",
		Body: `
The role is @WAYPOINT_ROLE@ from the next call on, limited to: @WAYPOINT_LIMITS@ (nothing: everywhere).
It was: @WAYPOINT_WAS@`,
	},
	{
		Text:    "user deleted",
		ID:      "69e2e266cb5f2738da7efbb0e05fa83a",
		Subject: "The user @WAYPOINT_USER@ was deleted by @WAYPOINT_BY@",
		Body: `
The user's tokens and connections have come to an end. Jobs that the user has queued go on.`,
	},
	{
		Text:    "user token revoked",
		ID:      "78fbea419a569d16134f65dc55fcaa18",
		Subject: "A token of @WAYPOINT_USER@ was revoked by @WAYPOINT_BY@",
		Body: `
The token @WAYPOINT_SERIAL@ is good for nothing any more, and the connections that were made with it have ended.
What is left of the user's: waypoint user list --tokens @WAYPOINT_USER@`,
	},
	{
		Text:    "audit",
		ID:      "c93001d71c38ea9e415b206b046f9fa0",
		Subject: "@WAYPOINT_ACTOR@ has called @WAYPOINT_METHOD@: @WAYPOINT_OUTCOME@",
		Body: `
From @WAYPOINT_PEER@, about: @WAYPOINT_OBJECT@ (nothing: not one thing). The role was: @WAYPOINT_ROLE@
All there is: waypoint audit list --actor @WAYPOINT_ACTOR@
Whoever keeps what the log says elsewhere finds each entry of the audit there; audit_log turns it off.`,
	},
	{
		Text:    "audit entry is in this log only",
		ID:      "d2988ed9f65b56362e6a456f4ac981f3",
		Subject: "There was no room for an entry of the audit: @WAYPOINT_ACTOR@, @WAYPOINT_METHOD@",
		Body: `
The store could not keep it, so waypoint audit list does not have it: from @WAYPOINT_PEER@, about @WAYPOINT_OBJECT@,
by the role @WAYPOINT_ROLE@, with the outcome @WAYPOINT_OUTCOME@. Make room: waypoint server status`,
	},
	{
		Text:    "limit reached",
		ID:      "4be0b6f1b4a24b16a7c0a0e9b6d3f58c",
		Subject: "The limit @WAYPOINT_LIMIT@ of the server has held somebody up",
		Body: `
@WAYPOINT_TIMES@ times somebody met the limit of @WAYPOINT_MOST@ since this was said last, at the latest a minute
later; the last one was @WAYPOINT_PEER@. Whom the limits of connections, handshakes and hellos hold up, waits or comes
again; whoever has too many calls open (streams) loses his session; with "unread", nothing is read of him until
his calls have taken what he has sent; newcomers over runners_per_token, max_pending and
max_pending_per_peer are refused until runners are adopted, rejected or forgotten. Of "log lines" only those
are left out that are of strangers: at -v they are all there.
Where these are good peers, many behind one address perhaps, raise it: waypoint-server.toml(5).`,
	},
	{
		Text:    "the limit of open files is below max_sessions",
		ID:      "c1d8e6a02f5f4f0e8c1d7c35b8a0649e",
		Subject: "The server may open fewer files than it may have connections",
		Body: `
It takes @WAYPOINT_MOST@ connections and not the @WAYPOINT_MAX_SESSIONS@ of max_sessions. Raise LimitNOFILE= of the unit.`,
	},
	{
		Text:    "configuration reloaded",
		ID:      "6334466428144574adade4841b28eac3",
		Subject: "The server's configuration was read again",
		Body: `
Changed: @WAYPOINT_CHANGED@. Changed in the file too, but in force only after a restart of the
server: @WAYPOINT_RESTART_NEEDED@`,
	},
	{
		Text:    "the database's password can be read by others",
		ID:      "d59803c41856fa1573f74591ea2eeb6f",
		Subject: "Others can read the configuration of the server, with the database's password",
		Body: `
@WAYPOINT_PATH@ can be read by more than root and the server's user: by @WAYPOINT_WHO@.
Who has the password has the keys in the database and can make himself an admin. Think
of it as told, and give the database another one. Then let root and the server's user
alone read the file; that of the packages has its owner and mode again after
  systemd-tmpfiles --create waypoint.conf`,
	},
	{
		Text:    "configuration refused, the one before stays",
		ID:      "db58aa7b079b43f5a3214da40a8bdd96",
		Subject: "The server's new configuration is wrong",
		Body: `
@WAYPOINT_ERROR@
Nothing has changed: the server goes on with the configuration before. Mend the file, then
  systemctl reload waypoint-server`,
	},
	{
		Text:    "handing over: the running jobs go on without this agent",
		ID:      "282b496b614e4bddb6d781391a7ce832",
		Subject: "The runner's agent ends and leaves the jobs to the next one",
		Body: `
@WAYPOINT_JOBS@ jobs go on; the next agent takes them up again, and reports what has happened meanwhile.`,
	},
}
