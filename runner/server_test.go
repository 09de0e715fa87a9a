package runner

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/waypointd/waypoint/mux"
	"github.com/waypointd/waypoint/mux/wire"
)

// testServer is a server's side of the runner's protocol, as strict as the
// protocol is: output must fit to the byte, a result must come behind all of it.
type testServer struct {
	t         testing.TB
	heartbeat time.Duration
	state     wire.RunnerState
	runnerID  string                                       // given in the welcome
	judge     func(offers []wire.TokenOffer) wire.Standing // nil: what state says

	mu             sync.Mutex
	changed        chan struct{} // closed, and replaced, at each change
	deaf           bool          // answers no events and sends no heartbeat
	refuse         error         // of the hello
	other          error         // of the work stream: another has this runner's key
	endWork        error         // ends the work stream at the runner's next word, once
	refuseReport   func() error  // nil, or an error of each report
	refuseResult   func(wire.Result) error
	refuseData     func(wire.Data) error
	authenticate   func() error      // nil, or an error of each authentication
	offers         []wire.TokenOffer // seen last
	auths          []wire.AuthenticateRequest
	down           bool // cannot be dialed
	hold           bool // acknowledgements are not answered
	hellos         []wire.Hello
	begins         []wire.WorkBegin
	drains         []bool
	beats          int
	waits          []wire.Wait // said last
	nacks          []wire.Nack
	conns          map[net.Conn]bool
	work           *mux.Stream
	jobs           map[wire.JobRef]*testJob
	blobs          map[string][]byte
	dials          int           // so far
	newest         int           // session whose work stream has begun
	cutAfter       int           // bytes of output after which the connection is cut, 0 never
	blobCut        int           // the same with bytes of blobs
	blobHold       chan struct{} // blob calls wait until it is closed
	gets, missings int           // blob calls
	discard        bool          // output is counted, not kept
	slots          int           // > 0: assign from queue as places become free
	queue          []wire.Assignment
	sendMu         sync.Mutex
}

// testJob is one attempt as the server sees it.
type testJob struct {
	wire.Assignment
	acks    int
	by      int  // the session that its start was confirmed on
	stale   bool // taken back: Drop, and Conflict for its report
	lost    bool // ended as runner_lost: likewise, and a late report is taken
	lates   int  // late reports
	started bool
	log     []byte
	length  int64
	byKind  map[wire.StreamID][]byte
	reports int
	result  *wire.Result
}

func newTestServer(t testing.TB) *testServer {
	return &testServer{
		t: t, heartbeat: time.Minute, state: wire.Adopted,
		changed: make(chan struct{}), conns: map[net.Conn]bool{},
		jobs: map[wire.JobRef]*testJob{}, blobs: map[string][]byte{},
	}
}

// change changes the server's state and wakes who waits for it.
func (s *testServer) change(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
	close(s.changed)
	s.changed = make(chan struct{})
}

// await waits until a condition holds, which is asked under the lock.
func (s *testServer) await(what string, cond func() bool) {
	s.t.Helper()
	limit := time.NewTimer(30 * time.Second)
	defer limit.Stop()
	for {
		s.mu.Lock()
		ok, changed := cond(), s.changed
		s.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-changed:
		case <-limit.C:
			s.t.Fatalf("timed out waiting until %s", what)
		}
	}
}

// dial is Config.Dial.
func (s *testServer) dial(ctx context.Context) (net.Conn, error) {
	s.mu.Lock()
	down := s.down
	s.mu.Unlock()
	if down {
		return nil, wire.Errorf(wire.Unavailable, "nobody there")
	}
	here, there := mux.Pipe()
	var number int
	s.change(func() {
		s.conns[here] = true
		s.dials++
		number = s.dials
	})
	go func() {
		sess, err := mux.Accept(context.Background(), here, mux.Config{Software: "test"}, func(_ context.Context, p *mux.Peer) (*mux.Admission, error) {
			return s.admit(p, number)
		})
		if err == nil {
			<-sess.Done()
			sess.Close()
		}
		s.change(func() { delete(s.conns, here) })
	}()
	return there, nil
}

// cut breaks all connections.
func (s *testServer) cut() {
	s.mu.Lock()
	conns := s.conns
	s.conns = map[net.Conn]bool{}
	s.mu.Unlock()
	for c := range conns {
		c.Close()
	}
}

