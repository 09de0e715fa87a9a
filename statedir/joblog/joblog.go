// Package joblog is the runner's spool: one attempt's output on disk. The
// supervisor appends, the agent (another process) reads from any offset and
// follows. Bytes, stream and time of each chunk are kept; a torn tail is never seen.
//
// A log is one file: a mark that says which format it has, then records with
// nothing between them:
//
//	log    := "joblog" | version u16 | record*
//	record := header | bytes
//	header := sum u32 | bytes' sum u32 | time µs i64 | stream u8 | length u24     (20 bytes, big endian)
//
// Sums are CRC-32C. The header's own covers the offset of the record's first
// byte in the log as well, so that a header is only good in its place and
// output that looks like a header is none. Length is 1 to wire.MaxData.
//
// Version is 1. The logs of before there was a mark begin with a record, and are
// read and continued as they are. One of a newer version is refused (Unimplemented): who finds it
// leaves it alone.
//
// A record counts when all of it is there and its sums agree; the log ends
// before the first one that does not. A Writer that opens a log cuts it there.
// A Reader takes it for the end for now: whoever knows how long the log must
// be (the attempt's end says so) thereby also knows that a log was damaged.
//
// Nothing is synced unless asked for: what Append has written survives the
// death of any process, not that of the host.
package joblog

import (
	"encoding/binary"
	"hash/crc32"
	"time"

	"github.com/waypointd/waypoint/mux/wire"
)

const headerSize = 20

// Version is that of the format which a Writer gives a new log.
const Version = 1

// mark is what a log begins with; the version follows.
const (
	mark     = "joblog"
	markSize = len(mark) + 2
)

// appendMark appends the mark of this version.
func appendMark(dst []byte) []byte {
	return binary.BigEndian.AppendUint16(append(dst, mark...), Version)
}

// parseMark reads the first markSize bytes of a log, and returns how many of them are its
// mark: none, where it is of before there was one.
func parseMark(b []byte) (int, error) {
	if string(b[:len(mark)]) != mark {
		return 0, nil
	}
	if v := binary.BigEndian.Uint16(b[len(mark):]); v > Version {
		return 0, wire.Errorf(wire.Unimplemented, "its format %d is of a newer release, which this one cannot read", v)
	}
	return markSize, nil
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// header is a record's.
type header struct {
	bytesSum uint32
	at       int64 // µs since 1970; 0 is no time
	stream   wire.StreamID
	length   int
}

// time is when the bytes were written.
func (h header) time() time.Time {
	if h.at == 0 {
		return time.Time{}
	}
	return time.UnixMicro(h.at).UTC()
}

// headerSum is the sum of a header of the record at offset.
func headerSum(b []byte, offset int64) uint32 {
	var o [8]byte
	binary.BigEndian.PutUint64(o[:], uint64(offset))
	return crc32.Update(crc32.Checksum(o[:], castagnoli), castagnoli, b[4:headerSize])
}

// appendRecord appends the record of bytes at offset.
func appendRecord(dst []byte, offset int64, s wire.StreamID, at time.Time, bytes []byte) []byte {
	start := len(dst)
	var us int64
	if !at.IsZero() {
		us = at.UnixMicro()
	}
	dst = append(dst, 0, 0, 0, 0)
	dst = binary.BigEndian.AppendUint32(dst, crc32.Checksum(bytes, castagnoli))
	dst = binary.BigEndian.AppendUint64(dst, uint64(us))
	dst = binary.BigEndian.AppendUint32(dst, uint32(s)<<24|uint32(len(bytes)))
	binary.BigEndian.PutUint32(dst[start:], headerSum(dst[start:], offset))
	return append(dst, bytes...)
}

// parseHeader reads the header of the record at offset; ok is false where it
// is none.
func parseHeader(b []byte, offset int64) (h header, ok bool) {
	if len(b) < headerSize || binary.BigEndian.Uint32(b) != headerSum(b[:headerSize], offset) {
		return header{}, false
	}
	sl := binary.BigEndian.Uint32(b[16:])
	h = header{
		bytesSum: binary.BigEndian.Uint32(b[4:]),
		at:       int64(binary.BigEndian.Uint64(b[8:])),
		stream:   wire.StreamID(sl >> 24),
		length:   int(sl & (1<<24 - 1)),
	}
	return h, h.length > 0 && h.length <= wire.MaxData
}
