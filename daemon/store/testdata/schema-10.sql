-- A store of schema 10: the migrations as they were, and rows.

CREATE TABLE IF NOT EXISTS migrations (
	name TEXT PRIMARY KEY, sum TEXT NOT NULL, applied_at BIGINT NOT NULL);

-- One schema for SQLite and PostgreSQL: TEXT, BIGINT and BYTEA only. Ids are
-- ULIDs, times microseconds since 1970 (0 is never), structures JSON.

CREATE TABLE jobs (
  id TEXT PRIMARY KEY,
  operation TEXT NOT NULL,
  state TEXT NOT NULL,
  reason TEXT NOT NULL,
  error TEXT NOT NULL,
  exit_code BIGINT,
  signal TEXT NOT NULL,
  project TEXT NOT NULL,
  app TEXT NOT NULL,
  workspace TEXT NOT NULL,
  profile TEXT NOT NULL,
  target TEXT NOT NULL,          -- any | id:X | labels:a=b,c=d
  runner_id TEXT NOT NULL,
  attempt BIGINT NOT NULL,
  retry_of TEXT NOT NULL,
  queued_at BIGINT NOT NULL,
  assigned_at BIGINT NOT NULL,
  started_at BIGINT NOT NULL,
  finished_at BIGINT NOT NULL,   -- 0 until the job has ended
  cancel_at BIGINT NOT NULL,
  expires_at BIGINT NOT NULL,
  log_bytes BIGINT NOT NULL,     -- set at the end; until then log_chunks tells
  depends_on TEXT NOT NULL,      -- ids, separated by spaces
  singleton TEXT NOT NULL,
  priority BIGINT NOT NULL,
  command TEXT NOT NULL,
  outputs TEXT NOT NULL,
  usage TEXT NOT NULL,
  sequence BIGINT NOT NULL,
  place TEXT NOT NULL,           -- position in the queue
  blocked TEXT NOT NULL,         -- '' | dependency | serialized | singleton
  waiting BIGINT NOT NULL,       -- dependencies that have not ended
  allow_failure BIGINT NOT NULL,
  serial_key TEXT NOT NULL,
  idempotency_key TEXT NOT NULL,
  uses TEXT NOT NULL,            -- the job whose record this one works on
  spec TEXT NOT NULL             -- last, so that lists need not read it
);

-- What is queued, in the order in which it is handed out; ready is blocked = ''.
CREATE INDEX jobs_queue ON jobs (blocked, target, priority DESC, place) WHERE state = 'queued';
CREATE INDEX jobs_expiry ON jobs (expires_at) WHERE state = 'queued' AND expires_at > 0;
CREATE INDEX jobs_live ON jobs (state, runner_id, id) WHERE finished_at = 0;
CREATE INDEX jobs_serial ON jobs (serial_key, blocked, priority DESC, place) WHERE finished_at = 0 AND serial_key <> '';
CREATE INDEX jobs_singleton ON jobs (singleton, state) WHERE finished_at = 0 AND singleton <> '';
CREATE UNIQUE INDEX jobs_idempotency ON jobs (idempotency_key) WHERE idempotency_key <> '';
CREATE INDEX jobs_retry ON jobs (retry_of, id) WHERE retry_of <> '';
-- Lists, newest first, and pruning.
CREATE INDEX jobs_ended ON jobs (state, id) WHERE finished_at > 0;
CREATE INDEX jobs_finished ON jobs (finished_at, id) WHERE finished_at > 0;
CREATE INDEX jobs_runner ON jobs (runner_id, id) WHERE runner_id <> '';
CREATE INDEX jobs_project ON jobs (project, id) WHERE project <> '';

CREATE TABLE dependencies (
  dependency_id TEXT NOT NULL,
  job_id TEXT NOT NULL,
  PRIMARY KEY (dependency_id, job_id)
);
CREATE INDEX dependencies_job ON dependencies (job_id);

CREATE TABLE log_chunks (
  job_id TEXT NOT NULL,
  attempt BIGINT NOT NULL,
  start BIGINT NOT NULL,
  segments BYTEA NOT NULL,       -- length, stream and time of each piece of data
  data BYTEA NOT NULL,
  PRIMARY KEY (job_id, attempt, start)
);

CREATE TABLE sequences (
  operation TEXT NOT NULL,
  project TEXT NOT NULL,
  app TEXT NOT NULL,
  workspace TEXT NOT NULL,
  last BIGINT NOT NULL,
  PRIMARY KEY (operation, project, app, workspace)
);

CREATE TABLE records (
  kind TEXT NOT NULL,
  project TEXT NOT NULL,
  app TEXT NOT NULL,
  workspace TEXT NOT NULL,
  number BIGINT NOT NULL,
  job_id TEXT NOT NULL,
  of_number BIGINT NOT NULL,
  digest TEXT NOT NULL,
  size BIGINT NOT NULL,
  outputs TEXT NOT NULL,
  created_at BIGINT NOT NULL,
  PRIMARY KEY (kind, project, app, workspace, number)
);
CREATE INDEX records_job ON records (job_id);
CREATE INDEX records_newest ON records (kind, created_at);
CREATE INDEX records_digest ON records (digest) WHERE digest <> '';

CREATE TABLE runners (
  id TEXT PRIMARY KEY,
  state TEXT NOT NULL,
  kind TEXT NOT NULL,
  labels TEXT NOT NULL,
  first_seen BIGINT NOT NULL,
  last_seen BIGINT NOT NULL,
  fingerprint TEXT NOT NULL,
  version TEXT NOT NULL,
  hostname TEXT NOT NULL,
  os TEXT NOT NULL,
  arch TEXT NOT NULL,
  isolation TEXT NOT NULL,
  concurrency BIGINT NOT NULL,
  draining BIGINT NOT NULL,
  public_key BYTEA NOT NULL
);

CREATE TABLE blobs (
  digest TEXT PRIMARY KEY,
  upload TEXT NOT NULL,
  size BIGINT NOT NULL,
  used_at BIGINT NOT NULL
);
CREATE INDEX blobs_used ON blobs (used_at);

