package daemon

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/waypointd/waypoint/daemon/store"
	"github.com/waypointd/waypoint/mux"
	"github.com/waypointd/waypoint/mux/wire"
)

// reportBuffer bounds the output of one job that is in memory and not yet
// durable, in bytes; past it the runner waits, its job does not.
const reportBuffer = 1 << 20

// logNotices is how many bytes a runner may say in the output itself (the names of
// steps, as long as a spec), besides those of the job that are kept.
const logNotices = 4 << 20

// maxOutputs bounds the outputs of a job, in bytes: it has to fit into a message
// with them. A runner takes fewer.
const maxOutputs = 64 << 10

// chunkCost is what a frame costs in memory besides its bytes.
const chunkCost = 64

// runnerReport takes one attempt's output and, behind its last byte, its
// result. The last bytes and the end of the job are one commit.
func (s *Server) runnerReport(ctx context.Context, st *mux.Stream) error {
	var req wire.ReportRequest
	if err := st.Body(&req); err != nil {
		return err
	}
	about(ctx, req.Job)
	m := st.Peer().Data.(*visitor)
	length, err := s.reported(ctx, req, m)
	if err != nil {
		if s.fleet.stranger(m) {
			pace(ctx, callOf(ctx), st, err)
		}
		return err
	}
	most := max(length, s.fleet.logLimitOf(req.JobRef, s.cfg().LogLimit)+logNotices)
	if err := st.Send(wire.ReportOrder{Offset: length}); err != nil {
		return err
	}
	in := newIntake()
	s.work.Go(func() { in.fill(st) })
	defer in.stop()
	for {
		chunks, result, err := in.take(ctx)
		if err != nil {
			return err
		}
		for _, c := range chunks {
			if c.Offset > most-int64(len(c.Bytes)) {
				return wire.Errorf(wire.TooLarge, "output of job %s from byte %d on is more than the %d that are kept of it", req.Job, c.Offset, most)
			}
		}
		if result != nil {
			if err := s.mayLeave(ctx, callOf(ctx), result.Artifact); err != nil {
				return err
			}
		}
		was, began := length, time.Now()
		if req.Late {
			length, err = s.recordLate(ctx, req.JobRef, m, chunks, result)
		} else {
			length, err = s.record(ctx, req.JobRef, m, length, chunks, result)
		}
		if err != nil {
			return err
		}
		s.metrics.Appended(length-was, time.Since(began))
		if result != nil && req.Late {
			s.metrics.Late()
			s.log.Info("late result of a lost job recorded", "job", req.Job, "attempt", req.Attempt, "runner", m.id,
				"state", result.State, "reason", result.Reason)
			return st.Send(wire.ReportOrder{Offset: length, Ended: true})
		}
		if result != nil {
			s.fleet.end(req.JobRef, false) // its place was given away in the commit
			s.log.Info("job ended", "job", req.Job, "attempt", req.Attempt, "runner", m.id,
				"state", result.State, "reason", result.Reason)
			defer s.fleet.settleRejected(m.id) // once it knows that its last job is safe
			return st.Send(wire.ReportOrder{Offset: length, Ended: true})
		}
		if err := st.Send(wire.ReportOrder{Offset: length}); err != nil {
			return err
		}
	}
}

// reported opens a report, and returns how much output there is of it.
func (s *Server) reported(ctx context.Context, req wire.ReportRequest, v *visitor) (length int64, err error) {
	if req.Late {
		if err := s.fleet.reportLate(req.JobRef, v); err != nil {
			return 0, err
		}
		return s.store.Late(ctx, req.JobRef, v.id, v.lateKey())
	}
	fresh, err := s.fleet.report(req.JobRef, v)
	if err != nil || fresh {
		return 0, err
	}
	_, length, err = s.store.Log(ctx, req.Job, req.Attempt, 0, 0)
	return length, err
}

// record makes output and, if it has come, the result durable; length is how
// much output is already.
func (s *Server) record(ctx context.Context, ref wire.JobRef, v *visitor, length int64, chunks []wire.Data, result *wire.Result) (int64, error) {
	runner, kept := v.id, true
	err := s.persist(ctx, ref, v, func(tx *store.Tx, now time.Time) (err error) {
		if result == nil {
			if kept, err = s.settleIn(tx, ref, runner); err != nil {
				return err
			}
		}
		if len(chunks) > 0 {
			if length, err = tx.AppendLog(ref, runner, chunks); err != nil {
				return err
			}
		}
		if result == nil {
			return nil
		}
		started, _ := s.fleet.started(ref)
		return tx.FinishStarted(ref, runner, *result, started, now)
	})
	if err == nil && kept {
		s.fleet.settled(ref)
	}
	return length, err
}

// recordLate is record for an attempt that was lost.
func (s *Server) recordLate(ctx context.Context, ref wire.JobRef, v *visitor, chunks []wire.Data, result *wire.Result) (length int64, err error) {
	err = s.persist(ctx, ref, v, func(tx *store.Tx, now time.Time) (err error) {
		if length, err = tx.AppendLate(ref, v.id, v.lateKey(), chunks); err != nil || result == nil {
			return err
		}
		return tx.FinishLate(ref, v.id, v.lateKey(), *result, now)
	})
	return length, err
}

