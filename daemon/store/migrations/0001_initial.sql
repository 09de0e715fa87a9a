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
