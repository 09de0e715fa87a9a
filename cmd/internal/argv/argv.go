// Package argv makes the older way of writing flags mean the same as the
// usual one: scripts written for Waypoint say "-json" and "-id=x" where the
// parser wants "--json" and "--id=x".
//
// It knows nothing of commands. It only turns a word that is a single dash
// and the name of a known long flag into two dashes, and "-a=web" into the
// long form of the short flag -a; everything else, and everything behind a
// "--", is left as it is. And it finds what is given to certain flags, before
// there is a grammar.
package argv

import (
	"slices"
	"strings"
)

// Flags are the names a command line may use: of long flags without dashes
// ("json", "no-local"), and of short flags with the long one they stand for.
type Flags struct {
	Long  map[string]bool
	Short map[string]string
}

// Rewrite returns args with every single-dash long flag in its double-dash
// form. It never changes args itself.
func (f Flags) Rewrite(args []string) []string {
	out := make([]string, 0, len(args))
	for i, arg := range args {
		if arg == "--" {
			return append(out, args[i:]...)
		}
		out = append(out, f.word(arg))
	}
	return out
}

func (f Flags) word(arg string) string {
	if len(arg) < 2 || arg[0] != '-' || arg[1] == '-' {
		return arg
	}
	name, value, assigned := strings.Cut(arg[1:], "=")
	if len(name) > 1 && f.Long[name] {
		return "-" + arg
	}
	if long := f.Short[name]; assigned && long != "" {
		return "--" + long + "=" + value
	}
	return arg
}

// Split cuts args at the first "--": what is before it, what is behind it,
// and whether there is one.
func Split(args []string) (before, behind []string, found bool) {
	for i, arg := range args {
		if arg == "--" {
			return args[:i], args[i+1:], true
		}
	}
	return args, nil, false
}

// Values is what words before a "--" give to the long flags of these names, in
// every way to write them. Where the grammar would find no value, it may find
// one too many, never one too few. Each shares the memory of its word.
func Values(args []string, names ...string) []string {
	var values []string
	before, _, _ := Split(args)
	for i, arg := range before {
		name, value, assigned := strings.Cut(arg, "=")
		dashless := strings.TrimPrefix(strings.TrimPrefix(name, "-"), "-")
		switch {
		case dashless == name || !slices.Contains(names, dashless):
		case assigned:
			values = append(values, value)
		case i+1 < len(before):
			values = append(values, before[i+1])
		}
	}
	return values
}
