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
