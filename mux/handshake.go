package mux

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"net"
	"time"

	"github.com/waypointd/waypoint/mux/wire"
)

// lingerTime is how long a refused peer has to read its refusal and hang up
// before the connection is closed under it.
const lingerTime = time.Second

const nonceSize = 32

// Accept makes the accepting side of a session of conn: TLS on TCP, guard,
// yamux, the hello, all within the time-out, and admit. It then serves the peer's calls from the
// admission's table until the session ends. ctx governs the handshake only;
// handlers see its values. On error conn is closed.
func Accept(ctx context.Context, conn net.Conn, cfg Config, admit Admit) (*Session, error) {
	cfg = cfg.withDefaults()
	late := time.Now().Add(cfg.HandshakeTimeout)
	conn, err := cfg.heed(ctx, conn, late)
	if err != nil {
		return nil, err
	}
	hctx, cancel := context.WithDeadlineCause(ctx, late, errHandshakeLate)
	defer cancel()
	if conn, err = cfg.secure(hctx, conn); err != nil {
		return nil, err
	}
	peer, err := newPeer(conn)
	if err != nil {
		closeConn(conn)
		return nil, err
	}
	s, err := newSession(ctx, conn, cfg, peer, false)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(hctx, func() { s.end(context.Cause(hctx)) })
	err = s.acceptHello(hctx, admit)
	if stop(); err == nil && hctx.Err() != nil {
		err = context.Cause(hctx)
	}
	if err != nil {
		s.Close()
		return nil, err
	}
	s.start()
	return s, nil
}

// acceptHello serves the one call that comes before all others.
func (s *Session) acceptHello(ctx context.Context, admit Admit) error {
	ys, err := s.yamux.AcceptStreamWithContext(ctx)
	if err != nil {
		return s.handshakeError(ctx, err)
	}
	st := newStream(s, ys, wire.MaxBeforeHello)
	st.ctx, st.cancel = context.WithCancelCause(ctx)
	if err = st.readCall(); err == nil {
		err = s.answerHello(st, admit)
	}
	if ctx.Err() != nil || s.lost() {
		return s.handshakeError(ctx, err)
	}
	st.finish(err)
	if err != nil {
		linger := time.NewTimer(lingerTime)
		defer linger.Stop()
		select {
		case <-s.yamux.CloseChan():
		case <-linger.C:
		case <-ctx.Done():
		}
		return err
	}
	return nil
}

// answerHello checks the hello, has a runner prove its key, and asks admit.
func (s *Session) answerHello(st *Stream, admit Admit) error {
	if st.method != wire.MethodHello {
		return wire.Errorf(wire.Unauthenticated, "the first call of a session must be %q, not %q", wire.MethodHello, st.method)
	}
	var hello wire.Hello
	if err := st.Body(&hello); err != nil {
		return err
	}
	version := commonVersion(hello.VersionMin, hello.VersionMax)
	if version == 0 {
		return s.noVersion(hello)
	}
	var err error
	switch hello.Role {
	case wire.RoleRunner:
		if s.peer.Key, err = s.proveKey(st, hello.Runner); err != nil {
			return err
		}
	case wire.RoleClient, wire.RoleSupervisor:
		hello.Runner = nil // nothing of it is proved
	default:
		return wire.Errorf(wire.BadUsage, "the role %q is not known here", hello.Role)
	}
	s.peer.Hello = hello
	admission, err := admit(st.ctx, s.peer)
	if err != nil {
		return err
	}
	s.peer.Data = admission.Data
	s.table = admission.Table
	welcome := admission.Welcome
	welcome.Version, welcome.Software = version, s.cfg.Software
	bounds := admission.Bounds
	if bounds == nil {
		bounds = NewBounds(s.cfg.MaxStreams, 0)
	}
	s.guard.admit(bounds) // before the peer can know that it is welcome
	return st.Queue(welcome)
}

// commonVersion is the highest version that a peer's range and ours share, 0 where
// they share none.
func commonVersion(low, high int) int {
	version := min(high, wire.VersionMax)
	if version < max(low, wire.VersionMin) {
		return 0
	}
	return version
}

// VersionError refuses a peer that shares no version of the protocol. Of its hello nothing
// is known but what it says itself.
type VersionError struct {
	Refusal *wire.Error
	Peer    *Peer
}

func (e *VersionError) Error() string { return e.Refusal.Error() }
func (e *VersionError) Unwrap() error { return e.Refusal }

// noVersion is for a peer that shares no version. It is read where the peer is, so it
// says which of the two is which, and which one is older.
func (s *Session) noVersion(hello wire.Hello) error {
	asks, asked := "the command line", "the server"
	switch hello.Role {
	case wire.RoleRunner:
		asks = "the runner"
	case wire.RoleSupervisor:
		asks, asked = "the agent", "the supervisor"
	}
	older := asks
	if hello.VersionMin > wire.VersionMax {
		older = asked
	}
	err := wire.Errorf(wire.Unimplemented, "no protocol version in common: %s (%.64q) speaks %d to %d, %s (%.64q) speaks %d to %d",
		asks, hello.Software, hello.VersionMin, hello.VersionMax, asked, s.cfg.Software, wire.VersionMin, wire.VersionMax).
		WithHint("upgrade %s, which is the older of the two", older)
	peer := *s.peer
	hello.Runner = nil // nothing of it is proved
	peer.Hello = hello
	return &VersionError{err, &peer}
}

