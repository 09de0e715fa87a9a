package main

import (
	"slices"
	"strings"
	"testing"
)

// shellCommands are the simple commands of a line for a shell, each as its
// words, without redirections. Substitutions are commands of their own, and
// in the word a single letter. It knows what examples need: quotes, pipes,
// lists, groups, comments.
func shellCommands(line string) [][]string {
	p := &shellParser{rest: []rune(line)}
	p.list(0)
	return p.commands
}

type shellParser struct {
	rest     []rune
	commands [][]string
}

func (p *shellParser) next() rune {
	r := p.rest[0]
	p.rest = p.rest[1:]
	return r
}

// list reads commands up to the end, or to the rune that ends it.
func (p *shellParser) list(end rune) {
	var words []string
	var word strings.Builder
	begun, skip := false, false
	endWord := func() {
		if begun && !skip {
			words = append(words, word.String())
		}
		if begun {
			skip = false
		}
		word.Reset()
		begun = false
	}
	endCommand := func() {
		endWord()
		if len(words) > 0 {
			p.commands = append(p.commands, words)
		}
		words, skip = nil, false
	}
	for len(p.rest) > 0 {
		switch r := p.next(); {
		case end != 0 && r == end:
			endCommand()
			return
		case r == ' ' || r == '\t':
			endWord()
		case r == '#' && !begun:
			p.rest = nil
		case r == '|' || r == '&' || r == ';' || r == '\n':
			endCommand()
		case r == '(' && !begun:
			p.list(')')
		case r == '<' && len(p.rest) > 0 && p.rest[0] == '(':
			p.next()
			p.list(')')
			word.WriteByte('x')
			begun = true
		case r == '<' || r == '>':
			if strings.Trim(word.String(), "0123456789") == "" {
				word.Reset() // of a file descriptor
				begun = false
			}
			endWord()
			for len(p.rest) > 0 && (p.rest[0] == '>' || p.rest[0] == '&') {
				p.next()
			}
			skip = true
		case r == '\'':
			begun = true
			for len(p.rest) > 0 {
				if r := p.next(); r != '\'' {
					word.WriteRune(r)
					continue
				}
				break
			}
		case r == '"':
			begun = true
			p.quoted(&word)
		case r == '\\' && len(p.rest) > 0:
			begun = true
			word.WriteRune(p.next())
		case r == '$' && len(p.rest) > 0 && p.rest[0] == '(':
			p.next()
			p.list(')')
			word.WriteByte('x')
			begun = true
		default:
			word.WriteRune(r)
			begun = true
		}
	}
	endCommand()
}

// quoted reads up to the closing double quote.
func (p *shellParser) quoted(word *strings.Builder) {
	for len(p.rest) > 0 {
		switch r := p.next(); {
		case r == '"':
			return
		case r == '\\' && len(p.rest) > 0 && strings.ContainsRune("$`\"\\\n", p.rest[0]):
			word.WriteRune(p.next())
		case r == '$' && len(p.rest) > 0 && p.rest[0] == '(':
			p.next()
			p.list(')')
			word.WriteByte('x')
		default:
			word.WriteRune(r)
		}
	}
}

func TestShellCommands(t *testing.T) {
	for line, want := range map[string][][]string{
		``:                          nil,
		`a b  c`:                    {{"a", "b", "c"}},
		`a 'b c' "d \"e\" $f" \ g`:  {{"a", "b c", `d "e" $f`, " g"}},
		`a '' "" b`:                 {{"a", "", "", "b"}},
		`a | b && c; d & e || f`:    {{"a"}, {"b"}, {"c"}, {"d"}, {"e"}, {"f"}},
		`a > out 2>&1 <in b >> log`: {{"a", "b"}},
		`a b#c # d`:                 {{"a", "b#c"}},
		`a "$(b 'c)' )" d`:          {{"b", "c)"}, {"a", "x", "d"}},
		`a <(b c) (d)`:              {{"b", "c"}, {"d"}, {"a", "x"}},
		`a 'b | c'"'"d`:             {{"a", "b | c'd"}},
	} {
		got := shellCommands(line)
		if !slices.EqualFunc(got, want, slices.Equal) {
			t.Errorf("%s: %q, want %q", line, got, want)
		}
	}
}
