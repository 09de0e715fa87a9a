package operation

import (
	"io"
	"os"
	"strings"
	"syscall"
)

// ignoreFiles are read in every directory; what the later one says wins.
var ignoreFiles = []string{".gitignore", ".waypointignore"}

// rule is one line of an ignore file, with git's meaning.
type rule struct {
	depth    int       // of the directory whose file it is from: 0 is the root
	segments []segment // of the pattern between slashes
	anywhere bool      // one segment that is compared with names at any depth
	dirOnly  bool
	include  bool // begins with "!"
}

// segment is a pattern for one name, or "**" for any number of them.
type segment struct {
	deep bool
	glob glob
}

// rules are in the order of their lines: the last one that matches decides.
type rules []rule

// ignored reports whether a path, given as names from the root, is left out.
// It does not ask about the directories above it: they have been asked about
// before, and what is in one that was left out is never looked at.
func (rs rules) ignored(names []string, dir bool) bool {
	for i := len(rs) - 1; i >= 0; i-- {
		if rs[i].match(names, dir) {
			return !rs[i].include
		}
	}
	return false
}

func (r *rule) match(names []string, dir bool) bool {
	if r.dirOnly && !dir {
		return false
	}
	if r.anywhere {
		return r.segments[0].glob.match(names[len(names)-1])
	}
	return matchSegments(r.segments, names[r.depth:])
}

// matchSegments compares from the front and, where it fails, lets the last
// "**" passed take one name more: no other choice needs to be tried again.
func matchSegments(pattern []segment, names []string) bool {
	p, n := 0, 0
	backP, backN := -1, 0
	for n < len(names) {
		switch {
		case p < len(pattern) && pattern[p].deep:
			if p == len(pattern)-1 {
				return true // "a/**": all that is inside, and names[n] is
			}
			p++
			backP, backN = p, n
		case p < len(pattern) && pattern[p].glob.match(names[n]):
			p++
			n++
		case backP >= 0:
			backN++
			p, n = backP, backN
		default:
			return false
		}
	}
	return p == len(pattern)
}

// parseRules reads the text of an ignore file in a directory of that depth.
func parseRules(text string, depth int) rules {
	var rs rules
	text = strings.TrimPrefix(text, "\uFEFF")
	for line := range strings.SplitSeq(text, "\n") {
		if r, ok := parseRule(strings.TrimSuffix(line, "\r"), depth); ok {
			rs = append(rs, r)
		}
	}
	return rs
}

func parseRule(line string, depth int) (rule, bool) {
	r := rule{depth: depth}
	if strings.HasPrefix(line, "#") {
		return r, false
	}
	line = trimBlanks(line)
	if line, r.include = strings.CutPrefix(line, "!"); line == "" {
		return r, false
	}
	line, r.dirOnly = strings.CutSuffix(line, "/")
	if line == "" {
		return r, false
	}
	parts := strings.Split(strings.ReplaceAll(line, `\/`, "/"), "/")
	r.anywhere = len(parts) == 1
	if !r.anywhere && parts[0] == "" {
		parts = parts[1:] // a leading slash only ties the pattern to its directory
	}
	for _, part := range parts {
		if part == "" {
			return r, false // no name is empty: matches nothing
		}
		if !r.anywhere && strings.Trim(part, "*") == "" && len(part) > 1 {
			r.segments = append(r.segments, segment{deep: true})
			continue
		}
		g, ok := parseGlob(part)
		if !ok {
			return r, false
		}
		r.segments = append(r.segments, segment{glob: g})
	}
	return r, true
}

// trimBlanks removes trailing blanks that no backslash protects.
func trimBlanks(s string) string {
	end := 0
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '\\' && i+1 < len(s):
			i++
			end = i + 1
		case s[i] != ' ':
			end = i + 1
		}
	}
	return s[:end]
}

// readRules reads the ignore files of a directory. A link in their place
// is not followed, as git does it.
func readRules(root *os.Root, dir string, depth int) (rules, error) {
	var rs rules
	for _, name := range ignoreFiles {
		f, err := root.OpenFile(slashJoin(dir, name), os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
		if err != nil {
			if os.IsNotExist(err) || isLink(root, slashJoin(dir, name)) {
				continue
			}
			return nil, err
		}
		text, err := readRegular(f)
		if err != nil {
			return nil, err
		}
		rs = append(rs, parseRules(text, depth)...)
	}
	return rs, nil
}

func isLink(root *os.Root, name string) bool {
	info, err := root.Lstat(name)
	return err == nil && info.Mode()&os.ModeSymlink != 0
}

// readRegular reads and closes f; anything but a regular file is empty.
func readRegular(f *os.File) (string, error) {
	defer f.Close()
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() {
		return "", err
	}
	b, err := io.ReadAll(f)
	return string(b), err
}