// proveKey has a runner sign a fresh nonce with the key that it names.
func (s *Session) proveKey(st *Stream, r *wire.RunnerHello) (ed25519.PublicKey, error) {
	if r == nil || len(r.PublicKey) != ed25519.PublicKeySize {
		return nil, wire.Errorf(wire.BadUsage, "a runner's hello needs a public key of %d bytes", ed25519.PublicKeySize)
	}
	bound, err := binding(s.guard.Conn)
	if err != nil {
		return nil, err
	}
	nonce := make([]byte, nonceSize)
	rand.Read(nonce)
	if err := st.Send(wire.Challenge{Nonce: nonce}); err != nil {
		return nil, err
	}
	var proof wire.Proof
	if err := st.RecvMsg(&proof); err != nil {
		return nil, err
	}
	if !ed25519.Verify(r.PublicKey, wire.ProofText(nonce, bound), proof.Signature) {
		return nil, wire.Errorf(wire.Unauthenticated, "the runner did not prove that it holds its identity key")
	}
	return ed25519.PublicKey(r.PublicKey), nil
}

// handshakeError is the error of a handshake that err broke off.
func (s *Session) handshakeError(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if s.lost() {
		return s.Err()
	}
	return err
}

// Connect makes the dialing side of a session of conn. hello's versions and
// software are filled in; key signs the challenge for runners (else nil);
// table serves calls that the accepting side opens (nil: none). ctx governs
// the handshake only. On error conn is closed; a refusal is the *wire.Error
// the other side sent.
func Connect(ctx context.Context, conn net.Conn, cfg Config, hello wire.Hello, key ed25519.PrivateKey, table Table) (*Session, error) {
	cfg = cfg.withDefaults()
	peer, err := newPeer(conn)
	if err != nil {
		closeConn(conn)
		return nil, err
	}
	s, err := newSession(ctx, conn, cfg, peer, true)
	if err != nil {
		return nil, err
	}
	s.table = table
	s.guard.admit(NewBounds(cfg.MaxStreams, 0))
	hello.VersionMin, hello.VersionMax, hello.Software = wire.VersionMin, wire.VersionMax, cfg.Software
	if hello.Runner != nil && key != nil {
		r := *hello.Runner
		r.PublicKey = key.Public().(ed25519.PublicKey)
		hello.Runner = &r
	}
	hctx, cancel := context.WithTimeoutCause(ctx, cfg.HandshakeTimeout, errHandshakeLate)
	defer cancel()
	if s.welcome, err = s.sayHello(hctx, hello, key); err != nil {
		if hctx.Err() != nil && ctx.Err() == nil {
			err = errHandshakeLate
		}
		s.Close()
		return nil, s.plaintextError(err)
	}
	s.start()
	if cfg.Contact != nil && peer.Network != memoryNetwork {
		s.served.Go(s.keepContact)
	}
	return s, nil
}

// plaintextError adds a hint to the error of a handshake without TLS with a
// server on TCP that ended the session without a word.
func (s *Session) plaintextError(err error) error {
	lost, ok := errors.AsType[*lostError](err)
	if !ok || s.peer.Network != "tcp" || s.peer.TLS || s.guard.reads.Load() > 0 {
		return err
	}
	return &lostError{lost.why.WithHint(plaintextHint)}
}

func (s *Session) sayHello(ctx context.Context, hello wire.Hello, key ed25519.PrivateKey) (welcome wire.Welcome, err error) {
	st, err := s.Open(ctx, wire.MethodHello, hello)
	if err != nil {
		return welcome, err
	}
	defer st.Close()
	if hello.Role == wire.RoleRunner {
		var challenge wire.Challenge
		if err := st.RecvMsg(&challenge); err != nil {
			return welcome, err
		}
		if len(challenge.Nonce) != nonceSize || key == nil {
			return welcome, wire.Errorf(wire.Unauthenticated, "prove identity: no key, or a challenge of %d bytes", len(challenge.Nonce))
		}
		bound, err := binding(s.guard.Conn)
		if err != nil {
			return welcome, err
		}
		// A Send that fails because the call is over leaves its STATUS to be read.
		err = st.Send(wire.Proof{Signature: ed25519.Sign(key, wire.ProofText(challenge.Nonce, bound))})
		if err != nil && !errors.Is(err, ErrCallOver) {
			return welcome, err
		}
	}
	if err := st.recvReply(&welcome); err != nil {
		return welcome, err
	}
	if commonVersion(welcome.Version, welcome.Version) == 0 {
		return welcome, wire.Errorf(wire.Unimplemented, "the other side (%.64q) has chosen version %d of the protocol, and this one speaks %d to %d",
			welcome.Software, welcome.Version, wire.VersionMin, wire.VersionMax).WithHint("upgrade the older of the two")
	}
	return welcome, nil
}
