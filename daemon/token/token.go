// Package token makes and verifies the server's tokens. It is pure: it knows no
// clock, no store and no goroutine; what a token allows is for its callers to
// say.
//
// A token is signed and self-contained: who has the public key can verify it,
// nobody else can make or alter one. The signature is that of PASETO v4.public
// (ed25519), made and verified by the library; this package only takes its text
// apart and puts it together again, as mux/wire says:
//
//	wire    wprun_  base64url( key id | claims | signature )  checksum
//	             │             │        │         │
//	             │             └────────┼─────────┼──────────┐
//	PASETO       │       v4.public. base64url( claims | signature ) . base64url( key id, hex )
//	             └─ implicit assertion
//
// So the signature is over kind, key id and claims: none can be changed, and a
// token of one kind never passes for one of another.
package token

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"strings"
	"time"

	"aidanwoods.dev/go-paseto"

	"github.com/waypointd/waypoint/mux/wire"
)

// MaxSkew is how far in the future a token may have been made: the clocks of
// several servers differ. Its end is exact.
const MaxSkew = time.Minute

// Key is a signing key. It is a secret.
type Key struct {
	ID      [8]byte
	Private ed25519.PrivateKey
	Created time.Time
	Retired time.Time // from then on it only verifies; zero: it signs
	Until   time.Time // the last expiry that was signed with it; zero: none was
}

// NewKey makes a key that signs.
func NewKey(now time.Time) Key {
	seed := make([]byte, ed25519.SeedSize)
	rand.Read(seed)
	return KeyFromSeed(seed, now)
}

// KeyFromSeed is the key of 32 bytes that were kept.
func KeyFromSeed(seed []byte, created time.Time) Key {
	k := Key{Private: ed25519.NewKeyFromSeed(seed), Created: created}
	sum := sha256.Sum256(k.Public())
	copy(k.ID[:], sum[:])
	return k
}

// Public is the half that verifies.
func (k Key) Public() ed25519.PublicKey { return k.Private.Public().(ed25519.PublicKey) }

// Verifies reports whether tokens of this key are still looked at: it signs, or
// not all that it signed has expired.
func (k Key) Verifies(now time.Time) bool { return k.Retired.IsZero() || now.Before(k.Until) }

const header = "v4.public."

// Mint signs claims, which must be complete. Its errors are Internal.
func Mint(k Key, c wire.Claims) (string, error) {
	switch {
	case c.Kind != wire.RunnerToken && c.Kind != wire.UserToken && c.Kind != wire.InviteToken:
		return "", wire.Errorf(wire.Internal, "make token: there is no kind %q", c.Kind)
	case c.Issued.IsZero() || !c.Issued.Before(c.Expiry):
		return "", wire.Errorf(wire.Internal, "make token: it would expire before it begins")
	}
	claims, err := json.Marshal(c)
	if err != nil {
		return "", wire.Errorf(wire.Internal, "make token: encode claims: %v", err)
	}
	t, err := paseto.NewTokenFromClaimsJSON(claims, footer(k.ID))
	if err != nil {
		return "", wire.Errorf(wire.Internal, "make token: %v", err)
	}
	secret, err := paseto.NewV4AsymmetricSecretKeyFromEd25519(k.Private)
	if err != nil {
		return "", wire.Errorf(wire.Internal, "make token: %v", err)
	}
	body, _, _ := strings.Cut(strings.TrimPrefix(t.V4Sign(secret, []byte(c.Kind)), header), ".")
	signed, err := base64.RawURLEncoding.DecodeString(body)
	p := wire.TokenParts{Kind: c.Kind, KeyID: k.ID}
	if err != nil || len(signed) < len(p.Signature) {
		return "", wire.Errorf(wire.Internal, "make token: its signature cannot be read: %v", err)
	}
	end := len(signed) - len(p.Signature)
	p.Claims = signed[:end]
	copy(p.Signature[:], signed[end:])
	text := p.String()
	if len(text) > wire.MaxToken {
		return "", wire.Errorf(wire.Internal, "make token: it would have %d bytes, more than the %d that are looked at", len(text), wire.MaxToken)
	}
	return text, nil
}

