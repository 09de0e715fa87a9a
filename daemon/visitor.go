package daemon

import (
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"time"

	"github.com/waypointd/waypoint/daemon/adoption"
	"github.com/waypointd/waypoint/mux"
	"github.com/waypointd/waypoint/mux/wire"
	"github.com/waypointd/waypoint/statedir"
)

// visitor is a runner's session, from its hello on: who it is, what it has
// shown, and how it stands. It becomes a member with its work stream.
type visitor struct {
	id        string
	kind      wire.RunnerKind
	hello     wire.RunnerHello // without its offers: they are secrets
	peer      *mux.Peer
	login     *login // of the command line that a local runner belongs to; else nil
	peerName  string
	peerGroup string
	version   string
	key       string        // fingerprint
	forgotten chan struct{} // closed by fleet.dismiss: the session must end

	// Guarded by fleet.mu.
	shown    []shown
	standing wire.Standing
	using    wire.Claims  // of the token in use, while it is admitted
	problem  wire.Problem // the record's
	detail   string
	labels   map[string]string // the record's: what jobs are matched with; replaced, never changed
	expired  bool              // its token's end has been dealt with
	renewAt  time.Time         // when to renew the token in use; zero: not
	over     bool              // forgotten is closed
	came     int               // fleet.dismissals at its hello
}

// shown is a token that a runner has offered; the text is kept only where its
// claims have been proved.
type shown struct {
	adoption.Offer
	text string
}

// whose is the login that the session depends on.
func (v *visitor) whose() *login { return v.login }

func newVisitor(peer *mux.Peer) *visitor {
	v := &visitor{
		kind: peer.Hello.Runner.Kind, hello: *peer.Hello.Runner, peer: peer, version: peer.Hello.Software,
		key: statedir.Fingerprint(peer.Key), forgotten: make(chan struct{}),
	}
	v.hello.Offers = nil
	v.labels = maps.Clone(v.hello.Labels)
	v.peerName, v.peerGroup = peerOf(peer)
	return v
}

// runner is what adoption knows of it.
func (v *visitor) runner() adoption.Runner {
	return adoption.Runner{ID: v.id, Labels: adoption.Bound(v.hello.Labels), Key: v.key}
}

// admitted reports whether the runner may have jobs.
func (v *visitor) admitted(now time.Time) bool {
	return v.standing.Admitted && (v.standing.Expiry.IsZero() || now.Before(v.standing.Expiry))
}

// peerOf says where a peer comes from, and what it is counted as: a user of
// this host, an address, of IPv6 the network that one host may have for itself.
func peerOf(p *mux.Peer) (name, group string) {
	if p.Network != "tcp" {
		name = fmt.Sprintf("uid %d", p.UID)
		return name, name
	}
	ap, err := netip.ParseAddrPort(p.Addr)
	if err != nil {
		return p.Addr, p.Addr
	}
	addr := ap.Addr().Unmap().WithZone("")
	if addr.Is4() {
		return addr.String(), addr.String()
	}
	const host = 64
	return addr.String(), netip.PrefixFrom(addr, host).Masked().String()
}

// stand makes an outcome how the runner stands from now on, and tells it
// where that is news. anew are tokens that have been judged; nil leaves those
// of before.
func (f *fleet) stand(v *visitor, out adoption.Outcome, labels map[string]string, anew []shown, now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	changed := !reflect.DeepEqual(v.standing, out.Standing)
	v.standing, v.problem, v.detail, v.labels = out.Standing, out.Problem, out.Detail, labels
	if anew != nil {
		v.shown = anew
	}
	v.expired, v.renewAt, v.using = false, time.Time{}, wire.Claims{}
	if out.Used != nil {
		v.using = out.Used.Claims
		v.renewAt = adoption.RenewAt(out.Standing.State, out.Used.Claims, v.runner())
	}
	m := f.members[v.id]
	if m == nil || m.visitor != v {
		return
	}
	if changed {
		f.tellStanding(m)
	}
	if v.admitted(now) {
		f.readmit(m)
		return
	}
	f.recall(v.id)
	f.refuse(m)
}

func (f *fleet) tellStanding(m *member) {
	st := m.standing
	f.tell(m.id, wire.WorkOrder{Standing: &st})
}

// recall takes back what a runner has been given and is not confirmed to have
// started: it is due to go back to the queue.
func (f *fleet) recall(runner string) {
	for _, a := range f.held[runner] {
		if a.sure && !a.running {
			a.recalled = true
		}
	}
}

// refuse ends the work stream of a rejected runner that has nothing left to
// report.
func (f *fleet) refuse(m *member) {
	if m.standing.State == wire.Rejected && (len(f.held[m.id]) == 0 || f.orphaned(m.id)) {
		m.orders.end(adoption.Denied(m.id))
	}
}

// settleRejected is refuse for a runner whose attempt has ended.
func (f *fleet) settleRejected(runner string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if m := f.members[runner]; m != nil {
		f.refuse(m)
	}
}

// errForgotten is why a session ends whose runner has been forgotten.
var errForgotten = wire.Errorf(wire.Unavailable, "the runner has been forgotten by an operator")

// visitors are the open sessions of a runner, also those that do not work.
func (r *roster) visitors(id string) (vs []*visitor) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for session := range r.sessions {
		if v, ok := session.Peer().Data.(*visitor); ok && v.id == id {
			vs = append(vs, v)
		}
	}
	return vs
}

// dismiss ends the sessions of a runner whose record is gone. Its attempts live
// on under the lease, for nobody until it is admitted again.
func (f *fleet) dismiss(id, fingerprint string, sessions []*visitor, now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.dismissals++
	for _, v := range sessions {
		v.close()
	}
	if m := f.members[id]; m != nil {
		delete(f.members, id)
		m.visitor.close()
		m.replaced(errForgotten)
	}
	f.recall(id)
	f.disown(id, fingerprint, now)
}

// attended is called when dismiss can find a session: one that came to be while
// somebody was forgotten, maybe its runner, has to come again.
func (f *fleet) attended(v *visitor) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if v.kind == wire.KindRemote && v.came != f.dismissals {
		v.close()
	}
}

// arriving is called before anything is read of a runner that says hello.
func (f *fleet) arriving(v *visitor) {
	f.mu.Lock()
	defer f.mu.Unlock()
	v.came = f.dismissals
}

func (v *visitor) close() {
	if !v.over {
		v.over = true
		close(v.forgotten)
	}
}
