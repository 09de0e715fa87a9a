package wire

import (
	"bytes"
	"strings"
	"testing"
)

func testToken() TokenParts {
	p := TokenParts{Kind: RunnerToken, KeyID: [8]byte{1, 2, 3, 4, 5, 6, 7, 8}, Claims: []byte(`{"serial":7,"id":"r1","labels":{}}`)}
	copy(p.Signature[:], bytes.Repeat([]byte{9}, 64))
	return p
}

func TestTokenText(t *testing.T) {
	p := testToken()
	text := p.String()
	again, err := SplitToken(text)
	if err != nil || again.String() != text || !bytes.Equal(again.Claims, p.Claims) || again.KeyID != p.KeyID || again.Signature != p.Signature {
		t.Fatalf("SplitToken(%q) = %+v, %v", text, again, err)
	}
	c, err := ReadToken(text)
	if err != nil || c.Kind != RunnerToken || c.Serial != 7 || c.ID != "r1" || c.Labels == nil || len(c.Labels) != 0 {
		t.Errorf("ReadToken = %+v, %v", c, err)
	}
}

func TestTokenMistakes(t *testing.T) {
	text := testToken().String()
	for i := range text {
		for _, c := range []byte{'A', 'a', '_', ' ', text[i] ^ 1} {
			wrong := text[:i] + string(rune(c)) + text[i+1:]
			if wrong == text {
				continue
			}
			if _, err := SplitToken(wrong); KindOf(err) != Unauthenticated {
				t.Fatalf("byte %d as %q: %v", i, c, err)
			}
		}
		if _, err := SplitToken(text[:i]); KindOf(err) != Unauthenticated {
			t.Fatalf("cut off at %d: %v", i, err)
		}
	}
	for _, wrong := range []string{"", "wprun_", "hunter2", text + "0", " " + text, "wpusr_" + text[len("wprun_"):], "wprun_" + strings.Repeat("A", MaxToken)} {
		_, err := SplitToken(wrong)
		if KindOf(err) != Unauthenticated {
			t.Errorf("SplitToken(%.20q): %v", wrong, err)
		} else if len(wrong) > 10 && strings.Contains(err.Error(), wrong[6:]) {
			t.Errorf("the error shows the token: %v", err)
		}
	}
}

// Decoders of base64 pass over line breaks.
func TestTokenHasOneSpelling(t *testing.T) {
	text := testToken().String()
	for _, nl := range []string{"\n", "\r", "\r\n"} {
		body := text[:20] + nl + text[20:len(text)-checksumSize]
		if _, err := SplitToken(body + checksum(body)); KindOf(err) != Unauthenticated {
			t.Errorf("%q: %v", nl, err)
		}
	}
}

// A text that is taken apart is the text that is put together: no token has
// two spellings.
func FuzzSplitToken(f *testing.F) {
	f.Add(testToken().String())
	f.Add("wpusr_")
	f.Add(TokenParts{Kind: InviteToken, Claims: []byte(`{"serial":1,"user":"ada"}`)}.String())
	f.Add("wprun_AAAA000000")
	f.Fuzz(func(t *testing.T, text string) {
		p, err := SplitToken(text)
		if err != nil {
			if KindOf(err) != Unauthenticated {
				t.Fatalf("error of kind %s", KindOf(err))
			}
			return
		}
		if again := p.String(); again != text {
			t.Fatalf("%q came back as %q", text, again)
		}
		p.ReadClaims()
	})
}
