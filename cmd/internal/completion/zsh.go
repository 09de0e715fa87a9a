package completion

import "strings"

// zsh shows what each word is for.
func (g *grammar) zsh() string {
	var s script
	g.heading(&s, "#compdef "+g.name, "zsh")
	described := func(text, help string) string {
		return quote(strings.ReplaceAll(text, ":", `\:`) + ":" + summary(help))
	}
	var tables script
	g.tables(&tables, func(s *script, words []word) {
		s.line("    below=(")
		for _, w := range words {
			s.line("        %s", described(w.text, w.help))
		}
		s.line("    )")
	}, func(s *script, to string, flags []flag) {
		s.line("    %s=(", to)
		for _, f := range flags {
			for _, name := range f.names {
				s.line("        %s", described(name, f.help))
			}
		}
		s.line("    )")
	})
	// zsh keeps "path" and "words" for itself, and lists are lists there.
	s.WriteString(strings.NewReplacer(" path=", " path_=", " words=", " words_=", "below='' own='' global=''", "below=() own=() global=()").Replace(tables.String()))
	s.WriteString(strings.ReplaceAll(zshScript, "waypoint", g.name))
	return s.String()
}

const zshScript = `
_waypoint() {
    local path_ w pending values words_ line id
    local -a below own global asked offers
    local -i i arg=0
    for ((i = 2; i < CURRENT; i++)); do
        w=${(Q)${~words[i]}}
        if [[ -n $pending ]]; then
            _waypoint_server $pending && asked+=("$pending=$w")
            pending=
            continue
        fi
        [[ $w == -[^-]?* && $w != -v* ]] && w=-$w
        case $w in
        --)
            shift $i words
            ((CURRENT -= i))
            _normal
            return
            ;;
        --*=*) _waypoint_server ${w%%=*} && asked+=($w) ;;
        -*) if _waypoint_value "$path_" $w; then pending=$w; elif _waypoint_server $w; then asked+=($w); fi ;;
        *) ((arg == 0)) && _waypoint_below "$path_" "$w" || ((arg++)) ;;
        esac
    done
    _waypoint_at "$path_"
    if [[ -n $pending ]]; then
        _waypoint_value "$path_" $pending
    elif [[ $PREFIX == --*=* ]] && _waypoint_value "$path_" ${PREFIX%%=*}; then
        compset -P '*='
    elif [[ $PREFIX == -* ]]; then
        _describe -o option own -- global
        return
    elif (($#below && arg == 0)); then
        _describe command below
        return
    elif [[ -n $words_ ]]; then
        compadd -- --
        return
    else
        _waypoint_argument "$path_" $arg
    fi
    case $values in
    @nothing) _message value ;;
    @files) _files ;;
    @directories) _files -/ ;;
    @*)
        for line in ${(f)"$(command ${(Q)~words[1]} $asked completion ${values#@} 2>/dev/null </dev/null)"}; do
            id=${line%%$'\t'*}
            offers+=("${id//:/\\:}:${line#*$'\t'}")
        done
        _describe ${${values#@}%s} offers
        ;;
    *) compadd -- ${=values} ;;
    esac
}

if [[ $funcstack[1] == _waypoint ]]; then
    _waypoint "$@"
else
    compdef _waypoint waypoint
fi
`