func (s *testServer) admit(p *mux.Peer, number int) (*mux.Admission, error) {
	var err error
	s.change(func() {
		s.hellos = append(s.hellos, p.Hello)
		s.offers = p.Hello.Runner.Offers
		err = s.refuse
	})
	if err != nil {
		return nil, err
	}
	return &mux.Admission{Welcome: wire.Welcome{RunnerID: s.runnerID}, Data: number, Table: mux.Table{
		wire.MethodWork: s.serveWork, wire.MethodReport: s.serveReport,
		wire.MethodBlobGet: s.serveGet, wire.MethodBlobPut: s.servePut,
		wire.MethodBlobMissing: mux.Unary(s.serveMissing), wire.MethodAuthenticate: mux.Unary(s.serveAuthenticate),
	}}, nil
}

// order sends one order on the work stream in use.
func (s *testServer) order(o wire.WorkOrder) {
	s.sendMu.Lock()
	defer s.sendMu.Unlock()
	s.mu.Lock()
	st := s.work
	s.mu.Unlock()
	if st != nil {
		st.Send(o)
	}
}

// assign gives an attempt to the runner.
func (s *testServer) assign(a wire.Assignment) {
	s.change(func() { s.jobs[a.JobRef] = &testJob{Assignment: a, byKind: map[wire.StreamID][]byte{}} })
	s.order(wire.WorkOrder{Assign: &a})
}

// errLate refuses what comes on a session before the runner's newest.
var errLate = wire.Errorf(wire.Conflict, "the runner has connected anew")

// errLost refuses what is reported of a lost attempt, but late.
var errLost = wire.Errorf(wire.Conflict, "the attempt is lost")

func (s *testServer) serveWork(ctx context.Context, st *mux.Stream) error {
	var e wire.WorkEvent
	if err := st.RecvMsg(&e); err != nil {
		return err
	}
	if e.Begin == nil {
		s.t.Errorf("work stream begins with %+v", e)
		return wire.Errorf(wire.Conflict, "no begin")
	}
	s.mu.Lock()
	other := s.other
	s.mu.Unlock()
	if other != nil {
		return other
	}
	begun := wire.WorkBegun{HeartbeatEvery: wire.Duration(s.heartbeat)}
	late := false
	s.sendMu.Lock() // who hears of the beginning gives orders behind it
	s.change(func() {
		// What the runner said on a session before its newest is out of date.
		number := st.Peer().Data.(int)
		if late = number < s.newest; late {
			return
		}
		s.newest, s.work = number, st
		s.begins = append(s.begins, *e.Begin)
		for _, h := range e.Begin.Held {
			if j := s.jobs[h.JobRef]; j == nil || j.stale || j.lost || j.result != nil {
				begun.Drop = append(begun.Drop, h.JobRef)
			} else {
				begun.Keep = append(begun.Keep, h.JobRef)
			}
		}
		if s.queue == nil {
			return
		}
		for ref, j := range s.jobs {
			held := slices.ContainsFunc(e.Begin.Held, func(h wire.Held) bool { return h.JobRef == ref })
			switch {
			case held || j.stale || j.lost || j.result != nil:
			case j.started:
				s.t.Errorf("the runner has lost %v, which it was told to start", ref)
				j.result = &wire.Result{}
			default: // the assignment was lost on its way: a new attempt
				j.stale = true
				again := j.Assignment
				again.Attempt++
				s.queue = append(s.queue, again)
				s.slots++
			}
		}
	})
	if late {
		s.sendMu.Unlock()
		return errLate
	}
	s.mu.Lock()
	standing := s.standing()
	s.mu.Unlock()
	st.Send(wire.WorkOrder{Standing: &standing})
	st.Send(wire.WorkOrder{Begun: &begun})
	s.sendMu.Unlock()
	defer func() {
		s.sendMu.Lock() // nothing is sent on a stream whose handler has returned
		defer s.sendMu.Unlock()
		s.change(func() {
			if s.work == st {
				s.work = nil
			}
		})
	}()
	s.fill()
	done := make(chan struct{})
	defer close(done)
	go func() {
		tick := time.NewTicker(s.heartbeat)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
				s.mu.Lock()
				deaf := s.deaf
				s.mu.Unlock()
				if !deaf {
					s.order(wire.WorkOrder{Heartbeat: true})
				}
			}
		}
	}()
	for {
		var e wire.WorkEvent
		if err := st.RecvMsg(&e); err != nil {
			return err
		}
		s.event(st.Peer().Data.(int), e)
		var err error
		s.change(func() { err, s.endWork = s.endWork, nil })
		if err != nil {
			return err
		}
	}
}

