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