CREATE TABLE uploads (
  upload TEXT PRIMARY KEY,
  created_at BIGINT NOT NULL
);

CREATE TABLE blob_chunks (
  upload TEXT NOT NULL,
  start BIGINT NOT NULL,
  length BIGINT NOT NULL,
  data BYTEA NOT NULL,
  PRIMARY KEY (upload, start)
);

CREATE TABLE settings (
  name TEXT PRIMARY KEY,
  value TEXT NOT NULL
);

CREATE TABLE token_keys (
  id TEXT PRIMARY KEY,
  secret BYTEA NOT NULL,
  created_at BIGINT NOT NULL,
  retired_at BIGINT NOT NULL,
  until BIGINT NOT NULL
);

ALTER TABLE runners ADD COLUMN problem TEXT NOT NULL DEFAULT '';
ALTER TABLE runners ADD COLUMN problem_detail TEXT NOT NULL DEFAULT '';
ALTER TABLE runners ADD COLUMN offered_labels TEXT NOT NULL DEFAULT '';
ALTER TABLE runners ADD COLUMN token_source TEXT NOT NULL DEFAULT '';
ALTER TABLE runners ADD COLUMN token_issued_at BIGINT NOT NULL DEFAULT 0;
ALTER TABLE runners ADD COLUMN token_expires_at BIGINT NOT NULL DEFAULT 0;
ALTER TABLE runners ADD COLUMN peer TEXT NOT NULL DEFAULT '';
ALTER TABLE runners ADD COLUMN peer_group TEXT NOT NULL DEFAULT '';    -- of what is counted as one peer
ALTER TABLE runners ADD COLUMN grant_token TEXT NOT NULL DEFAULT '';   -- until the runner has stored it
ALTER TABLE runners ADD COLUMN rejected_serial BIGINT NOT NULL DEFAULT 0;

-- Who of the pending makes room.
CREATE INDEX runners_pending ON runners (peer_group, last_seen, id) WHERE state = 'pending';
CREATE INDEX runners_pending_all ON runners (last_seen, id) WHERE state = 'pending';
CREATE INDEX runners_state ON runners (state, id);

-- Of a job that was lost: whose it was, as the fingerprint of a key (the id of a runner
-- that has no record), and how it went, in JSON, once its runner has said so.
ALTER TABLE jobs ADD COLUMN lost_by TEXT NOT NULL DEFAULT '';
ALTER TABLE jobs ADD COLUMN late TEXT NOT NULL DEFAULT '';

-- Several servers over one database: whose lease keeps an active attempt, who
-- is there, and where runners are connected. With SQLite these stay empty.
ALTER TABLE jobs ADD COLUMN keeper TEXT NOT NULL DEFAULT '';

CREATE TABLE servers (
  id TEXT PRIMARY KEY,           -- of one process: new at each start
  host TEXT NOT NULL,
  started_at BIGINT NOT NULL,
  every BIGINT NOT NULL,         -- microseconds between two beats
  beats BIGINT NOT NULL
);

CREATE TABLE runner_sessions (
  runner_id TEXT PRIMARY KEY,
  server TEXT NOT NULL,
  claim TEXT NOT NULL,           -- another server that the runner has come to, until this one has answered
  view TEXT NOT NULL
);

-- A row for each name there has ever been: tokens that are older than since are not this user's.
CREATE TABLE users (
  name_key TEXT PRIMARY KEY,     -- the name in lower case
  name TEXT NOT NULL,
  role TEXT NOT NULL,
  projects TEXT NOT NULL,        -- '' is all
  workspaces TEXT NOT NULL,
  uid BIGINT NOT NULL,           -- of the host's user that made it for himself, else -1
  since BIGINT NOT NULL,         -- serial
  created_at BIGINT NOT NULL,
  created_by TEXT NOT NULL,
  deleted_at BIGINT NOT NULL
);

CREATE TABLE user_tokens (
  serial BIGINT PRIMARY KEY,
  kind TEXT NOT NULL,
  name_key TEXT NOT NULL,
  created_at BIGINT NOT NULL,
  created_by TEXT NOT NULL,
  expires_at BIGINT NOT NULL,
  used_at BIGINT NOT NULL,
  revoked_at BIGINT NOT NULL,
  revoked_by TEXT NOT NULL
);
CREATE INDEX user_tokens_user ON user_tokens (name_key, serial);
CREATE INDEX user_tokens_expiry ON user_tokens (expires_at);

-- Tokens of before had no row. Those up to this serial are believed by their claims.
INSERT INTO settings (name, value) SELECT 'claimed_serial', value FROM settings WHERE name = 'token_serial';

ALTER TABLE jobs ADD COLUMN queued_by TEXT NOT NULL DEFAULT '';

-- Under what its runner remembers an attempt, as it said when it was given it: see
-- WorkBegin. '' is not known.
ALTER TABLE jobs ADD COLUMN spool TEXT NOT NULL DEFAULT '';

-- Who did what. Ids grow with time, whatever the clock does.
CREATE TABLE audit (
  id TEXT PRIMARY KEY,
  at BIGINT NOT NULL,
  last_at BIGINT NOT NULL,     -- of several that were alike, else 0
  count BIGINT NOT NULL,
  actor_kind TEXT NOT NULL,
  actor TEXT NOT NULL,
  known_by TEXT NOT NULL,
  role TEXT NOT NULL,
  peer TEXT NOT NULL,
  method TEXT NOT NULL,
  object TEXT NOT NULL,        -- several with spaces between
  outcome TEXT NOT NULL,
  reason TEXT NOT NULL,
  detail TEXT NOT NULL
);
CREATE INDEX audit_actor ON audit (actor, id);
CREATE INDEX audit_strangers ON audit (id) WHERE actor_kind IN ('anonymous', 'runner');

-- Which blobs are old enough to be removed is told by the job queued first.
CREATE INDEX jobs_queued_at ON jobs (queued_at);

