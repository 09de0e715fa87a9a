package daemon_test

import (
	"testing"

	"github.com/waypointd/waypoint/daemon/daemontest"
	"github.com/waypointd/waypoint/mux/wire"
)

// A runner that was rejected while its session had no work stream has no more
// use of that session than of a new one.
func TestRejectedBeforeItBegins(t *testing.T) {
	s := daemontest.Start(t, slowly)
	c := s.Client(t)
	r := s.Adopted(t, "r1", nil)
	r.Disconnect()
	r.MustConnect()
	reject(t, c, "r1")
	var reply wire.BlobDigests
	for method, req := range map[string]any{
		wire.MethodBlobMissing: wire.BlobDigests{}, wire.MethodBlobGet: wire.BlobDigests{}, wire.MethodBlobPut: nil,
	} {
		wantKind(t, r.Session.Call(t.Context(), method, req, &reply), wire.Denied)
	}
}
