package manual

import (
	"fmt"
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"
)

// What words of plain text are marked up as.
var (
	longFlag       = regexp.MustCompile(`^--([a-z][a-z0-9-]*)(?:=([A-Za-z0-9]+))?$`)
	shortFlag      = regexp.MustCompile(`^-([a-z])$`)
	variable       = regexp.MustCompile(`\$([A-Z][A-Z0-9_]*)`)
	crossReference = regexp.MustCompile(`^([a-z][a-z0-9._-]*)\(([1-9])\)$`)
	path           = regexp.MustCompile(`^(?:/|~/|\$[A-Z_]+/)[A-Za-z0-9._/<>*-]+$`)
	placeholder    = regexp.MustCompile(`^<([A-Za-z0-9=/._-]+)>$`)
)

// lineWidth is what style allows of text, with room for a long word's escapes.
const lineWidth = 76

// text is plain text as lines of mdoc: filled, a new line for each sentence,
// and a macro for each word that is a --flag, a $VARIABLE, a page(1), a
// /path, an <ARGUMENT> or `quoted`.
func text(s string) []string {
	var lines []string
	var fill []string
	width := 0
	flush := func() {
		if len(fill) > 0 {
			lines = append(lines, protect(strings.Join(fill, " ")))
		}
		fill, width = nil, 0
	}
	words := splitWords(s)
	for i, w := range words {
		if macro, ok := markUp(w); ok {
			flush()
			lines = append(lines, macro)
			continue
		}
		w = escape(w)
		if width+1+len(w) > lineWidth {
			flush()
		}
		fill = append(fill, w)
		width += len(w) + 1
		if i+1 < len(words) && endsSentence(words[i], words[i+1]) {
			flush()
		}
	}
	flush()
	return lines
}

// splitWords splits at blanks that are not between backquotes.
func splitWords(s string) []string {
	var words []string
	var w strings.Builder
	quoted := false
	for _, r := range s {
		if unicode.IsSpace(r) && !quoted {
			if w.Len() > 0 {
				words = append(words, w.String())
				w.Reset()
			}
			continue
		}
		if r == '`' {
			quoted = !quoted
		}
		w.WriteRune(r)
	}
	if w.Len() > 0 {
		words = append(words, w.String())
	}
	return words
}

func endsSentence(word, next string) bool {
	word = strings.TrimRight(word, `)"'`)
	if word == "" || !strings.ContainsRune(".?!", rune(word[len(word)-1])) {
		return false
	}
	r, _ := utf8.DecodeRuneInString(next)
	return unicode.IsUpper(r) || strings.ContainsRune("-$`</(\"", r)
}

// markUp is the macro line of a word that is more than text.
func markUp(word string) (string, bool) {
	core := strings.TrimLeft(word, "(")
	before := word[:len(word)-len(core)]
	core = strings.TrimRight(core, ".,;:?!")
	if strings.Count(core, ")") > strings.Count(core, "(") {
		core = strings.TrimRight(core, ")")
	}
	after := word[len(before)+len(core):]
	macro := ""
	if found := longFlag.FindStringSubmatch(core); found != nil {
		macro = "Fl " + marks(before) + argument("-"+found[1])
		if found[2] != "" {
			macro += " Ns = Ns Ar " + argument(found[2])
		}
	} else if found := shortFlag.FindStringSubmatch(core); found != nil {
		macro = "Fl " + marks(before) + argument(found[1])
	} else if found := crossReference.FindStringSubmatch(core); found != nil {
		macro = "Xr " + marks(before) + found[1] + " " + found[2]
	} else if found := placeholder.FindStringSubmatch(core); found != nil {
		macro = "Ar " + marks(before) + argument(found[1])
	} else if found := variable.FindStringSubmatch(core); found != nil && found[0] == core {
		macro = "Ev " + marks(before) + argument(found[1])
	} else if path.MatchString(core) {
		macro = "Pa " + marks(before) + argument(core)
	} else if n := len(core); n > 2 && core[0] == '`' && core[n-1] == '`' && strings.Count(core, "`") == 2 {
		macro = "Ql " + marks(before) + argument(core[1:n-1])
	}
	if macro == "" {
		return "", false
	}
	for _, r := range after {
		macro += " " + string(r)
	}
	return "." + macro, true
}

// marks are punctuation marks as arguments of a macro.
func marks(s string) string {
	var b strings.Builder
	for _, r := range s {
		b.WriteString(string(r) + " ")
	}
	return b.String()
}

// escape makes text of a string without line breaks: nothing in it is taken
// for an escape, and what is typed is shown as it is typed.
func escape(s string) string {
	var b strings.Builder
	for i, r := range s {
		switch {
		case r == '\\':
			b.WriteString(`\(rs`)
		case r == '-' && (i == 0 || s[i-1] == '-' || strings.HasPrefix(s, "-")):
			b.WriteString(`\-`)
		case r == '`':
			b.WriteString(`\(ga`)
		case r == '^':
			b.WriteString(`\(ha`)
		case r == '~':
			b.WriteString(`\(ti`)
		case r < ' ' || r == 0x7f || r == utf8.RuneError:
			b.WriteByte(' ')
		case r > 0x7e:
			fmt.Fprintf(&b, `\[u%04X]`, r)
		default:
			b.WriteRune(r)
		}
	}
	return b.String()
}

// literal is a line of a display, where each character may be typed by
// somebody who reads it.
func literal(s string) string {
	s = escape(s)
	s = strings.ReplaceAll(strings.ReplaceAll(s, `\-`, "-"), "-", `\-`)
	return protect(strings.ReplaceAll(s, "'", `\(aq`))
}

// protect keeps a line of text from being a request.
func protect(line string) string {
	if strings.HasPrefix(line, ".") || strings.HasPrefix(line, "'") {
		return `\&` + line
	}
	return line
}

// callable looks like the name of a macro, which would be called.
var callable = regexp.MustCompile(`^(?:[A-Z][a-z]{1,2}|%[A-Z]|D1|[.,:;()\[\]?!|])$`)

// argument is a string as one argument of a macro.
func argument(s string) string {
	if s == "" {
		return `""`
	}
	if callable.MatchString(s) {
		return `\&` + s
	}
	s = strings.ReplaceAll(literal(s), `"`, `\(dq`)
	if strings.ContainsAny(s, " ") {
		return `"` + s + `"`
	}
	return s
}
