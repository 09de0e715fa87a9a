package mux

import (
	"encoding/json"
	"errors"
	"io"
	"time"

	"github.com/hashicorp/yamux"

	"github.com/waypointd/waypoint/mux/wire"
)

// maxWrite is the most that is given to yamux at once: it keeps a buffer of
// the largest frame ever written for as long as the session lives. It holds
// one full DATA frame.
const maxWrite = wire.MaxData + 64

// Frame is a received MSG or DATA.
type Frame struct {
	Msg  []byte    // JSON; nil for DATA
	Data wire.Data // Bytes valid until the next Recv
}

// IsData tells the two apart.
func (f Frame) IsData() bool { return f.Msg == nil }

// Send sends v as a MSG, behind any DATA not yet flushed, and flushes. When
// the other side has ended the call the error is ErrCallOver and Recv has the
// reason; a session that broke is Unavailable, an ended context Timeout or the
// context's cause. After an error nothing more can be sent.
func (st *Stream) Send(v any) error {
	if err := st.Queue(v); err != nil {
		return err
	}
	return st.Flush()
}

// Queue is Send without the flush: what is queued is written once 16 KiB are
// there, and by Flush, Send, End or the handler's return.
func (st *Stream) Queue(v any) error {
	if err := st.sendable(); err != nil {
		return err
	}
	payload, err := json.Marshal(v)
	if err != nil {
		return wire.Errorf(wire.Internal, "encode message of %s: %v", st.method, err)
	}
	if st.out, err = wire.AppendFrame(st.out, wire.FrameMsg, payload); err != nil {
		return err
	}
	if len(st.out) >= wire.MaxData {
		return st.Flush()
	}
	return nil
}

func (st *Stream) sendable() error {
	if st.sendErr != nil {
		return st.sendErr
	}
	if st.sentEnd {
		return wire.Errorf(wire.Internal, "send on a stream of %s that was ended", st.method)
	}
	return nil
}

// SendData queues one DATA frame of at most wire.MaxData bytes; 16 KiB or
// more are written at once, less waits for Flush, Send or End. Errors are
// Send's.
func (st *Stream) SendData(d wire.Data) error {
	if err := st.sendable(); err != nil {
		return err
	}
	if len(st.out)+len(d.Bytes)+32 > maxWrite {
		if err := st.Flush(); err != nil {
			return err
		}
	}
	if st.out == nil && len(d.Bytes) < wire.MaxData/2 {
		st.out = make([]byte, 0, maxWrite) // many small ones will come
	}
	var err error
	if st.out, err = wire.AppendData(st.out, d); err != nil {
		return err
	}
	if len(st.out) >= wire.MaxData {
		return st.Flush()
	}
	return nil
}

// Flush writes what SendData queued. Errors are Send's.
func (st *Stream) Flush() error {
	if st.sendErr != nil {
		return st.sendErr
	}
	if st.deaf() {
		st.sendErr = st.writeError(yamux.ErrStreamClosed)
		return st.sendErr
	}
	rest := st.out
	for len(rest) > 0 {
		n, err := st.ys.Write(rest[:min(len(rest), maxWrite)])
		if err != nil {
			st.sendErr = st.writeError(err)
			return st.sendErr
		}
		rest = rest[n:]
	}
	if st.out = st.out[:0]; cap(st.out) > 2*maxWrite {
		st.out = nil
	}
	return nil
}

// End says that this side sends no more.
func (st *Stream) End() error {
	if err := st.sendable(); err != nil {
		return err
	}
	var err error
	if st.out, err = wire.AppendFrame(st.out, wire.FrameEnd, nil); err != nil {
		return err
	}
	st.sentEnd = true
	return st.Flush()
}

// Recv returns the next MSG or DATA. The server of a call gets io.EOF after
// the opener's END; the opener gets io.EOF at the STATUS of success and the
// *wire.Error of any other. A session that broke is Unavailable, an ended
// context Timeout or the context's cause. Errors stay.
func (st *Stream) Recv() (Frame, error) {
	t, payload, err := st.next()
	if err != nil {
		return Frame{}, err
	}
	if t == wire.FrameMsg {
		return Frame{Msg: append(make([]byte, 0, len(payload)), payload...)}, nil
	}
	d, err := wire.ParseData(payload)
	if err != nil {
		return Frame{}, st.broken(err)
	}
	return Frame{Data: d}, nil
}

