package joblog

import (
	"fmt"
	"hash/crc32"
	"io"
	"os"

	"github.com/waypointd/waypoint/mux/wire"
)

const (
	// readAhead is how much is read at once where there is as much: several
	// records of the largest size, or very many small ones.
	readAhead = 4 * (headerSize + wire.MaxData)
	// readFirst is how much is read at first, and where there is little: most
	// logs are short, and many are followed line by line.
	readFirst = 4 << 10
	// seekAhead is how much is read at once while records are skipped: enough
	// for many headers of small records, little waste on large ones.
	seekAhead = 8 << 10
)

// Reader reads a log that may still grow. Not safe for concurrent use.
type Reader struct {
	f      *os.File
	pos    int64  // in the file, of the next record; 0: what the file begins with is not known yet
	offset int64  // in the log, of the next record
	want   int64  // in the log, where the caller wants to start
	buf    []byte // of the file from pos on: what has been read ahead
	mem    []byte // what buf is a part of
	got    int    // by the last read
	size   int64  // of the file when it was last asked for
}

// Open opens the log at path, positioned at offset; an offset past the end is
// reached once the log has grown so far.
func Open(path string, offset int64) (*Reader, error) {
	if offset < 0 {
		return nil, wire.Errorf(wire.BadUsage, "job log has no offset %d", offset)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open job log: %w", err)
	}
	return &Reader{f: f, want: offset}, nil
}

// Next returns the next chunk of at most wire.MaxData bytes (valid until the
// next call); io.EOF means nothing more for now, Unimplemented that the log is
// of a newer release.
func (r *Reader) Next() (wire.Data, error) {
	if err := r.begin(); err != nil {
		return wire.Data{}, err
	}
	for {
		h, err := r.header()
		if err != nil {
			return wire.Data{}, err
		}
		next := r.offset + int64(h.length)
		if next <= r.want {
			// Skipping what is wanted by nobody takes its header's word, but
			// not past the end of the file.
			if err := r.skip(h); err != nil {
				return wire.Data{}, err
			}
			continue
		}
		if err := r.fill(headerSize+h.length, readAhead); err != nil {
			return wire.Data{}, err
		}
		bytes := r.buf[headerSize : headerSize+h.length]
		if crc32.Checksum(bytes, castagnoli) != h.bytesSum {
			// Torn, or just being rolled back by its writer: look again.
			r.buf = nil
			return wire.Data{}, io.EOF
		}
		d := wire.Data{Offset: r.offset, Time: h.time(), Stream: h.stream, Bytes: bytes}
		if cut := r.want - r.offset; cut > 0 {
			d.Offset += cut
			d.Bytes = bytes[cut:]
		}
		r.advance(h)
		return d, nil
	}
}

// begin goes past the mark that the log begins with, once that is there.
func (r *Reader) begin() error {
	if r.pos > 0 {
		return nil
	}
	if err := r.fill(markSize, readAhead); err != nil {
		return err
	}
	n, err := parseMark(r.buf)
	if err != nil {
		return fmt.Errorf("read job log: %w", err)
	}
	r.pos, r.buf = int64(n), r.buf[n:]
	return nil
}

// header is that of the next record.
func (r *Reader) header() (header, error) {
	ahead := readAhead
	if r.offset < r.want {
		ahead = seekAhead
	}
	if err := r.fill(headerSize, ahead); err != nil {
		return header{}, err
	}
	h, ok := parseHeader(r.buf, r.offset)
	if !ok {
		r.buf = nil
		return header{}, io.EOF
	}
	return h, nil
}

// skip goes past a record without reading its bytes; io.EOF where it is not
// whole yet.
func (r *Reader) skip(h header) error {
	if end := r.pos + int64(headerSize+h.length); end > r.size {
		fi, err := r.f.Stat()
		if err != nil {
			return r.readError(err)
		}
		r.size = fi.Size()
		if end > r.size {
			r.buf = nil
			return io.EOF
		}
	}
	r.advance(h)
	return nil
}

// advance goes to the record behind one with header h.
func (r *Reader) advance(h header) {
	n := headerSize + h.length
	r.pos += int64(n)
	r.offset += int64(h.length)
	r.buf = r.buf[min(n, len(r.buf)):]
}

// fill makes sure that buf holds n bytes, reading up to ahead; io.EOF where
// the file has fewer.
func (r *Reader) fill(n, ahead int) error {
	if len(r.buf) >= n {
		return nil
	}
	ahead = max(n, min(ahead, max(readFirst, 4*r.got)))
	if cap(r.mem) < ahead {
		r.mem = make([]byte, ahead)
	}
	have := copy(r.mem[:cap(r.mem)], r.buf)
	got, err := r.f.ReadAt(r.mem[have:ahead], r.pos+int64(have))
	r.buf, r.got = r.mem[:have+got], got
	if len(r.buf) >= n {
		return nil
	}
	// Part of a record may change until it is whole: never kept.
	r.buf = nil
	if err == nil {
		err = io.EOF
	}
	return r.readError(err)
}

func (r *Reader) readError(err error) error {
	if err == io.EOF {
		return io.EOF
	}
	return fmt.Errorf("read job log: %w", err)
}

// Close closes the file.
func (r *Reader) Close() error { return r.f.Close() }
