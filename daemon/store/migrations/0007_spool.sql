-- Under what its runner remembers an attempt, as it said when it was given it: see
-- WorkBegin. '' is not known.
ALTER TABLE jobs ADD COLUMN spool TEXT NOT NULL DEFAULT '';