func (s *testServer) event(by int, e wire.WorkEvent) {
	var answer *wire.WorkOrder
	s.change(func() {
		switch {
		case e.Holds != nil:
			s.beats++
			s.waits = e.Holds.Waits
			for ref, j := range s.jobs { // one that is missing would be lost
				if by == s.newest && j.by == by && j.started && !j.stale && !j.lost && j.result == nil && !slices.Contains(e.Holds.Jobs, ref) {
					s.t.Errorf("the runner does not say that it has %v, which it was told to start", ref)
				}
			}
		case e.Drain != nil:
			s.drains = append(s.drains, *e.Drain)
		case e.Nack != nil:
			s.nacks = append(s.nacks, *e.Nack)
		case e.Ack != nil:
			ref := *e.Ack
			j := s.jobs[ref]
			switch {
			case j == nil || j.stale:
				answer = &wire.WorkOrder{Drop: &ref}
			case s.hold:
				j.acks++
			default:
				j.acks++
				j.started, j.by = true, by
				answer = &wire.WorkOrder{Start: &ref}
			}
		}
	})
	if answer != nil {
		s.order(*answer)
	}
}

// fill assigns queued jobs while there are places.
func (s *testServer) fill() {
	for {
		var next *wire.Assignment
		s.change(func() {
			if s.slots > 0 && len(s.queue) > 0 && s.work != nil {
				s.slots--
				next = &s.queue[0]
				s.queue = s.queue[1:]
			}
		})
		if next == nil {
			return
		}
		s.assign(*next)
	}
}

func (s *testServer) serveReport(ctx context.Context, st *mux.Stream) error {
	var req wire.ReportRequest
	if err := st.Body(&req); err != nil {
		return err
	}
	if s.refuseReport != nil {
		if err := s.refuseReport(); err != nil {
			return err
		}
	}
	number := st.Peer().Data.(int)
	var offset int64
	var j *testJob
	s.change(func() {
		if j = s.jobs[req.JobRef]; j != nil {
			j.reports++
			offset = j.length
			if req.Late {
				j.lates++
			}
		}
	})
	if j == nil {
		return wire.Errorf(wire.NotFound, "job %s is not kept any more", req.Job)
	}
	if j.stale || !j.started || req.Late != j.lost || j.lost && j.result != nil {
		return wire.Errorf(wire.Conflict, "attempt %d of job %s is not yours", req.Attempt, req.Job)
	}
	if err := st.Send(wire.ReportOrder{Offset: offset}); err != nil {
		return err
	}
	for {
		f, err := st.Recv()
		if err != nil {
			if !errors.Is(err, io.EOF) {
				return err
			}
			return wire.Errorf(wire.BadUsage, "report ended without a result")
		}
		if f.IsData() {
			if s.refuseData != nil {
				if err := s.refuseData(f.Data); err != nil {
					return err
				}
			}
			cut, gap, late, lost := false, false, false, false
			s.change(func() {
				if late = number < s.newest; late {
					return
				}
				if lost = j.lost && !req.Late; lost {
					return
				}
				if gap = f.Data.Offset != j.length; gap {
					return
				}
				if !s.discard {
					j.log = append(j.log, f.Data.Bytes...)
					j.byKind[f.Data.Stream] = append(j.byKind[f.Data.Stream], f.Data.Bytes...)
				}
				j.length += int64(len(f.Data.Bytes))
				offset = j.length
				if s.cutAfter > 0 {
					if s.cutAfter -= len(f.Data.Bytes); s.cutAfter <= 0 {
						s.cutAfter, cut = 0, true
					}
				}
			})
			if late {
				return errLate
			}
			if lost {
				return errLost
			}
			if gap {
				s.t.Errorf("output at offset %d, want %d", f.Data.Offset, offset)
				return wire.Errorf(wire.BadUsage, "output does not fit")
			}
			if cut {
				s.cut()
			}
			if err := st.Send(wire.ReportOrder{Offset: offset}); err != nil {
				return err
			}
			continue
		}
		var result wire.Result
		if err := json.Unmarshal(f.Msg, &result); err != nil {
			return err
		}
		if s.refuseResult != nil {
			if err := s.refuseResult(result); err != nil {
				return err
			}
		}
		late, lost := false, false
		s.change(func() {
			if late = number < s.newest; late {
				return
			}
			if lost = j.lost && !req.Late; lost {
				return
			}
			if result.LogBytes != offset {
				s.t.Errorf("job %s: result says %d bytes of output, %d came", req.Job, result.LogBytes, offset)
			}
			if j.result != nil {
				s.t.Errorf("job %s has two results", req.Job)
			}
			j.result = &result
			if s.queue != nil {
				s.slots++
			}
		})
		if late {
			return errLate
		}
		if lost {
			return errLost
		}
		s.fill()
		return st.Send(wire.ReportOrder{Offset: offset, Ended: true})
	}
}

