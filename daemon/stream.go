package daemon

import (
	"bytes"
	"context"
	"time"

	"github.com/waypointd/waypoint/mux"
	"github.com/waypointd/waypoint/mux/wire"
)

// Output is read from the store in batches, which are what a reader costs in
// memory, however slow it is.
const (
	streamMost  = 256 << 10 // bytes of a batch while readers are few
	streamLeast = 16 << 10  // and however many there are
	streamAll   = 16 << 20  // of all readers that are being sent something, as far as streamLeast allows
)

// streamBatch is the size of a batch with so many readers being sent something.
func streamBatch(readers int64) int {
	return int(max(streamLeast, min(streamMost, streamAll/max(readers, 1))))
}

// jobStream sends a job's output from an offset and its changes of state. It
// reads the store only: a slow reader holds up nobody but itself.
func (s *Server) jobStream(ctx context.Context, st *mux.Stream) error {
	var req wire.StreamRequest
	if err := st.Body(&req); err != nil {
		return err
	}
	if req.Offset < 0 || req.Attempt < 0 {
		return wire.Errorf(wire.BadUsage, "offset and attempt must not be negative")
	}
	w := s.watchers.watch(req.ID)
	defer s.watchers.unwatch(w)
	poll := time.NewTicker(watchPoll)
	defer poll.Stop()
	follower := follower{s: s, st: st, req: req, watch: w}
	for {
		done, err := follower.advance(ctx)
		if done || err != nil && !follower.waits {
			return err
		}
		select {
		case <-w.c:
		case <-poll.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// follower is one reader's way through one job's output.
type follower struct {
	s     *Server
	st    *mux.Stream
	req   wire.StreamRequest
	watch *watch
	last  *wire.Job // as it was sent
	waits bool      // for the store: its database is out of reach, and comes back
}

// read notes what an error of the store means for one who follows.
func (f *follower) read(err error) error {
	f.waits = f.req.Follow && wire.KindOf(err) == wire.Unavailable
	return err
}

// advance sends all there is. The job is read before its output: a job that
// has ended has all its output in the store, and the length that it tells is
// what there was then.
func (f *follower) advance(ctx context.Context) (done bool, err error) {
	job, err := f.watch.look(ctx, f.s.store)
	if job, err = f.s.asSeenOne(ctx, job, err); f.read(err) != nil {
		return false, err
	}
	if f.req.Attempt > job.Attempt {
		return false, wire.Errorf(wire.NotFound, "job %s has no attempt %d yet", job.ID, f.req.Attempt)
	}
	if f.req.Attempt == 0 && job.Attempt > 0 && job.State != wire.Queued && job.State != wire.Assigned {
		f.req.Attempt = job.Attempt // from here on it is this one's output
	}
	last := job.State.Ended() || !f.req.Follow
	if !last && (f.last == nil || f.last.State != job.State || f.last.CancelRequested != job.CancelRequested) {
		if err := f.st.Send(wire.StreamEvent{Job: job}); err != nil {
			return false, err
		}
		f.last = &job
	}
	if newest := f.req.Attempt == 0 || f.req.Attempt == job.Attempt; !newest || f.req.Offset < job.LogBytes {
		if err := f.output(ctx); err != nil {
			return false, err
		}
	}
	if last {
		return true, f.st.Send(wire.StreamEvent{Job: job, Last: true})
	}
	return false, f.st.Flush()
}

// output sends what the store has from the offset on.
func (f *follower) output(ctx context.Context) error {
	f.s.readers.Add(1)
	defer f.s.readers.Add(-1)
	for {
		batch := streamBatch(f.s.readers.Load())
		chunks, length, err := f.s.store.Log(ctx, f.req.ID, f.req.Attempt, f.req.Offset, batch)
		if f.read(err) != nil {
			return err
		}
		if batch < streamMost {
			// A chunk keeps the row that it is a part of in memory.
			for i := range chunks {
				chunks[i].Bytes = bytes.Clone(chunks[i].Bytes)
			}
		}
		for _, c := range chunks {
			if err := f.st.SendData(c); err != nil {
				return err
			}
			f.req.Offset = c.Offset + int64(len(c.Bytes))
		}
		if len(chunks) == 0 || f.req.Offset >= length {
			return nil
		}
	}
}
