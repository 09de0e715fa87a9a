package token_test

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"hash/crc32"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/waypointd/waypoint/daemon/token"
	"github.com/waypointd/waypoint/mux/wire"
)

var now = time.Date(2030, 1, 2, 3, 4, 5, 678, time.UTC)

// ring finds the keys that a test has.
func ring(keys ...token.Key) func(id [8]byte) (ed25519.PublicKey, bool) {
	return func(id [8]byte) (ed25519.PublicKey, bool) {
		for _, k := range keys {
			if k.ID == id {
				return k.Public(), true
			}
		}
		return nil, false
	}
}

func claims(kind wire.TokenKind) wire.Claims {
	c := wire.Claims{
		Kind: kind, Serial: 41, Pin: "SHA256:abc", Key: "SHA256:def",
		Issued: now, Expiry: now.Add(time.Hour),
	}
	if kind == wire.UserToken {
		c.User = "ada"
	} else {
		c.ID, c.Labels = "r1", map[string]string{"zone": "b", "arch64": "<yes&no>", "empty": ""}
	}
	return c
}

func mint(t testing.TB, k token.Key, c wire.Claims) string {
	t.Helper()
	text, err := token.Mint(k, c)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func refused(t *testing.T, what, text string, kind wire.Kind, find func(id [8]byte) (ed25519.PublicKey, bool)) {
	t.Helper()
	c, err := token.Verify(text, find, now)
	if wire.KindOf(err) != kind {
		t.Fatalf("%s: %+v, %v", what, c, err)
	}
	if kind != wire.Expired && !reflect.DeepEqual(c, wire.Claims{}) {
		t.Fatalf("%s: refused and yet believed: %+v", what, c)
	}
	if len(text) > 20 && strings.Contains(err.Error(), text[10:20]) {
		t.Fatalf("%s: the error shows the token: %v", what, err)
	}
}

func TestWhatIsMintedIsVerified(t *testing.T) {
	k := token.NewKey(now)
	any := claims(wire.RunnerToken)
	any.ID, any.Labels, any.Key, any.Pin = "", nil, "", ""
	none := claims(wire.RunnerToken)
	none.Labels = map[string]string{} // not the same as any
	for _, c := range []wire.Claims{claims(wire.RunnerToken), claims(wire.UserToken), any, none} {
		text := mint(t, k, c)
		if !strings.HasPrefix(text, string(c.Kind)) {
			t.Errorf("%q does not begin with its kind", text)
		}
		got, err := token.Verify(text, ring(token.NewKey(now), k), now)
		if err != nil || !reflect.DeepEqual(got, c) {
			t.Errorf("got %+v, %v; want %+v", got, err, c)
		}
		if read, err := wire.ReadToken(text); err != nil || !reflect.DeepEqual(read, c) {
			t.Errorf("read %+v, %v", read, err)
		}
	}
}

func TestKeysAreKept(t *testing.T) {
	k := token.NewKey(now)
	again := token.KeyFromSeed(k.Private.Seed(), now)
	if !reflect.DeepEqual(again, k) {
		t.Fatalf("%+v came back as %+v", k, again)
	}
	if _, err := token.Verify(mint(t, k, claims(wire.UserToken)), ring(again), now); err != nil {
		t.Fatal(err)
	}
}

func TestMintRefusesWhatIsIncomplete(t *testing.T) {
	k := token.NewKey(now)
	for name, change := range map[string]func(c *wire.Claims){
		"no kind":      func(c *wire.Claims) { c.Kind = "" },
		"unknown kind": func(c *wire.Claims) { c.Kind = "wpxyz_" },
		"no times":     func(c *wire.Claims) { c.Issued, c.Expiry = time.Time{}, time.Time{} },
		"no life":      func(c *wire.Claims) { c.Expiry = c.Issued },
		"too long":     func(c *wire.Claims) { c.User = strings.Repeat("x", wire.MaxToken) },
	} {
		c := claims(wire.UserToken)
		change(&c)
		if text, err := token.Mint(k, c); err == nil || text != "" {
			t.Errorf("%s: %q, %v", name, text, err)
		}
	}
}

// Every bit of a token counts: as a typing error, and with a checksum that has
// been made right again.
func TestAlteredTokens(t *testing.T) {
	k := token.NewKey(now)
	for _, kind := range []wire.TokenKind{wire.RunnerToken, wire.UserToken} {
		text := mint(t, k, claims(kind))
		for i := range text {
			for bit := range 8 {
				b := []byte(text)
				b[i] ^= 1 << bit
				refused(t, "one bit", string(b), wire.Unauthenticated, ring(k))
			}
			for _, c := range []byte("A0_- \n\x00\xff") {
				if b := []byte(text); b[i] != c {
					b[i] = c
					refused(t, "one byte", string(b), wire.Unauthenticated, ring(k))
				}
			}
			refused(t, "cut", text[:i], wire.Unauthenticated, ring(k))
			refused(t, "without its beginning", text[i+1:], wire.Unauthenticated, ring(k))
			if i > len(kind) && i < len(text)-6 {
				refused(t, "cut, checksum right", checked(text[:i]), wire.Unauthenticated, ring(k))
			}
		}
		for _, wrong := range []string{text + text, text + "\n", " " + text, text + "." + text, strings.ToUpper(text)} {
			refused(t, "doubled or padded", wrong, wire.Unauthenticated, ring(k))
		}
		parts, err := wire.SplitToken(text)
		if err != nil {
			t.Fatal(err)
		}
		everyBit := func(what string, field func(p *wire.TokenParts) []byte) {
			for i := range field(&parts) {
				for bit := range 8 {
					p := parts
					p.Claims = bytes.Clone(p.Claims)
					field(&p)[i] ^= 1 << bit
					refused(t, what, p.String(), wire.Unauthenticated, func([8]byte) (ed25519.PublicKey, bool) { return k.Public(), true })
				}
			}
		}
		everyBit("key id, checksum right", func(p *wire.TokenParts) []byte { return p.KeyID[:] })
		everyBit("claims, checksum right", func(p *wire.TokenParts) []byte { return p.Claims })
		everyBit("signature, checksum right", func(p *wire.TokenParts) []byte { return p.Signature[:] })
	}
}

// checked puts the right checksum behind a text, found by trying what
// SplitToken says of it, so that this test knows the rule by itself.
func checked(text string) string {
	const digits = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
	n := crc32.ChecksumIEEE([]byte(text))
	b := make([]byte, 6)
	for i := range b {
		b[5-i] = digits[n%62]
		n /= 62
	}
	return text + string(b)
}

func TestForgedTokens(t *testing.T) {
	k, other := token.NewKey(now), token.NewKey(now)
	text := mint(t, k, claims(wire.RunnerToken))
	parts, err := wire.SplitToken(text)
	if err != nil {
		t.Fatal(err)
	}
	if checked(text[:len(text)-6]) != text {
		t.Fatal("the test does not know the checksum's rule")
	}
	forge := func(what string, change func(p *wire.TokenParts)) {
		t.Helper()
		p := parts
		p.Claims = bytes.Clone(p.Claims)
		change(&p)
		refused(t, what, p.String(), wire.Unauthenticated, ring(k, other))
	}
	forge("kind", func(p *wire.TokenParts) { p.Kind = wire.UserToken })
	forge("id", func(p *wire.TokenParts) { p.Claims = bytes.Replace(p.Claims, []byte(`"r1"`), []byte(`"r2"`), 1) })
	forge("expiry", func(p *wire.TokenParts) { p.Claims = bytes.Replace(p.Claims, []byte("2030"), []byte("2039"), 2) })
	forge("claims gone", func(p *wire.TokenParts) { p.Claims = nil })
	forge("claims longer", func(p *wire.TokenParts) { p.Claims = append(p.Claims, ' ') })
	forge("another key's id", func(p *wire.TokenParts) { p.KeyID = other.ID })
	forge("another key's signature", func(p *wire.TokenParts) {
		theirs, err := wire.SplitToken(mint(t, other, claims(wire.RunnerToken)))
		if err != nil {
			t.Fatal(err)
		}
		p.Signature = theirs.Signature
	})
	forge("another token's signature", func(p *wire.TokenParts) {
		c := claims(wire.RunnerToken)
		c.Serial++
		theirs, err := wire.SplitToken(mint(t, k, c))
		if err != nil {
			t.Fatal(err)
		}
		p.Signature = theirs.Signature
	})
	forge("a bare signature over the claims", func(p *wire.TokenParts) { copy(p.Signature[:], ed25519.Sign(k.Private, p.Claims)) })
	refused(t, "unknown key", text, wire.Unauthenticated, ring(other))
	refused(t, "another server's token", mint(t, other, claims(wire.RunnerToken)), wire.Unauthenticated, ring(k))
	// A line break inside base64 is passed over by decoders: it would be a
	// second spelling of the same token.
	for _, nl := range []string{"\n", "\r\n"} {
		refused(t, "line break, checksum right", checked(text[:30]+nl+text[30:len(text)-6]), wire.Unauthenticated, ring(k))
	}
	// Spare bits of the last digit, and padding.
	body := strings.TrimPrefix(text[:len(text)-6], "wprun_")
	if raw, err := base64.RawURLEncoding.DecodeString(body); err != nil || len(raw)%3 == 0 {
		t.Fatalf("the token's length leaves no spare bits: %v", err)
	}
	last := body[len(body)-1]
	for d := last + 1; d <= last+3; d++ {
		refused(t, "spare bits", checked("wprun_"+body[:len(body)-1]+string(rune(d))), wire.Unauthenticated, ring(k))
	}
	refused(t, "padding", checked("wprun_"+body+"="), wire.Unauthenticated, ring(k))
}

func TestClock(t *testing.T) {
	k := token.NewKey(now)
	for _, c := range []struct {
		name           string
		issued, expiry time.Duration // from now
		kind           wire.Kind
		says           string
	}{
		{"just made", 0, time.Hour, "", ""},
		{"issued 59 s from now", 59 * time.Second, time.Hour, "", ""},
		{"issued 60 s from now", time.Minute, time.Hour, "", ""},
		{"issued 61 s from now", 61 * time.Second, time.Hour, wire.Unauthenticated, "clock"},
		{"expires in 1 ns", -time.Hour, 1, "", ""},
		{"expires now", -time.Hour, 0, wire.Expired, "expired at 2030-01-02 03:04:05 UTC"},
		{"expired 1 ns ago", -time.Hour, -1, wire.Expired, "expired at"},
		{"expired long ago", -30 * 24 * time.Hour, -24 * time.Hour, wire.Expired, "expired at 2030-01-01 03:04:05 UTC"},
	} {
		want := claims(wire.RunnerToken)
		want.Issued, want.Expiry = now.Add(c.issued), now.Add(c.expiry)
		got, err := token.Verify(mint(t, k, want), ring(k), now)
		if wire.KindOf(err) != c.kind || err != nil && !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", c.name, err)
		}
		if e, ok := err.(*wire.Error); ok && e.Hint == "" {
			t.Errorf("%s: no hint", c.name)
		}
		if c.kind != wire.Unauthenticated && !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %+v, want %+v", c.name, got, want)
		}
	}
	// Whose key is gone is told that it would not have helped.
	gone := claims(wire.UserToken)
	gone.Issued, gone.Expiry = now.Add(-2*time.Hour), now.Add(-time.Hour)
	if _, err := token.Verify(mint(t, k, gone), ring(), now); wire.KindOf(err) != wire.Unauthenticated || !strings.Contains(err.Error(), "expired at") {
		t.Error(err)
	}
}