// put stores a blob and returns its digest.
func (s *testServer) put(b []byte) string {
	sum := sha256.Sum256(b)
	d := "sha256:" + hex.EncodeToString(sum[:])
	s.change(func() { s.blobs[d] = slices.Clone(b) })
	return d
}

func (s *testServer) serveGet(_ context.Context, st *mux.Stream) error {
	var req wire.BlobDigests
	if err := st.Body(&req); err != nil {
		return err
	}
	if err := s.blobCall(st.Context(), &s.gets); err != nil {
		return err
	}
	for _, d := range req.Digests {
		s.mu.Lock()
		b, ok := s.blobs[d]
		s.mu.Unlock()
		if !ok {
			return wire.Errorf(wire.NotFound, "no blob %s", d)
		}
		if err := st.Send(wire.BlobHeader{Digest: d, Size: int64(len(b))}); err != nil {
			return err
		}
		for at := 0; at < len(b); at += wire.MaxData {
			if err := st.SendData(wire.Data{Offset: int64(at), Bytes: b[at:min(at+wire.MaxData, len(b))]}); err != nil {
				return err
			}
			cut := false
			s.change(func() {
				if s.blobCut > 0 {
					if s.blobCut -= wire.MaxData; s.blobCut <= 0 {
						s.blobCut, cut = 0, true
					}
				}
			})
			if cut {
				s.cut()
			}
		}
	}
	return st.Flush()
}

// blobCall counts a call and holds it while it is to be held.
func (s *testServer) blobCall(ctx context.Context, n *int) error {
	var hold chan struct{}
	s.change(func() { *n++; hold = s.blobHold })
	if hold != nil {
		select {
		case <-hold:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

func (s *testServer) serveMissing(ctx context.Context, _ *mux.Peer, req wire.BlobDigests) (wire.BlobDigests, error) {
	if err := s.blobCall(ctx, &s.missings); err != nil {
		return req, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	req.Digests = slices.DeleteFunc(req.Digests, func(d string) bool { return s.blobs[d] != nil })
	return req, nil
}

func (s *testServer) servePut(_ context.Context, st *mux.Stream) error {
	var h *wire.BlobHeader
	var body []byte
	var stored wire.BlobDigests
	finish := func() {
		if h != nil && int64(len(body)) == h.Size {
			stored.Digests = append(stored.Digests, s.put(body))
		}
		h, body = nil, nil
	}
	for {
		f, err := st.Recv()
		if errors.Is(err, io.EOF) {
			finish()
			return st.Send(stored)
		}
		if err != nil {
			return err
		}
		if f.IsData() {
			body = append(body, f.Data.Bytes...)
			continue
		}
		finish()
		h = &wire.BlobHeader{}
		if err := json.Unmarshal(f.Msg, h); err != nil {
			return err
		}
	}
}

// ended waits for an attempt's result and returns the attempt.
func (s *testServer) ended(ref wire.JobRef) *testJob {
	s.t.Helper()
	var j *testJob
	s.await("job "+ref.Job+" has ended", func() bool { j = s.jobs[ref]; return j != nil && j.result != nil })
	return j
}
