package completion

import (
	"fmt"
	"strings"
)

// bash works without the bash-completion package: the words are put together
// here from what readline has cut at "=" and ":".
func (g *grammar) bash() string {
	var s script
	g.heading(&s, "# shellcheck shell=bash", "bash")
	g.tables(&s, func(s *script, words []word) {
		var names []string
		for _, w := range words {
			names = append(names, w.text)
		}
		s.line("    below=%s", quote(strings.Join(names, " ")))
	}, func(s *script, to string, flags []flag) {
		var names []string
		for _, f := range flags {
			names = append(names, f.names...)
		}
		s.line("    %s=%s", to, quote(strings.Join(names, " ")))
	})
	s.WriteString(strings.ReplaceAll(bashScript, "waypoint", g.name))
	return s.String()
}

// tables are functions for bash and zsh, whose "case" is the same: what is
// below a command, its flags, and what completes values.
func (g *grammar) tables(s *script, below func(s *script, words []word), flags func(s *script, to string, flags []flag)) {
	s.line("\n# The commands below $1, the flags of $1 and of every command.\n_%s_at() {\n    below='' own='' global='' words=''", g.name)
	flags(s, "global", g.global)
	s.line("    case $1 in")
	for _, c := range g.commands {
		s.line("    %s)", quote(c.path))
		if len(c.below) > 0 {
			below(s, c.below)
		}
		if len(c.flags) > 0 {
			flags(s, "own", c.flags)
		}
		if c.words {
			s.line("    words=1")
		}
		s.line("    ;;")
	}
	s.line("    esac\n}")

	s.line("\n# The command that $2 is below $1.\n_%s_below() {\n    case \"$1 $2\" in", g.name)
	for _, c := range g.commands {
		for _, w := range c.below {
			s.line("    %s) path=%s ;;", quote(c.path+" "+w.text), quote(strings.TrimSpace(c.path+" "+w.means)))
		}
	}
	s.line("    *) return 1 ;;\n    esac\n}")

	s.line("\n# What completes the value of flag $2 of $1; false where it has none.\n_%s_value() {\n    case \"$1 $2\" in", g.name)
	for _, c := range g.commands {
		for _, f := range c.flags {
			if f.values != "" {
				s.line("    %s) values=%s ;;", alternatives(c.path+" ", f.names), quote(string(f.values)))
			}
		}
	}
	s.line("    *)\n    case $2 in")
	for _, f := range g.global {
		if f.values != "" {
			s.line("    %s) values=%s ;;", alternatives("", f.names), quote(string(f.values)))
		}
	}
	s.line("    *) return 1 ;;\n    esac ;;\n    esac\n}")

	s.line("\n# What completes argument $2 of $1.\n_%s_argument() {\n    case \"$1 $2\" in", g.name)
	for _, c := range g.commands {
		for n, values := range c.args {
			if values != Nothing {
				pattern := quote(c.path + " " + fmt.Sprint(n))
				if c.more && n == len(c.args)-1 {
					pattern = quote(c.path+" ") + "*"
				}
				s.line("    %s) values=%s ;;", pattern, quote(string(values)))
			}
		}
	}
	s.line("    *) values=@nothing ;;\n    esac\n}")

	s.line("\n# Whether $1 says which server is meant.\n_%s_server() {\n    case $1 in", g.name)
	s.line("    %s) ;;\n    *) return 1 ;;\n    esac\n}\n", strings.Join(g.server, " | "))
}

func alternatives(path string, names []string) string {
	quoted := make([]string, len(names))
	for i, n := range names {
		quoted[i] = quote(path + n)
	}
	return strings.Join(quoted, " | ")
}

