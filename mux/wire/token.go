package wire

import (
	"encoding/base64"
	"encoding/json"
	"hash/crc32"
	"strings"
	"time"
)

// TokenKind is what a token is for; it is the beginning of its text, so that
// people and secret scanners know it by sight.
type TokenKind string

// The kinds of token.
const (
	RunnerToken TokenKind = "wprun_"
	UserToken   TokenKind = "wpusr_"
	InviteToken TokenKind = "wpinv_" // good for one thing: to be exchanged for a user token
)

// The bounds of a token's life.
const (
	MinTokenLife     = time.Second
	MaxTokenLife     = 10 * 365 * 24 * time.Hour
	DefaultTokenLife = 30 * 24 * time.Hour
)

// MaxToken is the length of the longest text that is looked at as a token.
const MaxToken = 16 << 10

// Claims are what a token says of itself.
type Claims struct {
	Kind   TokenKind         `json:"-"`
	Serial int64             `json:"serial"`           // grows from each token of a server to its next, whatever the clock does
	ID     string            `json:"id,omitempty"`     // of the runner; "" is any
	Labels map[string]string `json:"labels,omitzero"`  // exactly these the runner must offer; nil is any
	Key    string            `json:"key,omitempty"`    // fingerprint of the runner's identity key; "" is any
	User   string            `json:"user,omitempty"`   // of a user token or an invite
	Issued time.Time         `json:"issued_at"`        //
	Expiry time.Time         `json:"expires_at"`       //
	Pin    string            `json:"server,omitempty"` // fingerprint of the server's certificate, "SHA256:…": who shows the token can know whom to show it to
}

// TokenParts are the pieces of a token's text:
//
//	kind  base64url( key id, 8 bytes | claims, JSON | signature, 64 bytes )  checksum, 6 digits
//
// The signature is that of PASETO v4.public over the claims, with the key id
// in hexadecimal as footer and the kind as implicit assertion. The checksum is
// the CRC-32 of what is before it, to the base 62; it finds typing errors and
// tells secret scanners a token from what looks like one.
type TokenParts struct {
	Kind      TokenKind
	KeyID     [8]byte
	Claims    []byte
	Signature [64]byte
}

const (
	checksumSize = 6
	digits       = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
)

// String is the token's text.
func (p TokenParts) String() string {
	b := make([]byte, 0, len(p.KeyID)+len(p.Claims)+len(p.Signature))
	b = append(append(append(b, p.KeyID[:]...), p.Claims...), p.Signature[:]...)
	text := string(p.Kind) + base64.RawURLEncoding.EncodeToString(b)
	return text + checksum(text)
}

// SplitToken takes a token's text apart. Its errors are Unauthenticated and
// never show the text.
func SplitToken(text string) (p TokenParts, err error) {
	bad := func(why string) (TokenParts, error) {
		return TokenParts{}, Errorf(Unauthenticated, "the token is not valid: %s", why).
			WithHint("copy the whole token again, or make a new one")
	}
	switch {
	case len(text) > MaxToken:
		return bad("it is too long")
	case strings.HasPrefix(text, string(RunnerToken)):
		p.Kind = RunnerToken
	case strings.HasPrefix(text, string(UserToken)):
		p.Kind = UserToken
	case strings.HasPrefix(text, string(InviteToken)):
		p.Kind = InviteToken
	default:
		return bad("it does not begin as a token does")
	}
	if len(text) < len(p.Kind)+checksumSize {
		return bad("it is cut off")
	}
	body, sum := text[:len(text)-checksumSize], text[len(text)-checksumSize:]
	if checksum(body) != sum {
		return bad("it is mistyped or cut off (its checksum is wrong)")
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(body[len(p.Kind):])
	if err != nil || strings.ContainsAny(body, "\r\n") || len(b) < len(p.KeyID)+len(p.Signature) {
		return bad("it is malformed")
	}
	copy(p.KeyID[:], b)
	copy(p.Signature[:], b[len(b)-len(p.Signature):])
	p.Claims = b[len(p.KeyID) : len(b)-len(p.Signature)]
	return p, nil
}

// ReadToken is what a token says of itself, unproved: only the server can
// tell whether it is true.
func ReadToken(text string) (Claims, error) {
	p, err := SplitToken(text)
	if err != nil {
		return Claims{}, err
	}
	return p.ReadClaims()
}

// ReadClaims decodes the claims, unproved.
func (p TokenParts) ReadClaims() (Claims, error) {
	var c Claims
	if err := json.Unmarshal(p.Claims, &c); err != nil {
		return Claims{}, Errorf(Unauthenticated, "the token is not valid: its claims cannot be read")
	}
	c.Kind = p.Kind
	return c, nil
}

func checksum(text string) string {
	n := crc32.ChecksumIEEE([]byte(text))
	var b [checksumSize]byte
	for i := len(b) - 1; i >= 0; i-- {
		b[i] = digits[n%62]
		n /= 62
	}
	return string(b[:])
}

// TokenReply is a token that has been made.
type TokenReply struct {
	Token       string    `json:"token"`
	Expiry      time.Time `json:"expires_at"`
	Fingerprint string    `json:"tls_fingerprint,omitempty"` // of the server's certificate, where it has one

	// Of a token or an invite of a user.
	ID   string   `json:"token_id,omitempty"`
	User string   `json:"user,omitempty"`
	Role UserRole `json:"role,omitempty"`
	Limits
}

// BootstrapRequest has no fields.
type BootstrapRequest struct{}

// RotateRequest makes a new signing key. The ones before it verify until
// their tokens have expired; with Revoke they verify no more.
type RotateRequest struct {
	Revoke bool `json:"revoke,omitempty"`
}

// RotateReply names the keys that verify after a rotation.
type RotateReply struct {
	KeyID   string     `json:"key_id"` // signs from now on
	Retired []TokenKey `json:"retired,omitempty"`
}

// TokenKey is a signing key that is used no more.
type TokenKey struct {
	ID    string    `json:"id"`
	Until time.Time `json:"verifies_until"` // its last token expires then
}
