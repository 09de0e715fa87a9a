package daemon

import (
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/time/rate"

	"github.com/waypointd/waypoint/daemon/adoption"
	"github.com/waypointd/waypoint/daemon/token"
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
	calls     *rate.Limiter // of what may cost a commit each time, and what is refused: see pace
	bounds    *mux.Bounds
	streams   int           // of bounds, once it is admitted
	ended     chan struct{} // closed by close: the session must end
	why       error         // set before ended is closed

	// Guarded by fleet.mu.
	shown    []shown
	standing wire.Standing
	using    wire.Claims  // of the token in use, while it is admitted
	problem  wire.Problem // the record's
	detail   string
	labels   map[string]string // the record's: what jobs are matched with; replaced, never changed
	expired  bool              // its token's end has been dealt with
	renewAt  time.Time         // when to renew the token in use; zero: not
	over     bool              // ended is closed
}

// What a runner may ask for over one session that can cost a commit, and how often
// a stranger is refused: far more than an agent does, and far less than would be felt.
const (
	callsEach   = rate.Limit(5) // a second
	callsAtOnce = 50
)

// What a runner may take that nobody has admitted yet: it waits, and shows its
// tokens. And who shows an invite, or a runner's token, and is no runner.
const (
	strangerStreams = 32
	strangerUnread  = 2 << 20
)

// shown is a token that a runner has offered; the text is kept only where its
// claims have been proved.
type shown struct {
	adoption.Offer
	text string
}

// whose is the login that the session depends on.
func (v *visitor) whose() *login { return v.login }

func newVisitor(peer *mux.Peer, streams int) *visitor {
	v := &visitor{
		kind: peer.Hello.Runner.Kind, hello: *peer.Hello.Runner, peer: peer, version: peer.Hello.Software,
		key: statedir.Fingerprint(peer.Key), ended: make(chan struct{}),
		calls:  rate.NewLimiter(callsEach, callsAtOnce),
		bounds: mux.NewBounds(streams, 0), streams: streams,
	}
	v.hello.Offers = nil
	for _, text := range []*string{&v.hello.Hostname, &v.hello.OS, &v.hello.Arch, &v.hello.Isolation, &v.version} {
		*text = plain(*text)
	}
	v.labels = maps.Clone(v.hello.Labels)
	v.peerName, v.peerGroup = peerOf(peer)
	return v
}

// maxText bounds what a runner says of its host, in bytes: a host name has at
// most 253.
const maxText = 255

// printable is a text without what is not: a terminal might obey it.
func printable(text string) string {
	return strings.Map(func(c rune) rune {
		if !unicode.IsPrint(c) {
			return '?'
		}
		return c
	}, strings.ToValidUTF8(text, "?"))
}

// plain makes text that a stranger chose fit to be kept and shown: printable, and short.
func plain(text string) string {
	text = printable(text)
	for len(text) > maxText {
		_, size := utf8.DecodeLastRuneInString(text)
		text = text[:len(text)-size]
	}
	return text
}

// runner is what adoption knows of it.
func (v *visitor) runner() adoption.Runner {
	return adoption.Runner{ID: v.id, Labels: adoption.Bound(v.hello.Labels), Key: v.key}
}

// admitted reports whether the runner may have jobs.
func (v *visitor) admitted(now time.Time) bool {
	if v.login != nil && v.login.shown() && !now.Before(v.login.claims.Expiry) {
		return false
	}
	return v.standing.Admitted && (v.standing.Expiry.IsZero() || now.Before(v.standing.Expiry))
}

// peerOf says where a peer comes from, and what it is counted as: a user of
// this host, an address, of IPv6 the network that one host may have for itself.
func peerOf(p *mux.Peer) (name, group string) {
	if p.Network != "tcp" {
		name = fmt.Sprintf("uid %d", p.UID)
		return name, name
	}
	return addressOf(p.Addr)
}

// addressOf is an address and what is counted as it, of its text with a port.
func addressOf(text string) (name, group string) {
	ap, err := netip.ParseAddrPort(text)
	if err != nil {
		return text, text
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
		if !v.renewAt.IsZero() && token.Ahead(out.Used.Claims, now) != nil {
			v.renewAt = now // see judge
		}
	}
	if v.admitted(now) {
		v.bounds.Set(v.streams, 0)
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

// pending reports whether a session is of a runner that nobody has decided about.
func (f *fleet) pending(v *visitor) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return v.standing.State == wire.Pending
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

// dismiss ends the sessions of a runner whose record is gone. Its attempts live
// on under the lease, for nobody until it is admitted again.
func (f *fleet) dismiss(id, fingerprint string, now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, v := range f.sessions[id] {
		v.close(errForgotten)
	}
	if m := f.members[id]; m != nil {
		delete(f.members, id)
		m.replaced(errForgotten)
	}
	f.recall(id)
	f.disown(id, fingerprint, now)
}

// arriving takes note of the session of a remote runner that says hello, before
// anything is read of that runner; parted ends it.
func (f *fleet) arriving(v *visitor) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.sessions[v.id] = append(f.sessions[v.id], v)
}

func (f *fleet) parted(v *visitor) {
	f.mu.Lock()
	defer f.mu.Unlock()
	left := slices.DeleteFunc(f.sessions[v.id], func(o *visitor) bool { return o == v })
	if f.sessions[v.id] = left; len(left) == 0 {
		delete(f.sessions, v.id)
	}
}

// maxRunnerSessions bounds the sessions of one runner: an agent has one, and for
// a while those that it has lost.
const maxRunnerSessions = 4

// errCrowded is why a session ends whose runner has made newer ones.
var errCrowded = wire.Errorf(wire.Unavailable, "the runner has made too many sessions since")

// crowd ends the oldest of a runner's sessions that does not work, if a newcomer
// is one too many.
func (f *fleet) crowd(newcomer *visitor) {
	f.mu.Lock()
	defer f.mu.Unlock()
	m, n := f.members[newcomer.id], 0
	var oldest *visitor
	for _, v := range f.sessions[newcomer.id] {
		if v.over {
			continue
		}
		n++
		if oldest == nil && v != newcomer && (m == nil || m.visitor != v) {
			oldest = v
		}
	}
	if n > maxRunnerSessions && oldest != nil {
		oldest.close(errCrowded)
	}
}

// errNoRoom is why the sessions end of a runner that has made room.
var errNoRoom = wire.Errorf(wire.Unavailable, "the runner did not begin to work, and others came that wait for adoption")

// evict ends the sessions of a runner whose record has been removed for another's.
func (f *fleet) evict(id string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, v := range f.sessions[id] {
		v.close(errNoRoom)
	}
}

func (v *visitor) close(why error) {
	if !v.over {
		v.over, v.why = true, why
		close(v.ended)
	}
}
