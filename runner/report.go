package runner

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/waypointd/waypoint/mux"
	"github.com/waypointd/waypoint/mux/wire"
	"github.com/waypointd/waypoint/statedir/joblog"
)

// reportPatience is how long the reason is waited for why a report cannot be
// written any more: the server's STATUS may be on its way.
const reportPatience = 2 * time.Second

// flushDelay is how long output waits for more to go with it: for the result
// above all, so that a short job costs the server one commit for both.
const flushDelay = 2 * time.Millisecond

// maxRefusals is how often in a row a server may refuse a result in a way that does
// not heal until it is told what it can take: with the pauses some 25 s.
const maxRefusals = 10

// maxRefusalText bounds what is told of a refusal, in bytes.
const maxRefusalText = 1 << 10

// ship reports the attempt until the server has its result, the attempt is
// dropped or the Run ends. A report that is cut goes on at the next session,
// from where the server says. One that is refused may be of an attempt that was
// lost meanwhile: it is given up, and reported late. So it is known at once
// where nobody wants that, and what still runs is killed. Where it is the result
// that the server cannot take, the job ends with what it says of that instead;
// where it is output, see withhold.
func (a *attempt) ship() {
	defer a.shipped.open()
	pause := backoff{min: a.r.waits.retryMin, max: a.r.waits.retryMax}
	refusals, apart := 0, false
	output := refusal{short: a.isWithheld()}
	for {
		s, err := a.r.uplink.wait(a.ctx)
		if err != nil {
			return
		}
		late := a.givenUp.opened()
		sh, err := a.report(s, late, apart, output)
		switch k := wire.KindOf(err); {
		case err == nil, a.ctx.Err() != nil:
			return
		case s.Err() != nil: // once more on the next session
		case errors.Is(err, errGivenUp):
		case k == wire.Conflict && !late:
			a.giveUp(err.Error())
		case k == wire.Conflict, k == wire.NotFound:
			a.drop(err.Error())
			return
		case k == wire.Denied && !late:
			a.storeAgain(s)
			fallthrough
		default:
			a.log.Warn("job cannot be reported now", "error", err)
			apart = isForGood(k)
			switch {
			case !apart:
				refusals, output.times = 0, 0
				a.waitsFor(waitReport, "")
			case sh.offered && (!output.short || output.bare):
				output.times = 0
				if refusals++; refusals == maxRefusals {
					a.replaceResult(err)
				}
			default:
				refusals = 0
				if output.refused(max(sh.safe.Load(), output.at)) {
					if !a.withhold(&output, err) {
						return
					}
					continue
				}
			}
			if !sleep(a.ctx, pause.next()) {
				return
			}
		}
	}
}

// replaceResult puts one that any server takes in the place of the result that it
// refuses, so that somebody hears of it and the job does not run for ever. What it
// was is in the log, and in the attempt's directory until this one is taken.
func (a *attempt) replaceResult(refusal error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	was := *a.result
	a.log.Error("server does not take the result of a job: it is told why instead", "state", was.State, "reason", was.Reason,
		"job_error", was.Error, "outputs", len(was.Outputs), "error", refusal)
	why := plain(refusal.Error(), maxRefusalText)
	a.result = &wire.Result{
		State: wire.Failed, Reason: wire.ReasonFailed,
		Error:    fmt.Sprintf("the job ended as %q, but the server does not take its result: %s", was.State, why),
		ExitCode: was.ExitCode, LogBytes: was.LogBytes, FinishedAt: was.FinishedAt,
	}
}

// report is one report stream, late or not. Nil means that the server has the
// result; the shipment says whether it was sent behind output that the server has. With
// apart it waits for that, so that a refusal is certainly of the result. Of output that
// is withheld nothing more is sent.
func (a *attempt) report(s *mux.Session, late, apart bool, output refusal) (*shipment, error) {
	sh := &shipment{a: a, apart: apart, short: output.short, bare: output.bare}
	// The stream outlives the attempt by the server's STATUS, so that its
	// closing is no cancel.
	ctx, cut := context.WithCancelCause(a.r.ctx)
	detach := context.AfterFunc(a.ctx, func() { cut(context.Cause(a.ctx)) })
	defer detach()
	st, err := s.Open(ctx, wire.MethodReport, wire.ReportRequest{JobRef: a.job.JobRef, Late: late})
	if err != nil {
		cut(err)
		return sh, err
	}
	var first wire.ReportOrder
	if err := st.RecvMsg(&first); err != nil {
		st.Close()
		cut(err)
		return sh, err
	}
	sh.st, sh.at = st, first.Offset
	sh.safe.Store(first.Offset)
	heard := make(chan error, 1) // how the server's side ended, sent once
	a.r.attempts.Go(func() {
		defer cut(errOver)
		defer st.Close()
		err := sh.hear(first)
		heard <- err
		if err != nil {
			cut(err) // what sends is to know why, whichever it notices first
		}
		for err == nil {
			_, err = st.Recv()
		}
	})
	if !late {
		sh.over = a.givenUp
	}
	defer sh.close()
	if err := sh.run(ctx, heard); err != nil {
		cut(err)
		return sh, err
	}
	return sh, nil
}

