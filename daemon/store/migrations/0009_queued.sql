-- Which blobs are old enough to be removed is told by the job queued first.
CREATE INDEX jobs_queued_at ON jobs (queued_at);
