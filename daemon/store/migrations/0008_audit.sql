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
