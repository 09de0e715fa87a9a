package main

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// memory is what a process has resident now and had at most, in bytes.
func memory(pid int) (now, most int64, err error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, 0, fmt.Errorf("read memory: %w", err)
	}
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		n, _ := strconv.ParseInt(f[1], 10, 64)
		switch f[0] {
		case "VmRSS:":
			now = n * 1024
		case "VmHWM:":
			most = n * 1024
		}
	}
	return now, most, nil
}

// processorTime is what a process, and what it has waited for, has had of the
// processors. The kernel counts in hundredths of a second.
func processorTime(pid int) (own, children time.Duration, err error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, 0, fmt.Errorf("read processor time: %w", err)
	}
	// The name, in parentheses, may hold anything.
	_, rest, _ := strings.Cut(string(text), ") ")
	f := strings.Fields(rest)
	if len(f) < 15 {
		return 0, 0, fmt.Errorf("read processor time of %d: %q", pid, text)
	}
	ticks := func(i int) time.Duration {
		n, _ := strconv.ParseInt(f[i], 10, 64)
		return time.Duration(n) * 10 * time.Millisecond
	}
	return ticks(11) + ticks(12), ticks(13) + ticks(14), nil
}

// resident is one process of the program.
type resident struct {
	name string
	pid  int
}

func (b *bench) residents() []resident {
	rs := []resident{{"server", b.server.cmd.Process.Pid}, {"agent", b.wide.cmd.Process.Pid}}
	if b.wide.supervisor != 0 {
		rs = append(rs, resident{"supervisor", b.wide.supervisor})
	}
	return rs
}

// processorTimes is the time of each process since the last call.
func (b *bench) processorTimes(last map[string]time.Duration) (map[string]time.Duration, error) {
	since := map[string]time.Duration{}
	for _, r := range b.residents() {
		own, _, err := processorTime(r.pid)
		if err != nil {
			return nil, err
		}
		since[r.name] = own - last[r.name]
		last[r.name] = own
	}
	return since, nil
}

// size is what the files under a path take.
func size(path string) (n int64, err error) {
	err = filepath.WalkDir(path, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		info, err := d.Info()
		if err == nil {
			n += info.Size()
		}
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("measure files: %w", err)
	}
	return n, nil
}
