package operation

import "strings"

// maxDepth is of arrays, tables and names with dots: what they take of memory
// grows with its square, and a file of a megabyte could have it all.
const maxDepth = 64

// tooDeep is the line where a document goes deeper than maxDepth, 0 for none. Of
// what is no TOML it says something, too.
func tooDeep(text string) (line int) {
	line = 1
	nested, dots := 0, 0
	for i := 0; i < len(text); i++ {
		switch text[i] {
		case '\n':
			line++
			dots = 0
		case '#':
			n := strings.IndexByte(text[i:], '\n')
			if n < 0 {
				return 0
			}
			i += n - 1
		case '"', '\'':
			end := endOfString(text, i)
			line += strings.Count(text[i:end], "\n")
			i = end - 1
		case '[', '{':
			nested++
			dots = 0
		case ']', '}':
			nested = max(0, nested-1)
			dots = 0
		case '=', ',':
			dots = 0
		case '.':
			dots++
		}
		if nested > maxDepth || dots > maxDepth {
			return line
		}
	}
	return 0
}

// endOfString is where the string ends that begins at i; one of a line ends with it
// at the latest.
func endOfString(text string, i int) int {
	quote := text[i : i+1]
	long := strings.HasPrefix(text[i:], quote+quote+quote)
	if long {
		quote += quote + quote
	}
	for at := i + len(quote); at < len(text); at++ {
		switch {
		case text[at] == '\\' && quote[0] == '"':
			at++
		case strings.HasPrefix(text[at:], quote):
			at += len(quote)
			for n := 0; long && n < 2 && at < len(text) && text[at] == quote[0]; n++ {
				at++ // one or two quotes more belong to the string
			}
			return at
		case text[at] == '\n' && !long:
			return at
		}
	}
	return len(text)
}
