// Package manual makes manual pages, in mdoc(7), of a command line's own
// model and of prose that people write.
//
// There is one page for each command that is shown, named after its words:
// waypoint-runner-adopt is about `waypoint runner adopt`. Names, options,
// arguments, variables and the commands below come from the model, so they
// cannot differ from what the program does; everything else is in a fragment
// of the page's name, which every page must have.
//
// A fragment is sections in the form of mdoc. Its text is plain: a line that
// does not begin with a dot is filled and marked up by its words (text.go), an
// empty line ends a paragraph, and lines that begin with four blanks are shown
// as they are. Lines that begin with a dot are mdoc's own and left alone. Some
// sections mean more:
//
//   - GLOBAL OPTIONS names the options of every command that matter here:
//     their names, or SERVER for all that choose a server. They are
//     described in the page of the program alone.
//   - EXIT STATUS, FILES and ENVIRONMENT are items of a list. An exit code
//     without a text has the usual one.
//   - SEE ALSO adds to what the page refers to anyway.
//
// The same model and fragments make the same bytes at any time.
package manual

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"

	"github.com/alecthomas/kong"
)

// Manual is what pages are made of.
type Manual struct {
	App     *kong.Application
	Prose   fs.FS                    // NAME.mdoc for each page
	Date    string                   // as mdoc writes dates: November 21, 2026
	Section func(words []string) int // of the manual, for a command's words without the program's
	Exits   map[int]string           // what each exit code usually means
}

// Pages are the texts by file name ("waypoint-run.1").
func (m *Manual) Pages() (map[string]string, error) {
	pages := map[string]string{}
	var failures []error
	Visit(m.App.Node, func(n *kong.Node) {
		text, err := m.page(n)
		if err != nil {
			failures = append(failures, fmt.Errorf("page %s: %w", Name(n), err))
			return
		}
		pages[m.File(n)] = text
	})
	return pages, errors.Join(failures...)
}

// Visit calls f for a command and all commands below it that are shown.
func Visit(n *kong.Node, f func(n *kong.Node)) {
	if n.Hidden {
		return
	}
	f(n)
	for _, child := range n.Children {
		Visit(child, f)
	}
}

// Words are a command's, the program's name not among them.
func Words(n *kong.Node) []string {
	if n.Parent == nil {
		return nil
	}
	return append(Words(n.Parent), n.Name)
}

// Name is that of a command's page.
func Name(n *kong.Node) string {
	if n.Parent == nil {
		return n.Name
	}
	return Name(n.Parent) + "-" + n.Name
}

// File is the name of a command's page as a file.
func (m *Manual) File(n *kong.Node) string {
	return Name(n) + "." + strconv.Itoa(m.Section(Words(n)))
}

// Flags are a command's own that are shown; those of its default command are
// its own to people.
func Flags(n *kong.Node) []*kong.Flag {
	flags := n.Flags
	if n.DefaultCmd != nil {
		flags = append(flags[:len(flags):len(flags)], n.DefaultCmd.Flags...)
	}
	return slices.DeleteFunc(slices.Clone(flags), func(f *kong.Flag) bool { return f.Hidden })
}

// sectionOrder is that of mdoc.
var sectionOrder = []string{
	"NAME", "SYNOPSIS", "DESCRIPTION", "ARGUMENTS", "OPTIONS", "COMMANDS", "ENVIRONMENT", "FILES", "EXIT STATUS", "EXAMPLES", "SEE ALSO", "NOTES",
}

