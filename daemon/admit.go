package daemon

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/base32"
	"strings"

	"github.com/waypointd/waypoint/daemon/adoption"
	"github.com/waypointd/waypoint/mux"
	"github.com/waypointd/waypoint/mux/wire"
)

// admit decides on a session: what it may call, and for a runner, who it is. On
// a listener for runners only an agent gets in, whoever it is that asks.
func (s *Server) admit(ctx context.Context, peer *mux.Peer, in door) (*mux.Admission, error) {
	welcome := wire.Welcome{ServerID: s.id}
	if h := peer.Hello; in.runners && (h.Role != wire.RoleRunner || h.Runner.Kind != wire.KindRemote) {
		err := s.errForRunners()
		s.welcomed(ctx, peer, nil, "", err)
		return nil, err
	}
	switch peer.Hello.Role {
	case wire.RoleClient:
		l, err := s.login(ctx, peer, in)
		s.welcomed(ctx, peer, l, "", err)
		if err != nil {
			return nil, err
		}
		admission := &mux.Admission{Welcome: welcome, Table: s.calls, Data: l}
		if l.forRunners() || l.claims.Kind == wire.InviteToken { // next to all it may ask for is refused, and waits for that: see pace
			admission.Bounds = mux.NewBounds(strangerStreams, strangerUnread)
		}
		return admission, nil
	case wire.RoleRunner:
		v, err := s.admitRunner(ctx, peer, in)
		if err != nil {
			s.welcomed(ctx, peer, nil, cmp.Or(peer.Hello.Runner.ID, localID(peer.Key)), err)
			return nil, err
		}
		welcome.RunnerID = v.id
		return &mux.Admission{Welcome: welcome, Table: s.calls, Data: v, Bounds: v.bounds}, nil
	}
	return nil, wire.Errorf(wire.BadUsage, "role %q is not served here", peer.Hello.Role)
}

// admitRunner lets a runner in whose key has been proved, and finds or makes
// its record. Without an error the session is noted: see fleet.parted.
func (s *Server) admitRunner(ctx context.Context, peer *mux.Peer, in door) (*visitor, error) {
	offers := peer.Hello.Runner.Offers
	v := newVisitor(peer, s.cfg().Limits.Streams)
	if err := checkLabels(v.hello.Labels); err != nil {
		return nil, err
	}
	switch v.kind {
	case wire.KindLocal:
		id := localID(peer.Key)
		l, err := s.localLogin(ctx, peer, in)
		if wire.KindOf(err) == wire.Expired && l != nil && s.fleet.mayReport(id) {
			err = nil // it gets no more jobs, and may report those that it has
		}
		if err != nil {
			return nil, err
		}
		v.id, v.standing, v.login = id, wire.Standing{State: wire.Adopted, Admitted: true}, l
		s.fleet.own(id, l)
		return v, nil
	case wire.KindRemote:
	default:
		return nil, wire.Errorf(wire.BadUsage, "unknown kind of runner %q", v.kind)
	}
	if err := wire.CheckID(v.hello.ID); err != nil {
		return nil, err
	}
	if strings.HasPrefix(v.hello.ID, localPrefix) {
		return nil, wire.Errorf(wire.BadUsage, "runner id %q: ids that begin with %q are the server's to give", v.hello.ID, localPrefix)
	}
	v.id = v.hello.ID
	s.fleet.arriving(v)
	if err := s.receive(ctx, v, offers); err != nil {
		s.fleet.parted(v)
		return nil, err
	}
	s.fleet.crowd(v)
	return v, nil
}

// receive judges what a remote runner shows at its hello, and decides about it.
func (s *Server) receive(ctx context.Context, v *visitor, offers []wire.TokenOffer) error {
	judged, err := s.judge(ctx, v, offers)
	if err != nil {
		return err
	}
	done, err := s.turns.take(ctx, v.id)
	if err != nil {
		return err
	}
	defer done()
	_, out, err := s.arrive(ctx, v, judged, "")
	if err == nil && out.Refused != nil && !s.mayReport(ctx, v.id) {
		err = out.Refused
	}
	if err == nil && out.Standing.State == wire.Pending && !s.fleet.hasOrphans(v.id) {
		v.bounds.Set(strangerStreams, strangerUnread)
	}
	return err
}

// localPrefix begins the ids of command lines' own runners.
const localPrefix = "cli-"

// localID is derived from the key, so that the proof of the key is the proof
// of the id, also after a restart of the server, which keeps no record of it.
func localID(key []byte) string {
	sum := sha256.Sum256(key)
	return localPrefix + strings.ToLower(base32.HexEncoding.WithPadding(base32.NoPadding).EncodeToString(sum[:10]))
}

// checkLabels bounds a runner's labels: its own, and those of its host.
func checkLabels(labels map[string]string) error {
	if n := len(adoption.Bound(labels)); n > wire.MaxLabels {
		return wire.Errorf(wire.BadUsage, "%d labels are more than the %d a runner may have", n, wire.MaxLabels)
	}
	for k, v := range labels {
		if err := wire.CheckLabel(k, v); err != nil {
			return err
		}
	}
	return nil
}
