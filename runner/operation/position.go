package operation

import (
	"fmt"
	"strconv"
	"strings"
)

// positions maps each key of a TOML document, written as a path with the
// indices of arrays ("app[0].build.command"), to the line it is first set on.
type positions map[string]int

// scanPositions finds the keys of a document that is known to be good TOML;
// of anything else it finds some, and it always ends.
func scanPositions(text string) positions {
	s := &keyScanner{text: text, line: 1, found: positions{}, arrays: map[string]int{}}
	var prefix string
	for s.skip(true); s.i < len(s.text); s.skip(true) {
		start := s.i
		if s.peek() == '[' {
			prefix = s.header()
		} else {
			s.pair(prefix)
		}
		if s.i == start {
			s.i++
		}
	}
	return s.found
}

type keyScanner struct {
	text   string
	i      int
	line   int
	found  positions
	arrays map[string]int // [[path]] → how many so far
}

func (s *keyScanner) peek() byte {
	if s.i < len(s.text) {
		return s.text[s.i]
	}
	return 0
}

// skip passes blanks and, with lines, ends of line and comments too.
func (s *keyScanner) skip(lines bool) {
	for ; s.i < len(s.text); s.i++ {
		switch c := s.text[s.i]; {
		case c == ' ' || c == '\t' || c == '\r':
		case c == '\n' && lines:
			s.line++
		case c == '#' && lines:
			n := strings.IndexByte(s.text[s.i:], '\n')
			if n < 0 {
				s.i = len(s.text)
				return
			}
			s.i += n - 1
		default:
			return
		}
	}
}

func (s *keyScanner) set(path string) {
	if _, ok := s.found[path]; !ok {
		s.found[path] = s.line
	}
}

func join(prefix, name string) string {
	if prefix == "" {
		return name
	}
	return prefix + "." + name
}

// header reads [a.b] or [[a.b]] and returns the path of what follows it.
func (s *keyScanner) header() string {
	s.i++
	array := s.peek() == '['
	if array {
		s.i++
	}
	names := s.names()
	path := ""
	for n, name := range names {
		path = join(path, name)
		s.set(path)
		switch count := s.arrays[path]; {
		case array && n == len(names)-1:
			s.arrays[path] = count + 1
			path = fmt.Sprintf("%s[%d]", path, count)
			s.set(path)
		case count > 0:
			path = fmt.Sprintf("%s[%d]", path, count-1)
		}
	}
	for s.peek() == ']' {
		s.i++
	}
	return path
}

// pair reads key = value.
func (s *keyScanner) pair(prefix string) {
	path := prefix
	for _, name := range s.names() {
		path = join(path, name)
		s.set(path)
	}
	if s.peek() != '=' {
		return
	}
	s.i++
	s.value(path)
}

// names reads a dotted key.
func (s *keyScanner) names() []string {
	var names []string
	for {
		s.skip(false)
		switch s.peek() {
		case '"', '\'':
			start := s.i
			s.quoted()
			raw := s.text[start:s.i]
			if name, err := strconv.Unquote(raw); err == nil && raw[0] == '"' {
				names = append(names, name)
			} else {
				names = append(names, strings.Trim(raw, raw[:1]))
			}
		default:
			start := s.i
			for c := s.peek(); isAlnum(c) || c == '_' || c == '-'; c = s.peek() {
				s.i++
			}
			if s.i == start {
				return names
			}
			names = append(names, s.text[start:s.i])
		}
		s.skip(false)
		if s.peek() != '.' {
			return names
		}
		s.i++
	}
}

func (s *keyScanner) value(path string) {
	s.skip(false)
	switch s.peek() {
	case '"', '\'':
		s.quoted()
	case '[':
		s.i++
		for n := 0; ; n++ {
			if s.skip(true); s.i >= len(s.text) {
				return
			}
			if s.peek() == ']' {
				s.i++
				return
			}
			start, element := s.i, fmt.Sprintf("%s[%d]", path, n)
			s.set(element)
			s.value(element)
			s.comma(start)
		}
	case '{':
		s.i++
		for {
			if s.skip(true); s.i >= len(s.text) {
				return
			}
			if s.peek() == '}' {
				s.i++
				return
			}
			start := s.i
			s.pair(path)
			s.comma(start)
		}
	default:
		if n := strings.IndexAny(s.text[s.i:], ",]}#\n"); n >= 0 {
			s.i += n
		} else {
			s.i = len(s.text)
		}
	}
}

// comma passes one, and makes sure that the scanner has moved on from start.
func (s *keyScanner) comma(start int) {
	s.skip(true)
	if s.peek() == ',' || s.i == start {
		s.i++
	}
}

// quoted passes a string of any of the four kinds.
func (s *keyScanner) quoted() {
	quote := s.text[s.i : s.i+1]
	long := strings.HasPrefix(s.text[s.i:], quote+quote+quote)
	if long {
		quote += quote + quote
	}
	s.i += len(quote)
	for s.i < len(s.text) {
		switch {
		case strings.HasPrefix(s.text[s.i:], quote):
			s.i += len(quote)
			for long && s.peek() == quote[0] { // a long string may end with quotes of its own
				s.i++
			}
			return
		case s.text[s.i] == '\\' && quote[0] == '"' && s.i+1 < len(s.text) && s.text[s.i+1] != '\n':
			s.i += 2
		case s.text[s.i] == '\n' && !long:
			return
		default:
			if s.text[s.i] == '\n' {
				s.line++
			}
			s.i++
		}
	}
}
