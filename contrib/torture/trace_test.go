package torture

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// traces is the file in which scripts leave their starts and ends. All write
// behind its end, so the order of its lines is that of what has happened.
type traces string

func tracesIn(dir string) traces { return traces(filepath.Join(dir, "traces")) }

// begin and end are what a script does for its trace.
func (tr traces) begin(tag string) string { return tr.line("begin", tag) }
func (tr traces) end(tag string) string   { return tr.line("end", tag) }

func (tr traces) line(what, tag string) string {
	return fmt.Sprintf("echo \"%s %s $WAYPOINT_ATTEMPT $$\" >>%s\n", tag, what, string(tr))
}

// trace is a line that a script left: as which attempt and by which process it
// has started, or comes to its end.
type trace struct {
	what    string // begin, end
	attempt int
	pid     int
}

func (t trace) String() string {
	return fmt.Sprintf("%s of attempt %d, process %d", t.what, t.attempt, t.pid)
}

// read is all traces by tag, in their order.
func (tr traces) read() (map[string][]trace, error) {
	b, err := os.ReadFile(string(tr))
	if os.IsNotExist(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	m := map[string][]trace{}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) != 4 || f[1] != "begin" && f[1] != "end" {
			return nil, fmt.Errorf("read %s: line %q", tr, line)
		}
		attempt, err1 := strconv.Atoi(f[2])
		pid, err2 := strconv.Atoi(f[3])
		if err1 != nil || err2 != nil {
			return nil, fmt.Errorf("read %s: line %q", tr, line)
		}
		m[f[0]] = append(m[f[0]], trace{f[1], attempt, pid})
	}
	return m, nil
}

// has reports whether one of the traces is a begin, or an end.
func has(all []trace, what string) bool {
	return slices.ContainsFunc(all, func(t trace) bool { return t.what == what })
}

// checkTraces holds the model's rules on the starts and the end of one job: it
// started once, as the attempt on record, and came to its end. One that was cut,
// as it was ended on request, need not have started or come to its end.
func checkTraces(all []trace, onRecord int, cut bool) error {
	var started, ended *trace
	for i, t := range all {
		switch {
		case t.what == "end" && (started == nil || ended != nil || t.attempt != started.attempt || t.pid != started.pid):
			return fmt.Errorf("an end that is nobody's: %v", all)
		case t.what == "end":
			ended = &all[i]
		case started != nil && ended == nil:
			return fmt.Errorf("it started while it was live: %v", all)
		case started != nil:
			return fmt.Errorf("it started once more: %v", all)
		default:
			started = &all[i]
		}
	}
	switch {
	case started == nil && cut:
		return nil
	case started == nil:
		return fmt.Errorf("it never started")
	case started.attempt != onRecord:
		return fmt.Errorf("attempt %d started, attempt %d is on record: %v", started.attempt, onRecord, all)
	case ended == nil && !cut:
		return fmt.Errorf("it did not come to its end, somebody killed it: %v", all)
	}
	return nil
}

// The rules refuse what must not be; else the tests that go by them would say nothing.
func TestTraces(t *testing.T) {
	begin := func(attempt, pid int) trace { return trace{"begin", attempt, pid} }
	end := func(attempt, pid int) trace { return trace{"end", attempt, pid} }
	for name, c := range map[string]struct {
		all       []trace
		onRecord  int
		good, cut bool // cut: whether it is good where the job was cut
	}{
		"once":                       {[]trace{begin(1, 7), end(1, 7)}, 1, true, true},
		"once, as a later attempt":   {[]trace{begin(3, 7), end(3, 7)}, 3, true, true},
		"never":                      {nil, 1, false, true},
		"killed":                     {[]trace{begin(1, 7)}, 1, false, true},
		"of another attempt":         {[]trace{begin(1, 7), end(1, 7)}, 2, false, false},
		"two attempts at once":       {[]trace{begin(1, 7), begin(2, 8), end(1, 7), end(2, 8)}, 2, false, false},
		"one within the other":       {[]trace{begin(1, 7), begin(2, 8), end(2, 8), end(1, 7)}, 2, false, false},
		"the first one killed":       {[]trace{begin(1, 7), begin(2, 8), end(2, 8)}, 2, false, false},
		"two attempts in turn":       {[]trace{begin(1, 7), end(1, 7), begin(2, 8), end(2, 8)}, 2, false, false},
		"an attempt twice":           {[]trace{begin(1, 7), end(1, 7), begin(1, 8), end(1, 8)}, 1, false, false},
		"an attempt twice at once":   {[]trace{begin(1, 7), begin(1, 8), end(1, 7), end(1, 8)}, 1, false, false},
		"another process's end":      {[]trace{begin(1, 7), end(1, 8)}, 1, false, false},
		"two ends":                   {[]trace{begin(1, 7), end(1, 7), end(1, 7)}, 1, false, false},
		"an end without a beginning": {[]trace{end(1, 7)}, 1, false, false},
	} {
		for _, cut := range []bool{false, true} {
			want := c.good
			if cut {
				want = c.cut
			}
			if err := checkTraces(c.all, c.onRecord, cut); (err == nil) != want {
				t.Errorf("%s, cut %t: %v", name, cut, err)
			}
		}
	}
}
