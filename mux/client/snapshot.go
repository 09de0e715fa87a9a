package client

import (
	"context"
	"errors"
	"io"

	"github.com/waypointd/waypoint/mux"
	"github.com/waypointd/waypoint/mux/wire"
)

// Snapshot writes a snapshot of the server's store to w and tells begun, which
// may be nil, of its header before the first byte. When it returns nil the
// bytes have been checked; after an error they are of no use. It is not
// repeated after a loss.
func (c *Client) Snapshot(ctx context.Context, w io.Writer, begun func(wire.SnapshotHeader)) (wire.SnapshotHeader, error) {
	s, err := c.session(ctx, 0)
	if err != nil {
		return wire.SnapshotHeader{}, err
	}
	st, err := s.Open(ctx, wire.MethodServerSnapshot, wire.SnapshotRequest{})
	if err != nil {
		return wire.SnapshotHeader{}, err
	}
	defer st.Close()
	var h wire.SnapshotHeader
	if err := st.RecvMsg(&h); err != nil {
		if errors.Is(err, io.EOF) {
			err = wire.Errorf(wire.Internal, "the server sent no snapshot")
		}
		return h, err
	}
	if begun != nil {
		begun(h)
	}
	check := wire.NewSnapshotCheck()
	if err := copyData(st, io.MultiWriter(check, w)); err != nil {
		return h, err
	}
	got, err := check.Header()
	if err != nil {
		return h, wire.Errorf(wire.Internal, "the snapshot arrived damaged: %v", err)
	}
	return got, nil
}

// copyData writes the DATA frames that are left of a call.
func copyData(st *mux.Stream, w io.Writer) error {
	for at := int64(0); ; {
		f, err := st.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if !f.IsData() || f.Data.Offset != at {
			return wire.Errorf(wire.Internal, "the bytes of the snapshot are out of place at %d", at)
		}
		if _, err := w.Write(f.Data.Bytes); err != nil {
			return err
		}
		at += int64(len(f.Data.Bytes))
	}
}