const bashScript = `
_waypoint() {
    local line=${COMP_LINE:0:COMP_POINT} argv=() w i n=-1
    # Readline cuts words at = and : too. What no blank is between is one word.
    for ((i = 0; i <= COMP_CWORD; i++)); do
        w=${COMP_WORDS[i]}
        if ((n < 0)) || [[ $line == [[:space:]]* || -z $line && -z $w ]]; then
            line=${line#"${line%%[![:space:]]*}"}
            ((i == COMP_CWORD)) && w=$line
            argv[++n]=$w
        else
            ((i == COMP_CWORD)) && w=$line
            argv[n]+=$w
        fi
        line=${line#"$w"}
    done
    local cur=${argv[n]} path='' values='' pending='' asked=() arg=0 below own global words reply=() prefix=''
    COMPREPLY=()
    for ((i = 1; i < n; i++)); do
        w=${argv[i]}
        if [[ $pending ]]; then
            _waypoint_server "$pending" && asked+=("$pending=$(_waypoint_plain "$w")")
            pending=
            continue
        fi
        [[ $w == -[!-]?* && $w != -v* ]] && w=-$w
        case $w in
        --) _waypoint_words $((i + 1)); return ;;
        --*=*) _waypoint_server "${w%%=*}" && asked+=("${w%%=*}=$(_waypoint_plain "${w#*=}")") ;;
        -*) if _waypoint_value "$path" "$w"; then pending=$w; elif _waypoint_server "$w"; then asked+=("$w"); fi ;;
        *) ((arg == 0)) && _waypoint_below "$path" "$w" || arg=$((arg + 1)) ;;
        esac
    done
    _waypoint_at "$path"
    if [[ $pending ]]; then
        _waypoint_value "$path" "$pending"
    elif [[ $cur == --*=* ]] && _waypoint_value "$path" "${cur%%=*}"; then
        prefix=${cur%%=*}=
    elif [[ $cur == -* ]]; then
        values="$own $global"
    elif [[ $below && $arg == 0 ]]; then
        values=$below
    elif [[ $words ]]; then
        values=--
    else
        _waypoint_argument "$path" "$arg"
    fi
    cur=${cur#"$prefix"}
    case $values in
    @nothing) ;;
    @files | @directories)
        local kind=-f
        [[ $values == @directories ]] && kind=-d
        # A tilde or a quote is readline's to understand, which it does where the word is whole.
        mapfile -t reply < <(compgen $kind -- "$(_waypoint_plain "$cur")")
        compopt -o filenames 2>/dev/null
        ;;
    @*)
        # Never compgen -W, which would expand what a server has said.
        values=$(command "${COMP_WORDS[0]}" "${asked[@]}" completion "${values#@}" 2>/dev/null </dev/null | cut -f 1)
        _waypoint_matching
        ;;
    *) _waypoint_matching ;;
    esac
    # Readline puts a reply in place of what is behind the last = or :.
    w=$prefix$cur
    local cut=
    [[ $COMP_WORDBREAKS == *:* && $w == *:* ]] && cut=${w%"${w##*:}"}
    [[ $COMP_WORDBREAKS == *=* && ${w#"$cut"} == *=* ]] && cut=${w%"${w##*=}"}
    for ((i = 0; i < ${#reply[@]}; i++)); do
        w=$prefix${reply[i]}
        COMPREPLY[i]=${w#"$cut"}
    done
}

# Those of the values that begin as the word does.
_waypoint_matching() {
    local w
    while read -r -d ' ' w; do
        [[ $w && $w == "$cur"* ]] && reply+=("$w")
    done <<<"${values//$'\n'/ } "
}

# A word without the quotes and with the home directory that the shell would make of it.
_waypoint_plain() {
    local w=$1
    case $w in
    \'*) w=${w#\'} w=${w%\'} ;;
    \"*) w=${w#\"} w=${w%\"} ;;
    esac
    [[ ${w:0:2} == \~/ ]] && w=$HOME${w:1}
    printf '%s' "$w"
}

# What begins at word $1 of the line is a command.
_waypoint_words() {
    if declare -F _command_offset >/dev/null; then
        local from=0
        while [[ ${COMP_WORDS[from]} != -- ]]; do ((from++)); done
        _command_offset $((from + 1))
    elif ((n == $1)); then
        mapfile -t COMPREPLY < <(compgen -c -- "$cur")
    else
        mapfile -t COMPREPLY < <(compgen -f -- "$(_waypoint_plain "$cur")")
        compopt -o filenames 2>/dev/null
    fi
}

complete -F _waypoint waypoint
`
