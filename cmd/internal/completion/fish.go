package completion

import (
	"fmt"
	"strings"
)

// fish shows what each word is for.
func (g *grammar) fish() string {
	var s script
	g.heading(&s, "# fish", "fish")
	q := func(text string) string {
		return "'" + strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(text) + "'"
	}
	offers := func(flags []flag) {
		for _, f := range flags {
			for _, name := range f.names {
				s.line("        echo %s\\t%s", name, q(summary(f.help)))
			}
		}
	}
	s.line("\n# The commands below $argv[1].\nfunction __%s_commands\n    switch \"$argv[1]\"", g.name)
	for _, c := range g.commands {
		if len(c.below) == 0 {
			continue
		}
		s.line("    case %s", q(c.path))
		for _, w := range c.below {
			s.line("        echo %s\\t%s", w.text, q(summary(w.help)))
		}
	}
	s.line("    case '*'\n        return 1\n    end\nend")

	s.line("\n# The flags of $argv[1] and of every command.\nfunction __%s_flags\n    switch \"$argv[1]\"", g.name)
	for _, c := range g.commands {
		if len(c.flags) > 0 {
			s.line("    case %s", q(c.path))
			offers(c.flags)
		}
	}
	s.line("    end")
	offers(g.global)
	s.line("end")

	s.line("\n# The command that $argv[2] is below $argv[1].\nfunction __%s_below\n    switch \"$argv[1] $argv[2]\"", g.name)
	for _, c := range g.commands {
		for _, w := range c.below {
			s.line("    case %s\n        echo %s", q(c.path+" "+w.text), q(strings.TrimSpace(c.path+" "+w.means)))
		}
	}
	s.line("    case '*'\n        return 1\n    end\nend")

	s.line("\n# What completes the value of flag $argv[2] of $argv[1]; false where it has none.\nfunction __%s_value\n    switch \"$argv[1] $argv[2]\"", g.name)
	values := func(path string, flags []flag) {
		for _, f := range flags {
			if f.values != "" {
				var names []string
				for _, n := range f.names {
					names = append(names, q(path+n))
				}
				s.line("    case %s\n        echo %s", strings.Join(names, " "), q(string(f.values)))
			}
		}
	}
	for _, c := range g.commands {
		values(c.path+" ", c.flags)
	}
	s.line("    case '*'\n    switch $argv[2]")
	values("", g.global)
	s.line("    case '*'\n        return 1\n    end\n    end\nend")

	s.line("\n# What completes argument $argv[2] of $argv[1].\nfunction __%s_argument\n    switch \"$argv[1] $argv[2]\"", g.name)
	for _, c := range g.commands {
		for n, v := range c.args {
			if v != Nothing {
				pattern := fmt.Sprint(n)
				if c.more && n == len(c.args)-1 {
					pattern = "*"
				}
				s.line("    case %s\n        echo %s", q(c.path+" "+pattern), q(string(v)))
			}
		}
		if c.words {
			s.line("    case %s\n        printf '%%s\\n' --", q(c.path+" *"))
		}
	}
	s.line("    case '*'\n        echo @nothing\n    end\nend")

	s.line("\n# Whether $argv[1] says which server is meant.\nfunction __%s_server\n    contains -- $argv[1] %s\nend", g.name, strings.Join(g.server, " "))
	s.WriteString(strings.ReplaceAll(fishScript, "waypoint", g.name))
	return s.String()
}

const fishScript = `
function __waypoint_complete
    set -l tokens (commandline -opc)
    set -l cur (commandline -ct)
    set -l path ''
    set -l pending ''
    set -l asked
    set -l arg 0
    set -l i 1
    for w in $tokens[2..]
        set i (math $i + 1)
        if test -n "$pending"
            __waypoint_server $pending; and set -a asked $pending=$w
            set pending ''
            continue
        end
        if string match -qr -- '^-[^-].' $w; and not string match -q -- '-v*' $w
            set w -$w
        end
        switch $w
            case --
                __fish_complete_subcommand --commandline $tokens[(math $i + 1)..] $cur
                return
            case '--*=*'
                __waypoint_server (string split -m 1 = -- $w)[1]; and set -a asked $w
            case '-*'
                if __waypoint_value $path $w >/dev/null
                    set pending $w
                else if __waypoint_server $w
                    set -a asked $w
                end
            case '*'
                if test $arg -eq 0; and set -l next (__waypoint_below $path $w)
                    set path $next
                else
                    set arg (math $arg + 1)
                end
        end
    end
    set -l prefix ''
    set -l values
    if test -n "$pending"
        set values (__waypoint_value $path $pending)
    else if string match -q -- '--*=*' $cur; and set values (__waypoint_value $path (string split -m 1 = -- $cur)[1])
        set prefix (string split -m 1 = -- $cur)[1]=
        set cur (string split -m 1 = -- $cur)[2]
    else if string match -q -- '-*' $cur
        __waypoint_flags $path
        return
    else if test $arg -eq 0; and __waypoint_commands $path
        return
    else
        set values (__waypoint_argument $path $arg)
    end
    switch "$values"
        case @nothing
        case @files
            __fish_complete_path $cur | string replace -r '^' -- $prefix
        case @directories
            __fish_complete_directories $cur '' | string replace -r '^' -- $prefix
        case '@*'
            command $tokens[1] $asked completion (string sub -s 2 -- $values) 2>/dev/null </dev/null | string replace -r '^' -- $prefix
        case '*'
            string split ' ' -- $values | string replace -r '^' -- $prefix
    end
end

complete -c waypoint -f -a '(__waypoint_complete)'
`