// hear follows what the server has made durable, until that is the result.
func (sh *shipment) hear(o wire.ReportOrder) error {
	for !o.Ended {
		if sh.safe.Swap(o.Offset) < o.Offset {
			sh.a.waitsFor(waitReport, "")
		}
		if sh.apart {
			poke(sh.a.wake)
		}
		o = wire.ReportOrder{}
		if err := sh.st.RecvMsg(&o); errors.Is(err, io.EOF) {
			return wire.Errorf(wire.Unavailable, "the server ended the report before its result")
		} else if err != nil {
			return err
		}
	}
	sh.a.mu.Lock()
	sh.a.acked = true
	sh.a.mu.Unlock()
	return nil
}

// shipment is the sending side of a report. The log is read as it is sent, a
// frame at a time: what the server does not take stays on disk.
type shipment struct {
	a   *attempt
	st  *mux.Stream
	at  int64 // the offset reached
	log *joblog.Reader
	bad bool // the log cannot be read further

	short, bare bool // see refusal

	apart   bool         // the result waits until the output before it is durable
	safe    atomic.Int64 // the offset up to which it is
	offered bool         // the result was sent, behind output that is durable

	over gate // opened when this is not to be reported so any more; of a late report the zero gate
}

func (sh *shipment) close() {
	if sh.log != nil {
		sh.log.Close()
	}
}

// run sends what there is whenever there is more, and behind the last byte the
// result. It returns when the server has that, or the stream is of no more use.
func (sh *shipment) run(ctx context.Context, heard <-chan error) error {
	flush := time.NewTimer(flushDelay)
	flush.Stop()
	defer flush.Stop()
	for waiting := false; ; {
		if sh.over.opened() {
			return errGivenUp
		}
		// The result first: when it is there, the log has got all its bytes.
		result := sh.a.outcome()
		from := sh.at
		var err error
		if !sh.short {
			err = sh.sendLog()
		}
		if safe := sh.safe.Load() >= sh.at; err == nil && result != nil && (safe || !sh.apart) {
			sh.offered = safe
			err = sh.sendResult(*result)
			if err == nil {
				return <-heard
			}
		}
		if err != nil {
			return reason(err, heard)
		}
		if sh.at > from && !waiting {
			waiting = true
			flush.Reset(flushDelay)
		}
		select {
		case <-sh.a.wake:
		case <-flush.C:
			waiting = false
			if err := sh.st.Flush(); err != nil {
				return reason(err, heard)
			}
		case err := <-heard:
			return err
		case <-sh.over.c:
			return errGivenUp
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// sendLog sends what the log has beyond the offset reached.
func (sh *shipment) sendLog() error {
	if sh.bad {
		return nil
	}
	if sh.log == nil {
		log, err := joblog.Open(filepath.Join(sh.a.dir, fileLog), sh.at)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			sh.broken(err)
			return nil
		}
		sh.log = log
	}
	for {
		d, err := sh.log.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			sh.broken(err)
			return nil
		}
		if err := sh.st.SendData(d); err != nil {
			return err
		}
		sh.at = d.Offset + int64(len(d.Bytes))
	}
}

// broken gives the rest of a log up: the job still has its end.
func (sh *shipment) broken(err error) {
	sh.bad = true
	sh.a.log.Error("job log cannot be read", "error", err)
}

// sendResult sends the result behind the last byte. Output that was written and
// is not there any more is said in-band.
func (sh *shipment) sendResult(result wire.Result) error {
	switch missing := result.LogBytes - sh.at; {
	case missing <= 0, sh.bare:
	case sh.short:
		text := fmt.Sprintf("==> %d bytes of output are missing: the server refuses them, and they are kept on runner %s\n", missing, sh.a.r.name())
		if err := sh.st.SendData(wire.Data{Offset: sh.at, Time: time.Now(), Stream: wire.Notice, Bytes: []byte(text)}); err != nil {
			return err
		}
		sh.at += int64(len(text))
	default:
		sh.a.log.Error("job log is damaged", "missing_bytes", missing)
		text := fmt.Sprintf("==> %d bytes of output are missing: the runner's log of this job is damaged\n", missing)
		if err := sh.st.SendData(wire.Data{Offset: sh.at, Time: time.Now(), Stream: wire.Notice, Bytes: []byte(text)}); err != nil {
			return err
		}
		sh.at += int64(len(text))
	}
	result.LogBytes = sh.at
	sh.a.mu.Lock()
	sh.a.sent = true
	sh.a.mu.Unlock()
	return sh.st.Send(result)
}

// outcome is the result, nil while there is none.
func (a *attempt) outcome() *wire.Result {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.result
}

// reason is why a stream cannot be written: the server's, if it says so in time.
func reason(err error, heard <-chan error) error {
	patience := time.NewTimer(reportPatience)
	defer patience.Stop()
	select {
	case why := <-heard:
		return why // nil: it had the result already
	case <-patience.C:
		return err
	}
}