func (m *Manual) page(n *kong.Node) (string, error) {
	file := Name(n) + ".mdoc"
	source, err := fs.ReadFile(m.Prose, file)
	if err != nil {
		return "", fmt.Errorf("read prose: %w", err)
	}
	prose, err := parseProse(string(source))
	if err != nil {
		return "", fmt.Errorf("read %s: %w", file, err)
	}
	for name := range prose {
		if name != globalOptions && !slices.Contains(sectionOrder, name) {
			return "", fmt.Errorf("read %s: there is no section %s", file, name)
		}
	}
	for _, name := range []string{"DESCRIPTION", "EXAMPLES", "EXIT STATUS"} {
		if len(prose[name]) == 0 {
			return "", fmt.Errorf("read %s: the section %s is missing", file, name)
		}
	}
	var b page
	b.line(`.\" Made of the command line and of man/prose/%s by make man.`, file)
	b.line(".Dd %s", m.Date)
	b.line(".Dt %s %d", strings.ToUpper(Name(n)), m.Section(Words(n)))
	b.line(".Os")
	for _, name := range sectionOrder {
		var s page
		if err := m.section(&s, name, n, prose); err != nil {
			return "", fmt.Errorf("section %s: %w", name, err)
		}
		if s.Len() > 0 {
			b.line(".Sh %s", name)
			b.WriteString(s.String())
		}
	}
	return b.String(), nil
}

func (m *Manual) section(s *page, name string, n *kong.Node, prose prose) error {
	switch name {
	case "NAME":
		s.line(".Nm %s", Name(n))
		s.line(".Nd %s", escape(m.summary(n.Help)))
	case "SYNOPSIS":
		m.synopsis(s, n)
	case "ARGUMENTS":
		m.arguments(s, n)
	case "OPTIONS":
		return m.options(s, n, prose[globalOptions])
	case "COMMANDS":
		m.commands(s, n)
	case "ENVIRONMENT":
		m.environment(s, n, prose[name])
	case "FILES":
		list(s, prose[name])
	case "EXIT STATUS":
		return m.exits(s, prose[name])
	case "SEE ALSO":
		return m.seeAlso(s, n, prose[name])
	default:
		s.lines(prose[name].render())
	}
	return nil
}

// summary is a help text as mdoc has the one line about a page.
func (m *Manual) summary(help string) string {
	help, _, _ = strings.Cut(help, "\n")
	help, _, _ = strings.Cut(help, ": "+m.App.Name+" ") // a synopsis, which the page has
	help = strings.TrimSuffix(help, ".")
	if name, rest, ok := strings.Cut(help, " "); ok && strings.EqualFold(name, m.App.Name) {
		return rest
	}
	if len(help) > 1 && help[1] >= 'a' && help[1] <= 'z' || strings.HasPrefix(help, "A ") {
		help = strings.ToLower(help[:1]) + help[1:]
	}
	return help
}

func (m *Manual) synopsis(s *page, n *kong.Node) {
	head := func(words []string) {
		s.line(".Nm %s", argument(m.App.Name))
		if len(words) > 0 {
			s.line(".Cm %s", strings.Join(each(words, argument), " "))
		}
	}
	head(Words(n))
	if n.Parent == nil {
		s.line(".Op Ar option ...")
	}
	if len(n.Children) > 0 && n.DefaultCmd == nil {
		s.line(".Ar command")
		s.line(".Op Ar argument ...")
		return
	}
	for _, f := range Flags(n) {
		words := synopsisOf(f)
		if f.Required {
			s.line(".%s", words)
		} else {
			s.line(".Op %s", words)
		}
		if f.IsCumulative() {
			s.line(".Ar ...")
		}
	}
	for _, a := range positionals(n) {
		switch {
		case behindDashes(a):
			s.line(".Fl -")
			s.line(".Ar CMD")
			s.line(".Op Ar ARG ...")
		case a.Required && a.IsCumulative():
			s.line(".Ar %s ...", argument(argumentName(a)))
		case a.Required:
			s.line(".Ar %s", argument(argumentName(a)))
		case a.IsCumulative():
			s.line(".Op Ar %s ...", argument(argumentName(a)))
		default:
			s.line(".Op Ar %s", argument(argumentName(a)))
		}
	}
	if n.DefaultCmd != nil {
		for _, child := range n.Children {
			if !child.Hidden {
				head(Words(child))
				s.line(".Op Ar option ...")
			}
		}
	}
}

