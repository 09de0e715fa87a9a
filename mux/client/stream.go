package client

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"iter"
	"time"

	"github.com/waypointd/waypoint/mux"
	"github.com/waypointd/waypoint/mux/wire"
)

// Item is one element of a job's stream: a chunk of output (Data.Bytes, valid
// until the next) or an event.
type Item struct {
	Data  wire.Data
	Event *wire.StreamEvent // nil for a chunk
}

// Stream yields a job's output from an offset and its changes of state; over
// a loss it goes on at the offset it had reached, in the attempt whose output
// it has begun. It ends after the Last event, or with an error.
func (c *Client) Stream(ctx context.Context, req wire.StreamRequest) iter.Seq2[Item, error] {
	return func(yield func(Item, error) bool) {
		r := reader{req: req, yield: yield}
		err := c.repeat(ctx, func(s *mux.Session) error { return r.read(ctx, s) })
		if err != nil && !errors.Is(err, errStopped) {
			yield(Item{}, err)
		}
	}
}

// errStopped ends a stream whose reader has left its loop.
var errStopped = errors.New("the reader stopped")

// reader is one stream over all its sessions.
type reader struct {
	req   wire.StreamRequest // where to go on
	yield func(Item, error) bool
	seen  eventKey // of the last event
}

// eventKey tells an event that is only said again at the start of a resumed
// stream from a change.
type eventKey struct {
	state           wire.State
	attempt         int
	cancelRequested time.Time
}

// read reads until the Last event on one session.
func (r *reader) read(ctx context.Context, s *mux.Session) error {
	st, err := s.Open(ctx, wire.MethodJobStream, r.req)
	if err != nil {
		return err
	}
	defer st.Close()
	for {
		f, err := st.Recv()
		if errors.Is(err, io.EOF) {
			return wire.Errorf(wire.Internal, "the stream of job %s ended without the job's end", r.req.ID)
		}
		if err != nil {
			return err
		}
		if f.IsData() {
			if err := r.data(f.Data); err != nil {
				return err
			}
			continue
		}
		var e wire.StreamEvent
		if err := json.Unmarshal(f.Msg, &e); err != nil {
			return wire.Errorf(wire.BadUsage, "decode event of job %s: %v", r.req.ID, err)
		}
		if err := r.event(e); err != nil || e.Last {
			return err
		}
	}
}

// data yields what is new in a chunk.
func (r *reader) data(d wire.Data) error {
	end := d.Offset + int64(len(d.Bytes))
	if end <= r.req.Offset {
		return nil
	}
	if d.Offset > r.req.Offset { // nothing is left out in silence
		return wire.Errorf(wire.Internal, "the server left out the output of job %s from byte %d to %d", r.req.ID, r.req.Offset, d.Offset)
	}
	if old := r.req.Offset - d.Offset; old > 0 {
		d.Offset, d.Bytes = r.req.Offset, d.Bytes[old:]
	}
	if r.req.Attempt == 0 {
		r.req.Attempt = r.seen.attempt // offsets count in this attempt
	}
	if !r.yield(Item{Data: d}, nil) {
		return errStopped
	}
	r.req.Offset = end
	return nil
}

// event yields an event unless it is the last one said again.
func (r *reader) event(e wire.StreamEvent) error {
	key := eventKey{e.Job.State, e.Job.Attempt, e.Job.CancelRequested}
	if key == r.seen && !e.Last {
		return nil
	}
	r.seen = key
	if r.req.Attempt == 0 && (e.Job.State == wire.Running || e.Job.State.Ended()) {
		r.req.Attempt = e.Job.Attempt
	}
	if !r.yield(Item{Event: &e}, nil) {
		return errStopped
	}
	return nil
}
