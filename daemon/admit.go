package daemon

import (
	"context"
	"crypto/sha256"
	"encoding/base32"
	"maps"
	"strings"
	"time"

	"github.com/waypointd/waypoint/daemon/store"
	"github.com/waypointd/waypoint/mux"
	"github.com/waypointd/waypoint/mux/wire"
	"github.com/waypointd/waypoint/statedir"
)

// admit decides on a session: what it may call, and for a runner, who it is.
func (s *Server) admit(ctx context.Context, peer *mux.Peer) (*mux.Admission, error) {
	welcome := wire.Welcome{ServerID: s.id}
	switch peer.Hello.Role {
	case wire.RoleClient:
		l, err := s.login(ctx, peer)
		if err != nil {
			return nil, err
		}
		return &mux.Admission{Welcome: welcome, Table: s.loginTable(l), Data: l}, nil
	case wire.RoleRunner:
		m, err := s.admitRunner(ctx, peer)
		if err != nil {
			return nil, err
		}
		welcome.RunnerID = m.id
		return &mux.Admission{Welcome: welcome, Table: s.runners, Data: m}, nil
	}
	return nil, wire.Errorf(wire.BadUsage, "role %q is not served here", peer.Hello.Role)
}

// admitRunner finds or makes the record of a runner whose key has been proved.
func (s *Server) admitRunner(ctx context.Context, peer *mux.Peer) (*member, error) {
	h := *peer.Hello.Runner
	m := &member{hello: h, kind: h.Kind, peer: peer, version: peer.Hello.Software, orders: newOrders()}
	if err := checkLabels(h.Labels); err != nil {
		return nil, err
	}
	m.labels = maps.Clone(h.Labels)
	switch h.Kind {
	case wire.KindLocal:
		l, err := s.localLogin(ctx, peer)
		if err != nil {
			return nil, err
		}
		m.id, m.state, m.login = localID(peer.Key), wire.Adopted, l
		return m, nil
	case wire.KindRemote:
	default:
		return nil, wire.Errorf(wire.BadUsage, "unknown kind of runner %q", h.Kind)
	}
	if err := wire.CheckID(h.ID); err != nil {
		return nil, err
	}
	if strings.HasPrefix(h.ID, localPrefix) {
		return nil, wire.Errorf(wire.BadUsage, "runner id %q: ids that begin with %q are the server's to give", h.ID, localPrefix)
	}
	m.id = h.ID
	if err := s.store.Update(ctx, func(tx *store.Tx) (err error) {
		m.state, err = s.enroll(tx, m, time.Now())
		return err
	}); err != nil {
		return nil, err
	}
	return m, nil
}

// enroll writes a runner's record: first use binds its id to its key, and an
// admission stays as it is.
func (s *Server) enroll(tx *store.Tx, m *member, now time.Time) (wire.RunnerState, error) {
	r, err := tx.Runner(m.id)
	switch {
	case wire.KindOf(err) == wire.NotFound:
		counts, err := tx.RunnerCounts()
		if err != nil {
			return "", err
		}
		if n := counts[wire.Pending]; n >= s.cfg.MaxPending {
			return "", wire.Errorf(wire.Unavailable, "%d runners are waiting for adoption already", n).
				WithHint("adopt or reject some on the server: waypoint runner list --pending")
		}
		r = store.RunnerRecord{Key: m.peer.Key}
		r.State, r.FirstSeen = wire.Pending, now
	case err != nil:
		return "", err
	case string(r.Key) != string(m.peer.Key):
		return "", wire.Errorf(wire.Conflict, "runner id %q is in use by another identity", m.id).
			WithHint("forget it on the server first, or give this runner another --id")
	}
	r.ID, r.Kind, r.Labels = m.id, m.kind, m.labels
	r.Hostname, r.OS, r.Arch = m.hello.Hostname, m.hello.OS, m.hello.Arch
	r.Isolation, r.Concurrency, r.Version = m.hello.Isolation, m.hello.Concurrency, m.version
	r.Fingerprint, r.LastSeen = statedir.Fingerprint(m.peer.Key), now
	return r.State, tx.PutRunner(r)
}

// localPrefix begins the ids of command lines' own runners.
const localPrefix = "cli-"

// localID is derived from the key, so that the proof of the key is the proof
// of the id, also after a restart of the server, which keeps no record of it.
func localID(key []byte) string {
	sum := sha256.Sum256(key)
	return localPrefix + strings.ToLower(base32.HexEncoding.WithPadding(base32.NoPadding).EncodeToString(sum[:10]))
}

// maxLabels bounds a runner's labels: its own, os, arch and hostname.
const maxLabels = wire.MaxLabels + 3

func checkLabels(labels map[string]string) error {
	if len(labels) > maxLabels {
		return wire.Errorf(wire.BadUsage, "%d labels are more than the %d a runner may have", len(labels), maxLabels)
	}
	for k, v := range labels {
		if err := wire.CheckLabel(k, v); err != nil {
			return err
		}
	}
	return nil
}
