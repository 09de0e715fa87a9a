package manual

import (
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// unescape is what a formatter makes of text: the other half of escape,
// written down apart from it.
func unescape(t *testing.T, s string) string {
	t.Helper()
	var b strings.Builder
	for len(s) > 0 {
		before, after, found := strings.Cut(s, `\`)
		b.WriteString(before)
		if !found {
			break
		}
		switch {
		case strings.HasPrefix(after, "&"):
			s = after[1:]
		case strings.HasPrefix(after, "-"):
			b.WriteByte('-')
			s = after[1:]
		case strings.HasPrefix(after, "(") && len(after) >= 3:
			special := map[string]string{"rs": `\`, "ga": "`", "ha": "^", "ti": "~", "aq": "'", "dq": `"`}[after[1:3]]
			if special == "" {
				t.Fatalf("unknown escape \\%s", after[:3])
			}
			b.WriteString(special)
			s = after[3:]
		case strings.HasPrefix(after, "[u"):
			code, rest, ok := strings.Cut(after[2:], "]")
			n, err := strconv.ParseInt(code, 16, 32)
			if !ok || err != nil {
				t.Fatalf("bad escape \\%s", after)
			}
			b.WriteRune(rune(n))
			s = rest
		default:
			t.Fatalf("stray backslash before %q", after)
		}
	}
	return b.String()
}

// printable is a string as a page can have it at all.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == '\uFFFD' {
			return ' '
		}
		return r
	}, s)
}

var request = regexp.MustCompile(`^\.(Fl|Xr|Ar|Ev|Pa|Ql) `)

// FuzzText: whatever a help text says, it comes out as it is, and nothing in it
// becomes a request.
func FuzzText(f *testing.F) {
	for _, s := range []string{
		"", ".Sh NAME", "'br", `\fBbold\fP \n(.x`, "a - b -- c", "--flag=V, (--other) $HOME.", "see waypoint-run(1); `x y`!", "ä “ü” \U0001F600",
		"one. Two? --three! `", "-p ~/.x /etc/a. .Pp", `a\`, "<ID> <a b>", "\x00\xff", "..", "`", "``", "(-x)", "No Fl Ar", "\u0085a\u00a0b",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		shown := printable(s)
		for name, line := range map[string]string{"escape": escape(s), "literal": literal(s)} {
			if strings.ContainsAny(line, "\n\r") {
				t.Errorf("%s(%q) has a line break", name, s)
			}
			if got := unescape(t, line); got != shown {
				t.Errorf("%s(%q) shows %q, want %q", name, s, got, shown)
			}
		}
		if l := literal(s); strings.HasPrefix(l, ".") || strings.HasPrefix(l, "'") {
			t.Errorf("literal(%q) is a request: %q", s, l)
		}
		if arg := argument(s); strings.HasPrefix(arg, `"`) != strings.HasSuffix(arg, `"`) || strings.Count(arg, `"`)%2 != 0 {
			t.Errorf("argument(%q) is not one: %s", s, arg)
		} else if got := unescape(t, strings.Trim(arg, `"`)); got != shown {
			t.Errorf("argument(%q) shows %q, want %q", s, got, shown)
		}
		for _, line := range text(s) {
			if strings.ContainsAny(line, "\n\r") || strings.HasPrefix(line, "'") {
				t.Errorf("text(%q) has the line %q", s, line)
			}
			if strings.HasPrefix(line, ".") && !request.MatchString(line) {
				t.Errorf("text(%q) has the request %q", s, line)
			}
			unescape(t, line)
		}
	})
}

// TestTextByMandoc has a formatter of others show what was escaped.
func TestTextByMandoc(t *testing.T) {
	if _, err := exec.LookPath("mandoc"); err != nil {
		t.Skipf("SKIPPED: %v", err)
	}
	lines := []string{
		`.Sh NAME`, `'br`, `\fBbold\fP \(bu \n(.x \e`, `a - b -- c`, `sh -c 'echo "$x" ~ ^ | sed s/\./-/'`, "`quoted`", `.`, `\`, `\\`, `a  b`,
	}
	var page strings.Builder
	page.WriteString(".Dd November 21, 2026\n.Dt X 1\n.Os\n.Sh NAME\n.Nm x\n.Nd y\n.Sh DESCRIPTION\n.Bd -literal\n")
	for _, l := range lines {
		page.WriteString(literal(l) + "\n")
	}
	page.WriteString(".Ed\n")
	cmd := exec.Command("mandoc", "-Tascii", "-Owidth=200")
	cmd.Stdin = strings.NewReader(page.String())
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	var shown []string
	for l := range strings.Lines(string(out)) {
		shown = append(shown, strings.TrimSpace(l))
	}
	for _, l := range lines {
		if !slices.Contains(shown, strings.TrimSpace(l)) {
			t.Errorf("%q is not shown as it is:\n%s", l, out)
		}
	}
}

func TestText(t *testing.T) {
	for in, want := range map[string]string{
		"It is. See --flag, or (--other=N).":  "It is.\nSee\n.Fl \\-flag ,\nor\n.Fl ( \\-other Ns = Ns Ar N ) .",
		"as $HOME says; waypoint-run(1).":     "as\n.Ev HOME\nsays;\n.Xr waypoint-run 1 .",
		"in /etc/x and `a b`: <ID> or -p":     "in\n.Pa /etc/x\nand\n.Ql \"a b\" :\n.Ar ID\nor\n.Fl p",
		"$XDG_STATE_HOME/x is e.g. not a . b": ".Pa $XDG_STATE_HOME/x\nis e.g. not a . b",
	} {
		if got := strings.Join(text(in), "\n"); got != want {
			t.Errorf("%q is\n%s\nwant\n%s", in, got, want)
		}
	}
}

func TestProse(t *testing.T) {
	p, err := parseProse(".\\\" a remark\n.Sh A\none\ntwo.\n\nThree:\n\n    $ x -y\n\n    z\n\nfour\n.Sh B\n.It 3\ngone\n\n")
	if err != nil {
		t.Fatal(err)
	}
	want := "one two.\n.Pp\nThree:\n.Bd -literal -offset indent\n$ x \\-y\n\nz\n.Ed\n.Pp\nfour"
	if got := strings.Join(p["A"].render(), "\n"); got != want {
		t.Errorf("A is\n%s\nwant\n%s", got, want)
	}
	if got := strings.Join(p["B"], "|"); got != ".It 3|gone" {
		t.Errorf("B is %q", got)
	}
	for _, bad := range []string{"text\n", ".Sh A\nx\n.Sh A\n"} {
		if _, err := parseProse(bad); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}
