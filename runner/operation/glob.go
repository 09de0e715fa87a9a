package operation

import "strings"

// glob is a pattern for one name: bytes, "?", "*" and "[…]", as in ignore
// files.
type glob []token

type token struct {
	kind tokenKind
	lit  byte
	set  *[256]bool
}

type tokenKind uint8

const (
	tokenByte tokenKind = iota
	tokenAny            // one byte
	tokenStar           // any number of bytes
	tokenSet            // one byte of a set
)

// match compares from the front and, where it fails, lets the last star
// passed take one byte more.
func (g glob) match(name string) bool {
	p, n := 0, 0
	backP, backN := -1, 0
	for n < len(name) {
		switch {
		case p < len(g) && g[p].kind == tokenStar:
			p++
			backP, backN = p, n
		case p < len(g) && g[p].takes(name[n]):
			p++
			n++
		case backP >= 0:
			backN++
			p, n = backP, backN
		default:
			return false
		}
	}
	for p < len(g) && g[p].kind == tokenStar {
		p++
	}
	return p == len(g)
}

func (t *token) takes(c byte) bool {
	switch t.kind {
	case tokenByte:
		return t.lit == c
	case tokenAny:
		return true
	case tokenSet:
		return t.set[c]
	}
	return false
}

// parseGlob reports false for a pattern that can match nothing: an open
// bracket, a backslash at the end.
func parseGlob(s string) (glob, bool) {
	var g glob
	for i := 0; i < len(s); i++ {
		switch s[i] {
		case '\\':
			if i++; i == len(s) {
				return nil, false
			}
			g = append(g, token{lit: s[i]})
		case '?':
			g = append(g, token{kind: tokenAny})
		case '*':
			if len(g) == 0 || g[len(g)-1].kind != tokenStar {
				g = append(g, token{kind: tokenStar})
			}
		case '[':
			set, n := parseSet(s[i:])
			if n == 0 {
				return nil, false
			}
			g = append(g, token{kind: tokenSet, set: set})
			i += n - 1
		default:
			g = append(g, token{lit: s[i]})
		}
	}
	return g, true
}

// parseSet reads "[…]" and returns how long it was, 0 where it has no end.
func parseSet(s string) (*[256]bool, int) {
	var set [256]bool
	i, negate := 1, false
	if i < len(s) && (s[i] == '!' || s[i] == '^') {
		negate = true
		i++
	}
	for first := true; ; first = false {
		if i >= len(s) {
			return nil, 0
		}
		if s[i] == ']' && !first {
			break
		}
		if strings.HasPrefix(s[i:], "[:") {
			if n := strings.Index(s[i+2:], ":]"); n >= 0 {
				in, ok := classes[s[i+2:i+2+n]]
				if !ok {
					return nil, 0
				}
				for c := range set {
					set[c] = set[c] || c < 128 && in(byte(c))
				}
				i += n + 4
				continue
			}
		}
		low, n := setByte(s[i:])
		if n == 0 {
			return nil, 0
		}
		i += n
		high := low
		if i+1 < len(s) && s[i] == '-' && s[i+1] != ']' {
			if high, n = setByte(s[i+1:]); n == 0 {
				return nil, 0
			}
			i += 1 + n
		}
		for c := int(low); c <= int(high); c++ {
			set[c] = true
		}
	}
	if negate {
		for c := range set {
			set[c] = !set[c]
		}
	}
	return &set, i + 1
}

// setByte is the byte at the beginning of s and how much of s it is.
func setByte(s string) (byte, int) {
	if s[0] != '\\' {
		return s[0], 1
	}
	if len(s) == 1 {
		return 0, 0
	}
	return s[1], 2
}

// classes are the named sets of bytes.
var classes = map[string]func(c byte) bool{
	"alnum":  isAlnum,
	"alpha":  func(c byte) bool { return isAlnum(c) && c > '9' },
	"blank":  func(c byte) bool { return c == ' ' || c == '\t' },
	"cntrl":  func(c byte) bool { return c < ' ' || c == 127 },
	"digit":  func(c byte) bool { return c >= '0' && c <= '9' },
	"graph":  func(c byte) bool { return c > ' ' && c < 127 },
	"lower":  func(c byte) bool { return c >= 'a' && c <= 'z' },
	"print":  func(c byte) bool { return c >= ' ' && c < 127 },
	"punct":  func(c byte) bool { return c > ' ' && c < 127 && !isAlnum(c) },
	"space":  func(c byte) bool { return c == ' ' || c >= '\t' && c <= '\r' },
	"upper":  func(c byte) bool { return c >= 'A' && c <= 'Z' },
	"xdigit": func(c byte) bool { return c >= '0' && c <= '9' || c|32 >= 'a' && c|32 <= 'f' },
}