func synopsisOf(f *kong.Flag) string {
	if f.Tag.Negatable != "" {
		return "Fl " + argument("-"+f.Name) + " | Fl " + argument("-no-"+f.Name)
	}
	return "Fl " + argument("-"+f.Name) + value(f)
}

// value is how a flag's value is written behind it.
func value(f *kong.Flag) string {
	if f.IsBool() || f.IsCounter() {
		return ""
	}
	return " Ns = Ns Ar " + argument(f.FormatPlaceHolder())
}

func positionals(n *kong.Node) []*kong.Positional {
	if n.DefaultCmd != nil {
		return n.DefaultCmd.Positional
	}
	return n.Positional
}

// behindDashes reports an argument that is a command of its own, behind a --.
func behindDashes(a *kong.Positional) bool { return a.Name == "command" }

// argumentName is an argument as it is written in a synopsis.
func argumentName(a *kong.Positional) string {
	return strings.ToUpper(a.Name)
}

func (m *Manual) arguments(s *page, n *kong.Node) {
	args := positionals(n)
	if len(args) == 0 {
		return
	}
	s.line(".Bl -tag -width Ds")
	for _, a := range args {
		if behindDashes(a) {
			s.line(".It Fl - Ar CMD Op Ar ARG ...")
		} else {
			s.line(".It Ar %s", argument(argumentName(a)))
		}
		s.lines(text(a.Help))
	}
	s.line(".El")
}

// globalOptions is the pseudo-section of the options of every command that
// matter in one.
const globalOptions = "GLOBAL OPTIONS"

func (m *Manual) options(s *page, n *kong.Node, global fragment) error {
	if flags := Flags(n); len(flags) > 0 {
		s.line(".Bl -tag -width Ds")
		for _, f := range flags {
			s.line(".It %s", heading(f))
			help := f.Help
			if v := f.Tag.Get("from"); f.Tag.Has("from") {
				help = strings.TrimSuffix(help, ".") + " ($" + v + ")."
			}
			s.lines(text(help))
		}
		s.line(".El")
	}
	if n.Parent == nil {
		return nil
	}
	if s.Len() > 0 {
		s.line(".Pp")
	}
	names := global.words()
	if len(names) == 0 {
		s.line("The options of every command are in")
		s.line(".Xr %s %d .", m.App.Name, m.Section(nil))
		return nil
	}
	s.line("Of the options of every command, see")
	s.line(".Xr %s %d ,", m.App.Name, m.Section(nil))
	s.line("these matter here:")
	for i, name := range names {
		end := " ,"
		switch {
		case i == len(names)-1:
			end = " ."
		case i == len(names)-2:
			end = ""
		}
		if i == len(names)-1 && i > 0 {
			s.line("and")
		}
		if name == "SERVER" {
			s.line("those that choose the server and say who asks")
			s.line(`.Pq Fl \-server\-addr , Fl \-context , Fl \-token\-file No and so on%s`, end)
			continue
		}
		if !slices.ContainsFunc(m.App.Flags, func(f *kong.Flag) bool { return f.Name == name }) {
			return fmt.Errorf("there is no option --%s of every command", name)
		}
		s.line(".Fl %s%s", argument("-"+name), end)
	}
	return nil
}

// heading is how a flag begins its description.
func heading(f *kong.Flag) string {
	var names []string
	if f.Short != 0 {
		names = append(names, "Fl "+argument(string(f.Short)))
	}
	names = append(names, "Fl "+argument("-"+f.Name)+value(f))
	if f.Tag.Negatable != "" {
		names = append(names, "Fl "+argument("-no-"+f.Name))
	}
	return strings.Join(names, " , ")
}

