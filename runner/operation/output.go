package operation

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"strings"
	"syscall"
	"unicode/utf8"

	"github.com/waypointd/waypoint/mux/wire"
)

// maxOutputs is the length of the file of a job's outputs.
const maxOutputs = 64 << 10

// ReadOutputs reads the key=value lines that a job left in its output file.
// Keys are letters, digits, '_', '-' and '.', values anything to the end of
// the line; of two lines with one key the later counts, and blank lines are
// passed. A missing file is no outputs. Bad lines, more than 64 KiB, or
// something that is not a plain file (a job could put a link there) are errors.
func ReadOutputs(path string) (map[string]string, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if errors.Is(err, syscall.ELOOP) {
		return nil, wire.Errorf(wire.BadUsage, "read outputs: $WAYPOINT_OUTPUT was replaced by a link")
	}
	if err != nil {
		return nil, wire.Errorf(wire.Internal, "read outputs: %v", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, wire.Errorf(wire.Internal, "read outputs: %v", err)
	}
	if !info.Mode().IsRegular() {
		return nil, wire.Errorf(wire.BadUsage, "read outputs: $WAYPOINT_OUTPUT is no longer a plain file")
	}
	data, err := io.ReadAll(io.LimitReader(f, maxOutputs+1))
	if err != nil {
		return nil, wire.Errorf(wire.Internal, "read outputs: %v", err)
	}
	if len(data) > maxOutputs {
		return nil, wire.Errorf(wire.TooLarge, "read outputs: $WAYPOINT_OUTPUT is longer than %d bytes", maxOutputs)
	}
	return parseOutputs(string(data))
}

func parseOutputs(text string) (map[string]string, error) {
	outputs := map[string]string{}
	n := 0
	for line := range strings.Lines(text) {
		n++
		line = strings.TrimSuffix(line, "\n")
		if strings.TrimSpace(line) == "" {
			continue
		}
		k, v, ok := strings.Cut(line, "=")
		switch {
		case !ok:
			return nil, wire.Errorf(wire.BadUsage, "read outputs: line %d has no '=': %.80q", n, line)
		case k == "" || strings.ContainsFunc(k, func(r rune) bool { return r > 127 || !isNameByte(byte(r)) }):
			return nil, wire.Errorf(wire.BadUsage, "read outputs: line %d: %.80q cannot be a key", n, k)
		case !utf8.ValidString(v) || strings.ContainsRune(v, 0):
			return nil, wire.Errorf(wire.BadUsage, "read outputs: line %d: the value of %s is not text", n, k)
		}
		outputs[k] = v
	}
	return outputs, nil
}
