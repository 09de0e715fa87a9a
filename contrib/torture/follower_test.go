package torture

import (
	"bytes"
	"context"
	"fmt"
	"time"

	"github.com/waypointd/waypoint/mux/client"
	"github.com/waypointd/waypoint/mux/wire"
)

// heard is what one reader of a job's stream got.
type heard struct {
	output  map[wire.StreamID][]byte
	offset  int64 // behind the last byte
	last    *wire.Job
	began   time.Time
	ended   time.Time
	states  []wire.State
	problem error
}

// listen reads a job's stream to its end and holds the protocol's promises:
// no gap, nothing twice, the end behind the last byte.
func listen(ctx context.Context, c *client.Client, req wire.StreamRequest) *heard {
	h := &heard{output: map[wire.StreamID][]byte{}, offset: req.Offset, began: time.Now()}
	defer func() { h.ended = time.Now() }()
	for item, err := range c.Stream(ctx, req) {
		switch {
		case err != nil:
			h.problem = fmt.Errorf("stream: %w", err)
			return h
		case h.last != nil:
			h.problem = fmt.Errorf("something came behind the end")
			return h
		case item.Event == nil:
			if item.Data.Offset != h.offset {
				h.problem = fmt.Errorf("a chunk at offset %d came behind byte %d", item.Data.Offset, h.offset)
				return h
			}
			h.offset += int64(len(item.Data.Bytes))
			h.output[item.Data.Stream] = append(h.output[item.Data.Stream], item.Data.Bytes...)
		default:
			h.states = append(h.states, item.Event.Job.State)
			if item.Event.Last {
				h.last = &item.Event.Job
			}
		}
	}
	if h.last == nil {
		h.problem = fmt.Errorf("the stream ended without an end")
	}
	return h
}

// check compares what was heard with what the script says.
func (h *heard) check(s script) error {
	if h.problem != nil {
		return h.problem
	}
	if err := difference(h.output[wire.Stdout], s.stdout()); err != nil {
		return fmt.Errorf("stdout: %w", err)
	}
	if err := difference(h.output[wire.Stderr], s.stderr()); err != nil {
		return fmt.Errorf("stderr: %w", err)
	}
	if n := h.output[wire.Notice]; len(n) > 0 {
		return fmt.Errorf("notice %q", n)
	}
	return s.checkEnd(*h.last)
}

// checkCut compares what was heard of a job that was ended on request with the
// script: it is the beginning of what it would have printed.
func (h *heard) checkCut(s script) error {
	if h.problem != nil {
		return h.problem
	}
	for id, want := range map[wire.StreamID][]byte{wire.Stdout: s.stdout(), wire.Stderr: s.stderr(), wire.Notice: nil} {
		if got := h.output[id]; !bytes.HasPrefix(want, got) {
			return fmt.Errorf("stream %d: %w", id, difference(got, want))
		}
	}
	if h.last.State != wire.Canceled || h.last.Reason != wire.ReasonCanceled {
		return fmt.Errorf("ended as %s %q (%s), want %s", h.last.State, h.last.Reason, h.last.Error, wire.Canceled)
	}
	return nil
}
