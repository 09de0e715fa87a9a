package joblog

import (
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"time"

	"github.com/waypointd/waypoint/mux/wire"
)

// writeChunk is how many bytes of output go into one write: enough that the
// calls do not count, little enough to keep for every running job.
const writeChunk = 4 * wire.MaxData

// Writer appends to one log. Not safe for concurrent use.
type Writer struct {
	f    *os.File
	len  int64  // of the output
	size int64  // of the file: the mark and whole records only
	torn bool   // the file may hold part of a record behind size
	buf  []byte // of one write, grown to what is needed
}

// Create opens or makes the log at path for appending; a torn tail is cut off.
// One of a newer release is Unimplemented and left as it is.
func Create(path string) (*Writer, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open job log: %w", err)
	}
	w := &Writer{f: f}
	if err := w.recover(); err != nil {
		f.Close()
		return nil, fmt.Errorf("recover job log %s: %w", path, err)
	}
	return w, nil
}

// recover finds the end of the last whole record and cuts the file there.
func (w *Writer) recover() error {
	fi, err := w.f.Stat()
	if err != nil {
		return err
	}
	if fi.Size() == 0 {
		return nil
	}
	r := &Reader{f: w.f}
	for {
		d, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		w.len = d.Offset + int64(len(d.Bytes))
	}
	w.size = r.pos
	if fi.Size() == w.size {
		return nil
	}
	return w.f.Truncate(w.size)
}

// Append adds bytes; they are readable by any process when it returns.
// A full disk is an error that matches syscall.ENOSPC, after which nothing
// of b (or only whole chunks of it: n bytes) was added.
func (w *Writer) Append(s wire.StreamID, at time.Time, b []byte) (n int, err error) {
	for n < len(b) {
		part := b[n:min(n+writeChunk, len(b))]
		added, err := w.append(s, at, part)
		n += added
		if err != nil {
			return n, fmt.Errorf("append to job log: %w", err)
		}
	}
	return n, nil
}

// append writes the records of at most writeChunk bytes in one call.
func (w *Writer) append(s wire.StreamID, at time.Time, b []byte) (int, error) {
	if w.torn {
		// What is left of a failed write must go before shorter records
		// could uncover it.
		if err := w.f.Truncate(w.size); err != nil {
			return 0, err
		}
		w.torn = false
	}
	w.buf = w.buf[:0]
	if w.size == 0 {
		w.buf = appendMark(w.buf)
	}
	ahead := len(w.buf)
	for o := 0; o < len(b); o += wire.MaxData {
		w.buf = appendRecord(w.buf, w.len+int64(o), s, at, b[o:min(o+wire.MaxData, len(b))])
	}
	wrote, err := w.f.WriteAt(w.buf, w.size)
	if err == nil {
		w.len += int64(len(b))
		w.size += int64(wrote)
		return len(b), nil
	}
	// Records that were written whole can be seen by readers already: keep
	// them, cut off the rest.
	added := 0
	wrote -= ahead
	for wrote >= headerSize+min(wire.MaxData, len(b)-added) && added < len(b) {
		n := min(wire.MaxData, len(b)-added)
		wrote -= headerSize + n
		w.size += int64(ahead + headerSize + n)
		ahead, added = 0, added+n
	}
	w.len += int64(added)
	w.torn = w.f.Truncate(w.size) != nil
	if errors.Is(err, syscall.EDQUOT) {
		err = fmt.Errorf("%w (%w)", err, syscall.ENOSPC)
	}
	return added, err
}

// Len is the number of bytes appended in all.
func (w *Writer) Len() int64 { return w.len }

// Sync waits until everything appended is on the disk.
func (w *Writer) Sync() error {
	if err := syscall.Fdatasync(int(w.f.Fd())); err != nil {
		return fmt.Errorf("sync job log: %w", err)
	}
	return nil
}

// Close closes the file without syncing it.
func (w *Writer) Close() error { return w.f.Close() }