func (m *Manual) commands(s *page, n *kong.Node) {
	var shown []*kong.Node
	for _, child := range n.Children {
		if !child.Hidden {
			shown = append(shown, child)
		}
	}
	if len(shown) == 0 {
		return
	}
	s.line(".Bl -tag -width Ds")
	for _, child := range shown {
		s.line(".It Xr %s %d", Name(child), m.Section(Words(child)))
		help, _, _ := strings.Cut(child.Help, ": "+m.App.Name+" ")
		s.lines(text(strings.TrimSuffix(help, ".") + "."))
		if len(child.Aliases) > 0 {
			s.line("Also called")
			for i, alias := range child.Aliases {
				end := " ,"
				if i == len(child.Aliases)-1 {
					end = " ."
				}
				s.line(".Cm %s%s", argument(alias), end)
			}
		}
	}
	s.line(".El")
}

// Variables are what may stand in the environment for a flag.
func Variables(f *kong.Flag) []string {
	var names []string
	if f.Tag.Has("from") {
		names = append(names, f.Tag.Get("from"))
	}
	for _, found := range variable.FindAllStringSubmatch(f.Help, -1) {
		if strings.HasPrefix(found[1], "WAYPOINT_") && !slices.Contains(names, found[1]) {
			names = append(names, found[1])
		}
	}
	return names
}

func (m *Manual) environment(s *page, n *kong.Node, more fragment) {
	s.line(".Bl -tag -width Ds")
	empty := s.Len()
	for _, f := range Flags(n) {
		for _, name := range Variables(f) {
			s.line(".It Ev %s", argument(name))
			s.line("Stands for")
			s.line(".Fl %s", argument("-"+f.Name))
			s.line("where that is not given.")
		}
	}
	s.lines(more.render())
	if s.Len() == empty {
		s.Reset()
		return
	}
	s.line(".El")
}

// list writes a fragment of items as a list.
func list(s *page, items fragment) {
	if len(items) == 0 {
		return
	}
	s.line(".Bl -tag -width Ds")
	s.lines(items.render())
	s.line(".El")
}

func (m *Manual) exits(s *page, f fragment) error {
	s.line(".Bl -tag -width Ds")
	for i, line := range f {
		word, item := strings.CutPrefix(line, ".It ")
		if !item {
			continue
		}
		s.line(".It %s", word)
		end := i + 1
		for end < len(f) && !strings.HasPrefix(f[end], ".It ") {
			end++
		}
		if said := fragment(f[i+1 : end]).render(); len(said) > 0 {
			s.lines(said)
			continue
		}
		code, err := strconv.Atoi(word)
		if err != nil || m.Exits[code] == "" {
			return fmt.Errorf("%q has no usual meaning", word)
		}
		s.lines(text(m.Exits[code]))
	}
	s.line(".El")
	return nil
}

// seeAlso refers to the page above, and to what the fragment names.
func (m *Manual) seeAlso(s *page, n *kong.Node, more fragment) error {
	type reference struct {
		name    string
		section string
	}
	var all []reference
	add := func(n *kong.Node) {
		all = append(all, reference{Name(n), strconv.Itoa(m.Section(Words(n)))})
	}
	if n.Parent != nil {
		add(m.App.Node)
		add(n.Parent)
	}
	for _, word := range more.words() {
		found := crossReference.FindStringSubmatch(strings.TrimSuffix(word, ","))
		if found == nil {
			return fmt.Errorf("%q is no page", word)
		}
		all = append(all, reference{found[1], found[2]})
	}
	slices.SortFunc(all, func(a, b reference) int {
		if a.section != b.section {
			return strings.Compare(a.section, b.section)
		}
		return strings.Compare(a.name, b.name)
	})
	all = slices.Compact(all)
	for i, r := range all {
		end := " ,"
		if i == len(all)-1 {
			end = ""
		}
		s.line(".Xr %s %s%s", r.name, r.section, end)
	}
	return nil
}

// page is a page that grows.
type page struct{ strings.Builder }

func (p *page) line(format string, args ...any) {
	fmt.Fprintf(p, format+"\n", args...)
}

func (p *page) lines(lines []string) {
	for _, l := range lines {
		p.WriteString(l + "\n")
	}
}

func each(words []string, f func(string) string) []string {
	out := make([]string, len(words))
	for i, w := range words {
		out[i] = f(w)
	}
	return out
}
