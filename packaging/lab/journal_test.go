package lab

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"sync"
	"time"
)

// journal is the lab's, over all its boots, as it grows.
type journal struct {
	mu      sync.Mutex
	entries []entry
	changed chan struct{} // closed, and made anew, with each entry
	end     context.CancelFunc
	read    sync.WaitGroup
}

// entry has the fields of a line of the journal.
type entry map[string]string

func newJournal() *journal { return &journal{changed: make(chan struct{})} }

// follow reads the journal of the boot that is under way.
func (l *lab) follow() {
	l.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	// The host's, on the lab's files: at a shutdown systemd would end one of the
	// lab's before the last lines.
	id := l.run("cat", "/etc/machine-id")
	cmd := exec.CommandContext(ctx, "journalctl", "--directory", fmt.Sprintf("/proc/%d/root/run/log/journal/%s", l.leader, id), "--follow", "--lines=all", "--output=json", "--all")
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		l.t.Fatalf("follow the journal: %v", err)
	}
	l.journal.end = cancel
	l.journal.read.Go(func() {
		l.journal.take(out)
		cmd.Wait()
	})
}

// catchUp adds what has not come yet: journald tells its followers four times
// a second.
func (l *lab) catchUp() {
	seen := map[string]bool{}
	for _, e := range l.journal.find(func(entry) bool { return true }) {
		seen[e["__CURSOR"]] = true
	}
	late := newJournal()
	late.take(strings.NewReader(l.try("journalctl", "--sync").stdout + l.try("journalctl", "--boot", "--output=json", "--all", "--no-pager").stdout + "\n"))
	l.journal.mu.Lock()
	defer l.journal.mu.Unlock()
	for _, e := range late.entries {
		if !seen[e["__CURSOR"]] {
			l.journal.entries = append(l.journal.entries, e)
		}
	}
}

func (j *journal) take(lines io.Reader) {
	r := bufio.NewReader(lines)
	for {
		line, err := r.ReadBytes('\n')
		if err != nil {
			return
		}
		var fields map[string]any
		if json.Unmarshal(line, &fields) != nil {
			continue
		}
		e := entry{}
		for k, v := range fields {
			e[k] = text(v)
		}
		j.mu.Lock()
		j.entries = append(j.entries, e)
		close(j.changed)
		j.changed = make(chan struct{})
		j.mu.Unlock()
	}
}

// text is a field's value; one that is not printable comes as its bytes.
func text(v any) string {
	switch v := v.(type) {
	case string:
		return v
	case []any:
		var b strings.Builder
		for _, x := range v {
			if n, ok := x.(float64); ok {
				b.WriteByte(byte(n))
			} else {
				fmt.Fprint(&b, x, "\n") // a field that is there more than once
			}
		}
		return b.String()
	}
	return ""
}

// news is closed with the next entry.
func (j *journal) news() <-chan struct{} {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.changed
}

// find returns the entries that a function wants, oldest first.
func (j *journal) find(wanted func(e entry) bool) []entry {
	j.mu.Lock()
	defer j.mu.Unlock()
	var found []entry
	for _, e := range j.entries {
		if wanted(e) {
			found = append(found, e)
		}
	}
	return found
}

// of is what a unit said, systemd's lines about it included.
func (j *journal) of(unit, part string) []entry {
	return j.find(func(e entry) bool {
		return (e["_SYSTEMD_UNIT"] == unit || e["UNIT"] == unit) && strings.Contains(e["MESSAGE"], part)
	})
}

func (j *journal) close() {
	if j.end != nil {
		j.end()
		j.read.Wait()
		j.end = nil
	}
}

// tail is the last lines as a person reads them.
func (j *journal) tail(n int) string {
	j.mu.Lock()
	defer j.mu.Unlock()
	var b strings.Builder
	for _, e := range j.entries[max(0, len(j.entries)-n):] {
		var micros int64
		fmt.Sscan(e["__REALTIME_TIMESTAMP"], &micros)
		fmt.Fprintf(&b, "%s %s[%s]: %s", time.UnixMicro(micros).UTC().Format("15:04:05.000"), e["SYSLOG_IDENTIFIER"], e["_PID"], e["MESSAGE"])
		for k, v := range e {
			if strings.HasPrefix(k, "WAYPOINT_") || k == "ERROR" {
				fmt.Fprintf(&b, " %s=%q", k, v)
			}
		}
		b.WriteByte('\n')
	}
	return b.String()
}
