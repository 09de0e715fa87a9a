package mux

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"sync"
	"time"

	"github.com/hashicorp/yamux"

	"github.com/waypointd/waypoint/mux/wire"
)

// Stream is one call at either end. One goroutine may receive while another
// sends; neither side may be used by two at once.
type Stream struct {
	s       *Session
	ys      *yamux.Stream
	opener  bool
	method  string
	timeout time.Duration // of a call that is served; 0 is none
	ctx     context.Context
	cancel  context.CancelCauseFunc // of a call that is served
	unwatch func() bool             // stops what watches ctx; may be nil

	// Of the goroutine that receives.
	in      source
	frames  *wire.Reader
	body    json.RawMessage
	ended   bool // END was received
	recvErr error

	// Of the goroutine that sends.
	out     []byte // frames not yet written
	sentEnd bool
	sendErr error

	mu     sync.Mutex
	gone   bool // the peer has closed the stream
	closed bool // this side has
}

func newStream(s *Session, ys *yamux.Stream, maxPayload int) *Stream {
	st := &Stream{s: s, ys: ys}
	st.in.ys = ys
	st.frames = wire.NewReader(&st.in, maxPayload)
	return st
}

// Method is the call's method.
func (st *Stream) Method() string { return st.method }

// Peer is who is at the other end.
func (st *Stream) Peer() *Peer { return st.s.peer }

// Silence is its session's.
func (st *Stream) Silence() time.Duration { return st.s.Silence() }

// Context is the call's.
func (st *Stream) Context() context.Context { return st.ctx }

// wake ends what waits in the stream. yamux's Close would not.
func (st *Stream) wake() {
	st.ys.SetDeadline(past)
}

// peerClosed is called by the guard when the peer has closed the stream. For
// a call that is served that is a cancel, or of no more interest. To the
// opener it means that nobody reads any more, while what was sent before,
// with the STATUS, is still to be received.
func (st *Stream) peerClosed() {
	st.mu.Lock()
	st.gone = true
	if st.opener {
		st.ys.SetWriteDeadline(past)
	} else {
		st.ys.SetDeadline(past)
	}
	st.mu.Unlock()
	if !st.opener {
		st.cancel(ErrCanceled)
	}
}

// Close gives the stream up: on the opener's side before STATUS it is a
// cancel. Always safe, also twice.
func (st *Stream) Close() error {
	if st.unwatch != nil {
		st.unwatch()
	}
	st.closeStream()
	return nil
}

func (st *Stream) closeStream() {
	st.mu.Lock()
	if st.closed {
		st.mu.Unlock()
		return
	}
	st.closed = true
	st.mu.Unlock()
	st.wake()
	st.ys.Close()
	if st.opener {
		<-st.s.slots
	}
}

// deaf reports whether the peer has closed the stream: yamux would go on
// sending until the window is full.
func (st *Stream) deaf() bool {
	st.mu.Lock()
	defer st.mu.Unlock()
	return st.gone
}

// finish ends a call that was served with a STATUS, unless nobody is there to
// read it or a frame was written in part.
func (st *Stream) finish(err error) {
	if st.unwatch != nil {
		st.unwatch()
	}
	status, _ := statusOf(err)
	st.mu.Lock()
	mute := st.gone || st.closed || st.s.Err() != nil
	if !mute && st.ctx.Err() != nil {
		// The deadline passed, and with it the right to wait for the peer to
		// read: one moment more for the STATUS.
		st.ys.SetWriteDeadline(time.Now().Add(time.Second))
	}
	st.mu.Unlock()
	if !mute && st.sendErr == nil && st.queueStatus(status) == nil {
		st.s.guard.cork(st.ys.StreamID())
		st.Flush()
	}
	st.cancel(context.Canceled)
	st.Close()
}

func (st *Stream) queueStatus(status wire.Error) error {
	payload, err := json.Marshal(status)
	if err != nil {
		return err
	}
	if len(payload) > wire.MaxStatus {
		payload, _ = json.Marshal(wire.Error{Kind: status.Kind, Message: status.Message[:min(len(status.Message), 4<<10)]})
	}
	st.out, err = wire.AppendFrame(st.out, wire.FrameStatus, payload)
	return err
}

// over is the error of a stream that cannot go on, for a reason that lies
// outside of it; nil if there is none.
func (st *Stream) over() error {
	if st.opener && st.ctx.Err() != nil || !st.opener && st.ctx != nil && st.ctx.Err() != nil && st.s.Err() == nil {
		return contextError(st.ctx)
	}
	if st.s.lost() {
		return st.s.Err()
	}
	st.mu.Lock()
	closed := st.closed
	st.mu.Unlock()
	if closed {
		return wire.Errorf(wire.Unavailable, "the stream is closed")
	}
	return nil
}

// readError is what a failed read means.
func (st *Stream) readError(err error) error {
	if _, ok := errors.AsType[*wire.Error](err); ok {
		return err
	}
	if over := st.over(); over != nil {
		return over
	}
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, yamux.ErrConnectionReset):
		if !st.opener {
			return ErrCanceled
		}
		return wire.Errorf(wire.Unavailable, "the other side closed the call without a status")
	case errors.Is(err, yamux.ErrTimeout):
		if st.method == "" {
			return wire.Errorf(wire.Timeout, "no call came on the stream within %v", callReadTimeout)
		}
		return ErrCanceled
	}
	return wire.Errorf(wire.Unavailable, "read stream: %v", err)
}

// writeError is what a failed write means.
func (st *Stream) writeError(err error) error {
	if errors.Is(err, yamux.ErrConnectionWriteTimeout) {
		// The frame may still be sent later: nothing on this session is certain any more.
		st.s.end(wire.Errorf(wire.Unavailable, "the peer does not read"))
	}
	gone := st.deaf()
	if gone && st.opener && st.ctx.Err() == nil {
		return ErrCallOver
	}
	if over := st.over(); over != nil {
		return over
	}
	if gone || errors.Is(err, yamux.ErrConnectionReset) {
		return ErrCanceled
	}
	return wire.Errorf(wire.Unavailable, "write stream: %v", err)
}

// nextFrame is the next frame, whole: only then the guard counts it as taken.
func (st *Stream) nextFrame() (wire.FrameType, []byte, error) {
	t, payload, err := st.frames.Next()
	if n := st.in.read; n > 0 {
		st.in.read = 0
		st.s.guard.taken(st.ys.StreamID(), n)
	}
	return t, payload, err
}

// source reads a yamux stream through a buffer that is small until much
// comes: a read of yamux's takes four locks, whatever its size.
type source struct {
	ys   *yamux.Stream
	buf  []byte
	r, w int
	read int64 // bytes of ys, of frames that are not whole yet
}

const (
	sourceFirst = 512
	sourceMax   = 16 << 10
)

func (s *source) Read(p []byte) (int, error) {
	if s.r == s.w {
		if len(p) >= sourceMax {
			n, err := s.ys.Read(p)
			s.read += int64(n)
			return n, err
		}
		if s.w == len(s.buf) && s.w < sourceMax {
			s.buf = make([]byte, max(sourceFirst, min(4*s.w, sourceMax)))
		}
		s.r, s.w = 0, 0
		n, err := s.ys.Read(s.buf)
		s.w = n
		s.read += int64(n)
		if n == 0 {
			return 0, err
		}
	}
	n := copy(p, s.buf[s.r:s.w])
	s.r += n
	return n, nil
}
