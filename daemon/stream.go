package daemon

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/waypointd/waypoint/mux"
	"github.com/waypointd/waypoint/mux/wire"
)

// Output is read from the store in batches, which are what a reader costs in
// memory, however slow it is.
const (
	streamMost  = 256 << 10 // bytes of a batch while there is room
	streamLeast = 16 << 10  // and however little there is
	streamRoom  = 16 << 20  // of all batches that are larger than streamLeast
)

// batchRoom is how many bytes the batches of all readers hold.
type batchRoom struct{ held atomic.Int64 }

// take is the size of one reader's next batch, to be given back with free: a
// quarter of the room that is left, within what a batch may be. A crowd of
// slow readers so holds streamRoom and streamLeast for each, at most.
func (r *batchRoom) take() int64 {
	for {
		held := r.held.Load()
		n := max(streamLeast, min(streamMost, (streamRoom-held)/4))
		if r.held.CompareAndSwap(held, held+n) {
			return n
		}
	}
}

func (r *batchRoom) free(n int64) { r.held.Add(-n) }

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
		return false, wire.Errorf(wire.NotFound, "job %s has no attempt %d yet", job.ID, f.req.Attempt).
			WithHint("waypoint job inspect %s, which shows the newest", job.ID)
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
	for {
		if done, err := f.batch(ctx); done || err != nil {
			return err
		}
	}
}

// batch sends the next batch of it, and lets go of each chunk before it waits
// for the peer to take it.
func (f *follower) batch(ctx context.Context) (done bool, err error) {
	size := f.s.batches.take()
	defer f.s.batches.free(size)
	chunks, length, err := f.s.store.Log(ctx, f.req.ID, f.req.Attempt, f.req.Offset, int(size))
	if f.read(err) != nil {
		return false, err
	}
	for i := range chunks {
		next := chunks[i].Offset + int64(len(chunks[i].Bytes))
		if err := f.st.SendData(take(&chunks[i])); err != nil {
			return false, err
		}
		f.req.Offset = next
	}
	return len(chunks) == 0 || f.req.Offset >= length, nil
}

// take leaves nothing where it takes from.
func take(d *wire.Data) wire.Data {
	taken := *d
	*d = wire.Data{}
	return taken
}