// FuzzVerify: nothing but the very texts that were minted is accepted.
func FuzzVerify(f *testing.F) {
	k := token.NewKey(now)
	minted := map[string]bool{}
	for _, kind := range []wire.TokenKind{wire.RunnerToken, wire.UserToken, wire.InviteToken} {
		text := mint(f, k, claims(kind))
		minted[text] = true
		p, err := wire.SplitToken(text)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(p.Kind), p.KeyID[:], p.Claims, p.Signature[:], text)
		f.Add("wpinx_", p.KeyID[:], []byte(`{"serial":1e999}`), p.Signature[:], text[:40])
	}
	f.Fuzz(func(t *testing.T, kind string, id, body, signature []byte, text string) {
		p := wire.TokenParts{Kind: wire.TokenKind(kind), Claims: body}
		copy(p.KeyID[:], id)
		copy(p.Signature[:], signature)
		for _, text := range []string{p.String(), text, checked(text)} {
			c, err := token.Verify(text, func([8]byte) (ed25519.PublicKey, bool) { return k.Public(), true }, now)
			if minted[text] != (err == nil) {
				t.Fatalf("%q: minted %t, yet %v", text, minted[text], err)
			}
			if err != nil && (wire.KindOf(err) != wire.Unauthenticated || !reflect.DeepEqual(c, wire.Claims{})) {
				t.Fatalf("%q: %+v, %v", text, c, err)
			}
		}
	})
}

func BenchmarkMint(b *testing.B) {
	k, c := token.NewKey(now), claims(wire.RunnerToken)
	for b.Loop() {
		if _, err := token.Mint(k, c); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkVerify(b *testing.B) {
	k := token.NewKey(now)
	text, find := mint(b, k, claims(wire.RunnerToken)), ring(k)
	for b.Loop() {
		if _, err := token.Verify(text, find, now); err != nil {
			b.Fatal(err)
		}
	}
}
