package mux

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"runtime/debug"
	"strconv"
	"time"

	"github.com/hashicorp/yamux"

	"github.com/waypointd/waypoint/mux/wire"
)

// callReadTimeout is how long a stream may be open without its CALL.
const callReadTimeout = 10 * time.Second

// maxTimeout is the longest deadline that travels; a longer one is none.
const maxTimeout = 365 * 24 * time.Hour

// Open starts a call. ctx's deadline travels with it; when ctx ends the
// stream is cut and the other side sees a cancel. The stream is closed when
// its STATUS has been received, or by Close.
func (s *Session) Open(ctx context.Context, method string, body any) (*Stream, error) {
	call, err := encodeCall(ctx, method, body)
	if err != nil {
		return nil, err
	}
	if err := s.take(ctx, s.slots); err != nil {
		return nil, err
	}
	if err := s.take(ctx, s.guard.syns); err != nil {
		<-s.slots
		return nil, err
	}
	ys, err := s.yamux.OpenStream()
	if err != nil {
		s.end(err) // also where it was only out of ids: the next session has new ones
		return nil, s.Err()
	}
	st := newStream(s, ys, 0)
	st.opener, st.method, st.ctx = true, method, ctx
	s.guard.watch(ys.StreamID(), st.peerClosed, st.wake)
	if ctx.Done() != nil {
		st.unwatch = context.AfterFunc(ctx, st.closeStream)
	}
	st.out = call
	if err := st.Flush(); err != nil && !errors.Is(err, ErrCallOver) {
		st.Close()
		return nil, err
	}
	return st, nil
}

// take takes a slot, or says why there is none.
func (s *Session) take(ctx context.Context, slots chan struct{}) error {
	if err := s.Err(); err != nil {
		return err
	}
	if ctx.Err() != nil {
		return contextError(ctx)
	}
	select {
	case slots <- struct{}{}:
		return nil
	case <-s.done:
		return s.err
	case <-ctx.Done():
		return contextError(ctx)
	}
}

// encodeCall makes the CALL frame.
func encodeCall(ctx context.Context, method string, body any) ([]byte, error) {
	name, err := json.Marshal(method)
	if err != nil {
		return nil, err
	}
	payload := append(make([]byte, 0, 512), `{"m":`...)
	payload = append(payload, name...)
	if deadline, ok := ctx.Deadline(); ok {
		left := time.Until(deadline)
		if left <= 0 {
			return nil, wire.Errorf(wire.Timeout, "the deadline passed")
		}
		if left <= maxTimeout {
			payload = append(payload, `,"t":`...)
			payload = strconv.AppendInt(payload, int64((left+time.Millisecond-1)/time.Millisecond), 10)
		}
	}
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return nil, wire.Errorf(wire.Internal, "encode body of %s: %v", method, err)
		}
		payload = append(append(payload, `,"b":`...), b...)
	}
	payload = append(payload, '}')
	return wire.AppendFrame(make([]byte, 0, len(payload)+8), wire.FrameCall, payload)
}

// Call is Open, one MSG into reply (nil: none wanted), and the STATUS.
func (s *Session) Call(ctx context.Context, method string, body, reply any) error {
	st, err := s.Open(ctx, method, body)
	if err != nil {
		return err
	}
	defer st.Close()
	return st.recvReply(reply)
}

// serve runs one call of the peer's.
func (s *Session) serve(ys *yamux.Stream) {
	st := newStream(s, ys, 0)
	ys.SetReadDeadline(time.Now().Add(callReadTimeout))
	err := st.readCall()
	if err != nil {
		st.ctx, st.cancel = context.WithCancelCause(s.ctx)
		st.finish(err)
		return
	}
	ys.SetReadDeadline(time.Time{})

	ctx := s.ctx
	if st.timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, st.timeout)
		defer cancel()
	}
	st.ctx, st.cancel = context.WithCancelCause(ctx)
	if st.timeout > 0 {
		st.unwatch = context.AfterFunc(st.ctx, st.wake)
	}
	s.guard.watch(ys.StreamID(), st.peerClosed, st.wake)
	st.finish(s.handle(st))
}

// handle calls the method's handler and survives its panic.
func (s *Session) handle(st *Stream) (err error) {
	h, ok := s.table[st.method]
	if !ok && st.method == wire.MethodPing {
		h, ok = ping, true
	}
	if !ok {
		return wire.Errorf(wire.Unimplemented, "the method %q is not known here", st.method)
	}
	defer func() {
		if v := recover(); v != nil {
			s.cfg.Logger.Error("handler panicked", "method", st.method, "peer", s.peer,
				"panic", v, "stack", string(debug.Stack()))
			err = wire.Errorf(wire.Internal, "internal error")
		}
	}()
	err = h(st.ctx, st)
	if _, hidden := statusOf(err); hidden && !errors.Is(err, io.EOF) {
		s.cfg.Logger.Error("call failed", "method", st.method, "peer", s.peer, "error", err)
	}
	return err
}

// ping answers with an empty message.
func ping(_ context.Context, st *Stream) error { return st.Queue(struct{}{}) }
