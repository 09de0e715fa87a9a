CREATE TABLE token_keys (
  id TEXT PRIMARY KEY,
  secret BYTEA NOT NULL,
  created_at BIGINT NOT NULL,
  retired_at BIGINT NOT NULL,
  until BIGINT NOT NULL
);
