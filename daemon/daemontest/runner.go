package daemontest

import (
	"context"
	"crypto/ed25519"
	"net"
	"testing"
	"time"

	"github.com/waypointd/waypoint/mux"
	"github.com/waypointd/waypoint/mux/wire"
)

// Runner is a runner whose every word the test says itself.
type Runner struct {
	t       testing.TB
	server  *Server
	Key     ed25519.PrivateKey
	Hello   wire.RunnerHello
	Address string // of a Unix socket to connect to; in memory if empty
	Session *mux.Session
	work    *mux.Stream
	orders  chan wire.WorkOrder // sent by listen, closed when the work stream ends
}

// Runner is a new runner of that id, not yet connected.
func (s *Server) Runner(t testing.TB, id string, labels map[string]string) *Runner {
	t.Helper()
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	return &Runner{t: t, server: s, Key: key, Hello: wire.RunnerHello{
		ID: id, Kind: wire.KindRemote, Labels: labels, Concurrency: 1,
	}}
}

// Adopted is a connected, adopted runner with a begun work stream.
func (s *Server) Adopted(t testing.TB, id string, labels map[string]string) *Runner {
	t.Helper()
	r := s.Runner(t, id, labels)
	r.MustConnect()
	r.MustBegin()
	if _, err := s.Client(t).Adopt(t.Context(), id, ""); err != nil {
		t.Fatalf("adopt %s: %v", id, err)
	}
	for !r.MustOrder().Admits() {
	}
	return r
}

// Connect makes a session.
func (r *Runner) Connect() error {
	r.t.Helper()
	dial := r.server.Dial
	if r.Address != "" {
		dial = func(ctx context.Context) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", r.Address)
		}
	}
	conn, err := dial(r.t.Context())
	if err != nil {
		return err
	}
	hello := wire.Hello{Role: wire.RoleRunner, Runner: &r.Hello}
	hello.Runner.PublicKey = r.Key.Public().(ed25519.PublicKey)
	session, err := mux.Connect(r.t.Context(), conn, mux.Config{Software: "waypoint test"}, hello, r.Key, nil)
	if err != nil {
		return err
	}
	r.Session = session
	r.t.Cleanup(func() { session.Close() })
	return nil
}

// MustConnect is Connect that may not fail.
func (r *Runner) MustConnect() {
	r.t.Helper()
	if err := r.Connect(); err != nil {
		r.t.Fatalf("connect runner %s: %v", r.Hello.ID, err)
	}
}

// Begin opens the work stream with what the runner holds and returns the answer.
func (r *Runner) Begin(held ...wire.Held) (*wire.WorkBegun, error) {
	r.t.Helper()
	st, err := r.Session.Open(r.t.Context(), wire.MethodWork, nil)
	if err != nil {
		return nil, err
	}
	if err := st.Send(wire.WorkEvent{Begin: &wire.WorkBegin{Held: held, Concurrency: r.Hello.Concurrency}}); err != nil {
		return nil, err
	}
	r.work, r.orders = st, make(chan wire.WorkOrder, 64)
	var state, begun wire.WorkOrder
	if err := st.RecvMsg(&state); err != nil {
		return nil, err
	}
	if err := st.RecvMsg(&begun); err != nil {
		return nil, err
	}
	if state.Standing == nil || begun.Begun == nil {
		r.t.Fatalf("the work stream begins with %+v, %+v", state, begun)
	}
	go r.listen(st, r.orders)
	return begun.Begun, nil
}

// MustBegin is Begin that may not fail.
func (r *Runner) MustBegin(held ...wire.Held) *wire.WorkBegun {
	r.t.Helper()
	b, err := r.Begin(held...)
	if err != nil {
		r.t.Fatalf("begin work of %s: %v", r.Hello.ID, err)
	}
	return b
}

func (r *Runner) listen(st *mux.Stream, orders chan<- wire.WorkOrder) {
	defer close(orders)
	for {
		var o wire.WorkOrder
		if err := st.RecvMsg(&o); err != nil {
			return
		}
		if !o.Heartbeat {
			orders <- o
		}
	}
}

// TrySay sends an event.
func (r *Runner) TrySay(e wire.WorkEvent) error { return r.work.Send(e) }

// Say is TrySay that may not fail.
func (r *Runner) Say(e wire.WorkEvent) {
	r.t.Helper()
	if err := r.TrySay(e); err != nil {
		r.t.Fatalf("runner %s says %+v: %v", r.Hello.ID, e, err)
	}
}

