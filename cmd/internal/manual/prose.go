package manual

import (
	"fmt"
	"strings"
)

// prose is a file of fragments by the names of their sections.
type prose map[string]fragment

// fragment is the lines of a section.
type fragment []string

func parseProse(source string) (prose, error) {
	p := prose{}
	name := ""
	for i, line := range strings.Split(strings.TrimRight(source, "\n"), "\n") {
		line = strings.TrimRight(line, " \t")
		if heading, ok := strings.CutPrefix(line, ".Sh "); ok {
			name = heading
			if _, twice := p[name]; twice {
				return nil, fmt.Errorf("line %d: section %s is there twice", i+1, name)
			}
			p[name] = fragment{}
			continue
		}
		switch {
		case strings.HasPrefix(line, `.\"`):
		case name != "":
			p[name] = append(p[name], line)
		case line != "":
			return nil, fmt.Errorf("line %d: it belongs to no section", i+1)
		}
	}
	for name, f := range p {
		p[name] = f.trim()
	}
	return p, nil
}

// trim takes empty lines from the end.
func (f fragment) trim() fragment {
	for len(f) > 0 && f[len(f)-1] == "" {
		f = f[:len(f)-1]
	}
	return f
}

// words are all words of a fragment.
func (f fragment) words() []string { return strings.Fields(strings.Join(f, " ")) }

// display begins a line that is shown as it is.
const display = "    "

// render makes mdoc of a fragment.
func (f fragment) render() []string {
	f = f.trim()
	var lines, plain []string
	flush := func() {
		lines = append(lines, text(strings.Join(plain, " "))...)
		plain = nil
	}
	for i := 0; i < len(f); i++ {
		switch line := f[i]; {
		case strings.HasPrefix(line, display):
			flush()
			// What follows a paragraph's break needs none before it.
			if n := len(lines); n > 0 && lines[n-1] == ".Pp" {
				lines = lines[:n-1]
			}
			lines = append(lines, ".Bd -literal -offset indent")
			for ; i < len(f) && (strings.HasPrefix(f[i], display) || f[i] == "" && i+1 < len(f) && strings.HasPrefix(f[i+1], display)); i++ {
				lines = append(lines, literal(strings.TrimPrefix(f[i], display)))
			}
			i--
			lines = append(lines, ".Ed")
		case line == "":
			flush()
			if n := len(lines); n > 0 && i+1 < len(f) && !strings.HasPrefix(f[i+1], ".") {
				lines = append(lines, ".Pp")
			}
		case strings.HasPrefix(line, "."):
			flush()
			lines = append(lines, line)
		default:
			plain = append(plain, line)
		}
	}
	flush()
	return lines
}