// Verify is what a token says, proved. key finds the public key of an id.
// The error is Unauthenticated or Expired, together with the claims where all but
// the time is right (see Ahead); neither shows the text.
func Verify(text string, key func(id [8]byte) (ed25519.PublicKey, bool), now time.Time) (wire.Claims, error) {
	p, err := wire.SplitToken(text)
	if err != nil {
		return wire.Claims{}, err
	}
	public, ok := key(p.KeyID)
	if !ok {
		return wire.Claims{}, unknownKey(p, now)
	}
	verifier, err := paseto.NewV4AsymmetricPublicKeyFromEd25519(public)
	if err != nil {
		return wire.Claims{}, wire.Errorf(wire.Internal, "verify token: key %x: %v", p.KeyID, err)
	}
	signed := append(append(make([]byte, 0, len(p.Claims)+len(p.Signature)), p.Claims...), p.Signature[:]...)
	t, err := paseto.NewParserWithoutExpiryCheck().ParseV4Public(verifier,
		header+base64.RawURLEncoding.EncodeToString(signed)+"."+base64.RawURLEncoding.EncodeToString(footer(p.KeyID)), []byte(p.Kind))
	if err != nil {
		return wire.Claims{}, wire.Errorf(wire.Unauthenticated, "the token is not valid: it was not signed by this server").
			WithHint("copy the whole token again, or make a new one")
	}
	var c wire.Claims
	if err := json.Unmarshal(t.ClaimsJSON(), &c); err != nil {
		return wire.Claims{}, wire.Errorf(wire.Unauthenticated, "the token is not valid: its claims cannot be read")
	}
	c.Kind = p.Kind
	if err := Ahead(c, now); err != nil {
		return c, err
	}
	return c, Expired(c, now)
}

// Ahead is the error, kind Unauthenticated, of a token that is good but for
// having been made later than now, as far as clocks may differ; else nil.
func Ahead(c wire.Claims, now time.Time) error {
	ahead := c.Issued.Sub(now)
	if ahead <= MaxSkew {
		return nil
	}
	return wire.Errorf(wire.Unauthenticated,
		"the token is not valid yet: it was issued at %s, which is %s ahead of this server's clock", stamp(c.Issued), ahead.Round(time.Second)).
		WithHint("set the server's clock right")
}

// Expired is the error of a token that is good but for the time, kind Expired;
// nil before its expiry.
func Expired(c wire.Claims, now time.Time) error {
	if now.Before(c.Expiry) {
		return nil
	}
	e := wire.Errorf(wire.Expired, "the token expired at %s", stamp(c.Expiry))
	switch c.Kind {
	case wire.RunnerToken:
		return e.WithHint("make a new one with: waypoint runner token")
	case wire.InviteToken:
		e = wire.Errorf(wire.Expired, "the invite expired at %s", stamp(c.Expiry))
		return e.WithHint("ask an admin for another one: waypoint user invite %s", c.User)
	}
	return e.WithHint("make a new one with: waypoint user token (on the server's host that needs no token), then log in with it: waypoint login")
}

// unknownKey says what is known of a token that nothing can verify.
func unknownKey(p wire.TokenParts, now time.Time) error {
	e := wire.Errorf(wire.Unauthenticated, "the token is not valid: the key that signed it (%x) is not, or no longer, this server's", p.KeyID)
	if c, err := p.ReadClaims(); err == nil && !c.Expiry.IsZero() && !now.Before(c.Expiry) {
		e.Message += "; by its own account it expired at " + stamp(c.Expiry)
	}
	return e.WithHint("see that it was made by this server, or make a new one")
}

func footer(id [8]byte) []byte { return []byte(hex.EncodeToString(id[:])) }

func stamp(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 UTC") }