// RecvMsg is Recv of a MSG into v; BadUsage if a DATA comes instead.
func (st *Stream) RecvMsg(v any) error {
	t, payload, err := st.next()
	if err != nil {
		return err
	}
	if t != wire.FrameMsg {
		return st.broken(wire.Errorf(wire.BadUsage, "a %s frame came where a message was due", t))
	}
	return st.decode(payload, v)
}

func (st *Stream) decode(payload []byte, v any) error {
	if err := json.Unmarshal(payload, v); err != nil {
		return wire.Errorf(wire.BadUsage, "decode message of %s: %v", st.method, err)
	}
	return nil
}

// recvReply receives the rest of a call that has at most one message for its
// answer.
func (st *Stream) recvReply(reply any) error {
	got := false
	for {
		t, payload, err := st.next()
		if errors.Is(err, io.EOF) {
			if reply != nil && !got {
				return wire.Errorf(wire.Internal, "%s was answered without a message", st.method)
			}
			return nil
		}
		if err != nil {
			return err
		}
		if reply == nil {
			continue
		}
		if got || t != wire.FrameMsg {
			return st.broken(wire.Errorf(wire.BadUsage, "%s was answered with more than one message", st.method))
		}
		if err := st.decode(payload, reply); err != nil {
			return err
		}
		got = true
	}
}

// next returns the next MSG or DATA and keeps the stream's state.
func (st *Stream) next() (wire.FrameType, []byte, error) {
	for st.recvErr == nil {
		if st.opener && st.ctx.Err() != nil {
			st.broken(contextError(st.ctx)) // though there may be more to read
			break
		}
		t, payload, err := st.nextFrame()
		if err != nil {
			st.broken(st.readError(err))
			break
		}
		switch {
		case (t == wire.FrameMsg || t == wire.FrameData) && !st.ended:
			return t, payload, nil
		case t == wire.FrameEnd && !st.ended:
			st.ended = true
			if !st.opener {
				st.recvErr = io.EOF
			}
		case t == wire.FrameStatus && st.opener:
			st.status(payload)
		default:
			st.broken(wire.Errorf(wire.BadUsage, "a %s frame came where none may be", t))
		}
	}
	return 0, nil, st.recvErr
}

// status takes the STATUS, which ends the call.
func (st *Stream) status(payload []byte) {
	var status wire.Error
	if err := json.Unmarshal(payload, &status); err != nil {
		st.broken(wire.Errorf(wire.BadUsage, "decode status of %s: %v", st.method, err))
		return
	}
	if st.recvErr = statusError(status); st.recvErr == nil {
		st.recvErr = io.EOF
	}
	st.Close()
}

// broken keeps the error that ended receiving. The opener can do no more with
// such a stream; the server of a call may still answer.
func (st *Stream) broken(err error) error {
	st.recvErr = err
	if st.opener {
		st.Close()
	}
	return err
}

// readCall reads the CALL frame that every stream begins with.
func (st *Stream) readCall() error {
	t, payload, err := st.nextFrame()
	if err != nil {
		return st.readError(err)
	}
	if t != wire.FrameCall {
		return wire.Errorf(wire.BadUsage, "a stream began with a %s frame", t)
	}
	var call wire.Call
	if err := json.Unmarshal(payload, &call); err != nil {
		return wire.Errorf(wire.BadUsage, "decode call: %v", err)
	}
	if call.Method == "" || call.Timeout < 0 {
		return wire.Errorf(wire.BadUsage, "a call has no method, or a negative deadline")
	}
	st.method, st.body = call.Method, call.Body // Unmarshal has copied it
	if call.Timeout <= int64(maxTimeout/time.Millisecond) {
		st.timeout = time.Duration(call.Timeout) * time.Millisecond
	}
	return nil
}

// Forget lets go of the body of a call that is served, and of the memory that it was
// read into: a call may wait for long, and its peer may have many. It is for who
// receives; what comes behind the body still can be.
func (st *Stream) Forget() {
	st.body, *st.frames = nil, *wire.NewReader(&st.in, 0)
}

// Body decodes the call's body; BadUsage where it cannot be.
func (st *Stream) Body(v any) error {
	if len(st.body) == 0 {
		return wire.Errorf(wire.BadUsage, "%s needs a body", st.method)
	}
	if err := json.Unmarshal(st.body, v); err != nil {
		return wire.Errorf(wire.BadUsage, "decode body of %s: %v", st.method, err)
	}
	return nil
}