// Order returns the next order that is no heartbeat, false when none comes
// within the time or the stream ends.
func (r *Runner) Order(within time.Duration) (wire.WorkOrder, bool) {
	select {
	case o, ok := <-r.orders:
		return o, ok
	case <-time.After(within):
		return wire.WorkOrder{}, false
	}
}

// MustOrder is Order that has to come.
func (r *Runner) MustOrder() wire.WorkOrder {
	r.t.Helper()
	o, ok := r.Order(Patience)
	if !ok {
		r.t.Fatalf("runner %s: no order came", r.Hello.ID)
	}
	return o
}

// MustAssign waits for an assignment.
func (r *Runner) MustAssign() *wire.Assignment {
	r.t.Helper()
	o := r.MustOrder()
	if o.Assign == nil {
		r.t.Fatalf("runner %s: got order %+v, want an assignment", r.Hello.ID, o)
	}
	return o.Assign
}

// MustStart waits for an assignment, acknowledges it and waits for the start.
func (r *Runner) MustStart() *wire.Assignment {
	r.t.Helper()
	a := r.MustAssign()
	r.Say(wire.WorkEvent{Ack: &a.JobRef})
	if o := r.MustOrder(); o.Start == nil || *o.Start != a.JobRef {
		r.t.Fatalf("runner %s: got order %+v, want the start of %+v", r.Hello.ID, o, a.JobRef)
	}
	return a
}

// Report opens a report and returns the offset to go on from.
func (r *Runner) Report(ref wire.JobRef) (*mux.Stream, int64, error) {
	st, err := r.Session.Open(r.t.Context(), wire.MethodReport, wire.ReportRequest{JobRef: ref})
	if err != nil {
		return nil, 0, err
	}
	var o wire.ReportOrder
	if err := st.RecvMsg(&o); err != nil {
		return nil, 0, err
	}
	return st, o.Offset, nil
}

// Finish reports output and result of an attempt to the durable end.
func (r *Runner) Finish(ref wire.JobRef, output string, result wire.Result) error {
	r.t.Helper()
	st, offset, err := r.Report(ref)
	if err != nil {
		return err
	}
	defer st.Close()
	result.LogBytes = int64(len(output))
	for rest := []byte(output)[offset:]; len(rest) > 0; {
		n := min(len(rest), wire.MaxData)
		if err := st.SendData(wire.Data{Offset: offset, Time: time.Now(), Stream: wire.Stdout, Bytes: rest[:n]}); err != nil {
			return err
		}
		offset, rest = offset+int64(n), rest[n:]
	}
	if err := st.Send(result); err != nil {
		return err
	}
	for {
		var o wire.ReportOrder
		if err := st.RecvMsg(&o); err != nil {
			return err
		}
		if o.Ended {
			return nil
		}
	}
}

// MustFinish is Finish that may not fail.
func (r *Runner) MustFinish(ref wire.JobRef, output string, result wire.Result) {
	r.t.Helper()
	if err := r.Finish(ref, output, result); err != nil {
		r.t.Fatalf("runner %s finishes %+v: %v", r.Hello.ID, ref, err)
	}
}

// Disconnect cuts the session.
func (r *Runner) Disconnect() { r.Session.Close() }

// Succeeded is the result of a command that ended with 0.
func Succeeded() wire.Result { return wire.Result{State: wire.Success, ExitCode: new(int)} }

// FailedWith is the result of a command that ended with a code.
func FailedWith(code int) wire.Result {
	return wire.Result{State: wire.Failed, Reason: wire.ReasonFailed, ExitCode: &code, Error: "the command failed"}
}

// AwaitJob waits until a job is as wanted.
func (s *Server) AwaitJob(t testing.TB, id string, want func(wire.Job) bool) wire.Job {
	t.Helper()
	c := s.Client(t)
	ctx, cancel := context.WithTimeout(t.Context(), Patience)
	defer cancel()
	var last wire.Job
	for item, err := range c.Stream(ctx, wire.StreamRequest{ID: id, Follow: true}) {
		if err != nil {
			t.Fatalf("await job %s: %v (last seen %+v)", id, err, last)
		}
		if item.Event == nil {
			continue
		}
		if last = item.Event.Job; want(last) {
			return last
		}
	}
	t.Fatalf("job %s ended as %+v", id, last)
	return wire.Job{}
}
