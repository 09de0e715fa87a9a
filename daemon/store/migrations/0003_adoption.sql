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
