package torture

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// trace is a line that a script left: who, as which attempt, by which process.
type trace struct {
	attempt int
	pid     int
}

// readTraces reads a file of traces by tag, in their order.
func readTraces(path string) (map[string][]trace, error) {
	b, err := os.ReadFile(path)
	if os.IsNotExist(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	m := map[string][]trace{}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) != 3 {
			return nil, fmt.Errorf("read %s: line %q", path, line)
		}
		attempt, err1 := strconv.Atoi(f[1])
		pid, err2 := strconv.Atoi(f[2])
		if err1 != nil || err2 != nil {
			return nil, fmt.Errorf("read %s: line %q", path, line)
		}
		m[f[0]] = append(m[f[0]], trace{attempt, pid})
	}
	return m, nil
}

// checkStarts holds the model's rules on starts and ends of one job.
func checkStarts(starts, ends []trace, onRecord int) error {
	if len(starts) == 0 {
		return fmt.Errorf("it never started")
	}
	for i, s := range starts {
		if i > 0 && s.attempt <= starts[i-1].attempt {
			return fmt.Errorf("attempt %d started behind attempt %d: %v", s.attempt, starts[i-1].attempt, starts)
		}
	}
	last := starts[len(starts)-1]
	if last.attempt != onRecord {
		return fmt.Errorf("attempt %d started last, attempt %d is on record", last.attempt, onRecord)
	}
	if len(ends) != len(starts) {
		return fmt.Errorf("%d starts and %d ends: somebody killed it: %v, %v", len(starts), len(ends), starts, ends)
	}
	for i := range starts {
		if starts[i] != ends[i] {
			return fmt.Errorf("start %v ended as %v", starts[i], ends[i])
		}
	}
	return nil
}

// checkCutStarts is the same for a job that was ended on request: it need not
// have started, and its last start need not have come to its end.
func checkCutStarts(starts, ends []trace, onRecord int) error {
	switch {
	case len(starts) == 0 && len(ends) == 0:
		return nil
	case len(ends) < len(starts):
		ends = append(ends[:len(ends):len(ends)], starts[len(starts)-1])
	}
	return checkStarts(starts, ends, onRecord)
}
