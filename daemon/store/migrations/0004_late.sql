-- Of a job that was lost: whose it was, as the fingerprint of a key (the id of a runner
-- that has no record), and how it went, in JSON, once its runner has said so.
ALTER TABLE jobs ADD COLUMN lost_by TEXT NOT NULL DEFAULT '';
ALTER TABLE jobs ADD COLUMN late TEXT NOT NULL DEFAULT '';