-- Who has sent a blob, of those who are limited to projects: nobody else of them may use it.
CREATE TABLE proofs (
  digest TEXT NOT NULL,
  sender TEXT NOT NULL,        -- the key of a user
  PRIMARY KEY (digest, sender)
);
CREATE INDEX proofs_sender ON proofs (sender);
INSERT INTO audit (id, at, last_at, count, actor_kind, actor, known_by, role, peer, method, object, outcome, reason, detail) VALUES ('01K9XFW24PD67P368BSR1YF6T7', 1763000060054000, 0, 0, 'user', 'Zoë', 'token 1763000060054000', 'operator', '192.0.2.1', 'job.submit', 'one two', 'done', '', '{"project":"it''s"}');
INSERT INTO audit (id, at, last_at, count, actor_kind, actor, known_by, role, peer, method, object, outcome, reason, detail) VALUES ('01K9XFW24PD67P368BSS8VJGBH', 1763000060054000, 1763000120054000, 7, 'anonymous', '', '', '', '192.0.2.2', 'login', '', 'denied', 'no token; it''s said', '');
INSERT INTO blob_chunks (upload, start, length, data) VALUES ('u1', 0, 15, x'0001feff206f66206120747265650a');
INSERT INTO blob_chunks (upload, start, length, data) VALUES ('u2', 0, 13, x'6f6620616e2075706c6f616420');
INSERT INTO blob_chunks (upload, start, length, data) VALUES ('u2', 13, 16, x'74686174206973206e6f74206f766572');
INSERT INTO blobs (digest, upload, size, used_at) VALUES ('sha256:ab', 'u1', 15, 1763000060054000);
INSERT INTO dependencies (dependency_id, job_id) VALUES ('01K9XFW24BWB5C20ACFEYE7F9R', '01K9XFW24NMV1DW9J0C3SFQDP7');
INSERT INTO jobs (id, operation, state, reason, error, exit_code, signal, project, app, workspace, profile, target, runner_id, attempt, retry_of, queued_at, assigned_at, started_at, finished_at, cancel_at, expires_at, log_bytes, depends_on, singleton, priority, command, outputs, usage, sequence, place, blocked, waiting, allow_failure, serial_key, idempotency_key, uses, spec, lost_by, late, keeper, queued_by, spool) VALUES ('01K9XFT7G16BF2KPF9KKVABX1Y', 'build', 'success', '', '', 0, '', 'shop', 'web', 'default', '', 'any', 'r1', 1, '', 1763000000001000, 1763000000002000, 1763000000003000, 1763000000005000, 0, 0, 47, '', '', 0, '["built"]', '{"url":"https://example.org/?a=''b''"}', '{"cpu_seconds":0,"max_rss_bytes":1048576,"wall_seconds":0}', 1, '01K9XFT7G16BF2KPF9KKVABX1Y', '', 0, 0, '', '', '', '{"operation":"build","project":"shop","app":"web","workspace":"default","command":["built"],"env":{"LINES":"a\nb","QUOTED":"it''s \"so\""},"target":{"any":true}}', '', '', '', '', 'spool-1');
INSERT INTO jobs (id, operation, state, reason, error, exit_code, signal, project, app, workspace, profile, target, runner_id, attempt, retry_of, queued_at, assigned_at, started_at, finished_at, cancel_at, expires_at, log_bytes, depends_on, singleton, priority, command, outputs, usage, sequence, place, blocked, waiting, allow_failure, serial_key, idempotency_key, uses, spec, lost_by, late, keeper, queued_by, spool) VALUES ('01K9XFT7G6AD2DW3KPDT9V9N6Z', 'deploy', 'success', '', '', 0, '', 'shop', 'web', 'default', '', 'any', 'r1', 1, '', 1763000000006000, 1763000000007000, 1763000000008000, 1763000000010000, 0, 0, 47, '', '', 0, '["deployed"]', '', '{"cpu_seconds":0,"max_rss_bytes":1048576,"wall_seconds":0}', 1, '01K9XFT7G6AD2DW3KPDT9V9N6Z', '', 0, 0, 'shop
web
default', '', '01K9XFT7G16BF2KPF9KKVABX1Y', '{"operation":"deploy","project":"shop","app":"web","workspace":"default","command":["deployed"],"env":{"LINES":"a\nb","QUOTED":"it''s \"so\""},"target":{"any":true}}', '', '', '', '', 'spool-1');
INSERT INTO jobs (id, operation, state, reason, error, exit_code, signal, project, app, workspace, profile, target, runner_id, attempt, retry_of, queued_at, assigned_at, started_at, finished_at, cancel_at, expires_at, log_bytes, depends_on, singleton, priority, command, outputs, usage, sequence, place, blocked, waiting, allow_failure, serial_key, idempotency_key, uses, spec, lost_by, late, keeper, queued_by, spool) VALUES ('01K9XFT7GBPCDG042T6F49SQ1A', 'release', 'success', '', '', 0, '', 'shop', 'web', 'default', '', 'any', 'r1', 1, '', 1763000000011000, 1763000000012000, 1763000000013000, 1763000000015000, 0, 0, 47, '', '', 0, '["released"]', '', '{"cpu_seconds":0,"max_rss_bytes":1048576,"wall_seconds":0}', 1, '01K9XFT7GBPCDG042T6F49SQ1A', '', 0, 0, 'shop
web
default', 'key-1', '01K9XFT7G6AD2DW3KPDT9V9N6Z', '{"operation":"release","project":"shop","app":"web","workspace":"default","command":["released"],"env":{"LINES":"a\nb","QUOTED":"it''s \"so\""},"target":{"any":true},"idempotency_key":"key-1"}', '', '', '', '', 'spool-1');
INSERT INTO jobs (id, operation, state, reason, error, exit_code, signal, project, app, workspace, profile, target, runner_id, attempt, retry_of, queued_at, assigned_at, started_at, finished_at, cancel_at, expires_at, log_bytes, depends_on, singleton, priority, command, outputs, usage, sequence, place, blocked, waiting, allow_failure, serial_key, idempotency_key, uses, spec, lost_by, late, keeper, queued_by, spool) VALUES ('01K9XFT7GG67MDQEAMGDZBSCSW', 'run', 'error', 'failed', 'it''s exit status 3', 3, '', '', '', 'default', '', 'any', 'r1', 1, '', 1763000000016000, 1763000000017000, 1763000000018000, 1763000000020000, 0, 0, 47, '', '', 0, '["failed"]', '', '', 0, '01K9XFT7GG67MDQEAMGDZBSCSW', '', 0, 0, '', '', '', '{"operation":"run","workspace":"default","command":["failed"],"env":{"LINES":"a\nb","QUOTED":"it''s \"so\""},"target":{"any":true}}', '', '', '', '', 'spool-1');
INSERT INTO jobs (id, operation, state, reason, error, exit_code, signal, project, app, workspace, profile, target, runner_id, attempt, retry_of, queued_at, assigned_at, started_at, finished_at, cancel_at, expires_at, log_bytes, depends_on, singleton, priority, command, outputs, usage, sequence, place, blocked, waiting, allow_failure, serial_key, idempotency_key, uses, spec, lost_by, late, keeper, queued_by, spool) VALUES ('01K9XFT7GN0P04XR38ZMYX76Q2', 'run', 'error', 'failed', '', NULL, 'SIGKILL', '', '', 'default', 'it''s', 'any', 'r1', 1, '', 1763000000021000, 1763000000022000, 1763000000023000, 1763000000025000, 0, 0, 47, '', '', 0, '["killed"]', '', '', 0, '01K9XFT7GN0P04XR38ZMYX76Q2', '', 0, 1, '', '', '', '{"operation":"run","workspace":"default","profile":"it''s","command":["killed"],"env":{"LINES":"a\nb","QUOTED":"it''s \"so\""},"target":{"any":true},"allow_dependency_failure":true}', '', '', '', '', 'spool-1');
INSERT INTO jobs (id, operation, state, reason, error, exit_code, signal, project, app, workspace, profile, target, runner_id, attempt, retry_of, queued_at, assigned_at, started_at, finished_at, cancel_at, expires_at, log_bytes, depends_on, singleton, priority, command, outputs, usage, sequence, place, blocked, waiting, allow_failure, serial_key, idempotency_key, uses, spec, lost_by, late, keeper, queued_by, spool) VALUES ('01K9XFT7GT5HKTSYYMACGMX7AW', 'run', 'canceled', 'canceled', 'canceled while it was queued', NULL, '', '', '', 'default', '', 'any', '', 0, '', 1763000000026000, 0, 0, 1763000000026000, 1763000000026000, 0, 0, '', '', 0, '["canceled"]', '', '', 0, '01K9XFT7GT5HKTSYYMACGMX7AW', '', 0, 0, '', '', '', '{"operation":"run","workspace":"default","command":["canceled"],"env":{"LINES":"a\nb","QUOTED":"it''s \"so\""},"target":{"any":true}}', '', '', '', '', '');
INSERT INTO jobs (id, operation, state, reason, error, exit_code, signal, project, app, workspace, profile, target, runner_id, attempt, retry_of, queued_at, assigned_at, started_at, finished_at, cancel_at, expires_at, log_bytes, depends_on, singleton, priority, command, outputs, usage, sequence, place, blocked, waiting, allow_failure, serial_key, idempotency_key, uses, spec, lost_by, late, keeper, queued_by, spool) VALUES ('01K9XFT7GVVEBQBFS8CJ05TY7A', 'run', 'error', 'runner_lost', 'its runner did not come back', NULL, '', '', '', 'default', '', 'any', 'r1', 1, '', 1763000000027000, 1763000000028000, 1763000000029000, 1763000000030000, 0, 0, 0, '', '', 0, '["lost"]', '', '', 0, '01K9XFT7GVVEBQBFS8CJ05TY7A', '', 0, 0, '', '', '', '{"operation":"run","workspace":"default","command":["lost"],"env":{"LINES":"a\nb","QUOTED":"it''s \"so\""},"target":{"any":true}}', 'F', '', '', '', 'spool-1');
INSERT INTO jobs (id, operation, state, reason, error, exit_code, signal, project, app, workspace, profile, target, runner_id, attempt, retry_of, queued_at, assigned_at, started_at, finished_at, cancel_at, expires_at, log_bytes, depends_on, singleton, priority, command, outputs, usage, sequence, place, blocked, waiting, allow_failure, serial_key, idempotency_key, uses, spec, lost_by, late, keeper, queued_by, spool) VALUES ('01K9XFT7GZ7CYQHSFG7E8PMDJ4', 'run', 'error', 'runner_lost', 'its runner was forgotten', NULL, '', '', '', 'default', '', 'any', 'r1', 1, '', 1763000000031000, 1763000000032000, 1763000000033000, 1763000000034000, 0, 0, 47, '', '', 0, '["lost, it failed"]', '', '', 0, '01K9XFT7GZ7CYQHSFG7E8PMDJ4', '', 0, 0, '', '', '', '{"operation":"run","workspace":"default","command":["lost, it failed"],"env":{"LINES":"a\nb","QUOTED":"it''s \"so\""},"target":{"any":true}}', 'of r1 before', '{"attempt":1,"state":"error","reason":"failed","exit_code":4,"log_bytes":47,"finished_at":"2025-11-13T02:13:20.035Z","reported_at":"2025-11-13T02:13:20.035Z"}', '', '', 'spool-1');
INSERT INTO jobs (id, operation, state, reason, error, exit_code, signal, project, app, workspace, profile, target, runner_id, attempt, retry_of, queued_at, assigned_at, started_at, finished_at, cancel_at, expires_at, log_bytes, depends_on, singleton, priority, command, outputs, usage, sequence, place, blocked, waiting, allow_failure, serial_key, idempotency_key, uses, spec, lost_by, late, keeper, queued_by, spool) VALUES ('01K9XFT7H46QE9W0VBMEYW3C05', 'run', 'error', 'expired', 'no runner took it in time', NULL, '', '', '', 'default', '', 'id:nobody', '', 0, '', 1763000000036000, 0, 0, 1763000060036000, 0, 1763000001036000, 0, '', '', 0, '["expired"]', '', '', 0, '01K9XFT7H46QE9W0VBMEYW3C05', '', 0, 0, '', '', '', '{"operation":"run","workspace":"default","command":["expired"],"env":{"LINES":"a\nb","QUOTED":"it''s \"so\""},"target":{"id":"nobody"},"expires_in":"1s"}', '', '', '', '', '');
INSERT INTO jobs (id, operation, state, reason, error, exit_code, signal, project, app, workspace, profile, target, runner_id, attempt, retry_of, queued_at, assigned_at, started_at, finished_at, cancel_at, expires_at, log_bytes, depends_on, singleton, priority, command, outputs, usage, sequence, place, blocked, waiting, allow_failure, serial_key, idempotency_key, uses, spec, lost_by, late, keeper, queued_by, spool) VALUES ('01K9XFW2455YK8AS0ZRFRM4V0T', 'run', 'success', '', '', 0, '', '', '', 'default', '', 'any', 'r1', 1, '', 1763000060037000, 1763000060038000, 1763000060039000, 1763000060041000, 0, 0, 47, '', 'nightly', 0, '["again"]', '', '{"cpu_seconds":0,"max_rss_bytes":1048576,"wall_seconds":0}', 0, '01K9XFW2455YK8AS0ZRFRM4V0T', '', 0, 0, '', '', '', '{"operation":"run","workspace":"default","command":["again"],"env":{"LINES":"a\nb","QUOTED":"it''s \"so\""},"target":{"any":true},"singleton":"nightly"}', '', '', '', '', 'spool-1');
INSERT INTO jobs (id, operation, state, reason, error, exit_code, signal, project, app, workspace, profile, target, runner_id, attempt, retry_of, queued_at, assigned_at, started_at, finished_at, cancel_at, expires_at, log_bytes, depends_on, singleton, priority, command, outputs, usage, sequence, place, blocked, waiting, allow_failure, serial_key, idempotency_key, uses, spec, lost_by, late, keeper, queued_by, spool) VALUES ('01K9XFW24ADYPTS8GP8Q0W9A5M', 'run', 'canceled', 'canceled', 'canceled while it was queued', NULL, '', '', '', 'default', '', 'any', '', 0, '', 1763000060042000, 0, 0, 1763000060042000, 1763000060042000, 0, 0, '', 'nightly', 0, '["again"]', '', '', 0, '01K9XFW24ADYPTS8GP8Q0W9A5M', '', 0, 0, '', 'key-2', '', '{"operation":"run","workspace":"default","command":["again"],"env":{"LINES":"a\nb","QUOTED":"it''s \"so\""},"target":{"any":true},"singleton":"nightly","idempotency_key":"key-2"}', '', '', '', '', '');
INSERT INTO jobs (id, operation, state, reason, error, exit_code, signal, project, app, workspace, profile, target, runner_id, attempt, retry_of, queued_at, assigned_at, started_at, finished_at, cancel_at, expires_at, log_bytes, depends_on, singleton, priority, command, outputs, usage, sequence, place, blocked, waiting, allow_failure, serial_key, idempotency_key, uses, spec, lost_by, late, keeper, queued_by, spool) VALUES ('01K9XFW24ADYPTS8GP8TC81FCW', 'run', 'canceled', 'canceled', 'canceled while it was queued', NULL, '', '', '', 'default', '', 'any', '', 0, '01K9XFW2455YK8AS0ZRFRM4V0T', 1763000060042000, 0, 0, 1763000060042000, 1763000060042000, 0, 0, '', 'nightly', 0, '["again"]', '', '', 0, '01K9XFW24ADYPTS8GP8TC81FCW', '', 0, 0, '', '', '', '{"operation":"run","workspace":"default","command":["again"],"env":{"LINES":"a\nb","QUOTED":"it''s \"so\""},"target":{"any":true},"singleton":"nightly"}', '', '', '', '', '');
INSERT INTO jobs (id, operation, state, reason, error, exit_code, signal, project, app, workspace, profile, target, runner_id, attempt, retry_of, queued_at, assigned_at, started_at, finished_at, cancel_at, expires_at, log_bytes, depends_on, singleton, priority, command, outputs, usage, sequence, place, blocked, waiting, allow_failure, serial_key, idempotency_key, uses, spec, lost_by, late, keeper, queued_by, spool) VALUES ('01K9XFW24BWB5C20ACFEYE7F9R', 'run', 'running', '', '', NULL, '', '', '', 'default', '', 'any', 'r1', 1, '', 1763000060043000, 1763000060044000, 1763000060045000, 0, 0, 0, 0, '', '', 3, '["running"]', '', '', 0, '01K9XFW24BWB5C20ACFEYE7F9R', '', 0, 0, '', '', '', '{"operation":"run","workspace":"default","command":["running"],"env":{"LINES":"a\nb","QUOTED":"it''s \"so\""},"target":{"any":true},"priority":3}', '', '', 'MZ3RCKWQ6YV5TB2H7NLXJ4PGDA', '', 'spool-1');
INSERT INTO jobs (id, operation, state, reason, error, exit_code, signal, project, app, workspace, profile, target, runner_id, attempt, retry_of, queued_at, assigned_at, started_at, finished_at, cancel_at, expires_at, log_bytes, depends_on, singleton, priority, command, outputs, usage, sequence, place, blocked, waiting, allow_failure, serial_key, idempotency_key, uses, spec, lost_by, late, keeper, queued_by, spool) VALUES ('01K9XFW24FYSJMK4NHQHJYVKKQ', 'deploy', 'running', '', '', NULL, '', 'shop', 'web', 'default', '', 'any', 'r1', 1, '', 1763000060047000, 1763000060048000, 1763000060049000, 0, 0, 0, 0, '', '', 0, '["deploying"]', '', '', 2, '01K9XFW24FYSJMK4NHQHJYVKKQ', '', 0, 0, 'shop
web
default', '', '01K9XFT7G16BF2KPF9KKVABX1Y', '{"operation":"deploy","project":"shop","app":"web","workspace":"default","command":["deploying"],"env":{"LINES":"a\nb","QUOTED":"it''s \"so\""},"target":{"any":true}}', '', '', 'MZ3RCKWQ6YV5TB2H7NLXJ4PGDA', '', 'spool-1');
INSERT INTO jobs (id, operation, state, reason, error, exit_code, signal, project, app, workspace, profile, target, runner_id, attempt, retry_of, queued_at, assigned_at, started_at, finished_at, cancel_at, expires_at, log_bytes, depends_on, singleton, priority, command, outputs, usage, sequence, place, blocked, waiting, allow_failure, serial_key, idempotency_key, uses, spec, lost_by, late, keeper, queued_by, spool) VALUES ('01K9XFW24JM1A3BWCY7481HH3D', 'run', 'assigned', '', '', NULL, '', '', '', 'default', '', 'any', 'r1', 1, '', 1763000060050000, 1763000060051000, 0, 0, 0, 0, 0, '', '', 0, '["assigned"]', '', '', 0, '01K9XFW24JM1A3BWCY7481HH3D', '', 0, 0, '', '', '', '{"operation":"run","workspace":"default","command":["assigned"],"env":{"LINES":"a\nb","QUOTED":"it''s \"so\""},"target":{"any":true}}', '', '', 'MZ3RCKWQ6YV5TB2H7NLXJ4PGDA', '', 'spool-1');
INSERT INTO jobs (id, operation, state, reason, error, exit_code, signal, project, app, workspace, profile, target, runner_id, attempt, retry_of, queued_at, assigned_at, started_at, finished_at, cancel_at, expires_at, log_bytes, depends_on, singleton, priority, command, outputs, usage, sequence, place, blocked, waiting, allow_failure, serial_key, idempotency_key, uses, spec, lost_by, late, keeper, queued_by, spool) VALUES ('01K9XFW24M7ZFC5V9Y87EFK5ZA', 'deploy', 'queued', '', '', NULL, '', 'shop', 'web', 'default', '', 'any', '', 0, '', 1763000060052000, 0, 0, 0, 0, 0, 0, '', '', 0, '["deploys next"]', '', '', 0, '01K9XFW24M7ZFC5V9Y87EFK5ZA', 'serialized', 0, 0, 'shop
web
default', '', '', '{"operation":"deploy","project":"shop","app":"web","workspace":"default","command":["deploys next"],"env":{"LINES":"a\nb","QUOTED":"it''s \"so\""},"target":{"any":true}}', '', '', '', '', '');
INSERT INTO jobs (id, operation, state, reason, error, exit_code, signal, project, app, workspace, profile, target, runner_id, attempt, retry_of, queued_at, assigned_at, started_at, finished_at, cancel_at, expires_at, log_bytes, depends_on, singleton, priority, command, outputs, usage, sequence, place, blocked, waiting, allow_failure, serial_key, idempotency_key, uses, spec, lost_by, late, keeper, queued_by, spool) VALUES ('01K9XFW24NMV1DW9J0C3SFQDP7', 'run', 'queued', '', '', NULL, '', '', '', 'default', '', 'any', '', 0, '', 1763000060053000, 0, 0, 0, 0, 0, 0, '01K9XFW24BWB5C20ACFEYE7F9R', '', 0, '["waits for job"]', '', '', 0, '01K9XFW24NMV1DW9J0C3SFQDP7', 'dependency', 1, 0, '', '', '', '{"operation":"run","workspace":"default","command":["waits for job"],"env":{"LINES":"a\nb","QUOTED":"it''s \"so\""},"target":{"any":true},"depends_on":["01K9XFW24BWB5C20ACFEYE7F9R"]}', '', '', '', '', '');
INSERT INTO jobs (id, operation, state, reason, error, exit_code, signal, project, app, workspace, profile, target, runner_id, attempt, retry_of, queued_at, assigned_at, started_at, finished_at, cancel_at, expires_at, log_bytes, depends_on, singleton, priority, command, outputs, usage, sequence, place, blocked, waiting, allow_failure, serial_key, idempotency_key, uses, spec, lost_by, late, keeper, queued_by, spool) VALUES ('01K9XFW24NMV1DW9J0C5568278', 'run', 'queued', '', '', NULL, '', '', '', 'default', '', 'id:r1', '', 0, '', 1763000060053000, 0, 0, 0, 0, 0, 0, '', '', -1, '["ready"]', '', '', 0, '01K9XFW24NMV1DW9J0C5568278', '', 0, 0, '', '', '', '{"operation":"run","workspace":"default","command":["ready"],"env":{"LINES":"a\nb","QUOTED":"it''s \"so\""},"target":{"id":"r1"},"priority":-1}', '', '', '', 'Zoë', '');
INSERT INTO jobs (id, operation, state, reason, error, exit_code, signal, project, app, workspace, profile, target, runner_id, attempt, retry_of, queued_at, assigned_at, started_at, finished_at, cancel_at, expires_at, log_bytes, depends_on, singleton, priority, command, outputs, usage, sequence, place, blocked, waiting, allow_failure, serial_key, idempotency_key, uses, spec, lost_by, late, keeper, queued_by, spool) VALUES ('01K9XFW24PS3QD9J4TZ3H74MZ4', 'run', 'queued', '', '', NULL, '', '', '', 'default', '', 'labels:arch=arm64,zone=eu', '', 0, '', 1763000060054000, 0, 0, 0, 0, 4916600060054000, 0, '', '', 0, '["ready labels"]', '', '', 0, '01K9XFW24PS3QD9J4TZ3H74MZ4', '', 0, 0, '', '', '', '{"operation":"run","workspace":"default","command":["ready labels"],"env":{"LINES":"a\nb","QUOTED":"it''s \"so\""},"target":{"labels":{"arch":"arm64","zone":"eu"}},"expires_in":"876000h0m0s"}', '', '', '', '', '');
INSERT INTO log_chunks (job_id, attempt, start, segments, data) VALUES ('01K9XFT7G16BF2KPF9KKVABX1Y', 1, 0, x'0901c0fee9cb8ddca1062602c0fee9cb8ddca106', x'6f6e65206c696e650a616e6f746865723a20c3a42c20e282ac2c20273b202d2d000120616e64206e6f20746578740a');
INSERT INTO log_chunks (job_id, attempt, start, segments, data) VALUES ('01K9XFT7G6AD2DW3KPDT9V9N6Z', 1, 0, x'0901d0cceacb8ddca1062602d0cceacb8ddca106', x'6f6e65206c696e650a616e6f746865723a20c3a42c20e282ac2c20273b202d2d000120616e64206e6f20746578740a');
INSERT INTO log_chunks (job_id, attempt, start, segments, data) VALUES ('01K9XFT7GBPCDG042T6F49SQ1A', 1, 0, x'0901e09aebcb8ddca1062602e09aebcb8ddca106', x'6f6e65206c696e650a616e6f746865723a20c3a42c20e282ac2c20273b202d2d000120616e64206e6f20746578740a');
INSERT INTO log_chunks (job_id, attempt, start, segments, data) VALUES ('01K9XFT7GG67MDQEAMGDZBSCSW', 1, 0, x'0901f0e8ebcb8ddca1062602f0e8ebcb8ddca106', x'6f6e65206c696e650a616e6f746865723a20c3a42c20e282ac2c20273b202d2d000120616e64206e6f20746578740a');
INSERT INTO log_chunks (job_id, attempt, start, segments, data) VALUES ('01K9XFT7GN0P04XR38ZMYX76Q2', 1, 0, x'090180b7eccb8ddca106260280b7eccb8ddca106', x'6f6e65206c696e650a616e6f746865723a20c3a42c20e282ac2c20273b202d2d000120616e64206e6f20746578740a');
INSERT INTO log_chunks (job_id, attempt, start, segments, data) VALUES ('01K9XFT7GZ7CYQHSFG7E8PMDJ4', 1, 0, x'2f01f0e2edcb8ddca106', x'6f6e65206c696e650a616e6f746865723a20c3a42c20e282ac2c20273b202d2d000120616e64206e6f20746578740a');
INSERT INTO log_chunks (job_id, attempt, start, segments, data) VALUES ('01K9XFW2455YK8AS0ZRFRM4V0T', 1, 0, x'090180cd8a858edca106260280cd8a858edca106', x'6f6e65206c696e650a616e6f746865723a20c3a42c20e282ac2c20273b202d2d000120616e64206e6f20746578740a');
INSERT INTO log_chunks (job_id, attempt, start, segments, data) VALUES ('01K9XFW24BWB5C20ACFEYE7F9R', 1, 0, x'0901e0aa8b858edca106', x'6f6e65206c696e650a');
INSERT INTO migrations (name, sum, applied_at) VALUES ('migrations/0001_initial.sql', '623a04098c0da5ca0c51b1f0926bfb4f3941db462fdb0d9f3c983ab13f4ccffc', 1763000000000000);
INSERT INTO migrations (name, sum, applied_at) VALUES ('migrations/0002_tokens.sql', 'a16e855d10121533cd4a0c96684d71a20a8311e1a34e530e23284f84e782785c', 1763000000000000);
INSERT INTO migrations (name, sum, applied_at) VALUES ('migrations/0003_adoption.sql', '0e36768b514a2f000b3e2216dda6ca3083e72434988247e5293916d9a7a4e5f6', 1763000000000000);
INSERT INTO migrations (name, sum, applied_at) VALUES ('migrations/0004_late.sql', '8c59f0595ad1d028ae9a0b26c754bc10c5150e078949963da901514937e1d0b3', 1763000000000000);
INSERT INTO migrations (name, sum, applied_at) VALUES ('migrations/0005_servers.sql', 'fb666728230d9e91ccb402e282999c3049c5e0dee0a0f10c1435c216cc179fd5', 1763000000000000);
INSERT INTO migrations (name, sum, applied_at) VALUES ('migrations/0006_users.sql', '33ab47cd714fcb9498c96cfb85c83019247a5c4621bf9efeeb08fe2f9ebdb250', 1763000000000000);
INSERT INTO migrations (name, sum, applied_at) VALUES ('migrations/0007_spool.sql', '66cee5e473d8e73fd731437023883496177fc4290a5b5a6beb2232db913d58a4', 1763000000000000);
INSERT INTO migrations (name, sum, applied_at) VALUES ('migrations/0008_audit.sql', 'e49a8cf49ec1281936f5c3f51cee7cc9297a4197e98291bf017df165a8cdb163', 1763000000000000);
INSERT INTO migrations (name, sum, applied_at) VALUES ('migrations/0009_queued.sql', 'a7c4c5dc678a8b36c787aed15a3f96af6a98f21853358803c5302cc589501f2e', 1763000000000000);
INSERT INTO migrations (name, sum, applied_at) VALUES ('migrations/0010_proofs.sql', '2e0c3b7cd8bca3b03d67e7d80b0b37897c6733b1a6585f935bc396aecb96fcc4', 1763000000000000);
INSERT INTO proofs (digest, sender) VALUES ('sha256:ab', 'zoë');
INSERT INTO records (kind, project, app, workspace, number, job_id, of_number, digest, size, outputs, created_at) VALUES ('artifact', 'shop', 'web', 'default', 1, '01K9XFT7G16BF2KPF9KKVABX1Y', 0, 'sha256:ab', 15, '{"url":"https://example.org/?a=''b''"}', 1763000000005000);
INSERT INTO records (kind, project, app, workspace, number, job_id, of_number, digest, size, outputs, created_at) VALUES ('deployment', 'shop', 'web', 'default', 1, '01K9XFT7G6AD2DW3KPDT9V9N6Z', 1, '', 0, '', 1763000000010000);
INSERT INTO records (kind, project, app, workspace, number, job_id, of_number, digest, size, outputs, created_at) VALUES ('release', 'shop', 'web', 'default', 1, '01K9XFT7GBPCDG042T6F49SQ1A', 1, '', 0, '', 1763000000015000);
INSERT INTO runner_sessions (runner_id, server, claim, view) VALUES ('r1', 'MZ3RCKWQ6YV5TB2H7NLXJ4PGDA', 'another', '{"id":"r1"}');
INSERT INTO runners (id, state, kind, labels, first_seen, last_seen, fingerprint, version, hostname, os, arch, isolation, concurrency, draining, public_key, problem, problem_detail, offered_labels, token_source, token_issued_at, token_expires_at, peer, peer_group, grant_token, rejected_serial) VALUES ('r1', 'adopted', 'remote', '{"os":"it''s"}', 1763000000000000, 1763000000000000, 'F', '1.2.3', 'h.example', 'linux', 'arm64', 'cgroup', 4, 1, x'0000ff', 'no_token', 'it''s none', '{"os":"linux"}', 'file', 1763000000000000, 1763003600000000, '192.0.2.1', '192.0.2.1', 'token', 0);
INSERT INTO runners (id, state, kind, labels, first_seen, last_seen, fingerprint, version, hostname, os, arch, isolation, concurrency, draining, public_key, problem, problem_detail, offered_labels, token_source, token_issued_at, token_expires_at, peer, peer_group, grant_token, rejected_serial) VALUES ('r2', 'pending', 'remote', '{"os":"it''s"}', 1763000000000000, 1763000000000000, 'F', '1.2.3', 'h.example', 'linux', 'arm64', 'cgroup', 4, 0, x'0100ff', 'no_token', 'it''s none', '{"os":"linux"}', 'file', 1763000000000000, 1763003600000000, '192.0.2.1', '192.0.2.1', 'token', 1);
INSERT INTO runners (id, state, kind, labels, first_seen, last_seen, fingerprint, version, hostname, os, arch, isolation, concurrency, draining, public_key, problem, problem_detail, offered_labels, token_source, token_issued_at, token_expires_at, peer, peer_group, grant_token, rejected_serial) VALUES ('r3', 'rejected', 'remote', '{"os":"it''s"}', 1763000000000000, 1763000000000000, 'F', '1.2.3', 'h.example', 'linux', 'arm64', 'cgroup', 4, 0, x'0200ff', 'no_token', 'it''s none', '{"os":"linux"}', 'file', 1763000000000000, 1763003600000000, '192.0.2.1', '192.0.2.1', 'token', 2);
INSERT INTO runners (id, state, kind, labels, first_seen, last_seen, fingerprint, version, hostname, os, arch, isolation, concurrency, draining, public_key, problem, problem_detail, offered_labels, token_source, token_issued_at, token_expires_at, peer, peer_group, grant_token, rejected_serial) VALUES ('r4', 'preadopted', 'remote', '{"os":"it''s"}', 1763000000000000, 1763000000000000, 'F', '1.2.3', 'h.example', 'linux', 'arm64', 'cgroup', 4, 0, x'', 'no_token', 'it''s none', '{"os":"linux"}', 'file', 1763000000000000, 1763003600000000, '192.0.2.1', '192.0.2.1', 'token', 3);
INSERT INTO sequences (operation, project, app, workspace, last) VALUES ('build', 'shop', 'web', 'default', 1);
INSERT INTO sequences (operation, project, app, workspace, last) VALUES ('deploy', 'shop', 'web', 'default', 2);
INSERT INTO sequences (operation, project, app, workspace, last) VALUES ('release', 'shop', 'web', 'default', 1);
INSERT INTO servers (id, host, started_at, every, beats) VALUES ('MZ3RCKWQ6YV5TB2H7NLXJ4PGDA', 'h.example', 1763000060054000, 1000000, 1);
INSERT INTO settings (name, value) VALUES ('owner_of_attempts_of_r1', 'of r1 before');
INSERT INTO settings (name, value) VALUES ('server_id', '7LD2B4XW3TQJ5VY6MKHN2RPCFA');
INSERT INTO settings (name, value) VALUES ('token_serial', '1763000060054000');
INSERT INTO token_keys (id, secret, created_at, retired_at, until) VALUES ('fb7970219e26d1f4', x'3031323334353637383961626364656630313233343536373839616263646566', 1763000060054000, 0, 0);
INSERT INTO token_keys (id, secret, created_at, retired_at, until) VALUES ('fe812c12f3ab4ce6', x'0707070707070707070707070707070707070707070707070707070707070707', 1762996460054000, 1763000060054000, 1763003660054000);
INSERT INTO uploads (upload, created_at) VALUES ('u2', 1795348248006249);
INSERT INTO user_tokens (serial, kind, name_key, created_at, created_by, expires_at, used_at, revoked_at, revoked_by) VALUES (1763000060054000, 'wpusr_', 'zoë', 1763000060054000, 'uid 0', 4916600060054000, 1763000060054000, 0, '');
INSERT INTO user_tokens (serial, kind, name_key, created_at, created_by, expires_at, used_at, revoked_at, revoked_by) VALUES (1763000060054001, 'wpinv_', 'zoë', 1763000060054000, 'uid 0', 4916600060054000, 0, 1763000060054000, 'uid 0');
INSERT INTO users (name_key, name, role, projects, workspaces, uid, since, created_at, created_by, deleted_at) VALUES ('gone', 'gone', 'admin', '', '', 1000, 9, 1763000060054000, '', 1763000120054000);
INSERT INTO users (name_key, name, role, projects, workspaces, uid, since, created_at, created_by, deleted_at) VALUES ('zoë', 'Zoë', 'operator', '["shop","it''s"]', '["default"]', -1, 0, 1763000060054000, 'uid 0', 0);
