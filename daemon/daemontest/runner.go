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
	Offers  []wire.TokenOffer // its tokens, shown at the hello
	Spool   string            // see wire.WorkBegin
	work    *mux.Stream
	orders  chan wire.WorkOrder // sent by listen, closed when the work stream ends
	ended   chan error          // sent by listen before orders is closed: why the work stream ended

	Standing wire.Standing // as it was at Begin
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

// Adopted is a connected, adopted runner with a begun work stream, which has
// stored what it was granted.
func (s *Server) Adopted(t testing.TB, id string, labels map[string]string) *Runner {
	t.Helper()
	r := s.Runner(t, id, labels)
	r.MustConnect()
	r.MustBegin()
	r.MustAdopt()
	return r
}

// Move has the runner connect to another server from now on.
func (r *Runner) Move(to *Server) { r.server = to }

// MustAdopt has the runner adopted, while it is connected, and takes the grant.
func (r *Runner) MustAdopt() {
	r.t.Helper()
	if _, err := r.server.Client(r.t).Adopt(r.t.Context(), r.Hello.ID, ""); err != nil {
		r.t.Fatalf("adopt %s: %v", r.Hello.ID, err)
	}
	r.TakeGrant()
}

// AwaitOrder returns the next order that is as wanted; those before it are passed over.
func (r *Runner) AwaitOrder(want func(wire.WorkOrder) bool) wire.WorkOrder {
	r.t.Helper()
	for {
		if o := r.MustOrder(); want(o) {
			return o
		}
	}
}

// AwaitStanding returns the next standing it is told that is as wanted.
func (r *Runner) AwaitStanding(want func(wire.Standing) bool) wire.Standing {
	r.t.Helper()
	return *r.AwaitOrder(func(o wire.WorkOrder) bool { return o.Standing != nil && want(*o.Standing) }).Standing
}

// AwaitGrant returns the next token it is granted.
func (r *Runner) AwaitGrant() string {
	r.t.Helper()
	return r.AwaitOrder(func(o wire.WorkOrder) bool { return o.Grant != nil }).Grant.Token
}

// TakeGrant waits for a grant, stores it as an agent does, says so, and waits
// until it is told that it is admitted.
func (r *Runner) TakeGrant() string {
	r.t.Helper()
	token := r.AwaitGrant()
	r.Offers = []wire.TokenOffer{{Source: wire.SourceFile, Token: token}}
	if st := r.MustAuthenticate(true); !st.Admitted {
		r.t.Fatalf("runner %s authenticated with what it was granted: %+v", r.Hello.ID, st)
	}
	r.AwaitStanding(func(st wire.Standing) bool { return st.Admitted })
	return token
}

// Show makes a token what the runner offers from now on.
func (r *Runner) Show(tokens ...string) {
	r.Offers = nil
	for _, token := range tokens {
		r.Offers = append(r.Offers, wire.TokenOffer{Source: wire.SourceFile, Token: token})
	}
}

// Authenticate shows the runner's offers over its living session.
func (r *Runner) Authenticate(stored bool) (st wire.Standing, err error) {
	err = r.Session.Call(r.t.Context(), wire.MethodAuthenticate, wire.AuthenticateRequest{Offers: r.Offers, Stored: stored}, &st)
	return st, err
}

// MustAuthenticate is Authenticate that may not fail.
func (r *Runner) MustAuthenticate(stored bool) wire.Standing {
	r.t.Helper()
	st, err := r.Authenticate(stored)
	if err != nil {
		r.t.Fatalf("authenticate runner %s: %v", r.Hello.ID, err)
	}
	return st
}

// Token makes a runner token; c's id, labels and life say for whom.
func (s *Server) Token(t testing.TB, req wire.RunnerTokenRequest) string {
	t.Helper()
	if req.ExpiresIn == 0 {
		req.ExpiresIn = wire.Duration(time.Hour)
	}
	reply, err := s.Client(t).RunnerToken(t.Context(), req)
	if err != nil {
		t.Fatalf("make token: %v", err)
	}
	return reply.Token
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
	hello.Runner.PublicKey, hello.Runner.Offers = r.Key.Public().(ed25519.PublicKey), r.Offers
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
	if err := st.Send(wire.WorkEvent{Begin: &wire.WorkBegin{Held: held, Concurrency: r.Hello.Concurrency, Spool: r.Spool}}); err != nil {
		return nil, err
	}
	r.work, r.orders, r.ended = st, make(chan wire.WorkOrder, 64), make(chan error, 1)
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
	r.Standing = *state.Standing
	go r.listen(st, r.orders, r.ended)
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

func (r *Runner) listen(st *mux.Stream, orders chan<- wire.WorkOrder, ended chan<- error) {
	defer close(orders)
	for {
		var o wire.WorkOrder
		if err := st.RecvMsg(&o); err != nil {
			ended <- err
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

// AwaitEnd waits until the work stream has ended and returns why.
func (r *Runner) AwaitEnd() error {
	r.t.Helper()
	timer := time.NewTimer(Patience)
	defer timer.Stop()
	for {
		select {
		case _, ok := <-r.orders:
			if !ok {
				return <-r.ended
			}
		case <-timer.C:
			r.t.Fatalf("runner %s: its work stream goes on", r.Hello.ID)
		}
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
	return r.report(wire.ReportRequest{JobRef: ref})
}

// ReportLate opens the late report of an attempt that was lost, like Report.
func (r *Runner) ReportLate(ref wire.JobRef) (*mux.Stream, int64, error) {
	return r.report(wire.ReportRequest{JobRef: ref, Late: true})
}

func (r *Runner) report(req wire.ReportRequest) (*mux.Stream, int64, error) {
	st, err := r.Session.Open(r.t.Context(), wire.MethodReport, req)
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
	return r.finish(wire.ReportRequest{JobRef: ref}, output, result)
}

// FinishLate is Finish of an attempt that was lost.
func (r *Runner) FinishLate(ref wire.JobRef, output string, result wire.Result) error {
	r.t.Helper()
	return r.finish(wire.ReportRequest{JobRef: ref, Late: true}, output, result)
}

func (r *Runner) finish(req wire.ReportRequest, output string, result wire.Result) error {
	r.t.Helper()
	st, offset, err := r.report(req)
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
