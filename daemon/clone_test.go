package daemon_test

import (
	"testing"
	"time"

	"github.com/waypointd/waypoint/daemon"
	"github.com/waypointd/waypoint/daemon/daemontest"
	"github.com/waypointd/waypoint/mux/wire"
)

// A copy of a state directory, with the same key and without the token, changes
// nothing of the record or of the original's standing while that answers.
func TestCopyDisturbsNothing(t *testing.T) {
	s := daemontest.Start(t, daemon.Config{Heartbeat: 100 * time.Millisecond, Lease: time.Hour})
	c := s.Client(t)
	r := s.Adopted(t, "r1", zone)
	stop, talked := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(talked)
		for {
			select {
			case <-stop:
				return
			case <-time.After(10 * time.Millisecond):
				r.Say(wire.WorkEvent{Heartbeat: true})
			}
		}
	}()
	copied := *r
	copied.Hello.Labels = map[string]string{"zone": "west"}
	copied.Show()
	copied.MustConnect()
	if st := copied.MustAuthenticate(true); st.Admitted || st.Problem != wire.NoToken {
		t.Errorf("the copy stands as %+v", st)
	}
	_, err := copied.Begin()
	wantKind(t, err, wire.Conflict)
	if got := inspect(t, c, "r1"); got.Problem != "" || got.Labels["zone"] != "east" || got.Offered != nil {
		t.Errorf("record %+v", got)
	}
	close(stop)
	<-talked
	if err := copied.Session.Call(t.Context(), wire.MethodBlobMissing, wire.BlobDigests{}, nil); wire.KindOf(err) != wire.Denied {
		t.Errorf("blobs for the copy: %v", err)
	}
	gets(t, c, r)
}

// A command line's own runner is there as long as that; nobody decides about it.
func TestNobodyDecidesAboutLocalRunners(t *testing.T) {
	s := daemontest.Start(t, slowly)
	c := s.Client(t)
	r := s.Runner(t, "", nil)
	r.Hello.Kind = wire.KindLocal
	r.MustConnect()
	r.MustBegin()
	id := r.Session.Welcome().RunnerID
	if !r.Standing.Admitted || r.Standing.State != wire.Adopted {
		t.Errorf("standing %+v", r.Standing)
	}
	_, err := c.Adopt(t.Context(), id, "")
	wantKind(t, err, wire.Conflict)
	_, err = c.Reject(t.Context(), id)
	wantKind(t, err, wire.Conflict)
	_, err = c.Forget(t.Context(), id)
	wantKind(t, err, wire.Conflict)
	_, err = c.Drain(t.Context(), id, true)
	wantKind(t, err, wire.Conflict)
	_, err = r.Authenticate(false)
	wantKind(t, err, wire.Denied)
}
