-- Who has sent a blob, of those who are limited to projects: nobody else of them may use it.
CREATE TABLE proofs (
  digest TEXT NOT NULL,
  sender TEXT NOT NULL,        -- the key of a user
  PRIMARY KEY (digest, sender)
);
CREATE INDEX proofs_sender ON proofs (sender);
