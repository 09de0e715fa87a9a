package supervisor

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/waypointd/waypoint/mux/wire"
	"github.com/waypointd/waypoint/statedir/joblog"
)

const (
	// pipeSize is how far a job may be ahead of the spool: much, so that it
	// does not wait for each write of ours. More than a user may have in all
	// is refused, and the usual 64 KiB stay.
	pipeSize = 1 << 20
	// readSize is how much is read at once.
	readSize = 64 << 10
)

// output takes what an attempt's commands write to the log.
type output struct {
	a              *attempt
	stdout, stderr *os.File // the commands' ends of the pipes
	pipes          [2]*pipe
	readers        sync.WaitGroup

	// mu is held from reading a pipe until the bytes are in the log, so
	// that what has left one pipe is in the log before what leaves the other.
	mu       sync.Mutex
	log      *joblog.Writer
	kept     int64 // of the job's own bytes, against the limit
	limited  bool  // the limit was reached and said
	failed   error // why nothing is kept any more
	finished bool
}

// pipe is the reading end of one stream.
type pipe struct {
	f      *os.File
	raw    syscall.RawConn
	stream wire.StreamID
}

// buffers are used while there is something to read: jobs that are silent
// have none.
var buffers = sync.Pool{New: func() any { return new([readSize]byte) }}

func newOutput(a *attempt) (*output, error) {
	takeSpare(a.spec.Dir, LogFile)
	log, err := joblog.Create(filepath.Join(a.spec.Dir, LogFile))
	if err != nil {
		return nil, err
	}
	o := &output{a: a, log: log}
	var ends [2]*os.File
	for i, stream := range []wire.StreamID{wire.Stdout, wire.Stderr} {
		p, w, err := newPipe(stream)
		if err != nil {
			o.closeFiles(ends[:i])
			if log.Len() == 0 {
				os.Remove(filepath.Join(a.spec.Dir, LogFile)) // it would say that the attempt has begun
			}
			return nil, fmt.Errorf("make pipe: %w", err)
		}
		o.pipes[i], ends[i] = p, w
	}
	o.stdout, o.stderr = ends[0], ends[1]
	for _, p := range o.pipes {
		o.readers.Go(func() { o.read(p) })
	}
	return o, nil
}

func newPipe(stream wire.StreamID) (*pipe, *os.File, error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, err
	}
	// The commands' end blocks, as they expect; ours does not, so that a
	// goroutine waits for it and not a thread.
	unix.SetNonblock(fds[0], true)
	unix.FcntlInt(uintptr(fds[0]), unix.F_SETPIPE_SZ, pipeSize)
	r, w := os.NewFile(uintptr(fds[0]), "pipe"), os.NewFile(uintptr(fds[1]), "pipe")
	raw, err := r.SyscallConn()
	if err != nil {
		r.Close()
		w.Close()
		return nil, nil, err
	}
	return &pipe{f: r, raw: raw, stream: stream}, w, nil
}

// read takes from a pipe until it is at its end, or close sets a deadline.
func (o *output) read(p *pipe) {
	for {
		var n int
		err := p.raw.Read(func(fd uintptr) bool {
			n = o.take(p, int(fd), readSize)
			return n != again
		})
		if err != nil || n <= 0 {
			return
		}
	}
}

// again is what take returns for a pipe that has nothing at the moment.
const again = -1

// take reads from a pipe once, at most max bytes, and adds them to the log. It
// returns how many there were, 0 at the end.
func (o *output) take(p *pipe, fd, max int) int {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.finished {
		return 0
	}
	buf := buffers.Get().(*[readSize]byte)
	defer buffers.Put(buf)
	for {
		n, err := unix.Read(fd, buf[:min(max, readSize)])
		switch {
		case err == unix.EINTR:
		case err == unix.EAGAIN:
			return again
		case err != nil || n == 0:
			return 0
		default:
			o.add(p.stream, buf[:n])
			return n
		}
	}
}

// add keeps bytes of the job's as far as the limit allows; mu is held.
func (o *output) add(stream wire.StreamID, b []byte) {
	if o.limited {
		return
	}
	limit := o.a.spec.LogLimit
	over := o.kept+int64(len(b)) > limit
	if over {
		b = b[:limit-o.kept]
	}
	o.kept += int64(len(b))
	o.append(stream, b)
	if over {
		o.limited = true
		o.append(wire.Notice, fmt.Appendf(nil, "output limit of %s reached; what follows is discarded\n", size(limit)))
	}
	o.a.s.changed(o.a)
}

// append puts bytes into the log. While the disk is full it waits, and with it the job,
// whose pipes fill up; mu is held.
func (o *output) append(stream wire.StreamID, b []byte) {
	if o.failed != nil || len(b) == 0 {
		return
	}
	at := time.Now()
	o.failed = o.a.untilRoom(func() error {
		n, err := o.log.Append(stream, at, b)
		b = b[n:]
		return err
	})
	o.a.written.Store(o.log.Len())
	if o.failed != nil {
		o.a.s.log.Error("keep output of job", "job", o.a.spec.Job, "attempt", o.a.spec.Attempt, "error", o.failed.Error())
		// Not from here: the tree may be waiting for these very pipes.
		o.a.s.wg.Go(func() { o.a.stop(stopOutput, false) })
	}
}

// notice says something in-band, behind everything written so far.
func (o *output) notice(text string) {
	o.drain()
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.finished {
		o.append(wire.Notice, []byte(text))
		o.a.s.changed(o.a)
	}
}

// drain takes what is in the pipes now. It does not wait for their ends:
// a process outside of the tree may have been given one.
func (o *output) drain() {
	for _, p := range o.pipes {
		p.raw.Control(func(fd uintptr) {
			left, err := unix.IoctlGetInt(int(fd), unix.TIOCINQ)
			for err == nil && left > 0 {
				n := o.take(p, int(fd), left)
				if n <= 0 {
					return
				}
				left -= n
			}
		})
	}
}

// close ends the output once no process of the tree lives: all that was
// written is then in the log.
func (o *output) close() {
	for _, p := range o.pipes {
		p.f.SetReadDeadline(time.Unix(1, 0)) // wakes its reader
	}
	o.readers.Wait()
	o.drain()
	o.mu.Lock()
	o.finished = true
	o.mu.Unlock()
	o.closeFiles([]*os.File{o.stdout, o.stderr})
}

func (o *output) closeFiles(ends []*os.File) {
	for _, f := range ends {
		f.Close()
	}
	for _, p := range o.pipes {
		if p != nil {
			p.f.Close()
		}
	}
	if err := o.log.Close(); err != nil {
		o.a.s.log.Error("close job log", "error", err.Error())
	}
}

// len is how long the log is.
func (o *output) len() int64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.log.Len()
}

// failure is why output was lost, if any was.
func (o *output) failure() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.failed
}

// size is a number of bytes for people.
func size(n int64) string {
	const units = "KMGTPE"
	if n < 1<<10 {
		return fmt.Sprintf("%d B", n)
	}
	v, i := float64(n)/(1<<10), 0
	for v >= 1<<10 && i < len(units)-1 {
		v, i = v/(1<<10), i+1
	}
	return fmt.Sprintf("%.1f %ciB", v, units[i])
}
