package wire

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"
)

// FrameType tells frames apart.
type FrameType uint8

// The frames; see the package comment.
const (
	FrameCall   FrameType = 1
	FrameMsg    FrameType = 2
	FrameData   FrameType = 3
	FrameEnd    FrameType = 4
	FrameStatus FrameType = 5
)

// ignorable is the first type that a receiver may skip.
const ignorable FrameType = 0x80

const (
	headerSize     = 4
	dataHeaderSize = 8 + 8 + 1
)

func (t FrameType) String() string {
	switch t {
	case FrameCall:
		return "CALL"
	case FrameMsg:
		return "MSG"
	case FrameData:
		return "DATA"
	case FrameEnd:
		return "END"
	case FrameStatus:
		return "STATUS"
	}
	return fmt.Sprintf("type %d", uint8(t))
}

// limit is the largest payload of a type.
func (t FrameType) limit() int {
	switch t {
	case FrameCall:
		return MaxCall
	case FrameMsg:
		return MaxMsg
	case FrameData:
		return dataHeaderSize + MaxData
	case FrameStatus:
		return MaxStatus
	case FrameEnd:
		return 0
	}
	if t >= ignorable {
		return MaxMsg
	}
	return -1
}

// Call is the payload of a CALL frame.
type Call struct {
	Method  string          `json:"m"`
	Timeout int64           `json:"t,omitempty"` // ms from now until the caller gives up; 0 is never
	Body    json.RawMessage `json:"b,omitempty"`
}

// Data is the payload of a DATA frame: bytes at an offset.
type Data struct {
	Offset int64     // of the first byte
	Time   time.Time // when they were written, microseconds; zero for blobs
	Stream StreamID  // 0 for blobs
	Bytes  []byte
}

// AppendFrame appends a frame of a type whose payload is at most its limit.
func AppendFrame(dst []byte, t FrameType, payload []byte) ([]byte, error) {
	if len(payload) > t.limit() {
		return dst, Errorf(TooLarge, "%s frame of %d bytes is over the limit of %d", t, len(payload), t.limit())
	}
	dst = appendHeader(dst, t, len(payload))
	return append(dst, payload...), nil
}

// AppendData appends a DATA frame of at most MaxData bytes.
func AppendData(dst []byte, d Data) ([]byte, error) {
	if len(d.Bytes) > MaxData {
		return dst, Errorf(TooLarge, "DATA frame of %d bytes is over the limit of %d", len(d.Bytes), MaxData)
	}
	dst = appendHeader(dst, FrameData, dataHeaderSize+len(d.Bytes))
	dst = binary.BigEndian.AppendUint64(dst, uint64(d.Offset))
	var at int64
	if !d.Time.IsZero() {
		at = d.Time.UnixMicro()
	}
	dst = binary.BigEndian.AppendUint64(dst, uint64(at))
	dst = append(dst, byte(d.Stream))
	return append(dst, d.Bytes...), nil
}

// ParseData reads the payload of a DATA frame; Bytes aliases payload.
func ParseData(payload []byte) (Data, error) {
	if len(payload) < dataHeaderSize {
		return Data{}, Errorf(BadUsage, "DATA frame of %d bytes is shorter than its header", len(payload))
	}
	d := Data{
		Offset: int64(binary.BigEndian.Uint64(payload)),
		Stream: StreamID(payload[16]),
		Bytes:  payload[dataHeaderSize:],
	}
	if d.Offset < 0 {
		return Data{}, Errorf(BadUsage, "DATA frame at the negative offset %d", d.Offset)
	}
	if at := int64(binary.BigEndian.Uint64(payload[8:])); at != 0 {
		if d.Time = time.UnixMicro(at).UTC(); !Writable(d.Time) {
			d.Time = time.Time{}
		}
	}
	return d, nil
}

// Writable reports whether a time that a peer says can be written as JSON: that of
// a year with four digits in UTC can.
func Writable(t time.Time) bool {
	y := t.UTC().Year()
	return y >= 0 && y <= 9999
}

func appendHeader(dst []byte, t FrameType, n int) []byte {
	return append(dst, byte(t), byte(n>>16), byte(n>>8), byte(n))
}

// Reader reads frames. It is not safe for concurrent use.
type Reader struct {
	r   io.Reader
	max int // of any payload; 0 is each type's own limit
	hdr [headerSize]byte
	buf []byte
}

// NewReader reads frames from r. With max > 0 no payload may be longer than
// that, whatever its type.
func NewReader(r io.Reader, max int) *Reader { return &Reader{r: r, max: max} }

// growStep bounds what a claimed length alone can make a Reader allocate.
const growStep = 32 << 10

// Next returns the next frame that is not ignorable. The payload is valid
// until the next call. At a clean end between frames the error is io.EOF,
// inside one io.ErrUnexpectedEOF; a frame that breaks the protocol is an
// *Error of kind BadUsage or TooLarge, after which the stream is of no use.
func (r *Reader) Next() (FrameType, []byte, error) {
	for {
		if _, err := io.ReadFull(r.r, r.hdr[:]); err != nil {
			return 0, nil, err
		}
		t := FrameType(r.hdr[0])
		n := int(r.hdr[1])<<16 | int(r.hdr[2])<<8 | int(r.hdr[3])
		limit := t.limit()
		if limit < 0 {
			return 0, nil, Errorf(BadUsage, "unknown frame %s", t)
		}
		if r.max > 0 {
			limit = min(limit, r.max)
		}
		if n > limit {
			return 0, nil, Errorf(TooLarge, "%s frame of %d bytes is over the limit of %d", t, n, limit)
		}
		if err := r.fill(n); err != nil {
			return 0, nil, err
		}
		if t < ignorable {
			return t, r.buf[:n], nil
		}
	}
}

// fill reads n bytes into buf, growing it as they arrive.
func (r *Reader) fill(n int) error {
	for have := 0; have < n; {
		step := min(n-have, growStep)
		if cap(r.buf) < have+step {
			grown := make([]byte, min(n, max(2*cap(r.buf), have+step)))
			copy(grown, r.buf[:have])
			r.buf = grown
		}
		r.buf = r.buf[:cap(r.buf)]
		if _, err := io.ReadFull(r.r, r.buf[have:have+step]); err != nil {
			if errors.Is(err, io.EOF) {
				return io.ErrUnexpectedEOF
			}
			return err
		}
		have += step
	}
	return nil
}
