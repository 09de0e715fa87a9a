package daemon

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/waypointd/waypoint/daemon/store"
	"github.com/waypointd/waypoint/mux"
	"github.com/waypointd/waypoint/mux/wire"
)

// serverSnapshot sends a snapshot of the store: one at a time, as each has a
// copy of the whole in the state directory until it is sent.
func (s *Server) serverSnapshot() mux.Handler {
	var one sync.Mutex
	return func(ctx context.Context, st *mux.Stream) error {
		if !one.TryLock() {
			return wire.Errorf(wire.Conflict, "the server is making another snapshot").WithHint("wait until that is done")
		}
		defer one.Unlock()
		if err := s.confirmBy(func(serial int64, user string) (store.UserTokenRecord, store.UserRecord, error) {
			return s.store.Bearer(ctx, serial, user) // who has a snapshot has all keys
		}, callOf(ctx).by); err != nil {
			return err
		}
		began := time.Now()
		s.audited(s.keep(ctx, wire.AuditBegun)) // before the first byte
		n, err := s.sendSnapshot(ctx, st)
		note(ctx, "bytes", strconv.FormatInt(n, 10))
		if err == nil {
			s.log.Info("snapshot sent", "by", loginOf(st.Peer()).String(), "bytes", n, "took", time.Since(began))
		}
		return err
	}
}

func (s *Server) sendSnapshot(ctx context.Context, st *mux.Stream) (int64, error) {
	schema, err := store.SchemaVersion()
	if err != nil {
		return 0, err
	}
	f, err := s.dir.Temp("snapshot")
	if err != nil {
		return 0, err
	}
	defer f.Close()
	defer os.Remove(f.Name())
	h := wire.SnapshotHeader{
		Format: wire.SnapshotFormat, Schema: schema, ServerID: s.id, TakenAt: s.now().UTC().Truncate(time.Microsecond),
		Software: s.cfg().Software, Engine: s.store.Engine(),
	}
	if err := s.store.Snapshot(ctx, f.Name()); err != nil {
		return 0, err
	}
	fi, err := f.Stat()
	if err != nil {
		return 0, err
	}
	h.Size = fi.Size()
	if err := st.Send(h); err != nil {
		return 0, err
	}
	sum, buf, at := sha256.New(), make([]byte, wire.MaxData), int64(0)
	for at < h.Size {
		n, err := io.ReadFull(f, buf[:min(h.Size-at, wire.MaxData)])
		if err != nil {
			return 0, fmt.Errorf("read copy of the store: %w", err)
		}
		sum.Write(buf[:n])
		if err := st.SendData(wire.Data{Offset: at, Bytes: buf[:n]}); err != nil {
			return 0, err
		}
		at += int64(n)
	}
	seal, err := h.Seal(sum)
	if err != nil {
		return 0, err
	}
	return at, st.SendData(wire.Data{Offset: at, Bytes: seal})
}
