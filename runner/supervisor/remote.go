package supervisor

import (
	"context"
	"errors"
	"io"
	"net"

	"github.com/waypointd/waypoint/mux"
	"github.com/waypointd/waypoint/mux/wire"
)

// remote is a Jobs behind a session.
type remote struct {
	session    *mux.Session
	inspection inspection
}

var _ Jobs = (*remote)(nil)

// Connect connects to the supervisor behind a socket. When the session is
// lost all calls are Unavailable: connect again, its jobs go on. Unimplemented: it
// shares no version of the protocol with this release, and ends once none of its jobs runs.
func Connect(ctx context.Context, socketPath string) (Jobs, error) {
	conn, err := Dial(ctx, "supervisor", socketPath)
	if err != nil {
		return nil, err
	}
	return connect(ctx, conn)
}

func connect(ctx context.Context, conn net.Conn) (Jobs, error) {
	session, err := mux.Connect(ctx, conn, mux.Config{}, wire.Hello{Role: wire.RoleSupervisor}, nil, nil)
	if err != nil {
		return nil, err
	}
	r := &remote{session: session}
	if err := session.Call(ctx, methodInspect, empty{}, &r.inspection); err != nil {
		session.Close()
		return nil, err
	}
	return r, nil
}

func (r *remote) Isolation() string { return r.inspection.Isolation }

func (r *remote) User() string { return r.inspection.User }

func (r *remote) Version() string { return r.inspection.Version }

func (r *remote) PID() int { return r.inspection.PID }

func (r *remote) Close() error { return r.session.Close() }

func (r *remote) Start(ctx context.Context, spec Spec) error {
	st, err := r.session.Open(ctx, methodStart, empty{})
	if err != nil {
		return err
	}
	defer st.Close()
	// A refusal can come while we still send: what is received decides.
	sent := st.Send(spec)
	if wire.KindOf(sent) == wire.TooLarge {
		return sent // not sent at all
	}
	if _, err := st.Recv(); !errors.Is(err, io.EOF) {
		return orUnexpected(err)
	}
	return sent
}

// orUnexpected is err, or that of a message where none should be.
func orUnexpected(err error) error {
	if err == nil {
		return wire.Errorf(wire.Internal, "the supervisor has sent a message that was not asked for")
	}
	return err
}

func (r *remote) Stop(ctx context.Context, ref wire.JobRef, force bool) error {
	return r.session.Call(ctx, methodStop, stopRequest{JobRef: ref, Force: force}, nil)
}

func (r *remote) Takeover(ctx context.Context) error {
	return r.session.Call(ctx, methodTakeover, empty{}, nil)
}

func (r *remote) Retire(ctx context.Context) error {
	return r.session.Call(ctx, methodRetire, empty{}, nil)
}

func (r *remote) Forget(ctx context.Context, ref wire.JobRef) error {
	return r.session.Call(ctx, methodForget, ref, nil)
}

func (r *remote) List(ctx context.Context) ([]Status, error) {
	st, err := r.session.Open(ctx, methodList, empty{})
	if err != nil {
		return nil, err
	}
	defer st.Close()
	var all []Status
	for {
		var page listPage
		if err := st.RecvMsg(&page); errors.Is(err, io.EOF) {
			return all, nil
		} else if err != nil {
			return nil, err
		}
		all = append(all, page.Held...)
	}
}

func (r *remote) Watch(ctx context.Context, f func(Event)) error {
	st, err := r.session.Open(ctx, methodWatch, empty{})
	if err != nil {
		return err
	}
	defer st.Close()
	for {
		var e Event
		if err := st.RecvMsg(&e); err != nil {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if errors.Is(err, io.EOF) {
				return wire.Errorf(wire.Unavailable, "the supervisor has ended")
			}
			return err
		}
		f(e)
	}
}