// errNotHere is why a report ends whose runner's work stream is not on its session
// any more: it goes on from the one that is.
var errNotHere = wire.Errorf(wire.Unavailable, "the runner does not work on this session any more: report on the one where it does")

// persist commits what a report brings. While there is no room, or the database is out
// of reach, it waits and tries again: the rest is safe on the runner's disk. Of a session whose runner
// works on another nothing is recorded any more.
func (s *Server) persist(ctx context.Context, ref wire.JobRef, v *visitor, f func(tx *store.Tx, now time.Time) error) error {
	for {
		now := s.now()
		err := s.update(func(tx *store.Tx) error {
			if !s.fleet.works(v) {
				return errNotHere
			}
			return f(tx, now)
		})
		if wire.KindOf(err) != wire.Unavailable || errors.Is(err, errNotHere) {
			return err
		}
		s.log.Warn("job output waits for the store", "job", ref.Job, "attempt", ref.Attempt, "runner", v.id, "error", err)
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(clockRetry):
		}
	}
}

// intake is what has come on a report stream and is not yet durable.
type intake struct {
	more chan struct{} // one token: something has come
	room chan struct{} // one token: something was taken
	done chan struct{} // closed by stop

	mu     sync.Mutex
	chunks []wire.Data  // guarded by mu
	size   int          // of chunks in memory; guarded by mu
	result *wire.Result // guarded by mu
	err    error        // why no more comes; guarded by mu
	once   sync.Once
}

func newIntake() *intake {
	return &intake{more: make(chan struct{}, 1), room: make(chan struct{}, 1), done: make(chan struct{})}
}

func (in *intake) stop() { in.once.Do(func() { close(in.done) }) }

// fill reads the stream into the intake until the result, an end or stop.
func (in *intake) fill(st *mux.Stream) {
	for {
		f, err := st.Recv()
		var result *wire.Result
		switch {
		case errors.Is(err, io.EOF):
			err = wire.Errorf(wire.BadUsage, "the report ended without a result")
		case err == nil && !f.IsData():
			result = &wire.Result{}
			if jerr := json.Unmarshal(f.Msg, result); jerr != nil {
				err = wire.Errorf(wire.BadUsage, "read result: %v", jerr)
			} else if err = checkResult(*result); err != nil {
				result = nil
			} else {
				result.Error, result.Signal = printable(strings.ReplaceAll(result.Error, "\n", " ")), plain(result.Signal)
			}
		}
		full := in.put(f, result, err)
		if err != nil || result != nil {
			return
		}
		if full {
			select {
			case <-in.room:
			case <-in.done:
				return
			}
		}
	}
}

func (in *intake) put(f mux.Frame, result *wire.Result, err error) (full bool) {
	in.mu.Lock()
	if err == nil && result == nil {
		d := f.Data
		d.Bytes = append([]byte(nil), d.Bytes...)
		in.chunks = append(in.chunks, d)
		in.size += len(d.Bytes) + chunkCost
	}
	in.result, in.err = result, err
	full = in.size >= reportBuffer
	in.mu.Unlock()
	select {
	case in.more <- struct{}{}:
	default:
	}
	return full
}

// take waits for something and returns all there is. What came before an error
// is returned first.
func (in *intake) take(ctx context.Context) ([]wire.Data, *wire.Result, error) {
	for {
		in.mu.Lock()
		chunks, result, err := in.chunks, in.result, in.err
		in.chunks, in.size, in.result = nil, 0, nil
		in.mu.Unlock()
		select {
		case in.room <- struct{}{}:
		default:
		}
		switch {
		case len(chunks) > 0 || result != nil:
			return chunks, result, nil
		case err != nil:
			return nil, nil, err
		}
		select {
		case <-in.more:
		case <-ctx.Done():
			return nil, nil, context.Cause(ctx)
		}
	}
}

// checkResult refuses a result that no runner may give.
func checkResult(r wire.Result) error {
	ok := false
	switch r.State {
	case wire.Success:
		ok = r.Reason == ""
	case wire.Failed:
		switch r.Reason {
		case wire.ReasonFailed, wire.ReasonTimeout, wire.ReasonOOM, wire.ReasonRunnerLost:
			ok = true
		}
	case wire.Canceled:
		ok = r.Reason == wire.ReasonCanceled
	}
	if !ok {
		return wire.Errorf(wire.BadUsage, "state %q with reason %q is no result", r.State, r.Reason)
	}
	if a := r.Artifact; a != nil {
		sum, ok := strings.CutPrefix(a.Digest, "sha256:")
		if !ok || len(sum) != 2*sha256.Size || strings.Trim(sum, "0123456789abcdef") != "" || a.Size < 0 {
			return wire.Errorf(wire.BadUsage, "artifact %.80q of %d bytes is none", a.Digest, a.Size)
		}
	}
	if !wire.Writable(r.FinishedAt) {
		return wire.Errorf(wire.BadUsage, "a result of the year %d is none", r.FinishedAt.UTC().Year())
	}
	size := len(r.Signal)
	for k, v := range r.Outputs {
		size += len(k) + len(v)
	}
	if size > maxOutputs {
		return wire.Errorf(wire.TooLarge, "outputs of %d bytes are over the limit of %d", size, maxOutputs)
	}
	return nil
}
