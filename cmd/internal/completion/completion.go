// Package completion makes scripts for bash, zsh and fish, of a command line's
// own model, that complete its words.
//
// A script has the whole grammar in it: the commands with their aliases, their
// flags and which of them take a value, and what completes a value. It works
// the same way in each shell. It goes through the words before the cursor to
// find the command they name, whether a flag waits for its value, and how many
// arguments there are; then it offers what can come next. Behind a "--" that
// is a command, with its own completion where the shell has one.
//
// Ids are not in the grammar. They are asked for of the program itself
// ("waypoint completion jobs"), with the flags from the line that say which
// server is meant; the program is quick and silent about it.
package completion

import (
	"fmt"
	"slices"
	"strings"

	"github.com/alecthomas/kong"
)

// Values is what completes a value: words, or one of the kinds below.
type Values string

const (
	Files       Values = "@files"
	Directories Values = "@directories"
	Nothing     Values = "@nothing"

	// What the program is asked for, by the name behind the @.
	Runners  Values = "@runners"
	Jobs     Values = "@jobs"
	Contexts Values = "@contexts"
)

// Words are values that are known beforehand.
func Words(words ...string) Values { return Values(strings.Join(words, " ")) }

// Completer is what a script is made of.
type Completer struct {
	App *kong.Application

	// Values are what completes values that are neither words of an enum nor,
	// by their placeholders, files or directories. The key is the command's
	// words and the flag, or the argument's name: "job list --state",
	// "job inspect id"; without a command it is any's.
	Values map[string]Values

	// Server are the flags that say which server is meant.
	Server []string
}

// Shells are those there are scripts for.
var Shells = []string{"bash", "zsh", "fish"}

// Script is the script for a shell.
func (c *Completer) Script(shell string) (string, error) {
	g := c.grammar()
	for key := range c.Values {
		if !g.used[key] {
			return "", fmt.Errorf("make completion: no value is %q", key)
		}
	}
	switch shell {
	case "bash":
		return g.bash(), nil
	case "zsh":
		return g.zsh(), nil
	case "fish":
		return g.fish(), nil
	}
	return "", fmt.Errorf("make completion: no script for %q", shell)
}

// grammar is the model as the scripts need it.
type grammar struct {
	name     string
	commands []command
	global   []flag
	server   []string
	used     map[string]bool // keys of Completer.Values
}

type command struct {
	path  string // its words
	below []word
	flags []flag
	args  []Values // of its arguments; the last one's again where it may be repeated
	more  bool
	words bool // a command stands behind its --
}

// word is a command below another one, by one of its names.
type word struct{ text, means, help string }

type flag struct {
	names  []string // as typed, with their dashes
	help   string
	values Values // "" where it has none
}

func (c *Completer) grammar() *grammar {
	g := &grammar{name: c.App.Name, used: map[string]bool{}}
	for _, f := range c.App.Flags {
		if !f.Hidden {
			g.global = append(g.global, c.flag(g, "", f))
		}
	}
	for _, name := range c.Server {
		g.server = append(g.server, "--"+name)
	}
	var visit func(n *kong.Node, path []string)
	visit = func(n *kong.Node, path []string) {
		at := command{path: strings.Join(path, " ")}
		flags, args := n.Flags, n.Positional
		if n.DefaultCmd != nil { // its words are this command's
			flags = append(flags[:len(flags):len(flags)], n.DefaultCmd.Flags...)
			args = n.DefaultCmd.Positional
		}
		if n.Parent != nil {
			for _, f := range flags {
				if !f.Hidden {
					at.flags = append(at.flags, c.flag(g, at.path, f))
				}
			}
		}
		for _, a := range args {
			if a.Name == "command" {
				at.words = true
				continue
			}
			at.args = append(at.args, c.value(g, at.path, a.Name, a, strings.ToUpper(a.Name)))
			at.more = a.IsCumulative()
		}
		var children []*kong.Node
		for _, child := range n.Children {
			if child.Hidden {
				continue
			}
			children = append(children, child)
			for _, name := range append([]string{child.Name}, child.Aliases...) {
				at.below = append(at.below, word{name, child.Name, child.Help})
			}
		}
		g.commands = append(g.commands, at)
		for _, child := range children {
			visit(child, append(slices.Clone(path), child.Name))
		}
	}
	visit(c.App.Node, nil)
	return g
}

func (c *Completer) flag(g *grammar, path string, f *kong.Flag) flag {
	names := []string{"--" + f.Name}
	if f.Tag.Negatable != "" {
		names = append(names, "--no-"+f.Name)
	}
	if f.Short != 0 {
		names = append(names, "-"+string(f.Short))
	}
	out := flag{names: names, help: f.Help}
	if !f.IsBool() && !f.IsCounter() {
		out.values = c.value(g, path, "--"+f.Name, f.Value, f.FormatPlaceHolder())
	}
	return out
}

// value is what completes a flag's value or an argument.
func (c *Completer) value(g *grammar, path, name string, v *kong.Value, placeholder string) Values {
	for _, key := range []string{strings.TrimSpace(path + " " + name), name} {
		if values := c.Values[key]; values != "" {
			g.used[key] = true
			return values
		}
	}
	switch {
	case v.Enum != "":
		return Words(v.EnumSlice()...)
	case placeholder == "FILE":
		return Files
	case placeholder == "DIR":
		return Directories
	}
	return Nothing
}

// quote makes one word of a string for bash and zsh.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// summary is the first sentence of a help text, for one line.
func summary(help string) string {
	help, _, _ = strings.Cut(help, ": waypoint ")
	if i := strings.Index(help, ". "); i >= 0 {
		help = help[:i+1]
	}
	return strings.TrimSuffix(strings.Join(strings.Fields(help), " "), ".")
}

// script is a script that grows.
type script struct{ strings.Builder }

func (s *script) line(format string, args ...any) { fmt.Fprintf(s, format+"\n", args...) }

// heading says what a script is.
func (g *grammar) heading(s *script, first, shell string) {
	s.line("%s", first)
	s.line("# Completion of %s for %s, made by: %s completion %s", g.name, shell, g.name, shell)
}
